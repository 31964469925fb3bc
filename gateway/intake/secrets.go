package intake

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
)

// minSecret is the minimum length of SHOP_ID_SECRET, in bytes.
const minSecret = 16

// ParseSecrets returns the secrets in SHOP_ID_SECRET and SHOP_ID_SECRET_PREVIOUS ("" if one is not set), the current one
// first. If none is set it makes a random one, and logs a warning. It fails if one is too short.
func ParseSecrets(ctx context.Context, current, previous string, log *slog.Logger) ([]*Secret, error) {
	if current == "" {
		if previous != "" {
			return nil, errors.New("SHOP_ID_SECRET_PREVIOUS is set, but SHOP_ID_SECRET is not: set it to the secret that is to be used")
		}
		log.WarnContext(ctx, "no secret for order ids is set: idempotency keys, and ids of orders that wait to be decided, are good until the next restart, and on this gateway alone (set SHOP_ID_SECRET)")
		return []*Secret{NewSecret(rand.Text())}, nil
	}
	var secrets []*Secret
	for _, given := range []struct{ variable, text string }{{"SHOP_ID_SECRET", current}, {"SHOP_ID_SECRET_PREVIOUS", previous}} {
		switch {
		case len(given.text) >= minSecret:
			secrets = append(secrets, NewSecret(given.text))
		case given.text != "":
			return nil, fmt.Errorf("%s is too short: it needs at least %d bytes", given.variable, minSecret)
		}
	}
	return secrets, nil
}
