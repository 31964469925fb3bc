-- +goose Up
-- Up to which event the log has been compared with what the services have handled, by routing key. '' is where it began:
-- what was logged before this release is for `shop audit --repair`.
CREATE TABLE event_check (
    routing_key text PRIMARY KEY,
    event_id    bigint      NOT NULL,
    -- When that event was logged.
    logged_at   timestamptz NOT NULL
);
INSERT INTO event_check SELECT '', coalesce(max(id), 0), now() FROM event_log;

-- Events that the service which handles them has not handled although they cannot be waiting any more, and those that
-- ended as dead letters: until they are handled, and after that as a record.
CREATE TABLE unhandled_event (
    message_id   uuid PRIMARY KEY,
    event_id     bigint      NOT NULL,
    routing_key  text        NOT NULL,
    queue        text        NOT NULL,
    order_id     uuid        NOT NULL,
    published_at timestamptz NOT NULL,
    noticed_at   timestamptz NOT NULL DEFAULT clock_timestamp(),
    -- How often, and when last, it was sent again.
    sent         integer     NOT NULL DEFAULT 0,
    sent_at      timestamptz,
    closed_at    timestamptz,
    -- Why nothing more is done about it: handled; discarded as a dead letter; unreadable, because it was erased for
    -- example; lost, again and again.
    outcome      text CHECK (outcome IN ('handled', 'discarded', 'unreadable', 'lost')),
    CHECK ((closed_at IS NULL) = (outcome IS NULL))
);
CREATE INDEX unhandled_event_open ON unhandled_event (routing_key, sent_at NULLS FIRST, noticed_at) WHERE closed_at IS NULL;
CREATE INDEX unhandled_event_order ON unhandled_event (order_id);
CREATE INDEX unhandled_event_closed ON unhandled_event (closed_at) WHERE closed_at IS NOT NULL;

-- +goose Down
DROP TABLE unhandled_event, event_check;
