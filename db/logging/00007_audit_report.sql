-- +goose Up
-- What the last audit found, as its auditor reported it: one row, which the next report replaces.
CREATE TABLE audit_report (
    only_one boolean PRIMARY KEY DEFAULT true CHECK (only_one),
    -- A shop.logging.v1.AuditReport.
    report   jsonb NOT NULL
);

-- +goose Down
DROP TABLE audit_report;
