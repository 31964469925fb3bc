// Package mtls secures the gRPC between services. With certificates both sides of a connection authenticate (mutual TLS);
// without, connections are in plain text and must not leave the machine.
//
// Config names the files. Config.Server and Config.Client make the credentials for a gRPC server and client, which read the
// files again when they have changed. PeerNames tells a handler which service calls. GenerateDevCerts makes certificates
// for development.
package mtls

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"strings"
	"time"

	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
)

// Config names the PEM files with which services authenticate to each other: all three, or none for plain text. The tags
// are those of github.com/caarlos0/env.
type Config struct {
	// CertFile is the service's certificate, as a server and as a client, followed by intermediate ones.
	CertFile string `env:"GRPC_TLS_CERT_FILE"`
	KeyFile  string `env:"GRPC_TLS_KEY_FILE"`
	// CAFile has the certificates of the authorities that may have signed the certificates of other services.
	CAFile string `env:"GRPC_TLS_CA_FILE"`
	// OfAllServices says that one process runs all services with this certificate: its holder may then make every call.
	OfAllServices bool `env:"-"`
}

// Enabled reports whether any file is named. Server and Client fail if one of the three is missing then.
func (m Config) Enabled() bool { return m.CertFile != "" || m.KeyFile != "" || m.CAFile != "" }

// Names returns the DNS names in the certificate.
func (m Config) Names() ([]string, error) {
	own, err := m.load()
	if err != nil {
		return nil, err
	}
	return own.certificate.Leaf.DNSNames, nil
}

// Expiry returns a function that says until when the certificate in use is valid, and until when an authority in CAFile is.
func (m Config) Expiry() (func() (certificate, authority time.Time), error) {
	f, err := open(m, slog.New(slog.DiscardHandler)) // who serves with the files logs what is wrong with them
	if err != nil {
		return nil, err
	}
	return func() (certificate, authority time.Time) {
		own := f.Latest()
		return own.certificate.Leaf.NotAfter, own.authoritiesUntil
	}, nil
}

// Server returns the credentials for a gRPC server: TLS that requires of each client a certificate signed by an authority
// in CAFile, or plain text if no files are named. The files are read again when they have changed; if that fails it is
// logged, and the earlier content stays in use.
func (m Config) Server(log *slog.Logger) (credentials.TransportCredentials, error) {
	if !m.Enabled() {
		return insecure.NewCredentials(), nil
	}
	f, err := open(m, log)
	if err != nil {
		return nil, err
	}
	return credentials.NewTLS(&tls.Config{
		MinVersion:         tls.VersionTLS13,
		GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) { return f.Latest().server(), nil },
	}), nil
}

// Client returns the credentials for a gRPC client, see Server. The server's certificate must be for the host that is
// dialled.
func (m Config) Client(log *slog.Logger) (credentials.TransportCredentials, error) {
	if !m.Enabled() {
		return insecure.NewCredentials(), nil
	}
	f, err := open(m, log)
	if err != nil {
		return nil, err
	}
	return client{credentials.NewTLS(f.Latest().client()), f}, nil
}

// client reads the newest files for each handshake.
type client struct {
	credentials.TransportCredentials
	files *CertReloader[tlsCredentials]
}

func (c client) ClientHandshake(ctx context.Context, authority string, conn net.Conn) (net.Conn, credentials.AuthInfo, error) {
	return credentials.NewTLS(c.files.Latest().client()).ClientHandshake(ctx, authority, conn)
}

func (c client) Clone() credentials.TransportCredentials { return c }

// RequireLoopback returns an error if lis can be reached from other machines: without TLS everybody who reaches a service
// may call it. variable is the environment variable with the address, for the error.
func RequireLoopback(variable string, lis net.Listener) error {
	addr, ok := lis.Addr().(*net.TCPAddr)
	if ok && addr.IP.IsLoopback() {
		return nil
	}
	return fmt.Errorf("%s: %s can be reached from other machines: gRPC needs mutual TLS then; set GRPC_TLS_CERT_FILE, GRPC_TLS_KEY_FILE and GRPC_TLS_CA_FILE, or listen on 127.0.0.1", variable, lis.Addr())
}

// tlsCredentials are the certificate of a service, and the authorities it accepts.
type tlsCredentials struct {
	certificate tls.Certificate
	authorities *x509.CertPool
	// authoritiesUntil is when the last of them expires: of old and new ones, while they are rotated, the old ones may.
	authoritiesUntil time.Time
}

func (i tlsCredentials) server() *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS13, NextProtos: []string{"h2"}, Certificates: []tls.Certificate{i.certificate},
		ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: i.authorities,
	}
}

func (i tlsCredentials) client() *tls.Config {
	return &tls.Config{MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{i.certificate}, RootCAs: i.authorities}
}

func open(m Config, log *slog.Logger) (*CertReloader[tlsCredentials], error) {
	var missing []string
	for _, f := range []struct{ variable, name string }{
		{"GRPC_TLS_CERT_FILE", m.CertFile}, {"GRPC_TLS_KEY_FILE", m.KeyFile}, {"GRPC_TLS_CA_FILE", m.CAFile},
	} {
		if f.name == "" {
			missing = append(missing, f.variable)
		}
	}
	if len(missing) > 0 {
		return nil, fmt.Errorf("mutual TLS needs a certificate, its key and a CA: set %s too", strings.Join(missing, " and "))
	}
	return NewCertReloader(log, m.load, m.CertFile, m.KeyFile, m.CAFile)
}

func (m Config) load() (i tlsCredentials, err error) {
	if i.certificate, err = tls.LoadX509KeyPair(m.CertFile, m.KeyFile); err != nil {
		return i, fmt.Errorf("reading GRPC_TLS_CERT_FILE and GRPC_TLS_KEY_FILE: %w", err)
	}
	i.authorities, i.authoritiesUntil, err = authorities(m.CAFile)
	if err != nil {
		return i, fmt.Errorf("reading GRPC_TLS_CA_FILE: %w", err)
	}
	return i, nil
}

// Authorities reads a PEM file of CA certificates.
func Authorities(file string) (*x509.CertPool, error) {
	pool, _, err := authorities(file)
	return pool, err
}

func authorities(file string) (pool *x509.CertPool, until time.Time, err error) {
	rest, err := os.ReadFile(file)
	if err != nil {
		return nil, until, err
	}
	pool = x509.NewCertPool()
	for {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			break
		}
		if block.Type != "CERTIFICATE" {
			continue
		}
		if certificate, err := x509.ParseCertificate(block.Bytes); err == nil {
			pool.AddCert(certificate)
			if certificate.NotAfter.After(until) {
				until = certificate.NotAfter
			}
		}
	}
	if until.IsZero() {
		return nil, until, errors.New(file + " has no certificate in PEM form")
	}
	return pool, until, nil
}
