// Package enduser tells a service on whose behalf the gateway calls it, in gRPC metadata. The gateway knows the caller by
// their token; the services decide by it who may see an order, and record operators' actions under their names.
package enduser

import (
	"context"
	"slices"
	"strings"

	"github.com/google/uuid"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	accessv1 "shop.example/gen/shop/access/v1"
	eventsv1 "shop.example/gen/shop/events/v1"
	"shop.example/platform/mtls"
)

const (
	key = "shop-end-user-bin"
	// front is the only service whose word is taken for it. another is any other service: a certificate with both names is
	// shared by all services.
	front, another = "gateway", "inventory"
)

// With returns ctx for outgoing calls that are made on behalf of c. An empty c is an anonymous client.
func With(ctx context.Context, c *accessv1.EndUser) context.Context {
	encoded, err := proto.Marshal(c)
	if err != nil { // not of a message with these fields
		encoded = nil
	}
	return metadata.AppendToOutgoingContext(ctx, key, string(encoded))
}

// Of returns on whose behalf the incoming call in ctx is made. external is false if that is no client of the shop but another
// service, which may access everything. Only the gateway's word is taken: with mutual TLS the caller's certificate shows that
// it is the gateway; without TLS all services are on one machine.
func Of(ctx context.Context) (c *accessv1.EndUser, external bool) {
	names := mtls.PeerNames(ctx)
	said := metadata.ValueFromIncomingContext(ctx, key)
	switch {
	case len(names) > 0 && !slices.Contains(names, front):
		return nil, false
	case len(said) == 0:
		// A gateway always says on whose behalf it calls, unless it is older than that. Services that share one certificate
		// are not told apart.
		return &accessv1.EndUser{}, len(names) > 0 && !slices.Contains(names, another)
	}
	c = &accessv1.EndUser{}
	if len(said) > 1 || proto.Unmarshal([]byte(said[0]), c) != nil {
		return &accessv1.EndUser{}, true
	}
	return c, true
}

// Owner returns the form in which an order stores whom it belongs to: issuer and subject, separated by a space; "" for nobody.
func Owner(issuer, subject string) string {
	if issuer == "" {
		return ""
	}
	return issuer + " " + subject
}

// MayAccess reports whether the incoming call in ctx may see and change what belongs to owner. What has no owner ("") may be
// accessed by everybody who knows its id.
func MayAccess(ctx context.Context, owner string) bool {
	c, external := Of(ctx)
	return !external || owner == "" || c.GetOperator() || Owner(c.GetIssuer(), c.GetSubject()) == owner
}

// IsOperator reports whether the incoming call in ctx is made on behalf of an operator.
func IsOperator(ctx context.Context) bool {
	c, external := Of(ctx)
	return external && c.GetOperator()
}

// Operator returns the name of the operator on whose behalf the incoming call in ctx is made: the one that belongs to the
// token, or issuer and subject; never "".
func Operator(ctx context.Context) string {
	c, _ := Of(ctx)
	switch {
	case c.GetName() != "":
		return c.GetName()
	case c.GetIssuer() != "":
		return Owner(c.GetIssuer(), c.GetSubject())
	case c.GetOperator():
		return "operator token" // a gateway that knows no names
	}
	return "unknown" // a gateway of the release before
}

// The bounds of OperatorActed, in characters.
const (
	maxOperator = 1100
	maxTarget   = 200
	maxDetail   = 2000
)

// Acted returns the event that records an operator's action; it has a new id each time. Add it to the outbox in the transaction
// of the action. operator is who acted; method the full name of the gRPC method, with or without a leading slash, or of the
// message; target what was acted on; detail what has changed. Texts that are too long are truncated.
func Acted(operator, method, target, detail string) *eventsv1.OperatorActed {
	return &eventsv1.OperatorActed{
		ActionId: uuid.Must(uuid.NewV7()).String(),
		Operator: cut(operator, maxOperator),
		Method:   strings.TrimPrefix(method, "/"),
		Target:   cut(target, maxTarget),
		Detail:   cut(detail, maxDetail),
		ActedAt:  timestamppb.Now(),
	}
}

// cut returns s as a database can store it, in valid UTF-8 and without NUL, truncated to n characters.
func cut(s string, n int) string {
	s = strings.ReplaceAll(strings.ToValidUTF8(s, "\uFFFD"), "\x00", "\uFFFD")
	for i := range s {
		if n--; n < 0 {
			return s[:i]
		}
	}
	return s
}
