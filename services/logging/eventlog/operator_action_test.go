package eventlog

import (
	"context"
	"log/slog"
	"strconv"
	"strings"
	"testing"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	shopdb "shop.example/db"
	"shop.example/db/dbtest"
	"shop.example/domain/enduser"
	accessv1 "shop.example/gen/shop/access/v1"
	loggingv1 "shop.example/gen/shop/logging/v1"
	"shop.example/platform/apierror"
	"shop.example/platform/messaging"
	"shop.example/platform/testkit/postgrestest"
)

// asOperator is the context of a call that a gateway makes for an operator.
func asOperator(ctx context.Context, name string) context.Context {
	return enduser.With(ctx, &accessv1.EndUser{Operator: true, Name: name})
}

// actions lists the record, the newest first.
func (f *fixture) actions(t *testing.T, req *loggingv1.ListOperatorActionsRequest) (all []string) {
	t.Helper()
	reply, err := loggingv1.NewOperatorActionServiceClient(f.conn).ListOperatorActions(within(t), req)
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range reply.GetOperatorActions() {
		all = append(all, strings.Join([]string{a.GetOperator(), a.GetMethod(), a.GetTarget(), a.GetDetail(), a.GetService()}, " | "))
	}
	return all
}

func TestOperatorActions_WhatOperatorsDoIsInOneRecordOnce(t *testing.T) {
	t.Parallel()
	f := start(t)
	cheaper := enduser.Acted("ada", "shop.inventory.v1.InventoryService/UpdateItem", "item 5", "price 1.00 USD, was 35.00 USD")
	deleted := enduser.Acted("bob", "shop.inventory.v1.InventoryService/DeleteItem", "item 5", `deleted: name "Laptop Stand"`)
	f.publish(t, cheaper, placed(newOrderID()), deleted, cheaper) // the broker may deliver it twice
	f.orders(t)
	f.raw(t, "shop.order.placed", amqp.Publishing{Body: []byte("garbage")}, amqp.Publishing{Body: []byte("more")})
	letters := f.openLetters(t, 2)
	ada := asOperator(within(t), "ada")
	for range 2 { // the second time nothing is done
		if _, err := f.letters.DiscardDeadLetter(ada, &loggingv1.DiscardDeadLetterRequest{Id: letters[0].GetId()}); err != nil {
			t.Fatal(err)
		}
		if _, err := f.letters.RedriveDeadLetter(ada, &loggingv1.RedriveDeadLetterRequest{Id: letters[1].GetId()}); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := f.letters.DiscardDeadLetter(ada, &loggingv1.DiscardDeadLetterRequest{Id: 4711}); status.Code(err) != codes.NotFound {
		t.Fatal(err)
	}
	eventually(t, "four actions", func() bool { return len(f.actions(t, &loggingv1.ListOperatorActionsRequest{})) == 4 })
	all := f.actions(t, &loggingv1.ListOperatorActionsRequest{})
	for _, want := range []string{
		"ada | shop.inventory.v1.InventoryService/UpdateItem | item 5 | price 1.00 USD, was 35.00 USD | test",
		`bob | shop.inventory.v1.InventoryService/DeleteItem | item 5 | deleted: name "Laptop Stand" | test`,
		"ada | shop.logging.v1.DeadLetterService/DiscardDeadLetter | dead letter " + strconv.FormatInt(letters[0].GetId(), 10) + " | shop.order.placed, message " + letters[0].GetMessageId() + " of queue order | logging",
		"ada | shop.logging.v1.DeadLetterService/RedriveDeadLetter | dead letter " + strconv.FormatInt(letters[1].GetId(), 10) + " | shop.order.placed, message " + letters[1].GetMessageId() + " of queue order | logging",
	} {
		if n := strings.Count(strings.Join(all, "\n"), want); n != 1 {
			t.Errorf("%q is %d times in %q", want, n, all)
		}
	}
	// What the others have done is in the log of events, too.
	if e := f.event(t, cheaper); e.GetStatus() != loggingv1.Event_success || e.GetOrderId() != "" {
		t.Errorf("logged as %v", e)
	}

	if got := f.actions(t, &loggingv1.ListOperatorActionsRequest{Operator: "bob"}); len(got) != 1 || !strings.HasPrefix(got[0], "bob") {
		t.Errorf("of bob: %q", got)
	}
	if got := f.actions(t, &loggingv1.ListOperatorActionsRequest{Target: "item 5"}); len(got) != 2 || !strings.HasPrefix(got[0], "bob") {
		t.Errorf("of item 5: %q", got)
	}
	later, earlier := timestamppb.New(time.Now().Add(time.Hour)), timestamppb.New(time.Now().Add(-time.Hour))
	for _, req := range []*loggingv1.ListOperatorActionsRequest{{ActedAfter: later}, {ActedBefore: earlier}, {Operator: "eve"}} {
		if got := f.actions(t, req); len(got) != 0 {
			t.Errorf("%v: %q", req, got)
		}
	}
}

func TestOperatorActions_PagesAreStableAndBelongToOneFilter(t *testing.T) {
	t.Parallel()
	db := openDB(t, dbtest.New(t))
	s := operatorActionServer{Service: &Service{db: db}}
	for range 5 {
		write(t, db, deliveryOf(t, enduser.Acted("ada", "m", "item 1", "")))
	}
	var ids []int64
	req := &loggingv1.ListOperatorActionsRequest{PageSize: 2, Operator: "ada"}
	for page := 0; ; page++ {
		reply, err := s.ListOperatorActions(t.Context(), req)
		if err != nil || page > 3 {
			t.Fatal(page, err)
		}
		for _, a := range reply.GetOperatorActions() {
			ids = append(ids, a.GetId())
		}
		write(t, db, deliveryOf(t, enduser.Acted("ada", "m", "item 1", "")))
		if req.PageToken = reply.GetNextPageToken(); req.PageToken == "" {
			break
		}
		other := proto.CloneOf(req)
		other.Operator = "bob"
		if _, err := s.ListOperatorActions(t.Context(), other); apierror.Status(err).Code() != codes.InvalidArgument {
			t.Errorf("a token of another list: %v", err)
		}
	}
	if len(ids) != 5 || ids[0] != 5 || ids[4] != 1 {
		t.Errorf("listed %v", ids)
	}
}

// Who has the service's role could otherwise take back what an operator did.
func TestOperatorActions_CannotBeChangedOrDeletedByTheService(t *testing.T) {
	t.Parallel()
	url := postgrestest.NewEmpty(t)
	if err := shopdb.MigrateAll(t.Context(), url, func(string, []string) {}); err != nil { // its tables belong to the service's role
		t.Fatal(err)
	}
	db := openDB(t, url)
	write(t, db, deliveryOf(t, enduser.Acted("ada", "m", "item 1", "")))
	service, err := db.Connx(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer service.Close()
	if _, err := service.ExecContext(t.Context(), "SET ROLE logging"); err != nil {
		t.Fatal(err)
	}
	for _, statement := range []string{
		"UPDATE operator_action SET operator = 'bob'", "DELETE FROM operator_action", "TRUNCATE operator_action",
		"INSERT INTO operator_action SELECT * FROM operator_action", // its own id is not for the service to choose
	} {
		if _, err := service.ExecContext(t.Context(), statement); err == nil {
			t.Errorf("%s is done", statement)
		}
	}
	if _, err := service.ExecContext(t.Context(), "SELECT id FROM operator_action"); err != nil {
		t.Errorf("it may read: %v", err)
	}
	if n := count(t, db, "SELECT count(*) FROM operator_action WHERE operator = 'ada'"); n != 1 {
		t.Errorf("%d rows are left", n)
	}
}

func TestOperatorActions_StayThreeYearsAndAsLongAsTheLog(t *testing.T) {
	t.Parallel()
	db := openDB(t, dbtest.New(t))
	for _, age := range []string{"0", "2 years", "3 years 1 day", "9 years"} {
		if _, err := db.Exec(`INSERT INTO operator_action (action_id, operator, method, target, detail, service, acted_at, recorded_at)
			VALUES (gen_random_uuid(), 'ada', 'm', 't', '', 'test', now(), now() - $1::interval)`, age); err != nil {
			t.Fatal(err)
		}
	}
	for _, c := range []struct {
		retention time.Duration
		left      int
	}{{0, 4}, {5 * 366 * day, 3}, {day, 2}, {day, 2}} {
		(&partitions{db: db, log: slog.New(slog.DiscardHandler), retention: c.retention}).tryMaintain(t.Context())
		if n := count(t, db, "SELECT count(*) FROM operator_action"); n != c.left {
			t.Errorf("%d are left where events are kept for %s, want %d", n, c.retention, c.left)
		}
	}
}

func TestDeadLetters_ThatWereDecidedAboutGoWithTheEvents(t *testing.T) {
	t.Parallel()
	db := openDB(t, dbtest.New(t))
	letter := func(state string, age time.Duration, of messaging.Delivery) {
		t.Helper()
		id := storeLetter(t, db, of)
		if _, err := db.Exec("UPDATE dead_letter SET state = $2, updated_at = now() - $3 * interval '1 second' WHERE id = $1", id, state, age.Seconds()); err != nil {
			t.Fatal(err)
		}
	}
	letter("OPEN", 500*day, deadDelivery(t))
	letter("DISCARDED", 9*day, deadDelivery(t))
	letter("REDRIVEN", 9*day, deadDelivery(t))
	letter("DISCARDED", 40*day, deadDelivery(t))
	letter("REDRIVEN", 40*day, deadDelivery(t))
	again := deadDelivery(t) // redriven, and dead again: the first death says until when it can be redriven
	letter("REDRIVEN", 40*day, again)
	letter("OPEN", 0, again)
	for _, c := range []struct {
		retention time.Duration
		left      int
	}{{0, 7}, {30 * day, 5}, {8 * day, 3}, {day, 3}} {
		(&partitions{db: db, log: slog.New(slog.DiscardHandler), retention: c.retention, horizon: 7 * day}).tryMaintain(t.Context())
		if n := count(t, db, "SELECT count(*) FROM dead_letter"); n != c.left {
			t.Errorf("%d are left where events are kept for %s, want %d", n, c.retention, c.left)
		}
	}
	if n := count(t, db, "SELECT count(*) FROM dead_letter WHERE state = 'OPEN'"); n != 2 {
		t.Errorf("%d that wait for a decision are left, want 2", n)
	}
}
