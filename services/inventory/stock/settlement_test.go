package stock

import (
	"slices"
	"testing"
	"time"

	"github.com/google/uuid"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"

	inventoryv1 "shop.example/gen/shop/inventory/v1"
)

func TestFindUnhandled_AHoldSaysWhichEventsOfItsOrderWereHandled(t *testing.T) {
	t.Parallel()
	st := newTestStore(t)
	s := settlementServer{store: st}
	names := map[uuid.UUID]string{}
	orders := map[string]order{}
	var ids [][]byte
	for _, name := range []string{"held", "settled", "released", "refused", "unknown"} {
		quantity := int32(2)
		if name == "refused" {
			quantity = 1000
		}
		o := order{id: uuid.Must(uuid.NewV7()), lines: []line{{productID: laptop, quantity: quantity}, {productID: phone, quantity: 1}}}
		orders[name], names[o.id] = o, name
		if name != "unknown" {
			st.mustCheck(t, o)
		}
		ids = append(ids, o.id[:])
	}
	st.settleNow(t, orders["settled"], orders["released"])
	st.cancelNow(t, orders["released"])
	namesOf := func(ids [][]byte) (found []string) {
		for _, id := range ids {
			found = append(found, names[uuid.UUID(id)])
		}
		slices.Sort(found)
		return found
	}
	for key, want := range map[string][]string{
		"shop.inventory.decrement.quantity": {"held"},
		"shop.order.cancelled":              {"held", "settled"},
	} {
		resp, err := s.FindUnhandled(t.Context(), &inventoryv1.FindUnhandledRequest{RoutingKey: key, OrderIds: ids})
		if got := namesOf(resp.GetOrderIds()); err != nil || !slices.Equal(got, want) {
			t.Errorf("%s: %q, %v, want %q", key, got, err, want)
		}
	}
	if _, err := s.FindUnhandled(t.Context(), &inventoryv1.FindUnhandledRequest{RoutingKey: "shop.order.placed", OrderIds: ids}); status.Code(err) != codes.InvalidArgument {
		t.Errorf("an event of others: %v", err)
	}

	held := func(age time.Duration) []string {
		resp, err := s.FindHeld(t.Context(), &inventoryv1.FindHeldRequest{MinAge: durationpb.New(age)})
		if err != nil {
			t.Fatal(err)
		}
		return namesOf(resp.GetOrderIds())
	}
	if got := held(time.Minute); len(got) > 0 {
		t.Errorf("held for a minute: %q", got)
	}
	st.db.MustExec(`UPDATE hold SET created_at = created_at - interval '2 min'`)
	if got := held(time.Minute); !slices.Equal(got, []string{"held"}) {
		t.Errorf("held for a minute: %q", got)
	}
}

// What stays held, because its event is a discarded dead letter, hid all that is younger.
func TestFindHeld_HasAsManyPagesAsItNeeds(t *testing.T) {
	t.Parallel()
	st := newTestStore(t)
	const orders = maxHeld + 2
	st.db.MustExec(`
		INSERT INTO hold (order_id, product_id, quantity, state, created_at)
		SELECT id, product, 1, 'HELD', now() - interval '1 hour' FROM (SELECT gen_random_uuid() AS id FROM generate_series(1, $1)) AS orders, generate_series(1, 2) AS product`, orders)
	s, seen := settlementServer{store: st}, map[string]bool{}
	req := &inventoryv1.FindHeldRequest{MinAge: durationpb.New(time.Minute)}
	for pages := 1; ; pages++ {
		resp, err := s.FindHeld(t.Context(), req)
		if err != nil {
			t.Fatal(err)
		}
		for _, id := range resp.GetOrderIds() {
			seen[string(id)] = true
		}
		if req.PageToken = resp.GetNextPageToken(); req.PageToken == "" {
			if pages != 2 {
				t.Errorf("%d pages", pages)
			}
			break
		}
	}
	if len(seen) != orders {
		t.Errorf("%d orders, want %d", len(seen), orders)
	}
	st.db.MustExec(`DELETE FROM hold`) // which belong to no stock
	req.PageToken = "nonsense"
	if _, err := s.FindHeld(t.Context(), req); status.Code(err) != codes.InvalidArgument {
		t.Errorf("a token of nowhere: %v", err)
	}
}
