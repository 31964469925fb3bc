package local_test

import (
	"maps"
	"net"
	"slices"
	"strings"
	"testing"

	"github.com/caarlos0/env/v11"

	"shop.example/dev/local"
)

// Whoever only wants to see the shop does not expect to open it to the network.
func TestConfig_NothingIsServedToOtherMachinesUnlessTold(t *testing.T) {
	var cfg local.Config
	for _, variable := range append(slices.Collect(maps.Keys(cfg.Addrs())), "PPROF_ADDR") {
		t.Setenv(variable, "") // as if it were not set
	}
	if err := env.Parse(&cfg); err != nil {
		t.Fatal(err)
	}
	for _, addr := range append(slices.Collect(maps.Values(cfg.Addrs())), &cfg.PprofAddr) {
		if host, _, err := net.SplitHostPort(*addr); err != nil || !net.ParseIP(host).IsLoopback() {
			t.Errorf("it listens on %s: %v", *addr, err)
		}
	}
}

// In one process each service has its address from a variable of its own.
func TestNew_AnAddressThatCannotBeServedIsNamedByTheVariableThatMovesIt(t *testing.T) {
	t.Parallel()
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer lis.Close()
	taken := lis.Addr().String()
	const free, open = "127.0.0.1:0", "0.0.0.0:0"
	for _, c := range []struct {
		http, order, inventory, logging, admin string
		want                                   []string
	}{
		{free, open, free, free, free, []string{"ORDER_ADDR: ", "can be reached from other machines", "GRPC_TLS_CERT_FILE"}},
		{free, free, open, free, free, []string{"INVENTORY_ADDR: ", "can be reached from other machines"}},
		{free, free, free, open, free, []string{"LOGGING_ADDR: ", "can be reached from other machines"}},
		{free, taken, free, free, free, []string{"cannot listen on " + taken, "set ORDER_ADDR to another address"}},
		{taken, free, free, free, free, []string{"cannot listen on " + taken, "set HTTP_ADDR to another address"}},
		{free, free, free, free, taken, []string{"cannot listen on " + taken, "set ADMIN_ADDR to another address"}},
		{"localhost:3001", "127.0.0.1:3001", free, free, free, []string{"HTTP_ADDR and ORDER_ADDR are both 127.0.0.1:3001: set one of them"}},
		{"8080", free, free, free, free, []string{`HTTP_ADDR is "8080": it must have a host and a port, for example localhost:8080`}},
	} {
		_, err := local.New(t.Context(), local.Config{
			HTTPAddr: c.http, OrderAddr: c.order, InventoryAddr: c.inventory, LoggingAddr: c.logging, WebhooksAddr: free, AdminAddr: c.admin,
		})
		for _, want := range c.want {
			if err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("%+v: got %v, want %q in it", c, err, want)
			}
		}
	}
}

// A development server on [::1]:3000 answered at the address that make up printed, in the shop's place.
func TestNew_AnotherProgramAtLocalhostIsSaidAlthoughItListensOnIPv6Alone(t *testing.T) {
	t.Parallel()
	const free = "127.0.0.1:0"
	lis, err := net.Listen("tcp", "[::1]:0")
	ipv6 := err == nil
	if !ipv6 { // nobody can listen there, which is no reason to refuse an address
		lis, err = net.Listen("tcp", free)
	}
	if err != nil {
		t.Fatal(err)
	}
	taken := lis.Addr().String()
	if ipv6 {
		defer lis.Close()
	} else if err := lis.Close(); err != nil {
		t.Fatal(err)
	}
	_, port, err := net.SplitHostPort(taken)
	if err != nil {
		t.Fatal(err)
	}
	for _, host := range []string{"127.0.0.1", "localhost"} {
		_, err = local.New(t.Context(), local.Config{
			HTTPAddr: net.JoinHostPort(host, port), OrderAddr: free, InventoryAddr: free, LoggingAddr: free, WebhooksAddr: free, AdminAddr: free,
		})
		want := "cannot listen on " + taken + ": address already in use (stop what listens there, or set HTTP_ADDR to another address)"
		switch {
		case ipv6 && (err == nil || err.Error() != want):
			t.Errorf("%s: got %v, want %s", host, err, want)
		case !ipv6 && err != nil && strings.Contains(err.Error(), "HTTP_ADDR"):
			t.Errorf("%s, without IPv6: %v", host, err)
		}
	}
}
