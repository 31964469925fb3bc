// Package brokertest gives each test a virtual host of its own on a real broker.
package brokertest

import (
	"net/http"
	"net/url"
	"os"
	"strings"
	"testing"
	"time"

	rabbithole "github.com/michaelklishin/rabbit-hole/v3"

	"github.com/google/uuid"

	"shop.example/platform/messaging/provision"
)

// Broker is a virtual host that is deleted when its test ends.
type Broker struct {
	URL    string // amqp URL of the virtual host
	Vhost  string
	Manage *rabbithole.Client // the management API of the whole broker

	services map[string]string // made by Services
}

// New creates a virtual host on the broker at AMQP_URL, through the management API at AMQP_MANAGEMENT_URL, and deletes it
// when the test ends. With -short it skips the test, because there is no broker then.
func New(t testing.TB) *Broker {
	t.Helper()
	if testing.Short() {
		t.Skip("needs RabbitMQ")
	}
	amqpURL, manageURL := os.Getenv("AMQP_URL"), os.Getenv("AMQP_MANAGEMENT_URL")
	if amqpURL == "" || manageURL == "" {
		t.Fatal("this test needs RabbitMQ, and AMQP_URL and AMQP_MANAGEMENT_URL are not set: run `make t PKG=./…` in the root of the repository, or `make unit` for the tests without servers")
	}
	u, err := url.Parse(manageURL)
	if err != nil {
		t.Fatalf("AMQP_MANAGEMENT_URL: %v", err)
	}
	password, _ := u.User.Password()
	client, err := rabbithole.NewClient(u.Scheme+"://"+u.Host, u.User.Username(), password)
	if err != nil {
		t.Fatalf("management API: %v", err)
	}
	client.SetTimeout(30 * time.Second)

	// The name says which test left it behind, should one ever.
	vhost := "test-" + strings.ToLower(strings.Map(plain, t.Name())) + "-" + uuid.NewString()[:8]
	must := func(doing string, res *http.Response, err error) {
		t.Helper()
		if err != nil {
			t.Fatalf("%s: %v", doing, err)
		}
		_ = res.Body.Close()
	}
	res, err := client.PutVhost(vhost, rabbithole.VhostSettings{})
	must("making a virtual host", res, err)
	t.Cleanup(func() {
		idle(client, vhost)
		res, err := client.DeleteVhost(vhost)
		must("deleting the virtual host", res, err)
	})
	broker, err := url.Parse(amqpURL)
	if err != nil {
		t.Fatalf("AMQP_URL: %v", err)
	}
	res, err = client.UpdatePermissionsIn(vhost, broker.User.Username(), rabbithole.Permissions{Configure: ".*", Write: ".*", Read: ".*"})
	must("permitting the test's user", res, err)
	if err := provision.DeliveryLimit(t.Context(), manageURL, vhost); err != nil {
		t.Fatal(err)
	}
	broker.Path = "/" + vhost
	return &Broker{URL: broker.String(), Vhost: vhost, Manage: client}
}

func plain(r rune) rune {
	switch {
	case r >= 'a' && r <= 'z', r >= 'A' && r <= 'Z', r >= '0' && r <= '9':
		return r
	}
	return '-'
}

// idle waits until nobody is connected to a virtual host, but not for ever. A client that closes its connection does not wait for the
// queues that it has asked for. If one of those is deleted while it comes into being, RabbitMQ loses the supervisor of what moves dead
// letters, and can declare no such queue any more until it is started again. The brokers of package stack survive it; others may not.
func idle(client *rabbithole.Client, vhost string) {
	limit, again := time.After(5*time.Second), time.NewTicker(20*time.Millisecond)
	defer again.Stop()
	for {
		connections, err := client.ListVhostConnections(vhost)
		if err != nil || len(connections) == 0 {
			return
		}
		select {
		case <-again.C:
		case <-limit:
			return
		}
	}
}
