//go:build clients

package e2e

import (
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"testing"
)

// Each generator makes a client of the document, which compiles and works: see tools/clients.
func TestClients_AreGeneratedAndWork(t *testing.T) {
	s := start(t)
	product := s.plenty(t)[0]
	document, err := filepath.Abs("../gen/openapi/shop.openapi.json")
	if err != nil {
		t.Fatal(err)
	}
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
			cmd.Env = append(os.Environ(), "OPENAPI="+document, "CLIENT="+filepath.Dir(script),
				"SHOP_URL="+s.url, "SHOP_TOKEN="+operatorToken, "PRODUCT="+strconv.Itoa(product))
			if said, err := cmd.CombinedOutput(); err != nil {
				t.Errorf("%v\n%s", err, said)
			}
		})
	}
}
