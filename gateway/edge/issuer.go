package edge

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
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
)

// testIssuer issues tokens, and says where its keys are unless it is down.
type testIssuer struct {
	url string

	mu      sync.Mutex
	kid     string
	key     *ecdsa.PrivateKey
	down    bool
	answer  string // in place of the keys, if it is not empty
	fetched int
}

func startIssuer(t *testing.T) *testIssuer {
	t.Helper()
	i := &testIssuer{}
	server := httptest.NewServer(i)
	t.Cleanup(server.Close)
	i.url = server.URL
	i.rotate(t, "first")
	return i
}

// publicKey is what tokens are verified with.
func (i *testIssuer) publicKey() jose.JSONWebKey {
	i.mu.Lock()
	defer i.mu.Unlock()
	return jose.JSONWebKey{Key: i.key.Public(), KeyID: i.kid}
}

// rotate replaces the key.
func (i *testIssuer) rotate(t *testing.T, kid string) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	i.kid, i.key = kid, key
}

func (i *testIssuer) setDown(down bool) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.down = down
}

func (i *testIssuer) setAnswer(answer string) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.answer = answer
}

func (i *testIssuer) questions() int {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.fetched
}

func (i *testIssuer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.fetched++
	var answer any = map[string]string{"issuer": i.url, "jwks_uri": i.url + "/keys"}
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

// token issues a token, good for an hour unless the claims say otherwise.
func (i *testIssuer) token(t *testing.T, claims map[string]any) string {
	t.Helper()
	i.mu.Lock()
	defer i.mu.Unlock()
	return signed(t, jose.ES256, jose.JSONWebKey{Key: i.key, KeyID: i.kid}, i.claims(claims))
}

func (i *testIssuer) claims(with map[string]any) map[string]any {
	claims := map[string]any{"iss": i.url, "aud": "shop", "sub": "ada", "exp": time.Now().Add(time.Hour).Unix(), "roles": []string{"operator"}}
	maps.Copy(claims, with)
	return claims
}

func signed(t *testing.T, algorithm jose.SignatureAlgorithm, key any, claims map[string]any) string {
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
