package stock

import (
	"bytes"
	"context"
	"crypto/sha256"
	"database/sql"
	"errors"
	"fmt"

	"github.com/jmoiron/sqlx"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"

	inventoryv1 "shop.example/gen/shop/inventory/v1"
	"shop.example/platform/apierror"
	"shop.example/platform/postgres"
)

// fingerprintOf returns the SHA-256 of the items: two lists have the same one only if they are equal.
func fingerprintOf(items []newItem) []byte {
	hash := sha256.New()
	for _, i := range items {
		fmt.Fprintf(hash, "%q %d %d %s\n", i.name, i.onHand, i.price.minor, i.price.currency)
	}
	return hash.Sum(nil)
}

// claimKey claims an idempotency key, given by its hashes, for items with this fingerprint. If an earlier call has created
// them under the key it returns that call's response, otherwise nil. Of two concurrent calls the second one waits for the
// first.
func claimKey(ctx context.Context, tx *sqlx.Tx, hashes [][]byte, fingerprint []byte) (*inventoryv1.CreateItemsResponse, error) {
	keys := postgres.ArrayOf(hashes)
	_, err := tx.ExecContext(ctx, `
		INSERT INTO idempotency_key (key_hash, fingerprint) SELECT unnest($1::bytea[]), $2::bytea ON CONFLICT DO NOTHING`, keys, fingerprint)
	if err != nil {
		return nil, fmt.Errorf("claiming an idempotency key: %w", err)
	}
	var before struct{ Fingerprint, Response []byte }
	err = tx.GetContext(ctx, &before, `
		SELECT fingerprint, response FROM idempotency_key WHERE key_hash = ANY ($1::bytea[]) AND response IS NOT NULL LIMIT 1`, keys)
	switch {
	case errors.Is(err, sql.ErrNoRows):
		return nil, nil
	case err != nil:
		return nil, fmt.Errorf("reading an idempotency key: %w", err)
	case !bytes.Equal(before.Fingerprint, fingerprint):
		return nil, apierror.New(codes.AlreadyExists, "IDEMPOTENCY_KEY_REUSED", "this Idempotency-Key has created other items: use a new key for new items")
	}
	resp := &inventoryv1.CreateItemsResponse{}
	if err := proto.Unmarshal(before.Response, resp); err != nil {
		return nil, fmt.Errorf("reading the response under an idempotency key: %w", err)
	}
	return resp, nil
}

// keepResponse stores the response to the call under a key.
func keepResponse(ctx context.Context, tx *sqlx.Tx, hashes [][]byte, resp *inventoryv1.CreateItemsResponse) error {
	encoded, err := proto.Marshal(resp)
	if err != nil {
		return err
	}
	_, err = tx.ExecContext(ctx, `UPDATE idempotency_key SET response = $2 WHERE key_hash = ANY ($1::bytea[])`, postgres.ArrayOf(hashes), encoded)
	if err != nil {
		return fmt.Errorf("keeping the response under an idempotency key: %w", err)
	}
	return nil
}

// createOnce creates the items, unless a call has created them before under the same key. It returns the response to that
// call, and whether it was an earlier one.
func (c inventoryServer) createOnce(ctx context.Context, tx *sqlx.Tx, hashes [][]byte, items []newItem) (
	done catalogueChange, resp *inventoryv1.CreateItemsResponse, replayed bool, err error,
) {
	if resp, err = claimKey(ctx, tx, hashes, fingerprintOf(items)); err != nil {
		return done, nil, false, err
	}
	if replayed = resp != nil; !replayed {
		if done, err = createItems(ctx, tx, items); err != nil {
			return done, nil, false, err
		}
		resp = &inventoryv1.CreateItemsResponse{Items: itemsOf(done.products)}
	}
	// A key that is replayed may have been claimed by one of its hashes alone, before the secret was renewed.
	return done, resp, replayed, keepResponse(ctx, tx, hashes, resp)
}
