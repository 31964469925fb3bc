package intake

import (
	"context"
	"crypto/aes"
	"crypto/cipher"
	"encoding/base64"
	"encoding/hex"
	"time"

	"github.com/google/uuid"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/types/known/timestamppb"

	"shop.example/domain/enduser"
	"shop.example/domain/orderstate"
	"shop.example/gateway/access"
	"shop.example/gateway/upstream"
	accessv1 "shop.example/gen/shop/access/v1"
	checkoutv1 "shop.example/gen/shop/checkout/v1"
	orderv1 "shop.example/gen/shop/order/v1"
	"shop.example/platform/apierror"
)

// share implements ShareService. A share token is the encrypted id of the order: who has one cannot learn the id, which lets
// cancel the order and see its customer, and nothing has to be kept (docs/adr/0041).
type share struct {
	checkoutv1.UnimplementedShareServiceServer
	orders  *Orders
	owned   bool          // orders may belong to somebody
	ciphers []cipher.AEAD // by the orders' secrets
}

// NewShare returns the service that shows orders to others. owned says that there is an issuer of tokens, to whose subjects
// orders belong.
func NewShare(orders *Orders, owned bool) (checkoutv1.ShareServiceServer, error) {
	s := share{orders: orders, owned: owned}
	for _, secret := range orders.secrets {
		block, err := aes.NewCipher(secret.mac("share token"))
		if err != nil {
			return nil, err
		}
		sealed, err := cipher.NewGCMWithRandomNonce(block)
		if err != nil {
			return nil, err
		}
		s.ciphers = append(s.ciphers, sealed)
	}
	return s, nil
}

// ShareOrder is part of checkoutv1.ShareServiceServer.
func (s share) ShareOrder(ctx context.Context, req *checkoutv1.ShareOrderRequest) (*checkoutv1.ShareOrderResponse, error) {
	order, err := s.orders.get(access.OnBehalfOf(ctx), req.GetOrderId())
	if err != nil {
		return nil, err
	}
	// Whose it is stands with the order, once it is decided.
	if s.owned && !orderstate.IsDecided(order.GetState()) && !access.PrincipalOf(ctx).IsOperator() {
		return nil, apierror.New(codes.Aborted, "ORDER_PENDING", "order %s is not decided yet; it can be shared once it is", order.GetId()).
			WithRetryAfter(decisionDelay)
	}
	id, err := uuid.Parse(order.GetId())
	if err != nil {
		return nil, err
	}
	return &checkoutv1.ShareOrderResponse{ShareToken: base64.RawURLEncoding.EncodeToString(s.ciphers[0].Seal(nil, nil, id[:], nil))}, nil
}

// GetSharedOrder is part of checkoutv1.ShareServiceServer.
func (s share) GetSharedOrder(ctx context.Context, req *checkoutv1.GetSharedOrderRequest) (*checkoutv1.GetSharedOrderResponse, error) {
	id, ok := s.open(req.GetShareToken())
	if !ok {
		return nil, errNoShare
	}
	// The token is the right to read the order, whoever it belongs to.
	order, err := s.orders.get(enduser.With(ctx, &accessv1.EndUser{Operator: true}), id.String())
	if apierror.ReasonOf(err) == "ORDER_NOT_FOUND" {
		return nil, errNoShare
	}
	if err != nil {
		return nil, err
	}
	return &checkoutv1.GetSharedOrderResponse{Order: s.withoutCustomer(id, order)}, nil
}

var errNoShare = apierror.New(codes.NotFound, "SHARE_NOT_FOUND", "this share token shows no order, or not any more: ask whoever shared the order for a new one")

// open returns the id of the order that a token is for.
func (s share) open(token string) (id uuid.UUID, ok bool) {
	sealed, err := base64.RawURLEncoding.DecodeString(token)
	if err != nil {
		return id, false
	}
	for _, c := range s.ciphers {
		if text, err := c.Open(nil, nil, sealed, nil); err == nil && len(text) == len(id) {
			return uuid.UUID(text), true
		}
	}
	return id, false
}

// withoutCustomer is the order as others see it. What they get is listed, so that a new field is not shown unless it is
// meant to be.
func (s share) withoutCustomer(id uuid.UUID, o *orderv1.Order) *checkoutv1.SharedOrder {
	return &checkoutv1.SharedOrder{
		Reference: hex.EncodeToString(s.orders.secrets[0].mac("share reference", string(id[:]))[:4]),
		State:     o.GetState(), Reason: o.Reason, RejectionDetail: o.RejectionDetail,
		OrderItems: o.GetOrderItems(), TotalItems: o.GetTotalItems(), TotalValue: o.GetTotalValue(),
		CreatedAt: toTheSecond(o.GetCreatedAt()), UpdatedAt: toTheSecond(o.GetUpdatedAt()),
	}
}

// toTheSecond hides the part of a time that the id of an order has in it.
func toTheSecond(t *timestamppb.Timestamp) *timestamppb.Timestamp {
	if t == nil {
		return nil
	}
	return timestamppb.New(t.AsTime().Truncate(time.Second))
}

// get reads an order, which may be one that is not decided yet.
func (o *Orders) get(ctx context.Context, id string) (*orderv1.Order, error) {
	ctx, cancel := context.WithTimeout(ctx, upstream.CallTimeout)
	defer cancel()
	req := &orderv1.GetOrderRequest{OrderId: id}
	got, err := o.stored.GetOrder(ctx, req)
	if err == nil {
		return got.GetOrder(), nil
	}
	undecided := &orderv1.GetOrderResponse{}
	if err := o.AnswerUndecided(req, undecided, err); err != nil {
		return nil, upstream.Error("order", err)
	}
	return undecided.GetOrder(), nil
}
