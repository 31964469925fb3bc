-- +goose Up
-- What a call that created products was answered with, for the case that it is made again under its key. The hash is over
-- the caller and the key.
CREATE TABLE idempotency_key (
    key_hash    bytea PRIMARY KEY,
    fingerprint bytea       NOT NULL, -- SHA-256 of the products
    response    bytea, -- a shop.inventory.v1.CreateItemsResponse; NULL only within the transaction that creates them
    claimed_at  timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX idempotency_key_claimed_at ON idempotency_key (claimed_at);

-- +goose Down
DROP TABLE idempotency_key;
