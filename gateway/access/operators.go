package access

import (
	"crypto/sha256"
	"crypto/subtle"
	"errors"
	"fmt"
	"regexp"
	"strings"
)

const (
	// minToken is the minimum length of an operator token, in characters: a shorter one can be guessed.
	minToken = 16
	// unnamedOperator is the name under which the sender of SHOP_OPERATOR_TOKEN is recorded.
	unnamedOperator = "operator token"
)

// operatorName matches a valid name of an operator: it is written to logs and records.
var operatorName = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._@-]{0,63}$`)

// Operators are the tokens of operators, with the operators' names. A name may have several tokens, so that one can replace
// another.
type Operators []namedToken

type namedToken struct {
	name string
	sum  [sha256.Size]byte // of the token: comparing hashes tells nothing about the token's length
}

// ParseOperators parses SHOP_OPERATOR_TOKEN, "" if it is not set, and the entries name:token of SHOP_OPERATOR_TOKENS. Its
// errors do not contain tokens. White space around a token, such as the end of the line in a secret's file, is no part of it.
func ParseOperators(token string, named []string) (Operators, error) {
	var o Operators
	if token = strings.TrimSpace(token); token != "" {
		if len(token) < minToken {
			return nil, fmt.Errorf("SHOP_OPERATOR_TOKEN is too short: it needs at least %d characters", minToken)
		}
		if !isPrintable(token) {
			return nil, errors.New("SHOP_OPERATOR_TOKEN " + unsendable)
		}
		o = o.with(unnamedOperator, token)
	}
	for i, entry := range named {
		name, token, ok := strings.Cut(strings.TrimSpace(entry), ":")
		token = strings.TrimSpace(token)
		switch {
		case !ok:
			return nil, fmt.Errorf("SHOP_OPERATOR_TOKENS: entry %d has no name: write name:token, with commas between entries", i+1)
		case !operatorName.MatchString(name):
			return nil, fmt.Errorf("SHOP_OPERATOR_TOKENS: the name of entry %d must be 1 to 64 letters, digits, dots, dashes, underscores or @", i+1)
		case len(token) < minToken:
			return nil, fmt.Errorf("SHOP_OPERATOR_TOKENS: the token of %s is too short: it needs at least %d characters", name, minToken)
		case !isPrintable(token):
			return nil, fmt.Errorf("SHOP_OPERATOR_TOKENS: the token of %s %s", name, unsendable)
		}
		if other, known := o.find(token); known {
			return nil, fmt.Errorf("SHOP_OPERATOR_TOKENS: %s and %s have the same token: give each a token of their own", name, other)
		}
		o = o.with(name, token)
	}
	return o, nil
}

// unsendable says what is wrong with a token that no client could send in a header: nobody would be that operator.
const unsendable = "has characters that cannot be sent: use letters, digits and punctuation of ASCII"

func isPrintable(token string) bool {
	return !strings.ContainsFunc(token, func(r rune) bool { return r < ' ' || r > '~' })
}

func (o Operators) with(name, token string) Operators {
	return append(o, namedToken{name, sha256.Sum256([]byte(token))})
}

// find returns the name of the operator with a token. It takes the same time for every token, so that it reveals nothing.
func (o Operators) find(token string) (name string, ok bool) {
	sum := sha256.Sum256([]byte(token))
	for _, t := range o {
		if subtle.ConstantTimeCompare(sum[:], t.sum[:]) == 1 {
			name, ok = t.name, true
		}
	}
	return name, ok
}
