package intake

import (
	"slices"
	"time"

	"github.com/google/uuid"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"shop.example/domain/orderid"
	orderv1 "shop.example/gen/shop/order/v1"
	"shop.example/platform/apierror"
)

// decisionDelay is how long clients are told to wait before they try again to cancel, or share, an order that is not decided.
const decisionDelay = time.Second

// AnswerUndecided answers calls about orders that the order service does not know, but whose ids the shop gave. It is an
// upstream.Fallback.
//
// A signed id is one that the shop gave: the order was accepted and waits to be decided. It is PENDING, and nothing more is
// known about it here. Within the shop GetOrder returns NOT_FOUND for it, because inventory, for example, must know what is
// stored: it releases the stock held for an order that the order service does not know. Signatures are used for nothing
// else; ids of older releases have none.
func (o *Orders) AnswerUndecided(request, reply proto.Message, err error) error {
	notFound := notFoundInfo(err)
	if notFound == nil {
		return err
	}
	if notFound.GetMetadata()[orderid.HiddenKey] != "" { // it has been decided, for somebody else
		return apierror.New(codes.NotFound, "ORDER_NOT_FOUND", "%s", status.Convert(err).Message())
	}
	asked, parseErr := uuid.Parse(orderid.Of(request))
	if parseErr != nil || !slices.ContainsFunc(o.secrets, func(s *Secret) bool { return s.signed(asked) }) {
		return err
	}
	switch reply := reply.(type) {
	case *orderv1.GetOrderResponse:
		reply.Order = &orderv1.Order{Id: asked.String(), State: orderv1.Order_PENDING}
		return nil
	case *orderv1.CancelOrderResponse:
		return apierror.New(codes.Aborted, "ORDER_PENDING", "order %s is not decided yet; it can be cancelled once it is confirmed", asked).
			WithRetryAfter(decisionDelay)
	}
	return err
}

// notFoundInfo returns the details of an ORDER_NOT_FOUND of the order service itself; nil for any other error.
func notFoundInfo(err error) *errdetails.ErrorInfo {
	s := status.Convert(err)
	if s.Code() != codes.NotFound {
		return nil
	}
	for _, detail := range s.Details() {
		if info, ok := detail.(*errdetails.ErrorInfo); ok && info.GetDomain() == apierror.Domain && info.GetReason() == "ORDER_NOT_FOUND" {
			return info
		}
	}
	return nil
}
