package service_test

import (
	"context"
	"crypto/tls"
	"errors"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	orderv1 "shop.example/gen/shop/order/v1"
	"shop.example/platform/mtls"
	"shop.example/platform/service"
	"shop.example/platform/telemetry"
)

func certificates(t *testing.T, dir string) {
	t.Helper()
	if err := mtls.GenerateDevCerts(dir, time.Hour, "order", "gateway"); err != nil {
		t.Fatal(err)
	}
}

func client(t *testing.T, files mtls.Config) credentials.TransportCredentials {
	t.Helper()
	creds, err := files.Client(slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	return creds
}

// ask calls a service over a connection of its own.
func ask(t *testing.T, addr string, creds credentials.TransportCredentials, o ...grpc.DialOption) error {
	t.Helper()
	conn, err := grpc.NewClient(addr, append(o, grpc.WithTransportCredentials(creds))...)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	_, err = orderv1.NewOrderServiceClient(conn).GetOrder(ctx, &orderv1.GetOrderRequest{OrderId: id})
	return err
}

func serveOrders(s *service.Service) { orderv1.RegisterOrderServiceServer(s.GRPC(), &orders{}) }

func TestTLS_OnlyAClientWithACertificateOfTheCAIsServed(t *testing.T) {
	t.Parallel()
	ours, others := t.TempDir(), t.TempDir()
	certificates(t, ours)
	certificates(t, others)
	s := run(t, service.Config{TLS: mtls.CertPaths(ours, "order")}, serveOrders)
	gateway := mtls.CertPaths(ours, "gateway")

	if err := ask(t, s.GRPCAddr(), client(t, gateway)); err != nil {
		t.Errorf("the gateway is refused: %v", err)
	}
	ca, err := mtls.Authorities(gateway.CAFile)
	if err != nil {
		t.Fatal(err)
	}
	stranger := mtls.CertPaths(others, "gateway")
	stranger.CAFile = gateway.CAFile // it believes the server
	for name, creds := range map[string]credentials.TransportCredentials{
		"plain text":                  insecure.NewCredentials(),
		"TLS without a certificate":   credentials.NewTLS(&tls.Config{RootCAs: ca, MinVersion: tls.VersionTLS12}),
		"a certificate of another CA": client(t, stranger),
	} {
		if err := ask(t, s.GRPCAddr(), creds); status.Code(err) != codes.Unavailable {
			t.Errorf("%s: got %v", name, err)
		}
	}
}

func TestTLS_AClientBelievesOnlyTheHostItDialled(t *testing.T) {
	t.Parallel()
	ours, others := t.TempDir(), t.TempDir()
	certificates(t, ours)
	certificates(t, others)
	s := run(t, service.Config{TLS: mtls.CertPaths(ours, "order")}, serveOrders)
	gateway := client(t, mtls.CertPaths(ours, "gateway"))
	if err := ask(t, s.GRPCAddr(), gateway, grpc.WithAuthority("order")); err != nil {
		t.Errorf("by its name: %v", err)
	}
	if err := ask(t, s.GRPCAddr(), gateway, grpc.WithAuthority("inventory")); status.Code(err) != codes.Unavailable {
		t.Errorf("by the name of another service: %v", err)
	}
	stranger := mtls.CertPaths(ours, "gateway")
	stranger.CAFile = mtls.CertPaths(others, "gateway").CAFile
	if err := ask(t, s.GRPCAddr(), client(t, stranger)); status.Code(err) != codes.Unavailable {
		t.Errorf("with a CA that did not sign it: %v", err)
	}
}

func TestTLS_ChangedFilesAreUsedWithTheNextConnection(t *testing.T) {
	t.Parallel()
	dir, before := t.TempDir(), t.TempDir()
	certificates(t, dir)
	files := mtls.CertPaths(dir, "gateway")
	if err := os.CopyFS(before, os.DirFS(dir)); err != nil {
		t.Fatal(err)
	}
	s := run(t, service.Config{TLS: mtls.CertPaths(dir, "order")}, serveOrders)
	long := client(t, files)
	if err := ask(t, s.GRPCAddr(), long); err != nil {
		t.Fatal(err)
	}

	certificates(t, dir) // of another CA
	if err := ask(t, s.GRPCAddr(), long); err != nil {
		t.Errorf("with credentials from before the change: %v", err)
	}
	certificates(t, dir) // the first ones were good until now
	if err := ask(t, s.GRPCAddr(), client(t, mtls.CertPaths(before, "gateway"))); status.Code(err) != codes.Unavailable {
		t.Errorf("the certificate before the last is still good: %v", err)
	}

	if err := os.WriteFile(mtls.CertPaths(dir, "order").KeyFile, []byte("half a k"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := ask(t, s.GRPCAddr(), long); err != nil {
		t.Errorf("a file that cannot be read took the service down: %v", err)
	}
	if want := "the changed certificates cannot be used, the old ones stay in use"; !strings.Contains(s.logs.String(), want) {
		t.Errorf("the log does not say so: %s", s.logs)
	}
}

// Files get to machines one after the other: first each ca.pem, then certificates and keys.
func TestTLS_OldCertificatesAreGoodForThoseWhoHaveTheNewCA(t *testing.T) {
	t.Parallel()
	ours, theirs := t.TempDir(), t.TempDir()
	certificates(t, ours)
	if err := os.CopyFS(theirs, os.DirFS(ours)); err != nil {
		t.Fatal(err)
	}
	certificates(t, ours)
	s := run(t, service.Config{TLS: mtls.CertPaths(ours, "order")}, serveOrders)
	if err := ask(t, s.GRPCAddr(), client(t, mtls.CertPaths(ours, "gateway"))); err != nil {
		t.Errorf("both have the new ones: %v", err)
	}
	behind := mtls.CertPaths(theirs, "gateway")
	behind.CAFile = mtls.CertPaths(ours, "gateway").CAFile
	if err := ask(t, s.GRPCAddr(), client(t, behind)); err != nil {
		t.Errorf("the caller has an old certificate, and knows the new CA: %v", err)
	}
	old := run(t, service.Config{TLS: mtls.CertPaths(theirs, "order")}, serveOrders)
	ahead := mtls.CertPaths(ours, "gateway")
	ahead.CertFile, ahead.KeyFile = mtls.CertPaths(theirs, "gateway").CertFile, mtls.CertPaths(theirs, "gateway").KeyFile
	if err := ask(t, old.GRPCAddr(), client(t, ahead)); err != nil {
		t.Errorf("the service has an old certificate: %v", err)
	}
}

func TestNew_WithoutTLSGRPCIsServedToThisMachineAlone(t *testing.T) {
	t.Parallel()
	out := &logs{}
	tel, err := telemetry.New(t.Context(), telemetry.Config{Service: "order", Output: out})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { tel.Shutdown(context.Background()) })
	for _, addr := range []string{":0", "0.0.0.0:0"} {
		_, err := service.New(t.Context(), service.Config{GRPCAddr: addr}, tel)
		if err == nil || !strings.HasPrefix(err.Error(), "GRPC_ADDR: ") || !strings.Contains(err.Error(), "set GRPC_TLS_CERT_FILE, GRPC_TLS_KEY_FILE and GRPC_TLS_CA_FILE") {
			t.Errorf("%s: got %v", addr, err)
		}
	}
	dir := t.TempDir()
	certificates(t, dir)
	s, err := service.New(t.Context(), service.Config{GRPCAddr: ":0", TLS: mtls.CertPaths(dir, "order")}, tel)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = s.Close() }()
	if _, port, _ := net.SplitHostPort(s.GRPCAddr()); port == "0" {
		t.Error("it does not listen")
	}
}

func TestNew_TLSFilesThatAreWrongAreOneLineThatNamesThem(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	certificates(t, dir)
	good := mtls.CertPaths(dir, "order")
	change := func(with func(*mtls.Config)) mtls.Config {
		files := good
		with(&files)
		return files
	}
	for want, files := range map[string]mtls.Config{
		"set GRPC_TLS_KEY_FILE too":                         change(func(f *mtls.Config) { f.KeyFile = "" }),
		"set GRPC_TLS_CERT_FILE and GRPC_TLS_KEY_FILE too":  {CAFile: good.CAFile},
		"reading GRPC_TLS_CERT_FILE and GRPC_TLS_KEY_FILE:": change(func(f *mtls.Config) { f.KeyFile = mtls.CertPaths(dir, "gateway").KeyFile }),
		"reading GRPC_TLS_CA_FILE:":                         change(func(f *mtls.Config) { f.CAFile = good.KeyFile }),
	} {
		_, err := files.Server(slog.New(slog.DiscardHandler))
		if err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "\n") {
			t.Errorf("want %q, got %v", want, err)
		}
	}
}

func TestWriteFiles_WritesNothingOutsideItsFolder(t *testing.T) {
	t.Parallel()
	base := t.TempDir()
	dir := filepath.Join(base, "certs")
	for _, name := range []string{"../order", "..", ".", "", "a/b", "/tmp/order", "a/../../order", "order\x00", "*", "ord er", ".order", "a..b"} {
		if err := mtls.GenerateDevCerts(dir, time.Hour, "order", name); err == nil || !strings.Contains(err.Error(), "is no name for a certificate") {
			t.Errorf("%q: got %v", name, err)
		}
	}
	if there, err := os.ReadDir(base); err != nil || len(there) != 0 {
		t.Errorf("a name that was refused has left %v, %v", there, err)
	}

	// Nor does a link lead out of it, if somebody else can write to the folder.
	if err := errors.Join(os.MkdirAll(dir, 0o755), os.Mkdir(filepath.Join(base, "theirs"), 0o755), os.Symlink("../theirs", filepath.Join(dir, "order"))); err != nil {
		t.Fatal(err)
	}
	if err := mtls.GenerateDevCerts(dir, time.Hour, "order"); err == nil {
		t.Error("it has followed a link")
	}
	if there, err := os.ReadDir(filepath.Join(base, "theirs")); err != nil || len(there) != 0 {
		t.Errorf("it has written %v, %v", there, err)
	}
}

func TestCheck_TellsWhichCertificateIsNotGood(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	if err := mtls.VerifyCerts(dir, time.Now(), "order"); err == nil {
		t.Error("there is none")
	}
	certificates(t, dir)
	if err := mtls.VerifyCerts(dir, time.Now(), "order", "gateway"); err != nil {
		t.Error(err)
	}
	if err := mtls.VerifyCerts(dir, time.Now(), "logging"); err == nil {
		t.Error("there is none of logging")
	}
	if err := mtls.VerifyCerts(dir, time.Now().Add(2*time.Hour), "order"); err == nil || !strings.Contains(err.Error(), "expired") {
		t.Errorf("got %v", err)
	}
	if err := mtls.GenerateDevCerts(dir, time.Hour, "order"); err != nil {
		t.Fatal(err)
	}
	if err := mtls.VerifyCerts(dir, time.Now(), "gateway", "order"); err == nil || !strings.Contains(err.Error(), "has other CAs") {
		t.Errorf("one was made without the other: %v", err)
	}
}

// Certificates ended after a year, and nothing said so before.
func TestMetrics_SayWhenTheCertificateExpires(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	if err := mtls.GenerateDevCerts(dir, time.Hour, "order"); err != nil {
		t.Fatal(err)
	}
	_, page := run(t, service.Config{TLS: mtls.CertPaths(dir, "order")}, serveOrders).get(t, "/metrics")
	for _, which := range []string{"own", "ca"} {
		found := regexp.MustCompile(`(?m)^service_certificate_expiry_timestamp_seconds\{certificate="` + which + `"\} (\S+)$`).FindStringSubmatch(page)
		if found == nil {
			t.Fatalf("no certificate %q in the metrics:\n%s", which, page)
		}
		at, err := strconv.ParseFloat(found[1], 64)
		if left := time.Until(time.Unix(int64(at), 0)); err != nil || left < 50*time.Minute || left > time.Hour {
			t.Errorf("the certificate %q is valid for %s, want an hour: %v", which, left, err)
		}
	}
}
