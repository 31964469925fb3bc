package rest

import (
	"bytes"
	"encoding/json"
	"io"
	"reflect"

	"github.com/grpc-ecosystem/grpc-gateway/v2/runtime"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	"shop.example/gateway/ingress"
)

// codec is the JSON of the REST API: fields have the contracts' names, fields without a value are written with their zero
// value, absent messages and optional fields are left out. It reads the whole body, and refuses unknown fields.
type codec struct{ runtime.JSONPb }

// JSON are the options with which messages become JSON in the REST API.
var JSON = protojson.MarshalOptions{UseProtoNames: true, EmitDefaultValues: true}

func newCodec() *codec { return &codec{runtime.JSONPb{MarshalOptions: JSON}} }

// typicalSize is enough room for the JSON of an order, in bytes, so that it is not copied while it grows.
const typicalSize = 1 << 10

// plainText is a response that is not JSON.
type plainText string

// Marshal encodes a message, a list of messages, or plain text.
func (c *codec) Marshal(v any) ([]byte, error) {
	switch v := v.(type) {
	case plainText:
		return []byte(v), nil
	case proto.Message:
		return c.MarshalOptions.MarshalAppend(make([]byte, 0, typicalSize), v)
	}
	if rv := reflect.ValueOf(v); rv.Kind() == reflect.Slice && rv.IsNil() {
		return []byte("[]"), nil
	}
	return c.JSONPb.Marshal(v)
}

// NewDecoder returns a decoder of one value, which must be all that r contains. Its errors are not for clients: see
// bodyError.
func (c *codec) NewDecoder(r io.Reader) runtime.Decoder {
	return runtime.DecoderFunc(func(v any) error {
		data, err := readBody(r)
		if err != nil {
			return err
		}
		if len(bytes.TrimSpace(data)) == 0 {
			return io.EOF // grpc-gateway takes it for an empty message
		}
		defer ingress.BeginDecoding(len(data))()
		if m, ok := v.(proto.Message); ok {
			return c.UnmarshalOptions.Unmarshal(data, m)
		}
		var whole json.RawMessage // the decoder of grpc-gateway ignores what follows the first value
		if err := json.Unmarshal(data, &whole); err != nil {
			return err
		}
		return c.Unmarshal(whole, v)
	})
}

func readBody(r io.Reader) ([]byte, error) {
	if body, ok := r.(*requestBody); ok {
		return body.data, nil
	}
	return io.ReadAll(r)
}
