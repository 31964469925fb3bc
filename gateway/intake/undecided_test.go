package intake

import (
	"errors"
	"strings"
	"testing"

	"github.com/google/uuid"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"shop.example/domain/orderid"
	orderv1 "shop.example/gen/shop/order/v1"
	"shop.example/platform/apierror"
)

func TestAnswerUndecided_OnlyAnIDOfTheShopIsPending(t *testing.T) {
	t.Parallel()
	s := newShop("the new secret", "the old secret")
	notFound := apierror.New(codes.NotFound, "ORDER_NOT_FOUND", "there is no such order")
	given, before := s.mustPlace(t, request{}).GetOrderId(), newShop("the old secret").mustPlace(t, request{key: "1"}).GetOrderId()
	for what, c := range map[string]struct {
		id      string
		err     error
		pending bool
	}{
		"an id of this secret":            {given, notFound, true},
		"an id in capitals":               {strings.ToUpper(given), notFound, true},
		"an id of the previous secret":    {before, notFound, true},
		"an id of a lost secret":          {newShop("a lost secret").mustPlace(t, request{}).GetOrderId(), notFound, false},
		"an invented id":                  {uuid.NewString(), notFound, false},
		"an order of somebody else":       {given, notFound.WithMetadata(orderid.HiddenKey, "true"), false},
		"the order service is away":       {given, status.Error(codes.Unavailable, "connection refused"), false},
		"something else that is not here": {given, status.Error(codes.NotFound, "no such service"), false},
	} {
		var reply orderv1.GetOrderResponse
		err := s.AnswerUndecided(&orderv1.GetOrderRequest{OrderId: c.id}, &reply, c.err)
		want := &orderv1.Order{Id: strings.ToLower(c.id), State: orderv1.Order_PENDING}
		if (err == nil) != c.pending || c.pending && !proto.Equal(reply.GetOrder(), want) || !c.pending && status.Code(err) != status.Code(c.err) {
			t.Errorf("%s is read as %v, %v", what, reply.GetOrder(), err)
		}
		if strings.Contains(status.Convert(err).String(), orderid.HiddenKey) {
			t.Errorf("%s: clients are told that the order is somebody else's", what)
		}
		err = s.AnswerUndecided(&orderv1.CancelOrderRequest{OrderId: c.id}, &orderv1.CancelOrderResponse{}, c.err)
		if got := apierror.ReasonOf(err) == "ORDER_PENDING"; got != c.pending || !c.pending && status.Code(err) != status.Code(c.err) {
			t.Errorf("%s is cancelled with %v", what, err)
		}
	}
	refused := errors.New("any other error")
	if err := s.AnswerUndecided(&orderv1.ListOrdersRequest{}, &orderv1.ListOrdersResponse{}, refused); !errors.Is(err, refused) {
		t.Errorf("another call: %v", err)
	}
}
