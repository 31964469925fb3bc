package ingress

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"net/netip"
	"strings"
	"time"

	lru "github.com/hashicorp/golang-lru/v2"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/metric"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"shop.example/platform/apierror"
)

// failedRate limits the failed logins from one address, whatever RATE_LIMIT says, so that tokens cannot be guessed.
var failedRate = RateLimit{PerSecond: 1, Burst: 20}

// logins limits how often one address may send invalid tokens. After too many, valid tokens from that address are refused
// too: otherwise guessing would go on. Tokens that were accepted from the same address before are excepted, so that a stranger
// behind the same proxy cannot lock out who has them. It is safe for concurrent use.
type logins struct {
	failures *rateLimiter // a bucket an address
	accepted *lru.Cache[acceptedToken, struct{}]
	failed   metric.Int64Counter
	log      *slog.Logger
}

// acceptedToken is a token that was accepted from an address. It is not kept itself.
type acceptedToken struct {
	hash [sha256.Size]byte
	at   netip.Addr
}

// failedReasons are the reasons for refusing a token, of this package and of package access.
var failedReasons = []string{
	"CUSTOMER_TOKEN_REQUIRED", "OPERATOR_TOKEN_INVALID", "OPERATOR_TOKEN_REQUIRED", "ROLE_REQUIRED", "TOKEN_EXPIRED", "TOKEN_INVALID", "TOO_MANY_FAILED_LOGINS",
}

func newLogins(meter metric.Meter, log *slog.Logger) (*logins, error) {
	failures, err := newRateLimiter("failed-logins", failedRate, meter)
	if err != nil {
		return nil, err
	}
	accepted, err := lru.New[acceptedToken, struct{}](maxClients)
	if err != nil {
		return nil, fmt.Errorf("accepted tokens: %w", err)
	}
	failed, err := meter.Int64Counter("gateway.logins.failed", metric.WithDescription("Calls whose token is not valid, or does not give the role that they need."))
	if err != nil {
		return nil, fmt.Errorf("metrics of logins: %w", err)
	}
	for _, reason := range failedReasons {
		failed.Add(context.Background(), 0, metric.WithAttributes(attribute.String("reason", reason)))
	}
	return &logins{failures: failures, accepted: accepted, failed: failed, log: log}, nil
}

// login is a call with a token.
type login struct {
	*logins
	token acceptedToken // if it is accepted
	// known says that the token was accepted before, or is known to be valid without a login.
	known bool
}

// of returns the login of a call from an address. given are the values of the header Authorization; valid says that they are
// known to be a valid token.
func (l *logins) of(given []string, at netip.Addr, valid bool) *login {
	token := acceptedToken{sha256.Sum256([]byte(strings.Join(given, ","))), at}
	return &login{logins: l, token: token, known: valid || l.accepted.Contains(token)}
}

// check returns an error if tokens from this address are refused at present. A call is checked when it comes in, and again
// before its token is verified: otherwise many calls at once, each with a request that arrives slowly, would all pass.
func (l *login) check(ctx context.Context) error {
	if l.accepted.Contains(l.token) {
		return nil
	}
	if bucket, any := l.failures.buckets.Get(Client{addr: l.token.at}); any {
		if missing := 1 - bucket.TokensAt(time.Now()); missing > 0 {
			l.failed.Add(ctx, 1, metric.WithAttributes(attribute.String("reason", "TOO_MANY_FAILED_LOGINS")))
			wait := time.Duration(math.Ceil(missing/l.failures.PerSecond*1000)) * time.Millisecond
			return apierror.New(codes.ResourceExhausted, "TOO_MANY_FAILED_LOGINS", "too many tokens from this address were not valid").WithRetryAfter(wait)
		}
	}
	return nil
}

type loginKey struct{}

func withLogin(ctx context.Context, l *login) context.Context {
	return context.WithValue(ctx, loginKey{}, l)
}

// KnownCaller reports whether the call of ctx has a token that was accepted from its address before, or that is known to be
// valid. Anybody can send a header; who is no known caller may be a stranger.
func KnownCaller(ctx context.Context) bool {
	l, ok := ctx.Value(loginKey{}).(*login)
	return ok && l.known
}

// Login is an access.Login. It limits, counts and logs failed logins from the address that the call of ctx comes from.
func Login(ctx context.Context, check func() error) error {
	l, ok := ctx.Value(loginKey{}).(*login)
	if !ok {
		return check()
	}
	if err := l.check(ctx); err != nil {
		return err
	}
	err := check()
	if err != nil {
		l.fail(ctx, err)
		return err
	}
	l.accepted.Add(l.token, struct{}{})
	return nil
}

// fail counts and logs a refused token. It does not log the token, and for each address writes no more lines than
// failedRate allows failures.
func (l *login) fail(ctx context.Context, err error) {
	var refusal *apierror.Error
	if code := status.Code(err); !errors.As(err, &refusal) || code != codes.Unauthenticated && code != codes.PermissionDenied {
		return // the issuer of tokens may be unavailable, which is not the client's fault
	}
	reason := refusal.Reason()
	l.failed.Add(ctx, 1, metric.WithAttributes(attribute.String("reason", reason)))
	if l.failures.bucket(Client{addr: l.token.at}).Allow() {
		method, _ := grpc.Method(ctx)
		l.log.WarnContext(ctx, "login failed", "reason", reason, "address", l.token.at.String(), "method", method)
	}
}
