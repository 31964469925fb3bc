-- +goose Up
-- Which order an idempotency key belongs to: the first one that claimed it. The hash is over the caller and the key.
CREATE TABLE idempotency_key (
    key_hash   bytea PRIMARY KEY,
    order_id   uuid        NOT NULL,
    claimed_at timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX idempotency_key_claimed_at ON idempotency_key (claimed_at);

ALTER TABLE orders
    -- SHA-256 of what was ordered by whom, as OrderPlaced has it; NULL on orders of older releases.
    ADD COLUMN fingerprint bytea,
    -- Who placed it: issuer and subject of a token; NULL if the caller had none.
    ADD COLUMN owner text,
    -- The contracts list the reasons, and may list more tomorrow.
    DROP CONSTRAINT orders_reason_check;
CREATE INDEX orders_owner ON orders (owner, created_at, id) WHERE owner IS NOT NULL;

-- +goose Down
DROP INDEX orders_owner;
ALTER TABLE orders DROP COLUMN owner, DROP COLUMN fingerprint;
ALTER TABLE orders ADD CONSTRAINT orders_reason_check CHECK (reason IN ('OUT_OF_STOCK', 'UNKNOWN_PRODUCT', 'PRICE_CHANGED')) NOT VALID;
DROP TABLE idempotency_key;
