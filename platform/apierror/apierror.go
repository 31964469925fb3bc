// Package apierror makes the errors that clients get: gRPC statuses with the details of google.rpc.
//
// Each of them has an ErrorInfo with this project's domain and a reason that programs can branch on. Handlers return an
// Error (from New, InvalidArgument or Unavailable) or any other error. Interceptor validates requests before the handler,
// and turns other errors into statuses that reveal nothing internal.
package apierror

import (
	"errors"
	"fmt"
	"maps"
	"time"

	"buf.build/go/protovalidate"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/protoadapt"
	"google.golang.org/protobuf/types/known/durationpb"
)

// Domain is the domain in every ErrorInfo.
const Domain = "shop.example"

// maxViolations bounds the fields that one error names: statuses travel in headers, and clients bound those, some at 8 KiB.
const maxViolations = 20

// Error is an error as the client sees it: code, message, reason and details. It is immutable, so safe for concurrent use:
// the With… methods return changed copies.
type Error struct {
	code       codes.Code
	reason     string
	message    string
	metadata   map[string]string
	violations []Violation
	retryAfter time.Duration
	cause      error
}

// Violation says what is wrong with one field of a request.
type Violation struct {
	// Field is the path of the field as the client writes it: order_items[0].quantity.
	Field string
	// Description completes a sentence that begins with the field: "must be at least 1". It must not repeat the value, which
	// may be personal data.
	Description string
}

// New returns an error with a code, a reason in UPPER_SNAKE_CASE that programs branch on, and a message for people.
func New(code codes.Code, reason, format string, args ...any) *Error {
	return &Error{code: code, reason: reason, message: fmt.Sprintf(format, args...)}
}

// InvalidArgument returns the error for a request whose fields are wrong: INVALID_ARGUMENT with a BadRequest.
func InvalidArgument(violations ...Violation) *Error {
	message := "the request is not valid"
	if len(violations) > 0 {
		message = violations[0].Description
		if field := violations[0].Field; field != "" {
			message = field + ": " + message
		}
	}
	if more := len(violations) - 1; more > 0 {
		message = fmt.Sprintf("%s (and %d more)", message, more)
	}
	return &Error{
		code:       codes.InvalidArgument,
		reason:     "INVALID_ARGUMENT",
		message:    message,
		violations: violations[:min(len(violations), maxViolations)],
	}
}

// Unavailable returns the error for what is expected to work again: UNAVAILABLE, with a RetryInfo that says when to retry.
func Unavailable(reason string, retryAfter time.Duration, format string, args ...any) *Error {
	return New(codes.Unavailable, reason, format, args...).WithRetryAfter(retryAfter)
}

// FromViolations turns a *protovalidate.ValidationError into InvalidArgument. Any other error, also nil, is returned
// unchanged: a rule that does not compile is not the client's fault.
func FromViolations(err error) error {
	violations, err := violationsOf(err)
	if err != nil || len(violations) == 0 {
		return err
	}
	return InvalidArgument(violations...)
}

// violationsOf returns all that protovalidate's error says is wrong. Any other error is returned.
func violationsOf(err error) ([]Violation, error) {
	invalid, ok := errors.AsType[*protovalidate.ValidationError](err)
	if !ok {
		return nil, err
	}
	violations := make([]Violation, len(invalid.Violations))
	for i, violation := range invalid.Violations {
		violations[i] = Violation{
			Field:       protovalidate.FieldPathString(violation.Proto.GetField()),
			Description: violation.Proto.GetMessage(),
		}
	}
	return violations, nil
}

// WithRetryAfter returns a copy with a RetryInfo: how long a client should wait before it tries again.
func (e *Error) WithRetryAfter(retryAfter time.Duration) *Error {
	with := *e
	with.retryAfter = retryAfter
	return &with
}

// WithMetadata returns a copy with one more entry in its ErrorInfo. Keys are lower_snake_case.
func (e *Error) WithMetadata(key, value string) *Error {
	with := *e
	with.metadata = maps.Clone(e.metadata)
	if with.metadata == nil {
		with.metadata = map[string]string{}
	}
	with.metadata[key] = value
	return &with
}

// WithCause returns a copy that wraps err. errors.Is and errors.As find err, and the log shows it; clients do not see it.
func (e *Error) WithCause(err error) *Error {
	with := *e
	with.cause = err
	return &with
}

// Error returns reason, message and cause. It is for logs, not for clients.
func (e *Error) Error() string {
	if e.cause != nil {
		return fmt.Sprintf("%s: %s: %v", e.reason, e.message, e.cause)
	}
	return e.reason + ": " + e.message
}

// Unwrap returns the cause.
func (e *Error) Unwrap() error { return e.cause }

// Reason returns the reason of the ErrorInfo.
func (e *Error) Reason() string { return e.reason }

// GRPCStatus returns the status that the client gets. google.golang.org/grpc/status calls it.
func (e *Error) GRPCStatus() *status.Status {
	details := []protoadapt.MessageV1{&errdetails.ErrorInfo{Reason: e.reason, Domain: Domain, Metadata: e.metadata}}
	if len(e.violations) > 0 {
		badRequest := &errdetails.BadRequest{}
		for _, violation := range e.violations {
			badRequest.FieldViolations = append(badRequest.FieldViolations, &errdetails.BadRequest_FieldViolation{
				Field: violation.Field, Description: violation.Description,
			})
		}
		details = append(details, badRequest)
	}
	if e.retryAfter > 0 {
		details = append(details, &errdetails.RetryInfo{RetryDelay: durationpb.New(e.retryAfter)})
	}
	plain := status.New(e.code, e.message)
	detailed, err := plain.WithDetails(details...)
	if err != nil { // A detail that cannot be marshalled, text that is not UTF-8 for example.
		return plain
	}
	return detailed
}
