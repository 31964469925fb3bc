package edge

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
	// refreshEvery is how often the issuer's keys are fetched. A key that it withdraws is good for that much longer, and
	// a token that was verified with it for trustFor more.
	refreshEvery = 5 * time.Minute
	// retryEvery is the wait after the issuer did not answer.
	retryEvery = 30 * time.Second
	// keysLast is how long keys stay good while the issuer does not answer: accepting orders needs nothing but the broker.
	keysLast = time.Hour
	// fetchTimeout bounds asking the issuer for its keys, fetchEvery and fetchBurst how often tokens make us ask: keys that
	// are not known, which anyone can name, do.
	fetchTimeout = 3 * time.Second
	fetchEvery   = 2 * time.Second
	fetchBurst   = 5
	// largestDocument bounds what the issuer may answer, in bytes, and mostRedirects how often it may send us elsewhere.
	largestDocument = 1 << 20
	mostRedirects   = 5
	// mostTokens is how many verified tokens are remembered, and trustFor for how long at most: a signature costs more
	// than all else that is done with a call, and a key that the issuer withdraws must not be good for long.
	mostTokens = 1 << 12
	trustFor   = time.Minute
)

// algorithms are those that tokens may be signed with. Keys are public: an algorithm that signs with a shared secret would
// take one for the secret.
var algorithms = []jose.SignatureAlgorithm{
	jose.RS256, jose.RS384, jose.RS512, jose.PS256, jose.PS384, jose.PS512, jose.ES256, jose.ES384, jose.ES512, jose.EdDSA,
}

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

// tokenVerifier verifies tokens with keys that run keeps fresh. It asks the issuer itself only if it meets a key that it
// does not know. It is safe for concurrent use.
type tokenVerifier struct {
	OIDC
	log    *slog.Logger
	now    func() time.Time
	client *http.Client

	keys     atomic.Pointer[keySet] // nil before the first answer
	failing  atomic.Bool            // the issuer did not answer when it was asked last
	fetching singleflight.Group
	allowed  *rate.Limiter // of what tokens make us ask
	jwksURL  string        // "" if the issuer has to be asked for it; changed by who is fetching
	verified *lru.Cache[[sha256.Size]byte, verifiedToken]
}

// verifiedToken is whom a token is for, until it has to be verified again.
type verifiedToken struct {
	*principal
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
	known, err := lru.New[[sha256.Size]byte, verifiedToken](mostTokens)
	if err != nil {
		return nil, fmt.Errorf("verified tokens: %w", err)
	}
	return &tokenVerifier{
		OIDC: cfg, log: log, now: time.Now, jwksURL: cfg.JWKSURL, verified: known,
		allowed: rate.NewLimiter(rate.Every(fetchEvery), fetchBurst),
		client: &http.Client{
			Transport:     boundedTransport{&http.Transport{Proxy: http.ProxyFromEnvironment, DisableKeepAlives: true}},
			CheckRedirect: staysWithHost,
		},
	}, nil
}

// observe adds the metric by which one is told in time that the keys will not be good for much longer.
func (v *tokenVerifier) observe(meter metric.Meter) error {
	_, err := meter.Float64ObservableGauge("gateway.issuer.keys.age", metric.WithUnit("s"),
		metric.WithDescription("Time since the issuer of tokens has told its keys; they are good for an hour."),
		metric.WithFloat64Callback(func(_ context.Context, o metric.Float64Observer) error {
			if k := v.keys.Load(); k != nil {
				o.Observe(v.now().Sub(k.at).Seconds())
			}
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
		wait := refreshEvery
		if v.fetch(ctx) != nil {
			wait = retryEvery
		}
		select {
		case <-ctx.Done():
		case <-time.After(wait):
		}
	}
	return nil
}

// verify returns whom the token is for. Nobody is let in while the keys cannot be had: that is UNAVAILABLE.
func (v *tokenVerifier) verify(ctx context.Context, token string) (*principal, error) {
	if p, ok := v.remembered(token); ok {
		return p, nil
	}
	s := &signature{verifier: v}
	parsed, err := oidc.NewVerifier(v.Issuer, s, &oidc.Config{ClientID: v.Audience, SupportedSigningAlgs: names(algorithms), Now: v.now}).
		Verify(ctx, token)
	var expired *oidc.TokenExpiredError
	switch {
	case err == nil:
	case errors.Is(s.err, errIssuer):
		return nil, apierror.Unavailable("ISSUER_UNAVAILABLE", fetchEvery, "the token cannot be verified: its issuer's keys are not available").
			WithCause(s.err)
	case ctx.Err() != nil:
		return nil, apierror.Status(ctx.Err()).Err()
	case errors.As(err, &expired):
		return nil, apierror.New(codes.Unauthenticated, "TOKEN_EXPIRED", "the token has expired: get a new one from its issuer").WithCause(err)
	default:
		return nil, tokenInvalid.WithCause(err)
	}
	p := &principal{issuer: parsed.Issuer, subject: parsed.Subject, expires: parsed.Expiry}
	if owner := p.owner(); len(owner) > maxOwner || !text.Visible(owner) {
		return nil, tokenInvalid.WithCause(errors.New("its subject is too long, or has characters that cannot be seen"))
	}
	var claims map[string]json.RawMessage
	if err := parsed.Claims(&claims); err != nil {
		return nil, tokenInvalid.WithCause(err)
	}
	p.roles = rolesIn(claims, v.RolesClaim)
	until := v.now().Add(trustFor)
	if p.expires.Before(until) {
		until = p.expires
	}
	v.verified.Add(sha256.Sum256([]byte(token)), verifiedToken{p, until})
	return p, nil
}

// maxOwner is how long issuer and subject may be for an order to keep them, in bytes. OpenID Connect allows 255 of a subject.
const maxOwner = 1000

var tokenInvalid = apierror.New(codes.Unauthenticated, "TOKEN_INVALID",
	"the token is not valid here: its signature, issuer, audience or times are wrong")

func names(algorithms []jose.SignatureAlgorithm) []string {
	all := make([]string, len(algorithms))
	for i, a := range algorithms {
		all[i] = string(a)
	}
	return all
}

// remembered returns whom a token is for that was verified a short time ago.
func (v *tokenVerifier) remembered(token string) (*principal, bool) {
	known, ok := v.verified.Get(sha256.Sum256([]byte(token)))
	return known.principal, ok && v.now().Before(known.until)
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

var (
	errIssuer     = errors.New("the issuer does not answer")
	errAskedOften = errors.New("the issuer was asked a moment ago")
	errUnknownKey = errors.New("the issuer has no key that has signed the token")
)

// signature checks that of one token. It keeps the error, of which the verifier of package oidc passes on the text only.
type signature struct {
	verifier *tokenVerifier
	err      error
}

// VerifySignature implements oidc.KeySet.
func (s *signature) VerifySignature(ctx context.Context, token string) (payload []byte, err error) {
	payload, s.err = s.verifier.payload(ctx, token)
	return payload, s.err
}

// payload returns what the token says if one of the issuer's keys has signed it.
func (v *tokenVerifier) payload(ctx context.Context, token string) ([]byte, error) {
	signed, err := jose.ParseSigned(token, algorithms)
	if err != nil {
		return nil, err
	}
	known := v.goodKeys()
	payload, err := known.verify(signed)
	if !errors.Is(err, errUnknownKey) {
		return payload, err
	}
	asked := v.fetchForToken(ctx)
	if newest := v.goodKeys(); newest != known {
		return newest.verify(signed)
	}
	return nil, cmp.Or(asked, err)
}

// keySet are the issuer's keys as it answered once. It does not change.
type keySet struct {
	keys []jwkset.JWK
	at   time.Time
}

// goodKeys returns the keys that are in use; nil if there are none, or if they are too old.
func (v *tokenVerifier) goodKeys() *keySet {
	k := v.keys.Load()
	if k == nil || v.now().Sub(k.at) > keysLast {
		return nil
	}
	return k
}

// verify returns what was signed. A token that names no key may be signed by any. The error is errUnknownKey if another
// answer of the issuer may have the key.
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

// fetchForToken asks the issuer because of a token, not too often.
func (v *tokenVerifier) fetchForToken(ctx context.Context) error {
	return v.once(func() error {
		if !v.allowed.Allow() {
			if v.failing.Load() || v.goodKeys() == nil {
				return errIssuer
			}
			return errAskedOften
		}
		// The answer is for all who wait: it does not depend on the patience of the one who asks.
		return v.ask(context.WithoutCancel(ctx))
	})
}

// fetch asks the issuer.
func (v *tokenVerifier) fetch(ctx context.Context) error {
	return v.once(func() error { return v.ask(ctx) })
}

// once runs f, or waits for the one that runs already.
func (v *tokenVerifier) once(f func() error) error {
	_, err, _ := v.fetching.Do("", func() (any, error) { return nil, f() })
	return err
}

// ask fetches the keys. One caller does at a time. Its error is an errIssuer.
func (v *tokenVerifier) ask(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, fetchTimeout)
	defer cancel()
	keys, err := v.answer(ctx)
	v.failing.Store(err != nil)
	if err == nil {
		v.keys.Store(&keySet{keys, v.now()})
		return nil
	}
	v.jwksURL = v.JWKSURL // it may have moved
	if !errors.Is(ctx.Err(), context.Canceled) {
		v.log.WarnContext(ctx, "the issuer of tokens does not answer", "issuer", v.Issuer, "error", err, "keys_are_good", v.goodKeys() != nil)
	}
	return fmt.Errorf("%w: %w", errIssuer, err)
}

func (v *tokenVerifier) answer(ctx context.Context) ([]jwkset.JWK, error) {
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

// discover asks the issuer where its keys are.
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

// staysWithHost is an http.Client's CheckRedirect: whoever can send us elsewhere, or to where others can write along,
// would choose the keys.
func staysWithHost(r *http.Request, via []*http.Request) error {
	from, to := via[len(via)-1].URL, r.URL
	switch {
	case len(via) > mostRedirects:
		return errors.New("the issuer redirects too often")
	case from.Scheme == to.Scheme && from.Host == to.Host:
		return nil
	case from.Scheme == "http" && to.Scheme == "https" && from.Hostname() == to.Hostname():
		return nil
	}
	return fmt.Errorf("the issuer redirects to %s, which is not followed: set OIDC_JWKS_URL to where the keys are", to.Redacted())
}

// boundedTransport bounds the answers, which the libraries do not.
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
	}{io.LimitReader(answer.Body, largestDocument), answer.Body}
	return answer, nil
}
