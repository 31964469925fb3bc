package audit

import (
	"math"
	"strings"
	"testing"
	"time"

	loggingv1 "shop.example/gen/shop/logging/v1"
	"shop.example/platform/contract"
)

// A shop that is broken in a thousand ways is the one whose report must not be refused.
func TestReport_IsNeverMoreThanTheContractTakes(t *testing.T) {
	t.Parallel()
	r := &Report{At: time.Now(), Orders: math.MaxInt}
	for _, c := range checks {
		r.Checks = append(r.Checks, Result{Check: c.name, About: c.about, Violations: MaxListed, InFlight: math.MaxInt})
		for range MaxListed {
			r.Violations = append(r.Violations, Violation{Check: c.name, Product: "5", Detail: strings.Repeat("é", 5000)})
		}
	}
	m := r.Message()
	if err := contract.Validate(&loggingv1.ReportAuditRequest{Report: m}); err != nil {
		t.Error(err)
	}
	if len(m.GetChecks()) != len(checks) || m.GetChecks()[0].GetViolations() != MaxListed || len(m.GetViolations()) != maxReported || m.GetOrders() != math.MaxInt32 {
		t.Errorf("%d checks, %d violations, %d orders", len(m.GetChecks()), len(m.GetViolations()), m.GetOrders())
	}
}
