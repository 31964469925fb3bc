// Package report has a service tell about itself, for the shop's status page and command: whether it is ready, and what it
// wants to add. The contract is shop.status.v1.ReportService; the gateway asks it of every service.
package report

import (
	"context"
	"math"
	"time"

	statusv1 "shop.example/gen/shop/status/v1"
	"shop.example/platform/outbox"
	"shop.example/platform/service"
)

// reportTimeout bounds the gathering of a report: whoever asks has time left to hear which part did not answer.
const reportTimeout = 700 * time.Millisecond

// Part adds to a report. What it cannot find out in time it leaves out.
type Part func(context.Context, *statusv1.GetReportResponse)

// Serve serves the report on the service's gRPC port: whether it is ready, and what parts add, within 0.7 s.
func Serve(s *service.Service, parts ...Part) {
	statusv1.RegisterReportServiceServer(s.GRPC(), reports{service: s, parts: parts})
}

// Outbox reports how many messages wait for the broker, and for how long.
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
