-- +goose Up
-- Secrets before the previous one that are valid still, because the secret was rotated more than once in a day, and until when each is.
ALTER TABLE webhook
    ADD COLUMN older_secrets bytea[] NOT NULL DEFAULT '{}',
    ADD COLUMN older_until timestamptz[] NOT NULL DEFAULT '{}';

-- +goose Down
ALTER TABLE webhook DROP COLUMN older_secrets, DROP COLUMN older_until;
