package eventlog

import (
	"context"
	"fmt"
	"log/slog"

	"github.com/google/uuid"
	"github.com/jmoiron/sqlx"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"

	"shop.example/domain/enduser"
	"shop.example/domain/orderid"
	loggingv1 "shop.example/gen/shop/logging/v1"
	"shop.example/platform/apierror"
	"shop.example/platform/pagetoken"
	"shop.example/platform/postgres"
	"shop.example/platform/telemetry"
)

// eventLogServer serves the log of events.
type eventLogServer struct {
	loggingv1.UnimplementedEventLogServiceServer
	*Service
}

func (s eventLogServer) ListEvents(ctx context.Context, req *loggingv1.ListEventsRequest) (*loggingv1.ListEventsResponse, error) {
	first := proto.CloneOf(req)
	first.PageSize, first.PageToken = 0, ""
	list := pagetoken.ListOf(first)
	from, err := pagetoken.ParseID(req.GetPageToken(), list)
	if err != nil {
		return nil, err
	}
	f := filter{orderID: canonicalUUID(req.GetOrderId()), key: parseKeyPattern(req.GetRoutingKey())}
	if err := s.checkOwner(ctx, f.orderID); err != nil {
		return nil, err
	}
	if req.GetStatus() != loggingv1.Event_STATUS_UNSPECIFIED {
		f.status = req.GetStatus().String()
	}
	if req.GetPublishedAfter() != nil {
		f.publishedAfter = req.GetPublishedAfter().AsTime()
	}
	if req.GetPublishedBefore() != nil {
		f.publishedBefore = req.GetPublishedBefore().AsTime()
	}
	rows, next, err := s.page(ctx, f, from, pagetoken.Size(req.GetPageSize()))
	if err != nil {
		return nil, err
	}
	reply := &loggingv1.ListEventsResponse{Events: make([]*loggingv1.Event, len(rows))}
	for i, r := range rows {
		if reply.Events[i], err = r.message(); err != nil {
			return nil, err
		}
	}
	if next != 0 {
		reply.NextPageToken = pagetoken.NewID(next, list)
	}
	return reply, nil
}

// page reads a page of the events: those of an order in their order, all others the newest first. next is where the next page
// begins, or 0.
func (s eventLogServer) page(ctx context.Context, f filter, from int64, limit int) (rows []*row, next int64, err error) {
	if f.orderID == "" {
		return rowsBefore(ctx, s.db, f, from, limit)
	}
	return rowsAfter(ctx, s.db, f, from, limit)
}

// StreamEvents implements loggingv1.EventLogServiceServer. It first sends the position at which it begins: everything that
// is logged after that is in the stream. When nothing has happened for a while, or nothing was found in a part of the log, it sends
// its position again; not while the log cannot be read.
func (s eventLogServer) StreamEvents(req *loggingv1.StreamEventsRequest, stream grpc.ServerStreamingServer[loggingv1.StreamEventsResponse]) error {
	ctx := stream.Context()
	if err := s.checkOwner(ctx, canonicalUUID(req.GetOrderId())); err != nil {
		return err
	}
	s.tail.join()
	defer s.tail.leave()
	head, err := lastID(ctx, s.db)
	if err != nil {
		return err
	}
	begin := startOf(req, head)
	sendPosition := func(position int64) error { return stream.Send(&loggingv1.StreamEventsResponse{Position: position}) }
	if err := sendPosition(begin); err != nil {
		return err
	}
	f := filter{orderID: canonicalUUID(req.GetOrderId()), key: parseKeyPattern(req.GetRoutingKey())}
	return s.tail.listen(ctx, f, begin, head, func(r *row) error {
		event, err := r.message()
		if err != nil {
			return err
		}
		if !enduser.MayAccess(ctx, event.GetPayload().GetFields()["owner"].GetStringValue()) {
			return orderNotFound(r.OrderID) // it had not been logged yet when the stream began
		}
		return stream.Send(&loggingv1.StreamEventsResponse{Event: event, Position: r.ID})
	}, sendPosition)
}

// checkOwner returns an error if the order belongs to somebody other than the caller. Its OrderPlaced says whose it is; no
// other event has anything about a customer.
func (s eventLogServer) checkOwner(ctx context.Context, orderID string) error {
	if orderID == "" {
		return nil
	}
	owner, err := ownerOf(ctx, s.db, orderID)
	if err == nil && !enduser.MayAccess(ctx, owner) {
		err = orderNotFound(orderID)
	}
	return err
}

func orderNotFound(id string) error {
	return apierror.New(codes.NotFound, "ORDER_NOT_FOUND", "there is no order %s", id)
}

// startOf returns the id after which a stream begins, if the log ends at head. After the log was restored from a backup, a
// client may have seen ids beyond its end; it would otherwise wait for ever.
func startOf(req *loggingv1.StreamEventsRequest, head int64) int64 {
	if req.GetAfterId() == 0 && !req.GetFromBeginning() && req.GetOrderId() == "" {
		return head
	}
	return min(req.GetAfterId(), head)
}

func (s eventLogServer) ResendEvents(ctx context.Context, req *loggingv1.ResendEventsRequest) (*loggingv1.ResendEventsResponse, error) {
	orders := make([]uuid.UUID, len(req.GetOrderIds()))
	for i, id := range req.GetOrderIds() {
		orders[i] = uuid.MustParse(id) // as the contract says
	}
	err := postgres.InTx(ctx, s.db, func(tx *sqlx.Tx) error {
		target := "order " + req.GetOrderIds()[0]
		if len(orders) > 1 {
			target = fmt.Sprintf("%d orders", len(orders))
		}
		return recordAction(ctx, tx, loggingv1.EventLogService_ResendEvents_FullMethodName, target, "events that were not handled")
	})
	if err != nil {
		return nil, err
	}
	events, err := s.reconciler.resendOrders(ctx, orders)
	if err != nil {
		return nil, err
	}
	return &loggingv1.ResendEventsResponse{Events: events}, nil
}

// deadLetterServer serves the dead letters.
type deadLetterServer struct {
	loggingv1.UnimplementedDeadLetterServiceServer
	*Service
}

func (s deadLetterServer) ListDeadLetters(ctx context.Context, req *loggingv1.ListDeadLettersRequest) (*loggingv1.ListDeadLettersResponse, error) {
	first := proto.CloneOf(req)
	first.PageSize, first.PageToken = 0, ""
	list := pagetoken.ListOf(first)
	from, err := pagetoken.ParseID(req.GetPageToken(), list)
	if err != nil {
		return nil, err
	}
	state := ""
	if req.GetState() != loggingv1.DeadLetter_STATE_UNSPECIFIED {
		state = req.GetState().String()
	}
	size := pagetoken.Size(req.GetPageSize())
	letters, err := listDeadLetters(ctx, s.db, state, req.GetMessageId(), from, size+1)
	if err != nil {
		return nil, err
	}
	reply := &loggingv1.ListDeadLettersResponse{}
	if len(letters) > size {
		letters = letters[:size]
		reply.NextPageToken = pagetoken.NewID(letters[size-1].ID, list)
	}
	for i := range letters {
		m, err := letters[i].message(s.horizon)
		if err != nil {
			return nil, err
		}
		reply.DeadLetters = append(reply.DeadLetters, m)
	}
	return reply, nil
}

func (s deadLetterServer) GetDeadLetter(ctx context.Context, req *loggingv1.GetDeadLetterRequest) (*loggingv1.GetDeadLetterResponse, error) {
	letter, err := getDeadLetter(ctx, s.db, req.GetId(), "")
	if err != nil {
		return nil, err
	}
	m, err := letter.message(s.horizon)
	return &loggingv1.GetDeadLetterResponse{DeadLetter: m}, err
}

func (s deadLetterServer) RedriveDeadLetter(ctx context.Context, req *loggingv1.RedriveDeadLetterRequest) (*loggingv1.RedriveDeadLetterResponse, error) {
	letter, err := redrive(ctx, s.db, s.pub, req.GetId(), s.horizon)
	if err != nil {
		return nil, err
	}
	s.logDecision(ctx, "dead letter redriven", letter)
	letter.Body = nil
	m, err := letter.message(s.horizon)
	return &loggingv1.RedriveDeadLetterResponse{DeadLetter: m}, err
}

func (s deadLetterServer) DiscardDeadLetter(ctx context.Context, req *loggingv1.DiscardDeadLetterRequest) (*loggingv1.DiscardDeadLetterResponse, error) {
	letter, err := discard(ctx, s.db, req.GetId(), s.rejectDiscardedOrder)
	if err != nil {
		return nil, err
	}
	s.logDecision(ctx, "dead letter discarded", letter)
	letter.Body = nil
	m, err := letter.message(s.horizon)
	return &loggingv1.DiscardDeadLetterResponse{DeadLetter: m}, err
}

func (s deadLetterServer) logDecision(ctx context.Context, what string, letter deadLetter) {
	s.log.LogAttrs(ctx, slog.LevelInfo, what, slog.Int64("id", letter.ID), slog.String("queue", letter.SourceQueue),
		telemetry.RoutingKey(letter.RoutingKey), telemetry.MessageID(letter.MessageID), orderid.Attr(letter.OrderID))
}
