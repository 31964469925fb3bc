package brokertest

import (
	"context"
	"fmt"
	"net/url"
	"strings"
	"testing"
	"time"

	toxiproxy "github.com/Shopify/toxiproxy/v2"
	"github.com/rs/zerolog"
)

// Line is a connection to the broker that a test can cut.
type Line struct {
	URL   string // amqp URL through the line
	proxy *toxiproxy.Proxy
}

// Line returns a new line to the test's virtual host.
func (b *Broker) Line(t testing.TB) *Line {
	t.Helper()
	u, err := url.Parse(b.URL)
	if err != nil {
		t.Fatalf("AMQP_URL: %v", err)
	}
	server := toxiproxy.NewServer(toxiproxy.NewMetricsContainer(nil), zerolog.Nop())
	proxy := toxiproxy.NewProxy(server, b.Vhost, "127.0.0.1:0", u.Host)
	if err := proxy.Start(); err != nil {
		t.Fatalf("starting the line to the broker: %v", err)
	}
	t.Cleanup(proxy.Stop)
	u.Host = proxy.Listen
	return &Line{URL: u.String(), proxy: proxy}
}

// Mute keeps from arriving what the broker says, confirms for example, while it still hears everything. Up ends it.
func (l *Line) Mute(t testing.TB) {
	t.Helper()
	if _, err := l.proxy.Toxics.AddToxicJson(strings.NewReader(`{"type":"timeout","stream":"downstream","attributes":{"timeout":0}}`)); err != nil {
		t.Fatalf("muting the broker: %v", err)
	}
}

// Delay has what the broker says arrive so much later. Up ends it.
func (l *Line) Delay(t testing.TB, by time.Duration) {
	t.Helper()
	toxic := fmt.Sprintf(`{"type":"latency","stream":"downstream","attributes":{"latency":%d}}`, by.Milliseconds())
	if _, err := l.proxy.Toxics.AddToxicJson(strings.NewReader(toxic)); err != nil {
		t.Fatalf("delaying the broker: %v", err)
	}
}

// Down cuts every connection of the line and refuses new ones until Up.
func (l *Line) Down() { l.proxy.Stop() }

// Up lets connections through again.
func (l *Line) Up(t testing.TB) {
	t.Helper()
	l.proxy.Toxics.ResetToxics(context.Background())
	if err := l.proxy.Start(); err != nil {
		t.Fatalf("repairing the line to the broker: %v", err)
	}
}
