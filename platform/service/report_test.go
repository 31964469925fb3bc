package service_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	statusv1 "shop.example/gen/shop/status/v1"
	"shop.example/platform/service"
)

func TestReport_SaysWhatIsNotReadyAndWhatTheServiceAdds(t *testing.T) {
	t.Parallel()
	s := run(t, service.Config{}, func(s *service.Service) {
		s.Check("broker", func(context.Context) error { return errors.New("not connected") })
		s.Check("database", func(context.Context) error { return nil })
		s.Check("outbox", func(context.Context) error { return errors.New("waits") })
		s.ServeReport(func(_ context.Context, r *statusv1.GetReportResponse) { r.Outbox = &statusv1.Outbox{Pending: 7} })
	})
	report, err := statusv1.NewReportServiceClient(s.dial(t)).GetReport(t.Context(), &statusv1.GetReportRequest{})
	want := &statusv1.GetReportResponse{Detail: "broker: not connected; outbox: waits", Outbox: &statusv1.Outbox{Pending: 7}}
	if err != nil || !proto.Equal(report, want) {
		t.Errorf("got %v, %v", report, err)
	}
	if err := s.ended(); err != nil {
		t.Error(err)
	}
}

// Whoever asks hears which part it is that does not answer, before it gives up itself.
func TestReport_APartThatDoesNotAnswerIsNamedInTime(t *testing.T) {
	t.Parallel()
	s := run(t, service.Config{}, func(s *service.Service) {
		s.Check("database", func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() })
		s.ServeReport()
	})
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	report, err := statusv1.NewReportServiceClient(s.dial(t)).GetReport(ctx, &statusv1.GetReportRequest{})
	if err != nil || report.GetReady() || report.GetDetail() != "database: context deadline exceeded" {
		t.Errorf("got %v, %v", report, err)
	}
	if err := s.ended(); err != nil {
		t.Error(err)
	}
}
