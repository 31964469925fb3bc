package webhook

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jmoiron/sqlx"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/structpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"shop.example/db/dbtest"
	"shop.example/domain/enduser"
	"shop.example/domain/orderid"
	accessv1 "shop.example/gen/shop/access/v1"
	customerv1 "shop.example/gen/shop/customer/v1"
	eventsv1 "shop.example/gen/shop/events/v1"
	loggingv1 "shop.example/gen/shop/logging/v1"
	webhooksv1 "shop.example/gen/shop/webhooks/v1"
	"shop.example/platform/contract"
	"shop.example/platform/messaging"
	"shop.example/platform/postgres"
	"shop.example/platform/telemetry"
	"shop.example/platform/testkit/brokertest"
)

// eventLog is a log of events in memory.
type eventLog struct {
	loggingv1.UnimplementedEventLogServiceServer
	mu      sync.Mutex
	events  []*loggingv1.Event
	changed chan struct{}
}

func (l *eventLog) add(t *testing.T, messages ...proto.Message) []*loggingv1.Event {
	t.Helper()
	var added []*loggingv1.Event
	for _, m := range messages {
		event, _ := contract.EventOf(m)
		added = append(added, &loggingv1.Event{
			RoutingKey: event.RoutingKey, Payload: payloadOf(t, m), MessageId: contract.MessageID(m).String(), OrderId: orderid.Of(m),
			Status: loggingv1.Event_success, PublishedAt: timestamppb.Now(),
		})
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, e := range added {
		l.events = append(l.events, e)
		e.Id = int64(len(l.events))
	}
	close(l.changed)
	l.changed = make(chan struct{})
	return added
}

func payloadOf(t *testing.T, m proto.Message) *structpb.Struct {
	t.Helper()
	text, err := protojson.MarshalOptions{UseProtoNames: true}.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	payload := &structpb.Struct{}
	if err := protojson.Unmarshal(text, payload); err != nil {
		t.Fatal(err)
	}
	return payload
}

// replace changes what the log has of an event. Who has read it before has it as it was.
func (l *eventLog) replace(t *testing.T, id int64, m proto.Message) {
	t.Helper()
	l.mu.Lock()
	defer l.mu.Unlock()
	changed := proto.CloneOf(l.events[id-1])
	changed.Payload = payloadOf(t, m)
	l.events = slices.Clone(l.events)
	l.events[id-1] = changed
}

// restore takes away what came after the first n events. Nobody may follow the log meanwhile.
func (l *eventLog) restore(n int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.events = slices.Clone(l.events[:n])
}

func (l *eventLog) since(id int64) ([]*loggingv1.Event, chan struct{}) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.events[min(int(id), len(l.events)):], l.changed
}

func (l *eventLog) ListEvents(_ context.Context, req *loggingv1.ListEventsRequest) (*loggingv1.ListEventsResponse, error) {
	resp := &loggingv1.ListEventsResponse{}
	all, _ := l.since(0)
	for _, e := range all {
		if e.GetOrderId() == req.GetOrderId() && messaging.Matches(req.GetRoutingKey(), e.GetRoutingKey()) {
			resp.Events = append(resp.Events, e)
		}
	}
	return resp, nil
}

func (l *eventLog) StreamEvents(req *loggingv1.StreamEventsRequest, stream grpc.ServerStreamingServer[loggingv1.StreamEventsResponse]) error {
	all, _ := l.since(0)
	at := min(req.GetAfterId(), int64(len(all)))
	if req.GetAfterId() == 0 && !req.GetFromBeginning() {
		at = int64(len(all))
	}
	if err := stream.Send(&loggingv1.StreamEventsResponse{Position: at}); err != nil {
		return err
	}
	for {
		events, changed := l.since(at)
		sent := at
		for _, e := range events {
			at = e.GetId()
			if req.GetRoutingKey() != "" && !messaging.Matches(req.GetRoutingKey(), e.GetRoutingKey()) {
				continue
			}
			sent = at
			if err := stream.Send(&loggingv1.StreamEventsResponse{Event: e, Position: at}); err != nil {
				return err
			}
		}
		if sent < at {
			if err := stream.Send(&loggingv1.StreamEventsResponse{Position: at}); err != nil {
				return err
			}
		}
		select {
		case <-stream.Context().Done():
			return stream.Context().Err()
		case <-changed:
		}
	}
}

// rig is the service as it is run, with a log of events.
type rig struct {
	log      *eventLog
	logAddr  string
	amqp     string
	database string
	db       *sqlx.DB
	hooks    webhooksv1.WebhookServiceClient
	personal customerv1.PersonalDataServiceClient
	stop     func() // the service
}

// quick is what tests deliver with: they do not wait long, and receivers are on this machine.
var quick = Delivery{Timeout: time.Second, FirstRetry: 20 * time.Millisecond, AllowedNetworks: []string{"127.0.0.0/8"}}

func start(t *testing.T, d Delivery) *rig {
	t.Helper()
	r := &rig{log: &eventLog{changed: make(chan struct{})}, amqp: brokertest.New(t).URL, database: dbtest.New(t)}
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	server := grpc.NewServer()
	loggingv1.RegisterEventLogServiceServer(server, r.log)
	go func() { _ = server.Serve(lis) }()
	t.Cleanup(server.Stop)
	r.logAddr = lis.Addr().String()
	if r.db, err = postgres.Open(t.Context(), r.database, schema, postgres.Options{}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = r.db.Close() })
	r.replica(t, d)
	return r
}

// replica starts a replica of the service, which the rig's clients call from then on. r.stop stops it.
func (r *rig) replica(t *testing.T, d Delivery) {
	t.Helper()
	tel, err := telemetry.New(t.Context(), telemetry.Config{Service: name, Output: t.Output()})
	if err != nil {
		t.Fatal(err)
	}
	s, err := New(t.Context(), Config{
		AMQPURL: r.amqp, DatabaseURL: r.database, GRPCAddr: "localhost:0", AdminAddr: "localhost:0", LoggingAddr: r.logAddr, Delivery: d,
	}, tel)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		if err := s.Run(ctx); err != nil {
			t.Error(err)
		}
	}()
	r.stop = func() { cancel(); <-ended }
	t.Cleanup(r.stop)
	conn, err := grpc.NewClient(s.GRPCAddr(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	r.hooks, r.personal = webhooksv1.NewWebhookServiceClient(conn), customerv1.NewPersonalDataServiceClient(conn)
}

const issuer = "https://login.example.org"

// as returns a context for calls on behalf of a customer, or of an operator.
func as(t *testing.T, subject string) context.Context {
	t.Helper()
	if subject == "operator" {
		return enduser.With(t.Context(), &accessv1.EndUser{Operator: true, Name: "olive"})
	}
	return enduser.With(t.Context(), &accessv1.EndUser{Issuer: issuer, Subject: subject})
}

// create makes a webhook of an operator for all events of orders.
func (r *rig) create(t *testing.T, url string) (*webhooksv1.Webhook, string) {
	t.Helper()
	resp, err := r.hooks.CreateWebhook(as(t, "operator"), &webhooksv1.CreateWebhookRequest{Webhook: &webhooksv1.Webhook{Url: url, EventTypes: []string{"shop.order.#"}}})
	if err != nil {
		t.Fatal(err)
	}
	return resp.GetWebhook(), resp.GetSecret()
}

func (r *rig) deliveries(t *testing.T, id string) []*webhooksv1.WebhookDelivery {
	t.Helper()
	resp, err := r.hooks.ListWebhookDeliveries(t.Context(), &webhooksv1.ListWebhookDeliveriesRequest{WebhookId: id, PageSize: 1000})
	if err != nil {
		t.Fatal(err)
	}
	return resp.GetDeliveries()
}

// order is the life of an order.
type order struct {
	id     string
	events []proto.Message
}

func newOrder(owner string) order {
	id := uuid.Must(uuid.NewV7()).String()
	now := timestamppb.Now()
	return order{id, []proto.Message{
		&eventsv1.OrderPlaced{
			OrderId: id, CustomerName: "Ada", CustomerEmail: "ada@example.org", Owner: owner, PlacedAt: now,
			Lines: []*eventsv1.RequestedLine{{ProductId: 1, Quantity: 1}},
		},
		&eventsv1.OrderRejected{OrderId: id, Reason: eventsv1.OrderRejected_OUT_OF_STOCK, Detail: "none is left", RejectedAt: now},
	}}
}

// request is one that a receiver got.
type request struct {
	header http.Header
	body   []byte
	at     time.Time
}

func (r request) id() string { return r.header.Get("webhook-id") }

// envelope is what the body says, in the standard format.
func (r request) envelope(t *testing.T) (e struct {
	Type      string
	Timestamp time.Time
	Data      struct {
		OrderID       string `json:"order_id"`
		CustomerEmail string `json:"customer_email"`
	}
},
) {
	t.Helper()
	if err := json.Unmarshal(r.body, &e); err != nil {
		t.Errorf("%s: %v", r.body, err)
	}
	return e
}

// receiver keeps what it gets, and answers as answer says.
type receiver struct {
	*httptest.Server
	mu     sync.Mutex
	all    []request
	answer func(w http.ResponseWriter, r request, n int) // n-th request, from 1; nil answers 200
	came   chan struct{}
}

func newReceiver(t *testing.T, answer func(w http.ResponseWriter, r request, n int)) *receiver {
	t.Helper()
	v := &receiver{answer: answer, came: make(chan struct{}, 1)}
	v.Server = httptest.NewServer(v)
	t.Cleanup(v.Close)
	return v
}

func (v *receiver) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	body, err := io.ReadAll(req.Body)
	if err != nil {
		return
	}
	r := request{req.Header, body, time.Now()}
	v.mu.Lock()
	v.all = append(v.all, r)
	n := len(v.all)
	v.mu.Unlock()
	select {
	case v.came <- struct{}{}:
	default:
	}
	if v.answer != nil {
		v.answer(w, r, n)
	}
}

func (v *receiver) requests() []request {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.all[:len(v.all):len(v.all)]
}

// await returns the requests once there are n of them.
func (v *receiver) await(t *testing.T, n int) []request {
	t.Helper()
	deadline := time.After(60 * time.Second)
	for {
		if all := v.requests(); len(all) >= n {
			return all
		}
		select {
		case <-v.came:
		case <-deadline:
			t.Fatalf("%d requests came, want %d", len(v.requests()), n)
		}
	}
}

// eventually calls check until it returns nil.
func eventually(t *testing.T, check func() error) {
	t.Helper()
	deadline := time.Now().Add(60 * time.Second)
	for {
		err := check()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatal(err)
		}
		pause(t, 20*time.Millisecond)
	}
}

// allDelivered returns nil once nothing waits, and n deliveries of the webhook were delivered.
func (r *rig) allDelivered(id string, n int) error {
	var delivered, others int
	err := r.db.QueryRow(`SELECT count(*) FILTER (WHERE state = 'DELIVERED'), count(*) FILTER (WHERE state <> 'DELIVERED') FROM delivery WHERE webhook_id = $1`, id).
		Scan(&delivered, &others)
	if err == nil && (delivered != n || others != 0) {
		err = fmt.Errorf("%d are delivered and %d are not, want %d", delivered, others, n)
	}
	return err
}

// isIdle returns nil once the log is not followed, because nobody wants anything.
func (r *rig) isIdle() error {
	var active bool
	err := r.db.Get(&active, `SELECT active FROM log_position`)
	if err == nil && active {
		err = errors.New("the log is followed")
	}
	return err
}

// pause waits for d, or the end of the test.
func pause(t *testing.T, d time.Duration) {
	select {
	case <-t.Context().Done():
	case <-time.After(d):
	}
}
