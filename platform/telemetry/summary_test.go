package telemetry_test

import (
	"context"
	"encoding/json"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"shop.example/platform/telemetry"
)

func TestLogger_OneByOneEachLineIsWritten(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		tel, out := newTelemetry(t, telemetry.Config{LogFormat: telemetry.JSON})
		for range 10 {
			for range 40 {
				tel.Logger.Info("order created")
			}
			<-time.After(time.Second)
		}
		if got := lines(t, out, "order created"); len(got) != 400 || got[399]["times"] != nil {
			t.Errorf("%d lines, the last is %v", len(got), got[len(got)-1])
		}
	})
}

// Info lines took a quarter of the CPU time of an order under load.
func TestLogger_ManyAreOneLineASecondWithTheirNumber(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		tel, out := newTelemetry(t, telemetry.Config{LogFormat: telemetry.JSON})
		log := tel.Logger.With("queue", "order")
		for range 10_000 { // in ten seconds
			log.Info("order created")
			log.Warn("something else")
			<-time.After(time.Millisecond)
		}
		tel.Logger.Info("another message")
		<-time.After(2 * time.Second)
		log.Info("order created") // slowly again

		got := lines(t, out, "order created")
		var total float64
		for _, line := range got {
			if times, counted := line["times"].(float64); counted {
				total += times
				if line["queue"] != "order" || line["service"] != "order" || line["within"].(float64) > 1.1 {
					t.Errorf("a summary is %v", line)
				}
			} else {
				total++
			}
		}
		if total != 10_001 || len(got) > 50+11+1 || got[len(got)-1]["times"] != nil {
			t.Errorf("%v orders in %d lines, the last is %v", total, len(got), got[len(got)-1])
		}
		if n := len(lines(t, out, "something else")); n != 10_000 {
			t.Errorf("%d warnings", n)
		}
		if n := len(lines(t, out, "another message")); n != 1 {
			t.Errorf("%d lines of another message", n)
		}
	})
}

func TestLogger_WhatWasCountedIsWrittenAtTheEnd(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		tel, out := newTelemetry(t, telemetry.Config{LogFormat: telemetry.JSON})
		for range 60 {
			tel.Logger.Info("order created")
		}
		tel.Shutdown(context.Background())
		tel.Logger.Info("order created")
		got := lines(t, out, "order created")
		if len(got) != 52 || got[50]["times"] != 10.0 || got[51]["times"] != nil {
			t.Errorf("%d lines, the last two are %v", len(got), got[len(got)-2:])
		}
	})
}

func TestLogger_DebugWritesEachLine(t *testing.T) {
	t.Parallel()
	tel, out := newTelemetry(t, telemetry.Config{LogFormat: telemetry.JSON, LogLevel: slog.LevelDebug})
	for range 1000 {
		tel.Logger.Info("order created")
	}
	if n := len(lines(t, out, "order created")); n != 1000 {
		t.Errorf("%d lines", n)
	}
}

func lines(t *testing.T, out *buffer, message string) (found []map[string]any) {
	t.Helper()
	for text := range strings.Lines(out.String()) {
		var line map[string]any
		if err := json.Unmarshal([]byte(text), &line); err != nil {
			t.Fatalf("%v: %s", err, text)
		}
		if line["msg"] == message {
			found = append(found, line)
		}
	}
	return found
}
