package contract

import (
	"buf.build/go/protovalidate"
	"google.golang.org/protobuf/proto"
)

// Validate checks m against the rules of its contract. The error is a *protovalidate.ValidationError that lists the
// violations, or says that the rules themselves do not compile. It may be called concurrently; the rules of a message type
// are compiled once per process.
func Validate(m proto.Message) error { return protovalidate.Validate(m) }
