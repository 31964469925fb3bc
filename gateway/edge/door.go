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
}

// door is what every call comes through, whichever API it is for. It is an http.Handler.
type door struct {
	grpc    http.Handler
	rest    *rest
	callers callers
	limits  *rateLimiter // nil for no limit
	// patience is how long a client of a gRPC stream may leave a message unread.
	patience time.Duration
}

func newDoor(cfg DoorConfig, a *api, rest *rest, t *telemetry.Telemetry) (*door, error) {
	limits, err := newRateLimiter(cfg.RateLimit, t.Meter.Meter("shop.example/gateway/edge"))
	if err != nil {
		return nil, err
	}
	return &door{grpc: a.grpc, rest: rest, callers: rest.sse.callers, limits: limits, patience: readerPatience}, nil
}

// ServeHTTP implements http.Handler.
func (d *door) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	var refusal error
	if d.limits != nil {
		refusal = d.limits.check(r, d.callers.of(r))
	}
	if isGRPC(r) {
		d.serveGRPC(w, r, refusal)
		return
	}
	setSecurityHeaders(w.Header(), r.TLS != nil)
	if refusal != nil {
		d.rest.refuse(w, r, refusal)
		return
	}
	d.rest.ServeHTTP(w, r)
}

func (d *door) serveGRPC(w http.ResponseWriter, r *http.Request, refusal error) {
	if refusal != nil {
		w.Header().Set("Content-Type", "application/grpc")
		setTrailers(w.Header(), apierror.Status(refusal)) // an answer without messages has them as its headers
		return
	}
	unbounded(w)
	if r.URL.Path == streamEvents {
		d.serveStream(w, r)
	} else {
		d.grpc.ServeHTTP(w, r)
	}
	completeTrailers(w.Header())
}

func (d *door) serveStream(w http.ResponseWriter, r *http.Request) {
	ctx, cancel := context.WithCancel(withCaller(r.Context(), d.callers.of(r)))
	defer cancel()
	messages := &messageWriter{ResponseWriter: w, control: http.NewResponseController(w), patience: d.patience, cancel: cancel}
	d.grpc.ServeHTTP(messages, r.WithContext(ctx))
}

// messageWriter is the answer to a gRPC stream. A client that does not take a message in time has lost the stream: gRPC
// itself would wait for as long as the connection lasts.
type messageWriter struct {
	http.ResponseWriter
	control  *http.ResponseController
	patience time.Duration
	cancel   context.CancelFunc // gRPC does not look at what becomes of a write
	writing  bool
}

// Write writes a part of a message.
func (w *messageWriter) Write(part []byte) (int, error) {
	w.begin()
	n, err := w.ResponseWriter.Write(part)
	if err != nil {
		w.cancel()
	}
	return n, err
}

// Flush ends a message. Until the next one comes the client may take its time.
func (w *messageWriter) Flush() {
	w.begin()
	if err := w.control.Flush(); err != nil {
		w.cancel()
		return
	}
	w.writing = false
	_ = w.control.SetWriteDeadline(time.Time{})
}

func (w *messageWriter) begin() {
	if !w.writing {
		w.writing = true
		_ = w.control.SetWriteDeadline(time.Now().Add(w.patience))
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
// and where the method is not known.
func completeTrailers(trailer http.Header) {
	code, err := strconv.ParseUint(trailer.Get(grpcStatus), 10, 32)
	if err != nil || code == uint64(codes.OK) || trailer.Get(grpcDetails) != "" {
		return
	}
	message, err := url.PathUnescape(trailer.Get(grpcMessage))
	if err != nil {
		message = ""
	}
	refusal := status.Error(codes.Code(code), message)
	if strings.HasPrefix(message, unreadableMessage) { // there is no error of the library's to compare with
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
