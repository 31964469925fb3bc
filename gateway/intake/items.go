package intake

import (
	"context"

	"google.golang.org/protobuf/proto"

	"shop.example/domain/idempotency"
	"shop.example/gateway/access"
	inventoryv1 "shop.example/gen/shop/inventory/v1"
)

// PassItemKey adds the idempotency key of a call that creates items to the call to the inventory service, which stores its
// response under the key. It is an upstream.Prepare.
func (o *Orders) PassItemKey(ctx context.Context, request proto.Message) (context.Context, error) {
	if _, creates := request.(*inventoryv1.CreateItemsRequest); !creates {
		return ctx, nil // the other calls have the same effect however often they are made
	}
	key, given, err := keyOf(ctx)
	if !given || err != nil {
		return ctx, err
	}
	scope := access.PrincipalOf(ctx).KeyScope("")
	hashes := make([][]byte, len(o.secrets))
	for i, secret := range o.secrets {
		hashes[i] = secret.mac("items", scope, key)
	}
	return idempotency.With(ctx, hashes), nil
}
