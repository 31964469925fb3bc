package apierror

import (
	"context"
	"errors"
	"time"

	"google.golang.org/genproto/googleapis/rpc/code"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// retryAfter is what clients are told to wait when a dependency is down.
const retryAfter = time.Second

// Status returns what a client may know of err: a status with an ErrorInfo, and if it is UNAVAILABLE with a RetryInfo.
//
// A status that has an ErrorInfo already passes unchanged. One without comes from a library: it keeps code and message,
// unless its code (INTERNAL, UNKNOWN, DATA_LOSS, UNAVAILABLE) suggests a message about internals. An ended context becomes
// CANCELLED or DEADLINE_EXCEEDED; an error that matches one of transient (errors.Is) UNAVAILABLE; anything else INTERNAL.
func Status(err error, transient ...error) *status.Status {
	var carrier interface{ GRPCStatus() *status.Status }
	if errors.As(err, &carrier) {
		return complete(carrier.GRPCStatus())
	}
	switch {
	case errors.Is(err, context.Canceled):
		return New(codes.Canceled, "CANCELLED", "the call was cancelled").GRPCStatus()
	case errors.Is(err, context.DeadlineExceeded):
		return New(codes.DeadlineExceeded, "DEADLINE_EXCEEDED", "the call took longer than it may").GRPCStatus()
	}
	for _, target := range transient {
		if errors.Is(err, target) {
			return unavailable().GRPCStatus()
		}
	}
	return internal().GRPCStatus()
}

func internal() *Error { return New(codes.Internal, "INTERNAL", "internal error") }

func unavailable() *Error {
	return Unavailable("UNAVAILABLE", retryAfter, "something that is needed is not available; try again")
}

// complete adds to a library's status the details that clients rely on.
func complete(s *status.Status) *status.Status {
	for _, detail := range s.Details() {
		if _, ok := detail.(*errdetails.ErrorInfo); ok {
			return s
		}
	}
	switch s.Code() {
	case codes.Internal, codes.Unknown, codes.DataLoss:
		return internal().GRPCStatus()
	case codes.Unavailable:
		return unavailable().GRPCStatus()
	default:
	}
	detailed, err := s.WithDetails(&errdetails.ErrorInfo{Reason: code.Code(s.Code()).String(), Domain: Domain})
	if err != nil { // An OK status that was returned as an error.
		return internal().GRPCStatus()
	}
	return detailed
}

// ReasonOf returns the reason in the ErrorInfo of err; "" if err has none of this project's domain.
func ReasonOf(err error) string {
	for _, detail := range status.Convert(err).Details() {
		if info, ok := detail.(*errdetails.ErrorInfo); ok && info.GetDomain() == Domain {
			return info.GetReason()
		}
	}
	return ""
}
