package ordering

import (
	"slices"
	"strings"
	"testing"

	"github.com/google/uuid"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"shop.example/db/dbtest"
	eventsv1 "shop.example/gen/shop/events/v1"
	inventoryv1 "shop.example/gen/shop/inventory/v1"
	moneyv1 "shop.example/gen/shop/money/v1"
	orderv1 "shop.example/gen/shop/order/v1"
	"shop.example/platform/testkit/brokertest"
)

// What inventory can answer about an order is bounded before it is asked: by the longest that the contracts allow.
func TestOrderPlaced_NoDecisionExceedsItsEstimatedSize(t *testing.T) {
	t.Parallel()
	longest := strings.Repeat("\U0001F6D2", 200)
	const largest = 1<<31 - 1
	price := &moneyv1.Money{CurrencyCode: "USD", Units: 1<<63 - 1, Nanos: 999_999_999}
	for lines := 1; lines <= 100; lines++ {
		placed := &eventsv1.OrderPlaced{}
		yes := &inventoryv1.StockDecision{OrderId: uuid.NewString()}
		for i := range lines {
			placed.Lines = append(placed.Lines, &eventsv1.RequestedLine{ProductId: 1, Quantity: 1})
			yes.Lines = append(yes.Lines, &eventsv1.PricedLine{
				Line: int32(i + 1), ProductId: largest, ProductName: longest, Quantity: largest, UnitPrice: price,
			})
		}
		no := &inventoryv1.StockDecision{OrderId: yes.GetOrderId(), Rejection: &inventoryv1.StockDecision_Rejection{
			Reason: eventsv1.OrderRejected_PRICE_CHANGED, Detail: strings.Repeat("x", 2100), // inventory's maxDetail
		}}
		for _, d := range []*inventoryv1.StockDecision{yes, no} {
			size := proto.Size(&inventoryv1.CheckStockResponse{Decisions: []*inventoryv1.StockDecision{d}})
			if size > decisionSize(placed) {
				t.Errorf("about %d lines: %d bytes, reckoned with %d", lines, size, decisionSize(placed))
			}
		}
	}
}

// A reply that cannot be sent says so. Taken for an inventory that is down it would be asked for again, for ever.
func TestOrderPlaced_ATooLargeBatchIsNotMistakenForInventoryBeingDown(t *testing.T) {
	t.Parallel()
	broker := brokertest.New(t)
	n := newFakePeers(t, broker)
	good, large := []*eventsv1.OrderPlaced{newPlaced(), newPlaced(), newPlaced()}, newPlaced()
	n.inventory(func(req *inventoryv1.CheckStockRequest) (*inventoryv1.CheckStockResponse, error) {
		if len(req.GetOrders()) > 1 || req.GetOrders()[0].GetOrderId() == large.GetOrderId() {
			return nil, status.Error(codes.ResourceExhausted, "the answer is too large")
		}
		return each(held)(req)
	})
	n.publish(t, good[0], large, good[1], good[2])
	s, _, _ := start(t, broker, dbtest.New(t))
	if d := next(t, n.dead); d.CorrelationID != large.GetOrderId() || !strings.Contains(d.Reason, "the answer is too large") || d.Attempt != 0 {
		t.Errorf("dead letter of order %s after %d attempts: %s", d.CorrelationID, d.Attempt+1, d.Reason)
	}
	n.until(t, "shop.order.confirmed", len(good))
	for _, m := range good {
		if got := mustGet(t, s, m.GetOrderId()); got.GetState() != orderv1.Order_CONFIRMED {
			t.Errorf("order is %v", got)
		}
	}
}

// A page of the largest orders would be larger than a gateway takes, and in memory several times over.
func TestListOrders_APageIsBoundedInBytes(t *testing.T) {
	t.Parallel()
	s := newStore(t)
	lines := make([]*eventsv1.RequestedLine, 100)
	for i := range lines {
		lines[i] = &eventsv1.RequestedLine{ProductName: strings.Repeat("\U0001F6D2", 200), Quantity: 1}
	}
	var want []string
	for range 30 {
		placed := newPlaced(lines...)
		mustStore(t, s, decidedOrders(t, held, placed))
		want = append(want, placed.GetOrderId())
	}
	slices.Reverse(want)
	var got []string
	for req := (&orderv1.ListOrdersRequest{PageSize: 1000}); ; {
		page, err := s.ListOrders(t.Context(), req)
		if err != nil {
			t.Fatal(err)
		}
		if size := proto.Size(page); size > 3<<19 {
			t.Errorf("a page of %d orders has %d bytes", len(page.GetOrders()), size)
		}
		for _, o := range page.GetOrders() {
			if got = append(got, o.GetId()); len(o.GetOrderItems()) != len(lines) {
				t.Errorf("order %s has %d lines", o.GetId(), len(o.GetOrderItems()))
			}
		}
		if req.PageToken = page.GetNextPageToken(); req.PageToken == "" {
			break
		}
	}
	if !slices.Equal(got, want) {
		t.Errorf("the pages have\n%v, want\n%v", got, want)
	}
}
