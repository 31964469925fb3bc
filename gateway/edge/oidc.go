package edge

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/coreos/go-oidc/v3/oidc"
	lru "github.com/hashicorp/golang-lru/v2"
	"golang.org/x/time/rate"
	"google.golang.org/grpc/codes"

	"shop.example/platform/apierror"
)

const (
	// fetchTimeout bounds one question to the issuer, fetchEvery and fetchBurst their number: unknown keys, which anyone
	// can name, make us ask.
	fetchTimeout = 3 * time.Second
	fetchEvery   = 2 * time.Second
	fetchBurst   = 5
	// largestDocument bounds what the issuer may answer.
	largestDocument = 1 << 20
	// mostTokens is how many verified tokens are remembered, and trustFor for how long at most: a signature costs more
	// than all else that is done with a call, and a key that the issuer withdraws must not be good for long.
	mostTokens = 1 << 12
	trustFor   = time.Minute
)

// OIDC says whose tokens (JWTs of OpenID Connect) are accepted beside the operator token.
type OIDC struct {
	// Issuer is the issuer's URL as it stands in its tokens; empty for no tokens but the operator's.
	Issuer string `env:"OIDC_ISSUER"`
	// Audience is the name of this shop at the issuer. Tokens for others are refused.
	Audience string `env:"OIDC_AUDIENCE"`
	// JWKSURL is where the issuer's keys are; empty to learn it from the issuer.
	JWKSURL string `env:"OIDC_JWKS_URL"`
	// RolesClaim is the claim with the roles, customer and operator: its name, or a path such as realm_access.roles.
	RolesClaim string `env:"OIDC_ROLES_CLAIM" envDefault:"roles"`
	// RequireCustomer takes the calls that are anyone's otherwise from customers and operators only.
	RequireCustomer bool `env:"OIDC_REQUIRE_CUSTOMER" envDefault:"false"`
}

const (
	customer = "customer"
	operator = "operator"
)

// principal is whom a token is for.
type principal struct {
	subject string
	roles   []string
	until   time.Time
}

// may says whether the principal has a role. Operators may do what customers may.
func (p principal) may(role string) bool {
	return slices.Contains(p.roles, role) || slices.Contains(p.roles, operator)
}

// issuer verifies tokens. It needs the real issuer only when it meets a key for the first time. It is safe for
// concurrent use.
type issuer struct {
	OIDC
	verifier *oidc.Config
	client   *http.Client
	finding  chan struct{} // held by the one who looks for the keys
	keys     atomic.Pointer[oidc.RemoteKeySet]
	known    *lru.Cache[[sha256.Size]byte, principal] // by the token's hash
}

func newIssuer(cfg OIDC, log *slog.Logger) (*issuer, error) {
	if cfg.Audience == "" {
		return nil, errors.New("OIDC_AUDIENCE is needed with OIDC_ISSUER: tokens for others must not be accepted")
	}
	for variable, value := range map[string]string{"OIDC_ISSUER": cfg.Issuer, "OIDC_JWKS_URL": cfg.JWKSURL} {
		if u, err := url.Parse(value); value != "" && (err != nil || u.Host == "" || u.Scheme != "https" && u.Scheme != "http") {
			return nil, fmt.Errorf("%s must be a URL such as https://login.example.org", variable)
		}
	}
	known, err := lru.New[[sha256.Size]byte, principal](mostTokens)
	if err != nil {
		return nil, fmt.Errorf("known tokens: %w", err)
	}
	transport := &http.Transport{Proxy: http.ProxyFromEnvironment, DisableKeepAlives: true}
	fetch := &fetcher{base: transport, log: log, allowed: rate.NewLimiter(rate.Every(fetchEvery), fetchBurst)}
	fetch.failing.Store(true) // nothing is known yet
	i := &issuer{
		OIDC: cfg, client: &http.Client{Transport: fetch, Timeout: fetchTimeout}, finding: make(chan struct{}, 1), known: known,
		// Keys are public: an algorithm that signs with a shared secret would take one for the secret.
		verifier: &oidc.Config{ClientID: cfg.Audience, SupportedSigningAlgs: []string{
			oidc.RS256, oidc.RS384, oidc.RS512, oidc.PS256, oidc.PS384, oidc.PS512, oidc.ES256, oidc.ES384, oidc.ES512, oidc.EdDSA,
		}},
	}
	if cfg.JWKSURL != "" {
		i.useKeys(cfg.JWKSURL)
	}
	return i, nil
}

func (i *issuer) useKeys(address string) {
	i.keys.Store(oidc.NewRemoteKeySet(oidc.ClientContext(context.Background(), i.client), address))
}

// verify returns whom the token is for. Nobody is let in while the keys cannot be had: that is UNAVAILABLE.
func (i *issuer) verify(ctx context.Context, token string) (principal, error) {
	if p, ok := i.remembered(token); ok {
		return p, nil
	}
	keys, err := i.keySet(ctx)
	if err != nil {
		return principal{}, issuerUnavailable(err)
	}
	s := &signature{keys: keys}
	verified, err := oidc.NewVerifier(i.Issuer, s, i.verifier).Verify(ctx, token)
	var expired *oidc.TokenExpiredError
	switch {
	case err == nil:
	case errors.Is(s.err, errIssuer):
		return principal{}, issuerUnavailable(s.err)
	case ctx.Err() != nil:
		return principal{}, apierror.Status(ctx.Err()).Err()
	case errors.As(err, &expired):
		return principal{}, apierror.New(codes.Unauthenticated, "TOKEN_EXPIRED", "the token has expired: get a new one from its issuer").WithCause(err)
	default:
		return principal{}, tokenInvalid.WithCause(err)
	}
	p, err := i.principalOf(verified)
	if err != nil {
		return principal{}, tokenInvalid.WithCause(err)
	}
	i.known.Add(sha256.Sum256([]byte(token)), p)
	return p, nil
}

var tokenInvalid = apierror.New(codes.Unauthenticated, "TOKEN_INVALID",
	"the token is not valid here: its signature, issuer, audience or times are wrong")

func issuerUnavailable(cause error) error {
	return apierror.Unavailable("ISSUER_UNAVAILABLE", fetchEvery, "the token cannot be verified: its issuer's keys are not available").WithCause(cause)
}

// remembered returns whom a token is for that was verified a short time ago.
func (i *issuer) remembered(token string) (principal, bool) {
	p, ok := i.known.Get(sha256.Sum256([]byte(token)))
	return p, ok && time.Now().Before(p.until)
}

func (i *issuer) principalOf(token *oidc.IDToken) (principal, error) {
	p := principal{subject: token.Subject, until: time.Now().Add(trustFor)}
	if token.Expiry.Before(p.until) {
		p.until = token.Expiry
	}
	var claims map[string]json.RawMessage
	if err := token.Claims(&claims); err != nil {
		return p, err
	}
	p.roles = rolesIn(claims, i.RolesClaim)
	return p, nil
}

// rolesIn reads a claim that is a list of roles or one role. Its name may have dots; else they lead into objects.
func rolesIn(claims map[string]json.RawMessage, claim string) []string {
	raw, ok := claims[claim]
	if !ok {
		outer, inner, _ := strings.Cut(claim, ".")
		var object map[string]json.RawMessage
		if json.Unmarshal(claims[outer], &object) != nil || inner == "" {
			return nil
		}
		return rolesIn(object, inner)
	}
	var roles []string
	var role string
	if json.Unmarshal(raw, &roles) == nil {
		return roles
	}
	if json.Unmarshal(raw, &role) == nil {
		return []string{role}
	}
	return nil
}

// keySet returns the issuer's keys, having asked it where they are if need be.
func (i *issuer) keySet(ctx context.Context) (oidc.KeySet, error) {
	if keys := i.keys.Load(); keys != nil {
		return keys, nil
	}
	select {
	case i.finding <- struct{}{}:
		defer func() { <-i.finding }()
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	if keys := i.keys.Load(); keys != nil {
		return keys, nil
	}
	// The answer is for all who wait: it does not depend on the patience of the one who asks.
	provider, err := oidc.NewProvider(oidc.ClientContext(context.WithoutCancel(ctx), i.client), i.Issuer)
	if err != nil {
		return nil, err
	}
	var found struct {
		JWKSURL string `json:"jwks_uri"`
	}
	if err := provider.Claims(&found); err != nil || found.JWKSURL == "" {
		return nil, errors.Join(errors.New("the issuer does not say where its keys are"), err)
	}
	i.useKeys(found.JWKSURL)
	return i.keys.Load(), nil
}

// signature is the keys as one verification sees them. It keeps the error, of which the verifier passes on the text only.
type signature struct {
	keys oidc.KeySet
	err  error
}

// VerifySignature implements oidc.KeySet.
func (s *signature) VerifySignature(ctx context.Context, token string) (payload []byte, err error) {
	payload, s.err = s.keys.VerifySignature(ctx, token)
	return payload, s.err
}

var (
	errIssuer      = errors.New("the issuer does not answer")
	errAskedEnough = errors.New("the issuer was asked a moment ago")
)

// fetcher asks the issuer, not too often. Its errors are errIssuer where no good answer is to be had.
type fetcher struct {
	base    http.RoundTripper
	log     *slog.Logger
	allowed *rate.Limiter
	failing atomic.Bool // the keys were not had when they were asked for last
}

// RoundTrip implements http.RoundTripper.
func (f *fetcher) RoundTrip(r *http.Request) (*http.Response, error) {
	if !f.allowed.Allow() {
		if f.failing.Load() {
			return nil, errIssuer
		}
		return nil, errAskedEnough
	}
	answer, keys, err := f.ask(r)
	if keys || err != nil {
		f.failing.Store(err != nil)
	}
	if err != nil {
		f.log.WarnContext(r.Context(), "the issuer of tokens does not answer", "url", r.URL.Redacted(), "err", err)
		return nil, fmt.Errorf("%w: %w", errIssuer, err)
	}
	return answer, nil
}

// ask returns an answer that is JSON and has been read, and whether it has keys.
func (f *fetcher) ask(r *http.Request) (answer *http.Response, keys bool, err error) {
	if answer, err = f.base.RoundTrip(r); err != nil {
		return nil, false, err
	}
	defer answer.Body.Close()
	body, err := io.ReadAll(io.LimitReader(answer.Body, largestDocument))
	var document struct {
		Keys []json.RawMessage `json:"keys"`
	}
	switch {
	case err != nil:
		return nil, false, err
	case answer.StatusCode != http.StatusOK:
		return nil, false, errors.New(answer.Status)
	case json.Unmarshal(body, &document) != nil:
		return nil, false, errors.New("the answer is not the JSON that was expected, or too large")
	}
	answer.Body = io.NopCloser(bytes.NewReader(body))
	return answer, document.Keys != nil, nil
}
