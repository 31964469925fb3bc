package server

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"

	spb "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc/codes"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"
	reflectionv1 "google.golang.org/grpc/reflection/grpc_reflection_v1"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"shop.example/gateway/ingress"
	checkoutv1 "shop.example/gen/shop/checkout/v1"
	orderv1 "shop.example/gen/shop/order/v1"
	"shop.example/platform/apierror"
)

// soon is a limit that is short enough to wait for.
const soon = 300 * time.Millisecond

// rawCall is a gRPC call, or a call like one, whose client does only what the test says.
type rawCall struct {
	t    *testing.T
	body *io.PipeWriter
	done chan struct{}
	res  *http.Response // after done
	err  error
}

// callRaw begins a call over HTTP/2. The client takes window bytes of the answer; the connection is the call's own.
func callRaw(t *testing.T, url string, window int, headers ...string) *rawCall {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), testTimeout)
	read, write := io.Pipe()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, url, read)
	if err != nil {
		t.Fatal(err)
	}
	for _, header := range headers {
		name, value, _ := strings.Cut(header, ": ")
		req.Header.Set(name, value)
	}
	transport := &http.Transport{Protocols: protocolOf(2), HTTP2: &http.HTTP2Config{MaxReceiveBufferPerStream: window}}
	c := &rawCall{t: t, body: write, done: make(chan struct{})}
	go func() {
		defer close(c.done)
		c.res, c.err = transport.RoundTrip(req)
	}()
	t.Cleanup(func() {
		cancel()
		_ = write.Close()
		<-c.done
		if c.res != nil {
			_ = c.res.Body.Close()
		}
		transport.CloseIdleConnections()
	})
	return c
}

func callGRPC(t *testing.T, addr, method string, window int, headers ...string) *rawCall {
	t.Helper()
	return callRaw(t, "http://"+addr+method, window, append(headers, "Content-Type: application/grpc", "Te: trailers")...)
}

// send sends bytes of the request.
func (c *rawCall) send(data []byte) {
	c.t.Helper()
	if _, err := c.body.Write(data); err != nil {
		c.t.Fatalf("sending: %v", err)
	}
}

// sendMessage sends one message of gRPC and ends the request.
func (c *rawCall) sendMessage(m proto.Message) {
	c.t.Helper()
	data, err := proto.Marshal(m)
	if err != nil {
		c.t.Fatal(err)
	}
	c.send(append([]byte{0, 0, 0, byte(len(data) >> 8), byte(len(data))}, data...))
	_ = c.body.Close()
}

// began waits for the head of the answer.
func (c *rawCall) began() *http.Response {
	c.t.Helper()
	select {
	case <-c.done:
	case <-time.After(testTimeout):
		c.t.Fatal("the call is not answered")
	}
	if c.err != nil {
		c.t.Fatalf("the call: %v", c.err)
	}
	return c.res
}

// ended reads the answer and returns the status with which gRPC ended.
func (c *rawCall) ended() error {
	c.t.Helper()
	res := c.began()
	if _, err := io.Copy(io.Discard, res.Body); err != nil {
		return err
	}
	for _, h := range []http.Header{res.Header, res.Trailer} {
		if h.Get("Grpc-Status") == "" {
			continue
		}
		s := &spb.Status{}
		details, err := base64.RawStdEncoding.DecodeString(h.Get("Grpc-Status-Details-Bin"))
		if err == nil {
			err = proto.Unmarshal(details, s)
		}
		if err != nil {
			c.t.Fatal(err)
		}
		return status.ErrorProto(s)
	}
	return nil
}

// inUse waits until as much of the limiter is in use as is wanted.
func inUse(t *testing.T, l *ingress.Limiter, wanted func(used int) bool) {
	t.Helper()
	for deadline := time.Now().Add(testTimeout); ; <-time.After(5 * time.Millisecond) {
		used, clients := l.InUse()
		if wanted(used) && (used > 0) == (clients > 0) {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%d are in use, by %d clients", used, clients)
		}
	}
}

func exactly(n int) func(int) bool { return func(used int) bool { return used == n } }

// free waits until nothing of the limiter is in use.
func free(t *testing.T, l *ingress.Limiter) {
	t.Helper()
	inUse(t, l, exactly(0))
}

func TestGRPC_ACallWhoseRequestDoesNotArriveEnds(t *testing.T) {
	t.Parallel()
	calls := ingress.NewLimiter(100, 100)
	_, addr := serveAPI(t, nothingPublished(t), orderServer{}, func(d *ingress.Ingress, s *http.Server) {
		d.Limits = ingress.Limits{Calls: calls, Streams: ingress.NewLimiter(10, 10)}
		s.ReadTimeout = soon
	})
	for _, method := range []string{
		orderv1.OrderService_GetOrder_FullMethodName, checkoutv1.CheckoutService_PlaceOrder_FullMethodName,
		healthv1.Health_Watch_FullMethodName, reflectionv1.ServerReflection_ServerReflectionInfo_FullMethodName,
	} {
		for name, part := range map[string][]byte{"nothing": nil, "half a message": {0, 0, 0, 1, 0, 'x', 'y'}} {
			call := callGRPC(t, addr, method, 1<<20)
			if len(part) > 0 {
				call.send(part)
			}
			if err := call.ended(); apierror.ReasonOf(err) != "REQUEST_TIMEOUT" || status.Code(err) != codes.DeadlineExceeded {
				t.Errorf("%s, %s: %v", method, name, err)
			}
		}
	}
	free(t, calls)
}

func TestREST_ABodyThatTricklesIsNotWaitedFor(t *testing.T) {
	t.Parallel()
	calls := ingress.NewLimiter(100, 100)
	_, addr := serveAPI(t, nothingPublished(t), orderServer{}, func(d *ingress.Ingress, s *http.Server) {
		d.Limits = ingress.Limits{Calls: calls}
		s.ReadTimeout = soon
	})
	overHTTP2 := callRaw(t, "http://"+addr+"/v1/orders", 1<<20, "Content-Type: application/json")
	overHTTP2.send([]byte(`{"customer_name":`))
	conn, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	fmt.Fprintf(conn, "POST /v1/orders HTTP/1.1\r\nHost: shop\r\nContent-Length: 1000000\r\n\r\n{")
	overHTTP1, err := io.ReadAll(conn)
	if err != nil || !strings.HasPrefix(string(overHTTP1), "HTTP/1.1 408 ") || !strings.Contains(string(overHTTP1), "REQUEST_TIMEOUT") {
		t.Errorf("HTTP/1: %s (%v)", overHTTP1, err)
	}
	text, err := io.ReadAll(overHTTP2.began().Body)
	if err != nil || overHTTP2.res.StatusCode != http.StatusRequestTimeout || !strings.Contains(string(text), "REQUEST_TIMEOUT") {
		t.Errorf("HTTP/2: %d %s (%v)", overHTTP2.res.StatusCode, text, err)
	}
	free(t, calls)
}

func TestGRPC_ACallWhoseAnswerNobodyReadsEnds(t *testing.T) {
	t.Parallel()
	calls, streams := ingress.NewLimiter(100, 100), ingress.NewLimiter(10, 10)
	_, addr := serveAPI(t, nothingPublished(t), orderServer{}, func(d *ingress.Ingress, s *http.Server) {
		d.Limits = ingress.Limits{Calls: calls, Streams: streams}
		d.WriteTimeout, s.WriteTimeout = soon, soon
	})
	for method, request := range map[string]proto.Message{
		orderv1.OrderService_GetOrder_FullMethodName: &orderv1.GetOrderRequest{OrderId: storedOrder},
		healthv1.Health_Watch_FullMethodName:         &healthv1.HealthCheckRequest{},
		reflectionv1.ServerReflection_ServerReflectionInfo_FullMethodName: &reflectionv1.ServerReflectionRequest{
			MessageRequest: &reflectionv1.ServerReflectionRequest_ListServices{},
		},
	} {
		call := callGRPC(t, addr, method, 1)
		call.sendMessage(request)
		call.began()
		free(t, calls) // although nothing was read of it
		if _, err := io.Copy(io.Discard, call.res.Body); err == nil {
			t.Errorf("%s: the client is told that the answer ended in order", method)
		}
	}
	free(t, streams)
}

func TestGRPC_AHealthWatchCountsAsAStreamAndHasNoTimeLimit(t *testing.T) {
	t.Parallel()
	streams := ingress.NewLimiter(2, 1)
	_, addr := serveAPI(t, nothingPublished(t), orderServer{}, func(d *ingress.Ingress, s *http.Server) {
		d.Limits = ingress.Limits{Streams: streams}
		d.WriteTimeout, s.ReadTimeout, s.WriteTimeout = soon, soon, soon
	})
	health := healthv1.NewHealthClient(client(t, addr))
	ctx, leave := context.WithTimeout(t.Context(), 4*soon)
	defer leave()
	first, err := health.Watch(ctx, &healthv1.HealthCheckRequest{})
	if err == nil {
		_, err = first.Recv()
	}
	if err != nil {
		t.Fatal(err)
	}
	second, err := health.Watch(ctx, &healthv1.HealthCheckRequest{})
	if err == nil {
		_, err = second.Recv()
	}
	if apierror.ReasonOf(err) != "TOO_MANY_STREAMS" {
		t.Errorf("the second watch of a client that may have one: %v", err)
	}
	if _, err := first.Recv(); status.Code(err) != codes.DeadlineExceeded {
		t.Errorf("the first ended before its client wanted: %v", err)
	}
	free(t, streams)
}

func TestCalls_OneClientHasALimitOfOpenCalls(t *testing.T) {
	t.Parallel()
	calls := ingress.NewLimiter(3, 2)
	_, addr := serveAPI(t, published, orderServer{}, func(d *ingress.Ingress, _ *http.Server) {
		d.Limits = ingress.Limits{Calls: calls}
		d.Clients.TrustedProxies = 1
	})
	const one, other = "X-Forwarded-For: 192.0.2.1", "X-Forwarded-For: 192.0.2.2"
	hold := func(from string) *rawCall {
		return callGRPC(t, addr, orderv1.OrderService_GetOrder_FullMethodName, 1<<20, from)
	}
	first, _ := hold(one), hold(one)
	inUse(t, calls, exactly(2))
	refused := func(from, text string) {
		t.Helper()
		got := send(t, http.MethodPost, "http://"+addr+"/v1/orders", order, from)
		if f := got.failure(t); got.status != http.StatusTooManyRequests || f.reason() != "TOO_MANY_CALLS" || got.header.Get("Retry-After") != "1" || !strings.Contains(f.Message, text) {
			t.Errorf("REST: %d %s", got.status, got.body)
		}
		if err := callGRPC(t, addr, orderv1.OrderService_GetOrder_FullMethodName, 1<<20, from).ended(); apierror.ReasonOf(err) != "TOO_MANY_CALLS" {
			t.Errorf("gRPC: %v", err)
		}
	}
	refused(one, "this client has 2 calls open")
	if got := send(t, http.MethodPost, "http://"+addr+"/v1/orders", order, other); got.status != http.StatusAccepted {
		t.Errorf("another client: %d %s", got.status, got.body)
	}
	hold(other)
	inUse(t, calls, exactly(3))
	refused(other, "3 calls are open")
	_ = first.body.Close()
	_ = first.ended()
	inUse(t, calls, exactly(2))
	if got := send(t, http.MethodPost, "http://"+addr+"/v1/orders", order, one); got.status != http.StatusAccepted {
		t.Errorf("when a call has ended: %d %s", got.status, got.body)
	}
}

// memoryStep is how much of a request is counted at a time, and uncounted what is not, in bytes.
const memoryStep, uncounted = 16 << 10, 16 << 10

func TestHeld_RequestsThatComeInSlowlyAreBoundedByTheirBytes(t *testing.T) {
	t.Parallel()
	memory := ingress.NewLimiter(4*memoryStep, 2*memoryStep)
	_, addr := serveAPI(t, published, orderServer{}, func(d *ingress.Ingress, _ *http.Server) { d.Limits = ingress.Limits{Memory: memory} })
	large := []byte(`{"customer_name":"` + strings.Repeat("x", uncounted+2*memoryStep-100))
	slow := callRaw(t, "http://"+addr+"/v1/orders", 1<<20, "Content-Type: application/json")
	slow.send(large)
	inUse(t, memory, exactly(2*memoryStep))
	another := callRaw(t, "http://"+addr+"/v1/orders", 1<<20, "Content-Type: application/json")
	_, _ = another.body.Write(large) // of which not all is taken
	text, _ := io.ReadAll(another.began().Body)
	if res := another.res; res.StatusCode != http.StatusTooManyRequests || !strings.Contains(string(text), "TOO_MUCH_AT_ONCE") || res.Header.Get("Retry-After") != "1" {
		t.Errorf("another large request: %d %s", res.StatusCode, text)
	}
	if got := send(t, http.MethodPost, "http://"+addr+"/v1/orders", order); got.status != http.StatusAccepted {
		t.Errorf("an order of the usual size: %d %s", got.status, got.body)
	}
	_ = slow.body.Close()
	_, _ = io.Copy(io.Discard, slow.began().Body)
	free(t, memory)

	// gRPC keeps 16 KiB for each piece, be it a byte.
	drip := callGRPC(t, addr, checkoutv1.CheckoutService_PlaceOrder_FullMethodName, 1<<20)
	drip.send([]byte{0, 0, 1, 0, 0})
	for range 60_000 { // far fewer are enough, but some may arrive together
		if _, err := drip.body.Write([]byte{0}); err != nil {
			break
		}
	}
	if err := drip.ended(); apierror.ReasonOf(err) != "TOO_MUCH_AT_ONCE" {
		t.Errorf("a message in pieces: %v", err)
	}
	free(t, memory)
}

func TestGRPC_WhatFollowsTheRequestIsNotKept(t *testing.T) {
	t.Parallel()
	_, addr := serveAPI(t, published, orderServer{}, func(d *ingress.Ingress, _ *http.Server) {
		d.Limits = ingress.Limits{Memory: ingress.NewLimiter(64<<20, 64<<20)}
	})
	call := callGRPC(t, addr, orderv1.OrderService_GetOrder_FullMethodName, 1<<20)
	data, err := proto.Marshal(&orderv1.GetOrderRequest{OrderId: slowOrder})
	if err != nil {
		t.Fatal(err)
	}
	call.send(append([]byte{0, 0, 0, 0, byte(len(data))}, data...))
	sent, more := 0, make([]byte, 64<<10)
	stuck := time.AfterFunc(2*time.Second, func() { _ = call.body.CloseWithError(os.ErrDeadlineExceeded) })
	defer stuck.Stop()
	for sent < 16<<20 {
		n, err := call.body.Write(more)
		sent += n
		if err != nil {
			break
		}
	}
	if sent > 2*ingress.MaxBody {
		t.Errorf("%d bytes were taken behind the message of a call that is being answered", sent)
	}
}

// wide answers with orders of a megabyte.
type wide struct {
	orderv1.UnimplementedOrderServiceServer
}

func (wide) GetOrder(_ context.Context, req *orderv1.GetOrderRequest) (*orderv1.GetOrderResponse, error) {
	o := &orderv1.Order{Id: req.GetOrderId()}
	if req.GetOrderId() == storedOrder {
		o.CustomerName = strings.Repeat("x", 1<<20)
	}
	return &orderv1.GetOrderResponse{Order: o}, nil
}

func TestHeld_AnswersThatNobodyReadsAreBoundedByTheirBytes(t *testing.T) {
	t.Parallel()
	memory := ingress.NewLimiter(8<<20, 3<<19) // one client may leave a megabyte and a half
	_, addr := serveAPI(t, published, wide{}, func(d *ingress.Ingress, _ *http.Server) { d.Limits = ingress.Limits{Memory: memory} })
	request := &orderv1.GetOrderRequest{OrderId: storedOrder}
	unread := callGRPC(t, addr, orderv1.OrderService_GetOrder_FullMethodName, 1)
	unread.sendMessage(request)
	unread.began()
	inUse(t, memory, func(used int) bool { return used > 1<<20 })
	over := callGRPC(t, addr, orderv1.OrderService_GetOrder_FullMethodName, 1<<20)
	over.sendMessage(request)
	if err := over.ended(); err == nil {
		t.Error("another answer over gRPC came through")
	}
	for version, small := range map[int]string{1: missingOrder, 2: brokenOrder} {
		transport := &http.Transport{Protocols: protocolOf(version)}
		defer transport.CloseIdleConnections()
		get := func(order string) error {
			res, err := (&http.Client{Transport: transport, Timeout: testTimeout}).Get("http://" + addr + "/v1/orders/" + order)
			if err != nil {
				return err
			}
			defer res.Body.Close()
			_, err = io.Copy(io.Discard, res.Body)
			return err
		}
		if err := get(storedOrder); err == nil {
			t.Errorf("another answer over HTTP/%d looks whole", version)
		}
		if err := get(small); err != nil {
			t.Errorf("a small one over HTTP/%d: %v", version, err)
		}
	}
	_ = unread.res.Body.Close()
	free(t, memory)
	if got := send(t, http.MethodGet, "http://"+addr+"/v1/orders/"+storedOrder, ""); len(got.body) < 1<<20 {
		t.Errorf("when it has gone: %d, %d bytes", got.status, len(got.body))
	}
}

func TestListener_OneAddressMayHaveSoManyConnections(t *testing.T) {
	t.Parallel()
	g := startGateway(t, Config{Ingress: ingress.Config{MaxConnections: 3}})
	open := func() (net.Conn, error) {
		conn, err := net.Dial("tcp", g.HTTPAddr())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = conn.Close() })
		_ = conn.SetDeadline(time.Now().Add(testTimeout))
		fmt.Fprint(conn, "GET /openapi.json HTTP/1.1\r\nHost: shop\r\n\r\n")
		_, err = conn.Read(make([]byte, 1))
		return conn, err
	}
	first, err := open()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := open(); err != nil {
		t.Fatal(err)
	}
	if _, err := open(); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("a third connection, where one address may have two of three: %v", err)
	}
	if metrics := send(t, http.MethodGet, "http://"+g.AdminAddr()+"/metrics", "").body; !strings.Contains(metrics, `gateway_refused_total{limit="connections"} 1`) {
		t.Error("the refused connection is not counted")
	}
	_ = first.Close()
	for deadline := time.Now().Add(testTimeout); ; <-time.After(5 * time.Millisecond) {
		if _, err := open(); err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatal("the place of a connection that was closed is not free")
		}
	}
}
