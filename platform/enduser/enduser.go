// Package enduser carries on whose behalf the gateway calls another service. The gateway knows who calls, by their token;
// the services know whose an order is.
package enduser

import (
	"context"
	"slices"

	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/proto"

	accessv1 "shop.example/gen/shop/access/v1"
	"shop.example/platform/transport"
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
	names := transport.PeerNames(ctx)
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
