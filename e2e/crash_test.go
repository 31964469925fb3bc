package e2e

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/uuid"

	eventsv1 "shop.example/gen/shop/events/v1"
	moneyv1 "shop.example/gen/shop/money/v1"
)

// crashOrders is how many orders are placed around a crash.
const crashOrders = 200

// A crashCase kills a service when it passes a point for the n-th time.
type crashCase struct {
	point, service string
	passing        int
	// before runs when the shop is ready, dead when the service is, and after when it is ready again and all orders are
	// accepted. Each may be nil.
	before, dead, after func(*testing.T, *deployment)
}

func (c crashCase) name() string { return c.point + " in " + c.service }

// crashCases choose n so that orders pass each point before the crash, and others follow.
var crashCases = []crashCase{
	{point: "publisher.sent", service: "gateway", passing: 100},
	{point: "publisher.sent", service: "order", passing: 3},
	{point: "consumer.received", service: "order", passing: 3},
	{point: "consumer.received", service: "inventory", passing: 3},
	{point: "rpc.called", service: "order", passing: 3},
	{point: "rpc.replied", service: "inventory", passing: 3},
	{point: "order.claimed", service: "order", passing: 3},
	{point: "order.checked", service: "order", passing: 3},
	{point: "order.uncommitted", service: "order", passing: 3},
	{point: "order.stored", service: "order", passing: 3},
	{point: "order.cancelled", service: "order", passing: 5},
	{point: "inventory.uncommitted", service: "inventory", passing: 3},
	{point: "inventory.held", service: "inventory", passing: 3},
	{point: "inventory.settled", service: "inventory", passing: 3},
	{point: "inventory.released", service: "inventory", passing: 3},
	{point: "relay.taken", service: "order", passing: 3},
	{point: "relay.published", service: "order", passing: 3},
	{point: "relay.published", service: "inventory", passing: 3},
	{point: "logging.inserted", service: "logging", passing: 3},
	{point: "consumer.retried", service: "order", passing: 1, before: refuseAnOrder, dead: refuseNone},
	{point: "consumer.dead-lettered", service: "order", passing: 1, before: sendGarbage, after: discardTheGarbage},
	{point: "logging.letter-stored", service: "logging", passing: 1, before: sendGarbage, after: discardTheGarbage},
	{point: "logging.redriven", service: "logging", passing: 1, before: redriveARefusedProduct, after: redriveItAgain},
	{point: "webhooks.uncommitted", service: "webhooks", passing: 3, before: registerReceiver, after: everythingWasReceived},
	{point: "webhooks.fanned-out", service: "webhooks", passing: 3, before: registerReceiver, after: everythingWasReceived},
	{point: "webhooks.sent", service: "webhooks", passing: 30, before: registerReceiver, after: everythingWasReceived},
	{point: "webhooks.recorded", service: "webhooks", passing: 5, before: registerReceiver, after: everythingWasReceived},
	{point: "logging.resent", service: "logging", passing: 1, before: resendALostOrder},
}

func TestCrash_EveryPointIsTried(t *testing.T) {
	t.Parallel()
	for _, point := range documentedPoints(t) {
		if !slices.ContainsFunc(crashCases, func(c crashCase) bool { return c.point == point }) {
			t.Errorf("nothing is killed at %s", point)
		}
	}
}

// documentedPoints returns the points in docs/crash-points.md.
func documentedPoints(t *testing.T) (points []string) {
	t.Helper()
	text, err := os.ReadFile("../docs/crash-points.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range regexp.MustCompile("(?m)^\\| `([^`]+)` \\|").FindAllStringSubmatch(string(text), -1) {
		points = append(points, m[1])
	}
	return slices.Sorted(slices.Values(points))
}

func TestCrash_ThePointsOfTheCodeAreThoseOfTheDocument(t *testing.T) {
	t.Parallel()
	hit := regexp.MustCompile(`failpoint\.Hit\("([^"]*)"\)`)
	places := map[string]string{}
	err := filepath.WalkDir("..", func(path string, entry fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case entry.IsDir() && strings.HasPrefix(entry.Name(), ".") && entry.Name() != "..":
			return filepath.SkipDir
		case !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go"):
			return nil
		}
		source, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		for _, m := range hit.FindAllStringSubmatch(string(source), -1) {
			if before, twice := places[m[1]]; twice {
				t.Errorf("point %s is in %s and in %s: a point is one place", m[1], before, path)
			}
			places[m[1]] = path
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if got, want := slices.Sorted(maps.Keys(places)), documentedPoints(t); !slices.Equal(got, want) {
		t.Errorf("the code has the points\n%q, the document has\n%q", got, want)
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
	f := newDeployment(t, deploymentOptions{})
	victim := f.replicas[c.service][0]
	victim.start(t, fmt.Sprintf("SHOP_CRASH_AT=%s:%d", c.point, c.passing))
	f.up(t)
	step := func(do func(*testing.T, *deployment)) {
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

// refuseAnOrder makes the order service's database refuse one of the orders.
func refuseAnOrder(t *testing.T, f *deployment) {
	f.exec(t, `ALTER TABLE orders.orders ADD CONSTRAINT refused CHECK (customer_name <> 'order-51')`)
}

func refuseNone(t *testing.T, f *deployment) {
	f.exec(t, `ALTER TABLE orders.orders DROP CONSTRAINT refused`)
}

func sendGarbage(t *testing.T, f *deployment) {
	f.publish(t, "shop.order.placed", []byte("this is no order"), 1)
}

// openDeadLetter waits until there is a dead letter, which must be the only one and open, and returns its path.
func (f *deployment) openDeadLetter(t *testing.T) (path string) {
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

func discardTheGarbage(t *testing.T, f *deployment) {
	if a := f.operator(t, f.openDeadLetter(t)+":discard"); a.code != http.StatusOK {
		t.Fatalf("discarding the dead letter: %d %s", a.code, a.body)
	}
}

// operator posts an empty request as an operator.
func (f *deployment) operator(t *testing.T, path string) answer {
	t.Helper()
	return f.call(t, http.MethodPost, path, "{}", "Authorization", "Bearer "+operatorToken)
}

// redriveARefusedProduct publishes a product that exists already, deletes that product, and redrives the dead letter: the
// service is killed while it handles that.
func redriveARefusedProduct(t *testing.T, f *deployment) {
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
	letter := f.openDeadLetter(t)
	path := fmt.Sprintf("/v1/inventory/%d", desk.ID)
	if a := f.call(t, http.MethodDelete, path, "", "Authorization", "Bearer "+operatorToken); a.code != http.StatusOK {
		t.Fatalf("deleting the product: %d %s", a.code, a.body)
	}
	if a := f.operator(t, letter+":redrive"); a.code != http.StatusServiceUnavailable {
		t.Errorf("redriving with a service that dies of it: %d %s", a.code, a.body)
	}
}

// resendALostOrder deletes the queue in which the first order waits, and makes an operator send it again: the service is
// killed while it does that.
func resendALostOrder(t *testing.T, f *deployment) {
	order := f.replicas["order"][0]
	order.kill()
	location, err := f.order(t, "order-1", linesOf(1))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.openChannel(t).QueueDelete("order", false, false, false); err != nil {
		t.Fatal(err)
	}
	order.start(t)
	order.waitReady(t)
	id := strings.TrimPrefix(location, "/v1/orders/")
	eventually(t, func() error {
		if rows := texts(t, f.openDatabase(t), `SELECT id::text FROM logging.event_log WHERE order_id = $1`, id); len(rows) != 1 {
			return errors.New("the order is not in the log")
		}
		return nil
	})
	a := f.call(t, http.MethodPost, "/v1/events:resend", `{"order_ids":["`+id+`"]}`, "Authorization", "Bearer "+operatorToken)
	if a.code != http.StatusServiceUnavailable {
		t.Errorf("sending it with a service that dies of it: %d %s", a.code, a.body)
	}
}

func createDesks(t *testing.T, quantity int32) []byte {
	t.Helper()
	return encode(t, &eventsv1.CreateItems{RequestId: uuid.NewString(), Items: []*eventsv1.CreateItems_Item{
		{ProductName: "Desk", Quantity: quantity, Price: &moneyv1.Money{CurrencyCode: "USD", Units: 250}},
	}})
}

// redriveItAgain redrives the dead letter once more: it is open, because nothing recorded that it was sent.
func redriveItAgain(t *testing.T, f *deployment) {
	if a := f.operator(t, f.openDeadLetter(t)+":redrive"); a.code != http.StatusOK {
		t.Fatalf("redriving again: %d %s", a.code, a.body)
	}
	eventually(t, func() error {
		if desk := f.stock(t)["Desk"]; desk.OnHand != 7 {
			return fmt.Errorf("the product that was redriven: %+v", desk)
		}
		return nil
	})
}
