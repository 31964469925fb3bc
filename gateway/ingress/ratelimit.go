package ingress

import (
	"context"
	"errors"
	"fmt"
	"math"
	"net/http"
	"strconv"
	"time"

	lru "github.com/hashicorp/golang-lru/v2"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/metric"
	"golang.org/x/time/rate"
	"google.golang.org/grpc/codes"

	"shop.example/platform/apierror"
)

// maxClients is how many clients have a bucket at a time; they take some 10 MB. A new client replaces the one that has not
// called for longest, which begins with a full bucket when it comes back. Its old one would be full again by then, unless
// so many clients call at once that their number is the problem.
const maxClients = 1 << 15

// RateLimit limits how often one client may call one gateway. There is no limit by default, because on a developer's
// machine all calls, also those of a load test, come from one address.
type RateLimit struct {
	// PerSecond is how many calls a second a client may make, REST and gRPC together; 0 for no limit.
	PerSecond float64 `env:"RATE_LIMIT" envDefault:"0"`
	// Burst is how many calls it may make at once; if it is 0, as many as in two seconds.
	Burst int `env:"RATE_LIMIT_BURST" envDefault:"0"`
	// TrustedProxies is how many proxies in front of the gateway append to X-Forwarded-For. With 0 the header is ignored,
	// because any client can send it.
	TrustedProxies int `env:"TRUSTED_PROXIES" envDefault:"0"`
}

// PathLimits are additional limits for calls to certain paths. All are added before the first call.
type PathLimits struct {
	meter  metric.Meter
	byPath map[string]*rateLimiter
}

// NewPathLimits returns an empty set of limits.
func NewPathLimits(meter metric.Meter) *PathLimits {
	return &PathLimits{meter: meter, byPath: map[string]*rateLimiter{}}
}

// Add limits the calls that one client makes to these paths, all together. The path of a gRPC call is its full method. name
// identifies the limit in response headers. It fails if cfg is invalid.
func (p *PathLimits) Add(name string, cfg RateLimit, paths ...string) error {
	l, err := newRateLimiter(name, cfg, p.meter)
	for _, path := range paths {
		p.byPath[path] = l
	}
	return err
}

// rateLimiter gives each client a token bucket. It is safe for concurrent use.
type rateLimiter struct {
	RateLimit
	name    string // in quotes
	policy  string // what the limit is, for clients
	buckets *lru.Cache[Client, *rate.Limiter]
	refused metric.Int64Counter
}

// newRateLimiter returns nil if cfg sets no limit.
func newRateLimiter(name string, cfg RateLimit, meter metric.Meter) (*rateLimiter, error) {
	switch {
	case cfg.PerSecond < 0 || math.IsNaN(cfg.PerSecond):
		return nil, errors.New("RATE_LIMIT must be 0 (no limit) or more calls a second")
	case cfg.Burst < 0:
		return nil, errors.New("RATE_LIMIT_BURST must be 0 (two seconds' worth) or more calls")
	case cfg.TrustedProxies < 0:
		return nil, errors.New("TRUSTED_PROXIES must be 0 (none) or more proxies")
	case cfg.Burst == 0 && cfg.PerSecond > 0:
		cfg.Burst = int(min(math.Ceil(2*cfg.PerSecond), math.MaxInt32))
	}
	refused, err := meter.Int64Counter("gateway.rate_limited", metric.WithDescription("Calls refused because their client makes too many."))
	if err != nil {
		return nil, fmt.Errorf("metrics of the rate limit: %w", err)
	}
	refused.Add(context.Background(), 0, overREST)
	refused.Add(context.Background(), 0, overGRPC)
	if cfg.PerSecond == 0 {
		return nil, nil
	}
	buckets, err := lru.New[Client, *rate.Limiter](maxClients)
	if err != nil {
		return nil, fmt.Errorf("rate limit: %w", err)
	}
	name = strconv.Quote(name)
	policy := fmt.Sprintf("%s;q=%d;w=%.0f", name, cfg.Burst, math.Ceil(float64(cfg.Burst)/cfg.PerSecond))
	return &rateLimiter{RateLimit: cfg, name: name, policy: policy, buckets: buckets, refused: refused}, nil
}

var (
	overREST = metric.WithAttributeSet(attribute.NewSet(attribute.String("api", "rest")))
	overGRPC = metric.WithAttributeSet(attribute.NewSet(attribute.String("api", "grpc")))
)

// allow returns an error if the client has called too often. It sets the headers that tell how much of the limit is left,
// as draft-ietf-httpapi-ratelimit-headers-10 defines them: r calls within t seconds, until the bucket is full or has one
// call more.
func (l *rateLimiter) allow(header http.Header, r *http.Request, from Client) error {
	now := time.Now()
	bucket := l.bucket(from)
	allowed := bucket.AllowN(now, 1)
	tokens := max(bucket.TokensAt(now), 0)
	wait := (float64(l.Burst) - tokens) / l.PerSecond
	if !allowed {
		wait = max(1-tokens, 0) / l.PerSecond
		tokens = 0
	}
	header.Add("RateLimit-Policy", l.policy)
	header.Add("RateLimit", fmt.Sprintf("%s;r=%d;t=%.0f", l.name, int64(tokens), math.Ceil(wait)))
	if allowed {
		return nil
	}
	api := overREST
	if isGRPC(r) {
		api = overGRPC
	}
	l.refused.Add(r.Context(), 1, api)
	after := time.Duration(math.Ceil(wait*1000)) * time.Millisecond
	return apierror.New(codes.ResourceExhausted, "RATE_LIMITED", "too many calls: one client may make %g a second", l.PerSecond).
		WithRetryAfter(max(after, time.Millisecond))
}

func (l *rateLimiter) bucket(from Client) *rate.Limiter {
	if bucket, known := l.buckets.Get(from); known {
		return bucket
	}
	bucket := rate.NewLimiter(rate.Limit(l.PerSecond), l.Burst)
	if other, known, _ := l.buckets.PeekOrAdd(from, bucket); known { // another call of the same client was first
		return other
	}
	return bucket
}
