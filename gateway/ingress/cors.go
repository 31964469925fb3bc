package ingress

import (
	"fmt"
	"net/http"
	"strings"
	"time"

	"github.com/rs/cors"
)

// preflightTTL is how long a browser may cache the answer to a preflight request.
const preflightTTL = 10 * time.Minute

// crossOrigin enforces what pages of other sites may do. Pages of the listed origins may make every call, with a token of
// their own: the shop has no cookies. Others may change nothing, and browsers do not let them read responses.
type crossOrigin struct {
	protection http.CrossOriginProtection // by Sec-Fetch-Site and Origin
	cors       *cors.Cors                 // nil if no origin is listed
}

// allow adds origins. Call it before the first call is served.
func (c *crossOrigin) allow(origins []string) error {
	for _, origin := range origins {
		if strings.Contains(origin, "*") {
			return fmt.Errorf("CORS_ALLOWED_ORIGINS has %q: list each origin whose pages may call, https://shop.example.org for example", origin)
		}
		if err := c.protection.AddTrustedOrigin(origin); err != nil {
			return fmt.Errorf("CORS_ALLOWED_ORIGINS must be origins such as https://shop.example.org, separated by commas: %w", err)
		}
	}
	if len(origins) == 0 {
		return nil
	}
	c.cors = cors.New(cors.Options{
		AllowedOrigins: origins,
		AllowedMethods: []string{http.MethodGet, http.MethodHead, http.MethodPost, http.MethodPatch, http.MethodDelete},
		AllowedHeaders: []string{
			"Authorization", "Connect-Protocol-Version", "Connect-Timeout-Ms", "Content-Type", "Grpc-Timeout", "Idempotency-Key", "If-Match", "If-None-Match", "Last-Event-ID", "Prefer", "Traceparent", "Tracestate",
			"X-Grpc-Web", "X-User-Agent",
		},
		ExposedHeaders: []string{
			"Allow", "ETag", "Grpc-Message", "Grpc-Status", "Grpc-Status-Details-Bin", "Idempotent-Replayed", "Location", "Preference-Applied", "RateLimit", "RateLimit-Policy", "Retry-After", "WWW-Authenticate",
		},
		MaxAge: int(preflightTTL.Seconds()),
	})
	return nil
}

// serve sets the headers that tell a browser whether a page may read the response, and answers preflight requests. It
// reports whether it has answered.
func (c *crossOrigin) serve(w http.ResponseWriter, r *http.Request) bool {
	if c.cors == nil {
		return false
	}
	c.cors.HandlerFunc(w, r)
	return r.Method == http.MethodOptions && r.Header.Get("Access-Control-Request-Method") != ""
}
