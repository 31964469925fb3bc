-- +goose NO TRANSACTION
-- +goose Up
-- Those that wait after an attempt that failed: few among many. They begin anew with their webhook.
DROP INDEX IF EXISTS delivery_tried;
CREATE INDEX CONCURRENTLY delivery_tried ON delivery (webhook_id) WHERE state = 'PENDING' AND first_attempt_at IS NOT NULL;

-- +goose Down
DROP INDEX delivery_tried;
