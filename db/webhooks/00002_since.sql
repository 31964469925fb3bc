-- +goose Up
-- Where the log was when the webhook was made, enabled or given other event types: it gets what it wants from there on. The audit
-- looks for it.
ALTER TABLE webhook ADD COLUMN since bigint;
UPDATE webhook SET since = (SELECT position FROM log_position);
-- The events of an order: their deliveries are compared by the audit, and rid of what receivers have answered when a person is
-- erased.
CREATE INDEX event_order ON event (order_id) WHERE order_id IS NOT NULL;

-- +goose Down
DROP INDEX event_order;
ALTER TABLE webhook DROP COLUMN since;
