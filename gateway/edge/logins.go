package edge

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"net/netip"
	"time"

	lru "github.com/hashicorp/golang-lru/v2"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/metric"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"shop.example/platform/apierror"
)

// failedRate bounds the failed logins from an address, whatever RATE_LIMIT says: tokens cannot be tried in numbers.
var failedRate = RateLimit{PerSecond: 1, Burst: 20}

// logins watches over calls that send a token. Who has sent too many that are not valid is refused, also with one that
// is: else it could be found by trying. An operator or customer who has got in from the same address before is not: a
// stranger behind the same proxy locks nobody out. It is safe for concurrent use.
type logins struct {
	failures *rateLimiter // a bucket an address
	known    *lru.Cache[caller, struct{}]
	failed   metric.Int64Counter
	log      *slog.Logger
}

func newLogins(meter metric.Meter, log *slog.Logger) (*logins, error) {
	failures, err := newRateLimiter(failedRate, meter)
	if err != nil {
		return nil, err
	}
	known, err := lru.New[caller, struct{}](mostClients)
	if err != nil {
		return nil, fmt.Errorf("known clients: %w", err)
	}
	failed, err := meter.Int64Counter("gateway.logins.failed", metric.WithDescription("Calls whose token is not valid, or does not give the role that they need."))
	if err != nil {
		return nil, fmt.Errorf("metrics of logins: %w", err)
	}
	return &logins{failures: failures, known: known, failed: failed, log: log}, nil
}

// check returns an error if no token is looked at from this address for now. subject is whose the token is, if that was
// seen at a glance. A call is checked when it comes in, and again when its token is looked at: many that come in together,
// each with a request that is slow to arrive, would all get by the first check.
func (l *logins) check(ctx context.Context, subject string, at netip.Addr) error {
	client := caller{subject: subject, addr: at}
	if subject != "" && l.known.Contains(client) {
		return nil
	}
	if bucket, any := l.failures.buckets.Get(caller{addr: at}); any {
		if missing := 1 - bucket.TokensAt(time.Now()); missing > 0 {
			l.failed.Add(ctx, 1, metric.WithAttributes(attribute.String("reason", "TOO_MANY_FAILED_LOGINS")))
			wait := time.Duration(math.Ceil(missing/l.failures.PerSecond*1000)) * time.Millisecond
			return apierror.New(codes.ResourceExhausted, "TOO_MANY_FAILED_LOGINS", "too many tokens from this address were not valid").WithRetryAfter(wait)
		}
	}
	return nil
}

// login is a call that sends a token.
type login struct {
	*logins
	subject string // whose the token is, if that was seen at a glance
	at      netip.Addr
}

type loginKey struct{}

func withLogin(ctx context.Context, l *login) context.Context {
	return context.WithValue(ctx, loginKey{}, l)
}

// loginIn returns the login that ctx is of, nil if nobody watches.
func loginIn(ctx context.Context) *login {
	l, _ := ctx.Value(loginKey{}).(*login)
	return l
}

// allowed returns an error if the token of the call is not looked at.
func (l *login) allowed(ctx context.Context) error {
	if l == nil {
		return nil
	}
	return l.check(ctx, l.subject, l.at)
}

// succeeded keeps in mind who has got in.
func (l *login) succeeded() {
	if l != nil && l.subject != "" {
		l.known.Add(caller{subject: l.subject, addr: l.at}, struct{}{})
	}
}

// loginFailed counts and logs that the call which ctx is of was refused because of its token, without the token. As many
// are logged as an address may have fail.
func loginFailed(ctx context.Context, err error) {
	l := loginIn(ctx)
	var refusal *apierror.Error
	if code := status.Code(err); l == nil || !errors.As(err, &refusal) || code != codes.Unauthenticated && code != codes.PermissionDenied {
		return // the issuer of tokens may be away: that is nobody's failure here
	}
	reason := refusal.Reason()
	l.failed.Add(ctx, 1, metric.WithAttributes(attribute.String("reason", reason)))
	if l.failures.bucket(caller{addr: l.at}).Allow() {
		method, _ := grpc.Method(ctx)
		l.log.WarnContext(ctx, "login failed", "reason", reason, "address", l.at.String(), "method", method)
	}
}
