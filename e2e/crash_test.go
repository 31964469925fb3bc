package e2e

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/uuid"
	amqp "github.com/rabbitmq/amqp091-go"
	"google.golang.org/protobuf/proto"

	eventsv1 "shop.example/gen/shop/events/v1"
	moneyv1 "shop.example/gen/shop/money/v1"
	"shop.example/platform/crash"
)

// crashOrders is how many orders are on their way around a crash.
const crashOrders = 200

// A crashCase kills a service when it passes a point for the n-th time.
type crashCase struct {
	point, service string
	passing        int
	// before runs when the shop is ready, dead when the service is, and after when it is ready again and all orders are
	// accepted. Each may be nil.
	before, dead, after func(*testing.T, *fleet)
}

func (c crashCase) name() string { return c.point + " in " + c.service }

// crashCases pass each point late enough that orders went through before it, and early enough that others follow.
var crashCases = []crashCase{
	{point: "publisher.sent", service: "gateway", passing: 100},
	{point: "publisher.sent", service: "order", passing: 3},
	{point: "consumer.received", service: "order", passing: 3},
	{point: "consumer.received", service: "inventory", passing: 3},
	{point: "rpc.called", service: "order", passing: 3},
	{point: "rpc.replied", service: "inventory", passing: 3},
	{point: "order.checked", service: "order", passing: 3},
	{point: "order.uncommitted", service: "order", passing: 3},
	{point: "order.stored", service: "order", passing: 3},
	{point: "order.cancelled", service: "order", passing: 5},
	{point: "inventory.uncommitted", service: "inventory", passing: 3},
	{point: "inventory.held", service: "inventory", passing: 3},
	{point: "inventory.settled", service: "inventory", passing: 3},
	{point: "inventory.released", service: "inventory", passing: 3},
	{point: "relay.published", service: "order", passing: 3},
	{point: "relay.published", service: "inventory", passing: 3},
	{point: "logging.inserted", service: "logging", passing: 3},
	{point: "consumer.retried", service: "order", passing: 1, before: refuseAnOrder, dead: refuseNone},
	{point: "consumer.dead-lettered", service: "order", passing: 1, before: sendGarbage, after: discardTheGarbage},
	{point: "logging.letter-stored", service: "logging", passing: 1, before: sendGarbage, after: discardTheGarbage},
	{point: "logging.redriven", service: "logging", passing: 1, before: redriveARefusedProduct, after: redriveItAgain},
}

func TestCrash_EveryPointIsTried(t *testing.T) {
	t.Parallel()
	for _, point := range crash.Points {
		if !slices.ContainsFunc(crashCases, func(c crashCase) bool { return c.point == point }) {
			t.Errorf("nothing is killed at %s", point)
		}
	}
}

func TestCrash_NothingIsLostOrDoubledAtAnyPoint(t *testing.T) {
	t.Parallel()
	for _, c := range crashCases {
		t.Run(c.name(), func(t *testing.T) {
			t.Parallel()
			c.run(t)
		})
	}
}

func (c crashCase) run(t *testing.T) {
	f := newFleet(t, fleetOptions{})
	victim := f.replicas[c.service][0]
	victim.start(t, fmt.Sprintf("SHOP_CRASH_AT=%s:%d", c.point, c.passing))
	f.up(t)
	step := func(do func(*testing.T, *fleet)) {
		if do != nil {
			do(t, f)
		}
	}
	step(c.before)
	load := f.load(t, crashOrders)
	if err := victim.killedItself(c.point); err != nil {
		t.Error(err)
	}
	step(c.dead)
	victim.start(t)
	victim.waitReady(t)
	load.Wait()
	f.decides(t, crashOrders)
	step(c.after)
	f.comesToRest(t, crashOrders)
}

// load begins to send orders: mostly of one or two products, in any order of lines, some of which are unknown or run out
// of stock. It sends each until it is accepted and cancels every tenth as soon as that can be done. The test waits for
// the end of it.
func (f *fleet) load(t *testing.T, orders int) *sync.WaitGroup {
	var workers sync.WaitGroup
	var next atomic.Int64
	for range 8 {
		workers.Go(func() {
			for i := int(next.Add(1)); i <= orders; i = int(next.Add(1)) {
				location, err := f.order(t, fmt.Sprintf("order-%d", i), linesOf(i))
				if err == nil && i%10 == 0 {
					err = f.cancel(t, location)
				}
				if err != nil {
					t.Error(err)
				}
			}
		})
	}
	t.Cleanup(workers.Wait)
	return &workers
}

// decides waits until so many orders are decided.
func (f *fleet) decides(t *testing.T, orders int) {
	t.Helper()
	db := f.openDatabase(t)
	eventually(t, func() error {
		if n := texts(t, db, `SELECT count(*)::text FROM orders.orders`)[0]; n != strconv.Itoa(orders) {
			return fmt.Errorf("%s orders are decided of %d", n, orders)
		}
		return nil
	})
}

func linesOf(i int) string {
	line := `{"product_id":%d,"quantity":%d}`
	switch {
	case i%20 == 7:
		return fmt.Sprintf(line, 999, 1) // unknown
	case i%3 == 1:
		return fmt.Sprintf(line, 1, 1) // 66 orders for 50 laptops
	case i%2 == 0:
		return fmt.Sprintf(line+","+line, 2, 1, 6, 1)
	default:
		return fmt.Sprintf(line+","+line, 6, 1, 2, 1)
	}
}

// order sends an order under an idempotency key until it is accepted, and returns where it is.
func (f *fleet) order(t *testing.T, key, lines string) (location string, err error) {
	body := `{"customer_name":"` + key + `","customer_email":"ada@example.org","order_items":[` + lines + `]}`
	res, err := f.insist(t, http.MethodPost, "/v1/orders", body, key, http.StatusAccepted, http.StatusOK)
	if err != nil {
		return "", err
	}
	return res.Get("Location"), nil
}

// cancel cancels an order as soon as that is possible. One that was rejected stays rejected.
func (f *fleet) cancel(t *testing.T, location string) error {
	_, err := f.insist(t, http.MethodPost, location+":cancel", "", "", http.StatusOK, http.StatusBadRequest)
	return err
}

// insist repeats a call until it is answered with one of the codes.
func (f *fleet) insist(t *testing.T, method, path, body, key string, codes ...int) (http.Header, error) {
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		header, err := f.once(ctx, method, path, body, key, codes)
		if err == nil {
			return header, nil
		}
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("%s %s within %s: %w", method, path, patience, err)
		case <-tick.C:
		}
	}
}

func (f *fleet) once(ctx context.Context, method, path, body, key string, codes []int) (http.Header, error) {
	req, err := http.NewRequestWithContext(ctx, method, f.url+path, strings.NewReader(body))
	if err != nil {
		return nil, err
	}
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("Authorization", "Bearer "+operatorToken)
	if key != "" {
		req.Header.Set("Idempotency-Key", key)
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		return nil, err
	}
	defer res.Body.Close()
	text, err := io.ReadAll(res.Body)
	if err == nil && !slices.Contains(codes, res.StatusCode) {
		err = fmt.Errorf("%s: %s", res.Status, text)
	}
	return res.Header, err
}

// refuseAnOrder has the database of the order service refuse one of the orders.
func refuseAnOrder(t *testing.T, f *fleet) {
	f.exec(t, `ALTER TABLE orders.orders ADD CONSTRAINT refused CHECK (customer_name <> 'order-51')`)
}

func refuseNone(t *testing.T, f *fleet) {
	f.exec(t, `ALTER TABLE orders.orders DROP CONSTRAINT refused`)
}

func (f *fleet) exec(t *testing.T, statement string) {
	t.Helper()
	if _, err := f.openDatabase(t).ExecContext(t.Context(), statement); err != nil {
		t.Fatal(err)
	}
}

func sendGarbage(t *testing.T, f *fleet) {
	f.publish(t, "shop.order.placed", []byte("this is no order"), 1)
}

// publish sends a message several times and returns when the broker has them.
func (f *fleet) publish(t *testing.T, key string, body []byte, times int) {
	t.Helper()
	ch := f.openChannel(t)
	if err := ch.Confirm(false); err != nil {
		t.Fatal(err)
	}
	message := amqp.Publishing{MessageId: uuid.NewString(), DeliveryMode: amqp.Persistent, Timestamp: time.Now(), Body: body}
	confirms := make([]*amqp.DeferredConfirmation, times)
	for i := range confirms {
		var err error
		if confirms[i], err = ch.PublishWithDeferredConfirm("shop.topic", key, true, false, message); err != nil {
			t.Fatal(err)
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	for _, confirm := range confirms {
		if acked, err := confirm.WaitContext(ctx); err != nil || !acked {
			t.Fatalf("the broker did not take %s: %v", key, err)
		}
	}
}

// openLetter waits until there is a dead letter, which must be the only one and open, and returns where it is.
func (f *fleet) openLetter(t *testing.T) (path string) {
	t.Helper()
	var list struct {
		DeadLetters []struct{ ID, State, Reason string } `json:"dead_letters"`
	}
	eventually(t, func() error {
		a := f.get(t, "/v1/dead-letters")
		if a.code != http.StatusOK {
			return fmt.Errorf("%d %s", a.code, a.body)
		}
		a.json(t, &list)
		if len(list.DeadLetters) == 0 {
			return errors.New("there is no dead letter")
		}
		return nil
	})
	if len(list.DeadLetters) != 1 || list.DeadLetters[0].State != "OPEN" {
		t.Fatalf("dead letters: %+v", list.DeadLetters)
	}
	return "/v1/dead-letters/" + list.DeadLetters[0].ID
}

func discardTheGarbage(t *testing.T, f *fleet) {
	if a := f.operator(t, f.openLetter(t)+":discard"); a.code != http.StatusOK {
		t.Fatalf("discarding the dead letter: %d %s", a.code, a.body)
	}
}

// operator posts an empty request as an operator.
func (f *fleet) operator(t *testing.T, path string) answer {
	t.Helper()
	return f.call(t, http.MethodPost, path, "{}", "Authorization", "Bearer "+operatorToken)
}

// redriveARefusedProduct makes a dead letter of a product that is there already, removes that product, and redrives the
// letter: the service dies of that.
func redriveARefusedProduct(t *testing.T, f *fleet) {
	f.publish(t, "shop.inventory.create", createDesks(t, 5), 1)
	var desk item
	eventually(t, func() error {
		var there bool
		if desk, there = f.stock(t)["Desk"]; !there {
			return errors.New("the product is not there")
		}
		return nil
	})
	f.publish(t, "shop.inventory.create", createDesks(t, 7), 1)
	letter := f.openLetter(t)
	path := fmt.Sprintf("/v1/inventory/%d", desk.ID)
	if a := f.call(t, http.MethodDelete, path, "", "Authorization", "Bearer "+operatorToken); a.code != http.StatusOK {
		t.Fatalf("deleting the product: %d %s", a.code, a.body)
	}
	if a := f.operator(t, letter+":redrive"); a.code != http.StatusServiceUnavailable {
		t.Errorf("redriving with a service that dies of it: %d %s", a.code, a.body)
	}
}

func createDesks(t *testing.T, quantity int32) []byte {
	t.Helper()
	return encode(t, &eventsv1.CreateItems{RequestId: uuid.NewString(), Items: []*eventsv1.CreateItems_Item{
		{ProductName: "Desk", Quantity: quantity, Price: &moneyv1.Money{CurrencyCode: "USD", Units: 250}},
	}})
}

func encode(t *testing.T, m proto.Message) []byte {
	t.Helper()
	body, err := proto.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	return body
}

// redriveItAgain: the letter is open, because nobody knows that it was sent.
func redriveItAgain(t *testing.T, f *fleet) {
	if a := f.operator(t, f.openLetter(t)+":redrive"); a.code != http.StatusOK {
		t.Fatalf("redriving again: %d %s", a.code, a.body)
	}
	eventually(t, func() error {
		if desk := f.stock(t)["Desk"]; desk.OnHand != 7 {
			return fmt.Errorf("the product that was redriven: %+v", desk)
		}
		return nil
	})
}
