package access

import (
	"net/http"
	"strings"
	"testing"
)

const operatorToken = "an operator's token"

const (
	adasToken  = "a-token-that-ada-has"
	adasNext   = "a-token-that-ada-gets"
	bobsToken  = "a-token-that-bob-has"
	shortToken = "fifteen-letters"
)

func TestOperators_EachHasANameAndMayHaveSeveralTokens(t *testing.T) {
	t.Parallel()
	o, err := ParseOperators(operatorToken, []string{"ada:" + adasToken, " bob@example.org:" + bobsToken, "ada:" + adasNext})
	if err != nil {
		t.Fatal(err)
	}
	for token, want := range map[string]string{
		operatorToken: "operator token", adasToken: "ada", adasNext: "ada", bobsToken: "bob@example.org",
		"": "", "ada": "", "ada:" + adasToken: "", adasToken + "x": "", strings.ToUpper(adasToken): "",
	} {
		if name, ok := o.find(token); name != want || ok != (want != "") {
			t.Errorf("%q is the token of %q, %v, want %q", token, name, ok, want)
		}
	}
	if name, ok := Operators(nil).find(""); ok {
		t.Errorf("where nobody is an operator, nothing makes one: %q", name)
	}
}

func TestOperators_TokensThatCanBeGuessedOrNamesThatSayNothingAreRefusedAtStart(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		token string
		named []string
		want  string
	}{
		{shortToken, nil, "SHOP_OPERATOR_TOKEN is too short"},
		{"", []string{"ada:" + shortToken}, "the token of ada is too short: it needs at least 16 characters"},
		{"", []string{"ada:"}, "the token of ada is too short"},
		{shortToken + " \n", nil, "SHOP_OPERATOR_TOKEN is too short"},
		{adasToken + "\u00e9", nil, "SHOP_OPERATOR_TOKEN has characters that cannot be sent"},
		{adasToken + "\n" + bobsToken, nil, "SHOP_OPERATOR_TOKEN has characters that cannot be sent"},
		{"", []string{"ada:" + adasToken + "\u00e9"}, "SHOP_OPERATOR_TOKENS: the token of ada has characters that cannot be sent"},
		{"", []string{adasToken}, "entry 1 has no name: write name:token"},
		{"", []string{"ada:" + adasToken, ""}, "entry 2 has no name"},
		{"", []string{":" + adasToken}, "the name of entry 1 must be"},
		{"", []string{"ad\na:" + adasToken}, "the name of entry 1 must be"},
		{"", []string{"ada:" + adasToken, "bob:" + adasToken}, "bob and ada have the same token"},
		{adasToken, []string{"ada:" + adasToken}, "ada and operator token have the same token"},
	} {
		_, err := ParseOperators(c.token, c.named)
		if err == nil || !strings.Contains(err.Error(), c.want) || strings.Contains(err.Error(), "\n") {
			t.Errorf("%q, %q: got %v, want %q in it", c.token, c.named, err, c.want)
		}
		if err != nil && (strings.Contains(err.Error(), adasToken) || strings.Contains(err.Error(), shortToken)) {
			t.Errorf("the error tells a token: %v", err)
		}
	}
}

// Such tokens were accepted at the start and then from nobody: clients cannot send the end of a line, and proxies take spaces away.
func TestOperators_WhiteSpaceAroundATokenIsNoPartOfIt(t *testing.T) {
	t.Parallel()
	o, err := ParseOperators(operatorToken+"\n", []string{"ada: " + adasToken, "bob:" + bobsToken + "\r\n"})
	if err != nil {
		t.Fatal(err)
	}
	for token, want := range map[string]string{operatorToken: unnamedOperator, adasToken: "ada", bobsToken: "bob"} {
		if name, _ := o.find(token); name != want {
			t.Errorf("%q is the token of %q, want %q", token, name, want)
		}
	}
}

// Each operator has a share of calls of their own.
func TestOperators_AreToldApartByTheLimitOfCalls(t *testing.T) {
	t.Parallel()
	a := New(Operators{}.with("ada", adasToken).with("bob", bobsToken), nil, nil)
	of := func(token string) string { return a.CachedSubject(http.Header{"Authorization": {"Bearer " + token}}) }
	if ada, bob := of(adasToken), of(bobsToken); ada == "" || bob == "" || ada == bob {
		t.Errorf("ada is %q, bob is %q", ada, bob)
	}
	if nobody := of("a-token-of-nobody"); nobody != "" {
		t.Errorf("a token of nobody is %q's", nobody)
	}
}
