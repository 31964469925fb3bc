-- +goose Up
-- What operators have done, the services' word for it: nobody can change it, and nobody can delete what is not older than
-- three years. Who owns the table could take the triggers off; no service does.
CREATE TABLE operator_action (
    id          bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    -- Of the event that tells of it.
    action_id   uuid        NOT NULL UNIQUE,
    operator    text        NOT NULL,
    method      text        NOT NULL,
    target      text        NOT NULL,
    detail      text        NOT NULL,
    -- The service that did it.
    service     text        NOT NULL,
    acted_at    timestamptz NOT NULL,
    recorded_at timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX operator_action_operator ON operator_action (operator, id);
CREATE INDEX operator_action_target ON operator_action (target, id);
CREATE INDEX operator_action_recorded_at ON operator_action (recorded_at);

-- +goose StatementBegin
CREATE FUNCTION operator_action_stays() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF TG_OP = 'DELETE' AND OLD.recorded_at < now() - interval '3 years' THEN
        RETURN OLD;
    END IF;
    RAISE EXCEPTION 'the record of what operators do cannot be changed' USING ERRCODE = 'insufficient_privilege';
END
$$;
-- +goose StatementEnd
CREATE TRIGGER operator_action_stays BEFORE UPDATE OR DELETE ON operator_action
    FOR EACH ROW EXECUTE FUNCTION operator_action_stays();
CREATE TRIGGER operator_action_is_not_emptied BEFORE TRUNCATE ON operator_action
    FOR EACH STATEMENT EXECUTE FUNCTION operator_action_stays();

-- +goose Down
DROP TABLE operator_action;
DROP FUNCTION operator_action_stays;
