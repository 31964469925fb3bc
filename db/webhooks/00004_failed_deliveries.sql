-- +goose NO TRANSACTION
-- +goose Up
-- Those that were given up, of a webhook: few among many. The table is large, and a build that broke off leaves an index that is of no use.
DROP INDEX IF EXISTS delivery_failed;
CREATE INDEX CONCURRENTLY delivery_failed ON delivery (webhook_id, id) WHERE state = 'FAILED';

-- +goose Down
DROP INDEX delivery_failed;
