// Package mtls secures the gRPC between services. With certificates both ends show who they are (mutual TLS); without any,
// calls are in plain text and stay on one machine.
//
// Config names the files. Config.Server and Config.Client make the credentials for a gRPC server and client, which read
// the files again when they have changed. PeerNames tells a handler who calls. GenerateDevCerts makes certificates for a
// first try.
package mtls

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"strings"

	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
)

// Config names the PEM files by which services know each other: all three, or none for plain text. The tags are
// those of github.com/caarlos0/env.
type Config struct {
	// CertFile is the service's certificate, for both ends of a connection, followed by intermediate ones.
	CertFile string `env:"GRPC_TLS_CERT_FILE"`
	KeyFile  string `env:"GRPC_TLS_KEY_FILE"`
	// CAFile has the authorities whose certificates are accepted, of servers and of clients.
	CAFile string `env:"GRPC_TLS_CA_FILE"`
	// OfAllServices says that one process runs all services with this certificate, which then may make every call.
	OfAllServices bool `env:"-"`
}

// Enabled says whether files are named. Server and Client refuse a name that is missing.
func (m Config) Enabled() bool { return m.CertFile != "" || m.KeyFile != "" || m.CAFile != "" }

// Names returns the DNS names in the certificate.
func (m Config) Names() ([]string, error) {
	own, err := m.load()
	if err != nil {
		return nil, err
	}
	return own.certificate.Leaf.DNSNames, nil
}

// Server returns what gRPC is served with: TLS that demands a certificate of the CA from each client, or plain text
// if no files are named. The files are read again when they have changed; a change that cannot be read is logged,
// and what was read last stays in use.
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

// Client returns what gRPC is dialled with, see Server. The server's certificate has to be for the host that is dialled.
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

// client makes each handshake with the newest files.
type client struct {
	credentials.TransportCredentials
	files *CertReloader[tlsCredentials]
}

func (c client) ClientHandshake(ctx context.Context, authority string, conn net.Conn) (net.Conn, credentials.AuthInfo, error) {
	return credentials.NewTLS(c.files.Latest().client()).ClientHandshake(ctx, authority, conn)
}

func (c client) Clone() credentials.TransportCredentials { return c }

// RequireLoopback returns an error if others than this machine's own processes reach lis: without TLS, whoever
// reaches a service may call it. variable is the environment variable that holds the address.
func RequireLoopback(variable string, lis net.Listener) error {
	addr, ok := lis.Addr().(*net.TCPAddr)
	if ok && addr.IP.IsLoopback() {
		return nil
	}
	return fmt.Errorf("%s: %s can be reached from other machines: gRPC needs mutual TLS then; set GRPC_TLS_CERT_FILE, GRPC_TLS_KEY_FILE and GRPC_TLS_CA_FILE, or listen on 127.0.0.1", variable, lis.Addr())
}

// tlsCredentials are by what a service shows who it is, and by what it knows others.
type tlsCredentials struct {
	certificate tls.Certificate
	authorities *x509.CertPool
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
	i.authorities, err = Authorities(m.CAFile)
	if err != nil {
		return i, fmt.Errorf("reading GRPC_TLS_CA_FILE: %w", err)
	}
	return i, nil
}

// Authorities reads a PEM file of certificates that others are to be signed by.
func Authorities(file string) (*x509.CertPool, error) {
	pem, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(pem) {
		return nil, errors.New(file + " has no certificate in PEM form")
	}
	return pool, nil
}
