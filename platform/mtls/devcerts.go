package mtls

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"time"
)

// hostName is what a certificate can be for: it is the name of a folder too, and never a way out of one.
var hostName = regexp.MustCompile(`^[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*$`)

// CertPaths returns the paths at which GenerateDevCerts writes the files of a service: in a folder of its own, so that a
// service can be given its own files and no others.
func CertPaths(dir, name string) Config {
	in := func(file string) string { return filepath.Join(dir, name, file) }
	return Config{CertFile: in("cert.pem"), KeyFile: in("key.pem"), CAFile: in("ca.pem")}
}

// CheckNames returns an error that lists the names for which no certificate can be made.
func CheckNames(names ...string) error {
	for _, name := range names {
		if !hostName.MatchString(name) {
			return fmt.Errorf("%q is no name for a certificate: give a host's name, of letters, digits, dashes, underscores and dots", name)
		}
	}
	return nil
}

// GenerateDevCerts creates a CA, and with it a certificate for each name, valid from now on for the duration valid, and
// writes them below dir, at CertPaths. A certificate is good for its name as a host and for the addresses of this machine.
// The CA's key is thrown away, so that nobody can add a certificate.
//
// Existing certificates are replaced, but their CA stays among those that are accepted until the next call. To replace
// certificates on several machines without an outage, first copy the new ca.pem to all of them, then certificates and keys.
func GenerateDevCerts(dir string, valid time.Duration, names ...string) error {
	if err := CheckNames(names...); err != nil {
		return err
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return fmt.Errorf("creating the folder of the certificates: %w", err)
	}
	root, err := os.OpenRoot(dir) // a link in it leads nowhere else either
	if err != nil {
		return fmt.Errorf("opening the folder of the certificates: %w", err)
	}
	defer root.Close()
	ca, err := newAuthority(valid)
	if err != nil {
		return err
	}
	accepted := encode("CERTIFICATE", append([][]byte{ca.certificate.Raw}, authoritiesInUse(dir, names)...)...)
	// First all CAs, then the certificates: nobody meets one whose CA they do not know.
	for _, name := range names {
		if err := root.Mkdir(name, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
			return fmt.Errorf("creating the folder of %s: %w", name, err)
		}
		if err := write(root, CertPaths("", name).CAFile, 0o644, accepted); err != nil {
			return err
		}
	}
	for _, name := range names {
		if err := ca.issue(root, name); err != nil {
			return err
		}
	}
	return nil
}

// authoritiesInUse returns the CAs of the certificates that the names have now. What cannot be read is not in use.
func authoritiesInUse(dir string, names []string) (authorities [][]byte) {
	for _, name := range names {
		files := CertPaths(dir, name)
		i, err := files.load()
		if err != nil {
			continue
		}
		text, err := os.ReadFile(files.CAFile)
		if err != nil {
			continue
		}
		for _, der := range decode(text) {
			ca, err := x509.ParseCertificate(der)
			if err == nil && i.certificate.Leaf.CheckSignatureFrom(ca) == nil && time.Now().Before(ca.NotAfter) &&
				!slices.ContainsFunc(authorities, func(known []byte) bool { return bytes.Equal(known, der) }) {
				authorities = append(authorities, der)
			}
		}
	}
	return authorities
}

// VerifyCerts returns an error if a name has no certificate in dir that is valid at the time at, or if it accepts other CAs
// than the rest.
func VerifyCerts(dir string, at time.Time, names ...string) error {
	var accepted *x509.CertPool
	for _, name := range names {
		files := CertPaths(dir, name)
		i, err := files.load()
		if err != nil {
			return err
		}
		if accepted == nil {
			accepted = i.authorities
		}
		if !i.authorities.Equal(accepted) {
			return fmt.Errorf("%s has other CAs than the file of %s", files.CAFile, names[0])
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
	// The name tells one CA from another: a bundle may hold two.
	template := a.template("development CA " + time.Now().UTC().Format(time.RFC3339Nano))
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
		Subject:   pkix.Name{CommonName: name},
		NotBefore: time.Now().Add(-time.Hour), // for clocks that go slow
		NotAfter:  a.until,
	}
}

func (a *authority) issue(root *os.Root, name string) error {
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
	files := CertPaths("", name)
	return errors.Join(
		write(root, files.KeyFile, 0o600, encode("PRIVATE KEY", private)),
		write(root, files.CertFile, 0o644, encode("CERTIFICATE", der)),
	)
}

func encode(kind string, blocks ...[]byte) (text []byte) {
	for _, der := range blocks {
		text = append(text, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der})...)
	}
	return text
}

func decode(text []byte) (blocks [][]byte) {
	for block, rest := pem.Decode(text); block != nil; block, rest = pem.Decode(rest) {
		blocks = append(blocks, block.Bytes)
	}
	return blocks
}

// write replaces the file at once, for those that read it at this moment.
func write(root *os.Root, file string, mode os.FileMode, text []byte) error {
	unfinished := file + ".new"
	if err := root.WriteFile(unfinished, text, mode); err != nil {
		return fmt.Errorf("writing a certificate: %w", err)
	}
	if err := root.Rename(unfinished, file); err != nil {
		return fmt.Errorf("writing a certificate: %w", err)
	}
	return nil
}
