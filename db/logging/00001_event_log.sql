-- +goose Up

-- Every event once. Partitioned by the time of publishing, which a redelivered message repeats, so that the unique
-- index can tell it from a new one. The service makes the partitions ahead; the default one takes what has no place.
--
-- Whoever inserts holds the advisory lock 'event_log.insert' until the commit: so ids become visible in their order, and
-- who has read up to an id has missed nothing below it.
CREATE TABLE event_log (
    id            bigint GENERATED ALWAYS AS IDENTITY,
    routing_key   text        NOT NULL,
    exchange      text        NOT NULL,
    -- The event as JSON; NULL where the message could not be read.
    payload       jsonb,
    -- The message as it came, where it could not be read.
    body          bytea,
    status        text        NOT NULL CHECK (status IN ('success', 'error')),
    error_message text        NOT NULL DEFAULT '',
    message_id    uuid        NOT NULL,
    order_id      uuid,
    trace_id      text        NOT NULL DEFAULT '',
    -- The service that published it.
    source        text        NOT NULL DEFAULT '',
    attempt       integer     NOT NULL DEFAULT 0,
    published_at  timestamptz NOT NULL,
    created_at    timestamptz NOT NULL DEFAULT clock_timestamp(),
    CHECK ((payload IS NULL) = (body IS NOT NULL))
) PARTITION BY RANGE (published_at);
CREATE TABLE event_log_default PARTITION OF event_log DEFAULT;
CREATE UNIQUE INDEX event_log_message ON event_log (message_id, published_at);
CREATE INDEX event_log_id ON event_log (id);
CREATE INDEX event_log_order ON event_log (order_id, id) WHERE order_id IS NOT NULL;
CREATE INDEX event_log_routing_key ON event_log (routing_key, id);
-- Errors are few: asking for them must not read everything else.
CREATE INDEX event_log_error ON event_log (id) WHERE status = 'error';

-- Messages that could not be handled, until a person decides about them, and after that as a record.
CREATE TABLE dead_letter (
    id             bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    state          text        NOT NULL DEFAULT 'OPEN' CHECK (state IN ('OPEN', 'REDRIVEN', 'DISCARDED')),
    reason         text        NOT NULL,
    -- Where it is sent again; '' where it does not say where it comes from.
    source_queue   text        NOT NULL,
    exchange       text        NOT NULL,
    routing_key    text        NOT NULL,
    message_id     uuid        NOT NULL,
    order_id       uuid,
    correlation_id text        NOT NULL DEFAULT '',
    traceparent    text        NOT NULL DEFAULT '',
    trace_id       text        NOT NULL DEFAULT '',
    type           text        NOT NULL DEFAULT '',
    attempts       integer     NOT NULL,
    -- As they came, for a person; json because jsonb refuses what a header may hold.
    headers        json        NOT NULL,
    body           bytea       NOT NULL,
    published_at   timestamptz NOT NULL,
    created_at     timestamptz NOT NULL DEFAULT now(),
    updated_at     timestamptz NOT NULL DEFAULT now()
);
-- A message that was delivered twice, or died twice before anyone looked, waits for one decision.
CREATE UNIQUE INDEX dead_letter_open ON dead_letter (message_id, source_queue) WHERE state = 'OPEN';
CREATE INDEX dead_letter_message ON dead_letter (message_id);
CREATE INDEX dead_letter_state ON dead_letter (state, id);

-- +goose Down
DROP TABLE dead_letter, event_log;
