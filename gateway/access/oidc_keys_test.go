package access

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"go.opentelemetry.io/otel/metric"
	"go.opentelemetry.io/otel/metric/noop"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"shop.example/gateway/access/issuertest"
	"shop.example/platform/apierror"
)

// clock is moved by its test.
type clock struct{ ahead atomic.Int64 }

func (c *clock) now() time.Time          { return time.Now().Add(time.Duration(c.ahead.Load())) }
func (c *clock) advance(d time.Duration) { c.ahead.Add(int64(d)) }

// newVerifier returns a verifier whose clock the test moves. It does not run.
func newVerifier(t *testing.T, cfg OIDC) (*tokenVerifier, *clock) {
	t.Helper()
	cfg.Audience, cfg.RolesClaim = "shop", "roles"
	v, err := newTokenVerifier(cfg, slog.New(slog.NewTextHandler(t.Output(), nil)))
	if err != nil {
		t.Fatal(err)
	}
	c := &clock{}
	v.now = c.now
	return v, c
}

// lasting is a token that is good for longer than any of these tests' clocks go.
func lasting(t *testing.T, i *issuertest.Issuer, subject string) string {
	t.Helper()
	return i.Token(t, map[string]any{"sub": subject, "exp": time.Now().Add(24 * time.Hour).Unix()})
}

func expect(t *testing.T, v *tokenVerifier, what, token string, code codes.Code, reason string) {
	t.Helper()
	if _, err := v.verify(t.Context(), token); status.Code(err) != code || apierror.ReasonOf(err) != reason {
		t.Errorf("%s: %v, want %v %s", what, err, code, reason)
	}
}

// A key that the issuer had withdrawn was good until a token with an unknown one came, which may be never.
func TestOIDC_AKeyThatWasWithdrawnIsGoodForMinutesOnly(t *testing.T) {
	t.Parallel()
	i := issuertest.Start(t)
	v, clock := newVerifier(t, OIDC{Issuer: i.URL})
	ada, grace := lasting(t, i, "ada"), lasting(t, i, "grace")
	expect(t, v, "before", ada, codes.OK, "")
	i.Rotate(t, "second")
	if err := v.fetch(t.Context()); err != nil { // as run does by itself
		t.Fatal(err)
	}
	expect(t, v, "another token of the key", grace, codes.Unauthenticated, "TOKEN_INVALID")
	clock.advance(tokenTTL + time.Second)
	expect(t, v, "a token that was verified before", ada, codes.Unauthenticated, "TOKEN_INVALID")
	expect(t, v, "a token of the new key", lasting(t, i, "ada"), codes.OK, "")
}

func TestOIDC_KeysAreFetchedInTheBackground(t *testing.T) {
	t.Parallel()
	i := issuertest.Start(t)
	v, _ := newVerifier(t, OIDC{Issuer: i.URL})
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- v.run(ctx) }()
	defer func() {
		stop()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	}()
	for deadline := time.Now().Add(20 * time.Second); v.currentKeys() == nil; <-time.After(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("the keys were not fetched although no token came")
		}
	}
	i.SetDown(true)
	expect(t, v, "the first token of all, while the issuer is away", lasting(t, i, "ada"), codes.OK, "")
}

// Orders are taken with nothing but the broker: so an issuer that is silent for a while must not matter.
func TestOIDC_KeysAreGoodForAnHourWhileTheIssuerIsSilent(t *testing.T) {
	t.Parallel()
	i := issuertest.Start(t)
	v, clock := newVerifier(t, OIDC{Issuer: i.URL})
	if err := v.fetch(t.Context()); err != nil {
		t.Fatal(err)
	}
	ada, grace := lasting(t, i, "ada"), lasting(t, i, "grace")
	i.SetDown(true)
	for range 4 {
		clock.advance(14 * time.Minute)
		if err := v.fetch(t.Context()); err == nil {
			t.Fatal("the issuer answers")
		}
		expect(t, v, fmt.Sprintf("silent for %v", time.Duration(clock.ahead.Load())), ada, codes.OK, "")
	}
	clock.advance(5 * time.Minute)
	expect(t, v, "silent for 61 min, a token that comes for the first time", grace, codes.Unavailable, "ISSUER_UNAVAILABLE")
	expect(t, v, "silent for 61 min, a token that was verified", ada, codes.Unavailable, "ISSUER_UNAVAILABLE")
	i.SetDown(false)
	expect(t, v, "the issuer is back", grace, codes.OK, "")
}

// observed is a meter, and what its gauge shows when it is asked.
type observed struct {
	noop.Meter
	noop.Float64Observer
	callbacks []metric.Float64Callback
	values    []float64
}

func (o *observed) Float64ObservableGauge(_ string, options ...metric.Float64ObservableGaugeOption) (metric.Float64ObservableGauge, error) {
	o.callbacks = metric.NewFloat64ObservableGaugeConfig(options...).Callbacks()
	return noop.Float64ObservableGauge{}, nil
}

func (o *observed) Observe(value float64, _ ...metric.ObserveOption) {
	o.values = append(o.values, value)
}

// The alert about the issuer had nothing to look at where a gateway had never had its keys, and refused every token.
func TestOIDC_TheMetricShowsHowLongThereHaveBeenNoKeysFromTheStart(t *testing.T) {
	t.Parallel()
	i := issuertest.Start(t)
	v, clock := newVerifier(t, OIDC{Issuer: i.URL})
	o := &observed{}
	if err := v.observe(o); err != nil {
		t.Fatal(err)
	}
	shows := func(when string, least, most time.Duration) {
		t.Helper()
		o.values = nil
		for _, callback := range o.callbacks {
			if err := callback(t.Context(), o); err != nil {
				t.Fatal(err)
			}
		}
		if len(o.values) != 1 || o.values[0] < least.Seconds() || o.values[0] > most.Seconds() {
			t.Errorf("%s the metric shows %v, want %v to %v", when, o.values, least, most)
		}
	}
	i.SetDown(true)
	clock.advance(40 * time.Minute)
	if err := v.fetch(t.Context()); err == nil {
		t.Fatal("the issuer answers")
	}
	shows("40 min after a start without keys", 40*time.Minute, 50*time.Minute)
	i.SetDown(false)
	if err := v.fetch(t.Context()); err != nil {
		t.Fatal(err)
	}
	clock.advance(time.Minute)
	shows("a minute after the keys came", time.Minute, 10*time.Minute)
}

// An answer that is not the keys, of a proxy in maintenance for example, must not take them away.
func TestOIDC_AnAnswerWithoutKeysIsSilence(t *testing.T) {
	t.Parallel()
	i := issuertest.Start(t)
	v, clock := newVerifier(t, OIDC{Issuer: i.URL, JWKSURL: i.URL + "/keys"})
	ada := lasting(t, i, "ada")
	expect(t, v, "before", ada, codes.OK, "")
	for _, answer := range []string{`{}`, `{"keys": []}`, `{"maintenance": true}`, `<html>`, `{"keys": [{"kty": "RSA"`, strings.Repeat(" ", maxDocument) + `{}`} {
		i.SetAnswer(answer)
		if err := v.fetch(t.Context()); err == nil {
			t.Errorf("%.30q was taken for keys", answer)
		}
		clock.advance(tokenTTL + time.Second)
		expect(t, v, fmt.Sprintf("after %.30q", answer), ada, codes.OK, "")
	}
}

// A burst of calls with a key that is new is one question to the issuer, and none of them is refused.
func TestOIDC_ManyTokensOfANewKeyAreOneQuestion(t *testing.T) {
	t.Parallel()
	i := issuertest.Start(t)
	v, _ := newVerifier(t, OIDC{Issuer: i.URL, JWKSURL: i.URL + "/keys"})
	expect(t, v, "before", lasting(t, i, "ada"), codes.OK, "")
	i.Rotate(t, "second")
	before := i.Questions()
	var calls sync.WaitGroup
	for n := range 50 {
		token := lasting(t, i, fmt.Sprint("customer ", n))
		calls.Go(func() { expect(t, v, "the new key", token, codes.OK, "") })
	}
	calls.Wait()
	if asked := i.Questions() - before; asked > fetchBurst {
		t.Errorf("the issuer was asked %d times", asked)
	}
	before = i.Questions()
	stranger := issuertest.Start(t)
	for n := range 50 {
		stranger.Rotate(t, fmt.Sprint("made up ", n))
		token := stranger.Token(t, map[string]any{"iss": i.URL})
		expect(t, v, "a key that was made up", token, codes.Unauthenticated, "TOKEN_INVALID")
	}
	if asked := i.Questions() - before; asked > 2*fetchBurst {
		t.Errorf("keys that were made up had the issuer asked %d times", asked)
	}
	stranger.Rotate(t, "second") // the name is known: nothing new can be learnt
	before = i.Questions()
	expect(t, v, "a forged signature", stranger.Token(t, map[string]any{"iss": i.URL}), codes.Unauthenticated, "TOKEN_INVALID")
	if i.Questions() != before {
		t.Error("a forged signature had the issuer asked")
	}
}

// Whoever could send us elsewhere for the keys would choose them: another host, or one that is reached in the clear.
func TestOIDC_RedirectsToOtherHostsAreNotFollowed(t *testing.T) {
	t.Parallel()
	i, mallory := issuertest.Start(t), issuertest.Start(t)
	var to atomic.Pointer[string]
	redirect := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/moved", "/.well-known/openid-configuration":
			http.Redirect(w, r, *to.Load(), http.StatusTemporaryRedirect)
		default:
			i.ServeHTTP(w, r)
		}
	})
	plain, secure := httptest.NewServer(redirect), httptest.NewTLSServer(redirect)
	t.Cleanup(plain.Close)
	t.Cleanup(secure.Close)
	_, port, _ := strings.Cut(strings.TrimPrefix(plain.URL, "http://"), ":")
	for name, test := range map[string]struct {
		cfg     OIDC
		to      string
		allowed bool
	}{
		"keys at the same host":                {OIDC{Issuer: i.URL, JWKSURL: plain.URL + "/moved"}, plain.URL + "/keys", true},
		"keys at the same host, in the clear":  {OIDC{Issuer: i.URL, JWKSURL: secure.URL + "/moved"}, plain.URL + "/keys", false},
		"keys at another port":                 {OIDC{Issuer: i.URL, JWKSURL: plain.URL + "/moved"}, mallory.URL + "/keys", false},
		"keys at another host":                 {OIDC{Issuer: i.URL, JWKSURL: plain.URL + "/moved"}, "http://localhost:" + port + "/keys", false},
		"keys at the same host, with TLS":      {OIDC{Issuer: i.URL, JWKSURL: plain.URL + "/moved"}, secure.URL + "/keys", true},
		"discovery at another host":            {OIDC{Issuer: plain.URL}, mallory.URL + "/.well-known/openid-configuration", false},
		"keys that are moved again and again":  {OIDC{Issuer: i.URL, JWKSURL: plain.URL + "/moved"}, plain.URL + "/moved", false},
		"keys at a file":                       {OIDC{Issuer: i.URL, JWKSURL: plain.URL + "/moved"}, "file:///etc/keys", false},
		"keys at a host that begins like ours": {OIDC{Issuer: i.URL, JWKSURL: plain.URL + "/moved"}, plain.URL + ".example.org/keys", false},
	} {
		to.Store(&test.to)
		v, _ := newVerifier(t, test.cfg)
		v.client.Transport = boundedTransport{secure.Client().Transport} // believes the test's certificate
		if err := v.fetch(t.Context()); (err == nil) != test.allowed {
			t.Errorf("%s: %v", name, err)
		}
		if !test.allowed && v.currentKeys() != nil {
			t.Errorf("%s: the keys are in use", name)
		}
	}
}

func TestOIDC_AnIssuerWithTLSCannotNameKeysWithout(t *testing.T) {
	t.Parallel()
	var issuer *httptest.Server
	i := issuertest.Start(t)
	issuer = httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		_ = json.NewEncoder(w).Encode(map[string]string{"issuer": issuer.URL, "jwks_uri": i.URL + "/keys"})
	}))
	t.Cleanup(issuer.Close)
	v, _ := newVerifier(t, OIDC{Issuer: issuer.URL})
	v.client.Transport = issuer.Client().Transport
	if err := v.fetch(t.Context()); err == nil || !strings.Contains(err.Error(), "not https") {
		t.Errorf("fetched with: %v", err)
	}
}

func TestOIDC_AStopDoesNotWaitForTheIssuer(t *testing.T) {
	t.Parallel()
	asked := make(chan struct{}, 1)
	silent := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		asked <- struct{}{}
		<-r.Context().Done()
	}))
	t.Cleanup(silent.Close)
	v, _ := newVerifier(t, OIDC{Issuer: silent.URL})
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- v.run(ctx) }()
	<-asked
	stop()
	select {
	case err := <-ended:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(fetchTimeout / 2):
		t.Error("it still waits")
	}
}

// handlerTransport answers requests with a handler, without a network between.
type handlerTransport struct{ http.Handler }

func (t handlerTransport) RoundTrip(r *http.Request) (*http.Response, error) {
	w := httptest.NewRecorder()
	t.ServeHTTP(w, r)
	return w.Result(), nil
}

func TestOIDC_KeysAreFetchedAgainAndAgain(t *testing.T) {
	t.Parallel()
	i := issuertest.Start(t)
	synctest.Test(t, func(t *testing.T) {
		v, _ := newVerifier(t, OIDC{Issuer: i.URL})
		v.client.Transport = handlerTransport{i}
		ctx, stop := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		go func() { ended <- v.run(ctx) }()
		synctest.Wait()
		ada := lasting(t, i, "ada")
		expect(t, v, "before", ada, codes.OK, "")
		i.Rotate(t, "second")
		<-time.After(refreshInterval + tokenTTL) // of the bubble
		expect(t, v, "the key was withdrawn, and no token of the new one has come", ada, codes.Unauthenticated, "TOKEN_INVALID")
		i.SetDown(true)
		before := i.Questions()
		<-time.After(keysTTL) // of the bubble
		if asked := i.Questions() - before; asked < int(keysTTL/retryInterval/2) || asked > 2*int(keysTTL/retryInterval) {
			t.Errorf("the issuer was asked %d times while it was silent for an hour", asked)
		}
		stop()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
}
