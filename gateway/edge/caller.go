package edge

import (
	"context"
	"net/http"
	"net/netip"
	"strings"
)

// caller is one client: whom the token is for, where it has been verified, or else the address.
type caller struct {
	subject string
	addr    netip.Addr
}

// callers tells one client from another.
type callers struct {
	access *access
	// trustedProxies is how many proxies stand before the gateway and append to X-Forwarded-For.
	trustedProxies int
}

func (c callers) of(r *http.Request) caller {
	if subject := c.access.knownSubject(r.Header); subject != "" {
		return caller{subject: subject}
	}
	return caller{addr: c.address(r)}
}

// address is where a call comes from. Behind proxies that are trusted it is what the first of them saw.
func (c callers) address(r *http.Request) netip.Addr {
	if c.trustedProxies > 0 {
		hops := strings.Split(strings.Join(r.Header["X-Forwarded-For"], ","), ",")
		if addr, ok := parseHop(strings.TrimSpace(hops[max(0, len(hops)-c.trustedProxies)])); ok {
			return subscriber(addr)
		}
	}
	return remote(r.RemoteAddr)
}

// remote is the client at the other end of a connection, the zero address where that has none.
func remote(addr string) netip.Addr {
	from, _ := netip.ParseAddrPort(addr)
	return subscriber(from.Addr())
}

// parseHop reads an address as proxies write it: some add the port, and put an IPv6 address in brackets then.
func parseHop(hop string) (netip.Addr, bool) {
	if with, err := netip.ParseAddrPort(hop); err == nil {
		return with.Addr(), true
	}
	addr, err := netip.ParseAddr(strings.TrimSuffix(strings.TrimPrefix(hop, "["), "]"))
	return addr, err == nil
}

// subscriber is the address that stands for all that one subscriber has: a network of 64 bits in IPv6.
func subscriber(addr netip.Addr) netip.Addr {
	if addr = addr.Unmap().WithZone(""); addr.Is6() {
		network, _ := addr.Prefix(64) // 64 bits are in range
		return network.Addr()
	}
	return addr
}

type callerKey struct{}

// withCaller tells the handler of a stream whose it is. Other calls go without: they are many, and nobody asks.
func withCaller(ctx context.Context, from caller) context.Context {
	return context.WithValue(ctx, callerKey{}, from)
}

func callerIn(ctx context.Context) caller {
	from, _ := ctx.Value(callerKey{}).(caller)
	return from
}
