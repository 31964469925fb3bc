// Package rest serves gRPC services as REST, as their contracts say. grpc-gateway does the transcoding (rest.go, codec.go).
// This package adds what clients of a public API expect: errors that name the field and what it must be (errors.go,
// decode_errors.go), conditional requests (conditional.go), documents (docs.go, index.go), and traces and metrics by route
// (observe.go). Calls reach the handlers through a connection within the process (package inprocess).
package rest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"mime"
	"net/http"
	"net/url"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"sync"

	"github.com/grpc-ecosystem/grpc-gateway/v2/protoc-gen-openapiv2/options"
	"github.com/grpc-ecosystem/grpc-gateway/v2/runtime"
	"google.golang.org/genproto/googleapis/api/annotations"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"

	"shop.example/domain/idempotency"
	"shop.example/domain/orderstate"
	"shop.example/gateway/ingress"
	"shop.example/gateway/intake"
	checkoutv1 "shop.example/gen/shop/checkout/v1"
	orderv1 "shop.example/gen/shop/order/v1"
	"shop.example/platform/apierror"
	"shop.example/platform/telemetry"
)

// methods are the HTTP methods.
var methods = []string{
	http.MethodDelete, http.MethodGet, http.MethodHead, http.MethodOptions, http.MethodPatch, http.MethodPost, http.MethodPut,
}

// Server serves the REST API. Everything is added before the first call; calls may come concurrently.
type Server struct {
	conn     grpc.ClientConnInterface // to the handlers
	mux      *runtime.ServeMux
	routes   map[string]*route // by method and path template: "POST /v1/orders"
	texts    map[protoreflect.FullName]textAnswer
	observer *observer
}

// route is one route of the API.
type route struct {
	path    string                   // the template: "/v1/orders/{order_id}:cancel"
	request protoreflect.MessageType // nil for a page or a demo handler
	body    string                   // the field that the body is; "*" for the request itself, "" for none
	bound   []string                 // the fields that are in the path
	keyed   bool                     // an Idempotency-Key has an effect
}

// New returns a server that makes calls on conn. It serves the API's documents; services are added with Add.
func New(conn grpc.ClientConnInterface, t *telemetry.Telemetry) (*Server, error) {
	o, err := newObserver(t)
	if err != nil {
		return nil, err
	}
	s := &Server{conn: conditionalConn{conn}, observer: o, routes: map[string]*route{}, texts: map[protoreflect.FullName]textAnswer{}}
	s.mux = runtime.NewServeMux(
		runtime.WithMarshalerOption(runtime.MIMEWildcard, newCodec()),
		runtime.WithMiddlewares(s.validate),
		runtime.WithForwardResponseOption(s.setHeaders),
		runtime.WithForwardResponseRewriter(s.rewrite),
		runtime.WithErrorHandler(s.writeError),
		runtime.WithRoutingErrorHandler(s.writeRoutingError),
		runtime.WithIncomingHeaderMatcher(incomingHeader),
		runtime.WithOutgoingHeaderMatcher(outgoingHeader),
		runtime.WithOutgoingTrailerMatcher(noHeader),
		runtime.WithDisablePathLengthFallback(),
		runtime.WithDisableHTTPMethodOverride(),
	)
	if err := errors.Join(s.HandlePath(http.MethodGet, "/", s.serveIndex), handleDocs(s.mux)); err != nil {
		return nil, fmt.Errorf("registering the API's documents: %w", err)
	}
	return s, nil
}

// Add serves a gRPC service over REST, as its contract says. client and register are the functions that are generated for
// the service. The router tries the routes that were added last first, so the service with the most calls should be added
// last.
func Add[C any](
	s *Server, desc *grpc.ServiceDesc, client func(grpc.ClientConnInterface) C, register func(context.Context, *runtime.ServeMux, C) error,
) error {
	d, err := protoregistry.GlobalFiles.FindDescriptorByName(protoreflect.FullName(desc.ServiceName))
	if err != nil {
		return fmt.Errorf("contract of %s: %w", desc.ServiceName, err)
	}
	if err := s.addRoutes(d.(protoreflect.ServiceDescriptor)); err != nil {
		return err
	}
	if err := register(context.Background(), s.mux, client(s.conn)); err != nil {
		return fmt.Errorf("serving %s over REST: %w", desc.ServiceName, err)
	}
	return nil
}

// HandlePath adds a route that no contract describes, such as a page. path is a template as in the contracts.
func (s *Server) HandlePath(method, path string, handler runtime.HandlerFunc) error {
	if err := s.mux.HandlePath(method, path, handler); err != nil {
		return fmt.Errorf("serving %s %s: %w", method, path, err)
	}
	return nil
}

// HandleStream makes handler serve the routes of the streaming method that has this request type, in place of grpc-gateway.
// handler gets the values of the path's fields. It may return an error only if it has not written a response.
func (s *Server) HandleStream(request protoreflect.MessageType, handler func(*Response, *http.Request, map[string]string) error) error {
	for _, to := range s.routes {
		if to.request != request {
			continue
		}
		err := s.HandlePath(http.MethodGet, to.path, func(w http.ResponseWriter, r *http.Request, inPath map[string]string) {
			if err := handler(w.(*Response), r, inPath); err != nil {
				s.writeError(r.Context(), nil, nil, w, r, err)
			}
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// CallContext returns the context for calling method on behalf of r, with r's headers as metadata.
func (s *Server) CallContext(r *http.Request, method string) (context.Context, error) {
	return runtime.AnnotateContext(r.Context(), s.mux, r, method)
}

// textAnswer returns the plain text to send instead of a message, and the path of what was created.
type textAnswer func(answer proto.Message) (text, location string)

// AnswerInText makes responses of the type of of be sent as plain text.
func (s *Server) AnswerInText(of proto.Message, text textAnswer) {
	s.texts[of.ProtoReflect().Descriptor().FullName()] = text
}

// ServeCall serves a call, or responds with refusal if that is not nil. h counts the call's memory.
func (s *Server) ServeCall(w http.ResponseWriter, r *http.Request, h ingress.CallMemory, refusal error) {
	s.observer.serve(w, r, h, func(w *Response, r *http.Request) {
		if errors.Is(refusal, ingress.ErrWebType) {
			refusal = httpError{http.StatusUnsupportedMediaType, refusal}
		}
		if refusal != nil {
			s.writeError(r.Context(), nil, nil, w, r, refusal)
			return
		}
		defer s.recoverPanic(w, r)
		w.Head = r.Method == http.MethodHead
		if slices.ContainsFunc(r.Header["Authorization"], isUnprintable) {
			r.Header["Authorization"] = noToken
		}
		r.Method = routingMethod(r.Method) // of this copy; the server leaves the body of a response to HEAD out
		s.mux.ServeHTTP(w, r)
	})
}

// noToken is never a valid Authorization. It takes the place of values that grpc-gateway would drop: their sender would be an
// anonymous caller then, and of two values the other one would count. It is shared and must not be changed.
var noToken = []string{"unprintable"}

// isUnprintable reports whether a value cannot be metadata of gRPC.
func isUnprintable(value string) bool {
	return strings.ContainsFunc(value, func(r rune) bool { return r < ' ' || r > '~' })
}

// recoverPanic responds for code that panicked, and aborts a call whose response could not be written. Panics in gRPC
// handlers do not get here: the interceptor recovers them.
func (s *Server) recoverPanic(w *Response, r *http.Request) {
	panicked := recover()
	if panicked == nil && !w.broken {
		return
	}
	if panicked == nil {
		panic(http.ErrAbortHandler) //nolint:forbidigo // the client must see that the response is incomplete
	}
	s.observer.log.ErrorContext(r.Context(), "a REST call panicked", "error", fmt.Sprint(panicked), "stack", string(debug.Stack()))
	if w.status != 0 {
		panic(http.ErrAbortHandler) //nolint:forbidigo // the client must see that the response is incomplete
	}
	s.writeError(r.Context(), nil, nil, w, r, errors.New("panicked"))
}

// routingMethod returns the method by which a call is routed: HEAD is routed as GET.
func routingMethod(method string) string {
	if method == http.MethodHead {
		return http.MethodGet
	}
	return method
}

// validate is the middleware of calls that have a route. It checks what grpc-gateway does not check or explains badly:
// parameters must be known and valid, and the body must be JSON and not too large.
func (s *Server) validate(next runtime.HandlerFunc) runtime.HandlerFunc {
	var once sync.Once
	var to *route
	var custom []string
	return func(w http.ResponseWriter, r *http.Request, inPath map[string]string) {
		once.Do(func() {
			to = s.routeOf(r)
			custom = s.customMethods(to)
		})
		isCustom := slices.ContainsFunc(custom, func(verb string) bool { return strings.HasSuffix(r.URL.Path, verb) })
		if p, ok := w.(*routeProbe); ok {
			p.routed = !isCustom
			return
		}
		if isCustom {
			s.writeRoutingError(r.Context(), nil, nil, w, r, http.StatusMethodNotAllowed)
			return
		}
		w.(*Response).route = to
		err := to.checkParameters(r, inPath)
		if err == nil {
			err = to.readBody(w, r)
		}
		if err == nil {
			r, err = withConditions(r)
		}
		if err != nil {
			s.writeError(r.Context(), nil, nil, w, r, err)
			return
		}
		next(w, r, inPath)
	}
}

// routeOf returns the route of a call that has been matched with its pattern.
func (s *Server) routeOf(r *http.Request) *route {
	pattern, _ := runtime.HTTPPattern(r.Context())
	path := strings.ReplaceAll(pattern.String(), "=*}", "}")
	if to, ok := s.routes[r.Method+" "+path]; ok {
		return to
	}
	return &route{path: path} // a page
}

// customMethods are the suffixes of a resource's path, for example ":cancel", that make it the path of a custom method.
// With an HTTP method of the resource itself, such as GET, the router takes the suffix for a part of the id.
func (s *Server) customMethods(resource *route) []string {
	var endings []string
	for _, to := range s.routes {
		if ending, ok := strings.CutPrefix(to.path, resource.path+":"); ok {
			endings = append(endings, ":"+ending)
		}
	}
	return endings
}

// addRoutes adds the routes of a service's methods, from its contract.
func (s *Server) addRoutes(sd protoreflect.ServiceDescriptor) error {
	for i := range sd.Methods().Len() {
		md := sd.Methods().Get(i)
		rule, _ := proto.GetExtension(md.Options(), annotations.E_Http).(*annotations.HttpRule)
		if rule == nil {
			continue // not callable over REST
		}
		request, err := protoregistry.GlobalTypes.FindMessageByName(md.Input().FullName())
		if err != nil {
			return fmt.Errorf("request of %s: %w", md.FullName(), err)
		}
		for _, rule := range slices.Concat([]*annotations.HttpRule{rule}, rule.GetAdditionalBindings()) {
			method, path := methodAndPath(rule)
			s.routes[method+" "+path] = &route{path: path, request: request, body: rule.GetBody(), bound: fieldsIn(path), keyed: takesKey(md)}
		}
	}
	return nil
}

// takesKey reports whether the contract has the header Idempotency-Key for a method.
func takesKey(md protoreflect.MethodDescriptor) bool {
	operation, _ := proto.GetExtension(md.Options(), options.E_Openapiv2Operation).(*options.Operation)
	return slices.ContainsFunc(operation.GetParameters().GetHeaders(), func(h *options.HeaderParameter) bool { return h.GetName() == "Idempotency-Key" })
}

func methodAndPath(rule *annotations.HttpRule) (method, path string) {
	switch p := rule.GetPattern().(type) {
	case *annotations.HttpRule_Get:
		return http.MethodGet, p.Get
	case *annotations.HttpRule_Post:
		return http.MethodPost, p.Post
	case *annotations.HttpRule_Put:
		return http.MethodPut, p.Put
	case *annotations.HttpRule_Patch:
		return http.MethodPatch, p.Patch
	case *annotations.HttpRule_Delete:
		return http.MethodDelete, p.Delete
	}
	return "", ""
}

// fieldsIn lists the fields in a path template.
func fieldsIn(path string) []string {
	var fields []string
	for _, part := range strings.Split(path, "{")[1:] {
		field, _, _ := strings.Cut(part, "}")
		fields = append(fields, field)
	}
	return fields
}

// checkParameters returns an error if a header, the path or the query cannot be decoded.
func (t *route) checkParameters(r *http.Request, inPath map[string]string) error {
	if t.keyed {
		for _, key := range r.Header["Idempotency-Key"] {
			if err := intake.CheckKey(key); err != nil { // grpc-gateway drops some invalid keys, and the client would order twice
				return err
			}
		}
	}
	if t.request == nil {
		return nil
	}
	if given := r.Header.Get("Grpc-Timeout"); given != "" && !isTimeout(given) {
		return apierror.InvalidArgument(apierror.Violation{
			Field: "Grpc-Timeout", Description: "must be a whole number with one of the units H, M, S, m, u and n: 500m for half a second",
		})
	}
	if len(inPath) == 0 && r.URL.RawQuery == "" {
		return nil
	}
	path := url.Values{}
	for name, value := range inPath {
		path.Set(name, value)
	}
	found := parameterErrors(t.request, path, func(string) bool { return false })
	query, err := url.ParseQuery(r.URL.RawQuery)
	if err != nil {
		return apierror.New(codes.InvalidArgument, "INVALID_QUERY", "the query is not well encoded")
	}
	found = append(found, parameterErrors(t.request, query, t.isBound)...)
	if len(found) > 0 {
		return apierror.InvalidArgument(found...)
	}
	return nil
}

// isTimeout reports whether grpc-gateway can read a Grpc-Timeout: its own error would be taken for one about the body.
func isTimeout(given string) bool {
	unit := len(given) - 1
	_, err := strconv.ParseUint(given[:unit], 10, 64)
	return err == nil && strings.Contains("HMSmun", given[unit:])
}

// isBound reports whether a field is set by the path or the body, so that the query must not set it.
func (t *route) isBound(field string) bool {
	return t.body == "*" || t.body != "" && strings.HasPrefix(field+".", t.body+".") || slices.Contains(t.bound, field)
}

// readBody reads the body if the route has one, and keeps it for errors about it.
func (t *route) readBody(w http.ResponseWriter, r *http.Request) error {
	r.Body = http.MaxBytesReader(w, r.Body, ingress.MaxBody)
	if t.body == "" {
		return nil
	}
	if err := checkMediaType(w, r); err != nil {
		return err
	}
	var data bytes.Buffer
	if r.ContentLength > 0 { // a hint only: the client may lie
		data.Grow(int(min(r.ContentLength, ingress.FreeRequest)) + bytes.MinRead)
	}
	call := w.(*Response)
	call.body = ingress.RequestReader{ReadCloser: r.Body, Held: &call.memory}
	_, err := data.ReadFrom(&call.body)
	var large *http.MaxBytesError
	switch {
	case errors.Is(call.body.Refusal, ingress.ErrRequestTimeout):
		return httpError{http.StatusRequestTimeout, call.body.Refusal}
	case call.body.Refusal != nil:
		return call.body.Refusal
	case errors.As(err, &large):
		return httpError{http.StatusRequestEntityTooLarge, apierror.New(codes.InvalidArgument, "BODY_TOO_LARGE",
			"the body is larger than %d bytes", ingress.MaxBody)}
	case err != nil:
		return apierror.New(codes.InvalidArgument, "INCOMPLETE_BODY", "the body is incomplete").WithCause(err)
	}
	r.Body = &requestBody{Reader: *bytes.NewReader(data.Bytes()), data: data.Bytes()}
	if r.Method == http.MethodPatch {
		return nullErrors(t.bodyType(), data.Bytes())
	}
	return nil
}

const jsonType = "application/json"

// checkMediaType returns an error if the headers say that the body is not JSON in UTF-8. Without a Content-Type the body
// counts as JSON, as in the demo; without a body the type does not matter.
func checkMediaType(w http.ResponseWriter, r *http.Request) error {
	given := r.Header.Get("Content-Type")
	coding := r.Header.Get("Content-Encoding")
	plain := coding == "" || strings.EqualFold(coding, "identity")
	if r.ContentLength == 0 || plain && (given == "" || given == jsonType || isJSON(given)) {
		return nil
	}
	w.Header().Set("Accept", jsonType)
	if !plain {
		w.Header().Set("Accept-Encoding", "identity")
	}
	return httpError{http.StatusUnsupportedMediaType, apierror.New(codes.InvalidArgument, "UNSUPPORTED_MEDIA_TYPE",
		"the body must be JSON in UTF-8, not compressed: send Content-Type: application/json")}
}

func isJSON(contentType string) bool {
	kind, parameters, err := mime.ParseMediaType(contentType)
	charset, given := parameters["charset"]
	return err == nil && kind == jsonType && (!given || strings.EqualFold(charset, "utf-8"))
}

// requestBody is a body that has been read.
type requestBody struct {
	bytes.Reader
	data []byte
}

func (*requestBody) Close() error { return nil }

// decisionDelay is the Retry-After of a pending order, in seconds. It is shared and must not be changed.
var decisionDelay = []string{"1"}

// setHeaders sets status and headers of a response.
func (s *Server) setHeaders(_ context.Context, w http.ResponseWriter, answer proto.Message) error {
	if tag := tagOf(answer.ProtoReflect().Interface()); tag != "" {
		w.Header().Set("ETag", quoted(tag))
	}
	if m, ok := answer.ProtoReflect().Interface().(*checkoutv1.PlaceOrderResponse); ok {
		w.Header().Set("Location", OrderPath(m.GetOrder().GetId()))
		if !orderstate.IsDecided(m.GetOrder().GetState()) {
			w.Header()["Retry-After"] = decisionDelay
			w.WriteHeader(http.StatusAccepted)
		}
		return nil
	}
	if m, ok := answer.ProtoReflect().Interface().(*orderv1.GetOrderResponse); ok && m.GetOrder().GetState() == orderv1.Order_PENDING {
		w.Header()["Retry-After"] = decisionDelay
	}
	if text, ok := s.texts[answer.ProtoReflect().Descriptor().FullName()]; ok {
		_, location := text(answer)
		w.Header().Set("Location", location)
		w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	}
	return nil
}

// rewrite replaces a response that is sent as text by that text.
func (s *Server) rewrite(_ context.Context, answer proto.Message) (any, error) {
	if text, ok := s.texts[answer.ProtoReflect().Descriptor().FullName()]; ok {
		body, _ := text(answer)
		return plainText(body), nil
	}
	return answer, nil
}

// OrderPath returns the path at which an order can be read.
func OrderPath(orderID string) string { return "/v1/orders/" + orderID }

// incomingHeader returns the name of the metadata that a request header becomes. grpc-gateway itself passes on
// authorization, and the trace context is in the context.
func incomingHeader(header string) (string, bool) {
	switch header {
	case "Idempotency-Key", "Prefer":
		return strings.ToLower(header), true
	}
	return "", false
}

// outgoingHeader returns the name of the response header that a handler's metadata become.
func outgoingHeader(key string) (string, bool) {
	switch key {
	case "preference-applied", idempotency.Replayed:
		return http.CanonicalHeaderKey(key), true
	}
	return "", false
}

// noHeader keeps metadata of handlers out of REST responses.
func noHeader(string) (string, bool) { return "", false }
