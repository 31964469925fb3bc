package intake

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/binary"
	"hash"
	"strings"
	"sync"

	"github.com/google/uuid"
	"google.golang.org/grpc/metadata"

	eventsv1 "shop.example/gen/shop/events/v1"
	moneyv1 "shop.example/gen/shop/money/v1"
	"shop.example/platform/apierror"
)

// idempotencyKey is the metadata key, and the REST header, with which an order can be sent again safely.
const idempotencyKey = "idempotency-key"

// maxKey is the maximum length of an idempotency key, in bytes.
const maxKey = 255

// requestKey is an idempotency key and its scope: two callers may use the same key.
type requestKey struct{ scope, key string }

// Secret signs order ids, and derives ids and hashes from idempotency keys. They cannot be computed without the secret, so
// knowing a key does not help to find its order. It is safe for concurrent use.
type Secret struct{ hashes sync.Pool }

// NewSecret returns the secret with this text. It reuses HMACs, because creating one takes longer than using it.
func NewSecret(text string) *Secret {
	return &Secret{sync.Pool{New: func() any { return hmac.New(sha256.New, []byte(text)) }}}
}

// sum returns the HMAC-SHA256 of text.
func (s *Secret) sum(text []byte) []byte {
	mac := s.hashes.Get().(hash.Hash)
	defer s.hashes.Put(mac)
	mac.Reset()
	mac.Write(text)
	return mac.Sum(nil)
}

// newOrderID returns the id of an order without a key: a signed UUIDv7.
func (s *Secret) newOrderID() (uuid.UUID, error) {
	id, err := uuid.NewV7()
	if err != nil {
		return id, err
	}
	return s.sign(id), nil
}

// unsignedOrderID returns the id, before it is signed, of the order with this fingerprint that a caller places under a key:
// a UUIDv8. The same caller, key and order give the same id, anything else another one.
func (s *Secret) unsignedOrderID(k requestKey, fingerprint []byte) uuid.UUID {
	return uuidV8(s.mac("order", k.scope, k.key, string(fingerprint)))
}

// formerOrderID returns the id that the release before this one gave to every order with the key, whoever placed it.
func (s *Secret) formerOrderID(k requestKey) uuid.UUID {
	return uuidV8(s.sum([]byte(k.key)))
}

// keyHash returns a hash of the caller and the key, which does not depend on the order.
func (s *Secret) keyHash(k requestKey) []byte { return s.mac("key", k.scope, k.key) }

// signature is the length, in bytes, of the code at the end of an id by which a gateway recognizes ids of the shop.
const signature = 3

// sign puts the code at the end of an id.
func (s *Secret) sign(id uuid.UUID) uuid.UUID {
	const signed = len(id) - signature
	copy(id[signed:], s.sum(append([]byte(signedLabel), id[:signed]...)))
	return id
}

// signedLabel separates signatures from other uses of the secret: the inputs of mac begin with a length.
const signedLabel = "\x00signed order id"

// signed reports whether the shop gave this id, under this secret. One in 16 million made-up ids passes.
func (s *Secret) signed(id uuid.UUID) bool {
	want := s.sign(id)
	return hmac.Equal(want[:], id[:])
}

// mac returns the HMAC-SHA256 of the parts, each preceded by its length, so that no two lists of parts have the same input.
func (s *Secret) mac(parts ...string) []byte {
	text := make([]byte, 0, 256)
	for _, part := range parts {
		text = appendPart(text, part)
	}
	return s.sum(text)
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

// fingerprint returns the SHA-256 of what is ordered, and by whom: two orders have the same fingerprint only if they are
// the same order. It does not depend on protobuf's encoding, which may change: each field is written as its tag, the length
// of its value and the value; a field that is not set is left out. It is stored with the order: if the computation changed,
// an order that is sent again would be another order.
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

// keyOf reads the idempotency key from the metadata of a call.
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

// CheckKey returns an error, with the field's name, unless key is a valid idempotency key.
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
