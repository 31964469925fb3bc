package messaging_test

import (
	"net/url"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"shop.example/platform/messaging"
	"shop.example/platform/mtls"
)

func TestDial_AURLThatCannotWorkIsOneLineWithoutThePassword(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	if err := mtls.GenerateDevCerts(dir, time.Hour, "order"); err != nil {
		t.Fatal(err)
	}
	files := mtls.CertPaths(dir, "order")
	missing := filepath.Join(dir, "missing.pem")
	for address, want := range map[string]string{
		"http://u:secret@broker/":      "it has the form amqp://",
		"amqp://u:secret@broker:port/": "it has the form amqp://",
		"amqp://u:secret@broker/?cacertfile=" + url.QueryEscape(files.CAFile):         "write amqps://",
		"amqps://u:secret@broker/?cacertfile=" + url.QueryEscape(missing):             "cacertfile: open " + missing,
		"amqps://u:secret@broker/?cacertfile=" + url.QueryEscape(files.KeyFile):       "has no certificate",
		"amqps://u:secret@broker/?certfile=" + url.QueryEscape(files.CertFile):        "certfile and keyfile go together",
		"amqps://u:secret@broker/?certfile=" + files.CertFile + "&keyfile=" + missing: "certfile and keyfile: open " + missing,
	} {
		_, err := messaging.Dial(address, messaging.Options{})
		if err == nil || !strings.HasPrefix(err.Error(), "AMQP_URL: ") || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "secret") {
			t.Errorf("%s: got %v, want %q", address, err, want)
		}
	}
	good := "amqps://u:secret@broker/?cacertfile=" + files.CAFile + "&certfile=" + files.CertFile + "&keyfile=" + files.KeyFile
	if _, err := messaging.Dial(good, messaging.Options{}); err != nil {
		t.Error(err)
	}
}
