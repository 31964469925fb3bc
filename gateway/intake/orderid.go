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

// idempotencyKey is the metadata key, and the REST header, that makes it safe to send an order again.
const idempotencyKey = "idempotency-key"

// maxKey bounds an idempotency key.
const maxKey = 255

// requestKey is an idempotency key and its scope: two callers may use the same key.
type requestKey struct{ scope, key string }

// Secret signs ids, and derives ids and hashes from an order and its idempotency key. Without the secret they cannot be
// computed: to know a key does not help to find the order. It is safe for concurrent use.
type Secret struct{ hashes sync.Pool }

// NewSecret returns the secret with this text. Its HMACs are kept: to make one takes longer than to use it.
func NewSecret(text string) *Secret {
	return &Secret{sync.Pool{New: func() any { return hmac.New(sha256.New, []byte(text)) }}}
}

// sum is HMAC-SHA256 over text.
func (s *Secret) sum(text []byte) []byte {
	mac := s.hashes.Get().(hash.Hash)
	defer s.hashes.Put(mac)
	mac.Reset()
	mac.Write(text)
	return mac.Sum(nil)
}

// newOrderID is the id of an order without a key: a UUIDv7 that is signed.
func (s *Secret) newOrderID() (uuid.UUID, error) {
	id, err := uuid.NewV7()
	if err != nil {
		return id, err
	}
	return s.sign(id), nil
}

// unsignedOrderID is the id, before it is signed, of the order with this fingerprint that a caller places under a key: a
// UUIDv8. The same caller, key and order have the same id; anything else has another.
func (s *Secret) unsignedOrderID(k requestKey, fingerprint []byte) uuid.UUID {
	return uuidV8(s.mac("order", k.scope, k.key, string(fingerprint)))
}

// formerOrderID is the id that the release before this one gave to every order with the key, whoever placed it.
func (s *Secret) formerOrderID(k requestKey) uuid.UUID {
	return uuidV8(s.sum([]byte(k.key)))
}

// keyHash is a hash of the caller's key. It does not depend on the order.
func (s *Secret) keyHash(k requestKey) []byte { return s.mac("key", k.scope, k.key) }

// signature is the length, in bytes, of the code at the end of an id, by which a gateway knows that the shop gave it.
const signature = 3

// sign puts the code at the end of an id.
func (s *Secret) sign(id uuid.UUID) uuid.UUID {
	const signed = len(id) - signature
	copy(id[signed:], s.sum(append([]byte(signedLabel), id[:signed]...)))
	return id
}

// signedLabel keeps what is signed apart from whatever else the secret is used for: the lists of mac begin with a length.
const signedLabel = "\x00signed order id"

// signed says whether the shop gave this id, under this secret: one in 16 million made-up ids passes.
func (s *Secret) signed(id uuid.UUID) bool {
	want := s.sign(id)
	return hmac.Equal(want[:], id[:])
}

// mac is HMAC-SHA256 over the parts, each with its length before it: no two lists of parts are the same text.
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
