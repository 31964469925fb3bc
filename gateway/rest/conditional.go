package rest

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"net/http"
	"slices"
	"strings"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"shop.example/domain/orderstate"
	checkoutv1 "shop.example/gen/shop/checkout/v1"
	inventoryv1 "shop.example/gen/shop/inventory/v1"
	orderv1 "shop.example/gen/shop/order/v1"
	"shop.example/platform/apierror"
)

// conditions are the headers If-Match and If-None-Match of a call (RFC 9110, section 13).
type conditions struct {
	match, noneMatch []string // entity tags without their quotes, "*" for any; nil if the header was not sent
}

const anyTag = "*"

// withConditions puts the conditions of a call into its context, if it has any.
func withConditions(r *http.Request) (_ *http.Request, err error) {
	ifMatch, ifNoneMatch := r.Header["If-Match"], r.Header["If-None-Match"]
	if len(ifMatch) == 0 && len(ifNoneMatch) == 0 {
		return r, nil
	}
	c := &conditions{}
	if c.match, err = parseTags("If-Match", ifMatch, false); err != nil {
		return r, err
	}
	if c.noneMatch, err = parseTags("If-None-Match", ifNoneMatch, true); err != nil {
		return r, err
	}
	return r.WithContext(context.WithValue(r.Context(), conditionsKey{}, c)), nil
}

// parseTags reads the values of a header; nil if there are none. Weak tags count only if weak is set: no representation has one that is changed.
func parseTags(name string, values []string, weak bool) (tags []string, err error) {
	if len(values) == 0 {
		return nil, nil
	}
	tags = []string{}
	rest := strings.Join(values, ",")
	for {
		if rest = strings.TrimLeft(rest, " \t,"); rest == "" {
			return tags, nil
		}
		if after, is := strings.CutPrefix(rest, anyTag); is {
			tags, rest = append(tags, anyTag), after
			continue
		}
		opaque, isWeak := strings.CutPrefix(rest, "W/")
		opaque, quoted := strings.CutPrefix(opaque, `"`)
		tag, after, closed := strings.Cut(opaque, `"`)
		if !quoted || !closed {
			return nil, apierror.InvalidArgument(apierror.Violation{Field: name, Description: `must be * or entity tags in quotes, as they stand in ETag: "3"`})
		}
		if rest = after; weak || !isWeak {
			tags = append(tags, tag)
		}
	}
}

// hold reports whether a resource with this tag may be changed, or sent. The tag of a compressed response has a suffix.
func (c *conditions) hold(tag string) bool {
	has := func(tags []string) bool {
		return slices.ContainsFunc(tags, func(given string) bool { return given == anyTag || strings.TrimSuffix(given, gzipSuffix) == tag })
	}
	return (c.match == nil || has(c.match)) && (c.noneMatch == nil || !has(c.noneMatch))
}

type conditionsKey struct{}

// conditionalConn makes calls under the conditions that are in their context.
type conditionalConn struct{ grpc.ClientConnInterface }

// Invoke implements grpc.ClientConnInterface.
func (conn conditionalConn) Invoke(ctx context.Context, method string, args, reply any, opts ...grpc.CallOption) error {
	c, _ := ctx.Value(conditionsKey{}).(*conditions)
	if c == nil {
		return conn.ClientConnInterface.Invoke(ctx, method, args, reply, opts...)
	}
	if err := c.demand(ctx, conn.ClientConnInterface, args); err != nil {
		return err
	}
	err := conn.ClientConnInterface.Invoke(ctx, method, args, reply, opts...)
	switch reply := reply.(type) {
	case *orderv1.GetOrderResponse, *inventoryv1.GetItemResponse:
		if tag := tagOf(reply.(proto.Message)); err == nil && !c.hold(tag) {
			return c.unmet(tag)
		}
	case *inventoryv1.UpdateItemResponse, *inventoryv1.DeleteItemResponse:
		if apierror.ReasonOf(err) == "ETAG_MISMATCH" {
			return errPrecondition
		}
	}
	return err
}

// unmet returns the response to a read whose conditions do not hold.
func (c *conditions) unmet(tag string) error {
	if held := (&conditions{match: c.match}).hold(tag); !held {
		return errPrecondition
	}
	if compressed := tag + gzipSuffix; slices.Contains(c.noneMatch, compressed) && !slices.Contains(c.noneMatch, tag) {
		tag = compressed // the client has it in this form
	}
	return notModified{tag}
}

// noTag is the etag of no item.
const noTag = "none"

// demand reads what a request is about to change, and sets the etag in the request so that the change fails if it has
// changed since. The service compares again, in its transaction. If the conditions do not hold, an update demands an etag
// that no item has: the service then reports what else is wrong with the request, which takes precedence.
func (c *conditions) demand(ctx context.Context, conn grpc.ClientConnInterface, request any) error {
	switch request := request.(type) {
	case *inventoryv1.UpdateItemRequest:
		tag, err := c.itemTag(ctx, conn, request.GetItem().GetId())
		if item := request.GetItem(); item != nil && (item.GetEtag() == "" || tag == noTag) {
			item.Etag = tag
		}
		return err
	case *inventoryv1.DeleteItemRequest:
		tag, err := c.itemTag(ctx, conn, request.GetId())
		if err == nil && tag == noTag {
			return errPrecondition // not the service's, which ignores the etag if it is of the release before
		}
		if request.GetEtag() == "" {
			request.Etag = tag
		}
		return err
	case *orderv1.CancelOrderRequest:
		read, err := orderv1.NewOrderServiceClient(conn).GetOrder(ctx, &orderv1.GetOrderRequest{OrderId: request.GetOrderId()})
		if err == nil && !c.hold(tagOf(read)) {
			return errPrecondition // an order that is cancelled meanwhile stays so: nobody's change is lost
		}
		return unlessRefused(err)
	}
	return nil
}

func (c *conditions) itemTag(ctx context.Context, conn grpc.ClientConnInterface, id int32) (tag string, err error) {
	read, err := inventoryv1.NewInventoryServiceClient(conn).GetItem(ctx, &inventoryv1.GetItemRequest{Id: id})
	if tag = tagOf(read); err == nil && !c.hold(tag) {
		tag = noTag
	}
	return tag, unlessRefused(err)
}

// unlessRefused returns nil for an error that the change itself will fail with, in its own terms.
func unlessRefused(err error) error {
	switch status.Code(err) {
	case codes.InvalidArgument, codes.NotFound, codes.Unauthenticated, codes.PermissionDenied:
		return nil
	}
	return err
}

// errPrecondition is the error of a call whose conditions do not hold.
var errPrecondition = httpError{http.StatusPreconditionFailed, apierror.New(codes.Aborted, "PRECONDITION_FAILED",
	"it is not as If-Match or If-None-Match demands: read it again, and send its new ETag")}

// notModified is the error that the client already has what it asked for.
type notModified struct{ tag string }

func (notModified) Error() string { return "not modified" }

func quoted(tag string) string { return `"` + tag + `"` }

// tagOf returns the entity tag of a response; "" if it has none. An item's tag is its etag, which changes with its stock.
// An order's is a hash of it, because no version of it changes with everything: personal data may be erased.
func tagOf(response proto.Message) string {
	switch m := response.(type) {
	case *inventoryv1.GetItemResponse:
		return m.GetItem().GetEtag()
	case *inventoryv1.UpdateItemResponse:
		return m.GetItem().GetEtag()
	case *orderv1.GetOrderResponse:
		return orderTag(m.GetOrder())
	case *orderv1.CancelOrderResponse:
		return orderTag(m.GetOrder())
	case *checkoutv1.PlaceOrderResponse:
		if orderstate.IsDecided(m.GetOrder().GetState()) {
			return orderTag(m.GetOrder())
		}
	}
	return ""
}

func orderTag(o *orderv1.Order) string {
	encoded, err := proto.MarshalOptions{Deterministic: true}.Marshal(o)
	if err != nil {
		return "" // not of an order that was received
	}
	sum := sha256.Sum256(encoded)
	return hex.EncodeToString(sum[:8])
}
