-- +goose Up

-- Every event once. Partitioned by the time of publishing, which a redelivered message repeats, so that the unique
-- index can tell it from a new one. The service makes the partitions ahead; the default one takes what has no place.
CREATE TABLE event_log (
    id            bigint GENERATED ALWAYS AS IDENTITY,
    routing_key   text        NOT NULL,
    exchange      text        NOT NULL,
    -- The event as JSON; NULL where the message could not be read.
    payload       jsonb,
    status        text        NOT NULL CHECK (status IN ('success', 'error')),
    error_message text        NOT NULL DEFAULT '',
    message_id    uuid        NOT NULL,
    order_id      uuid,
    trace_id      text        NOT NULL DEFAULT '',
    -- The service that published it.
    source        text        NOT NULL DEFAULT '',
    attempt       integer     NOT NULL DEFAULT 0,
    published_at  timestamptz NOT NULL,
    created_at    timestamptz NOT NULL DEFAULT clock_timestamp()
) PARTITION BY RANGE (published_at);
CREATE TABLE event_log_default PARTITION OF event_log DEFAULT;
CREATE UNIQUE INDEX event_log_message ON event_log (message_id, published_at);
CREATE INDEX event_log_id ON event_log (id);
CREATE INDEX event_log_order ON event_log (order_id, id) WHERE order_id IS NOT NULL;

CREATE TABLE dead_letter (
    id           bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    state        text        NOT NULL DEFAULT 'OPEN' CHECK (state IN ('OPEN', 'REDRIVEN', 'DISCARDED')),
    reason       text        NOT NULL,
    source_queue text        NOT NULL,
    exchange     text        NOT NULL,
    routing_key  text        NOT NULL,
    message_id   uuid        NOT NULL,
    order_id     uuid,
    trace_id     text        NOT NULL DEFAULT '',
    type         text        NOT NULL DEFAULT '',
    attempts     integer     NOT NULL DEFAULT 0,
    headers      jsonb       NOT NULL DEFAULT '{}',
    body         bytea       NOT NULL,
    created_at   timestamptz NOT NULL DEFAULT now(),
    updated_at   timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX dead_letter_open ON dead_letter (id) WHERE state = 'OPEN';

-- +goose Down
DROP TABLE dead_letter, event_log;
