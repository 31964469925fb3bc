package ingress

import (
	"context"
	"net/http"
	"strings"

	"connectrpc.com/vanguard"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/encoding"
	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	"shop.example/platform/apierror"
)

// Connect and gRPC-Web, which browsers can speak, are translated to gRPC and back around the gRPC server, so that each call
// passes the same limits, checks of access and handlers, and fails in the same way.

// maxTranslated bounds a response that is held as a whole in order to be translated, in bytes; requests are bounded by
// MaxBody. It is the maximum that gRPC clients accept of a message by default, also those of the services behind the
// gateway.
const maxTranslated = 4 << 20

// ownServices is how the names of the shop's services begin.
const ownServices = "shop."

// isWeb reports whether a call is Connect or gRPC-Web: by its path, too, because the library takes some calls with these
// headers for REST, which it would serve without conditions and with errors of its own.
func isWeb(r *http.Request) bool {
	if r.Method != http.MethodPost || !strings.HasPrefix(r.URL.Path, "/"+ownServices) {
		return false
	}
	if len(r.Header["Connect-Protocol-Version"]) > 0 {
		return true
	}
	contentType := r.Header.Get("Content-Type")
	return strings.HasPrefix(contentType, "application/grpc-web") ||
		strings.HasPrefix(contentType, "application/connect+")
}

// webTypes are the content types of the calls that can be translated: of Connect, of its streams, and of gRPC-Web. The library takes
// calls with other types for REST.
var webTypes = []string{
	"application/proto", "application/json", "application/json; charset=utf-8", "application/connect+proto", "application/connect+json",
	"application/grpc-web", "application/grpc-web+proto", "application/grpc-web+json",
}

// ErrWebType is the error of a Connect or gRPC-Web call of another content type, such as gRPC-Web's text.
var ErrWebType = apierror.New(codes.InvalidArgument, "UNSUPPORTED_MEDIA_TYPE",
	"this content type is not served: gRPC-Web is application/grpc-web+proto or +json, not text; Connect is application/proto or "+
		"application/json, and for streams application/connect+proto or +json")

// newTranslator returns a handler that translates calls to the services registered on server, all of which must be
// registered by then.
func newTranslator(server *grpc.Server) (http.Handler, error) {
	translated := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		call := r.Context().Value(webCallKey{}).(webCall)
		if call.refusal != nil {
			refuseGRPC(w, call.refusal)
			return
		}
		server.ServeHTTP(w, r)
		completeTrailers(w.Header(), call.request.Refusal)
	})
	var services []*vanguard.Service
	for name := range server.GetServiceInfo() {
		if strings.HasPrefix(name, ownServices) {
			services = append(services, vanguard.NewService(name, translated,
				vanguard.WithTargetProtocols(vanguard.ProtocolGRPC), vanguard.WithTargetCodecs(vanguard.CodecProto, vanguard.CodecJSON),
				vanguard.WithNoTargetCompression(), vanguard.WithMaxMessageBufferBytes(maxTranslated)))
		}
	}
	return vanguard.NewTranscoder(services)
}

// webCall is a call that is being translated.
type webCall struct {
	*grpcCall
	refusal error // to respond with; nil if the call goes on
}

type webCallKey struct{}

// serveWeb translates a call within the limits of gRPC.
func (d *Ingress) serveWeb(w http.ResponseWriter, r *http.Request, h CallMemory, refusal error) {
	if refusal == nil {
		refusal = checkPlain(r)
	}
	// A small request of which nothing is translated would be enough to make a large one.
	for _, header := range encodings {
		r.Header.Del(header)
	}
	d.serveWithin(w, r, h, func(call *grpcCall, r *http.Request) {
		d.web.ServeHTTP(call, r.WithContext(context.WithValue(r.Context(), webCallKey{}, webCall{call, refusal})))
	})
}

var encodings = []string{"Content-Encoding", "Grpc-Encoding", "Connect-Content-Encoding"}

// checkPlain returns an error if a request is compressed.
func checkPlain(r *http.Request) error {
	for _, header := range encodings {
		if coding := r.Header.Get(header); coding != "" && !strings.EqualFold(coding, "identity") {
			return apierror.New(codes.InvalidArgument, "UNSUPPORTED_MEDIA_TYPE", "the request must not be compressed: leave out the header %s", header)
		}
	}
	return nil
}

// jsonCodec encodes and decodes messages as REST does: with the contracts' field names, all fields, and no unknown ones.
type jsonCodec struct{}

// gRPC takes codecs at this time alone. From then on gRPC clients can send JSON, too: application/grpc+json.
func init() { //nolint:gochecknoinits // see above
	encoding.RegisterCodec(jsonCodec{})
	encoding.RegisterCodecV2(protoCodec{encoding.GetCodecV2(vanguard.CodecProto)})
}

// protoCodec is gRPC's own, but decodes few large messages at a time.
type protoCodec struct{ encoding.CodecV2 }

func (c protoCodec) Unmarshal(data mem.BufferSlice, v any) error {
	defer BeginDecoding(data.Len())()
	return c.CodecV2.Unmarshal(data, v)
}

func (jsonCodec) Name() string { return vanguard.CodecJSON }

func (jsonCodec) Marshal(v any) ([]byte, error) {
	return protojson.MarshalOptions{UseProtoNames: true, EmitDefaultValues: true}.Marshal(v.(proto.Message))
}

func (jsonCodec) Unmarshal(data []byte, v any) error {
	defer BeginDecoding(len(data))()
	return protojson.Unmarshal(data, v.(proto.Message))
}
