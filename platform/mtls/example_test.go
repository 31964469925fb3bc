package mtls_test

import (
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"google.golang.org/grpc"

	"shop.example/platform/mtls"
)

// Two services that know each other by certificates of one CA.
func Example() {
	dir, err := os.MkdirTemp("", "certs")
	if err != nil {
		fmt.Println(err)
		return
	}
	defer func() { _ = os.RemoveAll(dir) }()
	if err := mtls.GenerateDevCerts(dir, 24*time.Hour, "order", "gateway"); err != nil {
		fmt.Println(err)
		return
	}
	log := slog.New(slog.DiscardHandler)
	serve, err := mtls.CertPaths(dir, "order").Server(log)
	if err != nil {
		fmt.Println(err)
		return
	}
	grpc.NewServer(grpc.Creds(serve))
	call, err := mtls.CertPaths(dir, "gateway").Client(log)
	if err != nil {
		fmt.Println(err)
		return
	}
	conn, err := grpc.NewClient("order:3001", grpc.WithTransportCredentials(call))
	if err != nil {
		fmt.Println(err)
		return
	}
	defer conn.Close()

	names, err := mtls.CertPaths(dir, "gateway").Names()
	fmt.Println(names, err, mtls.VerifyCerts(dir, time.Now(), "order", "gateway"))
	there, _ := filepath.Glob(dir + "/order/*")
	for _, file := range there {
		fmt.Println(filepath.Base(file))
	}
	// Output:
	// [gateway localhost] <nil> <nil>
	// ca.pem
	// cert.pem
	// key.pem
}
