-- +goose Up
-- What the broker does not take for what it is: moved out of the way of what follows, until somebody sends it again.
CREATE TABLE outbox_parked (
    id             bigint      GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    message_id     uuid        NOT NULL,
    exchange       text        NOT NULL,
    routing_key    text        NOT NULL,
    type           text        NOT NULL,
    correlation_id text        NOT NULL,
    traceparent    text        NOT NULL,
    body           bytea       NOT NULL,
    created_at     timestamptz NOT NULL,
    parked_at      timestamptz NOT NULL DEFAULT clock_timestamp(),
    reason         text        NOT NULL -- in the broker's words
);

-- +goose Down
DROP TABLE outbox_parked;
