// Package workspace manages the folder .shop of a working copy, in which a shop on a developer's machine keeps its data,
// and through which the command shop finds it.
package workspace

import (
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
)

// operatorToken is the secret of a shop that operators show.
const operatorToken = "operator-token"

// Dir returns the folder .shop of the workspace that contains the current folder; if there is none, .shop in the current
// folder.
func Dir() (string, error) {
	here, err := os.Getwd()
	if err != nil {
		return "", fmt.Errorf("finding the current folder: %w", err)
	}
	for dir := here; ; dir = filepath.Dir(dir) {
		_, err := os.Stat(filepath.Join(dir, "go.work"))
		if err == nil {
			return filepath.Join(dir, ".shop"), nil
		}
		if !errors.Is(err, os.ErrNotExist) {
			return "", fmt.Errorf("looking for the workspace: %w", err)
		}
		if dir == filepath.Dir(dir) {
			return filepath.Join(here, ".shop"), nil
		}
	}
}

// Shop is the path of the folder of a shop that runs, or has run, on this machine.
type Shop string

// Up returns the shop that `make up` runs.
func Up() (Shop, error) {
	dir, err := Dir()
	return Shop(filepath.Join(dir, "up")), err
}

// Secret returns a secret of the shop. It is made up when it is first asked for, and kept: a token that changed with every
// start would be a nuisance, and with a new IDSecret idempotency keys would be forgotten.
func (s Shop) Secret(name string) (string, error) {
	path := filepath.Join(string(s), name)
	kept, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) || err == nil && len(kept) == 0 { // empty if the disk was full, or the machine went down
		kept = []byte(rand.Text())
		err = replace(path, kept)
	}
	if err != nil {
		return "", fmt.Errorf("keeping the %s: %w", name, err)
	}
	return string(kept), nil
}

// replace writes a file as a whole: after a crash it has the old content or the new.
func replace(path string, text []byte) (err error) {
	// Its name ends as that of a secret, so that make down knows it.
	f, err := os.OpenFile(filepath.Join(filepath.Dir(path), "new-"+filepath.Base(path)), os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(text)
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	return os.Rename(f.Name(), path)
}

// NewOperatorToken returns the operator token, which is made up if there is none yet.
func (s Shop) NewOperatorToken() (string, error) { return s.Secret(operatorToken) }

// OperatorToken returns the operator token; "" if the shop has never run.
func (s Shop) OperatorToken() (string, error) {
	kept, err := os.ReadFile(filepath.Join(string(s), operatorToken))
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return "", fmt.Errorf("reading the operator token of make up: %w", err)
	}
	return string(kept), nil
}

// DatabaseURLsFile is the name of the file with the URL of each schema, which include passwords.
const DatabaseURLsFile = "database-urls.json"

// KeepDatabaseURLs stores the URLs of the shop's databases, by schema, while it runs.
func (s Shop) KeepDatabaseURLs(urls map[string]string) error {
	text, err := json.MarshalIndent(urls, "", "  ")
	if err == nil {
		err = os.WriteFile(filepath.Join(string(s), DatabaseURLsFile), append(text, '\n'), 0o600)
	}
	if err != nil {
		return fmt.Errorf("noting the databases' URLs: %w", err)
	}
	return nil
}

// AMQPURLFile is the name of the file with the URL of the broker's administrator, password included.
const AMQPURLFile = "amqp-url"

// KeepAMQPURL stores the URL of the shop's broker, for programs beside the shop, while it runs.
func (s Shop) KeepAMQPURL(url string) error {
	if err := os.WriteFile(filepath.Join(string(s), AMQPURLFile), []byte(url+"\n"), 0o600); err != nil {
		return fmt.Errorf("noting the broker's URL: %w", err)
	}
	return nil
}

// ForgetURLs removes what KeepDatabaseURLs and KeepAMQPURL have stored.
func (s Shop) ForgetURLs() (err error) {
	for _, name := range []string{DatabaseURLsFile, AMQPURLFile} {
		if removed := os.Remove(filepath.Join(string(s), name)); !errors.Is(removed, os.ErrNotExist) {
			err = errors.Join(err, removed)
		}
	}
	return err
}

// DatabaseURLs returns the URLs of the shop's databases, by schema. It fails if the shop does not run.
func (s Shop) DatabaseURLs() (urls map[string]string, err error) {
	path := filepath.Join(string(s), DatabaseURLsFile)
	text, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("no shop with servers of its own runs in %s: start one with `make up`", s)
	}
	if err == nil {
		err = json.Unmarshal(text, &urls)
	}
	if err != nil {
		return nil, fmt.Errorf("reading the databases' URLs from %s: %w", path, err)
	}
	return urls, nil
}
