package brokertest

import (
	"testing"

	"shop.example/platform/testkit/netproxy"
)

// Proxy returns a proxy in front of the test's virtual host, by which its broker can be cut off.
func (b *Broker) Proxy(t testing.TB) *netproxy.Proxy {
	t.Helper()
	return netproxy.New(t, b.URL)
}
