package server

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/structpb"

	"shop.example/gateway/ingress"
	"shop.example/gateway/streams"
	"shop.example/gateway/upstream"
	loggingv1 "shop.example/gen/shop/logging/v1"
	"shop.example/platform/apierror"
	"shop.example/platform/service"
)

// logServer streams what its function sends.
type logServer struct {
	loggingv1.UnimplementedEventLogServiceServer
	stream func(*loggingv1.StreamEventsRequest, logStream) error
}

type logStream = grpc.ServerStreamingServer[loggingv1.StreamEventsResponse]

func (s logServer) StreamEvents(req *loggingv1.StreamEventsRequest, stream logStream) error {
	return s.stream(req, stream)
}

// sendFrom sends the place at which a stream begins and n events behind it, and stays until the client leaves.
func sendFrom(position int64, n int, stream logStream) error {
	if err := stream.Send(&loggingv1.StreamEventsResponse{Position: position}); err != nil {
		return err
	}
	for id := position + 1; id <= position+int64(n); id++ {
		e := &loggingv1.Event{Id: id, RoutingKey: "shop.order.placed", Payload: &structpb.Struct{Fields: map[string]*structpb.Value{
			"customer_name": structpb.NewStringValue("two\nlines"),
		}}}
		if err := stream.Send(&loggingv1.StreamEventsResponse{Event: e, Position: id}); err != nil {
			return err
		}
	}
	<-stream.Context().Done()
	return stream.Context().Err()
}

// streaming is a gateway that has nothing but streams, whose limits are short enough to wait for.
type streaming struct {
	url  string
	stop context.CancelFunc
	done chan error // has the result of Run
}

func startStreaming(t *testing.T, limit *ingress.Limiter, heartbeat, testTimeout time.Duration, stream func(*loggingv1.StreamEventsRequest, logStream) error) *streaming {
	t.Helper()
	addr := backend(t, func(s grpc.ServiceRegistrar) { loggingv1.RegisterEventLogServiceServer(s, logServer{stream: stream}) })
	return startStreamingTo(t, addr, limit, heartbeat, testTimeout)
}

func startStreamingTo(t *testing.T, logging string, limit *ingress.Limiter, heartbeat, testTimeout time.Duration) *streaming {
	t.Helper()
	tel := newTelemetry(t, io.Discard)
	s, err := service.New(t.Context(), service.Config{}, tel)
	if err != nil {
		t.Fatal(err)
	}
	a := newAPI(s.GRPC(), testOperators, tel)
	up, err := upstream.Dial("logging", logging, insecure.NewCredentials(), tel)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = up.Conn.Close() })
	if err := up.Forward(a, limit, loggingv1.File_shop_logging_v1_event_log_proto); err != nil {
		t.Fatal(err)
	}
	rest := serveREST(t, a, nil, tel)
	clients := ingress.ClientIdentifier{Authorizer: a.access, TrustedProxies: 1}
	events := streams.New(a.local, rest, clients, s.Stopping())
	events.Heartbeat, events.WriteTimeout = heartbeat, testTimeout
	if err := events.Register(); err != nil {
		t.Fatal(err)
	}
	lis, err := s.Listen("HTTP_ADDR", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	server := ingress.NewServer(&ingress.Ingress{GRPC: s.GRPC(), REST: rest, Clients: clients, WriteTimeout: testTimeout}, tel.Logger)
	server.ReadTimeout, server.WriteTimeout = time.Second, time.Second
	s.ServeHTTP("http", lis, server)
	running := &streaming{url: "http://" + lis.Addr().String(), done: make(chan error, 1)}
	var ctx context.Context
	ctx, running.stop = context.WithCancel(context.Background())
	go func() { running.done <- s.Run(ctx) }()
	t.Cleanup(func() {
		running.stop()
		if err := <-running.done; err != nil {
			t.Errorf("ended with: %v", err)
		}
		running.done <- nil
	})
	return running
}

// sseReader reads Server-Sent Events.
type sseReader struct {
	res   *http.Response
	lines *bufio.Scanner
	id    string // the last one
	beats int
	rest  []string // comments that are no heartbeats, and fields but id and data
}

// follow opens a stream. Headers are "Name: value".
func follow(t *testing.T, protocols *http.Protocols, url string, headers ...string) *sseReader {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), testTimeout)
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, header := range headers {
		name, value, _ := strings.Cut(header, ": ")
		req.Header.Add(name, value)
	}
	transport := &http.Transport{Protocols: protocols}
	res, err := transport.RoundTrip(req)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cancel()
		_ = res.Body.Close()
		transport.CloseIdleConnections()
	})
	if res.StatusCode != http.StatusOK {
		text, _ := io.ReadAll(res.Body)
		t.Fatalf("GET %s: %d %s", url, res.StatusCode, text)
	}
	return &sseReader{res: res, lines: bufio.NewScanner(res.Body)}
}

// next is the data of the next event; io.EOF if the stream has ended properly.
func (r *sseReader) next() (data string, err error) {
	for r.lines.Scan() {
		line := r.lines.Text()
		name, value, _ := strings.Cut(line, ": ")
		switch {
		case line == ":":
			r.beats++
		case name == "id":
			r.id = value
		case name == "data":
			data = value
		case line != "":
			r.rest = append(r.rest, line)
		case data != "":
			return data, nil
		}
	}
	if err := r.lines.Err(); err != nil {
		return "", err
	}
	return "", io.EOF
}

func (r *sseReader) expect(t *testing.T, ids ...string) {
	t.Helper()
	for _, id := range ids {
		if data, err := r.next(); err != nil || r.id != id || !strings.Contains(data, `"`+id+`"`) {
			t.Fatalf("want event %s, got id %s with %s (%v)", id, r.id, data, err)
		}
	}
}

func protocolOf(version int) *http.Protocols {
	p := &http.Protocols{}
	p.SetHTTP1(version == 1)
	p.SetUnencryptedHTTP2(version == 2)
	return p
}

const asOperator = "Authorization: Bearer " + operatorToken

func TestSSE_OutlivesTheLimitsOfCallsOverHTTP1AndHTTP2(t *testing.T) {
	t.Parallel()
	goOn := make(chan struct{})
	s := startStreaming(t, ingress.NewLimiter(8, 2), 20*time.Millisecond, time.Second, func(_ *loggingv1.StreamEventsRequest, stream logStream) error {
		if err := stream.Send(&loggingv1.StreamEventsResponse{Position: 6}); err != nil {
			return err
		}
		<-goOn
		return sendFrom(7, 1, stream)
	})
	var readers []*sseReader
	for _, version := range []int{1, 2} { // answered although nothing has happened
		r := follow(t, protocolOf(version), s.url+"/v1/events:stream", asOperator)
		if h := r.res.Header; r.res.ProtoMajor != version || h.Get("Content-Type") != "text/event-stream" ||
			h.Get("Cache-Control") != "no-store" || h.Get("X-Accel-Buffering") != "no" {
			t.Errorf("HTTP/%d: %v", version, r.res)
		}
		readers = append(readers, r)
	}
	time.AfterFunc(1500*time.Millisecond, func() { close(goOn) }) // the limits are a second
	for _, r := range readers {
		data, err := r.next()
		want := `{"id":"8","routing_key":"shop.order.placed","exchange":"","payload":{"customer_name":"two\nlines"},"status":"STATUS_UNSPECIFIED",` +
			`"error_message":"","message_id":"","order_id":"","trace_id":"","source":"","attempt":0}`
		if err != nil || !sameJSON(t, data, want) {
			t.Errorf("HTTP/%d: %v %s\nwant %s", r.res.ProtoMajor, err, data, want)
		}
		if r.beats < 10 || r.id != "8" || fmt.Sprint(r.rest) != "[retry: 1000]" {
			t.Errorf("HTTP/%d: %d heartbeats, id %s, also %q", r.res.ProtoMajor, r.beats, r.id, r.rest)
		}
	}
}

func TestStreams_SendTheirPositionThoughNothingHappens(t *testing.T) {
	t.Parallel()
	s := startStreaming(t, ingress.NewLimiter(8, 8), time.Minute, time.Minute, func(_ *loggingv1.StreamEventsRequest, stream logStream) error {
		for _, position := range []int64{6, 9} {
			if err := stream.Send(&loggingv1.StreamEventsResponse{Position: position}); err != nil {
				return err
			}
		}
		return sendFrom(11, 1, stream)
	})
	r := follow(t, protocolOf(1), s.url+"/v1/events:stream", asOperator)
	var text []string
	for (len(text) == 0 || text[len(text)-1] != "data: ") && r.lines.Scan() {
		if line := strings.SplitN(r.lines.Text(), "{", 2)[0]; line != "" && !slices.Contains(text, line) { // a position may be said twice
			text = append(text, line)
		}
	}
	if got := strings.Join(text, "|"); got != "retry: 1000|id: 6|id: 9|id: 11|id: 12|data: " {
		t.Errorf("the stream begins with %s", got)
	}
	overGRPC, err := loggingv1.NewEventLogServiceClient(client(t, strings.TrimPrefix(s.url, "http://"))).StreamEvents(
		metadata.AppendToOutgoingContext(t.Context(), "authorization", "Bearer "+operatorToken), &loggingv1.StreamEventsRequest{})
	if err != nil {
		t.Fatal(err)
	}
	said := int64(-1)
	for _, want := range []int64{6, 9, 11, 12} {
		reply, err := overGRPC.Recv()
		for err == nil && reply.GetEvent() == nil && reply.GetPosition() == said {
			reply, err = overGRPC.Recv()
		}
		said = reply.GetPosition()
		if err != nil || reply.GetPosition() != want || (reply.GetEvent() != nil) != (want == 12) {
			t.Fatalf("over gRPC: %v (%v), want position %d", reply, err, want)
		}
	}
}

func TestSSE_BeginsWhereTheClientSays(t *testing.T) {
	t.Parallel()
	asked := make(chan *loggingv1.StreamEventsRequest, 1)
	s := startStreaming(t, ingress.NewLimiter(1, 1), time.Minute, time.Minute, func(req *loggingv1.StreamEventsRequest, _ logStream) error {
		asked <- req
		return apierror.New(codes.OutOfRange, "ENOUGH", "enough\nof it")
	})
	for _, test := range []struct {
		path, lastEventID string
		want              *loggingv1.StreamEventsRequest
	}{
		{"/v1/events:stream", "", &loggingv1.StreamEventsRequest{}},
		{"/v1/events:stream?after_id=41&routing_key=shop.%23", "", &loggingv1.StreamEventsRequest{AfterId: 41, RoutingKey: "shop.#"}},
		{"/v1/events:stream?after_id=41", "42", &loggingv1.StreamEventsRequest{AfterId: 42, FromBeginning: true}},
		{"/v1/events:stream?from_beginning=true", "", &loggingv1.StreamEventsRequest{FromBeginning: true}},
		{"/v1/events:stream", "0", &loggingv1.StreamEventsRequest{FromBeginning: true}},
		{"/v1/events:stream?order_id=" + storedOrder, "", &loggingv1.StreamEventsRequest{OrderId: storedOrder}},
		{"/v1/orders/" + storedOrder + "/events:stream", "9223372036854775807",
			&loggingv1.StreamEventsRequest{AfterId: 9223372036854775807, FromBeginning: true, OrderId: storedOrder}},
	} {
		headers := []string{asOperator}
		if test.lastEventID != "" {
			headers = append(headers, "Last-Event-ID: "+test.lastEventID)
		}
		got := send(t, http.MethodGet, s.url+test.path, "", headers...)
		if f := got.failure(t); got.status != http.StatusBadRequest || f.reason() != "ENOUGH" {
			t.Errorf("%s: %d %s", test.path, got.status, got.body)
		}
		if req := <-asked; !proto.Equal(req, test.want) {
			t.Errorf("%s with %q asked for %v, want %v", test.path, test.lastEventID, req, test.want)
		}
	}
}

func TestSSE_IsRefusedBeforeItBegins(t *testing.T) {
	t.Parallel()
	g := startGateway(t, Config{}) // without a logging service
	ofOrder := "/v1/orders/" + storedOrder + "/events:stream"
	for _, test := range []struct {
		path    string
		headers []string
		status  int
		reason  string
		field   string
	}{
		{"/v1/events:stream", nil, 401, "OPERATOR_TOKEN_REQUIRED", ""},
		{"/v1/events:stream", []string{"Authorization: Bearer guess"}, 401, "OPERATOR_TOKEN_INVALID", ""},
		{"/v1/events:stream", []string{asOperator}, 503, "SERVICE_UNAVAILABLE", ""},
		{ofOrder, nil, 503, "SERVICE_UNAVAILABLE", ""},
		{"/v1/orders/42/events:stream", nil, 400, "INVALID_ARGUMENT", "order_id"},
		{ofOrder + "?order_id=" + storedOrder, nil, 400, "INVALID_ARGUMENT", "order_id"},
		{ofOrder + "?after_id=-1", nil, 400, "INVALID_ARGUMENT", "after_id"},
		{ofOrder + "?after_id=x", nil, 400, "INVALID_ARGUMENT", "after_id"},
		{ofOrder + "?routing_key=" + strings.Repeat("x", 256), nil, 400, "INVALID_ARGUMENT", "routing_key"},
		{ofOrder + "?limit=1", nil, 400, "INVALID_ARGUMENT", "limit"},
		{ofOrder + "?routing_key=%zz", nil, 400, "INVALID_QUERY", ""},
		{ofOrder, []string{"Last-Event-ID: -1"}, 400, "INVALID_ARGUMENT", "Last-Event-ID"},
		{ofOrder, []string{"Last-Event-ID: "}, 400, "INVALID_ARGUMENT", "Last-Event-ID"},
		{ofOrder, []string{"Last-Event-ID: 9223372036854775808"}, 400, "INVALID_ARGUMENT", "Last-Event-ID"},
		{ofOrder, []string{"Last-Event-ID: 1", "Last-Event-ID: 2"}, 400, "INVALID_ARGUMENT", "Last-Event-ID"},
	} {
		got := send(t, http.MethodGet, "http://"+g.HTTPAddr()+test.path, "", test.headers...)
		f := got.failure(t)
		if got.status != test.status || f.reason() != test.reason || test.field != "" && (len(f.violations()) != 1 || f.violations()[0].Field != test.field) {
			t.Errorf("%s %q: %d %s", test.path, test.headers, got.status, got.body)
		}
		if wait := got.header.Get("Retry-After"); (wait != "") != (test.status == 503) {
			t.Errorf("%s: Retry-After is %q", test.path, wait)
		}
	}
	if got := send(t, http.MethodPost, "http://"+g.HTTPAddr()+ofOrder, ""); got.status != http.StatusMethodNotAllowed || got.header.Get("Allow") != "GET, HEAD" {
		t.Errorf("POST: %d, allowed %q", got.status, got.header.Get("Allow"))
	}
}

// sendEndlessly sends events until the client leaves, and returns how many bytes.
func sendEndlessly(stream logStream) (sent int64) {
	const size = 10_000
	for id := int64(1); ; id++ {
		e := &loggingv1.Event{Id: id, ErrorMessage: strings.Repeat("x", size)}
		if stream.Send(&loggingv1.StreamEventsResponse{Event: e, Position: id}) != nil {
			return sent
		}
		sent += size
	}
}

// none waits until there are no calls.
func none(t *testing.T, calls *atomic.Int64) {
	t.Helper()
	eventually(t, func() error {
		if n := calls.Load(); n > 0 {
			return fmt.Errorf("%d calls go on", n)
		}
		return nil
	})
}

func TestSSE_AClientThatDoesNotReadIsCutOffAndHoldsNothing(t *testing.T) {
	t.Parallel()
	var calls, sent atomic.Int64
	limit := ingress.NewLimiter(1, 1)
	s := startStreaming(t, limit, 100*time.Millisecond, 300*time.Millisecond, func(_ *loggingv1.StreamEventsRequest, stream logStream) error {
		calls.Add(1)
		defer calls.Add(-1)
		sent.Add(sendEndlessly(stream))
		return nil
	})
	for _, version := range []int{1, 2} {
		sent.Store(0)
		r := follow(t, protocolOf(version), s.url+"/v1/events:stream", asOperator)
		free(t, limit)
		none(t, &calls)
		if sent := sent.Load(); sent > 32<<20 { // most of it is in buffers of the operating system, or was dropped by the feed
			t.Errorf("HTTP/%d: %d bytes were sent to a client that reads nothing", version, sent)
		}
		_, err := io.Copy(io.Discard, r.res.Body)
		if err == nil {
			t.Errorf("HTTP/%d: the client is told that the stream ended in order", version)
		}
		var timeout net.Error
		if errors.As(err, &timeout) && timeout.Timeout() {
			t.Errorf("HTTP/%d: the connection is still there", version)
		}
	}
}

func TestStream_AGRPCClientThatDoesNotReadIsCutOffAndOneThatIsSentNothingIsNot(t *testing.T) {
	t.Parallel()
	const limit = 300 * time.Millisecond
	more := make(chan struct{})
	var calls atomic.Int64
	limiter := ingress.NewLimiter(8, 2)
	s := startStreaming(t, limiter, time.Minute, limit, func(req *loggingv1.StreamEventsRequest, stream logStream) error {
		if req.GetOrderId() != "" {
			e := &loggingv1.StreamEventsResponse{Event: &loggingv1.Event{Id: 1}, Position: 1}
			if err := stream.Send(e); err != nil {
				return err
			}
			<-more
			return stream.Send(e)
		}
		calls.Add(1)
		defer calls.Add(-1)
		sendEndlessly(stream)
		return nil
	})
	events := loggingv1.NewEventLogServiceClient(client(t, strings.TrimPrefix(s.url, "http://")))
	quiet, err := events.StreamEvents(t.Context(), &loggingv1.StreamEventsRequest{OrderId: storedOrder})
	if err != nil {
		t.Fatal(err)
	}
	begin := time.Now()
	unread, err := events.StreamEvents(metadata.AppendToOutgoingContext(t.Context(), "authorization", "Bearer "+operatorToken), &loggingv1.StreamEventsRequest{})
	if err != nil {
		t.Fatal(err)
	}
	inUse(t, limiter, exactly(2))
	inUse(t, limiter, exactly(1))
	none(t, &calls)
	if took := time.Since(begin); took < limit {
		t.Errorf("it was cut off after %s", took)
	}
	close(more)
	for range 2 {
		if _, err := quiet.Recv(); err != nil {
			t.Fatalf("the client that was sent nothing for a while: %v", err)
		}
	}
	for err == nil {
		_, err = unread.Recv()
	}
	if errors.Is(err, io.EOF) {
		t.Error("the client that did not read is told that the stream ended in order")
	}
}

func TestSSE_BeyondTheLimitIsTooManyRequests(t *testing.T) {
	t.Parallel()
	s := startStreaming(t, ingress.NewLimiter(1, 1), time.Minute, time.Minute, func(req *loggingv1.StreamEventsRequest, stream logStream) error {
		return sendFrom(req.GetAfterId(), 1, stream)
	})
	url := s.url + "/v1/orders/" + storedOrder + "/events:stream"
	first := follow(t, protocolOf(2), url)
	first.expect(t, "1")
	got := send(t, http.MethodGet, url, "")
	if f := got.failure(t); got.status != http.StatusTooManyRequests || f.reason() != "TOO_MANY_STREAMS" || got.header.Get("Retry-After") != "10" {
		t.Errorf("beyond the limit: %d %v %s", got.status, got.header, got.body)
	}
	stream, err := loggingv1.NewEventLogServiceClient(client(t, strings.TrimPrefix(s.url, "http://"))).
		StreamEvents(t.Context(), &loggingv1.StreamEventsRequest{OrderId: storedOrder})
	if err == nil {
		_, err = stream.Recv()
	}
	if apierror.ReasonOf(err) != "TOO_MANY_STREAMS" {
		t.Errorf("beyond the limit, over gRPC: %v", err)
	}
	_ = first.res.Body.Close()
	for deadline := time.Now().Add(testTimeout); ; {
		if got := send(t, http.MethodHead, url, ""); got.status == http.StatusOK { // which ends by itself
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("the place of a client that has left is not free")
		}
	}
}

func TestSSE_OneClientMayHaveAQuarterOfTheStreams(t *testing.T) {
	t.Parallel()
	s := startStreaming(t, ingress.NewLimiter(8, 2), time.Minute, time.Minute, func(req *loggingv1.StreamEventsRequest, stream logStream) error {
		return sendFrom(req.GetAfterId(), 1, stream)
	})
	url := s.url + "/v1/orders/" + storedOrder + "/events:stream"
	const one, other = "X-Forwarded-For: 198.51.100.7", "X-Forwarded-For: 198.51.100.8"
	first := follow(t, protocolOf(1), url, one)
	first.expect(t, "1")
	follow(t, protocolOf(2), url, one).expect(t, "1")

	got := send(t, http.MethodGet, url, "", one)
	if f := got.failure(t); got.status != http.StatusTooManyRequests || f.reason() != "TOO_MANY_STREAMS" || !strings.Contains(f.Message, "one may have") {
		t.Errorf("beyond a quarter: %d %s", got.status, got.body)
	}
	events := loggingv1.NewEventLogServiceClient(client(t, strings.TrimPrefix(s.url, "http://")))
	overGRPC := func(headers ...string) error {
		ctx, cancel := context.WithCancel(metadata.AppendToOutgoingContext(t.Context(), headers...))
		defer cancel()
		stream, err := events.StreamEvents(ctx, &loggingv1.StreamEventsRequest{OrderId: storedOrder})
		if err == nil {
			_, err = stream.Recv()
		}
		return err
	}
	if err := overGRPC("x-forwarded-for", "198.51.100.7"); apierror.ReasonOf(err) != "TOO_MANY_STREAMS" {
		t.Errorf("beyond a quarter, over gRPC: %v", err)
	}
	follow(t, protocolOf(1), url, other).expect(t, "1")
	if err := overGRPC("x-forwarded-for", "198.51.100.7", "authorization", "Bearer "+operatorToken); err != nil {
		t.Errorf("the operator from the same address: %v", err)
	}
	_ = first.res.Body.Close()
	for deadline := time.Now().Add(testTimeout); send(t, http.MethodHead, url, "", one).status != http.StatusOK; {
		if time.Now().After(deadline) {
			t.Fatal("the place of a stream that has ended is not free for its client")
		}
	}
}

func TestSSE_EndsInOrderWhenTheGatewayStops(t *testing.T) {
	t.Parallel()
	s := startStreaming(t, ingress.NewLimiter(8, 2), time.Minute, time.Minute, func(req *loggingv1.StreamEventsRequest, stream logStream) error {
		return sendFrom(req.GetAfterId(), 1, stream)
	})
	var readers []*sseReader
	for _, version := range []int{1, 2} {
		r := follow(t, protocolOf(version), s.url+"/v1/events:stream", asOperator)
		r.expect(t, "1")
		readers = append(readers, r)
	}
	begin := time.Now()
	s.stop()
	for _, r := range readers {
		if _, err := r.next(); !errors.Is(err, io.EOF) || !strings.HasPrefix(r.rest[len(r.rest)-1], ": the service is stopping") {
			t.Errorf("HTTP/%d: ended with %v, %q", r.res.ProtoMajor, err, r.rest)
		}
	}
	err := <-s.done
	if took := time.Since(begin); took > 4*time.Second { // what calls in flight may take
		t.Errorf("the stop took %s", took)
	}
	s.done <- err
}

func TestSSE_WhoResumesWaitsForAServiceThatRestarts(t *testing.T) {
	t.Parallel()
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	logging := lis.Addr().String()
	log := newGrowingLog(1)
	serve := func(lis net.Listener) *grpc.Server {
		server := grpc.NewServer()
		loggingv1.RegisterEventLogServiceServer(server, logServer{stream: log.stream})
		go func() { _ = server.Serve(lis) }()
		t.Cleanup(server.Stop)
		return server
	}
	first := serve(lis)
	s := startStreamingTo(t, logging, ingress.NewLimiter(1, 1), time.Minute, time.Minute)
	r := follow(t, protocolOf(1), s.url+"/v1/events:stream", asOperator)
	r.begin(t)
	log.grow(2)
	r.expect(t, "1", "2")
	first.Stop()
	if _, err := r.next(); !errors.Is(err, io.EOF) || r.rest[len(r.rest)-1] != ": logging service is not available" {
		t.Errorf("ended with %v, %q", err, r.rest)
	}
	if got := send(t, http.MethodGet, s.url+"/v1/events:stream", "", asOperator); got.status != http.StatusServiceUnavailable {
		t.Errorf("a new stream: %d %s", got.status, got.body)
	}
	log.grow(2)
	time.AfterFunc(500*time.Millisecond, func() {
		lis, err := net.Listen("tcp", logging)
		if err != nil {
			t.Error(err)
			return
		}
		serve(lis)
	})
	follow(t, protocolOf(1), s.url+"/v1/events:stream", asOperator, "Last-Event-ID: "+r.id).expect(t, "3", "4")
}
