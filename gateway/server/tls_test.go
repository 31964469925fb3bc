package server

import (
	"crypto/tls"
	"crypto/x509"
	"io"
	"math/big"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"

	"shop.example/gateway/ingress"
	orderv1 "shop.example/gen/shop/order/v1"
	"shop.example/platform/mtls"
)

// certify writes a new certificate of a new CA to dir.
func certify(t *testing.T, dir string) (ingress.TLS, *x509.CertPool) {
	t.Helper()
	if err := mtls.GenerateDevCerts(dir, time.Hour, "gateway"); err != nil {
		t.Fatal(err)
	}
	files := mtls.CertPaths(dir, "gateway")
	ca, err := mtls.Authorities(files.CAFile)
	if err != nil {
		t.Fatal(err)
	}
	return ingress.TLS{CertFile: files.CertFile, KeyFile: files.KeyFile}, ca
}

func serialOf(t *testing.T, addr string, ca *x509.CertPool) *big.Int {
	t.Helper()
	conn, err := tls.DialWithDialer(&net.Dialer{Timeout: testTimeout}, "tcp", addr, &tls.Config{RootCAs: ca, MinVersion: tls.VersionTLS12})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	return conn.ConnectionState().PeerCertificates[0].SerialNumber
}

func TestTLS_RESTAndGRPCOnOnePort(t *testing.T) {
	t.Parallel()
	files, ca := certify(t, t.TempDir())
	order := backend(t, func(s grpc.ServiceRegistrar) { orderv1.RegisterOrderServiceServer(s, orderServer{}) })
	g := startGateway(t, Config{OrderAddr: order, HTTPTLS: files})
	for _, http2 := range []bool{false, true} {
		protocols := &http.Protocols{}
		protocols.SetHTTP1(!http2)
		protocols.SetHTTP2(http2)
		transport := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: ca}, Protocols: protocols, DisableKeepAlives: true}
		res, err := (&http.Client{Transport: transport}).Get("https://" + g.HTTPAddr() + "/v1/orders/" + storedOrder)
		if err != nil {
			t.Fatal(err)
		}
		body, _ := io.ReadAll(res.Body)
		_ = res.Body.Close()
		if res.StatusCode != http.StatusOK || (res.ProtoMajor == 2) != http2 {
			t.Errorf("over %s: %d %s", res.Proto, res.StatusCode, body)
		}
		if got := res.Header.Get("Strict-Transport-Security"); got != "max-age=31536000" {
			t.Errorf("Strict-Transport-Security is %q", got)
		}
	}
	conn, err := grpc.NewClient(g.HTTPAddr(), grpc.WithTransportCredentials(credentials.NewTLS(&tls.Config{RootCAs: ca, MinVersion: tls.VersionTLS12})))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := orderv1.NewOrderServiceClient(conn).GetOrder(t.Context(), &orderv1.GetOrderRequest{OrderId: storedOrder}); err != nil {
		t.Errorf("gRPC: %v", err)
	}
	if got := send(t, http.MethodGet, "http://"+g.HTTPAddr()+"/v1/orders/"+storedOrder, ""); got.status != http.StatusBadRequest || strings.Contains(got.body, storedOrder) {
		t.Errorf("without TLS: %d %s", got.status, got.body)
	}
}

func TestTLS_AChangedCertificateIsUsedWithTheNextConnection(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	files, ca := certify(t, dir)
	g := startGateway(t, Config{HTTPTLS: files})
	first := serialOf(t, g.HTTPAddr(), ca)
	_, ca = certify(t, dir)
	second := serialOf(t, g.HTTPAddr(), ca)
	if second.Cmp(first) == 0 {
		t.Error("the first certificate is still in use")
	}
	if err := os.WriteFile(files.CertFile, []byte("half a certific"), 0o600); err != nil {
		t.Fatal(err)
	}
	if got := serialOf(t, g.HTTPAddr(), ca); got.Cmp(second) != 0 || !strings.Contains(g.log.String(), "the old ones stay in use") {
		t.Errorf("with a broken file: %v", got)
	}
}

func TestTLS_FilesThatAreWrongAreNamed(t *testing.T) {
	t.Parallel()
	files, _ := certify(t, t.TempDir())
	for want, wrong := range map[string]ingress.TLS{
		"set the other one too":                    {CertFile: files.CertFile},
		"reading TLS_CERT_FILE and TLS_KEY_FILE: ": {CertFile: files.KeyFile, KeyFile: files.KeyFile},
		"nothing.pem: no such file":                {CertFile: filepath.Join(t.TempDir(), "nothing.pem"), KeyFile: files.KeyFile},
	} {
		cfg := Config{
			AMQPURL: "amqp://" + nowhere, HTTPAddr: "127.0.0.1:0", OrderAddr: nowhere, InventoryAddr: nowhere, LoggingAddr: nowhere, HTTPTLS: wrong,
		}
		if _, err := New(t.Context(), cfg, newTelemetry(t, io.Discard)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("want an error with %q, got: %v", want, err)
		}
	}
}
