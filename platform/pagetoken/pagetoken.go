// Package pagetoken pages lists: sizes of pages, and their tokens. A token names the last row of a page, so that rows that are added
// meanwhile move nothing, and the list with its filters, because a position in one list means nothing in another.
//
// Tokens are opaque to clients, and no secret: a client could make one up, and would get a page of a list that it may read.
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

// Size returns how many entries a page has of which asked are asked for, or none in particular if that is 0. Who asks for too
// many gets the largest page, and the rest with its token, which a client has to look at in any case.
func Size(asked int32) int {
	if asked == 0 {
		return defaultSize
	}
	return int(min(asked, maxSize))
}

// New returns the token of the page after position, in the list that is named list.
func New(position []byte, list string) string {
	return base64.RawURLEncoding.EncodeToString(append(bytes.Clone(position), check(list)...))
}

// Parse returns the position, of size bytes, in a token that New made for the same list; otherwise ErrInvalid.
func Parse(token, list string, size int) (position []byte, err error) {
	b, err := base64.RawURLEncoding.DecodeString(token)
	if err != nil || len(b) < size || !bytes.Equal(b[size:], check(list)) {
		return nil, ErrInvalid
	}
	return b[:size], nil
}

// NewID is New for lists by id.
func NewID(id int64, list string) string {
	return New(binary.BigEndian.AppendUint64(nil, uint64(id)), list)
}

// ParseID is Parse for lists by id. The token "" is that of the first page, after id 0.
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

// ListOf names the list that a request asks for, by its type and fields. Its page token and page size must be empty.
func ListOf(request proto.Message) string {
	b, _ := proto.MarshalOptions{Deterministic: true}.Marshal(request) // of a message that has just been unmarshalled
	return string(request.ProtoReflect().Descriptor().FullName()) + " " + string(b)
}

// check differs between lists. Four bytes: it is against mistakes, not against attacks.
func check(list string) []byte {
	sum := sha256.Sum256([]byte(list))
	return sum[:4]
}
