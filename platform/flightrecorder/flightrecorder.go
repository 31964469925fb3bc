// Package flightrecorder keeps the last seconds of Go's execution trace in memory, and writes them to a file when something
// took too long, to be examined later with `go tool trace`.
//
// A process can have only one such recorder, so it is global: a main program calls Start, and without that Took does
// nothing.
package flightrecorder

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"runtime/trace"
	"sync/atomic"
	"time"
)

const (
	// pause is the time between two files. A slow dependency makes everything slow, and one file says as much as a hundred.
	pause = time.Minute
	// maxBytes bounds what is kept in memory.
	maxBytes = 16 << 20
	// minAge is how much is kept at least, unless it is more than maxBytes.
	minAge = 5 * time.Second
)

// Config says when and where a trace is written. The tags are those of github.com/caarlos0/env.
type Config struct {
	// Limit is the duration above which Took writes a trace; 0 turns the recorder off.
	Limit time.Duration `env:"FLIGHT_RECORDER_LIMIT"`
	// Dir is the folder for the files; the system's folder for temporary files if it is empty.
	Dir string `env:"FLIGHT_RECORDER_DIR"`
}

type recorder struct {
	Config
	flight *trace.FlightRecorder
	log    *slog.Logger
	last   atomic.Int64 // when a file was begun, in nanoseconds
}

var running atomic.Pointer[recorder]

// Start records until stop is called. It fails if an execution trace is recorded already. With a Limit of 0 it does
// nothing.
func Start(cfg Config, log *slog.Logger) (stop func(), err error) {
	if cfg.Limit <= 0 {
		return func() {}, nil
	}
	if cfg.Dir == "" {
		cfg.Dir = os.TempDir()
	}
	r := &recorder{Config: cfg, log: log, flight: trace.NewFlightRecorder(trace.FlightRecorderConfig{MinAge: max(minAge, 2*cfg.Limit), MaxBytes: maxBytes})}
	if err := r.flight.Start(); err != nil {
		return nil, fmt.Errorf("starting the flight recorder: %w", err)
	}
	running.Store(r)
	return func() { running.CompareAndSwap(r, nil); r.flight.Stop() }, nil
}

// Took reports how long an operation has taken. If that is above the limit the trace of the last seconds is written to a
// file, at most once a minute. It may be called concurrently.
func Took(what string, took time.Duration) {
	r := running.Load()
	if r == nil || took < r.Limit {
		return
	}
	now, last := time.Now().UnixNano(), r.last.Load()
	if last != 0 && now-last < int64(pause) || !r.last.CompareAndSwap(last, now) {
		return
	}
	go r.write(what, took)
}

func (r *recorder) write(what string, took time.Duration) {
	path := filepath.Join(r.Dir, fmt.Sprintf("%s-%s.trace", what, time.Now().UTC().Format("20060102T150405")))
	file, err := os.Create(path)
	if err == nil {
		_, err = r.flight.WriteTo(file)
		err = errors.Join(err, file.Close())
	}
	if err != nil {
		r.log.Warn("the trace of what was slow could not be written", "what", what, "took", took, "error", err)
		return
	}
	r.log.Warn("something was slow: look at its trace with go tool trace", "what", what, "took", took, "file", path)
}
