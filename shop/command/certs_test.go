package command

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"shop.example/platform/mtls"
	"shop.example/shop/cli"
	"shop.example/topology"
)

func TestCerts_GoodOnesStayAndOthersAreMadeAnew(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "certs")
	certs := func(args ...string) string {
		t.Helper()
		out := &bytes.Buffer{}
		cmd := Root()
		cmd.SetArgs(append([]string{"certs", "--dir", dir}, args...))
		cmd.SetOut(out)
		if err := cmd.ExecuteContext(t.Context()); err != nil {
			t.Fatal(err)
		}
		return out.String()
	}
	ca := func() string {
		t.Helper()
		text, err := os.ReadFile(mtls.CertPaths(dir, "order").CAFile)
		if err != nil {
			t.Fatal(err)
		}
		return string(text)
	}
	if out := certs(); !strings.HasPrefix(out, fmt.Sprintf("Made %d certificates in %s", len(topology.Names()), dir)) {
		t.Errorf("printed %q", out)
	}
	if err := mtls.VerifyCerts(dir, time.Now(), topology.Names()...); err != nil {
		t.Error(err)
	}
	key, err := os.Stat(mtls.CertPaths(dir, "order").KeyFile)
	if err != nil || key.Mode() != 0o600 {
		t.Errorf("the key is open to others: %v, %v", key, err)
	}
	first := ca()
	if out := certs(); ca() != first || out != "The certificates in "+dir+" are good.\n" {
		t.Errorf("good certificates were replaced: %q", out)
	}
	if certs("--valid", "100000h"); ca() == first {
		t.Error("certificates that are good for less than a third of the time were kept")
	}
	if first = ca(); certs("billing", "order") == "" || ca() == first {
		t.Error("a name without a certificate was overlooked")
	}
}

func TestCerts_NothingIsWrittenOutsideTheFolder(t *testing.T) {
	t.Parallel()
	base := t.TempDir()
	for _, name := range []string{"../order", "/tmp/order", "a/../../order", ".."} {
		cmd := Root()
		cmd.SetArgs([]string{"certs", "--dir", filepath.Join(base, "certs"), "order", name})
		if err := cmd.ExecuteContext(t.Context()); cli.ExitStatus(err) != 2 || !strings.Contains(err.Error(), "is no name for a certificate") {
			t.Errorf("%s: %v", name, err)
		}
	}
	if there, err := os.ReadDir(base); err != nil || len(there) != 0 {
		t.Errorf("there are %v, %v", there, err)
	}
}

// Certificates that were good no more replaced those of a shop that ran.
func TestCerts_ForNoTimeAreNotMade(t *testing.T) {
	t.Parallel()
	base := t.TempDir()
	for _, valid := range []string{"0s", "-1h"} {
		cmd := Root()
		cmd.SetArgs([]string{"certs", "--dir", filepath.Join(base, "certs"), "--valid", valid})
		if err := cmd.ExecuteContext(t.Context()); cli.ExitStatus(err) != 2 || !strings.Contains(err.Error(), "--valid") {
			t.Errorf("%s: %v", valid, err)
		}
	}
	if there, err := os.ReadDir(base); err != nil || len(there) != 0 {
		t.Errorf("there are %v, %v", there, err)
	}
}
