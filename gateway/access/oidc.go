package access

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/url"
	"strings"
	"sync/atomic"
	"time"

	"github.com/MicahParks/jwkset"
	"github.com/coreos/go-oidc/v3/oidc"
	"github.com/go-jose/go-jose/v4"
	lru "github.com/hashicorp/golang-lru/v2"
	"go.opentelemetry.io/otel/metric"
	"golang.org/x/sync/singleflight"
	"golang.org/x/time/rate"
	"google.golang.org/grpc/codes"

	"shop.example/domain/text"
	"shop.example/platform/apierror"
)

const (
	// refreshInterval is how often the issuer's keys are fetched. A key that the issuer withdraws stays valid for up to
	// that long, and a token that was verified with it for tokenTTL more.
	refreshInterval = 5 * time.Minute
	// retryInterval is the wait after a failed fetch.
	retryInterval = 30 * time.Second
	// keysTTL is how long keys stay valid while the issuer does not answer: accepting orders needs nothing but the broker.
	keysTTL = time.Hour
	// fetchTimeout bounds a fetch of the issuer's keys, fetchInterval and fetchBurst how often tokens cause one: each token
	// that names an unknown key does, and anyone can send such tokens.
	fetchTimeout  = 3 * time.Second
	fetchInterval = 2 * time.Second
	fetchBurst    = 5
	// maxDocument bounds a response of the issuer, in bytes, and maxRedirects how often it may redirect.
	maxDocument  = 1 << 20
	maxRedirects = 5
	// maxTokens is how many verified tokens are cached, and tokenTTL for how long at most: checking a signature costs more
	// than everything else that is done for a call, but a key that the issuer withdraws must soon be invalid.
	maxTokens = 1 << 12
	tokenTTL  = time.Minute
)

// algorithms are those that tokens may be signed with. None of them uses a shared secret: anyone could sign with the public
// key in place of the secret.
var algorithms = []jose.SignatureAlgorithm{
	jose.RS256, jose.RS384, jose.RS512, jose.PS256, jose.PS384, jose.PS512, jose.ES256, jose.ES384, jose.ES512, jose.EdDSA,
}

// OIDC configures the OpenID Connect issuer whose tokens (JWTs) are accepted, in addition to the operator tokens.
type OIDC struct {
	// Issuer is the issuer's URL, as in the claim iss of its tokens; empty to accept operator tokens only.
	Issuer string `env:"OIDC_ISSUER"`
	// Audience is the name that the issuer has for this shop. Tokens for other audiences are refused.
	Audience string `env:"OIDC_AUDIENCE"`
	// JWKSURL is the URL of the issuer's keys; if it is empty, the issuer's discovery document is asked for it.
	JWKSURL string `env:"OIDC_JWKS_URL"`
	// RolesClaim is the claim that lists the caller's roles, of which customer and operator count: its name, or a path such
	// as realm_access.roles.
	RolesClaim string `env:"OIDC_ROLES_CLAIM" envDefault:"roles"`
	// RequireCustomer refuses public calls that neither a customer nor an operator makes.
	RequireCustomer bool `env:"OIDC_REQUIRE_CUSTOMER" envDefault:"false"`
}

// tokenVerifier verifies tokens with keys that run keeps up to date. A token alone makes it call the issuer only if it
// names an unknown key. It is safe for concurrent use.
type tokenVerifier struct {
	OIDC
	log    *slog.Logger
	now    func() time.Time
	begun  time.Time
	client *http.Client

	keys     atomic.Pointer[keySet] // nil before the first answer
	failing  atomic.Bool            // the issuer did not answer when it was asked last
	fetching singleflight.Group
	allowed  *rate.Limiter // of what tokens make us ask
	jwksURL  string        // "" if the issuer has to be asked for it; changed by who is fetching
	verified *lru.Cache[[sha256.Size]byte, verifiedToken]
}

// verifiedToken is the principal of a token, and the time until which the token need not be verified again.
type verifiedToken struct {
	*Principal
	until time.Time
}

func newTokenVerifier(cfg OIDC, log *slog.Logger) (*tokenVerifier, error) {
	if cfg.Audience == "" {
		return nil, errors.New("OIDC_AUDIENCE is needed with OIDC_ISSUER: tokens for others must not be accepted")
	}
	for variable, value := range map[string]string{"OIDC_ISSUER": cfg.Issuer, "OIDC_JWKS_URL": cfg.JWKSURL} {
		if u, err := url.Parse(value); value != "" && (err != nil || u.Host == "" || u.Scheme != "https" && u.Scheme != "http") {
			return nil, fmt.Errorf("%s must be a URL such as https://login.example.org", variable)
		}
	}
	known, err := lru.New[[sha256.Size]byte, verifiedToken](maxTokens)
	if err != nil {
		return nil, fmt.Errorf("verified tokens: %w", err)
	}
	return &tokenVerifier{
		OIDC: cfg, log: log, now: time.Now, begun: time.Now(), jwksURL: cfg.JWKSURL, verified: known,
		allowed: rate.NewLimiter(rate.Every(fetchInterval), fetchBurst),
		client: &http.Client{
			Transport:     boundedTransport{&http.Transport{Proxy: http.ProxyFromEnvironment, DisableKeepAlives: true}},
			CheckRedirect: sameHost,
		},
	}, nil
}

// observe adds the metric with which one is warned before the keys become too old.
func (v *tokenVerifier) observe(meter metric.Meter) error {
	_, err := meter.Float64ObservableGauge("gateway.issuer.keys.age", metric.WithUnit("s"),
		metric.WithDescription("Time since the issuer of tokens has told its keys, or since the start if it never has; they are good for an hour."),
		metric.WithFloat64Callback(func(_ context.Context, o metric.Float64Observer) error {
			since := v.begun
			if k := v.keys.Load(); k != nil {
				since = k.at
			}
			o.Observe(v.now().Sub(since).Seconds())
			return nil
		}))
	if err != nil {
		return fmt.Errorf("registering the metric of the issuer's keys: %w", err)
	}
	return nil
}

// run keeps the keys fresh until ctx ends. It returns nil.
func (v *tokenVerifier) run(ctx context.Context) error {
	for ctx.Err() == nil {
		wait := refreshInterval
		if v.fetch(ctx) != nil {
			wait = retryInterval
		}
		select {
		case <-ctx.Done():
		case <-time.After(wait):
		}
	}
	return nil
}

// verify returns the principal of a token. The error is UNAVAILABLE while there are no keys to verify it with.
func (v *tokenVerifier) verify(ctx context.Context, token string) (*Principal, error) {
	if p, ok := v.cached(token); ok {
		return p, nil
	}
	s := &signature{verifier: v}
	parsed, err := oidc.NewVerifier(v.Issuer, s, &oidc.Config{ClientID: v.Audience, SupportedSigningAlgs: names(algorithms), Now: v.now}).
		Verify(ctx, token)
	var expired *oidc.TokenExpiredError
	switch {
	case err == nil:
	case errors.Is(s.err, errIssuer):
		return nil, apierror.Unavailable("ISSUER_UNAVAILABLE", fetchInterval, "the token cannot be verified: its issuer's keys are not available").
			WithCause(s.err)
	case ctx.Err() != nil:
		return nil, apierror.Status(ctx.Err()).Err()
	case errors.As(err, &expired):
		return nil, apierror.New(codes.Unauthenticated, "TOKEN_EXPIRED", "the token has expired: get a new one from its issuer").WithCause(err)
	default:
		return nil, tokenInvalid.WithCause(err)
	}
	p := &Principal{Issuer: parsed.Issuer, Subject: parsed.Subject, expires: parsed.Expiry}
	if owner := p.Owner(); p.Subject == "" || len(owner) > maxOwner || !text.Visible(owner) { // all without a subject would be one owner
		return nil, tokenInvalid.WithCause(errors.New("its subject is missing or too long, or has characters that cannot be seen"))
	}
	var claims map[string]json.RawMessage
	if err := parsed.Claims(&claims); err != nil {
		return nil, tokenInvalid.WithCause(err)
	}
	p.Roles = rolesIn(claims, v.RolesClaim)
	until := v.now().Add(tokenTTL)
	if p.expires.Before(until) {
		until = p.expires
	}
	v.verified.Add(sha256.Sum256([]byte(token)), verifiedToken{p, until})
	return p, nil
}

// maxOwner is the maximum length of issuer and subject together, in bytes, that an order can store. OpenID Connect allows
// subjects of 255.
const maxOwner = 1000

var tokenInvalid = apierror.New(codes.Unauthenticated, "TOKEN_INVALID",
	"the token is not valid here: its signature, issuer, audience, subject or times are wrong")

func names(algorithms []jose.SignatureAlgorithm) []string {
	all := make([]string, len(algorithms))
	for i, a := range algorithms {
		all[i] = string(a)
	}
	return all
}

// cached returns the principal of a token that was verified a short time ago.
func (v *tokenVerifier) cached(token string) (*Principal, bool) {
	known, ok := v.verified.Get(sha256.Sum256([]byte(token)))
	return known.Principal, ok && v.now().Before(known.until)
}

// rolesIn reads a claim that is a list of roles or a single role. If no claim has this name, its dots lead into objects.
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

var (
	errIssuer     = errors.New("the issuer does not answer")
	errAskedOften = errors.New("the issuer was asked a moment ago")
	errUnknownKey = errors.New("the issuer has no key that has signed the token")
)

// signature checks the signature of one token. It keeps the error, because the verifier of package oidc passes on its text
// only.
type signature struct {
	verifier *tokenVerifier
	err      error
}

// VerifySignature implements oidc.KeySet.
func (s *signature) VerifySignature(ctx context.Context, token string) (payload []byte, err error) {
	payload, s.err = s.verifier.payload(ctx, token)
	return payload, s.err
}

// payload returns the content of the token if one of the issuer's keys has signed it.
func (v *tokenVerifier) payload(ctx context.Context, token string) ([]byte, error) {
	signed, err := jose.ParseSigned(token, algorithms)
	if err != nil {
		return nil, err
	}
	known := v.currentKeys()
	payload, err := known.verify(signed)
	if !errors.Is(err, errUnknownKey) {
		return payload, err
	}
	asked := v.fetchForToken(ctx)
	if newest := v.currentKeys(); newest != known {
		return newest.verify(signed)
	}
	return nil, cmp.Or(asked, err)
}

// keySet is the set of the issuer's keys at one time. It is immutable.
type keySet struct {
	keys []jwkset.JWK
	at   time.Time
}

// currentKeys returns the current keys; nil if there are none or they are too old.
func (v *tokenVerifier) currentKeys() *keySet {
	k := v.keys.Load()
	if k == nil || v.now().Sub(k.at) > keysTTL {
		return nil
	}
	return k
}

// verify returns the signed content. A token that names no key may be signed with any of them. The error is errUnknownKey
// if newer keys of the issuer might verify the token.
func (k *keySet) verify(signed *jose.JSONWebSignature) ([]byte, error) {
	if k == nil {
		return nil, errUnknownKey
	}
	name := signed.Signatures[0].Header.KeyID // a compact token has one signature
	err := errUnknownKey
	for _, key := range k.keys {
		if name != "" && key.Marshal().KID != name {
			continue
		}
		payload, wrong := signed.Verify(key.Key())
		if wrong == nil {
			return payload, nil
		}
		if name != "" {
			err = wrong
		}
	}
	return nil, err
}

// fetchForToken fetches the keys because of a token, at a limited rate.
func (v *tokenVerifier) fetchForToken(ctx context.Context) error {
	return v.fetchOnce(func() error {
		if !v.allowed.Allow() {
			if v.failing.Load() || v.currentKeys() == nil {
				return errIssuer
			}
			return errAskedOften
		}
		// The keys are for all who wait: the fetch must not end with the call of one of them.
		return v.refresh(context.WithoutCancel(ctx))
	})
}

// fetch fetches the keys from the issuer.
func (v *tokenVerifier) fetch(ctx context.Context) error {
	return v.fetchOnce(func() error { return v.refresh(ctx) })
}

// fetchOnce runs f, or waits for the call of f that runs already.
func (v *tokenVerifier) fetchOnce(f func() error) error {
	_, err, _ := v.fetching.Do("", func() (any, error) { return nil, f() })
	return err
}

// refresh fetches the keys. It must not be called concurrently. Its error is an errIssuer.
func (v *tokenVerifier) refresh(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, fetchTimeout)
	defer cancel()
	keys, err := v.load(ctx)
	v.failing.Store(err != nil)
	if err == nil {
		v.keys.Store(&keySet{keys, v.now()})
		return nil
	}
	v.jwksURL = v.JWKSURL // it may have moved
	if !errors.Is(ctx.Err(), context.Canceled) {
		v.log.WarnContext(ctx, "the issuer of tokens does not answer", "issuer", v.Issuer, "error", err, "keys_are_good", v.currentKeys() != nil)
	}
	return fmt.Errorf("%w: %w", errIssuer, err)
}

func (v *tokenVerifier) load(ctx context.Context) ([]jwkset.JWK, error) {
	if v.jwksURL == "" {
		var err error
		if v.jwksURL, err = v.discover(ctx); err != nil {
			return nil, err
		}
	}
	fetched, err := jwkset.NewStorageFromHTTP(v.jwksURL, jwkset.HTTPClientStorageOptions{Client: v.client, Ctx: ctx})
	if err != nil {
		return nil, err
	}
	keys, err := fetched.KeyReadAll(ctx)
	if err == nil && len(keys) == 0 {
		err = errors.New("the answer has no keys") // of a proxy in maintenance, for example
	}
	return keys, err
}

// discover reads the URL of the keys from the issuer's discovery document.
func (v *tokenVerifier) discover(ctx context.Context) (jwksURL string, err error) {
	provider, err := oidc.NewProvider(oidc.ClientContext(ctx, v.client), v.Issuer)
	if err != nil {
		return "", err
	}
	var found struct {
		JWKSURL string `json:"jwks_uri"`
	}
	if err := provider.Claims(&found); err != nil || found.JWKSURL == "" {
		return "", errors.Join(errors.New("the issuer does not say where its keys are"), err)
	}
	if strings.HasPrefix(v.Issuer, "https:") && !strings.HasPrefix(found.JWKSURL, "https:") {
		return "", fmt.Errorf("the issuer says that its keys are at %s, which is not https", found.JWKSURL)
	}
	return found.JWKSURL, nil
}

// sameHost is an http.Client's CheckRedirect. It refuses redirects to other hosts and to plain text, with which somebody
// else could supply the keys.
func sameHost(r *http.Request, via []*http.Request) error {
	from, to := via[len(via)-1].URL, r.URL
	switch {
	case len(via) > maxRedirects:
		return errors.New("the issuer redirects too often")
	case from.Scheme == to.Scheme && from.Host == to.Host:
		return nil
	case from.Scheme == "http" && to.Scheme == "https" && from.Hostname() == to.Hostname():
		return nil
	}
	return fmt.Errorf("the issuer redirects to %s, which is not followed: set OIDC_JWKS_URL to where the keys are", to.Redacted())
}

// boundedTransport bounds the size of responses, which the libraries do not.
type boundedTransport struct{ http.RoundTripper }

// RoundTrip implements http.RoundTripper.
func (t boundedTransport) RoundTrip(r *http.Request) (*http.Response, error) {
	answer, err := t.RoundTripper.RoundTrip(r)
	if err != nil {
		return nil, err
	}
	answer.Body = struct {
		io.Reader
		io.Closer
	}{io.LimitReader(answer.Body, maxDocument), answer.Body}
	return answer, nil
}
