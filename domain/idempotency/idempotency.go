// Package idempotency carries idempotency keys, in gRPC metadata, from the gateway to a service that creates something, and
// in the other direction the answer that a key has been used before. Services get hashes of caller and key only, keyed with
// a secret of the gateway: neither a key nor the database alone reveals which call was made under it.
package idempotency

import (
	"bytes"
	"context"
	"slices"

	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"
)

const (
	key = "shop-idempotency-hash-bin"
	// Replayed is the metadata key, and the REST header, of a response that says that the call has been made before under its
	// key. Other APIs have a header of this name, too.
	Replayed = "idempotent-replayed"
)

// With returns ctx for an outgoing call under an idempotency key. hashes are those of the key by each secret that is in use.
func With(ctx context.Context, hashes [][]byte) context.Context {
	var pairs []string
	for _, hash := range hashes {
		pairs = append(pairs, key, string(hash))
	}
	return metadata.AppendToOutgoingContext(ctx, pairs...)
}

// Of returns the hashes of the idempotency key of the incoming call in ctx, in ascending order; nil if it has none.
func Of(ctx context.Context) (hashes [][]byte) {
	for _, hash := range metadata.ValueFromIncomingContext(ctx, key) {
		hashes = append(hashes, []byte(hash))
	}
	slices.SortFunc(hashes, bytes.Compare)
	return hashes
}

// MarkReplayed tells the client of the incoming call in ctx, by a response header, that it has made the same call before. Call
// it before the response is sent.
func MarkReplayed(ctx context.Context) {
	_ = grpc.SetHeader(ctx, metadata.Pairs(Replayed, "true")) // fails without a call
}

// IsReplayed reports whether MarkReplayed has marked the response with this header.
func IsReplayed(header metadata.MD) bool { return len(header.Get(Replayed)) > 0 }
