package flightrecorder_test

import (
	"bytes"
	"log/slog"
	"os"
	"path/filepath"
	"testing"
	"time"

	"shop.example/platform/flightrecorder"
)

func TestTook_WritesATraceOfWhatIsSlowOnceAMinute(t *testing.T) {
	dir := t.TempDir()
	stop, err := flightrecorder.Start(flightrecorder.Config{Limit: time.Second, Dir: dir}, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	defer stop()
	flightrecorder.Took("order", 999*time.Millisecond)
	for range 3 {
		flightrecorder.Took("inventory", 2*time.Second)
	}
	var files []string
	for deadline := time.Now().Add(20 * time.Second); time.Now().Before(deadline); <-time.After(10 * time.Millisecond) {
		if files, _ = filepath.Glob(filepath.Join(dir, "*.trace")); len(files) > 0 {
			if text, err := os.ReadFile(files[0]); err == nil && bytes.HasPrefix(text, []byte("go 1.")) && len(text) > 1000 {
				break
			}
		}
	}
	if len(files) != 1 || filepath.Base(files[0])[:10] != "inventory-" {
		t.Fatalf("the files are %v", files)
	}
}

func TestTook_WithoutALimitDoesNothing(t *testing.T) {
	stop, err := flightrecorder.Start(flightrecorder.Config{}, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	defer stop()
	flightrecorder.Took("order", time.Hour)
}
