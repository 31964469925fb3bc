package ingress

import (
	"net/http/httptest"
	"testing"
)

func TestREST_APageSaysWhatItMayLoadAndNothingElseIsAllowed(t *testing.T) {
	t.Parallel()
	w := httptest.NewRecorder()
	setSecurityHeaders(w.Header(), false)
	AllowPage(w, "script-src 'self'", "connect-src 'self'")
	const want = "script-src 'self'; connect-src 'self'; default-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
	if got := w.Header().Get("Content-Security-Policy"); got != want {
		t.Errorf("Content-Security-Policy is %q\nwant %q", got, want)
	}
	if got := w.Header().Get("Cache-Control"); got != "no-cache" {
		t.Errorf("Cache-Control is %q", got)
	}
	if got := w.Header().Get("X-Content-Type-Options"); got != "nosniff" {
		t.Errorf("X-Content-Type-Options is %q", got)
	}
}
