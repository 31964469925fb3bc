package ordering

import (
	"context"
	"time"

	statusv1 "shop.example/gen/shop/status/v1"
)

// rateWindow is how far back the rate of orders looks.
const rateWindow = 10 * time.Second

// reportRate adds how many orders are decided per second. It counts rows, along an index and by when they were written:
// what is true of all replicas together, while a counter in memory would know only its own. Nothing is added if the
// database does not answer.
func (s *Service) reportRate(ctx context.Context, report *statusv1.GetReportResponse) {
	var decided int64
	err := s.db.GetContext(ctx, &decided, `
		SELECT count(*) FROM orders WHERE updated_at > now() - $1 * interval '1 second' AND version = 1`, rateWindow.Seconds())
	if err != nil {
		return
	}
	rate := float64(decided) / rateWindow.Seconds()
	report.OrdersPerSecond = &rate
}
