package ingress

import (
	"context"
	"net/http"
	"net/netip"
	"strings"

	"shop.example/gateway/access"
)

// Client identifies one client for limits: the subject of its token if that was verified a short time ago, otherwise its
// address.
type Client struct {
	subject string
	addr    netip.Addr
}

// ClientIdentifier finds out which client makes a call. It is safe for concurrent use.
type ClientIdentifier struct {
	Authorizer *access.Authorizer
	// TrustedProxies is how many proxies in front of the gateway append to X-Forwarded-For.
	TrustedProxies int
}

// Identify returns the client that makes a call.
func (c ClientIdentifier) Identify(r *http.Request) Client {
	if subject := c.Authorizer.CachedSubject(r.Header); subject != "" {
		return Client{subject: subject}
	}
	return Client{addr: c.address(r)}
}

// address returns the address that a call comes from: behind trusted proxies, the one that the first of them saw.
func (c ClientIdentifier) address(r *http.Request) netip.Addr {
	if c.TrustedProxies > 0 {
		hops := strings.Split(strings.Join(r.Header["X-Forwarded-For"], ","), ",")
		if addr, ok := parseHop(strings.TrimSpace(hops[max(0, len(hops)-c.TrustedProxies)])); ok {
			return clientPrefix(addr)
		}
	}
	return clientAddr(r.RemoteAddr)
}

// clientAddr parses the remote address of a connection; it returns the zero address if there is none.
func clientAddr(addr string) netip.Addr {
	from, _ := netip.ParseAddrPort(addr)
	return clientPrefix(from.Addr())
}

// parseHop parses an address as proxies write it: some add the port, and then put an IPv6 address in brackets.
func parseHop(hop string) (netip.Addr, bool) {
	if with, err := netip.ParseAddrPort(hop); err == nil {
		return with.Addr(), true
	}
	addr, err := netip.ParseAddr(strings.TrimSuffix(strings.TrimPrefix(hop, "["), "]"))
	return addr, err == nil
}

// clientPrefix returns the one address that stands for all addresses of a client: in IPv6 a client has a network of 64
// bits.
func clientPrefix(addr netip.Addr) netip.Addr {
	if addr = addr.Unmap().WithZone(""); addr.Is6() {
		network, _ := addr.Prefix(64) // 64 bits are in range
		return network.Addr()
	}
	return addr
}

type clientKey struct{}

// WithClient returns ctx with the client of a call, for the handlers of streams, which limit streams per client. Other
// calls do without, because they are many and their handlers need not know.
func WithClient(ctx context.Context, from Client) context.Context {
	return context.WithValue(ctx, clientKey{}, from)
}

// ClientOf returns the client that WithClient has put into ctx; the zero Client if there is none.
func ClientOf(ctx context.Context) Client {
	from, _ := ctx.Value(clientKey{}).(Client)
	return from
}
