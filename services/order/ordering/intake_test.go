package ordering

import (
	"math"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"shop.example/domain/customer"
	eventsv1 "shop.example/gen/shop/events/v1"
	orderv1 "shop.example/gen/shop/order/v1"
	"shop.example/platform/contract"
)

func TestFindUnknown_NamesTheOrdersThatAreNotStored(t *testing.T) {
	t.Parallel()
	s := intakeServer{Service: newStore(t)}
	stored, lost := newPlaced(), newPlaced()
	mustStore(t, s.Service, decidedOrders(t, held, stored))
	var ids [][]byte
	for _, m := range []*eventsv1.OrderPlaced{stored, lost} {
		id := uuid.MustParse(m.GetOrderId())
		ids = append(ids, id[:])
	}
	resp, err := s.FindUnknown(t.Context(), &orderv1.FindUnknownRequest{OrderIds: ids})
	if err != nil || len(resp.GetOrderIds()) != 1 || !slices.Equal(resp.GetOrderIds()[0], ids[1]) {
		t.Errorf("got %x, %v, want %x", resp.GetOrderIds(), err, ids[1])
	}
	if resp, err := s.FindUnknown(t.Context(), &orderv1.FindUnknownRequest{}); err != nil || len(resp.GetOrderIds()) > 0 {
		t.Errorf("of none: %v, %v", resp, err)
	}
}

func TestFindPlaced_MakesTheEventAgainFromWhatIsStored(t *testing.T) {
	t.Parallel()
	s := intakeServer{Service: newStore(t)}
	stored, lost, erased := newPlaced(), newPlaced(), newPlaced()
	stored.Owner = "https://issuer ada"
	erased.CustomerName, erased.CustomerEmail = customer.Erased, customer.Erased
	mustStore(t, s.Service, decidedOrders(t, held, stored, erased))
	var ids [][]byte
	for _, m := range []*eventsv1.OrderPlaced{stored, lost, erased} {
		id := uuid.MustParse(m.GetOrderId())
		ids = append(ids, id[:])
	}
	resp, err := s.FindPlaced(t.Context(), &orderv1.FindPlacedRequest{OrderIds: ids})
	if err != nil || len(resp.GetPlaced()) != 1 {
		t.Fatalf("got %v, %v", resp, err)
	}
	got := resp.GetPlaced()[0]
	if got.GetOrderId() != stored.GetOrderId() || got.GetCustomerName() != stored.GetCustomerName() || got.GetCustomerEmail() != stored.GetCustomerEmail() ||
		got.GetOwner() != stored.GetOwner() || !got.GetPlacedAt().AsTime().Equal(stored.GetPlacedAt().AsTime().Truncate(time.Microsecond)) || len(got.GetLines()) != len(stored.GetLines()) {
		t.Errorf("got %v, want %v", got, stored)
	}
	for i, l := range got.GetLines() {
		if want := stored.GetLines()[i]; l.GetQuantity() != want.GetQuantity() || l.GetProductName() != want.GetProductName() {
			t.Errorf("line %d is %v, want %v", i, l, want)
		}
	}
	if err := contract.Validate(got); err != nil || contract.MessageID(got) != contract.MessageID(stored) {
		t.Errorf("it breaks its contract: %v, or is another message: %s, want %s", err, contract.MessageID(got), contract.MessageID(stored))
	}
}

// reject discards a letter about an order, and returns the order.
func reject(t *testing.T, s *Service, id string, body []byte) *orderv1.Order {
	t.Helper()
	if _, err := (intakeServer{Service: s}).RejectDiscarded(t.Context(), &orderv1.RejectDiscardedRequest{OrderId: id, OrderPlaced: body}); err != nil {
		t.Fatal(err)
	}
	return mustGet(t, s, id)
}

// An order whose OrderPlaced was discarded left its customer waiting for ever.
func TestRejectDiscarded_DecidesAnOrderAsFarAsItCanBeRead(t *testing.T) {
	t.Parallel()
	s := newStore(t)
	whole := newPlaced()
	whole.PlacedAt = timestamppb.New(time.Now().Add(-time.Hour).Truncate(time.Microsecond))
	broken := newPlaced(&eventsv1.RequestedLine{ProductId: 1, Quantity: -3}, &eventsv1.RequestedLine{ProductName: "a\x00b", Quantity: 2})
	broken.CustomerName, broken.PlacedAt = "Ada\x00", timestamppb.New(time.Now().Add(time.Hour))
	countless := newPlaced(&eventsv1.RequestedLine{ProductId: 1, Quantity: math.MaxInt32}, &eventsv1.RequestedLine{ProductId: 2, Quantity: 1})
	another, unreadable := newPlaced(), newPlaced()
	for name, test := range map[string]struct {
		id    string
		body  []byte
		name  string
		items int32
	}{
		"whole":               {whole.GetOrderId(), encoded(t, whole), "Ada", 7},
		"breaks its contract": {broken.GetOrderId(), encoded(t, broken), "Ada\uFFFD", 2},
		"too many pieces":     {countless.GetOrderId(), encoded(t, countless), "Ada", 0},
		"of another order":    {another.GetOrderId(), encoded(t, whole), "", 0},
		"unreadable":          {unreadable.GetOrderId(), []byte("no protobuf"), "", 0},
	} {
		o := reject(t, s, test.id, test.body)
		if o.GetState() != orderv1.Order_REJECTED || o.GetReason() != eventsv1.OrderRejected_DISCARDED || o.GetCustomerName() != test.name || o.GetTotalItems() != test.items {
			t.Errorf("%s: the order is %v", name, o)
		}
	}
	if o := mustGet(t, s, whole.GetOrderId()); !o.GetCreatedAt().AsTime().Equal(whole.GetPlacedAt().AsTime()) || len(o.GetOrderItems()) != 2 {
		t.Errorf("the order is %v", o)
	}
	if n := count(t, s, "outbox WHERE routing_key = 'shop.order.rejected'"); n != 5 || count(t, s, "outbox") != 5 {
		t.Errorf("%d rejections in an outbox of %d, want 5 and nothing else", n, count(t, s, "outbox"))
	}
	var body []byte
	if err := s.db.GetContext(t.Context(), &body, "SELECT body FROM outbox WHERE correlation_id = $1", unreadable.GetOrderId()); err != nil {
		t.Fatal(err)
	}
	event := &eventsv1.OrderRejected{}
	if err := proto.Unmarshal(body, event); err != nil || contract.Validate(event) != nil || event.GetReason() != eventsv1.OrderRejected_DISCARDED || !strings.Contains(event.GetDetail(), "discarded") {
		t.Errorf("published %v, %v", event, err)
	}
}

func TestRejectDiscarded_AnOrderThatIsStoredStaysAsItIs(t *testing.T) {
	t.Parallel()
	s := newStore(t)
	m := newPlaced()
	mustStore(t, s, decidedOrders(t, held, m))
	if o := reject(t, s, m.GetOrderId(), encoded(t, m)); o.GetState() != orderv1.Order_CONFIRMED {
		t.Errorf("the order is %v", o)
	}
	if n := count(t, s, "outbox"); n != 2 {
		t.Errorf("%d messages in the outbox, want those of its confirmation", n)
	}
	again := newPlaced()
	for range 2 {
		reject(t, s, again.GetOrderId(), nil)
	}
	if n := count(t, s, "outbox"); n != 3 {
		t.Errorf("discarding twice: %d messages in the outbox, want 3", n)
	}
	// A message that was on its way all the same changes nothing any more.
	if n := mustStore(t, s, decidedOrders(t, held, again)); n != 0 {
		t.Error("it was decided once more")
	}
}

func encoded(t *testing.T, m proto.Message) []byte {
	t.Helper()
	b, err := proto.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	return b
}
