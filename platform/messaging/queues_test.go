package messaging_test

import (
	"net/http"
	"net/url"
	"slices"
	"strings"
	"testing"

	rabbithole "github.com/michaelklishin/rabbit-hole/v3"
	amqp "github.com/rabbitmq/amqp091-go"

	"shop.example/platform/testkit/brokertest"
)

func TestQueues_SayWhatWaitsAndLeaveOutWhatIsMissing(t *testing.T) {
	t.Parallel()
	broker := brokertest.New(t)
	p := join(t, broker.URL, "test")
	publish(t, p, placed())
	publish(t, p, placed())
	if _, err := p.consume.Queues(within(t)); err != nil { // connected: it declares no queue again
		t.Fatal(err)
	}
	res, err := broker.Manage.DeleteQueue(broker.Vhost, "inventory.retry.10s")
	if err != nil {
		t.Fatal(err)
	}
	_ = res.Body.Close()

	for range 2 { // the missing queue closed a channel, nothing else
		states, err := p.consume.Queues(within(t))
		if err != nil {
			t.Fatal(err)
		}
		var names []string
		waiting := map[string]int{}
		for _, q := range states {
			names = append(names, q.Name)
			waiting[q.Name] = q.Messages
		}
		want := strings.Fields(`order order.retry.1s order.retry.10s order.retry.60s inventory inventory.retry.1s inventory.retry.60s
			logging logging.retry.1s logging.retry.10s logging.retry.60s dead-letter`)
		if !slices.Equal(names, want) {
			t.Errorf("queues %q, want %q", names, want)
		}
		if waiting["order"] != 2 || waiting["logging"] != 2 || waiting["inventory"] != 0 {
			t.Errorf("waiting: %v", waiting)
		}
	}
	if err := p.consume.Ready(t.Context()); err != nil {
		t.Errorf("after asking for a missing queue: %v", err)
	}
}

// A service may ask for queues on which it has no right at all.
func TestQueues_NeedNoRight(t *testing.T) {
	t.Parallel()
	broker := brokertest.New(t)
	publish(t, join(t, broker.URL, "test"), placed())
	const user, password = "nobody", "nobody's password"
	name := user + "-" + broker.Vhost
	must := func(res *http.Response, err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		_ = res.Body.Close()
	}
	must(broker.Manage.PutUser(name, rabbithole.UserSettings{Password: password}))
	t.Cleanup(func() { must(broker.Manage.DeleteUser(name)) })
	must(broker.Manage.UpdatePermissionsIn(broker.Vhost, name, rabbithole.Permissions{Configure: "^$", Write: "^$", Read: "^$"}))
	u, err := url.Parse(broker.URL)
	if err != nil {
		t.Fatal(err)
	}
	u.User = url.UserPassword(name, password)
	conn, err := amqp.Dial(u.String())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	ch, err := conn.Channel()
	if err != nil {
		t.Fatal(err)
	}
	q, err := ch.QueueDeclarePassive("order", true, false, false, false, nil)
	if err != nil || q.Messages != 1 {
		t.Errorf("got %+v, %v", q, err)
	}
	if _, err := ch.QueueDeclare("mine", false, true, false, false, nil); err == nil {
		t.Error("the user has rights: nothing was shown")
	}
}
