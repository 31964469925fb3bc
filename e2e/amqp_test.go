package e2e

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"path"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	rabbithole "github.com/michaelklishin/rabbit-hole/v3"
	amqp "github.com/rabbitmq/amqp091-go"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	statuspb "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	eventsv1 "shop.example/gen/shop/events/v1"
	inventoryv1 "shop.example/gen/shop/inventory/v1"
	"shop.example/platform/apierror"
)

// These tests speak AMQP as docs/amqp.md says, as a program in another language does that has nothing of ours but the contracts.

// asker publishes requests and receives their answers.
type asker struct {
	ch      *amqp.Channel
	answers <-chan amqp.Delivery
}

// directReplyTo is RabbitMQ's pseudo queue that delivers answers to the channel that asked.
const directReplyTo = "amq.rabbitmq.reply-to"

func newAsker(t *testing.T, ch *amqp.Channel) *asker {
	t.Helper()
	a := &asker{ch: ch}
	var err error
	if a.answers, err = a.ch.Consume(directReplyTo, "", true, false, false, false, nil); err != nil {
		t.Fatal(err)
	}
	return a
}

// ask sends a request and returns its answer.
func (a *asker) ask(t *testing.T, exchange, key string, m amqp.Publishing) amqp.Delivery {
	t.Helper()
	m.ReplyTo, m.CorrelationId = directReplyTo, uuid.NewString()
	if err := a.ch.PublishWithContext(t.Context(), exchange, key, true, false, m); err != nil {
		t.Fatal(err)
	}
	select {
	case d := <-a.answers:
		if d.CorrelationId != m.CorrelationId {
			t.Fatalf("the answer is to %q, not to %q", d.CorrelationId, m.CorrelationId)
		}
		return d
	case <-time.After(testTimeout):
		t.Fatalf("%s was not answered", key)
	}
	panic("unreachable")
}

// succeeds decodes an answer, which must not be a failure.
func succeeds(t *testing.T, d amqp.Delivery, answer proto.Message) {
	t.Helper()
	if code, _ := d.Headers["grpc-status"].(int32); code != 0 || d.Type != string(answer.ProtoReflect().Descriptor().FullName()) || d.ContentType != "application/protobuf" {
		t.Fatalf("the answer has grpc-status %d, type %s, content_type %s: %s", code, d.Type, d.ContentType, d.Body)
	}
	if err := proto.Unmarshal(d.Body, answer); err != nil {
		t.Fatal(err)
	}
}

// fails checks that an answer is a failure with this code: in its headers, its type and its body.
func fails(t *testing.T, what string, d amqp.Delivery, code codes.Code, message string) {
	t.Helper()
	var st statuspb.Status
	if err := protojson.Unmarshal(d.Body, &st); err != nil {
		t.Fatalf("%s: the body of the failure is %q: %v", what, d.Body, err)
	}
	header, _ := d.Headers["grpc-status"].(int32)
	if codes.Code(header) != code || codes.Code(st.GetCode()) != code || d.Type != "google.rpc.Status" || d.ContentType != "application/json" {
		t.Errorf("%s: grpc-status %d, type %s, content_type %s, body %s; want %s", what, header, d.Type, d.ContentType, d.Body, code)
	}
	if !slices.ContainsFunc(status.FromProto(&st).Details(), func(detail any) bool {
		info, ok := detail.(*errdetails.ErrorInfo)
		return ok && info.GetReason() != "" && info.GetDomain() == apierror.Domain
	}) {
		t.Errorf("%s: a program finds no reason in %s", what, d.Body)
	}
	if message != "" && st.GetMessage() != message {
		t.Errorf("%s: %q, want %q", what, st.GetMessage(), message)
	}
	for _, answer := range []proto.Message{&inventoryv1.CheckStockResponse{}, &eventsv1.ItemsChanged{}} {
		if err := proto.Unmarshal(d.Body, answer); err == nil {
			t.Errorf("%s: who does not look reads the failure as an empty %T", what, answer)
		}
	}
}

func TestAMQP_ACommandThatAsksForAnAnswerGetsIt(t *testing.T) {
	t.Parallel()
	s := start(t)
	a := newAsker(t, s.openChannel(t))
	command := products("Tripod", 7)
	for _, before := range []bool{false, true} {
		var answer eventsv1.ItemsChanged
		succeeds(t, a.ask(t, "shop.topic", "shop.inventory.create", amqp.Publishing{Body: encode(t, command)}), &answer)
		if answer.GetDoneBefore() != before || !before && (len(answer.GetItems()) != 1 || answer.GetItems()[0].GetQuantity() != 7) {
			t.Errorf("done before %t: %v", before, &answer)
		}
	}

	const id = "backoffice-4711" // no UUID, and not the id that the event has for us
	again := a.ask(t, "shop.topic", "shop.inventory.create", amqp.Publishing{MessageId: id, Body: encode(t, products("Tripod", 1))})
	fails(t, "a name that is taken", again, codes.AlreadyExists, `there is an item "Tripod" already`)
	var found struct {
		Letters []deadLetter `json:"dead_letters"`
	}
	eventually(t, func() error {
		s.get(t, "/v1/dead-letters?message_id="+id).json(t, &found)
		if len(found.Letters) != 1 {
			return fmt.Errorf("%d dead letters are found by the sender's id", len(found.Letters))
		}
		return nil
	})

	fails(t, "a body that is none", a.ask(t, "shop.topic", "shop.inventory.delete", amqp.Publishing{Body: []byte("{}")}), codes.InvalidArgument, "")
	fails(t, "JSON", a.ask(t, "shop.topic", "shop.inventory.delete", amqp.Publishing{ContentType: "application/json", Body: []byte("{}")}),
		codes.InvalidArgument, `the property content_type says "application/json": a message is protobuf, application/protobuf`)
	s.open(t, 3)
}

func TestAMQP_ACallIsAnsweredOrRefused(t *testing.T) {
	t.Parallel()
	s := start(t)
	a := newAsker(t, s.openChannel(t))
	request := func(quantity int32) *inventoryv1.CheckStockRequest {
		return &inventoryv1.CheckStockRequest{Orders: []*inventoryv1.CheckStockRequest_Order{{
			OrderId: uuid.NewString(), Lines: []*eventsv1.RequestedLine{{ProductId: 1, Quantity: quantity}},
		}}}
	}
	call := func(m amqp.Publishing) amqp.Delivery {
		m.Headers, m.Expiration = amqp.Table{"grpc-method": "/shop.inventory.v1.StockService/CheckStock"}, "5000"
		return a.ask(t, "shop.direct", "shop.inventory.check", m)
	}
	for quantity, rejected := range map[int32]bool{1: false, 1000: true} {
		var answer inventoryv1.CheckStockResponse
		succeeds(t, call(amqp.Publishing{Body: encode(t, request(quantity))}), &answer)
		if d := answer.GetDecisions(); len(d) != 1 || (d[0].GetRejection() != nil) != rejected {
			t.Errorf("%d pieces: %v", quantity, d)
		}
	}
	fails(t, "a body that is none", call(amqp.Publishing{Body: []byte{0xff}}), codes.InvalidArgument, "")
	fails(t, "JSON", call(amqp.Publishing{ContentType: "application/json", Body: []byte("{}")}), codes.InvalidArgument,
		`the property content_type says "application/json": a request is protobuf, application/protobuf`)
}

// A command that broke its contract was refused without its fields, and a call with "fieldViolations": a client that reads
// field_violations, as errors.md and the AsyncAPI file call them, found none in either.
func TestAMQP_AFailureNamesTheFieldsAsTheDocumentsDo(t *testing.T) {
	t.Parallel()
	s := start(t)
	a := newAsker(t, s.openChannel(t))
	for what, tt := range map[string]struct {
		exchange, key string
		request       proto.Message
		field         string
	}{
		"a command": {"shop.topic", "shop.inventory.create", products("Tripod", -1), "items[0].quantity"},
		"a call": {"shop.direct", "shop.inventory.check", &inventoryv1.CheckStockRequest{Orders: []*inventoryv1.CheckStockRequest_Order{{
			OrderId: uuid.NewString(), Lines: []*eventsv1.RequestedLine{{ProductId: 1, Quantity: -1}},
		}}}, "orders[0].lines[0].quantity"},
	} {
		d := a.ask(t, tt.exchange, tt.key, amqp.Publishing{Body: encode(t, tt.request)})
		fails(t, what, d, codes.InvalidArgument, "")
		var failure struct { // not protojson, which takes both spellings
			Details []struct {
				Violations []struct{ Field, Description string } `json:"field_violations"`
			}
		}
		if err := json.Unmarshal(d.Body, &failure); err != nil {
			t.Fatal(err)
		}
		var named []string
		for _, detail := range failure.Details {
			for _, violation := range detail.Violations {
				if violation.Description == "" {
					t.Errorf("%s: nothing says what is wrong with %s", what, violation.Field)
				}
				named = append(named, violation.Field)
			}
		}
		if !slices.Equal(named, []string{tt.field}) {
			t.Errorf("%s: the fields %q are named in %s, want %q", what, named, d.Body, tt.field)
		}
	}
}

func TestAMQP_ARequestWithoutAQueueForItsAnswerHoldsNothing(t *testing.T) {
	t.Parallel()
	s := start(t)
	a := newAsker(t, s.openChannel(t))
	body := encode(t, &inventoryv1.CheckStockRequest{Orders: []*inventoryv1.CheckStockRequest_Order{{
		OrderId: uuid.NewString(), Lines: []*eventsv1.RequestedLine{{ProductId: 1, Quantity: 5}},
	}}})
	if err := a.ch.PublishWithContext(t.Context(), "shop.direct", "shop.inventory.check", true, false, amqp.Publishing{Body: body}); err != nil {
		t.Fatal(err)
	}
	// It was taken before the next one, which is answered.
	a.ask(t, "shop.direct", "shop.inventory.check", amqp.Publishing{Body: encode(t, &inventoryv1.CheckStockRequest{})})
	if n := s.openHolds(t); n != 0 {
		t.Errorf("%d holds are open for a call without reply_to", n)
	}
}

// Whoever may publish a request chooses the queue for its answer. It must not be a service's queue, where the answer would
// be a dead letter.
func TestAMQP_AQueueOfTheShopGetsNoAnswers(t *testing.T) {
	t.Parallel()
	s := start(t)
	a := newAsker(t, s.openChannel(t))
	command := amqp.Publishing{ReplyTo: "order", Body: encode(t, products("Tripod", 7))}
	if err := a.ch.PublishWithContext(t.Context(), "shop.topic", "shop.inventory.create", true, false, command); err != nil {
		t.Fatal(err)
	}
	var answer eventsv1.ItemsChanged
	succeeds(t, a.ask(t, "shop.topic", "shop.inventory.create", amqp.Publishing{Body: encode(t, products("Lamp", 7))}), &answer)
	s.decided(t, s.place(t, 1, 1)) // behind an answer in the order queue, if there were one
	if letters := s.deadLetters(t, "OPEN"); len(letters) != 0 {
		t.Errorf("dead letters %+v", letters)
	}
}

// expressions returns the regular expressions in single quotes on a line of a recipe in docs/amqp.md.
func expressions(t *testing.T, command, user string) (all []string) {
	t.Helper()
	text, err := os.ReadFile("../docs/amqp.md")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		if !strings.HasPrefix(line, "rabbitmqctl "+command+" "+user+" ") {
			continue
		}
		for _, quoted := range regexp.MustCompile(`'([^']*)'`).FindAllStringSubmatch(line, -1) {
			all = append(all, quoted[1])
		}
	}
	return all
}

// brokerUser creates a user as the recipe in docs/amqp.md says, with a name of its own, because users belong to the whole
// broker.
func (s *shop) brokerUser(t *testing.T, recipe string) (name, address string) {
	t.Helper()
	name = recipe + "-" + uuid.NewString()[:8]
	rights, topic := expressions(t, "set_permissions", recipe), expressions(t, "set_topic_permissions", recipe)
	if len(rights) != 3 || len(topic) != 2 {
		t.Fatalf("the recipe gives %q and %q", rights, topic)
	}
	for i := range rights {
		rights[i] = strings.ReplaceAll(rights[i], recipe, name)
	}
	manage := func(res *http.Response, err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		_ = res.Body.Close()
	}
	manage(s.broker.Manage.PutUser(name, rabbithole.UserSettings{Password: name}))
	t.Cleanup(func() { manage(s.broker.Manage.DeleteUser(name)) })
	manage(s.broker.Manage.UpdatePermissionsIn(s.broker.Vhost, name,
		rabbithole.Permissions{Configure: rights[0], Write: rights[1], Read: rights[2]}))
	manage(s.broker.Manage.UpdateTopicPermissionsIn(s.broker.Vhost, name,
		rabbithole.TopicPermissions{Exchange: "shop.topic", Write: topic[0], Read: topic[1]}))
	u, err := url.Parse(s.broker.URL)
	if err != nil {
		t.Fatal(err)
	}
	u.User = url.UserPassword(name, name)
	return name, u.String()
}

func TestAMQP_TheUserOfTheRecipeMaySendCommandsAndNothingElse(t *testing.T) {
	t.Parallel()
	s := start(t)
	name, url := s.brokerUser(t, "backoffice")
	conn, err := amqp.Dial(url)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })

	ch, err := conn.Channel()
	if err != nil {
		t.Fatal(err)
	}
	a := newAsker(t, ch)
	var answer eventsv1.ItemsChanged
	succeeds(t, a.ask(t, "shop.topic", "shop.inventory.create", amqp.Publishing{UserId: name, Body: encode(t, products("Tripod", 7))}), &answer)
	eventually(t, func() error {
		if a := s.get(t, "/v1/operator-actions"); !strings.Contains(string(a.body), "user of the broker "+name) {
			return fmt.Errorf("it is not recorded whose change it was: %s", a.body)
		}
		return nil
	})
	for _, route := range [][2]string{{"shop.topic", "shop.order.placed"}, {"shop.direct", "shop.inventory.check"}, {"", "order"}, {"shop.dlx", "order"}} {
		ch, err := conn.Channel()
		if err != nil {
			t.Fatal(err)
		}
		closed := ch.NotifyClose(make(chan *amqp.Error, 1))
		if err := ch.PublishWithContext(t.Context(), route[0], route[1], false, false, amqp.Publishing{UserId: name}); err != nil {
			t.Fatal(err)
		}
		select {
		case cause := <-closed:
			if cause == nil || cause.Code != amqp.AccessRefused {
				t.Errorf("%q: %v", route, cause)
			}
		case <-time.After(testTimeout):
			t.Errorf("%q is not refused", route)
		}
	}
}

func TestAMQP_TheUserOfTheRecipeMayListenToOrdersAndNothingElse(t *testing.T) {
	t.Parallel()
	s := start(t)
	name, url := s.brokerUser(t, "warehouse")
	conn, err := amqp.Dial(url)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	ch, err := conn.Channel()
	if err != nil {
		t.Fatal(err)
	}
	queue, err := ch.QueueDeclare(name+".orders", false, false, true, false, nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := ch.QueueBind(queue.Name, "shop.order.*", "shop.topic", false, nil); err != nil {
		t.Fatal(err)
	}
	deliveries, err := ch.Consume(queue.Name, "", true, true, false, false, nil)
	if err != nil {
		t.Fatal(err)
	}
	order := path.Base(s.place(t, 1, 1))
	for _, key := range []string{"shop.order.placed", "shop.order.confirmed"} {
		select {
		case d := <-deliveries:
			if d.RoutingKey != key || d.CorrelationId != order {
				t.Errorf("%s of order %s instead of %s of %s", d.RoutingKey, d.CorrelationId, key, order)
			}
		case <-time.After(testTimeout):
			t.Fatalf("%s does not come", key)
		}
	}
	for what, try := range map[string]func(ch *amqp.Channel) error{
		"a queue of the shop's to read": func(ch *amqp.Channel) error {
			_, err := ch.Consume("order", "", true, false, false, false, nil)
			return err
		},
		"other events": func(ch *amqp.Channel) error {
			return ch.QueueBind(queue.Name, "shop.operator.acted", "shop.topic", false, nil)
		},
		"everything": func(ch *amqp.Channel) error { return ch.QueueBind(queue.Name, "#", "shop.topic", false, nil) },
		"a queue of another name": func(ch *amqp.Channel) error {
			_, err := ch.QueueDeclare("orders-"+name, false, false, true, false, nil)
			return err
		},
	} {
		ch, err := conn.Channel()
		if err != nil {
			t.Fatal(err)
		}
		var refused *amqp.Error
		if err := try(ch); !errors.As(err, &refused) || refused.Code != amqp.AccessRefused {
			t.Errorf("%s: %v", what, err)
		}
	}
}
