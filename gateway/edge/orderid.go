package edge

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"strings"

	"github.com/google/uuid"
	"google.golang.org/grpc/metadata"

	"shop.example/platform/apierror"
)

// idempotencyKey is the metadata key, and the REST header, with which a client may send an order twice.
const idempotencyKey = "idempotency-key"

// longestKey bounds an idempotency key.
const longestKey = 255

// orderIDs gives orders their ids. It is safe for concurrent use.
type orderIDs struct {
	secret []byte
}

// next is the id of the order that a call places, and whether it comes from an idempotency key: a new one that cannot be guessed (UUIDv7: 62 bits are random),
// or where the call has an idempotency key the one that belongs to the key (UUIDv8). It cannot be computed without the
// secret: who knows the key does not know the order.
func (o orderIDs) next(ctx context.Context) (id uuid.UUID, keyed bool, err error) {
	key, keyed, err := keyOf(ctx)
	if err != nil {
		return uuid.UUID{}, false, err
	}
	if !keyed {
		id, err = uuid.NewV7()
		return id, false, err
	}
	mac := hmac.New(sha256.New, o.secret)
	mac.Write([]byte(key))
	copy(id[:], mac.Sum(nil))
	id[6] = id[6]&0x0f | 0x80 // version 8
	id[8] = id[8]&0x3f | 0x80 // the variant of RFC 9562
	return id, true, nil
}

// keyOf reads the idempotency key of a call.
func keyOf(ctx context.Context) (key string, given bool, err error) {
	keys := metadata.ValueFromIncomingContext(ctx, idempotencyKey)
	switch {
	case len(keys) == 0:
		return "", false, nil
	case len(keys) > 1 || !validKey(keys[0]):
		return "", false, invalidKey
	}
	return keys[0], true, nil
}

func validKey(key string) bool {
	unprintable := func(r rune) bool { return r < ' ' || r > '~' }
	return 0 < len(key) && len(key) <= longestKey && !strings.ContainsFunc(key, unprintable)
}

var invalidKey = apierror.InvalidArgument(apierror.Violation{
	Field: "Idempotency-Key", Description: "must be given once, with 1 to 255 printable ASCII characters",
})
