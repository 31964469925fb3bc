package ingress

import (
	"context"
	"net/http"
	"net/netip"
	"strings"

	"shop.example/gateway/access"
)

// caller is one client: whom the token is for, where it has been verified, or else the address.
type Client struct {
	subject string
	addr    netip.Addr
}

// callers tells one client from another.
type ClientIdentifier struct {
	Authorizer *access.Authorizer
	// trustedProxies is how many proxies stand before the gateway and append to X-Forwarded-For.
	TrustedProxies int
}

func (c ClientIdentifier) Identify(r *http.Request) Client {
	if subject := c.Authorizer.CachedSubject(r.Header); subject != "" {
		return Client{subject: subject}
	}
	return Client{addr: c.address(r)}
}

// address is where a call comes from. Behind proxies that are trusted it is what the first of them saw.
func (c ClientIdentifier) address(r *http.Request) netip.Addr {
	if c.TrustedProxies > 0 {
		hops := strings.Split(strings.Join(r.Header["X-Forwarded-For"], ","), ",")
		if addr, ok := parseHop(strings.TrimSpace(hops[max(0, len(hops)-c.TrustedProxies)])); ok {
			return clientPrefix(addr)
		}
	}
	return clientAddr(r.RemoteAddr)
}

// remote is the client at the other end of a connection, the zero address where that has none.
func clientAddr(addr string) netip.Addr {
	from, _ := netip.ParseAddrPort(addr)
	return clientPrefix(from.Addr())
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
func clientPrefix(addr netip.Addr) netip.Addr {
	if addr = addr.Unmap().WithZone(""); addr.Is6() {
		network, _ := addr.Prefix(64) // 64 bits are in range
		return network.Addr()
	}
	return addr
}

type clientKey struct{}

// withCaller tells the handler of a stream whose it is. Other calls go without: they are many, and nobody asks.
func WithClient(ctx context.Context, from Client) context.Context {
	return context.WithValue(ctx, clientKey{}, from)
}

func ClientOf(ctx context.Context) Client {
	from, _ := ctx.Value(clientKey{}).(Client)
	return from
}
