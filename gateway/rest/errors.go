package rest

import (
	"bytes"
	"context"
	"errors"
	"math"
	"net/http"
	"slices"
	"strconv"
	"strings"

	"github.com/grpc-ecosystem/grpc-gateway/v2/runtime"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/reflect/protoreflect"

	"shop.example/platform/apierror"
)

// httpError is an error whose HTTP status is not the usual one of its gRPC code.
type httpError struct {
	status int
	error
}

func (e httpError) Unwrap() error { return e.error }

// Challenge is the WWW-Authenticate of a call that needs a token.
const Challenge = `Bearer realm="shop"`

// writeError responds with err as a google.rpc.Status. It is a runtime.ErrorHandlerFunc.
func (s *Server) writeError(_ context.Context, _ *runtime.ServeMux, _ runtime.Marshaler, w http.ResponseWriter, r *http.Request, err error) {
	var same notModified
	if errors.As(err, &same) {
		w.Header().Set("ETag", quoted(same.tag))
		w.WriteHeader(http.StatusNotModified)
		return
	}
	if answer, ok := w.(*Response); ok && answer.route != nil {
		err = answer.route.describeError(err, r)
	}
	failure := apierror.Status(err)
	httpStatus := runtime.HTTPStatusFromCode(failure.Code())
	var own httpError
	if errors.As(err, &own) {
		httpStatus = own.status
	}
	header := w.Header()
	for _, detail := range failure.Details() {
		if retry, ok := detail.(*errdetails.RetryInfo); ok {
			seconds := math.Ceil(retry.GetRetryDelay().AsDuration().Seconds())
			header.Set("Retry-After", strconv.FormatFloat(seconds, 'f', 0, 64))
		}
	}
	if failure.Code() == codes.Unauthenticated {
		header.Set("WWW-Authenticate", Challenge)
	}
	header.Set("Content-Type", "application/json")
	w.WriteHeader(httpStatus)
	_, _ = w.Write(errorBody(failure)) // fails when the client has gone
}

// errorBody returns the JSON of an error, without details of types that are not known here.
func errorBody(failure *status.Status) []byte {
	options := protojson.MarshalOptions{UseProtoNames: true}
	body, err := options.Marshal(failure.Proto())
	if err != nil {
		body, _ = options.Marshal(status.New(failure.Code(), failure.Message()).Proto())
	}
	return body
}

// writeRoutingError responds to a call that has no route. It is a runtime.RoutingErrorHandlerFunc.
func (s *Server) writeRoutingError(ctx context.Context, mux *runtime.ServeMux, m runtime.Marshaler, w http.ResponseWriter, r *http.Request, httpStatus int) {
	if _, probing := w.(*routeProbe); probing {
		return
	}
	err := httpError{httpStatus, apierror.New(codes.NotFound, "UNKNOWN_PATH", "there is nothing at this path; GET / lists the API")}
	switch httpStatus {
	case http.StatusMethodNotAllowed:
		allowed := strings.Join(s.allowed(r), ", ")
		w.Header().Set("Allow", allowed)
		err.error = apierror.New(codes.Unimplemented, "METHOD_NOT_ALLOWED", "this path can be called with %s only", allowed)
	case http.StatusBadRequest:
		err.error = InvalidPath
	}
	s.writeError(ctx, mux, m, w, r, err)
}

// routeProbe is a response that only records whether a call has a route.
type routeProbe struct {
	http.ResponseWriter
	routed bool
}

// allowed returns the HTTP methods with which the path of r can be called, by asking the router for each.
func (s *Server) allowed(r *http.Request) []string {
	var allowed []string
	for _, method := range methods {
		asked := r.Clone(r.Context())
		asked.Method = routingMethod(method)
		p := &routeProbe{}
		if s.mux.ServeHTTP(p, asked); p.routed {
			allowed = append(allowed, method)
		}
	}
	return allowed
}

// InvalidPath is the error of a path that cannot be decoded.
var InvalidPath = apierror.New(codes.InvalidArgument, "INVALID_PATH", "the path is not well encoded")

// describeError rewrites errors of grpc-gateway and protovalidate about a request in the client's terms.
func (t *route) describeError(err error, r *http.Request) error {
	var badPath *runtime.HTTPStatusError
	if errors.As(err, &badPath) {
		return InvalidPath
	}
	body, hasBody := r.Body.(*requestBody)
	s, isStatus := status.FromError(err)
	if t.request == nil || !hasBody || !isStatus || s.Code() != codes.InvalidArgument {
		return err
	}
	if len(s.Details()) == 0 { // grpc-gateway could not read the body
		return bodyError(t.bodyType(), body.data)
	}
	violations := violationsOf(s)
	inPath := func(v apierror.Violation) bool { return slices.Contains(t.bound, v.Field) }
	switch {
	case len(violations) == 0 || slices.ContainsFunc(violations, inPath):
		return err
	case len(bytes.TrimSpace(body.data)) == 0:
		return apierror.New(codes.InvalidArgument, "BODY_REQUIRED", "the call needs a JSON object as its body")
	case t.body == "*":
		return err
	}
	for i := range violations { // clients do not know the field that the body is
		violations[i].Field = strings.TrimPrefix(violations[i].Field, t.body+".")
	}
	return apierror.InvalidArgument(violations...)
}

func violationsOf(s *status.Status) []apierror.Violation {
	var violations []apierror.Violation
	for _, detail := range s.Details() {
		if bad, ok := detail.(*errdetails.BadRequest); ok {
			for _, v := range bad.GetFieldViolations() {
				violations = append(violations, apierror.Violation{Field: v.GetField(), Description: v.GetDescription()})
			}
		}
	}
	return violations
}

// bodyType returns the type of the message in the body.
func (t *route) bodyType() protoreflect.MessageDescriptor {
	md := t.request.Descriptor()
	if t.body == "*" {
		return md
	}
	return md.Fields().ByName(protoreflect.Name(t.body)).Message()
}
