package workspace

import (
	"os"
	"path/filepath"
	"testing"
)

// A run that was killed, or met a full disk, when it made the secret up left an empty file, which was the secret from then on.
func TestSecret_AnEmptyFileIsNone(t *testing.T) {
	t.Parallel()
	here := Shop(t.TempDir())
	const name = "order-password"
	for _, left := range []string{name, "new-" + name} {
		if err := os.WriteFile(filepath.Join(string(here), left), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	secret, err := here.Secret(name)
	if err != nil || secret == "" {
		t.Fatalf("got %q, %v", secret, err)
	}
	if again, err := here.Secret(name); err != nil || again != secret {
		t.Errorf("then %q, %v, want %q", again, err, secret)
	}
	entries, err := os.ReadDir(string(here))
	if err != nil || len(entries) != 1 {
		t.Errorf("%d files, %v, want the secret alone", len(entries), err)
	}
}
