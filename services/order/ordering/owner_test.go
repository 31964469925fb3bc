package ordering

import (
	"slices"
	"testing"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/timestamppb"

	"shop.example/db/dbtest"
	"shop.example/domain/enduser"
	"shop.example/domain/orderid"
	accessv1 "shop.example/gen/shop/access/v1"
	orderv1 "shop.example/gen/shop/order/v1"
	"shop.example/platform/testkit/brokertest"
)

// Whoever knew an order's id saw its customer, and could cancel it, though it had been placed with a token.
func TestOwner_AnOrderIsItsOwnersAndTheOperators(t *testing.T) {
	t.Parallel()
	broker := brokertest.New(t)
	n := newFakePeers(t, broker)
	n.inventory(each(held))
	s, _, _ := start(t, broker, dbtest.New(t))
	const issuer = "https://login.example.org"
	adas, bobs, nobodys := newPlaced(), newPlaced(), newPlaced()
	adas.Owner, bobs.Owner = enduser.Owner(issuer, "ada"), enduser.Owner(issuer, "bob")
	n.publish(t, adas, bobs, nobodys)
	n.until(t, "shop.order.confirmed", 3)

	conn, err := grpc.NewClient(s.GRPCAddr(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	orders := orderv1.NewOrderServiceClient(conn)
	ada, eve := &accessv1.EndUser{Issuer: issuer, Subject: "ada"}, &accessv1.EndUser{Issuer: issuer, Subject: "eve"}
	for what, c := range map[string]struct {
		user *accessv1.EndUser
		sees []string
		list []string // nil if it is refused
	}{
		"the owner":   {ada, []string{adas.GetOrderId(), nobodys.GetOrderId()}, []string{adas.GetOrderId()}},
		"another":     {eve, []string{nobodys.GetOrderId()}, []string{}},
		"nobody":      {&accessv1.EndUser{}, []string{nobodys.GetOrderId()}, nil},
		"an operator": {&accessv1.EndUser{Operator: true}, []string{adas.GetOrderId(), bobs.GetOrderId(), nobodys.GetOrderId()}, []string{adas.GetOrderId(), bobs.GetOrderId(), nobodys.GetOrderId()}},
	} {
		ctx := enduser.With(t.Context(), c.user)
		for _, id := range []string{adas.GetOrderId(), bobs.GetOrderId(), nobodys.GetOrderId()} {
			got, err := orders.GetOrder(ctx, &orderv1.GetOrderRequest{OrderId: id})
			if slices.Contains(c.sees, id) {
				if err != nil || got.GetOrder().GetId() != id {
					t.Errorf("%s: order %s: %v", what, id, err)
				}
				continue
			}
			assertError(t, err, codes.NotFound, "ORDER_NOT_FOUND")
			assertHidden(t, err)
			_, err = orders.CancelOrder(ctx, &orderv1.CancelOrderRequest{OrderId: id})
			assertError(t, err, codes.NotFound, "ORDER_NOT_FOUND")
			assertHidden(t, err)
		}
		list, err := orders.ListOrders(ctx, &orderv1.ListOrdersRequest{})
		if c.list == nil {
			assertError(t, err, codes.PermissionDenied, "ROLE_REQUIRED")
			continue
		}
		ids := []string{}
		for _, o := range list.GetOrders() {
			ids = append(ids, o.GetId())
		}
		slices.Sort(ids)
		slices.Sort(c.list)
		if err != nil || !slices.Equal(ids, c.list) {
			t.Errorf("%s: the list is %v, %v; want %v", what, ids, err, c.list)
		}
	}
	for _, id := range []string{adas.GetOrderId(), bobs.GetOrderId()} {
		if o := mustGet(t, s, id); o.GetState() != orderv1.Order_CONFIRMED {
			t.Errorf("order %s is %s", id, o.GetState())
		}
	}
	got, err := orders.CancelOrder(enduser.With(t.Context(), ada), &orderv1.CancelOrderRequest{OrderId: adas.GetOrderId()})
	if err != nil || got.GetOrder().GetState() != orderv1.Order_CANCELLED {
		t.Errorf("the owner cancels: %v, %v", got, err)
	}
	// A page token of one's own list is no token of everybody's.
	page, err := orders.ListOrders(enduser.With(t.Context(), &accessv1.EndUser{Operator: true}), &orderv1.ListOrdersRequest{PageSize: 1})
	if err != nil {
		t.Fatal(err)
	}
	_, err = orders.ListOrders(enduser.With(t.Context(), ada), &orderv1.ListOrdersRequest{PageSize: 1, PageToken: page.GetNextPageToken()})
	assertError(t, err, codes.InvalidArgument, "INVALID_ARGUMENT")
}

// assertHidden checks that the gateway can tell somebody else's order from one that is not decided yet.
func assertHidden(t *testing.T, err error) {
	t.Helper()
	for _, detail := range status.Convert(err).Details() {
		if info, ok := detail.(*errdetails.ErrorInfo); ok && info.GetMetadata()[orderid.HiddenKey] != "" {
			return
		}
	}
	t.Errorf("the error does not say that the order is somebody else's: %v", err)
}

// A search ends at an order of anybody's, and its id was in the token of the next page: an id is as good as a password for an order
// that has no owner.
func TestOwner_ASearchNamesNoOrderOfOthers(t *testing.T) {
	t.Parallel()
	s := newStore(t)
	const issuer = "https://login.example.org"
	adas := newPlaced()
	adas.Owner, adas.PlacedAt = enduser.Owner(issuer, "ada"), timestamppb.New(time.Now().Add(-48*time.Hour))
	mustStore(t, s, decidedOrders(t, held, adas))
	if _, err := s.db.Exec(`
		INSERT INTO orders (id, customer_name, customer_email, state, total_items, total_value, currency, created_at, updated_at)
		SELECT gen_random_uuid(), 'Bob', 'bob@example.org', 'CONFIRMED', 1, 1, 'USD', now() - i * interval '1 s', now() FROM generate_series(1, $1) i`, searchLimit); err != nil {
		t.Fatal(err)
	}
	f := &orderFilter{since: listEnd, before: listEnd, owner: adas.GetOwner(), idSuffix: adas.GetOrderId()}
	found, next, err := listOrders(t.Context(), s.db, f, listStart, 50)
	if err != nil || len(found) != 1 || found[0].ID.String() != adas.GetOrderId() || next != listEnd {
		t.Errorf("the search has %d orders and goes on at %v, %v; want Ada's order alone", len(found), next, err)
	}
}
