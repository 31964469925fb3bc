-- +goose Up
-- Failed attempts since first_attempt_at: the wait before the next follows from them. What waits when this is applied begins anew.
ALTER TABLE delivery ADD COLUMN failures integer NOT NULL DEFAULT 0;

-- +goose Down
ALTER TABLE delivery DROP COLUMN failures;
