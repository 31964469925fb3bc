package enduser_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"strings"
	"testing"

	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"

	"shop.example/domain/enduser"
	accessv1 "shop.example/gen/shop/access/v1"
	"shop.example/platform/contract"
)

// received is ctx as the server has it that was called with it, by a client whose certificate has the names.
func received(ctx context.Context, certificate ...string) context.Context {
	md, _ := metadata.FromOutgoingContext(ctx)
	ctx = metadata.NewIncomingContext(context.Background(), md)
	if certificate == nil {
		return ctx
	}
	return peer.NewContext(ctx, &peer.Peer{AuthInfo: credentials.TLSInfo{State: tls.ConnectionState{
		VerifiedChains: [][]*x509.Certificate{{{DNSNames: certificate}}},
	}}})
}

func TestMayAccess_IsForTheOwnerAndOperatorsAndServices(t *testing.T) {
	t.Parallel()
	const issuer, ada = "https://login.example.org", "https://login.example.org 4711"
	all := []string{"gateway", "order", "inventory", "logging"}
	nobody, owner := &accessv1.EndUser{}, &accessv1.EndUser{Issuer: issuer, Subject: "4711"}
	for what, c := range map[string]struct {
		user        *accessv1.EndUser // nil if the client says nothing
		certificate []string
		ada, free   bool // whether the order of Ada may be accessed, and one that is nobody's
	}{
		"the owner":                         {user: owner, ada: true, free: true},
		"somebody else":                     {user: &accessv1.EndUser{Issuer: issuer, Subject: "4712"}, free: true},
		"the same name of another issuer":   {user: &accessv1.EndUser{Issuer: "https://evil.example.org", Subject: "4711"}, free: true},
		"a name that contains the other's":  {user: &accessv1.EndUser{Issuer: "https://login.example.org 4711", Subject: ""}, free: true},
		"nobody":                            {user: nobody, free: true},
		"an operator":                       {user: &accessv1.EndUser{Operator: true}, ada: true, free: true},
		"a service, on this machine":        {ada: true, free: true},
		"the owner, from the gateway":       {user: owner, certificate: []string{"gateway"}, ada: true, free: true},
		"nobody, from the gateway":          {user: nobody, certificate: []string{"gateway"}, free: true},
		"a gateway that does not say":       {certificate: []string{"gateway"}, free: true},
		"another service":                   {certificate: []string{"inventory"}, ada: true, free: true},
		"another service, for somebody":     {user: nobody, certificate: []string{"inventory"}, ada: true, free: true},
		"services that share a certificate": {certificate: all, ada: true, free: true},
		"nobody, by a shared certificate":   {user: nobody, certificate: all, free: true},
	} {
		ctx := t.Context()
		if c.user != nil {
			ctx = enduser.With(ctx, c.user)
		}
		ctx = received(ctx, c.certificate...)
		if got := enduser.MayAccess(ctx, ada); got != c.ada {
			t.Errorf("%s: Ada's order %v, want %v", what, got, c.ada)
		}
		if got := enduser.MayAccess(ctx, ""); got != c.free {
			t.Errorf("%s: nobody's order %v, want %v", what, got, c.free)
		}
	}
}

func TestOf_AnEndUserThatCannotBeDecodedIsAnonymous(t *testing.T) {
	t.Parallel()
	operator := enduser.With(t.Context(), &accessv1.EndUser{Operator: true})
	for what, ctx := range map[string]context.Context{
		"said twice": enduser.With(operator, &accessv1.EndUser{}),
		"garbage":    metadata.AppendToOutgoingContext(t.Context(), "shop-end-user-bin", "\xff\xff"),
	} {
		if user, external := enduser.Of(received(ctx)); !external || user.GetOperator() || user.GetIssuer() != "" {
			t.Errorf("%s: %v, external %v", what, user, external)
		}
	}
}

func TestOperator_IsNamedByTokenOrSubject(t *testing.T) {
	t.Parallel()
	const issuer = "https://login.example.org"
	for want, user := range map[string]*accessv1.EndUser{
		"ada":                            {Operator: true, Name: "ada"},
		"operator token":                 {Operator: true},
		"https://login.example.org 4711": {Operator: true, Issuer: issuer, Subject: "4711"},
		"unknown":                        {},
	} {
		ctx := received(enduser.With(t.Context(), user))
		if got := enduser.Operator(ctx); got != want || enduser.IsOperator(ctx) != user.GetOperator() {
			t.Errorf("%v is %q, an operator %v", user, got, enduser.IsOperator(ctx))
		}
	}
	if ctx := received(t.Context()); enduser.IsOperator(ctx) {
		t.Error("a service that asks for itself is taken for an operator")
	}
}

// What is recorded has to fit the contract, whatever the names are: else the deed could not be done.
func TestActed_IsAValidEventWhateverTheTextsAre(t *testing.T) {
	t.Parallel()
	for _, text := range []string{"a", "\x00\xff", strings.Repeat("é", 5000), strings.Repeat("😀", 5000)} {
		m := enduser.Acted(text, "/shop.inventory.v1.InventoryService/UpdateItem", text, text)
		if err := contract.Validate(m); err != nil {
			t.Errorf("%.10q: %v", text, err)
		}
	}
	if m := enduser.Acted("ada", "/a/b", "item 5", ""); m.GetMethod() != "a/b" || m.GetDetail() != "" || m.GetTarget() != "item 5" {
		t.Errorf("%v", m)
	}
}
