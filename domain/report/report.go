// Package report serves what the shop's status page and `shop status` show of one service: whether it is ready, how many
// messages it has in hand, and what the service adds. The contract is shop.status.v1.ReportService; the gateway calls it on
// every service.
package report

import (
	"context"
	"math"
	"time"

	statusv1 "shop.example/gen/shop/status/v1"
	"shop.example/platform/outbox"
	"shop.example/platform/service"
)

// reportTimeout bounds how long a report may take to make. It is less than the gateway waits for it, so that a report with
// parts missing still arrives.
const reportTimeout = 700 * time.Millisecond

// Part adds to a report. It leaves out what it cannot find out before its context ends. It may be called concurrently.
type Part func(context.Context, *statusv1.GetReportResponse)

// Serve registers the report on the service's gRPC server: its readiness, and what parts add. A report takes at most 0.7 s.
func Serve(s *service.Service, parts ...Part) {
	statusv1.RegisterReportServiceServer(s.GRPC(), reports{service: s, parts: parts})
}

// Outbox returns the part that reports how many messages wait in the outbox, and for how long the oldest one has.
func Outbox(relay *outbox.Relay) Part {
	return func(ctx context.Context, report *statusv1.GetReportResponse) {
		pending, age, err := relay.Pending(ctx)
		if err != nil {
			return
		}
		report.Outbox = &statusv1.Outbox{Pending: int32(pending), OldestAgeMs: int32(min(age.Milliseconds(), math.MaxInt32))} //nolint:gosec // Pending counts to 100,000
	}
}

// reports implements statusv1.ReportServiceServer.
type reports struct {
	statusv1.UnimplementedReportServiceServer
	service *service.Service
	parts   []Part
}

// GetReport is part of statusv1.ReportServiceServer.
func (r reports) GetReport(ctx context.Context, _ *statusv1.GetReportRequest) (*statusv1.GetReportResponse, error) {
	ctx, cancel := context.WithTimeout(ctx, reportTimeout)
	defer cancel()
	report := &statusv1.GetReportResponse{Ready: true, InHand: map[string]int32{}}
	for queue, messages := range r.service.InHand() {
		report.InHand[queue] = int32(messages) //nolint:gosec // no more than the prefetch
	}
	if err := r.service.Ready(ctx); err != nil {
		report.Ready, report.Detail = false, err.Error()
	}
	for _, add := range r.parts {
		add(ctx, report)
	}
	return report, nil
}
