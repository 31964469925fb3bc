// Package idempotency carries idempotency keys from the gateway to a service that creates something, and back that a key has
// been used before. The gateway passes on hashes of caller and key: to know a key, or to read the database, does not help to
// find out what somebody has done with it.
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

// With returns ctx for a call under a key: its hash by each secret that is in use.
func With(ctx context.Context, hashes [][]byte) context.Context {
	var pairs []string
	for _, hash := range hashes {
		pairs = append(pairs, key, string(hash))
	}
	return metadata.AppendToOutgoingContext(ctx, pairs...)
}

// Of returns the hashes of the key of the call that ctx is of, in ascending order; nil if it has none.
func Of(ctx context.Context) (hashes [][]byte) {
	for _, hash := range metadata.ValueFromIncomingContext(ctx, key) {
		hashes = append(hashes, []byte(hash))
	}
	slices.SortFunc(hashes, bytes.Compare)
	return hashes
}

// MarkReplayed tells the client of the call that ctx is of that the call has been made before.
func MarkReplayed(ctx context.Context) {
	_ = grpc.SetHeader(ctx, metadata.Pairs(Replayed, "true")) // fails without a call
}

// IsReplayed says whether the header of a response has what MarkReplayed sets.
func IsReplayed(header metadata.MD) bool { return len(header.Get(Replayed)) > 0 }
