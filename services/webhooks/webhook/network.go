package webhook

import (
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"syscall"
	"time"
)

const (
	// pingAfter is how long a connection over HTTP/2 may be silent before it is asked for a sign of life, and pingTimeout how long that
	// may take.
	pingAfter   = 5 * time.Second
	pingTimeout = 5 * time.Second
)

// errPrivateAddress means that a request would leave the public networks. It contains no address, from which the owner of
// the webhook could learn what names resolve to inside.
var errPrivateAddress = errors.New("the address is not one that webhooks may call")

// notPublic are networks that requests may not go to, in addition to private, loopback, link-local and multicast ones: each
// of them leads, or may lead, to a machine of ours (https://www.iana.org/assignments/iana-ipv4-special-registry and ipv6).
var notPublic = prefixes(
	"0.0.0.0/8", "100.64.0.0/10", "192.0.0.0/24", "192.0.2.0/24", "192.88.99.0/24", "198.18.0.0/15", "198.51.100.0/24", "203.0.113.0/24", "240.0.0.0/4",
	"::/96", "64:ff9b::/96", "64:ff9b:1::/48", "100::/64", "2001::/23", "2001:db8::/32", "2002::/16", "3fff::/20", "5f00::/16", "fec0::/10",
)

func prefixes(all ...string) (list []netip.Prefix) {
	for _, p := range all {
		list = append(list, netip.MustParsePrefix(p))
	}
	return list
}

// network knows which addresses may be called.
type network struct{ allowed []netip.Prefix }

// newNetwork parses WEBHOOK_ALLOWED_NETWORKS.
func newNetwork(allowed []string) (network, error) {
	var n network
	for _, text := range allowed {
		p, err := netip.ParsePrefix(strings.TrimSpace(text))
		if err != nil {
			return n, fmt.Errorf("WEBHOOK_ALLOWED_NETWORKS: %q is not a network: write 10.1.0.0/16 for example, with commas between networks", text)
		}
		n.allowed = append(n.allowed, p.Masked())
	}
	return n, nil
}

// check returns an error unless ip may be called: public addresses over TLS, and those of allowed networks in any case.
func (n network) check(ip netip.Addr, encrypted bool) error {
	ip = ip.Unmap().WithZone("")
	within := func(list []netip.Prefix) bool {
		return slices.ContainsFunc(list, func(p netip.Prefix) bool { return p.Contains(ip) })
	}
	if within(n.allowed) {
		return nil
	}
	if !encrypted || !ip.IsGlobalUnicast() || ip.IsPrivate() || within(notPublic) {
		return errPrivateAddress
	}
	return nil
}

// transport connects only to addresses that may be called. It checks the address when it connects, after the name was
// resolved, so a name that resolves to something else the second time does not get around the check.
func (n network) transport(encrypted bool, connections int) *http.Transport {
	dialer := &net.Dialer{
		Timeout: 5 * time.Second,
		Control: func(_, address string, _ syscall.RawConn) error {
			to, err := netip.ParseAddrPort(address)
			if err != nil {
				return errPrivateAddress
			}
			return n.check(to.Addr(), encrypted)
		},
	}
	return &http.Transport{
		Proxy:             nil, // a proxy would resolve the name by itself
		DialContext:       dialer.DialContext,
		ForceAttemptHTTP2: true,
		// A connection over HTTP/2 is used again after a request got no answer: one that is dead without a word, as after a failover,
		// would take each attempt until the system gives it up.
		HTTP2:                  &http.HTTP2Config{SendPingTimeout: pingAfter, PingTimeout: pingTimeout},
		TLSHandshakeTimeout:    5 * time.Second,
		MaxResponseHeaderBytes: maxHeader,
		MaxIdleConns:           4 * connections,
		MaxIdleConnsPerHost:    connections,
		IdleConnTimeout:        time.Minute,
		DisableCompression:     true, // a small answer could grow without bounds
	}
}
