package intake

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/binary"
	"strings"

	"github.com/google/uuid"
	"google.golang.org/grpc/metadata"

	eventsv1 "shop.example/gen/shop/events/v1"
	moneyv1 "shop.example/gen/shop/money/v1"
	"shop.example/platform/apierror"
)

// idempotencyKey is the metadata key, and the REST header, that makes it safe to send an order again.
const idempotencyKey = "idempotency-key"

// maxKey bounds an idempotency key.
const maxKey = 255

// requestKey is an idempotency key and its scope: two callers may use the same key.
type requestKey struct{ scope, key string }

// Secret derives ids and hashes from an order and its idempotency key. Without the secret they cannot be computed: to know a
// key does not help to find the order. It is safe for concurrent use.
type Secret []byte

// orderID is the id of the order with this fingerprint that a caller places under a key (UUIDv8). The same caller, key
// and order have the same id; anything else has another.
func (s Secret) orderID(k requestKey, fingerprint []byte) uuid.UUID {
	return uuidV8(s.mac("order", k.scope, k.key, string(fingerprint)))
}

// keyHash is a hash of the caller's key. It does not depend on the order.
func (s Secret) keyHash(k requestKey) []byte { return s.mac("key", k.scope, k.key) }

// formerOrderID is the id that the release before this one gave to every order with the key, whoever placed it.
func (s Secret) formerOrderID(k requestKey) uuid.UUID {
	mac := hmac.New(sha256.New, s)
	mac.Write([]byte(k.key))
	return uuidV8(mac.Sum(nil))
}

// mac is HMAC-SHA256 over the parts, each with its length before it: no two lists of parts are the same text.
func (s Secret) mac(parts ...string) []byte {
	mac := hmac.New(sha256.New, s)
	for _, part := range parts {
		mac.Write(appendPart(nil, part))
	}
	return mac.Sum(nil)
}

func uuidV8(sum []byte) (id uuid.UUID) {
	copy(id[:], sum)
	id[6] = id[6]&0x0f | 0x80 // version 8
	id[8] = id[8]&0x3f | 0x80 // the variant of RFC 9562
	return id
}

// The fields of a fingerprint.
const (
	tagName = iota + 1
	tagEmail
	tagLine
	tagProductID
	tagProductName
	tagQuantity
	tagPrice
)

// fingerprint is SHA-256 over what is ordered by whom: two orders have the same one only if they are the same order. It
// does not depend on how protobuf encodes a message, which may change: each field is written as its tag, the length of
// its value and the value, and a field that is not set is left out. It is kept with the order: to change it would make an
// order that is sent again another order.
func fingerprint(order *eventsv1.OrderPlaced) []byte {
	b := make([]byte, 0, 512)
	b = appendText(b, tagName, order.GetCustomerName())
	b = appendText(b, tagEmail, order.GetCustomerEmail())
	for _, line := range order.GetLines() {
		b = append(b, tagLine)
		b = appendText(b, tagProductName, line.GetProductName())
		if line.GetProductName() == "" { // with a name, the id is ignored
			b = appendNumber(b, tagProductID, int64(line.GetProductId()))
		}
		b = appendNumber(b, tagQuantity, int64(line.GetQuantity()))
		b = appendPrice(b, line.GetExpectedUnitPrice())
	}
	sum := sha256.Sum256(b)
	return sum[:]
}

func appendPrice(b []byte, price *moneyv1.Money) []byte {
	if price == nil {
		return b // no price is not the same as a price of 0
	}
	b = appendText(b, tagPrice, price.GetCurrencyCode())
	b = appendNumber(b, tagPrice, price.GetUnits())
	return appendNumber(b, tagPrice, int64(price.GetNanos()))
}

func appendText(b []byte, tag byte, text string) []byte {
	if text == "" {
		return b
	}
	return appendPart(append(b, tag), text)
}

func appendNumber(b []byte, tag byte, n int64) []byte {
	b = append(b, tag, 8)                              // the length of a number
	return binary.BigEndian.AppendUint64(b, uint64(n)) //nolint:gosec // the bits are what counts
}

// appendPart appends a part with its length before it.
func appendPart(b []byte, part string) []byte {
	return append(binary.AppendUvarint(b, uint64(len(part))), part...)
}

// keyOf reads the idempotency key of a call.
func keyOf(ctx context.Context) (key string, given bool, err error) {
	keys := metadata.ValueFromIncomingContext(ctx, idempotencyKey)
	switch {
	case len(keys) == 0:
		return "", false, nil
	case len(keys) > 1:
		return "", false, errInvalidKey
	}
	return keys[0], true, CheckKey(keys[0])
}

// CheckKey returns an error unless key can be an idempotency key.
func CheckKey(key string) error {
	unprintable := func(r rune) bool { return r < ' ' || r > '~' }
	if key == "" || len(key) > maxKey || strings.ContainsFunc(key, unprintable) {
		return errInvalidKey
	}
	return nil
}

var errInvalidKey = apierror.InvalidArgument(apierror.Violation{
	Field: "Idempotency-Key", Description: "must be given once, with 1 to 255 printable ASCII characters",
})
