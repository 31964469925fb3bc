package intake

import (
	"context"
	"encoding/base64"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/types/known/timestamppb"

	"shop.example/domain/enduser"
	"shop.example/domain/orderid"
	"shop.example/domain/orderstate"
	"shop.example/gateway/access"
	checkoutv1 "shop.example/gen/shop/checkout/v1"
	orderv1 "shop.example/gen/shop/order/v1"
	"shop.example/platform/apierror"
)

// oneOrder is an order service with an order, which belongs to owner.
type oneOrder struct {
	orderv1.OrderServiceClient
	order *orderv1.Order
	owner string
	asked int
}

func (o *oneOrder) GetOrder(ctx context.Context, req *orderv1.GetOrderRequest, _ ...grpc.CallOption) (*orderv1.GetOrderResponse, error) {
	o.asked++
	notFound := apierror.New(codes.NotFound, "ORDER_NOT_FOUND", "there is no order %s", req.GetOrderId())
	if req.GetOrderId() != o.order.GetId() {
		return nil, notFound
	}
	sent, _ := metadata.FromOutgoingContext(ctx)
	if !enduser.MayAccess(metadata.NewIncomingContext(ctx, sent), o.owner) {
		return nil, notFound.WithMetadata(orderid.HiddenKey, "true")
	}
	return &orderv1.GetOrderResponse{Order: o.order}, nil
}

func sharing(t *testing.T, orders orderv1.OrderServiceClient, secrets ...string) (checkoutv1.ShareServiceServer, *aShop) {
	t.Helper()
	s := newShop(secrets...)
	s.stored = orders
	share, err := NewShare(&s.Orders, false)
	if err != nil {
		t.Fatal(err)
	}
	return share, s
}

func TestShare_ATokenShowsTheOrderButNeitherItsIDNorItsCustomer(t *testing.T) {
	t.Parallel()
	ada := &access.Principal{Issuer: "https://login.example.org", Subject: "4711"}
	at := time.Date(2026, 11, 1, 12, 0, 0, 123_456_000, time.UTC)
	stored := &oneOrder{owner: ada.Owner(), order: &orderv1.Order{
		Id: uuid.Must(uuid.NewV7()).String(), State: orderv1.Order_CONFIRMED, CustomerName: "Ada", CustomerEmail: "ada@example.org",
		OrderItems: []*orderv1.OrderItem{{Line: 1, ProductId: 5, ProductName: "Laptop Stand", Quantity: 3}}, TotalItems: 3,
		CreatedAt: timestamppb.New(at), UpdatedAt: timestamppb.New(at.Add(time.Second)),
	}}
	share, _ := sharing(t, stored, "the secret in use", "the secret before")
	ask := &checkoutv1.ShareOrderRequest{OrderId: stored.order.GetId()}
	if _, err := share.ShareOrder(t.Context(), ask); apierror.ReasonOf(err) != "ORDER_NOT_FOUND" {
		t.Errorf("somebody who may not see the order shares it: %v", err)
	}
	got, err := share.ShareOrder(access.WithPrincipal(t.Context(), ada), ask)
	if err != nil {
		t.Fatal(err)
	}
	sealed, err := base64.RawURLEncoding.DecodeString(got.GetShareToken())
	if id := uuid.MustParse(stored.order.GetId()); err != nil || strings.Contains(string(sealed), string(id[8:])) {
		t.Errorf("the token %s has the id in it, or is none: %v", got.GetShareToken(), err)
	}

	seen, err := share.GetSharedOrder(t.Context(), &checkoutv1.GetSharedOrderRequest{ShareToken: got.GetShareToken()})
	if err != nil {
		t.Fatal(err)
	}
	order := seen.GetOrder()
	if order.GetState() != orderv1.Order_CONFIRMED || order.GetTotalItems() != 3 || order.GetOrderItems()[0].GetProductName() != "Laptop Stand" || len(order.GetReference()) != 8 {
		t.Errorf("shared is %v", order)
	}
	if !order.GetCreatedAt().AsTime().Equal(at.Truncate(time.Second)) {
		t.Errorf("it was placed at %s: the id begins with the millisecond", order.GetCreatedAt().AsTime())
	}
	text := strings.ToLower(protojson.Format(seen))
	for _, secret := range []string{stored.order.GetId()[:8], stored.order.GetId()[24:], "ada"} {
		if strings.Contains(text, secret) {
			t.Errorf("%q is shared: %s", secret, text)
		}
	}
}

func TestShare_ATokenIsGoodWhileItsSecretIs(t *testing.T) {
	t.Parallel()
	stored := &oneOrder{order: &orderv1.Order{Id: uuid.Must(uuid.NewV7()).String(), State: orderv1.Order_CONFIRMED}}
	tokenOf := func(secrets ...string) string {
		share, _ := sharing(t, stored, secrets...)
		got, err := share.ShareOrder(t.Context(), &checkoutv1.ShareOrderRequest{OrderId: stored.order.GetId()})
		if err != nil {
			t.Fatal(err)
		}
		return got.GetShareToken()
	}
	share, shop := sharing(t, stored, "the secret in use", "the secret before")
	current := tokenOf("the secret in use")
	if current == tokenOf("the secret in use") {
		t.Error("two tokens of an order are the same")
	}
	changed := []byte(current)
	changed[30] ^= 1
	for token, good := range map[string]bool{
		current: true, tokenOf("the secret before", "an old one"): true,
		tokenOf("a lost secret"): false, string(changed): false, current[:20]: false, "A": false, current + "AAAA": false, stored.order.GetId(): false,
	} {
		stored.asked = 0
		_, err := share.GetSharedOrder(t.Context(), &checkoutv1.GetSharedOrderRequest{ShareToken: token})
		if (err == nil) != good || !good && (apierror.ReasonOf(err) != "SHARE_NOT_FOUND" || stored.asked > 0) {
			t.Errorf("%s: %v, after %d calls of the order service", token, err, stored.asked)
		}
	}

	// An order can be shared before it is decided.
	placed := shop.mustPlace(t, request{}).GetOrderId()
	got, err := share.ShareOrder(t.Context(), &checkoutv1.ShareOrderRequest{OrderId: placed})
	if err != nil {
		t.Fatal(err)
	}
	seen, err := share.GetSharedOrder(t.Context(), &checkoutv1.GetSharedOrderRequest{ShareToken: got.GetShareToken()})
	if err != nil || seen.GetOrder().GetState() != orderv1.Order_PENDING {
		t.Errorf("shared before it is decided: %v, %v", seen, err)
	}
}

// Whoever had the id of an order that was not decided got a token, which showed the order when it was somebody else's.
func TestShare_AnOrderThatMayBeSomebodyElsesIsSharedOnceItIsDecided(t *testing.T) {
	t.Parallel()
	ada := &access.Principal{Issuer: "https://login.example.org", Subject: "4711"}
	eve := &access.Principal{Issuer: "https://login.example.org", Subject: "666"}
	operator := &access.Principal{Name: "grace", Roles: []string{"operator"}}
	stored := &oneOrder{owner: ada.Owner()}
	s := newShop("the secret in use")
	s.stored = stored
	share, err := NewShare(&s.Orders, true)
	if err != nil {
		t.Fatal(err)
	}
	placed := s.mustPlace(t, request{}).GetOrderId()
	for state, reasons := range map[orderv1.Order_State]map[*access.Principal]string{
		orderv1.Order_PENDING:   {nil: "ORDER_PENDING", eve: "ORDER_PENDING", ada: "ORDER_PENDING", operator: ""},
		orderv1.Order_CONFIRMED: {nil: "ORDER_NOT_FOUND", eve: "ORDER_NOT_FOUND", ada: "", operator: ""},
	} {
		if stored.order = nil; orderstate.IsDecided(state) {
			stored.order = &orderv1.Order{Id: placed, State: state}
		}
		for by, want := range reasons {
			_, err := share.ShareOrder(access.WithPrincipal(t.Context(), by), &checkoutv1.ShareOrderRequest{OrderId: placed})
			if apierror.ReasonOf(err) != want || (err == nil) != (want == "") {
				t.Errorf("%s, shared by %+v: %v, want %q", state, by, err, want)
			}
			if want == "ORDER_PENDING" && !slices.ContainsFunc(status.Convert(err).Details(), isRetryInfo) {
				t.Errorf("%s, shared by %+v: it does not say when to try again", state, by)
			}
		}
	}
}

func isRetryInfo(detail any) bool {
	_, ok := detail.(*errdetails.RetryInfo)
	return ok
}
