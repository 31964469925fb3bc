package eventlog

import (
	"context"
	"database/sql"
	"errors"
	"fmt"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	"shop.example/domain/enduser"
	loggingv1 "shop.example/gen/shop/logging/v1"
	"shop.example/platform/postgres"
)

// auditServer serves AuditService.
type auditServer struct {
	loggingv1.UnimplementedAuditServiceServer
	*Service
}

// GetAudit implements loggingv1.AuditServiceServer.
func (s auditServer) GetAudit(ctx context.Context, _ *loggingv1.GetAuditRequest) (*loggingv1.GetAuditResponse, error) {
	var kept string
	err := s.db.GetContext(ctx, &kept, "SELECT report::text FROM audit_report")
	if errors.Is(err, sql.ErrNoRows) {
		return &loggingv1.GetAuditResponse{}, nil
	}
	if err != nil {
		return nil, fmt.Errorf("reading the report of the last audit: %w", postgres.Classify(err))
	}
	report := &loggingv1.AuditReport{}
	// A later release may have written fields that this one does not know.
	if err := (protojson.UnmarshalOptions{DiscardUnknown: true}).Unmarshal([]byte(kept), report); err != nil {
		return nil, fmt.Errorf("reading the report of the last audit: %w", err)
	}
	return &loggingv1.GetAuditResponse{Report: report}, nil
}

// ReportAudit implements loggingv1.AuditServiceServer. It is no entry in the record of what operators do: it changes nothing in
// the shop, and an auditor may report every minute.
func (s auditServer) ReportAudit(ctx context.Context, req *loggingv1.ReportAuditRequest) (*loggingv1.ReportAuditResponse, error) {
	report := proto.CloneOf(req.GetReport())
	report.ReportedBy = enduser.Operator(ctx)
	kept, err := protojson.Marshal(report)
	if err != nil {
		return nil, fmt.Errorf("keeping the report of an audit: %w", err)
	}
	_, err = s.db.ExecContext(ctx, "INSERT INTO audit_report (report) VALUES ($1) ON CONFLICT (only_one) DO UPDATE SET report = excluded.report", string(kept))
	if err != nil {
		return nil, fmt.Errorf("keeping the report of an audit: %w", postgres.Classify(err))
	}
	return &loggingv1.ReportAuditResponse{}, nil
}
