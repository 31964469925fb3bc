package customer

import (
	"slices"
	"strings"
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

// Ada's dead letters were handed out to whoever is da@example.org, and discarded with theirs.
func TestPerson_IsNotNamedByAPartOfSomebodyElsesAddressOrOwner(t *testing.T) {
	t.Parallel()
	da, seventeen := Of(&customerv1.Person{Email: "da@example.org"}), Of(&customerv1.Person{Owner: "https://login.example.org 17"})
	long := strings.Repeat("d", 60) + "@example.org" // its length is a letter
	for _, c := range []struct {
		person Person
		data   string
		want   bool
	}{
		{da, "ada@example.org", false},
		{da, "x.da@example.org", false},
		{da, "x+DA@example.org", false},
		{da, "\u00e9da@example.org", false},
		{da, "da@example.org.uk", false},
		{da, "da@example.organic", false},
		{da, "da@example.org-x", false},
		{da, "\x1a\x0fada@example.org\x22", false},
		{da, "ada@example.org, da@example.org", true},
		{da, "it failed for da@example.org.", true},
		{da, "to=<DA@Example.org>", true},
		{da, "mailto:da@example.org", true},
		{da, "da@example.org: 550", true},
		{da, `"da@example.org"`, true},
		{da, "\xffda@example.org\xff", true},
		{da, "\x1a\x0eda@example.org2\x20", true},
		{Of(&customerv1.Person{Email: long}), "\x1a" + string(rune(len(long))) + strings.ToUpper(long) + "2\x20", true},
		{Of(&customerv1.Person{Email: "a"}), "ada@example.org", false},
		{Of(&customerv1.Person{Email: "example.org"}), "ada@example.org", false},
		{Of(&customerv1.Person{Email: "@example.org"}), "ada@example.org", false},
		{seventeen, "https://login.example.org 171", false},
		{seventeen, "https://login.example.org 17|8", false},
		{seventeen, `"owner": "https://login.example.org 17"`, true},
	} {
		if got := c.person.NamedIn([]byte(c.data)); got != c.want {
			t.Errorf("%s in %q: %v", c.person.email+c.person.owner, c.data, got)
		}
	}
}

// An address whose domain is written in full-width letters was not found by the usual way to write it.
func TestPatterns_FitEachAddressThatMatches(t *testing.T) {
	t.Parallel()
	p := Of(&customerv1.Person{Email: "a_b@example.org"})
	for _, stored := range []string{"a_b@example.org", "a_b@\uff45\uff58\uff41\uff4d\uff50\uff4c\uff45.org", "A_B@example\u3002org"} {
		if !p.Matches(stored, "") {
			t.Errorf("%q is not found", stored)
		}
	}
	if got := p.Patterns(); !slices.Equal(got, []string{`a\_b@%`}) {
		t.Errorf("%q", got)
	}
	if got := Of(&customerv1.Person{Email: "50% of any text"}).Patterns(); !slices.Equal(got, []string{`50\% of any text`}) {
		t.Errorf("%q", got)
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
	want := &eventsv1.OrderPlaced{OrderId: placed.GetOrderId(), CustomerName: "(erased)", Owner: "(erased)", Lines: placed.GetLines(), PlacedAt: placed.GetPlacedAt()}
	nobodys := proto.CloneOf(placed)
	nobodys.Owner = ""
	for range 2 { // erased again it is the same
		Erase(placed)
		if !proto.Equal(placed, want) {
			t.Errorf("left is %v", placed)
		}
	}
	if Erase(nobodys); nobodys.GetOwner() != "" {
		t.Errorf("an order that had no owner belongs to %q", nobodys.GetOwner())
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
