package eventlog

import (
	"context"
	"fmt"
	"time"

	"github.com/google/uuid"
	"github.com/jmoiron/sqlx"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"shop.example/domain/enduser"
	eventsv1 "shop.example/gen/shop/events/v1"
	loggingv1 "shop.example/gen/shop/logging/v1"
	"shop.example/platform/pagetoken"
	"shop.example/platform/postgres"
)

// operatorAction is a row of operator_action. Rows can only be added: the database refuses every change.
type operatorAction struct {
	ID       int64     `db:"id"`
	Operator string    `db:"operator"`
	Method   string    `db:"method"`
	Target   string    `db:"target"`
	Detail   string    `db:"detail"`
	Service  string    `db:"service"`
	ActedAt  time.Time `db:"acted_at"`
}

// recordActions stores the OperatorActed events among the records, each once.
func recordActions(ctx context.Context, tx *sqlx.Tx, records []*record) error {
	for _, r := range records { // nearly never one
		if r.acted == nil {
			continue
		}
		if err := addAction(ctx, tx, r.acted, r.source); err != nil {
			return err
		}
	}
	return nil
}

func addAction(ctx context.Context, tx *sqlx.Tx, acted *eventsv1.OperatorActed, service string) error {
	_, err := tx.ExecContext(ctx, `
		INSERT INTO operator_action (action_id, operator, method, target, detail, service, acted_at)
		VALUES ($1, $2, $3, $4, $5, $6, $7) ON CONFLICT (action_id) DO NOTHING`,
		uuid.MustParse(acted.GetActionId()), acted.GetOperator(), acted.GetMethod(), acted.GetTarget(), acted.GetDetail(), service,
		acted.GetActedAt().AsTime())
	if err != nil {
		return fmt.Errorf("recording what an operator did: %w", err)
	}
	return nil
}

// recordAction stores, in tx, what the operator of the call in ctx does. Other services publish an event; this one has the
// table itself.
func recordAction(ctx context.Context, tx *sqlx.Tx, method, target, detail string) error {
	return addAction(ctx, tx, enduser.Acted(enduser.Operator(ctx), method, target, detail), name)
}

// recordDecision stores an operator's decision about a dead letter.
func recordDecision(ctx context.Context, tx *sqlx.Tx, method string, letter deadLetter) error {
	return recordAction(ctx, tx, method, fmt.Sprintf("dead letter %d", letter.ID),
		fmt.Sprintf("%s, message %s of queue %s", letter.RoutingKey, letter.MessageID, letter.SourceQueue))
}

// operatorActionServer serves OperatorActionService.
type operatorActionServer struct {
	loggingv1.UnimplementedOperatorActionServiceServer
	*Service
}

// ListOperatorActions implements loggingv1.OperatorActionServiceServer.
func (s operatorActionServer) ListOperatorActions(ctx context.Context, req *loggingv1.ListOperatorActionsRequest) (*loggingv1.ListOperatorActionsResponse, error) {
	first := proto.CloneOf(req)
	first.PageSize, first.PageToken = 0, ""
	list := pagetoken.ListOf(first)
	before, err := pagetoken.ParseID(req.GetPageToken(), list)
	if err != nil {
		return nil, err
	}
	var c conditions
	if req.GetOperator() != "" {
		c.add("operator = %s", req.GetOperator())
	}
	if req.GetTarget() != "" {
		c.add("target = %s", req.GetTarget())
	}
	if req.GetActedAfter() != nil {
		c.add("acted_at >= %s", req.GetActedAfter().AsTime())
	}
	if req.GetActedBefore() != nil {
		c.add("acted_at < %s", req.GetActedBefore().AsTime())
	}
	if before > 0 {
		c.add("id < %s", before)
	}
	size := pagetoken.Size(req.GetPageSize())
	var actions []operatorAction
	query := fmt.Sprintf("SELECT id, operator, method, target, detail, service, acted_at FROM operator_action%s ORDER BY id DESC LIMIT %d", c.where(), size+1)
	if err := s.db.SelectContext(ctx, &actions, query, c.args...); err != nil {
		return nil, fmt.Errorf("reading what operators did: %w", postgres.Classify(err))
	}
	reply := &loggingv1.ListOperatorActionsResponse{}
	if len(actions) > size {
		actions = actions[:size]
		reply.NextPageToken = pagetoken.NewID(actions[size-1].ID, list)
	}
	for _, a := range actions {
		reply.OperatorActions = append(reply.OperatorActions, &loggingv1.OperatorAction{
			Id: a.ID, Operator: a.Operator, Method: a.Method, Target: a.Target, Detail: a.Detail, Service: a.Service, ActedAt: timestamppb.New(a.ActedAt),
		})
	}
	return reply, nil
}
