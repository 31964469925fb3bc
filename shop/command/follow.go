package command

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	loggingv1 "shop.example/gen/shop/logging/v1"
	"shop.example/platform/backoff"
)

// errStop ends a follower without an error.
var errStop = errors.New("stop")

// follower reads events as they are logged, each once and in the order of their ids, and resumes if the connection or the
// shop goes away.
type follower struct {
	client  loggingv1.EventLogServiceClient
	gateway *gateway
	notes   io.Writer // what a person should know about the connection
	// request selects the events, and the position in the log after which to begin; run updates it.
	request *loggingv1.StreamEventsRequest

	connected, lost bool
}

// firstPause is the pause before the first attempt to resume; each next one is twice as long.
const firstPause = 100 * time.Millisecond

// run calls handle with each event until handle returns an error, which run returns (nil for errStop). It fails if it
// cannot connect at first, or if the shop refuses.
func (f *follower) run(ctx context.Context, handle func(*loggingv1.Event) error) error {
	for wait := backoff.New(firstPause, maxPause); ; {
		before := f.request.GetAfterId()
		var ended handlerError
		err := f.read(ctx, handle)
		switch {
		case errors.Is(err, errStop):
			return nil
		case errors.As(err, &ended):
			return ended.error
		case ctx.Err() != nil:
			return context.Canceled
		case !f.connected || !retryable(err):
			return f.gateway.describeError(err)
		}
		if !f.lost {
			f.lost = true
			fmt.Fprintf(f.notes, "shop: the connection to %s is lost; it is made again, and nothing is left out\n", f.gateway.addr)
		}
		if f.request.GetAfterId() > before {
			wait.Reset()
		}
		if wait.Sleep(ctx); ctx.Err() != nil {
			return context.Canceled
		}
	}
}

// handlerError is what the handler of the events returned.
type handlerError struct{ error }

func (e handlerError) Unwrap() error { return e.error }

// retryable reports whether a stream that ended with err can be resumed. A shop that ends a stream without an error is
// stopping.
func retryable(err error) bool {
	switch status.Code(err) {
	case codes.Unauthenticated, codes.PermissionDenied, codes.InvalidArgument, codes.NotFound, codes.FailedPrecondition, codes.Unimplemented:
		return false
	}
	return true
}

// read reads one stream to its end. The first response has the position at which it begins: from then on nothing that is
// logged while the connection is lost is missed.
func (f *follower) read(ctx context.Context, handle func(*loggingv1.Event) error) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := f.client.StreamEvents(ctx, f.request)
	if err != nil {
		return err
	}
	for {
		reply, err := stream.Recv()
		if err != nil {
			return err
		}
		if f.lost {
			fmt.Fprintln(f.notes, "shop: connected again")
		}
		f.connected, f.lost = true, false
		f.request.AfterId, f.request.FromBeginning = reply.GetPosition(), true
		if event := reply.GetEvent(); event != nil {
			if err := handle(event); err != nil {
				return handlerError{err}
			}
		}
	}
}
