-- One row for each message that was handled, written in the transaction of its effect.
CREATE TABLE inbox (
    message_id  uuid PRIMARY KEY,
    received_at timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX inbox_received_at ON inbox (received_at);

-- Messages to publish, written in the transaction that makes them true and deleted once the broker has confirmed them.
CREATE TABLE outbox (
    id             bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    message_id     uuid        NOT NULL,
    exchange       text        NOT NULL,
    routing_key    text        NOT NULL,
    type           text        NOT NULL,
    correlation_id text        NOT NULL,
    traceparent    text        NOT NULL,
    body           bytea       NOT NULL,
    created_at     timestamptz NOT NULL DEFAULT clock_timestamp()
);

-- Messages that the broker refuses for what they are: moved out of the way of what follows, until somebody sends them again.
CREATE TABLE outbox_parked (
    id             bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    message_id     uuid        NOT NULL,
    exchange       text        NOT NULL,
    routing_key    text        NOT NULL,
    type           text        NOT NULL,
    correlation_id text        NOT NULL,
    traceparent    text        NOT NULL,
    body           bytea       NOT NULL,
    created_at     timestamptz NOT NULL,
    parked_at      timestamptz NOT NULL DEFAULT clock_timestamp(),
    reason         text        NOT NULL
);
