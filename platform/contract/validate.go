package contract

import (
	"sync"

	"buf.build/go/protovalidate"
	"google.golang.org/protobuf/proto"
)

// validator compiles the rules of a message type when it first meets it and is safe for concurrent use.
var validator = sync.OnceValues(func() (protovalidate.Validator, error) { return protovalidate.New() })

// Validate checks m against the rules of its contract. The error is a *protovalidate.ValidationError that lists the
// violations, or says that the rules themselves are broken.
func Validate(m proto.Message) error {
	v, err := validator()
	if err != nil {
		return err
	}
	return v.Validate(m)
}
