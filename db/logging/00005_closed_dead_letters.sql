-- +goose Up
-- Those that were decided about are deleted when they are as old as the log becomes.
CREATE INDEX dead_letter_closed ON dead_letter (updated_at) WHERE state <> 'OPEN';

-- +goose Down
DROP INDEX dead_letter_closed;
