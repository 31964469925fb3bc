package messaging

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"
)

// failureMemory is how long a node that has failed is tried only after all others.
const failureMemory = 30 * time.Second

// endpoint is one of the addresses in AMQP_URL: a node, or a name that leads to several.
type endpoint struct {
	uri   amqp.URI
	plain string // the URL for the library, which gets a socket that is connected, and secured if need be
}

// node is an address of a broker's node that can be dialled.
type node struct {
	endpoint
	addr  string // IP address and port
	spare bool   // of the other family than the name's first address: likely the same machine again
}

// nextURL matches the separator between two URLs in a list.
var nextURL = regexp.MustCompile(`,\s*amqps?://`)

// SplitURL splits an AMQP_URL that names several nodes into one URL for each: amqp://user:password@a:5672,b:5672/vhost
// names two, and so do two URLs with a comma between them. It does not check that the URLs are valid.
func SplitURL(address string) []string {
	var urls []string
	for address != "" {
		next := ""
		if comma := nextURL.FindStringIndex(address); comma != nil {
			address, next = address[:comma[0]], strings.TrimSpace(address[comma[0]+1:])
		}
		scheme, rest, _ := strings.Cut(address, "://")
		end := len(rest)
		if i := strings.IndexAny(rest, "/?#"); i >= 0 {
			end = i
		}
		hosts := strings.LastIndex(rest[:end], "@") + 1
		for host := range strings.SplitSeq(rest[hosts:end], ",") {
			urls = append(urls, scheme+"://"+rest[:hosts]+strings.TrimSpace(host)+rest[end:])
		}
		address = next
	}
	return urls
}

const urlForm = "(it has the form amqp://user:password@host:5672/vhost, or amqp://user:password@host1:5672,host2:5672/vhost)"

// parseURL parses AMQP_URL. It refuses a URL that would fail on every connection, or that names files for TLS but does not
// use TLS.
func parseURL(address string) ([]endpoint, error) {
	urls := SplitURL(address)
	if len(urls) == 0 {
		return nil, errors.New("it is empty " + urlForm)
	}
	var endpoints []endpoint
	for _, one := range urls {
		e, err := parseEndpoint(one)
		if err != nil {
			return nil, err
		}
		if len(urls) > 1 && hostOf(one) == "" {
			return nil, errors.New("there is a comma without a host " + urlForm)
		}
		if first := append(endpoints, e)[0].uri; e.uri.Username != first.Username || e.uri.Vhost != first.Vhost {
			return nil, errors.New("all its addresses need the same user and virtual host")
		}
		endpoints = append(endpoints, e)
	}
	return endpoints, nil
}

func parseEndpoint(address string) (endpoint, error) {
	uri, err := amqp.ParseURI(address)
	if parse, ok := errors.AsType[*url.Error](err); ok {
		err = parse.Err // without the URL, which holds a password
	}
	switch {
	case err != nil:
		return endpoint{}, fmt.Errorf("%w %s", err, urlForm)
	case uri.Scheme == "amqp" && (uri.CACertFile != "" || uri.CertFile != "" || uri.KeyFile != ""):
		return endpoint{}, errors.New("it names files for TLS, which amqp:// does not use: write amqps://")
	case (uri.CertFile == "") != (uri.KeyFile == ""):
		return endpoint{}, errors.New("certfile and keyfile go together")
	}
	if _, err := tlsConfig(uri); err != nil {
		return endpoint{}, err
	}
	u, err := url.Parse(address)
	if err != nil {
		return endpoint{}, err
	}
	u.Scheme, u.Host = "amqp", net.JoinHostPort(uri.Host, strconv.Itoa(uri.Port))
	return endpoint{uri, u.String()}, nil
}

func hostOf(address string) string {
	u, err := url.Parse(address)
	if err != nil {
		return ""
	}
	return u.Hostname()
}

// lookUp resolves the endpoints to nodes. Its error is about names that do not resolve; the nodes of the others are
// returned too.
func lookUp(ctx context.Context, endpoints []endpoint) ([]node, error) {
	ctx, cancel := context.WithTimeout(ctx, tryTimeout)
	defer cancel()
	found, failed := make([][]netip.Addr, len(endpoints)), make([]error, len(endpoints))
	var asked sync.WaitGroup
	for i, e := range endpoints {
		asked.Go(func() { found[i], failed[i] = net.DefaultResolver.LookupNetIP(ctx, "ip", e.uri.Host) })
	}
	asked.Wait()
	var nodes []node
	var err error
	for i, e := range endpoints {
		err = joinOnOneLine(err, failed[i])
		for _, ip := range found[i] {
			ip = ip.Unmap()
			addr := netip.AddrPortFrom(ip, uint16(e.uri.Port)).String() //nolint:gosec // a port, as the URL was parsed
			if !slices.ContainsFunc(nodes, func(n node) bool { return n.addr == addr }) {
				nodes = append(nodes, node{e, addr, ip.Is4() != found[i][0].Unmap().Is4()})
			}
		}
	}
	return nodes, err
}

// joinOnOneLine joins two errors, either of which may be nil, without the line break of errors.Join.
func joinOnOneLine(err, next error) error {
	if err == nil || next == nil {
		return cmp.Or(err, next)
	}
	return fmt.Errorf("%w; %w", err, next)
}

// nodeTable is what the connections of a process share about nodes.
type nodeTable struct {
	mu     sync.Mutex
	states map[string]nodeState // by address
}

type nodeState struct {
	connections int       // that this process has to it, or is making
	failed      time.Time // the last failure
}

// nodes spreads the connections of this process, and lets one learn from the failures of another.
var nodes = nodeTable{states: map[string]nodeState{}}

// claim chooses a node to connect to from those that are left: one that has not failed lately, with the fewest connections,
// at random among equals. If all have failed it is the one that failed the longest ago.
func (t *nodeTable) claim(left []node) (node, []node) {
	t.mu.Lock()
	defer t.mu.Unlock()
	rand.Shuffle(len(left), func(i, k int) { left[i], left[k] = left[k], left[i] })
	lately := time.Now().Add(-failureMemory)
	failed := func(n node) time.Time {
		if at := t.states[n.addr].failed; at.After(lately) {
			return at
		}
		return time.Time{}
	}
	slices.SortStableFunc(left, func(a, b node) int {
		return cmp.Or(failed(a).Compare(failed(b)), compareBool(a.spare, b.spare),
			cmp.Compare(t.states[a.addr].connections, t.states[b.addr].connections))
	})
	state := t.states[left[0].addr]
	state.connections++
	t.states[left[0].addr] = state
	return left[0], left[1:]
}

func compareBool(a, b bool) int {
	switch {
	case a == b:
		return 0
	case a:
		return 1
	}
	return -1
}

// release ends what claim began. A node that failed is avoided for a while.
func (t *nodeTable) release(n node, failed bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	state := t.states[n.addr]
	state.connections--
	if failed {
		state.failed = time.Now()
	}
	if state.connections == 0 && time.Since(state.failed) > failureMemory {
		delete(t.states, n.addr) // names lead to ever new addresses where nodes come and go
		return
	}
	t.states[n.addr] = state
}
