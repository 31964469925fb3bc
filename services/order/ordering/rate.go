package ordering

import (
	"context"
	"time"

	statusv1 "shop.example/gen/shop/status/v1"
)

// rateWindow is the time over which the rate of orders is computed.
const rateWindow = 10 * time.Second

// reportRate adds to the report how many orders are decided per second. It counts rows, by an index on when they were
// written, because a counter in memory would only know this replica's. It adds nothing if the database does not answer.
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
