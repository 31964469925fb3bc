package stock

import (
	"context"
	"fmt"
	"sync/atomic"
	"testing"

	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/fieldmaskpb"

	"shop.example/domain/idempotency"
	inventoryv1 "shop.example/gen/shop/inventory/v1"
)

// incoming is the context of a call that the gateway makes under an idempotency key.
func incoming(t *testing.T, hashes ...string) (context.Context, *header) {
	t.Helper()
	md := metadata.MD{}
	for _, h := range hashes {
		md.Append("shop-idempotency-hash-bin", h)
	}
	h := &header{}
	return grpc.NewContextWithServerTransportStream(metadata.NewIncomingContext(t.Context(), md), h), h
}

// header is what a call is answered with before its response.
type header struct{ metadata.MD }

func (*header) Method() string                    { return "" }
func (h *header) SetHeader(md metadata.MD) error  { h.MD = metadata.Join(h.MD, md); return nil }
func (h *header) SendHeader(md metadata.MD) error { return h.SetHeader(md) }
func (*header) SetTrailer(metadata.MD) error      { return nil }

// A call whose answer was lost was refused with ITEM_EXISTS when it was made again, and nobody knew the ids.
func TestCreateItems_ARepeatedKeyIsTheSameAnswer(t *testing.T) {
	t.Parallel()
	st := newTestStore(t)
	c := inventoryServer{store: st}
	desk := &inventoryv1.CreateItemsRequest{Items: []*inventoryv1.CreateItemsRequest_NewItem{{ProductName: "Desk", Quantity: 5, Price: usd(250)}}}
	ctx, first := incoming(t, "key by the old secret")
	created, err := c.CreateItems(ctx, desk)
	if err != nil || idempotency.IsReplayed(first.MD) {
		t.Fatalf("the first call: %v, %v", err, first)
	}
	update := &inventoryv1.UpdateItemRequest{Item: &inventoryv1.Item{Id: created.GetItems()[0].GetId(), OnHand: 9}, UpdateMask: &fieldmaskpb.FieldMask{Paths: []string{"on_hand"}}}
	if _, err := c.UpdateItem(t.Context(), update); err != nil {
		t.Fatal(err)
	}
	// The same answer, whatever has become of the product: also under the new secret, whose hash is claimed then.
	for _, hashes := range [][]string{{"key by the old secret"}, {"key by the new one", "key by the old secret"}, {"key by the new one"}} {
		ctx, second := incoming(t, hashes...)
		again, err := c.CreateItems(ctx, desk)
		if err != nil || !proto.Equal(again, created) || !idempotency.IsReplayed(second.MD) {
			t.Errorf("again under %q: %v, %v, %v", hashes, again, err, second)
		}
	}
	other := proto.CloneOf(desk)
	other.Items[0].Quantity++
	ctx, _ = incoming(t, "key by the old secret")
	if _, err := c.CreateItems(ctx, other); reasonOf(err) != "IDEMPOTENCY_KEY_REUSED" {
		t.Errorf("other items under the key: %v", err)
	}
	ctx, _ = incoming(t, "another key")
	if _, err := c.CreateItems(ctx, desk); reasonOf(err) != "ITEM_EXISTS" {
		t.Errorf("the same items under another key: %v", err)
	}
	// What was refused claims nothing.
	ctx, third := incoming(t, "another key")
	other.Items[0].ProductName = "Table"
	if _, err := c.CreateItems(ctx, other); err != nil || idempotency.IsReplayed(third.MD) {
		t.Errorf("other items under the key of a call that was refused: %v", err)
	}
}

func TestCreateItems_OfCallsAtOnceUnderOneKeyOneCreates(t *testing.T) {
	t.Parallel()
	c := inventoryServer{store: newTestStore(t)}
	desk := &inventoryv1.CreateItemsRequest{Items: []*inventoryv1.CreateItemsRequest_NewItem{{ProductName: "Desk", Quantity: 5, Price: usd(250)}}}
	var calls errgroup.Group
	var replayed atomic.Int32
	const n = 8
	for i := range n {
		hashes := []string{"new", "old"}
		if i%2 == 0 {
			hashes = []string{"old"} // at a gateway that does not have the new secret yet
		}
		calls.Go(func() error {
			ctx, h := incoming(t, hashes...)
			resp, err := c.CreateItems(ctx, desk)
			if err == nil && len(resp.GetItems()) != 1 {
				err = fmt.Errorf("answered with %v", resp)
			}
			if idempotency.IsReplayed(h.MD) {
				replayed.Add(1)
			}
			return err
		})
	}
	if err := calls.Wait(); err != nil || replayed.Load() != n-1 {
		t.Errorf("%v, %d of %d were told that they are repetitions", err, replayed.Load(), n)
	}
}
