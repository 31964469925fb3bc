// Package pagetoken makes the page tokens of lists, and bounds the size of pages. A token contains the position of the last
// row of a page, so rows that are added meanwhile shift nothing, and a hash of the request's filters, because a position in
// one list means nothing in another.
//
// Tokens are opaque but not secret: a client who forged one would get a page of a list that it may read anyway, and who reads one learns
// the position, which must be that of a row that he may see.
package pagetoken

import (
	"bytes"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"

	"google.golang.org/protobuf/proto"

	"shop.example/platform/apierror"
)

// ErrInvalid is the answer to a token that belongs to no page of the list.
var ErrInvalid = apierror.InvalidArgument(apierror.Violation{
	Field: "page_token", Description: "is not a next_page_token of this list with these filters; leave it out to start at the first page",
})

const (
	defaultSize = 50
	maxSize     = 1000
)

// Size returns how many entries a page has if a client has asked for asked of them: 50 if that is 0, and at most 1,000. Who
// asks for more gets the rest with the page's token.
func Size(asked int32) int {
	if asked == 0 {
		return defaultSize
	}
	return int(min(asked, maxSize))
}

// New returns the token of the page that follows position in list, which ListOf identifies.
func New(position []byte, list string) string {
	return base64.RawURLEncoding.EncodeToString(append(bytes.Clone(position), check(list)...))
}

// Parse returns the position in a token that New made for the same list. It returns ErrInvalid if the token is another
// list's, or if the position does not have size bytes.
func Parse(token, list string, size int) (position []byte, err error) {
	b, err := base64.RawURLEncoding.DecodeString(token)
	if err != nil || len(b) < size || !bytes.Equal(b[size:], check(list)) {
		return nil, ErrInvalid
	}
	return b[:size], nil
}

// NewID is New for lists that are sorted by a numeric id.
func NewID(id int64, list string) string {
	return New(binary.BigEndian.AppendUint64(nil, uint64(id)), list)
}

// ParseID is Parse for lists that are sorted by a numeric id. The empty token is that of the first page: it returns 0.
func ParseID(token, list string) (id int64, err error) {
	if token == "" {
		return 0, nil
	}
	position, err := Parse(token, list, 8)
	if err != nil {
		return 0, err
	}
	return int64(binary.BigEndian.Uint64(position)), nil
}

// ListOf identifies the list that a request asks for, by the request's type and fields. Clear its page token and page size
// before.
func ListOf(request proto.Message) string {
	b, _ := proto.MarshalOptions{Deterministic: true}.Marshal(request) // of a message that has just been unmarshalled
	return string(request.ProtoReflect().Descriptor().FullName()) + " " + string(b)
}

// check differs between lists. Four bytes: it is against mistakes, not against attacks.
func check(list string) []byte {
	sum := sha256.Sum256([]byte(list))
	return sum[:4]
}
