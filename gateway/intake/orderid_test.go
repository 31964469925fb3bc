package intake

import (
	"context"
	"encoding/hex"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/uuid"
	"golang.org/x/sync/semaphore"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"shop.example/gateway/access"
	eventsv1 "shop.example/gen/shop/events/v1"
	moneyv1 "shop.example/gen/shop/money/v1"
	orderv1 "shop.example/gen/shop/order/v1"
	"shop.example/platform/apierror"
	"shop.example/platform/contract"
)

// aShop takes orders with the two things beside it that matter here: a broker that keeps what it gets, and an order
// service that knows some keys.
type aShop struct {
	orderv1.IntakeServiceClient // nil: orders ask for nothing but FindKey
	Orders
	published []*eventsv1.OrderPlaced
	announced string // the id of the order that is being placed
	header    callHeader
	find      func(context.Context, *orderv1.FindKeyRequest) (*orderv1.FindKeyResponse, error)
}

// FindKey makes the shop an orderv1.IntakeServiceClient.
func (s *aShop) FindKey(ctx context.Context, req *orderv1.FindKeyRequest, _ ...grpc.CallOption) (*orderv1.FindKeyResponse, error) {
	return s.find(ctx, req)
}

func newShop(secrets ...string) *aShop {
	s := &aShop{find: func(context.Context, *orderv1.FindKeyRequest) (*orderv1.FindKeyResponse, error) {
		return nil, status.Error(codes.Unavailable, "the order service is away")
	}}
	counts, err := newMetrics(nil)
	if err != nil {
		panic(err)
	}
	s.Orders = Orders{
		metrics: counts,
		keys:    s, inFlight: semaphore.NewWeighted(1), log: slog.New(slog.DiscardHandler),
		publish: func(_ context.Context, m proto.Message) error {
			s.published = append(s.published, m.(*eventsv1.OrderPlaced))
			return nil
		},
	}
	for _, secret := range secrets {
		s.secrets = append(s.secrets, NewSecret(secret))
	}
	return s
}

// callHeader is what a call is answered with before its response.
type callHeader struct{ metadata.MD }

func (*callHeader) Method() string                    { return "" }
func (h *callHeader) SetHeader(md metadata.MD) error  { h.MD = metadata.Join(h.MD, md); return nil }
func (h *callHeader) SendHeader(md metadata.MD) error { return h.SetHeader(md) }
func (*callHeader) SetTrailer(metadata.MD) error      { return nil }

// request is a call that places an order.
type request struct {
	by               *access.Principal
	key, name, email string
	lines            []*eventsv1.RequestedLine
}

func (s *aShop) place(t *testing.T, r request) (*orderv1.Order, error) {
	t.Helper()
	md := metadata.MD{}
	if r.key != "" {
		md.Set(idempotencyKey, r.key)
	}
	if r.lines == nil {
		r.lines = []*eventsv1.RequestedLine{{ProductId: 1, Quantity: 2}}
	}
	if r.name == "" {
		r.name, r.email = "Ada", "ada@example.org"
	}
	s.announced, s.header = "", callHeader{}
	ctx := grpc.NewContextWithServerTransportStream(metadata.NewIncomingContext(t.Context(), md), &s.header)
	return s.Orders.Place(access.WithPrincipal(ctx, r.by), &eventsv1.OrderPlaced{CustomerName: r.name, CustomerEmail: r.email, Lines: r.lines}, func(id string) {
		if s.announced = id; len(s.published) > 0 && s.published[len(s.published)-1].GetOrderId() == id && r.key == "" {
			t.Error("the id is told after the order was published")
		}
	})
}

func (s *aShop) mustPlace(t *testing.T, r request) *eventsv1.OrderPlaced {
	t.Helper()
	order, err := s.place(t, r)
	if err != nil {
		t.Fatal(err)
	}
	m := s.published[len(s.published)-1]
	if m.GetOrderId() != order.GetId() || s.announced != order.GetId() || contract.Validate(m) != nil {
		t.Fatalf("answered with order %s and published %v: %v", order.GetId(), m, contract.Validate(m))
	}
	return m
}

// Two customers who sent the same key before either order was stored got one id, and the second order never existed.
func TestIdempotencyKey_TwoCustomersWithOneKeyGotOneOrder(t *testing.T) {
	t.Parallel()
	s := newShop("a secret")
	ada := s.mustPlace(t, request{key: "1"})
	seen := map[string]string{ada.GetOrderId(): "Ada's"}
	for what, r := range map[string]request{
		"another e-mail address": {key: "1", name: "Ada", email: "bob@example.org"},
		"an operator":            {key: "1", by: &access.Principal{Name: "ada", Roles: []string{"operator"}}},
		"a token's subject":      {key: "1", by: &access.Principal{Issuer: "https://login.example.org", Subject: "4711"}},
		"another operator":       {key: "1", by: &access.Principal{Name: "bob", Roles: []string{"operator"}}},
		"another subject":        {key: "1", by: &access.Principal{Issuer: "https://login.example.org", Subject: "4712"}},
		"another quantity":       {key: "1", lines: []*eventsv1.RequestedLine{{ProductId: 1, Quantity: 3}}},
		"another name":           {key: "1", name: "Eve", email: "ada@example.org"},
		"another key":            {key: "2"},
		"no key":                 {},
		"an address in capitals": {key: "1", name: "Ada", email: "ADA@example.org"}, // another text, though the same caller
	} {
		m := s.mustPlace(t, r)
		if other, again := seen[m.GetOrderId()]; again {
			t.Errorf("%s has the id of %s order", what, other)
		}
		seen[m.GetOrderId()] = what
		sameKey := string(m.GetKeyHash()) == string(ada.GetKeyHash())
		if want := what == "another quantity" || what == "another name" || what == "an address in capitals"; sameKey != want {
			t.Errorf("%s: the same caller's key is %v, want %v", what, sameKey, want)
		}
		if (len(m.GetKeyHash()) == 0) != (r.key == "") {
			t.Errorf("%s: the hash of the key is %x", what, m.GetKeyHash())
		}
	}
	if again := s.mustPlace(t, request{key: "1"}); again.GetOrderId() != ada.GetOrderId() {
		t.Error("the same order again has another id")
	}
	if o := newShop("another secret").mustPlace(t, request{key: "1"}); o.GetOrderId() == ada.GetOrderId() || string(o.GetKeyHash()) == string(ada.GetKeyHash()) {
		t.Error("another secret gives the same id or hash")
	}
}

func TestPlaceOrder_BelongsToTheSubjectOfTheToken(t *testing.T) {
	t.Parallel()
	s := newShop("a secret")
	for want, by := range map[string]*access.Principal{
		"https://login.example.org 4711": {Issuer: "https://login.example.org", Subject: "4711"}, "": {Name: "ada", Roles: []string{"operator"}},
	} {
		if m := s.mustPlace(t, request{by: by}); m.GetOwner() != want {
			t.Errorf("the order of %v belongs to %q", by, m.GetOwner())
		}
	}
	if m := s.mustPlace(t, request{}); m.GetOwner() != "" {
		t.Errorf("the order of nobody belongs to %q", m.GetOwner())
	}
}

func TestIdempotencyKey_WhatTheOrderServiceSaysOfIt(t *testing.T) {
	t.Parallel()
	s := newShop("a secret")
	first := s.mustPlace(t, request{key: "1"})
	stored := &orderv1.Order{Id: first.GetOrderId(), State: orderv1.Order_CONFIRMED}
	former := &orderv1.Order{Id: uuid.NewString(), CustomerName: "Ada", CustomerEmail: "ada@example.org", OrderItems: []*orderv1.OrderItem{{ProductId: 1, Quantity: 2}}}
	for what, c := range map[string]struct {
		found      *orderv1.FindKeyResponse
		formerly   *orderv1.Order // stored under the id that the release before gave
		request    request
		reason     string // of the error
		known      *orderv1.Order
		publishes  bool
		replayed   bool
		unanswered bool
	}{
		"nothing":                       {found: &orderv1.FindKeyResponse{}, publishes: true},
		"nothing in time":               {unanswered: true, publishes: true},
		"this order, decided":           {found: &orderv1.FindKeyResponse{OrderId: stored.GetId(), Order: stored}, known: stored, replayed: true},
		"this order, not decided":       {found: &orderv1.FindKeyResponse{OrderId: stored.GetId()}, publishes: true, replayed: true},
		"another order":                 {found: &orderv1.FindKeyResponse{OrderId: uuid.NewString()}, reason: "IDEMPOTENCY_KEY_REUSED"},
		"this order, by its former id":  {formerly: former, known: former, replayed: true},
		"another one, by its former id": {formerly: former, request: request{lines: []*eventsv1.RequestedLine{{ProductId: 1, Quantity: 9}}}, reason: "IDEMPOTENCY_KEY_REUSED"},
		"somebody else's, by its former id": {
			formerly: former, request: request{name: "Bob", email: "bob@example.org"}, publishes: true,
		},
	} {
		t.Run(what, func(t *testing.T) {
			s := newShop("a secret")
			s.find = func(_ context.Context, req *orderv1.FindKeyRequest) (*orderv1.FindKeyResponse, error) {
				if err := contract.Validate(req); err != nil {
					t.Error(err)
				}
				if c.unanswered {
					return nil, status.Error(codes.DeadlineExceeded, "too late")
				}
				if c.formerly != nil {
					return &orderv1.FindKeyResponse{OrderId: req.GetFormerOrderIds()[0], Order: c.formerly}, nil
				}
				return c.found, nil
			}
			c.request.key = "1"
			order, err := s.place(t, c.request)
			if (err != nil) != (c.reason != "") || err != nil && apierror.ReasonOf(err) != c.reason {
				t.Fatalf("error %v, want reason %q", err, c.reason)
			}
			if published := len(s.published) > 0; published != c.publishes {
				t.Errorf("published: %v, want %v", published, c.publishes)
			}
			if replayed := len(s.header.Get("idempotent-replayed")) > 0; replayed != c.replayed {
				t.Errorf("the client is told that it is a repetition: %v, want %v", replayed, c.replayed)
			}
			if c.known != nil && order != c.known {
				t.Errorf("answered with %v, want %v", order, c.known)
			}
		})
	}
}

func TestIDSecret_ThePreviousOneIsStillGood(t *testing.T) {
	t.Parallel()
	before := newShop("the old secret").mustPlace(t, request{key: "1"})
	s := newShop("the new secret", "the old secret")
	after := s.mustPlace(t, request{key: "1"}) // nobody answers: it is taken under the new secret, and claims both hashes
	if string(after.GetPreviousKeyHash()) != string(before.GetKeyHash()) || string(after.GetKeyHash()) == string(before.GetKeyHash()) {
		t.Errorf("the order claims %x and %x, the one before %x", after.GetKeyHash(), after.GetPreviousKeyHash(), before.GetKeyHash())
	}
	s.find = func(_ context.Context, req *orderv1.FindKeyRequest) (*orderv1.FindKeyResponse, error) {
		if string(req.GetKeyHashes()[0]) != string(before.GetKeyHash()) {
			t.Error("the previous secret's hash is not asked for first")
		}
		return &orderv1.FindKeyResponse{OrderId: before.GetOrderId(), Order: &orderv1.Order{Id: before.GetOrderId()}}, nil
	}
	if order, err := s.place(t, request{key: "1"}); err != nil || order.GetId() != before.GetOrderId() {
		t.Errorf("the order that came under the previous secret: %v, %v", order, err)
	}
	if _, err := s.place(t, request{key: "1", name: "Eve", email: "ada@example.org"}); apierror.ReasonOf(err) != "IDEMPOTENCY_KEY_REUSED" {
		t.Errorf("another order under its key: %v", err)
	}
}

func TestOrderID_IsAUUIDThatEndsWithASignature(t *testing.T) {
	t.Parallel()
	s := newShop("a secret")
	for key, version := range map[string]uuid.Version{"": 7, "1": 8} {
		id := uuid.MustParse(s.mustPlace(t, request{key: key}).GetOrderId())
		if id.Version() != version || id.Variant() != uuid.RFC4122 {
			t.Errorf("with the key %q the id is %s, version %d", key, id, id.Version())
		}
		if !s.secrets[0].signed(id) || NewSecret("another secret").signed(id) {
			t.Errorf("%s is not signed with the secret, or with any", id)
		}
		for i := range id {
			other := id
			other[i] ^= 1
			if s.secrets[0].signed(other) {
				t.Errorf("%s, of which one bit differs, is signed, too", other)
			}
		}
	}
	if invented := uuid.Must(uuid.NewV7()); s.secrets[0].signed(invented) {
		t.Errorf("%s, which nobody gave, is signed", invented)
	}
}

// The ids that gateways gave before they signed them are still those of their keys.
func TestIdempotencyKey_AnOrderWithAnUnsignedIDIsRecognised(t *testing.T) {
	t.Parallel()
	s := newShop("a secret")
	m := s.mustPlace(t, request{key: "1"})
	before := s.secrets[0].unsignedOrderID(requestKey{"anybody ada@example.org", "1"}, m.GetFingerprint()).String()
	if before[:len("01234567-89ab-8def-8123-456789")] != m.GetOrderId()[:len("01234567-89ab-8def-8123-456789")] || before == m.GetOrderId() {
		t.Fatalf("the id is %s, and was %s", m.GetOrderId(), before)
	}
	for _, stored := range []*orderv1.Order{nil, {Id: before, State: orderv1.Order_CONFIRMED}} {
		s.find = func(context.Context, *orderv1.FindKeyRequest) (*orderv1.FindKeyResponse, error) {
			return &orderv1.FindKeyResponse{OrderId: before, Order: stored}, nil
		}
		if order, err := s.place(t, request{key: "1"}); err != nil || order.GetId() != before {
			t.Errorf("answered with %v, %v", order, err)
		}
	}
}

func TestIDSecrets_WhatIsRefusedAtStart(t *testing.T) {
	t.Parallel()
	for want, c := range map[string]struct{ current, previous string }{
		"SHOP_ID_SECRET is too short":          {current: "short"},
		"SHOP_ID_SECRET_PREVIOUS is too short": {current: "long enough, this one", previous: "short"},
		"but SHOP_ID_SECRET is not":            {previous: "long enough, this one"},
	} {
		if _, err := ParseSecrets(t.Context(), c.current, c.previous, slog.New(slog.DiscardHandler)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%+v: %v, want %q", c, err, want)
		}
	}
}

// The fingerprint is stored: one that changes would make an order that is sent again another order.
func TestFingerprint_StaysAsItIs(t *testing.T) {
	t.Parallel()
	m := &eventsv1.OrderPlaced{
		CustomerName: "Ada", CustomerEmail: "ada@example.org",
		Lines: []*eventsv1.RequestedLine{
			{ProductId: 5, Quantity: 3, ExpectedUnitPrice: &moneyv1.Money{CurrencyCode: "USD", Units: 35}},
			{ProductName: "Mouse Pad", Quantity: 4},
		},
	}
	const want = "b932e3640c26ed89e5bd6d25abe41f7d8ececa2505933cb52c35229f3221e487"
	if got := hex.EncodeToString(fingerprint(m)); got != want {
		t.Errorf("it is %s, and was %s", got, want)
	}
}

func TestFingerprint_IsOfOneOrderOnly(t *testing.T) {
	t.Parallel()
	line := func(id int32, name string, quantity int32, price *moneyv1.Money) *eventsv1.RequestedLine {
		return &eventsv1.RequestedLine{ProductId: id, ProductName: name, Quantity: quantity, ExpectedUnitPrice: price}
	}
	free, cheap := &moneyv1.Money{CurrencyCode: "USD"}, &moneyv1.Money{CurrencyCode: "USD", Nanos: 10_000_000}
	seen := map[string]int{}
	for i, m := range []*eventsv1.OrderPlaced{
		{CustomerName: "A", CustomerEmail: "B"},
		{CustomerName: "AB"},
		{CustomerEmail: "AB"},
		{CustomerName: "", CustomerEmail: "B"},
		{Lines: []*eventsv1.RequestedLine{line(1, "", 1, nil)}},
		{Lines: []*eventsv1.RequestedLine{line(1, "", 1, free)}},
		{Lines: []*eventsv1.RequestedLine{line(1, "", 1, cheap)}},
		{Lines: []*eventsv1.RequestedLine{line(1, "", 1, &moneyv1.Money{CurrencyCode: "EUR"})}},
		{Lines: []*eventsv1.RequestedLine{line(0, "1", 1, nil)}},
		{Lines: []*eventsv1.RequestedLine{line(1, "", 2, nil)}},
		{Lines: []*eventsv1.RequestedLine{line(1, "", 1, nil), line(2, "", 1, nil)}},
		{Lines: []*eventsv1.RequestedLine{line(2, "", 1, nil), line(1, "", 1, nil)}},
		{Lines: []*eventsv1.RequestedLine{line(1, "", 1, nil), line(1, "", 1, nil)}},
	} {
		sum := string(fingerprint(m))
		if j, again := seen[sum]; again {
			t.Errorf("orders %d and %d have the same fingerprint", j, i)
		}
		seen[sum] = i
	}
	named := fingerprint(&eventsv1.OrderPlaced{Lines: []*eventsv1.RequestedLine{line(0, "Laptop", 1, nil)}})
	if got := fingerprint(&eventsv1.OrderPlaced{Lines: []*eventsv1.RequestedLine{line(7, "Laptop", 1, nil)}}); string(got) != string(named) {
		t.Error("an id that does not count makes another order")
	}
	if got := fingerprint(&eventsv1.OrderPlaced{OrderId: "x", Owner: "y", Lines: []*eventsv1.RequestedLine{line(0, "Laptop", 1, nil)}}); string(got) != string(named) {
		t.Error("who places it and when makes another order")
	}
}

// "é" has two spellings in Unicode, which look the same.
func TestPlaceOrder_TextThatLooksTheSameIsTheSame(t *testing.T) {
	t.Parallel()
	s := newShop("a secret")
	composed := s.mustPlace(t, request{key: "1", name: "Ren\u00e9", email: "rene@example.org"})
	decomposed := s.mustPlace(t, request{key: "1", name: "Rene\u0301", email: "rene@example.org"})
	if composed.GetOrderId() != decomposed.GetOrderId() || decomposed.GetCustomerName() != "Ren\u00e9" {
		t.Errorf("%q and %q are orders %s and %s", composed.GetCustomerName(), decomposed.GetCustomerName(), composed.GetOrderId(), decomposed.GetOrderId())
	}
}

// The order service may be frozen: an order with a key is taken all the same, and soon.
func TestPlaceOrder_AnOrderServiceThatDoesNotAnswerHoldsAnOrderUpForHalfASecond(t *testing.T) {
	t.Parallel()
	s := newShop("a secret")
	s.find = func(ctx context.Context, _ *orderv1.FindKeyRequest) (*orderv1.FindKeyResponse, error) {
		<-ctx.Done()
		return nil, ctx.Err()
	}
	synctest.Test(t, func(t *testing.T) {
		begin := time.Now()
		s.mustPlace(t, request{key: "1"})
		if took := time.Since(begin); took != lookupTimeout {
			t.Errorf("it took %s", took)
		}
	})
}

// Such orders got 202, could not be decided, held their stock and became dead letters.
func TestPlaceOrder_WhatCouldNeverBeDecidedIsRefused(t *testing.T) {
	t.Parallel()
	s := newShop("a secret")
	line := func(quantity int32, currency string, units int64, nanos int32) *eventsv1.RequestedLine {
		return &eventsv1.RequestedLine{ProductId: 1, Quantity: quantity, ExpectedUnitPrice: &moneyv1.Money{CurrencyCode: currency, Units: units, Nanos: nanos}}
	}
	for what, c := range map[string]struct {
		lines []*eventsv1.RequestedLine
		field string // what the error names, "" if the order is taken
		text  string
	}{
		"ordinary in VND":            {lines: []*eventsv1.RequestedLine{line(500, "VND", 25_000_000, 0), line(100_000, "VND", 25_000_000, 0)}},
		"worth too much":             {lines: []*eventsv1.RequestedLine{line(100_000, "USD", 100_000_000, 0)}, field: "order_items", text: "must be worth at most 9999999999999.99 USD"},
		"worth too much, all in all": {lines: []*eventsv1.RequestedLine{line(1, "USD", 9_999_999_999_999, 0), line(1, "USD", 1, 0)}, field: "order_items", text: "must be worth at most 9999999999999.99 USD"},
		"two currencies":             {lines: []*eventsv1.RequestedLine{line(1, "USD", 1, 0), line(1, "EUR", 1, 0)}, field: "order_items[1].expected_unit_price", text: "must be in USD, as the other prices of the order are"},
		"no currency of ISO 4217":    {lines: []*eventsv1.RequestedLine{line(1, "ABC", 1, 0)}, field: "order_items[0].expected_unit_price", text: `must be in a currency of ISO 4217, "ABC" is none`},
		"a part of a yen":            {lines: []*eventsv1.RequestedLine{line(1, "JPY", 1, 500_000_000)}, field: "order_items[0].expected_unit_price", text: "must be a whole number of JPY"},
	} {
		_, err := s.place(t, request{lines: c.lines})
		if c.field == "" {
			if err != nil {
				t.Errorf("%s: %v", what, err)
			}
			continue
		}
		got := status.Convert(err).Details()
		if len(got) < 2 || !strings.Contains(fmt.Sprint(got[1]), fmt.Sprintf("field:%q", c.field)) || !strings.Contains(fmt.Sprint(got[1]), fmt.Sprintf("%q", c.text)) {
			t.Errorf("%s: %v %v, want %s %s", what, err, got, c.field, c.text)
		}
	}
}
