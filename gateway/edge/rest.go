package edge

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
	"strings"
	"sync"

	"github.com/grpc-ecosystem/grpc-gateway/v2/runtime"
	"google.golang.org/genproto/googleapis/api/annotations"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"

	"shop.example/gateway/page"
	checkoutv1 "shop.example/gen/shop/checkout/v1"
	customerv1 "shop.example/gen/shop/customer/v1"
	intermediaryv1 "shop.example/gen/shop/intermediary/v1"
	inventoryv1 "shop.example/gen/shop/inventory/v1"
	loggingv1 "shop.example/gen/shop/logging/v1"
	orderv1 "shop.example/gen/shop/order/v1"
	statusv1 "shop.example/gen/shop/status/v1"
	"shop.example/platform/apierror"
	"shop.example/platform/telemetry"
)

// maxBody bounds the body of a REST call.
const maxBody = 1 << 20

// methods are HTTP's methods.
var methods = []string{
	http.MethodDelete, http.MethodGet, http.MethodHead, http.MethodOptions, http.MethodPatch, http.MethodPost, http.MethodPut,
}

// rest serves the REST form of the API.
type rest struct {
	mux      *runtime.ServeMux
	routes   map[string]*route // by method and path template: "POST /v1/orders"
	observer *observer
	front    *page.Page
	sse      *sse
}

// route is one way to call the API.
type route struct {
	path    string                   // the template: "/v1/orders/{order_id}:cancel"
	request protoreflect.MessageType // nil for a page or a control
	body    string                   // the field that the body is; "*" for the request itself, "" for none
	bound   []string                 // the fields that are in the path
}

// newREST serves REST calls by calling conn. Streams end when stopping is closed.
func newREST(conn *localConn, callers callers, stopping <-chan struct{}, t *telemetry.Telemetry) (*rest, error) {
	o, err := newObserver(t)
	if err != nil {
		return nil, err
	}
	json := newCodec()
	s := &rest{observer: o, routes: map[string]*route{}}
	s.mux = runtime.NewServeMux(
		runtime.WithMarshalerOption(runtime.MIMEWildcard, json),
		runtime.WithMiddlewares(s.admit),
		runtime.WithForwardResponseOption(setHeaders),
		runtime.WithForwardResponseRewriter(rewrite),
		runtime.WithErrorHandler(s.writeError),
		runtime.WithRoutingErrorHandler(s.writeRoutingError),
		runtime.WithIncomingHeaderMatcher(incomingHeader),
		runtime.WithOutgoingHeaderMatcher(noHeader),
		runtime.WithOutgoingTrailerMatcher(noHeader),
		runtime.WithDisablePathLengthFallback(),
		runtime.WithDisableHTTPMethodOverride(),
	)
	for _, sd := range services(
		checkoutv1.File_shop_checkout_v1_checkout_proto, intermediaryv1.File_shop_intermediary_v1_intermediary_proto,
		orderv1.File_shop_order_v1_order_proto, inventoryv1.File_shop_inventory_v1_inventory_proto,
		loggingv1.File_shop_logging_v1_event_log_proto, loggingv1.File_shop_logging_v1_dead_letter_proto,
		loggingv1.File_shop_logging_v1_operator_action_proto, customerv1.File_shop_customer_v1_customer_proto,
		statusv1.File_shop_status_v1_status_proto,
	) {
		if err := s.addRoutes(sd); err != nil {
			return nil, err
		}
	}
	s.sse = &sse{conn: conn, callers: callers, mux: s.mux, codec: json, stopping: stopping, heartbeat: heartbeat, patience: readerPatience}
	if s.front, err = page.New(conn); err != nil {
		return nil, err
	}
	s.front.Describe(directory(s.routes), false)
	ctx := context.Background()
	if err := errors.Join(
		intermediaryv1.RegisterIntermediaryServiceHandlerClient(ctx, s.mux, intermediaryv1.NewIntermediaryServiceClient(conn)),
		orderv1.RegisterOrderServiceHandlerClient(ctx, s.mux, orderv1.NewOrderServiceClient(conn)),
		inventoryv1.RegisterInventoryServiceHandlerClient(ctx, s.mux, inventoryv1.NewInventoryServiceClient(conn)),
		loggingv1.RegisterEventLogServiceHandlerClient(ctx, s.mux, loggingv1.NewEventLogServiceClient(conn)),
		loggingv1.RegisterDeadLetterServiceHandlerClient(ctx, s.mux, loggingv1.NewDeadLetterServiceClient(conn)),
		loggingv1.RegisterOperatorActionServiceHandlerClient(ctx, s.mux, loggingv1.NewOperatorActionServiceClient(conn)),
		customerv1.RegisterCustomerServiceHandlerClient(ctx, s.mux, customerv1.NewCustomerServiceClient(conn)),
		statusv1.RegisterStatusServiceHandlerClient(ctx, s.mux, statusv1.NewStatusServiceClient(conn)),
		s.front.Register(s.mux),
		handleDocs(s.mux),
		s.handleStreams(), // in place of what grpc-gateway makes of them
		// The router tries routes from the last one on: orders are what it is asked for most.
		checkoutv1.RegisterCheckoutServiceHandlerClient(ctx, s.mux, checkoutv1.NewCheckoutServiceClient(conn)),
	); err != nil {
		return nil, fmt.Errorf("registering the REST API: %w", err)
	}
	return s, nil
}

// handleStreams serves the routes of StreamEvents.
func (s *rest) handleStreams() error {
	request := (*loggingv1.StreamEventsRequest)(nil).ProtoReflect().Type()
	for _, to := range s.routes {
		if to.request != request {
			continue
		}
		err := s.mux.HandlePath(http.MethodGet, to.path, func(w http.ResponseWriter, r *http.Request, inPath map[string]string) {
			if err := s.sse.serve(w.(*response), r, inPath); err != nil {
				s.writeError(r.Context(), nil, nil, w, r, err)
			}
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// serve answers a call, or the refusal to let it in.
func (s *rest) serve(w http.ResponseWriter, r *http.Request, h held, refusal error) {
	s.observer.serve(w, r, h, func(w *response, r *http.Request) {
		if refusal != nil {
			s.writeError(r.Context(), nil, nil, w, r, refusal)
			return
		}
		defer s.recovered(w, r)
		w.head = r.Method == http.MethodHead
		r.Method = routedAs(r.Method) // of this copy; the server knows to leave the body of an answer to HEAD out
		s.mux.ServeHTTP(w, r)
	})
}

// recovered answers in place of code that panicked, and cuts a call off whose answer could not be written. gRPC's handlers
// do not get here: their panics are recovered sooner.
func (s *rest) recovered(w *response, r *http.Request) {
	panicked := recover()
	if panicked == nil && !w.broken {
		return
	}
	if panicked == nil {
		panic(http.ErrAbortHandler) //nolint:forbidigo // what the client has so far must not look whole
	}
	s.observer.log.ErrorContext(r.Context(), "a REST call panicked", "err", fmt.Sprint(panicked), "stack", string(debug.Stack()))
	if w.status != 0 {
		panic(http.ErrAbortHandler) //nolint:forbidigo // what the client has so far must not look whole
	}
	s.writeError(r.Context(), nil, nil, w, r, errors.New("panicked"))
}

// routedAs is the method that a call is routed by.
func routedAs(method string) string {
	if method == http.MethodHead {
		return http.MethodGet
	}
	return method
}

// admit looks at a call that has found its route before it is made: its parameters must be known and readable, which
// grpc-gateway would not say or not say well, and its body must be JSON and not too large.
func (s *rest) admit(next runtime.HandlerFunc) runtime.HandlerFunc {
	var once sync.Once
	var to *route
	var custom []string
	return func(w http.ResponseWriter, r *http.Request, inPath map[string]string) {
		once.Do(func() {
			to = s.routeOf(r)
			custom = s.customMethods(to)
		})
		isCustom := slices.ContainsFunc(custom, func(verb string) bool { return strings.HasSuffix(r.URL.Path, verb) })
		if p, ok := w.(*probe); ok {
			p.routed = !isCustom
			return
		}
		if isCustom {
			s.writeRoutingError(r.Context(), nil, nil, w, r, http.StatusMethodNotAllowed)
			return
		}
		w.(*response).route = to
		err := to.checkParameters(r, inPath)
		if err == nil {
			err = to.readBody(w, r)
		}
		if err != nil {
			s.writeError(r.Context(), nil, nil, w, r, err)
			return
		}
		next(w, r, inPath)
	}
}

// routeOf returns the route of a call that has been matched with its pattern.
func (s *rest) routeOf(r *http.Request) *route {
	pattern, _ := runtime.HTTPPattern(r.Context())
	path := strings.ReplaceAll(pattern.String(), "=*}", "}")
	if to, ok := s.routes[r.Method+" "+path]; ok {
		return to
	}
	return &route{path: path} // a page
}

// customMethods are the endings, ":cancel" for example, that make of a resource's path that of its custom method. The
// router takes them for a part of the id where the method is the resource's, GET for example.
func (s *rest) customMethods(resource *route) []string {
	var endings []string
	for _, to := range s.routes {
		if ending, ok := strings.CutPrefix(to.path, resource.path+":"); ok {
			endings = append(endings, ":"+ending)
		}
	}
	return endings
}

// addRoutes adds the routes to the methods of a service, from its contract.
func (s *rest) addRoutes(sd protoreflect.ServiceDescriptor) error {
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
			s.routes[method+" "+path] = &route{path: path, request: request, body: rule.GetBody(), bound: fieldsIn(path)}
		}
	}
	return nil
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

// checkParameters returns an error where the path or the query cannot be read.
func (t *route) checkParameters(r *http.Request, inPath map[string]string) error {
	for _, key := range r.Header["Idempotency-Key"] {
		if !validKey(key) { // grpc-gateway would drop some, and with them the promise to take the order once
			return invalidKey
		}
	}
	if t.request == nil || len(inPath) == 0 && r.URL.RawQuery == "" {
		return nil
	}
	path := url.Values{}
	for name, value := range inPath {
		path.Set(name, value)
	}
	found := unreadableParameters(t.request, path, func(string) bool { return false })
	query, err := url.ParseQuery(r.URL.RawQuery)
	if err != nil {
		return apierror.New(codes.InvalidArgument, "INVALID_QUERY", "the query is not well encoded")
	}
	found = append(found, unreadableParameters(t.request, query, t.isBound)...)
	if len(found) > 0 {
		return apierror.InvalidArgument(found...)
	}
	return nil
}

// isBound says whether a field is set by the path or the body, so that the query cannot.
func (t *route) isBound(field string) bool {
	return t.body == "*" || t.body != "" && strings.HasPrefix(field+".", t.body+".") || slices.Contains(t.bound, field)
}

// readBody reads the body, where the route has one, so that it can be looked at again when it turns out to be wrong.
func (t *route) readBody(w http.ResponseWriter, r *http.Request) error {
	r.Body = http.MaxBytesReader(w, r.Body, maxBody)
	if t.body == "" {
		return nil
	}
	if err := checkMediaType(w, r); err != nil {
		return err
	}
	var data bytes.Buffer
	if r.ContentLength > 0 { // which is only what the client says
		data.Grow(int(min(r.ContentLength, freeRequest)) + bytes.MinRead)
	}
	call := w.(*response)
	call.body = requestReader{ReadCloser: r.Body, held: &call.held}
	_, err := data.ReadFrom(&call.body)
	var large *http.MaxBytesError
	switch {
	case call.body.refusal != nil:
		return call.body.refusal
	case errors.As(err, &large):
		return httpError{http.StatusRequestEntityTooLarge, apierror.New(codes.InvalidArgument, "BODY_TOO_LARGE",
			"the body is larger than %d bytes", maxBody)}
	case err != nil:
		return apierror.New(codes.InvalidArgument, "INCOMPLETE_BODY", "the body did not arrive whole").WithCause(err)
	}
	r.Body = &requestBody{Reader: *bytes.NewReader(data.Bytes()), data: data.Bytes()}
	return nil
}

const jsonType = "application/json"

// checkMediaType returns an error where the body is said to be something else than JSON in UTF-8. What does not say
// what it is, is taken for JSON, as the demo took it; a type without a body says nothing.
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

// setHeaders sets what an answer says beyond its body.
func setHeaders(_ context.Context, w http.ResponseWriter, answer proto.Message) error {
	switch m := answer.ProtoReflect().Interface().(type) {
	case *checkoutv1.PlaceOrderResponse:
		w.Header().Set("Location", location(m.GetOrder().GetId()))
		if m.GetOrder().GetState() == orderv1.Order_PENDING {
			w.WriteHeader(http.StatusAccepted)
		}
	case *intermediaryv1.CreateOrderResponse:
		w.Header().Set("Location", location(m.GetOrderId()))
		w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	}
	return nil
}

// rewrite makes plain text of the answer that is plain text.
func rewrite(_ context.Context, answer proto.Message) (any, error) {
	if m, ok := answer.ProtoReflect().Interface().(*intermediaryv1.CreateOrderResponse); ok {
		return plainText(m.GetMessage()), nil
	}
	return answer, nil
}

// incomingHeader names the metadata that a header becomes. authorization is passed on by grpc-gateway itself; the
// trace context is in the context.
func incomingHeader(header string) (string, bool) {
	switch header {
	case "Idempotency-Key", "Prefer":
		return strings.ToLower(header), true
	}
	return "", false
}

// noHeader keeps metadata within: they are gRPC's.
func noHeader(string) (string, bool) { return "", false }
