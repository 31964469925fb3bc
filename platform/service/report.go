package service

import (
	"context"
	"errors"
	"fmt"
	"time"

	statusv1 "shop.example/gen/shop/status/v1"
)

// reportTimeout bounds the gathering of a report: whoever asks has time left to hear which part did not answer.
const reportTimeout = 700 * time.Millisecond

// ServeReport serves shop.status.v1.ReportService on GRPC(): whether the service is ready, and what more adds, each
// within 0.7 s. What cannot be known is left out of a report.
func (s *Service) ServeReport(more ...func(context.Context, *statusv1.GetReportResponse)) {
	statusv1.RegisterReportServiceServer(s.grpc, reports{service: s, more: more})
}

// Ready asks all checks. It returns nil where the service is ready, and says what is not otherwise, on one line.
func (s *Service) Ready(ctx context.Context) error {
	var failed []error
	for i, err := range s.ready(ctx) {
		if err != nil && i > 0 {
			err = fmt.Errorf("%s: %w", s.checks[i-1].name, err)
		}
		failed = append(failed, err)
	}
	if errors.Join(failed...) == nil {
		return nil
	}
	return notReady(failed)
}

// notReady is what several checks say.
type notReady []error

func (e notReady) Error() string {
	var text string
	for _, err := range e {
		switch {
		case err == nil:
		case text == "":
			text = err.Error()
		default:
			text += "; " + err.Error()
		}
	}
	return text
}

func (e notReady) Unwrap() []error { return e }

// reports implements statusv1.ReportServiceServer.
type reports struct {
	statusv1.UnimplementedReportServiceServer
	service *Service
	more    []func(context.Context, *statusv1.GetReportResponse)
}

// GetReport is part of statusv1.ReportServiceServer.
func (r reports) GetReport(ctx context.Context, _ *statusv1.GetReportRequest) (*statusv1.GetReportResponse, error) {
	ctx, cancel := context.WithTimeout(ctx, reportTimeout)
	defer cancel()
	report := &statusv1.GetReportResponse{Ready: true}
	if err := r.service.Ready(ctx); err != nil {
		report.Ready, report.Detail = false, err.Error()
	}
	for _, add := range r.more {
		add(ctx, report)
	}
	return report, nil
}
