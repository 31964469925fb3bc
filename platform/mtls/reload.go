package mtls

import (
	"log/slog"
	"os"
	"slices"
	"sync"
	"time"
)

// CertReloader keeps what was read from certificate files, and reads them again when they have changed. Its methods may be
// called concurrently.
type CertReloader[T any] struct {
	names []string
	read  func() (T, error)
	log   *slog.Logger

	mu     sync.Mutex
	stamps []stamp
	latest T
}

// stamp identifies one version of a file.
type stamp struct {
	modified time.Time
	size     int64
}

// NewCertReloader reads files with read and returns its error. names are the files whose changes make Latest call read
// again.
func NewCertReloader[T any](log *slog.Logger, read func() (T, error), names ...string) (*CertReloader[T], error) {
	r := &CertReloader[T]{names: names, read: read, log: log, stamps: stampsOf(names)}
	var err error
	r.latest, err = read()
	return r, err
}

// Latest returns the current content of the files. If they have changed and cannot be read, that is logged and the earlier
// content is returned. It checks the files on each call, which is little compared with a handshake.
func (r *CertReloader[T]) Latest() T {
	r.mu.Lock()
	defer r.mu.Unlock()
	// Before reading: what is written meanwhile has other stamps and is read with the next handshake.
	stamps := stampsOf(r.names)
	if slices.Equal(stamps, r.stamps) {
		return r.latest
	}
	r.stamps = stamps
	latest, err := r.read()
	if err != nil {
		r.log.Warn("the changed certificates cannot be used, the old ones stay in use", "error", err)
		return r.latest
	}
	r.latest = latest
	r.log.Info("certificates read again", "certificate", r.names[0])
	return r.latest
}

// stampsOf has zeros for a file that is not there, which reading tells of.
func stampsOf(names []string) []stamp {
	stamps := make([]stamp, len(names))
	for i, name := range names {
		if info, err := os.Stat(name); err == nil {
			stamps[i] = stamp{info.ModTime(), info.Size()}
		}
	}
	return stamps
}
