package ingress

import (
	"math"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"go.opentelemetry.io/otel/metric/noop"

	"shop.example/gateway/access"
)

func limiterOf(t testing.TB, cfg RateLimit) *rateLimiter {
	t.Helper()
	l, err := newRateLimiter("default", cfg, noop.Meter{})
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func callFrom(addr string, forwardedFor ...string) *http.Request {
	r := httptest.NewRequest(http.MethodGet, "/v1/inventory", nil)
	r.RemoteAddr = addr
	r.Header["X-Forwarded-For"] = forwardedFor
	return r
}

func TestRateLimit_BucketsFillAgain(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		l := limiterOf(t, RateLimit{PerSecond: 2}) // at once: two seconds' worth
		take := func(addr string, want int) {
			t.Helper()
			taken := 0
			for l.allow(http.Header{}, callFrom(addr), ClientIdentifier{Authorizer: access.New(nil, nil, nil)}.Identify(callFrom(addr))) == nil {
				taken++
			}
			if taken != want {
				t.Errorf("%s: %d calls came in, want %d", addr, taken, want)
			}
		}
		take("192.0.2.1:1000", 4)
		take("192.0.2.1:2000", 0)
		take("192.0.2.2:1000", 4)
		<-time.After(500 * time.Millisecond) // of the clock of synctest, which goes on when all wait
		take("192.0.2.1:1000", 1)
		<-time.After(time.Hour)
		take("192.0.2.1:1000", 4)
	})
}

func TestRateLimit_WhoTheClientIs(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name      string
		proxies   int
		from      string
		forwarded []string
		want      string
	}{
		{"the address", 0, "192.0.2.1:1000", nil, "192.0.2.1"},
		{"a forged header where there is no proxy", 0, "192.0.2.1:1000", []string{"198.51.100.9"}, "192.0.2.1"},
		{"what the proxy saw", 1, "10.0.0.1:1000", []string{"192.0.2.1"}, "192.0.2.1"},
		{"a forged header before the proxy", 1, "10.0.0.1:1000", []string{"198.51.100.9, 192.0.2.1"}, "192.0.2.1"},
		{"a forged header line before the proxy", 1, "10.0.0.1:1000", []string{"198.51.100.9", "192.0.2.1"}, "192.0.2.1"},
		{"what the first of two proxies saw", 2, "10.0.0.1:1000", []string{"198.51.100.9, 192.0.2.1, 10.0.0.2"}, "192.0.2.1"},
		{"fewer proxies than trusted", 2, "10.0.0.1:1000", []string{"192.0.2.1"}, "192.0.2.1"},
		{"no header from the proxy", 1, "10.0.0.1:1000", nil, "10.0.0.1"},
		{"what a proxy saw that adds the port", 1, "10.0.0.1:1000", []string{"192.0.2.1:51234"}, "192.0.2.1"},
		{"IPv6 and the port", 1, "10.0.0.1:1000", []string{"[2001:db8:1:2::7]:51234"}, "2001:db8:1:2::"},
		{"IPv6 in brackets", 1, "10.0.0.1:1000", []string{"[2001:db8:1:2::7]"}, "2001:db8:1:2::"},
		{"IPv6 as it is", 1, "10.0.0.1:1000", []string{"2001:db8:1:2::7"}, "2001:db8:1:2::"},
		{"garbage from the proxy", 1, "10.0.0.1:1000", []string{"unknown"}, "10.0.0.1"},
		{"IPv4 in IPv6", 0, "[::ffff:192.0.2.1]:1000", nil, "192.0.2.1"},
		{"one subscriber of IPv6", 0, "[2001:db8:1:2:3:4:5:6]:1000", nil, "2001:db8:1:2::"},
		{"a local network of IPv6", 0, "[fe80::1%eth0]:1000", nil, "fe80::"},
	}
	for _, test := range tests {
		if got := (ClientIdentifier{TrustedProxies: test.proxies}).address(callFrom(test.from, test.forwarded...)); got != netip.MustParseAddr(test.want) {
			t.Errorf("%s: %v, want %s", test.name, got, test.want)
		}
	}
}

func TestRateLimit_RemembersABoundedNumberOfClients(t *testing.T) {
	t.Parallel()
	l := limiterOf(t, RateLimit{PerSecond: 0.001, Burst: 1})
	for i := range maxClients + 100 {
		if err := l.allow(http.Header{}, callFrom("192.0.2.1:1"), Client{subject: strconv.Itoa(i)}); err != nil {
			t.Fatalf("client %d: %v", i, err)
		}
	}
	if got := l.buckets.Len(); got != maxClients {
		t.Errorf("%d clients are remembered, want %d", got, maxClients)
	}
	if l.allow(http.Header{}, callFrom("192.0.2.1:1"), Client{subject: strconv.Itoa(maxClients)}) == nil {
		t.Error("a client that has just called is forgotten")
	}
}

func TestRateLimit_SettingsThatMeanNothingAreRefused(t *testing.T) {
	t.Parallel()
	for variable, cfg := range map[string]RateLimit{
		"RATE_LIMIT ":       {PerSecond: -1},
		"RATE_LIMIT must":   {PerSecond: math.NaN()},
		"RATE_LIMIT_BURST ": {PerSecond: 1, Burst: -1},
		"TRUSTED_PROXIES ":  {TrustedProxies: -1},
	} {
		if _, err := newRateLimiter("default", cfg, noop.Meter{}); err == nil || !strings.HasPrefix(err.Error(), variable) {
			t.Errorf("want an error that begins with %q, got: %v", variable, err)
		}
	}
}

// BenchmarkRateLimit is what the limit costs each call. It has to stay below 300 ns.
func BenchmarkRateLimit(b *testing.B) {
	l := limiterOf(b, RateLimit{PerSecond: 1e12})
	b.ReportAllocs()
	b.RunParallel(func(pb *testing.PB) {
		r := callFrom("192.0.2.1:1000")
		for pb.Next() {
			if err := l.allow(http.Header{}, r, ClientIdentifier{Authorizer: access.New(nil, nil, nil)}.Identify(r)); err != nil {
				b.Error(err)
			}
		}
	})
}
