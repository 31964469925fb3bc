-- +goose Up
CREATE TABLE webhook (
    id              uuid PRIMARY KEY,
    -- Issuer and subject of whose orders it is told about; '' for an operator's, which is told of everything.
    owner           text        NOT NULL,
    url             text        NOT NULL,
    event_types     text[]      NOT NULL,
    format          text        NOT NULL CHECK (format IN ('STANDARD', 'CLOUD_EVENTS')),
    description     text        NOT NULL,
    state           text        NOT NULL DEFAULT 'ENABLED' CHECK (state IN ('ENABLED', 'PAUSED', 'DISABLED')),
    disabled_reason text        NOT NULL DEFAULT '',
    -- What deliveries are signed with, and until when with the one before, too.
    secret          bytea       NOT NULL,
    previous_secret bytea,
    previous_until  timestamptz,
    -- Failed attempts since the last one that succeeded, and when the first of them was.
    failures        integer     NOT NULL DEFAULT 0,
    failing_since   timestamptz,
    -- Nothing is sent to it before.
    retry_at        timestamptz NOT NULL DEFAULT now(),
    -- The replica that sends to it, and until when it may.
    lessee          uuid,
    leased_until    timestamptz NOT NULL DEFAULT '-infinity',
    created_at      timestamptz NOT NULL DEFAULT now(),
    updated_at      timestamptz NOT NULL DEFAULT now()
) WITH (fillfactor = 50); -- room for updates in place: failures and leases
CREATE INDEX webhook_owner ON webhook (owner);

-- How far the log of events has been read, in one row.
CREATE TABLE log_position (
    position     bigint      NOT NULL DEFAULT 0, -- the id of the last event that was read
    -- Whether the log is followed. It is not while there is no webhook.
    active       boolean     NOT NULL DEFAULT false,
    -- Grows with each change of the webhooks: what was read with the list as it was before is read again.
    generation   bigint      NOT NULL DEFAULT 0,
    -- The replica that reads, and until when it may.
    lessee       uuid,
    leased_until timestamptz NOT NULL DEFAULT '-infinity'
);
INSERT INTO log_position DEFAULT VALUES;

-- Events that some webhook wants.
CREATE TABLE event (
    id           bigint PRIMARY KEY, -- of the log
    message_id   uuid        NOT NULL,
    routing_key  text        NOT NULL,
    order_id     uuid,
    payload      text        NOT NULL, -- JSON, as it is sent
    published_at timestamptz NOT NULL,
    created_at   timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX event_created_at ON event (created_at);

-- Each event for each webhook that wants it. The order of the ids is the order of the log.
CREATE TABLE delivery (
    id               bigint GENERATED ALWAYS AS IDENTITY,
    event_id         bigint      NOT NULL REFERENCES event ON DELETE CASCADE,
    webhook_id       uuid        NOT NULL REFERENCES webhook ON DELETE CASCADE,
    order_id         uuid,
    state            text        NOT NULL DEFAULT 'PENDING' CHECK (state IN ('PENDING', 'DELIVERED', 'FAILED')),
    attempts         integer     NOT NULL DEFAULT 0,
    first_attempt_at timestamptz,
    last_attempt_at  timestamptz,
    next_attempt_at  timestamptz NOT NULL DEFAULT now(),
    response_status  integer     NOT NULL DEFAULT 0,
    response_body    text        NOT NULL DEFAULT '',
    error_message    text        NOT NULL DEFAULT '',
    created_at       timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (event_id, webhook_id)
);
CREATE UNIQUE INDEX delivery_id ON delivery (webhook_id, id);
CREATE INDEX delivery_due ON delivery (webhook_id, next_attempt_at, id) WHERE state = 'PENDING';
-- Whether an earlier event of the order waits.
CREATE INDEX delivery_order ON delivery (webhook_id, order_id, id) WHERE state = 'PENDING';

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

-- +goose Down
DROP TABLE outbox_parked, outbox, delivery, event, log_position, webhook;
