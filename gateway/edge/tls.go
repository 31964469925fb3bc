package edge

import (
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"sync"
	"time"
)

// TLS names the PEM files of the certificate that REST and gRPC are served with: both, or none for plain text, which is
// for one machine or behind a proxy that ends TLS.
type TLS struct {
	// CertFile is the certificate, followed by intermediate ones.
	CertFile string `env:"TLS_CERT_FILE"`
	KeyFile  string `env:"TLS_KEY_FILE"`
}

// secure returns the listener with TLS, where it is configured. The files are read again when they have changed; a change
// that cannot be read is logged, and what was read last stays in use.
func (t TLS) secure(lis net.Listener, log *slog.Logger) (net.Listener, error) {
	if t == (TLS{}) {
		return lis, nil
	}
	if t.CertFile == "" || t.KeyFile == "" {
		return nil, errors.New("TLS needs both TLS_CERT_FILE and TLS_KEY_FILE: set the other one too, or neither")
	}
	c := &certificate{files: t, log: log, stamps: t.stamps()}
	var err error
	if c.loaded, err = t.load(); err != nil {
		return nil, err
	}
	return tls.NewListener(lis, &tls.Config{
		MinVersion: tls.VersionTLS12, NextProtos: []string{"h2", "http/1.1"},
		GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return c.latest(), nil },
	}), nil
}

func (t TLS) load() (*tls.Certificate, error) {
	loaded, err := tls.LoadX509KeyPair(t.CertFile, t.KeyFile)
	if err != nil {
		return nil, fmt.Errorf("reading TLS_CERT_FILE and TLS_KEY_FILE: %w", err)
	}
	return &loaded, nil
}

// stamp tells one content of a file from another.
type stamp struct {
	modified time.Time
	size     int64
}

// stamps has zeros for a file that is not there, which load tells of.
func (t TLS) stamps() (stamps [2]stamp) {
	for i, name := range []string{t.CertFile, t.KeyFile} {
		if info, err := os.Stat(name); err == nil {
			stamps[i] = stamp{info.ModTime(), info.Size()}
		}
	}
	return stamps
}

// certificate keeps what the files said last.
type certificate struct {
	files TLS
	log   *slog.Logger

	mu     sync.Mutex
	stamps [2]stamp
	loaded *tls.Certificate
}

// latest looks at the files for each handshake: that is little beside the handshake.
func (c *certificate) latest() *tls.Certificate {
	c.mu.Lock()
	defer c.mu.Unlock()
	stamps := c.files.stamps() // before reading: what is written meanwhile is read with the next handshake
	if stamps == c.stamps {
		return c.loaded
	}
	c.stamps = stamps
	loaded, err := c.files.load()
	if err != nil {
		c.log.Warn("the changed certificate cannot be used, the old one stays in use", "err", err)
		return c.loaded
	}
	c.loaded = loaded
	c.log.Info("certificate read again", "certificate", c.files.CertFile)
	return c.loaded
}
