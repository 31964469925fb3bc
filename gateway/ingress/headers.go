package ingress

import (
	"net/http"
	"strings"
)

// The headers of an answer that no browser is to show, keep or let another site read. Calls from other sites' pages
// (CORS) are not allowed: no answer has an Access-Control header. The slices are shared and never changed.
var (
	nosniff        = []string{"nosniff"}
	noReferrer     = []string{"no-referrer"}
	noContent      = []string{"default-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"}
	denyFrames     = []string{"DENY"}
	sameOrigin     = []string{"same-origin"}
	noStore        = []string{"no-store"}
	onlyTLSForYear = []string{"max-age=31536000"}
)

// setSecurityHeaders sets the headers of an API answer. Orders hold personal data, and what is in stock changes: nothing
// may be stored. A page that is for browsers says so with allowPage.
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

// allowPage lets a browser show an answer with what the policy's directives allow it to load, "script-src 'self'" for
// example, and keep it as long as it asks each time whether it is still good. Whatever is not named stays forbidden.
func AllowPage(w http.ResponseWriter, directives ...string) {
	policy := append(directives[:len(directives):len(directives)], noContent[0])
	w.Header().Set("Content-Security-Policy", strings.Join(policy, "; "))
	w.Header().Set("Cache-Control", "no-cache")
}
