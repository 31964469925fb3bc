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
	"google.golang.org/protobuf/types/known/timestamppb"

	eventsv1 "shop.example/gen/shop/events/v1"
	moneyv1 "shop.example/gen/shop/money/v1"
	"shop.example/platform/outbox"
	"shop.example/services/inventory/stock"
	"shop.example/services/logging/eventlog"
)

type deadLetter struct {
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

func (l deadLetter) path() string { return "/v1/dead-letters/" + l.ID }

// deadLetters lists the dead letters in a state, or all of them if it is "".
func (s *shop) deadLetters(t *testing.T, state string) []deadLetter {
	t.Helper()
	path := "/v1/dead-letters?page_size=1000"
	if state != "" {
		path += "&state=" + state
	}
	var list struct {
		DeadLetters []deadLetter `json:"dead_letters"`
	}
	s.get(t, path).json(t, &list)
	return list.DeadLetters
}

// open waits until n dead letters are open and returns them, with their bodies.
func (s *shop) open(t *testing.T, n int) []deadLetter {
	t.Helper()
	var open []deadLetter
	eventually(t, func() error {
		if open = s.deadLetters(t, "OPEN"); len(open) != n {
			return fmt.Errorf("%d dead letters are open, want %d: %+v", len(open), n, open)
		}
		return nil
	})
	for i := range open {
		s.get(t, open[i].path()).json(t, &open[i])
	}
	return open
}

// post makes a POST call as an operator.
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

// events reads the log with a filter, "&status=error" for example. A page ends early if its rows are large.
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

// logOf returns the row of a message in the event log, and how many rows it has.
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

// send publishes a message as an external program would, and returns when the broker has confirmed it.
func (s *shop) send(t *testing.T, ch *amqp.Channel, exchange, key string, m amqp.Publishing) {
	t.Helper()
	confirm, err := ch.PublishWithDeferredConfirm(exchange, key, true, false, m)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), testTimeout)
	defer cancel()
	if acked, err := confirm.WaitContext(ctx); err != nil || !acked {
		t.Fatalf("the broker did not take %s: %v", key, err)
	}
}

// confirming opens a channel with publisher confirms.
func (s *shop) confirming(t *testing.T) *amqp.Channel {
	t.Helper()
	ch := s.openChannel(t)
	if err := ch.Confirm(false); err != nil {
		t.Fatal(err)
	}
	return ch
}

// consumed returns how many messages of a queue were settled in one way ("handled", "retried", "dead"), from the metrics of
// its service.
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

// placed returns a valid OrderPlaced.
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

	nameless, long, longer, mistyped := placed(), placed(), placed(), placed()
	nameless.CustomerName = ""
	long.CustomerName, longer.CustomerName = strings.Repeat("A", mebibyte-1000), strings.Repeat("A", mebibyte)
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
		{"an order whose name has nearly a mebibyte", "shop.topic", "shop.order.placed", "order", "customer_name",
			withID(amqp.Publishing{Body: encode(t, long)}), long.GetOrderId(), true},
		{"an order that is larger than an event may be", "shop.topic", "shop.order.placed", "order", "and an event 1048576 at most",
			withID(amqp.Publishing{Body: encode(t, longer), CorrelationId: longer.GetOrderId()}), longer.GetOrderId(), false},
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

	letters := map[string]deadLetter{}
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
			t.Errorf("%s: %s", p.what, truncated(l))
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
	if n := len(s.deadLetters(t, "")); n != len(poison) {
		t.Errorf("%d dead letters in the end, want %d", n, len(poison))
	}
}

func truncated(l deadLetter) string {
	l.Body, l.Payload = nil, l.Payload != nil
	if len(l.Reason) > 200 {
		l.Reason = l.Reason[:200]
	}
	return fmt.Sprintf("%+v", l)
}

// The log also keeps messages that cannot be decoded.
func TestDeadLetters_TheLogKeepsWhatItCannotRead(t *testing.T) {
	t.Parallel()
	s := start(t)
	id := uuid.NewString()
	s.send(t, s.confirming(t), "", "logging", amqp.Publishing{Body: bytes.Repeat([]byte{0xff}, mebibyte), MessageId: id})
	s.isLogged(t, id, "error", `no message has the routing key "logging"`)
	if letters := s.deadLetters(t, ""); len(letters) > 0 {
		t.Errorf("dead letters: %+v", letters)
	}
}

// A message with such headers cut the connection of whoever it was delivered to, of the log and of the dead letters in the end, for ever.
func TestDeadLetters_HeadersThatTheLibraryCannotReadStopNothing(t *testing.T) {
	t.Parallel()
	s := start(t)
	headers := amqp.Table{}
	for range 40 {
		headers = amqp.Table{"in": headers}
	}
	id := uuid.NewString()
	s.send(t, s.confirming(t), "shop.topic", "shop.order.placed", amqp.Publishing{Body: []byte("garbage"), MessageId: id, Headers: headers})
	dead := s.open(t, 1)[0]
	if !strings.Contains(dead.Reason, "the body is not a shop.events.v1.OrderPlaced") || !bytes.Equal(dead.Body, []byte("garbage")) {
		t.Errorf("kept as %s", truncated(dead))
	}
	s.isLogged(t, dead.MessageID, "error", dead.Reason)
}

// A dead letter far larger than gRPC clients accept by default can be shown, redriven and discarded through every API.
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
		t.Errorf("after the redrive: %s", truncated(second))
	}
	s.mustDLQ(t, "discard", second.ID)
	s.open(t, 0)
}

// A message whose consumers all crash is given up by the broker, by policy. The queue of dead letters has no such limit,
// because there is no place behind it.
func TestDeadLetters_WhatKillsItsConsumersIsGivenUpByTheBrokerAndCanBeRedriven(t *testing.T) {
	t.Parallel()
	f := newDeployment(t, deploymentOptions{})
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
		t.Errorf("after %d deliveries: %s", deaths, truncated(dead))
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

// diesOfADelivery receives a message of the queue and disconnects without acknowledging it, as a consumer that crashes. It
// returns false if there is none.
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

func TestServices_RefuseToStartIfAnInboxForgetsTooSoon(t *testing.T) {
	t.Parallel()
	r := outbox.Retention{RedriveHorizon: 30 * 24 * time.Hour}
	_, inventory := stock.New(t.Context(), stock.Config{Retention: r}, nil)
	_, logging := eventlog.New(t.Context(), eventlog.Config{Messages: r}, nil)
	for name, err := range map[string]error{"inventory": inventory, "logging": logging} {
		if err == nil || !strings.Contains(err.Error(), "set INBOX_RETENTION to 744h1m11s or more") {
			t.Errorf("%s: %v", name, err)
		}
	}
}
