package ingress

import (
	"context"
	"net/http"
	"net/netip"
	"strings"

	"shop.example/gateway/access"
)

// Client is one client: whom its token is for, if that was verified before, else its address.
type Client struct {
	subject string
	addr    netip.Addr
}

// ClientIdentifier tells one client from another. It is safe for concurrent use.
type ClientIdentifier struct {
	Authorizer *access.Authorizer
	// TrustedProxies is how many proxies stand before the gateway and append to X-Forwarded-For.
	TrustedProxies int
}

// Identify returns the client that makes a call.
func (c ClientIdentifier) Identify(r *http.Request) Client {
	if subject := c.Authorizer.CachedSubject(r.Header); subject != "" {
		return Client{subject: subject}
	}
	return Client{addr: c.address(r)}
}

// address is where a call comes from: behind trusted proxies, the address that the first of them saw.
func (c ClientIdentifier) address(r *http.Request) netip.Addr {
	if c.TrustedProxies > 0 {
		hops := strings.Split(strings.Join(r.Header["X-Forwarded-For"], ","), ",")
		if addr, ok := parseHop(strings.TrimSpace(hops[max(0, len(hops)-c.TrustedProxies)])); ok {
			return clientPrefix(addr)
		}
	}
	return clientAddr(r.RemoteAddr)
}

// clientAddr is the address of the other end of a connection; the zero address if it has none.
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

// clientPrefix is the address that stands for all addresses of one client: in IPv6 a client has a network of 64 bits.
func clientPrefix(addr netip.Addr) netip.Addr {
	if addr = addr.Unmap().WithZone(""); addr.Is6() {
		network, _ := addr.Prefix(64) // 64 bits are in range
		return network.Addr()
	}
	return addr
}

type clientKey struct{}

// WithClient tells the handler of a stream who its client is. Other calls go without: they are many, and nobody asks.
func WithClient(ctx context.Context, from Client) context.Context {
	return context.WithValue(ctx, clientKey{}, from)
}

// ClientOf returns what WithClient has put into ctx; the zero Client if that is nothing.
func ClientOf(ctx context.Context) Client {
	from, _ := ctx.Value(clientKey{}).(Client)
	return from
}
