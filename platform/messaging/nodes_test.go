package messaging

import (
	"slices"
	"strings"
	"testing"
	"time"
)

func TestSplitURL_NamesEachNode(t *testing.T) {
	t.Parallel()
	for address, want := range map[string][]string{
		"amqp://u:p@a:5672/v":                          {"amqp://u:p@a:5672/v"},
		"amqp://u:p@a:5672,b,c:5673/v?heartbeat=5":     {"amqp://u:p@a:5672/v?heartbeat=5", "amqp://u:p@b/v?heartbeat=5", "amqp://u:p@c:5673/v?heartbeat=5"},
		"amqp://u:p@a/v,amqp://u:p@b/v":                {"amqp://u:p@a/v", "amqp://u:p@b/v"},
		"amqp://u:p@a/v, amqps://u:p@b,[::1]:5671/v":   {"amqp://u:p@a/v", "amqps://u:p@b/v", "amqps://u:p@[::1]:5671/v"},
		"amqp://u:p,w@a,amqp-1:5672":                   {"amqp://u:p,w@a", "amqp://u:p,w@amqp-1:5672"}, // a comma of the password
		"amqps://u:p@a,b/v?cacertfile=/one,two/ca.pem": {"amqps://u:p@a/v?cacertfile=/one,two/ca.pem", "amqps://u:p@b/v?cacertfile=/one,two/ca.pem"},
	} {
		if got := SplitURL(address); !slices.Equal(got, want) {
			t.Errorf("%s: got %q, want %q", address, got, want)
		}
	}
}

func TestParseURL_SeveralAddressesThatCannotBeOneCluster(t *testing.T) {
	t.Parallel()
	for address, want := range map[string]string{
		"amqp://u:p@a/v,amqp://u:p@b/w":  "same user and virtual host",
		"amqp://u:p@a/v,amqp://me:p@b/v": "same user and virtual host",
		"amqp://u:p@a,/v":                "a comma without a host",
		"amqp://u:p@a,b:port/v":          "it has the form",
		"":                               "it is empty",
	} {
		if _, err := parseURL(address); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: got %v, want %q", address, err, want)
		}
	}
}

func TestLookUp_ANameThatLeadsNowhereDoesNotHideTheOthers(t *testing.T) {
	t.Parallel()
	endpoints, err := parseURL("amqp://u:p@127.0.0.1,no-such-host.invalid,127.0.0.2:1,127.0.0.1/v")
	if err != nil {
		t.Fatal(err)
	}
	found, err := lookUp(t.Context(), endpoints)
	if err == nil || !strings.Contains(err.Error(), "no-such-host.invalid") {
		t.Errorf("the name that leads nowhere: %v", err)
	}
	if len(found) != 2 || found[0].addr != "127.0.0.1:5672" || found[1].addr != "127.0.0.2:1" {
		t.Errorf("found %v, want each address once", found)
	}
}

func TestNodeTable_ConnectionsAreSpread(t *testing.T) {
	t.Parallel()
	table := nodeTable{states: map[string]nodeState{}}
	claimed := map[string]int{}
	for range 30 {
		n, left := table.claim([]node{{addr: "a"}, {addr: "b"}, {addr: "spare", spare: true}, {addr: "c"}})
		if claimed[n.addr]++; len(left) != 3 {
			t.Fatalf("%d nodes are left of four", len(left))
		}
	}
	if claimed["a"] != 10 || claimed["b"] != 10 || claimed["c"] != 10 {
		t.Errorf("connections by node: %v, want 10 to each of the three", claimed)
	}
}

func TestNodeTable_ANodeThatFailedComesLastAndIsForgivenLater(t *testing.T) {
	t.Parallel()
	table := nodeTable{states: map[string]nodeState{}}
	all := func() []node { return []node{{addr: "a"}, {addr: "b"}} }
	table.release(mustClaim(t, &table, []node{{addr: "a"}}), true)
	for range 10 {
		if n := mustClaim(t, &table, all()); n.addr != "b" {
			t.Fatalf("%s is tried first, which has just failed", n.addr)
		}
	}
	table.release(mustClaim(t, &table, []node{{addr: "b"}}), true)
	if n := mustClaim(t, &table, all()); n.addr != "a" {
		t.Errorf("%s is tried first; a failed longer ago", n.addr)
	}
	for addr, state := range table.states {
		state.failed = time.Now().Add(-failureMemory)
		table.states[addr] = state
	}
	if n := mustClaim(t, &table, all()); n.addr != "a" {
		t.Errorf("%s is tried first, which has more connections", n.addr)
	}
}

func mustClaim(t *testing.T, table *nodeTable, left []node) node {
	t.Helper()
	n, _ := table.claim(left)
	return n
}
