// Package streams serves the event log as it grows, as Server-Sent Events.
package streams

import (
	"cmp"
	"context"
	"errors"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/grpc-ecosystem/grpc-gateway/v2/runtime"
	"github.com/grpc-ecosystem/grpc-gateway/v2/utilities"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"shop.example/gateway/ingress"
	"shop.example/gateway/inprocess"
	"shop.example/gateway/rest"
	"shop.example/gateway/upstream"
	loggingv1 "shop.example/gen/shop/logging/v1"
	"shop.example/platform/apierror"
)

const (
	// heartbeat is how often something is sent on a stream, so that a client which is gone is noticed, and proxies, many of
	// which close a connection that is silent for a minute, keep it open. It is shorter than SlowReaderTimeout, so that the
	// deadline of each write lasts until the next.
	heartbeat = ingress.SlowReaderTimeout / 2
	// reconnectDelay is what clients are told to wait before they connect again, in milliseconds.
	reconnectDelay = "1000"
	// reopenDelay is the wait between two tries to resume a stream while the service behind it is away.
	reopenDelay = 200 * time.Millisecond
	// maxKept is how large a stream's buffer stays after a large event. Most streams have few events, and wait for long.
	maxKept = 8 << 10
)

const streamEvents = loggingv1.EventLogService_StreamEvents_FullMethodName

// Server serves StreamEvents as Server-Sent Events, because browsers cannot read the lines of JSON that grpc-gateway makes
// of streams. It calls the same handler as gRPC clients do, so access, validation and errors are the same.
type Server struct {
	conn     *inprocess.Conn
	rest     *rest.Server
	clients  ingress.ClientIdentifier
	stopping <-chan struct{} // closed when the gateway stops

	// Heartbeat is how often an idle stream gets a comment, and WriteTimeout how long a client may take to read one write.
	// They are set before the first call.
	Heartbeat, WriteTimeout time.Duration
}

// New returns a server for the streams of conn. They end when stopping is closed.
func New(conn *inprocess.Conn, restServer *rest.Server, clients ingress.ClientIdentifier, stopping <-chan struct{}) *Server {
	return &Server{conn: conn, rest: restServer, clients: clients, stopping: stopping, Heartbeat: heartbeat, WriteTimeout: ingress.SlowReaderTimeout}
}

// Register adds the routes of StreamEvents to the REST server, to which the event log's service must have been added
// before.
func (s *Server) Register() error {
	return s.rest.HandleStream((*loggingv1.StreamEventsRequest)(nil).ProtoReflect().Type(), s.serve)
}

// serve responds with a stream that lasts until the client leaves, the gateway stops, or the service behind it does. It
// returns an error only if nothing has been written.
func (s *Server) serve(w *rest.Response, r *http.Request, inPath map[string]string) error {
	request, err := streamRequest(r, inPath)
	if err != nil {
		return err
	}
	ctx, err := s.rest.CallContext(r, streamEvents)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancelCause(inprocess.ServerContext(ingress.WithClient(upstream.WithBatches(ctx), s.clients.Identify(r)), streamEvents))
	out := &eventStream{
		ctx: ctx, cancel: cancel, request: request, w: w, control: http.NewResponseController(w), writeTimeout: s.WriteTimeout,
	}
	var alive sync.WaitGroup
	alive.Go(func() { s.keepAlive(out) })
	err = s.forward(out, len(r.Header.Values(lastEventID)) > 0)
	var reason *apierror.Error
	if errors.As(context.Cause(ctx), &reason) {
		err = reason
	}
	cancel(nil)
	alive.Wait()
	if !out.opened {
		return err
	}
	if err != nil && r.Context().Err() == nil {
		_ = out.comment(" " + oneLine(status.Convert(err).Message())) // for people; the client connects again by itself
	}
	return nil
}

// forward passes on events until there are no more. For a client that resumes, it waits until the service is back: browsers
// reconnect after the end of a stream, but not after an error.
func (s *Server) forward(out *eventStream, resumed bool) error {
	for {
		err := s.conn.ServeStream(streamEvents, out)
		if out.opened || !resumed || status.Code(err) != codes.Unavailable {
			return err
		}
		select {
		case <-out.ctx.Done():
			return err
		case <-time.After(reopenDelay):
		}
	}
}

// keepAlive sends heartbeats until the stream's context ends, and ends a stream that does not open in time or whose gateway
// stops.
func (s *Server) keepAlive(out *eventStream) {
	beat := time.NewTicker(s.Heartbeat)
	defer beat.Stop()
	opening := time.NewTimer(upstream.CallTimeout)
	defer opening.Stop()
	for {
		select {
		case <-out.ctx.Done():
			return
		case <-s.stopping:
			out.cancel(apierror.Unavailable("STOPPING", time.Second, "the service is stopping; connect again"))
			return
		case <-opening.C:
			if !out.isOpen() {
				out.cancel(upstream.Unavailable("logging", nil))
				return
			}
		case <-beat.C:
			if out.isOpen() && out.comment("") != nil {
				return
			}
		}
	}
}

// lastEventID is the header with which a client resumes a stream.
const lastEventID = "Last-Event-ID"

// streamRequest makes the request from the URL, which has been checked, and the header.
func streamRequest(r *http.Request, inPath map[string]string) (*loggingv1.StreamEventsRequest, error) {
	request := &loggingv1.StreamEventsRequest{}
	query, err := url.ParseQuery(r.URL.RawQuery)
	if err == nil {
		err = runtime.PopulateQueryParameters(request, query, utilities.NewDoubleArray(nil))
	}
	if err != nil {
		return nil, apierror.New(codes.InvalidArgument, "INVALID_QUERY", "the query is not well encoded").WithCause(err)
	}
	for name, value := range inPath {
		if err := runtime.PopulateFieldFromPath(request, name, value); err != nil {
			return nil, rest.InvalidPath
		}
	}
	seen := r.Header.Values(lastEventID)
	if len(seen) == 0 {
		return request, nil
	}
	id, err := strconv.ParseUint(seen[0], 10, 63)
	if err != nil || len(seen) > 1 {
		return nil, apierror.InvalidArgument(apierror.Violation{Field: lastEventID, Description: "must be the id of an event of a stream, given once"})
	}
	// The place where a stream of an empty log begins is an id too: what came since then must not be missed.
	request.AfterId, request.FromBeginning = int64(id), true
	return request, nil
}

// eventStream is a grpc.ServerStream that writes the responses of StreamEvents as Server-Sent Events. It holds one event, or
// one batch that it shares with other streams, at a time: while the client does not read, it takes nothing more.
type eventStream struct {
	ctx     context.Context //nolint:containedctx // a grpc.ServerStream has one
	cancel  context.CancelCauseFunc
	request *loggingv1.StreamEventsRequest

	writeTimeout time.Duration

	mu      sync.Mutex // guards what follows
	w       *rest.Response
	control *http.ResponseController
	opened  bool
	text    []byte
}

// Context returns a context that ends when the stream must end.
func (s *eventStream) Context() context.Context { return s.ctx }

// RecvMsg gives the handler the request.
func (s *eventStream) RecvMsg(m any) error { return inprocess.Assign(m, s.request) }

// SetHeader does nothing: Server-Sent Events have no metadata.
func (s *eventStream) SetHeader(metadata.MD) error { return nil }

// SendHeader does nothing: the response begins with the first message, because until then the call may be refused.
func (s *eventStream) SendHeader(metadata.MD) error { return nil }

// SetTrailer does nothing.
func (s *eventStream) SetTrailer(metadata.MD) {}

// SendMsg writes one response, or an *upstream.Batch of them. The first one opens the stream; even without an event it tells the client its position, so
// that a client which reconnects before any event has come misses nothing.
func (s *eventStream) SendMsg(m any) error {
	if batch, ok := m.(*upstream.Batch); ok {
		return s.sendBatch(batch)
	}
	response, ok := m.(*loggingv1.StreamEventsResponse)
	if !ok {
		return status.Errorf(codes.Internal, "cannot stream a %T", m)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.text = s.text[:0]
	if !s.opened {
		s.open()
	}
	var err error
	if s.text, err = appendResponse(s.text, response); err != nil {
		return err
	}
	if err := s.write(s.text, s.w.Write); err != nil {
		return err
	}
	if s.w.Head {
		s.cancel(nil) // all has been said
		return s.ctx.Err()
	}
	return nil
}

// sendBatch writes what a stream that is open has in common with others.
func (s *eventStream) sendBatch(batch *upstream.Batch) error {
	text, err := batch.Encode(encodeResponses)
	if err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.write(text, s.w.WriteShared)
}

func encodeResponses(responses []*loggingv1.StreamEventsResponse) (text []byte, err error) {
	for _, r := range responses {
		if text, err = appendResponse(text, r); err != nil {
			return nil, err
		}
	}
	return text, nil
}

// appendResponse appends a response as a Server-Sent Event.
func appendResponse(text []byte, response *loggingv1.StreamEventsResponse) (_ []byte, err error) {
	event := response.GetEvent()
	text = append(text, "id: "...)
	text = strconv.AppendInt(text, cmp.Or(event.GetId(), response.GetPosition()), 10)
	if event != nil {
		text = append(text, "\ndata: "...)
		if text, err = rest.JSON.MarshalAppend(text, event); err != nil {
			return nil, err
		}
	}
	return append(text, "\n\n"...), nil
}

// open begins the response.
func (s *eventStream) open() {
	s.opened = true
	// The limits of a call are none of a stream's. A connection that knows no deadlines has none to take off.
	_ = s.control.SetReadDeadline(time.Time{})
	header := s.w.Header()
	header.Set("Content-Type", rest.EventStream)
	header.Set("Cache-Control", "no-store")
	header.Set("X-Accel-Buffering", "no") // nginx would hold events back
	s.w.WriteHeader(http.StatusOK)
	s.text = append(s.text, "retry: "+reconnectDelay+"\n"...)
}

func (s *eventStream) isOpen() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.opened
}

// comment writes a line that clients ignore.
func (s *eventStream) comment(text string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.text = append(append(append(s.text[:0], ':'), text...), "\n\n"...)
	return s.write(s.text, s.w.Write)
}

// write sends text at once. If the client does not read it in time the stream ends.
func (s *eventStream) write(text []byte, to func([]byte) (int, error)) error {
	_ = s.control.SetWriteDeadline(time.Now().Add(s.writeTimeout))
	_, err := to(text)
	if err == nil {
		err = s.control.Flush()
	}
	if cap(s.text) > maxKept {
		s.text = nil
	}
	if err != nil {
		s.cancel(err)
	}
	return err
}

func oneLine(text string) string {
	return strings.Map(func(r rune) rune {
		if r == '\n' || r == '\r' {
			return ' '
		}
		return r
	}, text)
}
