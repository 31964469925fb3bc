-- +goose Up
-- The catalogue of the demo, ids 1 to 8 in this order. Prices in cents.
WITH seeded AS (
    INSERT INTO product (name, on_hand, unit_price, currency) VALUES
        ('Laptop',        50, 100000, 'USD'),
        ('Phone',        200,  50000, 'USD'),
        ('Keyboard',     100,   5000, 'USD'),
        ('Mouse',        100,   4500, 'USD'),
        ('Laptop Stand', 150,   3500, 'USD'),
        ('Mouse Pad',    200,   2500, 'USD'),
        ('Phone Case',   175,   3000, 'USD'),
        ('KVM Switch',   100,  17500, 'USD')
    RETURNING id, on_hand
)
INSERT INTO stock_movement (product_id, quantity, reason)
SELECT id, on_hand, 'CREATED' FROM seeded ORDER BY id;

-- +goose Down
DELETE FROM stock_movement WHERE product_id <= 8;
DELETE FROM product WHERE id <= 8;
