-- +goose Up
-- The message_id as its publisher gave it, if the row has another one: an event's own id follows from its content.
ALTER TABLE dead_letter ADD COLUMN sent_message_id text NOT NULL DEFAULT '';
CREATE INDEX dead_letter_sent_message ON dead_letter (sent_message_id) WHERE sent_message_id <> '';

-- +goose Down
DROP INDEX dead_letter_sent_message;
ALTER TABLE dead_letter DROP COLUMN sent_message_id;
