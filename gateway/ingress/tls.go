package ingress

import (
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"

	"shop.example/platform/mtls"
)

// TLS names the PEM files of the certificate for REST and gRPC: both, or none for plain text, which is for a single machine
// or behind a proxy that terminates TLS.
type TLS struct {
	// CertFile is the certificate, followed by intermediate ones.
	CertFile string `env:"TLS_CERT_FILE"`
	KeyFile  string `env:"TLS_KEY_FILE"`
}

// Secure returns lis with TLS if files are named. The files are read again when they have changed; if that fails it is
// logged and the previous certificate stays in use.
func (t TLS) Secure(lis net.Listener, log *slog.Logger) (net.Listener, error) {
	if t == (TLS{}) {
		return lis, nil
	}
	if t.CertFile == "" || t.KeyFile == "" {
		return nil, errors.New("TLS needs both TLS_CERT_FILE and TLS_KEY_FILE: set the other one too, or neither")
	}
	files, err := mtls.NewCertReloader(log, t.load, t.CertFile, t.KeyFile)
	if err != nil {
		return nil, err
	}
	return tls.NewListener(lis, &tls.Config{
		MinVersion: tls.VersionTLS12, NextProtos: []string{"h2", "http/1.1"},
		GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return files.Latest(), nil },
	}), nil
}

func (t TLS) load() (*tls.Certificate, error) {
	loaded, err := tls.LoadX509KeyPair(t.CertFile, t.KeyFile)
	if err != nil {
		return nil, fmt.Errorf("reading TLS_CERT_FILE and TLS_KEY_FILE: %w", err)
	}
	return &loaded, nil
}
