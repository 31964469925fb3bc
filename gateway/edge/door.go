package edge

import (
	"context"
	"encoding/base64"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"google.golang.org/grpc/codes"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"shop.example/platform/apierror"
	"shop.example/platform/telemetry"
)

// DoorConfig says who comes in, and how many.
type DoorConfig struct {
	RateLimit RateLimit
	OIDC      OIDC
	// OrdersInFlight is how many orders may wait for the broker at a time, large ones counting as up to 11; 2000 where it is 0.
	OrdersInFlight int64 `env:"ORDERS_IN_FLIGHT"`
	// MaxCalls is how many calls may be open at a time, REST and gRPC together; 3000 where it is 0. One client may have two
	// thirds of them.
	MaxCalls int `env:"SHOP_MAX_CALLS"`
	// MaxConnections is how many connections may be open at a time; 3000 where it is 0. One address may have two thirds of
	// them, or all where the addresses are those of proxies.
	MaxConnections int `env:"SHOP_MAX_CONNECTIONS"`
}

// door is what every call comes through, whichever API it is for. It is an http.Handler.
type door struct {
	grpc     http.Handler
	rest     *rest
	callers  callers
	rate     *rateLimiter // of all calls; nil for no limit
	listings *rateLimiter // of ListInventory; nil for no limit
	logins   *logins      // nil if nobody watches
	limits   limits
	// patience is how long a client of a gRPC stream may leave a message unread.
	patience time.Duration
}

func newDoor(cfg DoorConfig, a *api, rest *rest, l limits, t *telemetry.Telemetry) (*door, error) {
	meter := t.Meter.Meter("shop.example/gateway/edge")
	rate, err := newRateLimiter(cfg.RateLimit, meter)
	if err != nil {
		return nil, err
	}
	listings, err := newRateLimiter(listingRate, meter)
	if err != nil {
		return nil, err
	}
	logins, err := newLogins(meter, t.Logger)
	if err != nil {
		return nil, err
	}
	return &door{
		grpc: a.grpc, rest: rest, callers: rest.sse.callers, rate: rate, listings: listings, logins: logins, limits: l, patience: readerPatience,
	}, nil
}

// ServeHTTP implements http.Handler.
func (d *door) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	call := held{memory: d.limits.memory, from: d.callers.of(r)}
	refusal := d.admit(r, call.from)
	if refusal == nil {
		defer d.limits.calls.release(call.from, 1)
		if d.logins != nil && len(r.Header["Authorization"]) > 0 {
			r = r.WithContext(withLogin(r.Context(), &login{d.logins, call.from.subject, d.callers.address(r)}))
		}
	}
	if isGRPC(r) {
		d.serveGRPC(w, r, call, refusal)
		return
	}
	setSecurityHeaders(w.Header(), r.TLS != nil)
	d.rest.serve(w, r, call, refusal)
}

// otherSites tells what a browser sends because a page of another site told it to, by its Sec-Fetch-Site and Origin.
var otherSites http.CrossOriginProtection

// admit returns an error where the call does not come in. One that comes in counts as open.
func (d *door) admit(r *http.Request, from caller) error {
	if d.rate != nil {
		if err := d.rate.check(r, from); err != nil {
			return err
		}
	}
	if d.listings != nil && isListing(r.URL.Path) {
		if err := d.listings.check(r, from); err != nil {
			return err
		}
	}
	if d.logins != nil && len(r.Header["Authorization"]) > 0 {
		if err := d.logins.check(r.Context(), from.subject, d.callers.address(r)); err != nil {
			return err
		}
	}
	if err := otherSites.Check(r); err != nil && !isGRPC(r) { // which no browser sends before it has asked
		return apierror.New(codes.PermissionDenied, "CROSS_ORIGIN", "a page of another site may not make this call").WithCause(err)
	}
	if e := d.limits.calls.acquire(from, 1); e != nil {
		return tooManyCalls(e)
	}
	return nil
}

// serveGRPC leaves a call to gRPC within the server's limits: a request has to arrive within readTimeout, and the call to
// end within writeTimeout. What lasts longer is bounded by what its client leaves unread.
func (d *door) serveGRPC(w http.ResponseWriter, r *http.Request, h held, refusal error) {
	if refusal == nil && r.URL.Path == healthv1.Health_Watch_FullMethodName { // others take their place when access is checked
		if e := d.limits.streams.acquire(h.from, 1); e != nil {
			refusal = tooManyStreams(e)
		} else {
			defer d.limits.streams.release(h.from, 1)
		}
	}
	if refusal != nil {
		w.Header().Set("Content-Type", "application/grpc")
		setTrailers(w.Header(), apierror.Status(refusal)) // an answer without messages has them as its headers
		return
	}
	call := &grpcCall{ResponseWriter: w, held: h}
	defer call.held.release()
	call.request = requestReader{ReadCloser: r.Body, held: &call.held, max: maxBody + grpcPrefix, keepsBuffers: true}
	r.Body = &call.request
	switch r.URL.Path {
	case streamEvents, healthv1.Health_Watch_FullMethodName:
		ctx, cancel := context.WithCancel(withCaller(r.Context(), h.from))
		defer cancel()
		call.clearDeadline(d.patience, cancel)
		r = r.WithContext(ctx)
	}
	d.grpc.ServeHTTP(call, r)
	if call.failed {
		panic(http.ErrAbortHandler) //nolint:forbidigo // what the client has so far must not look whole
	}
	completeTrailers(w.Header(), call.request.refusal)
}

// grpcPrefix is what stands before a message of gRPC, in bytes.
const grpcPrefix = 5

// grpcCall is the answer to a gRPC call, with its request.
type grpcCall struct {
	http.ResponseWriter
	request requestReader
	held    held
	failed  bool

	// Of a call that lasts: a client that does not take a message in time has lost it. gRPC itself would wait for as long as
	// the connection lasts.
	control  *http.ResponseController // nil for others
	patience time.Duration
	cancel   context.CancelFunc // gRPC does not look at what becomes of a write
	writing  bool
}

// clearDeadline takes the server's limit off a call.
func (c *grpcCall) clearDeadline(patience time.Duration, cancel context.CancelFunc) {
	c.control, c.patience, c.cancel = http.NewResponseController(c.ResponseWriter), patience, cancel
	_ = c.control.SetWriteDeadline(time.Time{})
}

// Write writes a part of a message.
func (c *grpcCall) Write(part []byte) (int, error) {
	c.begin()
	n, err := c.held.write(c.ResponseWriter, part)
	if err != nil {
		c.fail()
	}
	return n, err
}

// Flush ends a message. Until the next one comes the client may take its time.
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
		_ = c.control.SetWriteDeadline(time.Now().Add(c.patience))
	}
}

func (c *grpcCall) fail() {
	c.failed = true
	if c.cancel != nil {
		c.cancel()
	}
}

// isGRPC tells gRPC's calls from those of REST and of browsers, which get an error that they can read.
func isGRPC(r *http.Request) bool {
	kind, isGRPC := strings.CutPrefix(r.Header.Get("Content-Type"), "application/grpc")
	return isGRPC && r.ProtoMajor == 2 && r.Method == http.MethodPost && (kind == "" || kind[0] == '+' || kind[0] == ';')
}

const (
	grpcStatus  = "Grpc-Status"
	grpcMessage = "Grpc-Message"
	grpcDetails = "Grpc-Status-Details-Bin"
)

// unreadableMessage begins what the gRPC library says of a request that it cannot decode, under the code INTERNAL.
const unreadableMessage = "grpc: failed to unmarshal the received message"

// completeTrailers gives a refusal of the gRPC library itself, which no interceptor sees, what every other has: an
// ErrorInfo, and no text of our inside. The library answers by itself where the request is too large or cannot be read,
// and where the method is not known. unread is why the request was not read to its end, nil where it was.
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
	case strings.HasPrefix(message, unreadableMessage): // there is no error of the library's to compare with
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

// The headers of an answer that no browser is to show, keep or let another site read. Calls from other sites' pages
// (CORS) are not allowed: no answer has an Access-Control header. The slices are shared and never changed.
var (
	nosniff        = []string{"nosniff"}
	noReferrer     = []string{"no-referrer"}
	noContent      = []string{"default-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"}
	denyFrames     = []string{"DENY"}
	sameOrigin     = []string{"same-origin"}
	noStore        = []string{"no-store"}
	onlyTLSForYear = []string{"max-age=31536000"}
)

// setSecurityHeaders sets the headers of an API answer. Orders hold personal data, and what is in stock changes: nothing
// may be stored. A page that is for browsers says so with allowPage.
func setSecurityHeaders(header http.Header, overTLS bool) {
	header["X-Content-Type-Options"] = nosniff
	header["Referrer-Policy"] = noReferrer
	header["Content-Security-Policy"] = noContent
	header["X-Frame-Options"] = denyFrames
	header["Cross-Origin-Opener-Policy"] = sameOrigin
	header["Cross-Origin-Resource-Policy"] = sameOrigin
	header["Cache-Control"] = noStore
	if overTLS {
		header["Strict-Transport-Security"] = onlyTLSForYear
	}
}

// allowPage lets a browser show an answer with what the policy's directives allow it to load, "script-src 'self'" for
// example, and keep it as long as it asks each time whether it is still good. Whatever is not named stays forbidden.
func allowPage(w http.ResponseWriter, directives ...string) {
	policy := append(directives[:len(directives):len(directives)], noContent[0])
	w.Header().Set("Content-Security-Policy", strings.Join(policy, "; "))
	w.Header().Set("Cache-Control", "no-cache")
}
