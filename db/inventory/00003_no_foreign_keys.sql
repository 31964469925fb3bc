-- +goose Up
-- What these keys say holds by construction: products are never deleted, only marked so, and whoever writes a hold or a
-- movement has locked the product's row; a hold is written in the transaction of its decision and deleted with it. The
-- checks would read each of those rows once more for each line (docs/adr/0007).
ALTER TABLE hold DROP CONSTRAINT hold_order_id_fkey, DROP CONSTRAINT hold_product_id_fkey;
ALTER TABLE stock_movement DROP CONSTRAINT stock_movement_product_id_fkey;

-- +goose Down
ALTER TABLE stock_movement ADD CONSTRAINT stock_movement_product_id_fkey FOREIGN KEY (product_id) REFERENCES product;
ALTER TABLE hold
    ADD CONSTRAINT hold_order_id_fkey FOREIGN KEY (order_id) REFERENCES decision,
    ADD CONSTRAINT hold_product_id_fkey FOREIGN KEY (product_id) REFERENCES product;
