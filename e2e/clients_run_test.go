//go:build clients

package e2e

import (
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"testing"

	"shop.example/topology"
)

// Each client is made of the contracts alone, compiles and works: see tools/clients.
func TestClients_AreGeneratedAndWork(t *testing.T) {
	s := start(t)
	product := s.unlimitedStock(t)[0]
	root, err := filepath.Abs("..")
	if err != nil {
		t.Fatal(err)
	}
	contracts := filepath.Join(root, ".bin/contracts")
	_, commander := s.brokerUser(t, "backoffice")
	_, listener := s.brokerUser(t, "warehouse")
	scripts, err := filepath.Glob("../tools/clients/*/run.sh")
	if err != nil || len(scripts) == 0 {
		t.Fatalf("no scripts: %v", err)
	}
	for _, script := range scripts {
		if script, err = filepath.Abs(script); err != nil {
			t.Fatal(err)
		}
		t.Run(filepath.Base(filepath.Dir(script)), func(t *testing.T) {
			cmd := exec.CommandContext(t.Context(), script)
			cmd.Dir = t.TempDir()
			cmd.Env = append(os.Environ(),
				"CONTRACTS="+contracts, "OPENAPI="+filepath.Join(contracts, "shop.openapi.json"), "CLIENT="+filepath.Dir(script), "EXAMPLES="+filepath.Join(root, "examples"),
				"SHOP_URL="+s.url, "SHOP_SERVER="+s.Gateway.HTTPAddr(), "SHOP_TOKEN="+operatorToken, "PRODUCT="+strconv.Itoa(product),
				"AMQP_URL="+listener, "COMMANDER_URL="+commander, "CALLER_URL="+s.broker.Services(t, topology.Broker())["order"])
			if said, err := cmd.CombinedOutput(); err != nil {
				t.Errorf("%v\n%s", err, said)
			}
		})
	}
}
