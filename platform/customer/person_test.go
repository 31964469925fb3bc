package customer

import (
	"testing"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	customerv1 "shop.example/gen/shop/customer/v1"
	eventsv1 "shop.example/gen/shop/events/v1"
	"shop.example/platform/contract"
)

func TestPerson_IsFoundHoweverTheAddressIsWritten(t *testing.T) {
	t.Parallel()
	for _, same := range [][]string{
		{"ada@example.org", "ADA@Example.Org"},
		{"José@exämple.org", "JOSÉ@EXÄMPLE.ORG", "josé@xn--exmple-cua.org", "jose\u0301@exa\u0308mple.org", "josé@XN--EXMPLE-CUA.org"},
		{"a_b%c@example.org", "A_B%C@example.org"},
		{"any text", "Any Text"},
		{"İ@example.org"},
	} {
		for _, asked := range same {
			p := Of(&customerv1.Person{Email: asked})
			for _, stored := range same {
				if !p.Matches(stored, "") {
					t.Errorf("%q is not found when %q is asked for", stored, asked)
				}
			}
			if p.Matches("", "") || p.Matches("bob@example.org", "issuer ada") || p.Matches(Erased, "") {
				t.Errorf("%q finds others", asked)
			}
		}
	}
}

func TestPerson_IsAnOwnerOrAnAddress(t *testing.T) {
	t.Parallel()
	owner := Of(&customerv1.Person{Owner: "https://login.example.org 17"})
	both := Of(&customerv1.Person{Owner: "https://login.example.org 17", Email: "ada@example.org"})
	for name, c := range map[string]struct{ got, want bool }{
		"the owner":               {owner.Matches("bob@example.org", "https://login.example.org 17"), true},
		"no owner":                {owner.Matches("ada@example.org", ""), false},
		"another owner":           {owner.Matches("", "https://login.example.org 171"), false},
		"another issuer":          {owner.Matches("", "https://evil.example.org 17"), false},
		"either, by the address":  {both.Matches("Ada@example.org", "https://login.example.org 18"), true},
		"either, by the owner":    {both.Matches("bob@example.org", "https://login.example.org 17"), true},
		"neither":                 {both.Matches("bob@example.org", "https://login.example.org 18"), false},
		"bytes with the address":  {both.NamedIn([]byte("\xff\x00\nADA@example.org\x12")), true},
		"bytes with the owner":    {owner.NamedIn([]byte("\xffhttps://login.example.org 17")), true},
		"bytes with neither":      {both.NamedIn([]byte("bob@example.org")), false},
		"bytes that are in turns": {Of(&customerv1.Person{Email: "josé@example.org"}).NamedIn([]byte("\xfeJOSE\u0301@example.org")), true},
	} {
		if c.got != c.want {
			t.Errorf("%s: %v", name, c.got)
		}
	}
}

// Nobody must be able to send again what was erased.
func TestErase_WhatIsLeftIsNoValidEventAndNamesNobody(t *testing.T) {
	t.Parallel()
	placed := &eventsv1.OrderPlaced{
		OrderId: "0190f1c2-3b4a-7c5d-8e6f-a0b1c2d3e4f5", CustomerName: "Ada", CustomerEmail: "ada@example.org", Owner: "https://login.example.org 17",
		Lines: []*eventsv1.RequestedLine{{ProductId: 1, Quantity: 1}}, PlacedAt: timestamppb.Now(),
		KeyHash: make([]byte, 32), PreviousKeyHash: make([]byte, 32), Fingerprint: make([]byte, 32),
	}
	if err := contract.Validate(placed); err != nil {
		t.Fatal(err)
	}
	want := &eventsv1.OrderPlaced{OrderId: placed.GetOrderId(), CustomerName: "(erased)", Lines: placed.GetLines(), PlacedAt: placed.GetPlacedAt()}
	Erase(placed)
	if !proto.Equal(placed, want) {
		t.Errorf("left is %v", placed)
	}
	if contract.Validate(placed) == nil {
		t.Error("it is a valid event still")
	}
}

func TestPerson_IsNamedByAHashInRecords(t *testing.T) {
	t.Parallel()
	// printf %s ada@example.org | sha256sum
	const want = "customer sha256:cfe00dde46ef9426"
	lower, upper := Of(&customerv1.Person{Email: "ada@example.org"}), Of(&customerv1.Person{Email: "ADA@example.org"})
	if got := lower.String(); got != want || upper.String() != want {
		t.Errorf("%s and %s, want %s", got, upper, want)
	}
}
