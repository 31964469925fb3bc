package audit

import (
	"math"

	"google.golang.org/protobuf/types/known/timestamppb"

	loggingv1 "shop.example/gen/shop/logging/v1"
)

// What the contract takes: so many violations, of which the checks count all, with so much about each, in runes.
const (
	maxReported = 100
	maxDetail   = 2000
)

// Message returns the report as it is kept by the shop for operators, see loggingv1.AuditServiceClient.ReportAudit.
func (r *Report) Message() *loggingv1.AuditReport {
	m := &loggingv1.AuditReport{AuditedAt: timestamppb.New(r.At), Orders: toInt32(r.Orders)}
	for _, c := range r.Checks {
		m.Checks = append(m.Checks, &loggingv1.AuditReport_Check{
			Check: string(c.Check), About: c.About, Violations: toInt32(c.Violations), InFlight: toInt32(c.InFlight),
		})
	}
	for _, v := range r.Violations[:min(len(r.Violations), maxReported)] {
		detail := []rune(v.Detail)
		m.Violations = append(m.Violations, &loggingv1.AuditReport_Violation{
			Check: string(v.Check), OrderId: v.OrderID, Product: v.Product, Detail: string(detail[:min(len(detail), maxDetail)]),
		})
	}
	return m
}

func toInt32(n int) int32 { return int32(min(n, math.MaxInt32)) }
