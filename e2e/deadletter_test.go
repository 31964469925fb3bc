package e2e

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	amqp "github.com/rabbitmq/amqp091-go"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/timestamppb"

	eventsv1 "shop.example/gen/shop/events/v1"
	loggingv1 "shop.example/gen/shop/logging/v1"
	moneyv1 "shop.example/gen/shop/money/v1"
	"shop.example/platform/outbox"
	"shop.example/services/inventory/stock"
	"shop.example/services/logging/eventlog"
	"shop.example/services/order/ordering"
	"shop.example/shop/command"
)

type letter struct {
	ID          string    `json:"id"`
	State       string    `json:"state"`
	Reason      string    `json:"reason"`
	SourceQueue string    `json:"source_queue"`
	Exchange    string    `json:"exchange"`
	RoutingKey  string    `json:"routing_key"`
	MessageID   string    `json:"message_id"`
	OrderID     string    `json:"order_id"`
	TraceID     string    `json:"trace_id"`
	Type        string    `json:"type"`
	Attempts    int       `json:"attempts"`
	Payload     any       `json:"payload"`
	Body        []byte    `json:"body"`
	Until       time.Time `json:"redrivable_until"`
}

func (l letter) path() string { return "/v1/dead-letters/" + l.ID }

// letters lists the dead letters in a state, or in all where it is "".
func (s *shop) letters(t *testing.T, state string) []letter {
	t.Helper()
	path := "/v1/dead-letters?page_size=1000"
	if state != "" {
		path += "&state=" + state
	}
	var list struct {
		DeadLetters []letter `json:"dead_letters"`
	}
	s.get(t, path).json(t, &list)
	return list.DeadLetters
}

// open waits until n dead letters are open and returns them, with their bodies.
func (s *shop) open(t *testing.T, n int) []letter {
	t.Helper()
	var open []letter
	eventually(t, func() error {
		if open = s.letters(t, "OPEN"); len(open) != n {
			return fmt.Errorf("%d dead letters are open, want %d: %+v", len(open), n, open)
		}
		return nil
	})
	for i := range open {
		s.get(t, open[i].path()).json(t, &open[i])
	}
	return open
}

// post sends what operators send.
func (s *shop) post(t *testing.T, path string) answer {
	t.Helper()
	return s.call(t, http.MethodPost, path, "{}", "Authorization", "Bearer "+operatorToken)
}

type eventRow struct {
	RoutingKey string `json:"routing_key"`
	Status     string `json:"status"`
	Error      string `json:"error_message"`
	MessageID  string `json:"message_id"`
}

// events reads the log with a filter, "&status=error" for example. A page ends before its time where its rows are large.
func (s *shop) events(t *testing.T, filter string) []eventRow {
	t.Helper()
	var all []eventRow
	for token := ""; ; {
		var page struct {
			Events []eventRow
			Next   string `json:"next_page_token"`
		}
		s.get(t, "/v1/events?page_size=1000&page_token="+token+filter).json(t, &page)
		all = append(all, page.Events...)
		if token = page.Next; token == "" {
			return all
		}
	}
}

// logOf returns the row of a message in the log of events, and how many there are.
func (s *shop) logOf(t *testing.T, messageID string) (row eventRow, rows int) {
	t.Helper()
	for _, e := range s.events(t, "") {
		if e.MessageID == messageID {
			row = e
			rows++
		}
	}
	return row, rows
}

// isLogged waits until the log has the message once, with a status and an error message.
func (s *shop) isLogged(t *testing.T, messageID, status, message string) {
	t.Helper()
	eventually(t, func() error {
		row, rows := s.logOf(t, messageID)
		if rows != 1 || row.Status != status || row.Error != message {
			return fmt.Errorf("message %s has %d rows, the last is %s %q; want one, %s %q", messageID, rows, row.Status, row.Error, status, message)
		}
		return nil
	})
}

// send publishes a message as anybody could and returns when the broker has it.
func (s *shop) send(t *testing.T, ch *amqp.Channel, exchange, key string, m amqp.Publishing) {
	t.Helper()
	confirm, err := ch.PublishWithDeferredConfirm(exchange, key, true, false, m)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if acked, err := confirm.WaitContext(ctx); err != nil || !acked {
		t.Fatalf("the broker did not take %s: %v", key, err)
	}
}

// confirming is a channel whose messages are confirmed.
func (s *shop) confirming(t *testing.T) *amqp.Channel {
	t.Helper()
	ch := s.openChannel(t)
	if err := ch.Confirm(false); err != nil {
		t.Fatal(err)
	}
	return ch
}

// consumed is how many messages of a queue came to an end of one kind ("handled", "retried", "dead"), as the admin
// listener of its service says.
func consumed(t *testing.T, admin, queue, verdict string) (sum int) {
	t.Helper()
	res, err := http.Get("http://" + admin + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	text, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	for _, line := range regexp.MustCompile(`(?m)^messaging_consumed_total\{(.*)\} (\S+)$`).FindAllStringSubmatch(string(text), -1) {
		if !strings.Contains(line[1], `queue="`+queue+`"`) || !strings.Contains(line[1], `verdict="`+verdict+`"`) {
			continue
		}
		n, err := strconv.Atoi(line[2])
		if err != nil {
			t.Fatalf("metric %s: %v", line[0], err)
		}
		sum += n
	}
	return sum
}

// placed is a message that is as it should be.
func placed() *eventsv1.OrderPlaced {
	return &eventsv1.OrderPlaced{
		OrderId: uuid.Must(uuid.NewV7()).String(), CustomerName: "Ada", CustomerEmail: "ada@example.org",
		Lines: []*eventsv1.RequestedLine{{ProductId: 1, Quantity: 1}}, PlacedAt: timestamppb.Now(),
	}
}

func products(name string, quantity int32) *eventsv1.CreateItems {
	return &eventsv1.CreateItems{RequestId: uuid.NewString(), Items: []*eventsv1.CreateItems_Item{
		{ProductName: name, Quantity: quantity, Price: &moneyv1.Money{CurrencyCode: "USD", Units: 250}},
	}}
}

const mebibyte = 1 << 20

func TestDeadLetters_PoisonIsKeptOnceWithItsReasonAndCostsNobody(t *testing.T) {
	t.Parallel()
	s := start(t)
	ch := s.confirming(t)

	nameless, long, mistyped := placed(), placed(), placed()
	nameless.CustomerName = ""
	long.CustomerName = strings.Repeat("A", mebibyte)
	const trace = "0af7651916cd43dd8448eb211c80319c"
	traced := amqp.Table{"traceparent": "00-" + trace + "-b7ad6b7169203331-01"}
	withID := func(m amqp.Publishing) amqp.Publishing {
		m.MessageId, m.DeliveryMode, m.Timestamp = uuid.NewString(), amqp.Persistent, time.Now()
		return m
	}
	poison := []struct {
		what          string
		exchange, key string
		queue, reason string
		m             amqp.Publishing
		orderID       string
		readable      bool
	}{
		{"garbage with every property", "shop.topic", "shop.order.placed", "order", "the body is not a shop.events.v1.OrderPlaced",
			withID(amqp.Publishing{Body: []byte("\xff garbage"), Type: "shop.events.v1.OrderPlaced", CorrelationId: nameless.GetOrderId(), Headers: traced}), nameless.GetOrderId(), false},
		{"garbage without any property", "shop.topic", "shop.order.placed", "order", "the body is not a shop.events.v1.OrderPlaced",
			amqp.Publishing{Body: []byte("\xff nothing")}, "", false},
		{"an order without a name", "shop.topic", "shop.order.placed", "order", "customer_name",
			withID(amqp.Publishing{Body: encode(t, nameless), Headers: traced}), nameless.GetOrderId(), true},
		{"an order that says it is something else", "shop.topic", "shop.order.placed", "order", "the type property says shop.events.v1.CreateItems",
			withID(amqp.Publishing{Body: encode(t, mistyped), Type: "shop.events.v1.CreateItems"}), "", false},
		{"an order whose name has a mebibyte", "shop.topic", "shop.order.placed", "order", "customer_name",
			withID(amqp.Publishing{Body: encode(t, long)}), long.GetOrderId(), true},
		{"a mebibyte of garbage", "shop.topic", "shop.order.placed", "order", "the body is not a shop.events.v1.OrderPlaced",
			withID(amqp.Publishing{Body: bytes.Repeat([]byte{0xff}, mebibyte)}), "", false},
		{"an order past the exchange", "", "order", "order", `no message has the routing key "order"`,
			withID(amqp.Publishing{Body: encode(t, placed())}), "", false},
		{"an unknown routing key", "shop.topic", "shop.inventory.foo", "inventory", `no message has the routing key "shop.inventory.foo"`,
			withID(amqp.Publishing{Body: encode(t, products("Foo", 1))}), "", false},
		{"an event of another queue's service", "", "inventory", "inventory", `no message has the routing key "inventory"`,
			withID(amqp.Publishing{Body: encode(t, placed())}), "", false},
		{"nothing at all", "shop.topic", "shop.inventory.create", "inventory", "the message breaks its contract", amqp.Publishing{}, "", true},
		{"a cancellation that cannot be read", "shop.topic", "shop.order.cancelled", "inventory", "the body is not a shop.events.v1.OrderCancelled",
			withID(amqp.Publishing{Body: []byte("\xff cancelled")}), "", false},
		{"a request that nobody can answer", "shop.topic", "shop.inventory.list", "inventory", "the body is not a shop.events.v1.ListInventory",
			withID(amqp.Publishing{Body: []byte("\xff list"), ReplyTo: "nowhere", CorrelationId: uuid.NewString()}), "", false},
		{"a product that is there already", "shop.topic", "shop.inventory.create", "inventory", `there is an item "Laptop" already`,
			amqp.Publishing{Body: encode(t, products("Laptop", 1)), Headers: traced}, "", true},
	}
	var good []string
	for _, p := range poison {
		good = append(good, s.place(t, 1, 1))
		s.send(t, ch, p.exchange, p.key, p.m)
	}
	for _, location := range good {
		if o := s.decided(t, location); o.State != "CONFIRMED" {
			t.Errorf("an order between poison is %s %s", o.State, o.Reason)
		}
	}

	letters := map[string]letter{}
	for _, l := range s.open(t, len(poison)) {
		letters[l.RoutingKey+string(l.Body)] = l
	}
	inLog := 0
	for _, p := range poison {
		l, ok := letters[p.key+string(p.m.Body)]
		if !ok {
			t.Errorf("%s is no dead letter", p.what)
			continue
		}
		if l.SourceQueue != p.queue || l.Exchange != p.exchange || !strings.Contains(l.Reason, p.reason) || l.Attempts != 1 || l.Type != p.m.Type ||
			l.OrderID != p.orderID || l.State != "OPEN" || (l.Payload != nil) != p.readable || l.Until.Before(time.Now().Add(6*24*time.Hour)) {
			t.Errorf("%s: %s", p.what, abridged(l))
		}
		if want := map[bool]string{true: trace}[p.m.Headers != nil]; l.TraceID != want {
			t.Errorf("%s has trace %q, want %q", p.what, l.TraceID, want)
		}
		if p.m.MessageId != "" && !p.readable && l.MessageID != p.m.MessageId {
			t.Errorf("%s has message id %s, was sent with %s", p.what, l.MessageID, p.m.MessageId)
		}
		if p.exchange == "" {
			continue // no other queue has seen it
		}
		inLog++
		if p.m.MessageId != "" || p.readable { // else nothing says that row and letter are the same message
			s.isLogged(t, l.MessageID, "error", l.Reason)
		}
	}
	if n := len(s.events(t, "&status=error")); n != inLog {
		t.Errorf("%d rows of the log are errors, want %d", n, inLog)
	}

	// Nothing goes round: each came to its end once, and what comes later finds the way free.
	s.decided(t, s.place(t, 1, 1))
	s.settled(t)
	eventually(t, func() error { return emptyQueues(t, ch) })
	dead := consumed(t, s.Order.AdminAddr(), "order", "dead") + consumed(t, s.Inventory.AdminAddr(), "inventory", "dead")
	retried := consumed(t, s.Order.AdminAddr(), "order", "retried") + consumed(t, s.Inventory.AdminAddr(), "inventory", "retried")
	if dead != len(poison) || retried != 0 {
		t.Errorf("%d messages died and %d were tried again, want %d and none", dead, retried, len(poison))
	}
	if n := len(s.letters(t, "")); n != len(poison) {
		t.Errorf("%d dead letters in the end, want %d", n, len(poison))
	}
}

func abridged(l letter) string {
	l.Body, l.Payload = nil, l.Payload != nil
	if len(l.Reason) > 200 {
		l.Reason = l.Reason[:200]
	}
	return fmt.Sprintf("%+v", l)
}

// The log takes what nobody can read.
func TestDeadLetters_TheLogKeepsWhatItCannotRead(t *testing.T) {
	t.Parallel()
	s := start(t)
	id := uuid.NewString()
	s.send(t, s.confirming(t), "", "logging", amqp.Publishing{Body: bytes.Repeat([]byte{0xff}, mebibyte), MessageId: id})
	s.isLogged(t, id, "error", `no message has the routing key "logging"`)
	if letters := s.letters(t, ""); len(letters) > 0 {
		t.Errorf("dead letters: %+v", letters)
	}
}

// One that is far larger than what gRPC's clients take by themselves goes every way there is.
func TestDeadLetters_LargeOnesCanBeShownAndDecided(t *testing.T) {
	t.Parallel()
	s := start(t)
	long := placed()
	long.CustomerName = strings.Repeat("A", 12*mebibyte)
	body := encode(t, long)
	s.send(t, s.confirming(t), "shop.topic", "shop.order.placed", amqp.Publishing{Body: body})
	first := s.open(t, 1)[0]
	if !bytes.Equal(first.Body, body) {
		t.Errorf("%d bytes are shown of %d", len(first.Body), len(body))
	}
	if out, _ := s.mustDLQ(t, "show", first.ID); !strings.Contains(out, fmt.Sprintf("%d bytes", len(body))) {
		t.Errorf("shown as %.1000s", out)
	}
	s.mustDLQ(t, "redrive", first.ID)
	second := s.open(t, 1)[0]
	if second.ID == first.ID || second.MessageID != first.MessageID || !bytes.Equal(second.Body, body) {
		t.Errorf("after the redrive: %s", abridged(second))
	}
	s.mustDLQ(t, "discard", second.ID)
	s.open(t, 0)
}

func TestRedrive_OnceItsCauseIsGoneTheMessageIsHandled(t *testing.T) {
	t.Parallel()
	s := start(t)
	ch := s.confirming(t)
	deleteItem := func(name string) {
		t.Helper()
		a := s.call(t, http.MethodDelete, fmt.Sprintf("/v1/inventory/%d", s.stock(t)[name].ID), "", "Authorization", "Bearer "+operatorToken)
		if a.code != http.StatusOK {
			t.Fatalf("deleting %s: %d %s", name, a.code, a.body)
		}
	}
	has := func(name string, pieces int) {
		t.Helper()
		eventually(t, func() error {
			if i, there := s.stock(t)[name]; !there || i.OnHand != pieces {
				return fmt.Errorf("%s: %v, %d pieces, want %d", name, there, i.OnHand, pieces)
			}
			return nil
		})
	}
	grpcCtx := metadata.AppendToOutgoingContext(t.Context(), "authorization", "Bearer "+operatorToken)
	client := loggingv1.NewDeadLetterServiceClient(s.dial(t))
	id := func(l letter) int64 {
		n, err := strconv.ParseInt(l.ID, 10, 64)
		if err != nil {
			t.Fatal(err)
		}
		return n
	}

	s.send(t, ch, "shop.topic", "shop.inventory.create", amqp.Publishing{Body: encode(t, products("Chair", 1))})
	has("Chair", 1)
	chairs := products("Chair", 7)
	// It has been tried before: the next death is the last of four.
	s.send(t, ch, "shop.topic", "shop.inventory.create", amqp.Publishing{Body: encode(t, chairs), Headers: amqp.Table{"shop-attempt": 3}})
	first := s.open(t, 1)[0]
	if first.Attempts != 4 {
		t.Errorf("dead after %d attempts, want 4", first.Attempts)
	}
	s.isLogged(t, first.MessageID, "error", first.Reason)

	// Still bad: it dies again, as a first attempt, and is a letter of its own.
	done, err := client.RedriveDeadLetter(grpcCtx, &loggingv1.RedriveDeadLetterRequest{Id: id(first)})
	if err != nil || done.GetDeadLetter().GetState() != loggingv1.DeadLetter_REDRIVEN {
		t.Fatalf("redriven over gRPC: %v, %v", done, err)
	}
	var second letter
	eventually(t, func() error {
		open := s.letters(t, "OPEN")
		if len(open) != 1 || open[0].ID == first.ID {
			return fmt.Errorf("open: %+v", open)
		}
		second = open[0]
		return nil
	})
	if second.Attempts != 1 || second.MessageID != first.MessageID || second.Reason != first.Reason || second.SourceQueue != "inventory" ||
		second.RoutingKey != "shop.inventory.create" || second.Exchange != "shop.topic" {
		t.Errorf("after a redrive in vain: %s", abridged(second))
	}
	s.isLogged(t, first.MessageID, "error", second.Reason)
	if _, err := client.RedriveDeadLetter(grpcCtx, &loggingv1.RedriveDeadLetterRequest{Id: id(first)}); err != nil {
		t.Errorf("redriving what was redriven: %v", err)
	}

	deleteItem("Chair")
	a := s.post(t, second.path()+":redrive")
	var redriven letter
	a.json(t, &redriven)
	if a.code != http.StatusOK || redriven.State != "REDRIVEN" || redriven.MessageID != first.MessageID {
		t.Fatalf("redriven over REST: %d %s", a.code, a.body)
	}
	has("Chair", 7)
	s.isLogged(t, first.MessageID, "success", "")

	// Whoever did not see the answer asks again, and nothing is sent twice.
	for range 3 {
		if a := s.post(t, second.path()+":redrive"); a.code != http.StatusOK {
			t.Errorf("redriven once more: %d %s", a.code, a.body)
		}
	}
	if a := s.post(t, second.path()+":discard"); a.code != http.StatusBadRequest || !strings.Contains(string(a.body), "DEAD_LETTER_REDRIVEN") {
		t.Errorf("discarding what was redriven: %d %s", a.code, a.body)
	}
	s.isLogged(t, first.MessageID, "success", "")
	s.open(t, 0)
	if n := len(s.letters(t, "REDRIVEN")); n != 2 {
		t.Errorf("%d letters are redriven, want 2", n)
	}

	// Given up: it stays in the list, and an error in the log.
	s.send(t, ch, "shop.topic", "shop.inventory.create", amqp.Publishing{Body: encode(t, products("Chair", 9))})
	third := s.open(t, 1)[0]
	if a := s.post(t, third.path()+":discard"); a.code != http.StatusOK {
		t.Fatalf("discarding: %d %s", a.code, a.body)
	}
	if a := s.post(t, third.path()+":redrive"); a.code != http.StatusBadRequest || !strings.Contains(string(a.body), "DEAD_LETTER_DISCARDED") {
		t.Errorf("redriving what was discarded: %d %s", a.code, a.body)
	}
	s.isLogged(t, third.MessageID, "error", third.Reason)
	if discarded := s.letters(t, "DISCARDED"); len(discarded) != 1 || discarded[0].ID != third.ID {
		t.Errorf("discarded: %+v", discarded)
	}
	if a := s.post(t, "/v1/dead-letters/4711:redrive"); a.code != http.StatusNotFound {
		t.Errorf("redriving what is not there: %d %s", a.code, a.body)
	}
	if a := s.call(t, http.MethodPost, third.path()+":redrive", "{}"); a.code != http.StatusUnauthorized {
		t.Errorf("redriving without a token: %d %s", a.code, a.body)
	}
	eventually(t, func() error { return emptyQueues(t, ch) })
	has("Chair", 7)
	// Chair was made, refused, refused when redriven, made when redriven, and refused.
	if n := consumed(t, s.Inventory.AdminAddr(), "inventory", "handled") - consumed(t, s.Inventory.AdminAddr(), "inventory", "retried"); n != 2 {
		t.Errorf("%d messages were handled, want 2", n)
	}
	if n := consumed(t, s.Inventory.AdminAddr(), "inventory", "dead"); n != 3 {
		t.Errorf("%d messages died, want 3", n)
	}
}

// The broker takes the message, and its confirm is lost with the connection: nobody knows that it was sent, so the
// letter stays open, and to redrive it again has no second effect.
func TestRedrive_AConfirmThatIsLostLeavesTheLetterOpenAndHasOneEffect(t *testing.T) {
	t.Parallel()
	f := newFleet(t, fleetOptions{})
	line := f.broker.Line(t)
	logging := f.replicas["logging"][0]
	logging.env = append(logging.env, "AMQP_URL="+line.URL)
	f.up(t)
	f.publish(t, "shop.inventory.create", encode(t, products("Bench", 1)), 1)
	f.publish(t, "shop.inventory.create", encode(t, products("Bench", 5)), 1)
	dead := f.shop.open(t, 1)[0]
	var bench item
	eventually(t, func() error {
		if bench = f.stock(t)["Bench"]; bench.OnHand != 1 && bench.OnHand != 5 {
			return fmt.Errorf("bench: %+v", bench)
		}
		return nil
	})
	if a := f.call(t, http.MethodDelete, fmt.Sprintf("/v1/inventory/%d", bench.ID), "", "Authorization", "Bearer "+operatorToken); a.code != http.StatusOK {
		t.Fatalf("deleting the product: %d %s", a.code, a.body)
	}

	conn, err := grpc.NewClient(strings.TrimPrefix(f.url, "http://"), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	ctx, cancel := context.WithTimeout(metadata.AppendToOutgoingContext(t.Context(), "authorization", "Bearer "+operatorToken), 3*time.Second)
	defer cancel()
	id, err := strconv.ParseInt(dead.ID, 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	line.Mute(t)
	_, err = loggingv1.NewDeadLetterServiceClient(conn).RedriveDeadLetter(ctx, &loggingv1.RedriveDeadLetterRequest{Id: id})
	if code := status.Code(err); code != codes.DeadlineExceeded && code != codes.Unavailable {
		t.Errorf("redriven without a confirm: %v", err)
	}
	arrived := func() error {
		if b := f.stock(t)["Bench"]; b.OnHand != 6-bench.OnHand {
			return fmt.Errorf("the product that was redriven: %+v", b)
		}
		return nil
	}
	eventually(t, arrived)
	if open := f.letters(t, "OPEN"); len(open) != 1 || open[0].ID != dead.ID {
		t.Errorf("open: %+v", open)
	}
	line.Down()
	if a := f.post(t, dead.path()+":redrive"); a.code != http.StatusServiceUnavailable && a.code != http.StatusGatewayTimeout {
		t.Errorf("redriven without a broker: %d %s", a.code, a.body)
	}
	line.Up(t)
	f.up(t)
	if a := f.post(t, dead.path()+":redrive"); a.code != http.StatusOK {
		t.Fatalf("redriven again: %d %s", a.code, a.body)
	}
	f.isLogged(t, dead.MessageID, "success", "")
	ch := f.openChannel(t)
	eventually(t, func() error { return emptyQueues(t, ch) })
	f.shop.open(t, 0)
	if letters := f.letters(t, ""); len(letters) != 1 || letters[0].State != "REDRIVEN" {
		t.Errorf("letters: %+v", letters)
	}
	if err := arrived(); err != nil {
		t.Error(err)
	}
}

// A message that kills each consumer before that can say a word is given up by the broker, by policy. Who keeps dead
// letters can die of one as often as it likes: there is no place behind that queue.
func TestDeadLetters_WhatKillsItsConsumersIsGivenUpByTheBrokerAndCanBeRedriven(t *testing.T) {
	t.Parallel()
	f := newFleet(t, fleetOptions{})
	for _, name := range []string{"gateway", "logging"} {
		f.replicas[name][0].start(t)
	}
	for _, name := range []string{"gateway", "logging"} {
		f.replicas[name][0].waitReady(t)
	}
	location := f.place(t, 1, 1)
	eventually(t, func() error {
		if rows := f.events(t, ""); len(rows) != 1 {
			return fmt.Errorf("%d events are logged", len(rows))
		}
		return nil
	})
	f.replicas["logging"][0].term(t)
	ch := f.openChannel(t)
	deaths := 0
	eventually(t, func() error {
		if f.diesOfADelivery(t, "order") {
			deaths++
		}
		if q, err := ch.QueueDeclarePassive("dead-letter", true, false, false, false, nil); err != nil || q.Messages != 1 {
			return fmt.Errorf("%d messages are dead after %d deliveries, %w", q.Messages, deaths, err)
		}
		return nil
	})
	for range 30 {
		eventually(t, func() error {
			if !f.diesOfADelivery(t, "dead-letter") {
				return errors.New("the dead letter is not there")
			}
			return nil
		})
	}

	f.up(t)
	dead := f.shop.open(t, 1)[0]
	if dead.SourceQueue != "order" || dead.Exchange != "shop.topic" || dead.RoutingKey != "shop.order.placed" || dead.Type != "shop.events.v1.OrderPlaced" ||
		dead.Reason != "given up by the broker: delivery_limit" || dead.TraceID == "" || location != "/v1/orders/"+dead.OrderID || dead.Payload == nil {
		t.Errorf("after %d deliveries: %s", deaths, abridged(dead))
	}
	f.isLogged(t, dead.MessageID, "error", dead.Reason)
	f.mustDLQ(t, "redrive", dead.ID)
	if o := f.decided(t, location); o.State != "CONFIRMED" {
		t.Errorf("the order is %s %s", o.State, o.Reason)
	}
	f.isLogged(t, dead.MessageID, "success", "")
	f.settled(t)
	f.shop.open(t, 0)
}

// diesOfADelivery takes a message of the queue and is gone before it says what became of it. False where there is none.
func (s *shop) diesOfADelivery(t *testing.T, queue string) bool {
	t.Helper()
	conn, err := amqp.Dial(s.broker.URL)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	ch, err := conn.Channel()
	if err != nil {
		t.Fatal(err)
	}
	_, there, err := ch.Get(queue, false)
	if err != nil {
		t.Fatal(err)
	}
	return there
}

// dlq runs `shop dlq` on the shop.
func (s *shop) dlq(t *testing.T, args ...string) (stdout, stderr string, err error) {
	t.Helper()
	root := command.Root()
	var out, errs bytes.Buffer
	root.SetIn(strings.NewReader(""))
	root.SetOut(&out)
	root.SetErr(&errs)
	root.SetArgs(append([]string{"dlq", "--server", s.url, "--token", operatorToken}, args...))
	err = root.ExecuteContext(t.Context())
	return out.String(), errs.String(), err
}

func (s *shop) mustDLQ(t *testing.T, args ...string) (stdout, stderr string) {
	t.Helper()
	stdout, stderr, err := s.dlq(t, args...)
	if err != nil {
		t.Fatalf("shop dlq %s: %v\n%s%s", strings.Join(args, " "), err, stdout, stderr)
	}
	return stdout, stderr
}

func TestDLQCommand_ShowsAndDecides(t *testing.T) {
	t.Parallel()
	s := start(t)
	ch := s.confirming(t)
	if out, errs := s.mustDLQ(t, "list"); out != "" || errs != "No dead letters (--state open).\n" {
		t.Errorf("nothing is listed as %q, %q", out, errs)
	}
	if _, errs := s.mustDLQ(t, "redrive", "--all"); errs != "No dead letter is open.\n" {
		t.Errorf("nothing is redriven as %q", errs)
	}

	laptops := products("Laptop", 1)
	s.send(t, ch, "shop.topic", "shop.inventory.create", amqp.Publishing{Body: encode(t, laptops)})
	s.open(t, 1)
	s.send(t, ch, "shop.topic", "shop.order.placed", amqp.Publishing{Body: []byte("\xff\x1b[2J"), MessageId: uuid.NewString(), CorrelationId: uuid.NewString()})
	open := s.open(t, 2) // the newest first
	garbage, twice := open[0], open[1]

	out, _ := s.mustDLQ(t, "list")
	lines := strings.Split(strings.TrimSpace(out), "\n")
	if len(lines) != 3 || !strings.HasPrefix(lines[0], "ID") || !strings.HasSuffix(lines[0], "REASON") {
		t.Fatalf("listed as\n%s", out)
	}
	for i, l := range []letter{garbage, twice} {
		for _, cell := range []string{l.ID, "OPEN", l.SourceQueue, l.RoutingKey, l.OrderID, "1", l.Reason} {
			if !strings.Contains(lines[i+1], cell) {
				t.Errorf("%q is not in\n%s", cell, lines[i+1])
			}
		}
	}
	if out, errs := s.mustDLQ(t, "list", "--limit", "1"); !strings.Contains(out, garbage.ID) || strings.Contains(out, twice.Reason) || !strings.Contains(errs, "more than 1") {
		t.Errorf("one is listed as\n%s%s", out, errs)
	}
	var list struct {
		DeadLetters []letter `json:"dead_letters"`
	}
	out, _ = s.mustDLQ(t, "list", "--json")
	if (answer{body: []byte(out)}).json(t, &list); len(list.DeadLetters) != 2 || list.DeadLetters[1].MessageID != twice.MessageID {
		t.Errorf("JSON: %s", out)
	}

	out, _ = s.mustDLQ(t, "show", twice.ID)
	for _, part := range []string{twice.Reason, twice.MessageID, "shop.topic", "redrivable until", `"product_name": "Laptop"`, laptops.GetRequestId()} {
		if !strings.Contains(out, part) {
			t.Errorf("%q is not shown in\n%s", part, out)
		}
	}
	out, _ = s.mustDLQ(t, "show", garbage.ID)
	if !strings.Contains(out, "ff 1b 5b 32 4a") || !strings.Contains(out, garbage.OrderID) || strings.Contains(out, "\x1b") {
		t.Errorf("garbage is shown as\n%q", out)
	}
	var shown letter
	out, _ = s.mustDLQ(t, "show", garbage.ID, "--json")
	if (answer{body: []byte(out)}).json(t, &shown); !bytes.Equal(shown.Body, []byte("\xff\x1b[2J")) {
		t.Errorf("JSON: %s", out)
	}

	if out, _ = s.mustDLQ(t, "discard", garbage.ID); out != garbage.ID+" discarded (shop.order.placed of queue order)\n" {
		t.Errorf("discarded as %q", out)
	}
	// What is wrong with one does not keep the others.
	out, errs, err := s.dlq(t, "redrive", garbage.ID, "4711", twice.ID)
	var code command.ExitCode
	if !errors.As(err, &code) || code != 1 || out != twice.ID+" redriven (shop.inventory.create of queue inventory)\n" ||
		!strings.Contains(errs, "was discarded") || !strings.Contains(errs, "there is no dead letter 4711") || !strings.Contains(errs, "2 of 3 dead letters not redriven") {
		t.Errorf("redriven: %v\n%s%s", err, out, errs)
	}
	again := s.open(t, 1)[0] // the laptops are still there
	if out, _ = s.mustDLQ(t, "redrive", "--all", "--yes"); !strings.HasPrefix(out, again.ID+" redriven") {
		t.Errorf("all are redriven as %q", out)
	}
	eventually(t, func() error {
		if open := s.letters(t, "OPEN"); len(open) != 1 || open[0].ID == again.ID {
			return fmt.Errorf("open: %+v", open)
		}
		return nil
	})
	s.mustDLQ(t, "discard", "--all")
	s.open(t, 0)
	if out, _ = s.mustDLQ(t, "list", "--state", "discarded"); strings.Count(out, "DISCARDED") != 2 {
		t.Errorf("discarded:\n%s", out)
	}
	if out, _ = s.mustDLQ(t, "list", "--state", "all"); strings.Count(out, "\n") != 5 {
		t.Errorf("all:\n%s", out)
	}

	for args, wrong := range map[string]string{
		"list --state lost":                   "--state lost: there are open, redriven, discarded and all",
		"show 4711":                           "there is no dead letter 4711",
		"show one":                            `"one" is no id of a dead letter`,
		"redrive":                             "say which",
		"redrive 1 --all":                     "say which",
		"list --token wrong":                  "does not know this operator token",
		"list --server localhost:1":           "no shop answers at localhost:1",
		"redrive 1 2 --server http://[::1]:1": "no shop answers at http://[::1]:1",
		"discard 1 --token wrong":             "does not know this operator token",
	} {
		_, errs, err := s.dlq(t, strings.Fields(args)...)
		if err == nil || !strings.Contains(err.Error(), wrong) || strings.Contains(err.Error(), "\n") || errs != "" {
			t.Errorf("shop dlq %s: %v (and %q), want an error with %q", args, err, errs, wrong)
		}
	}
}

func TestServices_RefuseToStartWhereAnInboxForgetsTooSoon(t *testing.T) {
	t.Parallel()
	r := outbox.Retention{RedriveHorizon: 30 * 24 * time.Hour}
	_, order := ordering.New(t.Context(), ordering.Config{Retention: r}, nil)
	_, inventory := stock.New(t.Context(), stock.Config{Retention: r}, nil)
	_, logging := eventlog.New(t.Context(), eventlog.Config{Messages: r}, nil)
	for name, err := range map[string]error{"order": order, "inventory": inventory, "logging": logging} {
		if err == nil || !strings.Contains(err.Error(), "set INBOX_RETENTION to 744h1m11s or more") {
			t.Errorf("%s: %v", name, err)
		}
	}
}
