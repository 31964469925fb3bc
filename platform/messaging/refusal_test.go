package messaging_test

import (
	"context"
	"net/url"
	"strings"
	"testing"
	"time"

	rabbithole "github.com/michaelklishin/rabbit-hole/v3"

	"shop.example/platform/testkit/brokertest"
)

// A gateway whose user may not publish any more stayed ready, and a balancer went on to send it orders.
func TestPublisher_IsNotReadyWhileTheBrokerRefusesWhatItPublishes(t *testing.T) {
	t.Parallel()
	broker := brokertest.New(t)
	p := join(t, broker.URL, "test")
	if _, err := p.consume.Queues(within(t)); err != nil { // the topology is there
		t.Fatal(err)
	}
	mayWrite := func(pattern string) {
		t.Helper()
		u, err := url.Parse(broker.URL)
		if err != nil {
			t.Fatal(err)
		}
		res, err := broker.Manage.UpdatePermissionsIn(broker.Vhost, u.User.Username(), rabbithole.Permissions{Configure: ".*", Write: pattern, Read: ".*"})
		if err != nil {
			t.Fatal(err)
		}
		_ = res.Body.Close()
	}
	eventually(t, func() error { return p.pub.Ready(t.Context()) })

	mayWrite("^$")
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	if err := p.pub.Publish(ctx, placed()); err == nil {
		t.Error("the broker took an event of a user who may not publish")
	}
	if err := p.pub.Ready(t.Context()); err == nil || !strings.Contains(err.Error(), "the broker refuses what is published") || !strings.Contains(err.Error(), "shop.topic") {
		t.Errorf("Ready = %v, want that the broker refuses what is published, and where", err)
	}

	mayWrite(".*")
	publish(t, p, placed())
	if err := p.pub.Ready(t.Context()); err != nil {
		t.Errorf("Ready = %v after a message was taken", err)
	}
}
