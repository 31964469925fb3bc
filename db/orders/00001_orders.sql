-- +goose Up
-- Amounts are in minor units: hundredths of the currency.

CREATE TABLE orders (
    id             uuid PRIMARY KEY,
    customer_name  text        NOT NULL,
    customer_email text        NOT NULL,
    state          text        NOT NULL CHECK (state IN ('CONFIRMED', 'REJECTED', 'CANCELLED')),
    reason         text CHECK (reason IN ('OUT_OF_STOCK', 'UNKNOWN_PRODUCT', 'PRICE_CHANGED')),
    detail         text        NOT NULL DEFAULT '',
    total_items    integer     NOT NULL,
    total_value    bigint,
    currency       char(3),
    version        integer     NOT NULL DEFAULT 1,
    -- When the order was placed, and when its row was last written.
    created_at     timestamptz NOT NULL,
    updated_at     timestamptz NOT NULL DEFAULT now(),
    CHECK ((state = 'REJECTED') = (reason IS NOT NULL)),
    -- What was confirmed has a value.
    CHECK (state = 'REJECTED' OR (total_value IS NOT NULL AND currency IS NOT NULL))
);
CREATE INDEX orders_created_at ON orders (created_at, id);
-- The few among the many: finding them along created_at would read all the others.
CREATE INDEX orders_state ON orders (state, created_at, id) WHERE state <> 'CONFIRMED';

CREATE TABLE order_item (
    order_id     uuid    NOT NULL REFERENCES orders,
    line         integer NOT NULL,
    -- Of a rejected order: as the customer gave it, 0 or '' where the customer did not.
    product_id   integer NOT NULL,
    product_name text    NOT NULL,
    quantity     integer NOT NULL CHECK (quantity > 0),
    unit_price   bigint,
    PRIMARY KEY (order_id, line)
);

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

-- +goose Down
DROP TABLE outbox, inbox, order_item, orders;
