package report_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/protobuf/proto"

	"shop.example/domain/report"
	statusv1 "shop.example/gen/shop/status/v1"
	"shop.example/platform/service"
	"shop.example/platform/telemetry"
)

// ask runs a service with what add adds, and returns what it reports.
func ask(t *testing.T, add func(*service.Service)) (*statusv1.GetReportResponse, error) {
	t.Helper()
	tel, err := telemetry.New(t.Context(), telemetry.Config{Service: "order", Output: t.Output()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { tel.Shutdown(context.Background()) })
	s, err := service.New(t.Context(), service.Config{GRPCAddr: "127.0.0.1:0"}, tel)
	if err != nil {
		t.Fatal(err)
	}
	add(s)
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- s.Run(ctx) }()
	defer func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	}()
	conn, err := grpc.NewClient(s.GRPCAddr(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	within, done := context.WithTimeout(t.Context(), 10*time.Second)
	defer done()
	return statusv1.NewReportServiceClient(conn).GetReport(within, &statusv1.GetReportRequest{}, grpc.WaitForReady(true))
}

func TestReport_SaysWhatIsNotReadyAndWhatTheServiceAdds(t *testing.T) {
	t.Parallel()
	got, err := ask(t, func(s *service.Service) {
		s.Check("broker", func(context.Context) error { return errors.New("not connected") })
		s.Check("database", func(context.Context) error { return nil })
		s.Check("outbox", func(context.Context) error { return errors.New("waits") })
		report.Serve(s, func(_ context.Context, r *statusv1.GetReportResponse) { r.Outbox = &statusv1.Outbox{Pending: 7} })
	})
	want := &statusv1.GetReportResponse{Detail: "broker: not connected; outbox: waits", Outbox: &statusv1.Outbox{Pending: 7}}
	if err != nil || !proto.Equal(got, want) {
		t.Errorf("got %v, %v", got, err)
	}
}

// Whoever asks hears which part it is that does not answer, before it gives up itself.
func TestReport_APartThatDoesNotAnswerIsNamedInTime(t *testing.T) {
	t.Parallel()
	got, err := ask(t, func(s *service.Service) {
		s.Check("database", func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() })
		report.Serve(s)
	})
	if err != nil || got.GetReady() || got.GetDetail() != "database: context deadline exceeded" {
		t.Errorf("got %v, %v", got, err)
	}
}
