// Package workspace is the folder .shop of a working copy: what runs on a developer's machine keeps its data there, and
// tells the command shop how it is reached.
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

// Dir returns the folder .shop of the workspace that the current folder is in; of the current folder if it is in none.
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

// Shop is the folder of a shop that runs, or ran, on this machine.
type Shop string

// Up returns the shop of `make up`.
func Up() (Shop, error) {
	dir, err := Dir()
	return Shop(filepath.Join(dir, "up")), err
}

// Secret returns a secret of the shop, which is made when it is asked for the first time: a token that changed with
// every start would be a nuisance, and so would idempotency keys that are forgotten.
func (s Shop) Secret(name string) (string, error) {
	path := filepath.Join(string(s), name)
	kept, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) {
		kept = []byte(rand.Text())
		err = os.WriteFile(path, kept, 0o600)
	}
	if err != nil {
		return "", fmt.Errorf("keeping the %s: %w", name, err)
	}
	return string(kept), nil
}

// NewOperatorToken is the Secret that operators show.
func (s Shop) NewOperatorToken() (string, error) { return s.Secret(operatorToken) }

// OperatorToken returns the token that operators show; "" if the shop has never run.
func (s Shop) OperatorToken() (string, error) {
	kept, err := os.ReadFile(filepath.Join(string(s), operatorToken))
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return "", fmt.Errorf("reading the operator token of make up: %w", err)
	}
	return string(kept), nil
}

// DatabaseURLsFile is the file with the URL of each schema. They have passwords in them.
const DatabaseURLsFile = "database-urls.json"

// KeepDatabaseURLs notes where the databases of the shop are, by schema, while it runs.
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

// ForgetDatabaseURLs undoes KeepDatabaseURLs.
func (s Shop) ForgetDatabaseURLs() error {
	err := os.Remove(filepath.Join(string(s), DatabaseURLsFile))
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	return err
}

// DatabaseURLs returns where the databases of the shop are, by schema. It fails if the shop does not run.
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
