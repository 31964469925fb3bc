package server

import (
	"io"
	"net/http"
	"strings"
	"testing"
)

func TestOperators_ATokenWithANameIsOneForEveryCall(t *testing.T) {
	t.Parallel()
	g := startGateway(t, Config{OperatorTokens: []string{"ada:a-token-that-ada-has", "bob:a-token-that-bob-has"}})
	for token, want := range map[string]int{
		operatorToken: http.StatusOK, "a-token-that-ada-has": http.StatusOK, "a-token-that-bob-has": http.StatusOK, "ada:a-token-that-ada-has": http.StatusUnauthorized,
	} {
		if got := send(t, http.MethodGet, "http://"+g.HTTPAddr()+"/v1/status", "", "Authorization: Bearer "+token); got.status != want {
			t.Errorf("%q: %d %s, want %d", token, got.status, got.body, want)
		}
	}
}

func TestOperators_ATokenThatCanBeGuessedIsRefusedAtStart(t *testing.T) {
	t.Parallel()
	for _, cfg := range []Config{{OperatorToken: "fifteen-letters"}, {OperatorTokens: []string{"ada:fifteen-letters"}}} {
		cfg.Currency = "USD"
		if _, err := New(t.Context(), cfg, newTelemetry(t, io.Discard)); err == nil || !strings.Contains(err.Error(), "is too short") {
			t.Errorf("%q, %q: %v", cfg.OperatorToken, cfg.OperatorTokens, err)
		}
	}
}
