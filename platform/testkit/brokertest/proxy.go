package brokertest

import (
	"testing"

	"shop.example/platform/testkit/netproxy"
)

// Proxy returns a proxy in front of the virtual host, with which a test can cut its connections.
func (b *Broker) Proxy(t testing.TB) *netproxy.Proxy {
	t.Helper()
	return netproxy.New(t, b.URL)
}
