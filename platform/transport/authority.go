package transport

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"time"
)

// FilesIn returns where WriteFiles puts the files of the service name.
func FilesIn(dir, name string) MutualTLS {
	return MutualTLS{
		CertFile: filepath.Join(dir, name+".pem"), KeyFile: filepath.Join(dir, name+"-key.pem"), CAFile: filepath.Join(dir, "ca.pem"),
	}
}

// WriteFiles makes a CA and a certificate of it for each name, valid from now on for as long as given, and writes them
// to dir: see FilesIn. A certificate is for its name as a host and for this machine. The CA's key is forgotten, so nobody
// can add a certificate; what was there before is replaced.
func WriteFiles(dir string, valid time.Duration, names ...string) error {
	ca, err := newAuthority(valid)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return fmt.Errorf("creating the folder of the certificates: %w", err)
	}
	for _, name := range names {
		if err := ca.issue(FilesIn(dir, name), name); err != nil {
			return err
		}
	}
	return write(FilesIn(dir, "").CAFile, 0o644, pemBlock{"CERTIFICATE", ca.certificate.Raw})
}

// Check returns an error where one of the names has no certificate in dir that is good at the time.
func Check(dir string, at time.Time, names ...string) error {
	for _, name := range names {
		files := FilesIn(dir, name)
		i, err := files.load()
		if err != nil {
			return err
		}
		options := x509.VerifyOptions{DNSName: name, Roots: i.authorities, CurrentTime: at}
		if _, err := i.certificate.Leaf.Verify(options); err != nil {
			return fmt.Errorf("%s: %w", files.CertFile, err)
		}
	}
	return nil
}

type authority struct {
	certificate *x509.Certificate
	key         *ecdsa.PrivateKey
	until       time.Time
}

func newAuthority(valid time.Duration) (*authority, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("making the key of the CA: %w", err)
	}
	a := &authority{key: key, until: time.Now().Add(valid)}
	template := a.template("shop CA")
	template.IsCA, template.BasicConstraintsValid, template.MaxPathLenZero = true, true, true
	template.KeyUsage = x509.KeyUsageCertSign
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return nil, fmt.Errorf("making the CA: %w", err)
	}
	a.certificate, err = x509.ParseCertificate(der)
	return a, err
}

func (a *authority) template(name string) *x509.Certificate {
	return &x509.Certificate{ // A serial number of its own is made by x509.
		Subject:   pkix.Name{CommonName: name, Organization: []string{"shop"}},
		NotBefore: time.Now().Add(-time.Hour), // for clocks that go slow
		NotAfter:  a.until,
	}
}

func (a *authority) issue(files MutualTLS, name string) error {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return fmt.Errorf("making the key of %s: %w", name, err)
	}
	template := a.template(name)
	template.KeyUsage = x509.KeyUsageDigitalSignature
	template.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}
	template.DNSNames = []string{name, "localhost"}
	template.IPAddresses = []net.IP{net.IPv4(127, 0, 0, 1), net.IPv6loopback}
	der, err := x509.CreateCertificate(rand.Reader, template, a.certificate, key.Public(), a.key)
	if err != nil {
		return fmt.Errorf("making the certificate of %s: %w", name, err)
	}
	private, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return fmt.Errorf("encoding the key of %s: %w", name, err)
	}
	return errors.Join(
		write(files.KeyFile, 0o600, pemBlock{"PRIVATE KEY", private}),
		write(files.CertFile, 0o644, pemBlock{"CERTIFICATE", der}),
	)
}

type pemBlock struct {
	kind string
	der  []byte
}

// write replaces the file at once, for those that read it at this moment.
func write(file string, mode os.FileMode, block pemBlock) error {
	unfinished := file + ".new"
	text := pem.EncodeToMemory(&pem.Block{Type: block.kind, Bytes: block.der})
	if err := os.WriteFile(unfinished, text, mode); err != nil {
		return fmt.Errorf("writing a certificate: %w", err)
	}
	if err := os.Rename(unfinished, file); err != nil {
		return fmt.Errorf("writing a certificate: %w", err)
	}
	return nil
}
