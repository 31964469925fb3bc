package e2e

import (
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	amqp "github.com/rabbitmq/amqp091-go"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/timestamppb"

	"shop.example/db/dbtest"
	"shop.example/dev/local"
	eventsv1 "shop.example/gen/shop/events/v1"
	loggingv1 "shop.example/gen/shop/logging/v1"
	"shop.example/platform/mtls"
	"shop.example/platform/testkit/brokertest"
	"shop.example/topology"
)

// Once, whoever could publish to the exchange could place orders and say that they were confirmed, under the app_id of the
// right service.
func TestUsers_AForgedEventIsNeitherHandledNorLoggedNorRedriven(t *testing.T) {
	t.Parallel()
	s := start(t)
	ch := s.confirming(t)
	administrator := s.administrator(t)
	before := s.stock(t)
	id := uuid.Must(uuid.NewV7()).String()
	forged := &eventsv1.OrderPlaced{
		OrderId: id, CustomerName: "Eve", CustomerEmail: "eve@example.org", PlacedAt: timestamppb.Now(),
		Lines: []*eventsv1.RequestedLine{{ProductId: 1, Quantity: 1}},
	}
	s.send(t, ch, "shop.topic", "shop.order.placed", amqp.Publishing{
		MessageId: uuid.NewString(), CorrelationId: id, UserId: administrator, AppId: "gateway", Body: encode(t, forged),
	})
	refused := func(n int) []deadLetter {
		t.Helper()
		letters := s.open(t, n)
		for _, l := range letters {
			if want := fmt.Sprintf("the broker's user %q may not publish shop.events.v1.OrderPlaced", administrator); l.Reason != want {
				t.Errorf("queue %s: %s, want %s", l.SourceQueue, l.Reason, want)
			}
		}
		return letters
	}
	first := refused(2) // of the order service and of the log
	for _, l := range first {
		if a := s.post(t, l.path()+":redrive"); a.code != http.StatusOK {
			t.Errorf("redriving: %d %s", a.code, a.body)
		}
	}
	eventually(t, func() error {
		var again []string
		for _, l := range s.deadLetters(t, "OPEN") {
			if l.ID != first[0].ID && l.ID != first[1].ID {
				again = append(again, l.SourceQueue)
			}
		}
		if len(again) != 2 {
			return fmt.Errorf("refused again by %v", again)
		}
		return nil
	})
	refused(2)
	if a := s.get(t, "/v1/orders/"+id); a.code != http.StatusNotFound {
		t.Errorf("the order is there: %d %s", a.code, a.body)
	}
	if a := s.get(t, "/v1/orders/"+id+"/events"); strings.Contains(string(a.body), id) {
		t.Errorf("the log has it: %s", a.body)
	}

	// The shop itself is let through everywhere.
	if o := s.decided(t, s.place(t, 1, 1)); o.State != "CONFIRMED" {
		t.Errorf("the shop's own order: %+v", o)
	}
	product := ""
	for name, i := range before {
		if i.ID == 1 {
			product = name
		}
	}
	if after := s.settled(t)[product]; after.OnHand != before[product].OnHand-1 {
		t.Errorf("%d pieces of %s, want one less than %d", after.OnHand, product, before[product].OnHand)
	}
	s.open(t, 2)
}

// If all services run in one process they share one certificate, which names one of them or none.
func TestCallers_OneProcessMayCallItselfAndNobodyElseMay(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	if err := mtls.GenerateDevCerts(dir, time.Hour, "shop", "inventory"); err != nil {
		t.Fatal(err)
	}
	broker, database := brokertest.New(t), dbtest.New(t)
	cfg := config(t, database, broker.Services(t, topology.Broker()))
	cfg.TLS = mtls.CertPaths(dir, "shop")
	built, err := local.New(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	s := &shop{Shop: built, url: "http://" + built.Gateway.HTTPAddr(), database: database, broker: broker}
	run(t, s.Shop)
	location := s.place(t, 1, 1)
	if o := s.decided(t, location); o.State != "CONFIRMED" {
		t.Errorf("the order: %+v", o)
	}
	if a := s.get(t, "/v1/dead-letters"); a.code != http.StatusOK {
		t.Errorf("the dead letters: %d %s", a.code, a.body)
	}
	creds, err := mtls.CertPaths(dir, "inventory").Client(slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	conn, err := grpc.NewClient(s.Logging.GRPCAddr(), grpc.WithTransportCredentials(creds))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	if _, err := loggingv1.NewDeadLetterServiceClient(conn).ListDeadLetters(t.Context(), &loggingv1.ListDeadLettersRequest{}); status.Code(err) != codes.PermissionDenied {
		t.Errorf("inventory, from another machine: %v", err)
	}
}

// What the shop does itself must not raise the alarm: orders, calls over the broker, dead letters, redrives.
func TestUsers_WhatTheShopItselfPublishesRaisesNoAlarm(t *testing.T) {
	t.Parallel()
	s := start(t)
	ch := s.confirming(t)
	location := s.place(t, 1, 1)
	s.decided(t, location)
	s.settled(t)
	if a := s.post(t, location+":cancel"); a.code != http.StatusOK {
		t.Errorf("cancelling: %d %s", a.code, a.body)
	}
	if a := s.get(t, "/intermediary/inventory"); a.code != http.StatusOK {
		t.Errorf("listing over the broker: %d %s", a.code, a.body)
	}
	chairs := products("Chair", 1)
	s.send(t, ch, "shop.topic", "shop.inventory.create", amqp.Publishing{Body: encode(t, chairs)})
	chairs.RequestId = uuid.NewString()
	s.send(t, ch, "shop.topic", "shop.inventory.create", amqp.Publishing{Body: encode(t, chairs)}) // there is one already
	letter := s.open(t, 1)[0]
	if a := s.post(t, letter.path()+":redrive"); a.code != http.StatusOK {
		t.Errorf("redriving: %d %s", a.code, a.body)
	}
	eventually(t, func() error {
		if open := s.deadLetters(t, "OPEN"); len(open) != 1 || open[0].ID == letter.ID {
			return fmt.Errorf("open: %+v", open)
		}
		return nil
	})
	for _, admin := range []string{s.Gateway.AdminAddr(), s.Order.AdminAddr(), s.Inventory.AdminAddr(), s.Logging.AdminAddr()} {
		res, err := http.Get("http://" + admin + "/metrics")
		if err != nil {
			t.Fatal(err)
		}
		text, err := io.ReadAll(res.Body)
		_ = res.Body.Close()
		if err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(string(text)) {
			if strings.HasPrefix(line, "messaging_user_") && !strings.HasSuffix(line, " 0\n") {
				t.Errorf("%s counts: %s", admin, line)
			}
		}
	}
}
