package ingress

import (
	"net/http"
	"strings"
)

// The headers of a response that no browser may show, store or let another site read. Which pages of other sites may call is
// in cors.go. The slices are shared and never changed.
var (
	nosniff        = []string{"nosniff"}
	noReferrer     = []string{"no-referrer"}
	noContent      = []string{"default-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"}
	denyFrames     = []string{"DENY"}
	sameOrigin     = []string{"same-origin"}
	noStore        = []string{"no-store"}
	onlyTLSForYear = []string{"max-age=31536000"}
)

// setSecurityHeaders sets the security headers of an API response. Orders hold personal data, and the stock changes, so
// nothing may be stored. AllowPage loosens them for pages.
func setSecurityHeaders(header http.Header, overTLS bool) {
	header["X-Content-Type-Options"] = nosniff
	header["Referrer-Policy"] = noReferrer
	header["Content-Security-Policy"] = noContent
	header["X-Frame-Options"] = denyFrames
	header["Cross-Origin-Opener-Policy"] = sameOrigin
	header["Cross-Origin-Resource-Policy"] = sameOrigin
	header["Cache-Control"] = noStore
	if overTLS {
		header["Strict-Transport-Security"] = onlyTLSForYear
	}
}

// AllowPage sets the headers of a response that browsers may show as a page, which may load what the directives allow, for
// example "script-src 'self'". A browser may store it, but must revalidate it each time. Everything else stays forbidden.
func AllowPage(w http.ResponseWriter, directives ...string) {
	policy := append(directives[:len(directives):len(directives)], noContent[0])
	w.Header().Set("Content-Security-Policy", strings.Join(policy, "; "))
	w.Header().Set("Cache-Control", "no-cache")
}
