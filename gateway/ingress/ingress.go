// Package ingress is the middleware that every call to the gateway passes first: REST, gRPC, gRPC-Web and Connect. It
// identifies the client (client.go) and limits how often a client calls (ratelimit.go, logins.go), how much it does at a
// time (limiter.go), how many bytes it may leave half sent or unread (memory.go) and how many connections there are
// (listener.go). It says which other sites' pages may call (cors.go), and terminates TLS (tls.go). Calls that it accepts go
// to the gRPC server (ingress.go), translated if they are Connect or gRPC-Web (web.go), or to REST.
package ingress

import (
	"context"
	"encoding/base64"
	"log/slog"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"go.opentelemetry.io/otel/metric"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"shop.example/gateway/access"
	loggingv1 "shop.example/gen/shop/logging/v1"
	"shop.example/platform/apierror"
)

// Config says who may call, and how much. Limits that are 0 have the defaults that their fields name.
type Config struct {
	RateLimit RateLimit
	OIDC      access.OIDC
	// OrdersInFlight is how many orders may wait for the broker at a time; a large order counts as up to 11. 2,000 if it is
	// 0.
	OrdersInFlight int64 `env:"ORDERS_IN_FLIGHT"`
	// MaxCalls is how many calls may be open at a time, REST and gRPC together; 3000 if it is 0. One client may have two
	// thirds of them.
	MaxCalls int `env:"SHOP_MAX_CALLS"`
	// MaxConnections is how many connections may be open at a time; 3000 if it is 0. One address may have two thirds of
	// them, or all if the addresses are those of proxies.
	MaxConnections int `env:"SHOP_MAX_CONNECTIONS"`
	// Origins are the other sites whose pages may call, for example https://shop.example.org.
	Origins []string `env:"CORS_ALLOWED_ORIGINS"`
}

// Ingress is the http.Handler of all calls. It is safe for concurrent use.
type Ingress struct {
	GRPC    http.Handler
	web     http.Handler // Connect and gRPC-Web; nil for neither
	REST    restHandler
	Clients ClientIdentifier
	rate    *rateLimiter // of all calls; nil for no limit
	paths   *PathLimits  // nil for none
	logins  *logins      // nil if nobody watches
	origins crossOrigin
	Limits  Limits
	// WriteTimeout is how long a client of a gRPC stream may leave a message unread.
	WriteTimeout time.Duration
}

// restHandler serves a REST call, or responds with refusal if that is not nil.
type restHandler interface {
	ServeCall(w http.ResponseWriter, r *http.Request, h CallMemory, refusal error)
}

// New returns an Ingress that passes gRPC calls on to grpc and all others to rest.
func New(cfg Config, grpc *grpc.Server, rest restHandler, callers ClientIdentifier, l Limits, paths *PathLimits, log *slog.Logger, meter metric.Meter) (*Ingress, error) {
	rate, err := newRateLimiter("default", cfg.RateLimit, meter)
	if err != nil {
		return nil, err
	}
	if rate != nil {
		log.Info("each client has a limit of calls for this gateway alone; with several, set RATE_LIMIT to the calls that it may make of all, divided by their number",
			"calls_a_second", rate.PerSecond, "burst", rate.Burst)
	}
	logins, err := newLogins(meter, log)
	if err != nil {
		return nil, err
	}
	d := &Ingress{
		GRPC: grpc, REST: rest, Clients: callers, rate: rate, paths: paths, logins: logins, Limits: l, WriteTimeout: SlowReaderTimeout,
	}
	if d.web, err = newTranslator(grpc); err != nil {
		return nil, err
	}
	return d, d.origins.allow(cfg.Origins)
}

// ServeHTTP implements http.Handler.
func (d *Ingress) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if d.origins.serve(w, r) {
		return
	}
	call := CallMemory{limiter: d.Limits.Memory, client: d.Clients.Identify(r)}
	var tried *login // nil without a token
	if d.logins != nil && len(r.Header["Authorization"]) > 0 {
		tried = d.logins.of(r.Header["Authorization"], d.Clients.address(r), call.client.subject != "")
	}
	refusal := d.check(w.Header(), r, call.client, tried)
	if refusal == nil {
		defer d.Limits.Calls.Release(call.client, 1)
		if tried != nil {
			r = r.WithContext(withLogin(r.Context(), tried))
		}
	}
	if isGRPC(r) {
		d.serveGRPC(w, r, call, refusal)
		return
	}
	setSecurityHeaders(w.Header(), r.TLS != nil)
	if d.web != nil && isWeb(r) {
		if slices.Contains(webTypes, r.Header.Get("Content-Type")) {
			d.serveWeb(w, r, call, refusal)
			return
		}
		if refusal == nil {
			w.Header().Set("Accept", strings.Join(webTypes, ", "))
			refusal = ErrWebType
		}
	}
	d.REST.ServeCall(w, r, call, refusal)
}

// check returns an error if the call is to be refused. A call that is accepted counts as open from then on. header is that
// of the response; tried is nil without a token.
func (d *Ingress) check(header http.Header, r *http.Request, from Client, tried *login) error {
	if d.rate != nil {
		if err := d.rate.allow(header, r, from); err != nil {
			return err
		}
	}
	if d.paths != nil {
		if l := d.paths.byPath[r.URL.Path]; l != nil {
			if err := l.allow(header, r, from); err != nil {
				return err
			}
		}
	}
	if tried != nil {
		if err := tried.check(r.Context()); err != nil {
			return err
		}
	}
	if err := d.origins.protection.Check(r); err != nil && !isGRPC(r) { // a browser sends gRPC only after a preflight, which is refused
		return apierror.New(codes.PermissionDenied, "CROSS_ORIGIN", "a page of another site may not make this call").WithCause(err)
	}
	if e := d.Limits.Calls.Acquire(from, 1); e != nil {
		return tooManyCalls(e)
	}
	return nil
}

// serveGRPC passes a call on within the server's time limits: the request must arrive within readTimeout, and the call must
// end within writeTimeout. Streams have no such limits; they end when the client leaves a message unread for too long.
func (d *Ingress) serveGRPC(w http.ResponseWriter, r *http.Request, h CallMemory, refusal error) {
	if refusal == nil && r.URL.Path == healthv1.Health_Watch_FullMethodName { // other streams are counted when they are forwarded, after access is checked
		if e := d.Limits.Streams.Acquire(h.client, 1); e != nil {
			refusal = TooManyStreams(e)
		} else {
			defer d.Limits.Streams.Release(h.client, 1)
		}
	}
	if refusal != nil {
		refuseGRPC(w, refusal)
		return
	}
	d.serveWithin(w, r, h, func(call *grpcCall, r *http.Request) {
		d.GRPC.ServeHTTP(call, r)
		completeTrailers(w.Header(), call.request.Refusal)
	})
}

// refuseGRPC responds with a status and no message: the trailers of such a response are its headers.
func refuseGRPC(w http.ResponseWriter, refusal error) {
	w.Header().Set("Content-Type", "application/grpc")
	setTrailers(w.Header(), apierror.Status(refusal))
}

// serveWithin serves a call of any kind of gRPC, and limits the memory that it takes and how long its client may leave data
// unread.
func (d *Ingress) serveWithin(w http.ResponseWriter, r *http.Request, h CallMemory, serve func(call *grpcCall, r *http.Request)) {
	call := &grpcCall{ResponseWriter: w, memory: h}
	defer call.memory.Release()
	call.request = RequestReader{ReadCloser: r.Body, Held: &call.memory, max: MaxBody + grpcPrefix, keepsBuffers: true}
	r.Body = &call.request
	switch r.URL.Path {
	case loggingv1.EventLogService_StreamEvents_FullMethodName, healthv1.Health_Watch_FullMethodName:
		ctx, cancel := context.WithCancel(WithClient(r.Context(), h.client))
		defer cancel()
		call.clearDeadlines(d.WriteTimeout, cancel)
		r = r.WithContext(ctx)
	}
	serve(call, r)
	if call.failed {
		panic(http.ErrAbortHandler) //nolint:forbidigo // the client must see that the response is incomplete
	}
}

// grpcPrefix is the length of the header of each gRPC message, in bytes.
const grpcPrefix = 5

// grpcCall is the response to a gRPC call, together with its request.
type grpcCall struct {
	http.ResponseWriter
	request RequestReader
	memory  CallMemory
	failed  bool

	// Of a stream: a client that does not read a message in time is cut off. gRPC itself would wait as long as the connection
	// lasts.
	control      *http.ResponseController // nil for others
	writeTimeout time.Duration
	cancel       context.CancelFunc // gRPC ignores the errors of writes
	writing      bool
}

// clearDeadlines removes the server's time limits from a stream: each of its messages has one instead.
func (c *grpcCall) clearDeadlines(timeout time.Duration, cancel context.CancelFunc) {
	c.control, c.writeTimeout, c.cancel = http.NewResponseController(c.ResponseWriter), timeout, cancel
	_ = c.control.SetWriteDeadline(time.Time{})
}

// Write writes a part of a message.
func (c *grpcCall) Write(part []byte) (int, error) {
	c.begin()
	n, err := c.memory.Write(c.ResponseWriter, part, len(part))
	if err != nil {
		c.fail()
	}
	return n, err
}

// Flush ends a message. Until the next one begins there is no deadline.
func (c *grpcCall) Flush() {
	if c.control == nil {
		c.ResponseWriter.(http.Flusher).Flush()
		return
	}
	c.begin()
	if err := c.control.Flush(); err != nil {
		c.fail()
		return
	}
	c.writing = false
	_ = c.control.SetWriteDeadline(time.Time{})
}

func (c *grpcCall) begin() {
	if c.control != nil && !c.writing {
		c.writing = true
		_ = c.control.SetWriteDeadline(time.Now().Add(c.writeTimeout))
	}
}

func (c *grpcCall) fail() {
	c.failed = true
	if c.cancel != nil {
		c.cancel()
	}
}

// isGRPC reports whether a call is a gRPC call. All others are served as REST, so that a browser gets an error that it can
// show.
func isGRPC(r *http.Request) bool {
	kind, isGRPC := strings.CutPrefix(r.Header.Get("Content-Type"), "application/grpc")
	return isGRPC && r.ProtoMajor == 2 && r.Method == http.MethodPost && (kind == "" || kind[0] == '+' || kind[0] == ';')
}

const (
	grpcStatus  = "Grpc-Status"
	grpcMessage = "Grpc-Message"
	grpcDetails = "Grpc-Status-Details-Bin"
)

// decodeErrorPrefix begins the text of the gRPC library's error INTERNAL about a request that it cannot decode.
const decodeErrorPrefix = "grpc: failed to unmarshal the received message"

// completeTrailers completes errors that the gRPC library itself responds with, which no interceptor sees: it adds an
// ErrorInfo and removes internal text. The library responds by itself if a request is too large or cannot be decoded, and
// if a method does not exist. unread is why the request was not read to its end; nil if it was.
func completeTrailers(trailer http.Header, unread error) {
	code, err := strconv.ParseUint(trailer.Get(grpcStatus), 10, 32)
	if err != nil || code == uint64(codes.OK) || trailer.Get(grpcDetails) != "" {
		return
	}
	message, err := url.PathUnescape(trailer.Get(grpcMessage))
	if err != nil {
		message = ""
	}
	refusal := status.Error(codes.Code(code), message)
	switch {
	case unread != nil:
		refusal = unread
	case strings.HasPrefix(message, decodeErrorPrefix): // the library exports no error to compare with
		refusal = apierror.New(codes.InvalidArgument, "INVALID_PROTOBUF", "the request is not a message of the type that the call takes")
	}
	setTrailers(trailer, apierror.Status(refusal))
}

// setTrailers writes a status the way gRPC does.
func setTrailers(trailer http.Header, s *status.Status) {
	trailer.Set(grpcStatus, strconv.FormatUint(uint64(s.Code()), 10))
	trailer.Set(grpcMessage, strings.ReplaceAll(url.PathEscape(s.Message()), "%20", " "))
	if details, err := proto.Marshal(s.Proto()); err == nil {
		trailer.Set(grpcDetails, base64.RawStdEncoding.EncodeToString(details))
	}
}
