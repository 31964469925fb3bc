package upstream

import (
	"context"
	"maps"
	"math"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/singleflight"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/timestamppb"

	statusv1 "shop.example/gen/shop/status/v1"
	"shop.example/platform/messaging"
)

const (
	// statusTimeout bounds each service's, and the broker's, answer.
	statusTimeout = time.Second
	// statusTTL is how long a status is cached: however many pages ask every second, services are called at most twice a
	// second.
	statusTTL = 500 * time.Millisecond
)

// statusServer implements StatusService: it calls all services at once, and the broker.
type statusServer struct {
	statusv1.UnimplementedStatusServiceServer
	self     func(context.Context) error // why the gateway is not ready; nil if it is
	queues   func(context.Context) ([]messaging.QueueState, error)
	services []reporter

	gathering singleflight.Group
	latest    atomic.Pointer[snapshot]
}

// reporter is a service that reports about itself.
type reporter struct {
	name   string
	client statusv1.ReportServiceClient
}

// snapshot is a status, with the time when it was complete.
type snapshot struct {
	status *statusv1.GetStatusResponse
	at     time.Time
}

// NewStatusServer returns a StatusService that reports about upstreams, the gateway and the queues. self returns why the
// gateway is not ready, nil if it is; queues reads the state of the broker's queues.
func NewStatusServer(self func(context.Context) error, queues func(context.Context) ([]messaging.QueueState, error), upstreams ...*Service) statusv1.StatusServiceServer {
	b := &statusServer{self: self, queues: queues}
	for _, u := range upstreams {
		b.services = append(b.services, reporter{u.Name, statusv1.NewReportServiceClient(u.Conn)})
	}
	return b
}

// GetStatus returns a status that was at most half a second old when the call came.
func (b *statusServer) GetStatus(context.Context, *statusv1.GetStatusRequest) (*statusv1.GetStatusResponse, error) {
	if last := b.latest.Load(); last != nil && time.Since(last.at) < statusTTL {
		return last.status, nil
	}
	// The status is gathered once for all who wait, so it must not end with the call of one of them.
	answer, _, _ := b.gathering.Do("", func() (any, error) {
		status := b.gather()
		b.latest.Store(&snapshot{status, time.Now()})
		return status, nil
	})
	return answer.(*statusv1.GetStatusResponse), nil
}

func (b *statusServer) gather() *statusv1.GetStatusResponse {
	ctx, cancel := context.WithTimeout(context.Background(), statusTimeout)
	defer cancel()
	var (
		asked   sync.WaitGroup
		reports = make([]*statusv1.GetReportResponse, len(b.services))
		queues  []messaging.QueueState
		self    error
	)
	for i, s := range b.services {
		asked.Go(func() { reports[i] = s.report(ctx) })
	}
	asked.Go(func() { queues, _ = b.queues(ctx) }) // what is wrong with the broker is in self
	asked.Go(func() { self = b.self(ctx) })
	asked.Wait()

	s := &statusv1.GetStatusResponse{At: timestamppb.Now()}
	inHand := map[string]int32{} // by queue
	for i, report := range reports {
		maps.Copy(inHand, report.GetInHand())
		name := b.services[i].name
		s.Services = append(s.Services, &statusv1.GetStatusResponse_Service{Name: name, Ready: report.GetReady(), Detail: report.GetDetail()})
		if o := report.GetOutbox(); o != nil {
			s.Outboxes = append(s.Outboxes, &statusv1.Outbox{Service: name, Pending: o.GetPending(), OldestAgeMs: o.GetOldestAgeMs()})
		}
		if report.OrdersPerSecond != nil {
			s.OrdersPerSecond = report.OrdersPerSecond
		}
	}
	gateway := &statusv1.GetStatusResponse_Service{Name: "gateway", Ready: self == nil}
	if self != nil {
		gateway.Detail = self.Error()
	}
	s.Services = append(s.Services, gateway)
	for _, q := range queues {
		s.Queues = append(s.Queues, &statusv1.GetStatusResponse_Queue{Name: q.Name, Messages: clamp(q.Messages), Consumers: clamp(q.Consumers), InHand: inHand[q.Name]})
	}
	return s
}

func (r reporter) report(ctx context.Context) *statusv1.GetReportResponse {
	report, err := r.client.GetReport(ctx, &statusv1.GetReportRequest{})
	switch status.Code(err) {
	case codes.OK:
		return report
	case codes.DeadlineExceeded:
		return &statusv1.GetReportResponse{Detail: "no answer within " + statusTimeout.String()}
	case codes.Unavailable:
		return &statusv1.GetReportResponse{Detail: "not reachable"}
	}
	return &statusv1.GetReportResponse{Detail: "error: " + status.Convert(err).Message()}
}

func clamp(n int) int32 { return int32(min(n, math.MaxInt32)) }
