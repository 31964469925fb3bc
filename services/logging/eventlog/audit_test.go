package eventlog

import (
	"testing"

	"google.golang.org/protobuf/types/known/timestamppb"

	loggingv1 "shop.example/gen/shop/logging/v1"
)

// What an audit had found was on the terminal of whoever ran it, and nowhere else.
func TestAudit_TheLastReportIsKeptAndIsNoOperatorsDeed(t *testing.T) {
	t.Parallel()
	f := start(t)
	audits := loggingv1.NewAuditServiceClient(f.conn)
	get := func() *loggingv1.AuditReport {
		t.Helper()
		reply, err := audits.GetAudit(within(t), &loggingv1.GetAuditRequest{})
		if err != nil {
			t.Fatal(err)
		}
		return reply.GetReport()
	}
	if got := get(); got != nil {
		t.Errorf("before the first audit its report is %v", got)
	}
	for _, orders := range []int32{7, 9} {
		report := &loggingv1.AuditReport{
			AuditedAt: timestamppb.Now(), Orders: orders, ReportedBy: "somebody else",
			Checks:     []*loggingv1.AuditReport_Check{{Check: "on_hand", About: "a sum", Violations: 1, InFlight: 2}},
			Violations: []*loggingv1.AuditReport_Violation{{Check: "on_hand", Product: "5", Detail: "3 are not 4"}},
		}
		if _, err := audits.ReportAudit(asOperator(within(t), "ada"), &loggingv1.ReportAuditRequest{Report: report}); err != nil {
			t.Fatal(err)
		}
	}
	got := get()
	if got.GetOrders() != 9 || got.GetReportedBy() != "ada" || got.GetChecks()[0].GetInFlight() != 2 || got.GetViolations()[0].GetDetail() != "3 are not 4" {
		t.Errorf("the report is %v", got)
	}
	if done := f.actions(t, &loggingv1.ListOperatorActionsRequest{}); len(done) != 0 {
		t.Errorf("recorded as deeds: %q", done)
	}
}
