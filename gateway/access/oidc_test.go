package access

import (
	"context"
	"errors"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"go.opentelemetry.io/otel/metric/noop"
	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"

	"shop.example/gateway/access/issuertest"
	"shop.example/gateway/inprocess"
	loggingv1 "shop.example/gen/shop/logging/v1"
	optionsv1 "shop.example/gen/shop/options/v1"
	"shop.example/platform/apierror"
)

func TestOIDC_AnIssuerThatDoesNotAnswerIsWaitedForWithinBounds(t *testing.T) {
	t.Parallel()
	answer := make(chan struct{})
	server := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		select {
		case <-answer:
		case <-r.Context().Done():
		}
	}))
	t.Cleanup(server.Close)
	t.Cleanup(func() { close(answer) })
	v, err := newTokenVerifier(OIDC{Issuer: server.URL, Audience: "shop"}, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	stranger := issuertest.Start(t)
	token := stranger.Token(t, map[string]any{"iss": server.URL})
	begin := time.Now()
	if _, err := v.verify(context.Background(), token); apierror.ReasonOf(err) != "ISSUER_UNAVAILABLE" {
		t.Errorf("verified with: %v", err)
	}
	if took := time.Since(begin); took > 2*fetchTimeout {
		t.Errorf("the issuer was waited for for %v", took)
	}
}

// The clocks of a gateway and of the issuer of its tokens never agree.
func TestOIDC_ClocksThatDifferByMinutesRefuseNoNewToken(t *testing.T) {
	t.Parallel()
	i := issuertest.Start(t)
	v, err := newTokenVerifier(OIDC{Issuer: i.URL, Audience: "shop", RolesClaim: "roles"}, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	issued := time.Now()
	claims := map[string]any{"iat": issued.Unix(), "nbf": issued.Unix(), "exp": issued.Add(10 * time.Minute).Unix()}
	for ahead, want := range map[time.Duration]string{
		-time.Hour: "TOKEN_INVALID", -4 * time.Minute: "", 0: "", 4 * time.Minute: "", 11 * time.Minute: "TOKEN_EXPIRED", time.Hour: "TOKEN_EXPIRED",
	} {
		claims["jti"] = ahead.String() // each token is verified: none is known from before
		v.now = func() time.Time { return time.Now().Add(ahead) }
		if _, err := v.verify(t.Context(), i.Token(t, claims)); apierror.ReasonOf(err) != want {
			t.Errorf("with a clock that is %v ahead of the issuer's: %v, want %q", ahead, err, want)
		}
	}
}

// openStream is the gRPC side of a stream whose client sends a request and takes all messages.
type openStream struct {
	grpc.ServerStream
	ctx     context.Context
	request any
}

func (s openStream) Context() context.Context { return s.ctx }
func (s openStream) RecvMsg(m any) error      { return inprocess.Assign(m, s.request) }
func (openStream) SendMsg(any) error          { return nil }

func TestOIDC_AStreamEndsWithItsToken(t *testing.T) {
	t.Parallel()
	i := issuertest.Start(t)
	log := slog.New(slog.DiscardHandler)
	a := New(testOperators, apierror.NewInterceptor(log), nil)
	if _, err := a.ConfigureOIDC(OIDC{Issuer: i.URL, Audience: "shop", RolesClaim: "roles"}, log, noop.Meter{}); err != nil {
		t.Fatal(err)
	}
	token := i.Token(t, map[string]any{"exp": time.Now().Add(2 * time.Second).Unix()})
	ctx := metadata.NewIncomingContext(t.Context(), metadata.Pairs("authorization", "Bearer "+token))
	request := &loggingv1.StreamEventsRequest{}
	s := &guardedStream{
		ServerStream: openStream{ctx: ctx, request: request}, access: a, rule: optionsv1.Access_ACCESS_OPERATOR, role: operator, given: authorizationIn(ctx),
	}
	if err := errors.Join(s.RecvMsg(&loggingv1.StreamEventsRequest{}), s.SendMsg(&loggingv1.StreamEventsResponse{})); err != nil {
		t.Fatalf("a stream with a valid token: %v", err)
	}
	ended, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		switch reason := apierror.ReasonOf(s.SendMsg(&loggingv1.StreamEventsResponse{})); reason {
		case "TOKEN_EXPIRED":
			return
		case "":
		default:
			t.Fatalf("the stream ended with %s", reason)
		}
		select {
		case <-tick.C:
		case <-ended.Done():
			t.Fatal("the stream goes on although its token has expired")
		}
	}
}

func TestOIDC_SettingsThatMeanNothingAreRefused(t *testing.T) {
	t.Parallel()
	for want, cfg := range map[string]OIDC{
		"OIDC_AUDIENCE ":             {Issuer: "https://login.example.org"},
		"OIDC_ISSUER must be a URL":  {Issuer: "login.example.org", Audience: "shop"},
		"OIDC_JWKS_URL must be a":    {Issuer: "https://login.example.org", Audience: "shop", JWKSURL: "/keys"},
		"OIDC_ISSUER is not set":     {RequireCustomer: true},
		"OIDC_ISSUER is not set, bu": {Audience: "shop"},
	} {
		if _, err := New(nil, nil, nil).ConfigureOIDC(cfg, slog.New(slog.DiscardHandler), noop.Meter{}); err == nil || !strings.HasPrefix(err.Error(), want) {
			t.Errorf("want an error that begins with %q, got: %v", want, err)
		}
	}
}
