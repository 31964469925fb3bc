package service_test

import (
	"context"
	"net/http"
	"strings"
	"testing"

	"shop.example/platform/service"
	"shop.example/platform/telemetry"
)

func TestPprof_IsNotServedToThoseWhoCollectMetrics(t *testing.T) {
	t.Parallel()
	s := run(t, service.Config{PprofAddr: "127.0.0.1:0"}, nil)
	for path, want := range map[string]string{
		"/debug/pprof/":                "goroutine",
		"/debug/pprof/heap?debug=1":    "heap profile",
		"/debug/pprof/cmdline":         "service.test",
		"/debug/pprof/symbol":          "num_symbols",
		"/debug/pprof/trace?seconds=0": "trace",
	} {
		status, body, err := get(t.Context(), "http://"+s.PprofAddr()+path)
		if err != nil || status != http.StatusOK || !strings.Contains(body, want) {
			t.Errorf("%s: %d %.300q, %v, want %q", path, status, body, err, want)
		}
		if status, body := s.get(t, path); status != http.StatusNotFound {
			t.Errorf("%s on the admin listener: %d %.100q", path, status, body)
		}
	}
	if err := s.ended(); err != nil {
		t.Error(err)
	}
	if logs := s.logs.String(); !strings.Contains(logs, "pprof="+s.PprofAddr()) {
		t.Errorf("the log does not say where it is: %s", logs)
	}
}

func TestPprof_IsNotServedToOtherMachines(t *testing.T) {
	t.Parallel()
	tel, err := telemetry.New(t.Context(), telemetry.Config{Service: "order", Output: &logs{}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { tel.Shutdown(context.Background()) })
	for _, addr := range []string{":0", "0.0.0.0:0", "[::]:0"} {
		_, err := service.New(t.Context(), service.Config{PprofAddr: addr}, tel)
		if err == nil || !strings.HasPrefix(err.Error(), "PPROF_ADDR: ") || !strings.Contains(err.Error(), "listen on 127.0.0.1") {
			t.Errorf("%s: got %v", addr, err)
		}
	}
}
