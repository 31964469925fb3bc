// Package enduser carries on whose behalf the gateway calls another service. The gateway knows who calls, by their token;
// the services know whose an order is, and record what operators do.
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
	// front is the service that is believed, and another is a service that is not.
	front, another = "gateway", "inventory"
)

// With returns ctx for calls that are made on behalf of c, who is nobody in particular if c is empty.
func With(ctx context.Context, c *accessv1.EndUser) context.Context {
	encoded, err := proto.Marshal(c)
	if err != nil { // not of a message with these fields
		encoded = nil
	}
	return metadata.AppendToOutgoingContext(ctx, key, string(encoded))
}

// Of returns on whose behalf the call is made that ctx is of. external is false if no client stands behind it: another
// service asks for itself, and may know everything. Only the gateway is believed, which with mutual TLS shows its
// certificate; without, all is on one machine.
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

// Owner is how an order keeps whom it belongs to: issuer and subject, separated by a space; "" for nobody.
func Owner(issuer, subject string) string {
	if issuer == "" {
		return ""
	}
	return issuer + " " + subject
}

// MayAccess says whether the call that ctx is of may see and change what belongs to owner, "" for what belongs to
// whoever knows its id.
func MayAccess(ctx context.Context, owner string) bool {
	c, external := Of(ctx)
	return !external || owner == "" || c.GetOperator() || Owner(c.GetIssuer(), c.GetSubject()) == owner
}

// IsOperator says whether the call that ctx is of is made on behalf of an operator.
func IsOperator(ctx context.Context) bool {
	c, external := Of(ctx)
	return external && c.GetOperator()
}

// Operator is who the operator is on whose behalf the call is made that ctx is of: the name that belongs to the token, or
// issuer and subject.
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

// Acted is the event by which a deed is recorded, published in its transaction. operator is who did it; method the full
// name of the call, with or without a slash before it, or of the message; target what it was done to, and detail what has
// changed. Texts that are too long are cut.
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

// cut is s as a text field of at most n characters takes it.
func cut(s string, n int) string {
	s = strings.ReplaceAll(strings.ToValidUTF8(s, "\uFFFD"), "\x00", "\uFFFD")
	for i := range s {
		if n--; n < 0 {
			return s[:i]
		}
	}
	return s
}
