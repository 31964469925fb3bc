-- +goose Up
-- The contracts list the reasons, and may list more tomorrow.
ALTER TABLE decision DROP CONSTRAINT decision_reason_check;

-- +goose Down
ALTER TABLE decision ADD CONSTRAINT decision_reason_check CHECK (reason IN ('OUT_OF_STOCK', 'UNKNOWN_PRODUCT', 'PRICE_CHANGED')) NOT VALID;
