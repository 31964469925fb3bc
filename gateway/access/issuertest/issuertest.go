// Package issuertest is an OpenID Connect issuer for tests.
package issuertest

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/json"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"sync"
	"testing" //nolint:depguard // only tests import this package, and it needs no module that the gateway does not
	"time"

	"github.com/go-jose/go-jose/v4"
)

// Issuer issues tokens, and serves its discovery document and its keys.
type Issuer struct {
	URL string

	mu      sync.Mutex
	kid     string
	key     *ecdsa.PrivateKey
	down    bool
	answer  string // in place of the keys, if it is not empty
	fetched int
}

// Start runs an issuer until the test ends.
func Start(t *testing.T) *Issuer {
	t.Helper()
	i := &Issuer{}
	server := httptest.NewServer(i)
	t.Cleanup(server.Close)
	i.URL = server.URL
	i.Rotate(t, "first")
	return i
}

// PublicKey returns the key that tokens are verified with.
func (i *Issuer) PublicKey() jose.JSONWebKey {
	i.mu.Lock()
	defer i.mu.Unlock()
	return jose.JSONWebKey{Key: i.key.Public(), KeyID: i.kid}
}

// Rotate replaces the key by a new one with the id kid.
func (i *Issuer) Rotate(t *testing.T, kid string) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	i.kid, i.key = kid, key
}

// SetDown makes the issuer respond with errors.
func (i *Issuer) SetDown(down bool) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.down = down
}

// SetAnswer makes the issuer respond with this text; "" makes it respond normally again.
func (i *Issuer) SetAnswer(answer string) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.answer = answer
}

// Questions returns how often the issuer was called.
func (i *Issuer) Questions() int {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.fetched
}

func (i *Issuer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.fetched++
	var answer any = map[string]string{"issuer": i.URL, "jwks_uri": i.URL + "/keys"}
	if r.URL.Path == "/keys" {
		answer = jose.JSONWebKeySet{Keys: []jose.JSONWebKey{{Key: i.key.Public(), KeyID: i.kid, Algorithm: "ES256", Use: "sig"}}}
	}
	if i.down {
		http.Error(w, "the database of the issuer at 10.0.0.9 is away", http.StatusInternalServerError)
		return
	}
	if i.answer != "" {
		_, _ = io.WriteString(w, i.answer)
		return
	}
	_ = json.NewEncoder(w).Encode(answer)
}

// Token issues a token with these claims, which is valid for an hour unless they say otherwise.
func (i *Issuer) Token(t *testing.T, claims map[string]any) string {
	t.Helper()
	i.mu.Lock()
	defer i.mu.Unlock()
	return Sign(t, jose.ES256, jose.JSONWebKey{Key: i.key, KeyID: i.kid}, i.Claims(claims))
}

// Claims returns the claims of a token that is valid for an hour, changed by with.
func (i *Issuer) Claims(with map[string]any) map[string]any {
	claims := map[string]any{"iss": i.URL, "aud": "shop", "sub": "ada", "exp": time.Now().Add(time.Hour).Unix(), "roles": []string{"operator"}}
	maps.Copy(claims, with)
	return claims
}

// Sign returns a JWT with these claims.
func Sign(t *testing.T, algorithm jose.SignatureAlgorithm, key any, claims map[string]any) string {
	t.Helper()
	signer, err := jose.NewSigner(jose.SigningKey{Algorithm: algorithm, Key: key}, nil)
	if err != nil {
		t.Fatal(err)
	}
	payload, err := json.Marshal(claims)
	if err != nil {
		t.Fatal(err)
	}
	jws, err := signer.Sign(payload)
	if err != nil {
		t.Fatal(err)
	}
	token, err := jws.CompactSerialize()
	if err != nil {
		t.Fatal(err)
	}
	return token
}
