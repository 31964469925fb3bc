package ordering

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jmoiron/sqlx"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"shop.example/db/dbtest"
	"shop.example/domain/money"
	"shop.example/domain/orderstate"
	eventsv1 "shop.example/gen/shop/events/v1"
	inventoryv1 "shop.example/gen/shop/inventory/v1"
	orderv1 "shop.example/gen/shop/order/v1"
	"shop.example/platform/apierror"
	"shop.example/platform/contract"
	"shop.example/platform/messaging"
	"shop.example/platform/postgres"
)

// newStore returns a service with a database of its own and no broker.
func newStore(t testing.TB) *Service {
	t.Helper()
	return openStore(t, dbtest.New(t))
}

func openStore(t testing.TB, database string) *Service {
	t.Helper()
	db, err := postgres.Open(t.Context(), database, schema, postgres.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { db.Close() })
	return &Service{db: db, wake: func() {}, log: slog.New(slog.DiscardHandler)}
}

func newPlaced(lines ...*eventsv1.RequestedLine) *eventsv1.OrderPlaced {
	if lines == nil {
		lines = []*eventsv1.RequestedLine{{ProductName: "Laptop Stand", Quantity: 3}, {ProductName: "Mouse Pad", Quantity: 4}}
	}
	return &eventsv1.OrderPlaced{
		OrderId: uuid.Must(uuid.NewV7()).String(), CustomerName: "Ada", CustomerEmail: "ada@example.org",
		Lines: lines, PlacedAt: timestamppb.Now(),
	}
}

func messages(placed ...*eventsv1.OrderPlaced) []messaging.Message[*eventsv1.OrderPlaced] {
	batch := make([]messaging.Message[*eventsv1.OrderPlaced], len(placed))
	for i, m := range placed {
		batch[i] = messaging.Message[*eventsv1.OrderPlaced]{ID: contract.MessageID(m), Body: m}
	}
	return batch
}

// held is inventory's yes to an order: each line at the price of 35 USD.
func held(m *eventsv1.OrderPlaced) *inventoryv1.StockDecision {
	d := &inventoryv1.StockDecision{OrderId: m.GetOrderId()}
	for i, l := range m.GetLines() {
		d.Lines = append(d.Lines, &eventsv1.PricedLine{
			Line: int32(i + 1), ProductId: int32(i + 5), ProductName: l.GetProductName(), Quantity: l.GetQuantity(),
			UnitPrice: money.FromMinor(3500, "USD"),
		})
	}
	return d
}

func refused(m *eventsv1.OrderPlaced) *inventoryv1.StockDecision {
	return &inventoryv1.StockDecision{OrderId: m.GetOrderId(), Rejection: &inventoryv1.StockDecision_Rejection{
		Reason: eventsv1.OrderRejected_OUT_OF_STOCK, Detail: "line 1: 2 of 3 left",
	}}
}

// decidedOrders are orders as they are before they are stored.
func decidedOrders(t testing.TB, answer func(*eventsv1.OrderPlaced) *inventoryv1.StockDecision, placed ...*eventsv1.OrderPlaced) []pendingOrder {
	t.Helper()
	pending, err := newPendingOrders(messages(placed...))
	if err != nil {
		t.Fatal(err)
	}
	now := time.Now().Truncate(time.Microsecond)
	for i, p := range pending {
		if err := applyDecision(answer(placed[i]), p.order, now); err != nil {
			t.Fatal(err)
		}
	}
	return pending
}

// mustStore stores orders and returns how many were new.
func mustStore(t testing.TB, s *Service, pending []pendingOrder) int {
	t.Helper()
	stored, err := s.store(t.Context(), pending, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	return len(stored)
}

func count(t testing.TB, s *Service, table string) int {
	t.Helper()
	var n int
	if err := s.db.GetContext(t.Context(), &n, "SELECT count(*) FROM "+table); err != nil {
		t.Fatal(err)
	}
	return n
}

func mustGet(t testing.TB, s *Service, id string) *orderv1.Order {
	t.Helper()
	resp, err := s.GetOrder(t.Context(), &orderv1.GetOrderRequest{OrderId: id})
	if err != nil {
		t.Fatal(err)
	}
	return resp.GetOrder()
}

// assertError checks the code and the reason that a client branches on.
func assertError(t *testing.T, err error, code codes.Code, reason string) {
	t.Helper()
	got := apierror.ReasonOf(apierror.Status(err).Err())
	if status.Code(err) != code || got != reason {
		t.Errorf("error is %v (%s), want %s %s", err, got, code, reason)
	}
}

func TestStore_SameBatchTwiceHasOneEffect(t *testing.T) {
	t.Parallel()
	s := newStore(t)
	a, b := newPlaced(), newPlaced()
	if n := mustStore(t, s, decidedOrders(t, held, a, b)); n != 2 {
		t.Fatalf("%d orders were new, want 2", n)
	}
	if n := mustStore(t, s, decidedOrders(t, held, a, b, newPlaced())); n != 1 {
		t.Errorf("the second time %d orders were new, want the one that was", n)
	}
	for table, want := range map[string]int{"orders": 3, "order_item": 6, "outbox": 6} {
		if n := count(t, s, table); n != want {
			t.Errorf("%s has %d rows, want %d", table, n, want)
		}
	}
}

func TestStore_WorkersWithTheSameBatchHaveOneEffect(t *testing.T) {
	t.Parallel()
	s := newStore(t)
	placed := make([]*eventsv1.OrderPlaced, 50)
	for i := range placed {
		placed[i] = newPlaced()
	}
	reversed := slices.Clone(placed)
	slices.Reverse(reversed)
	var wg sync.WaitGroup
	for _, batch := range [][]*eventsv1.OrderPlaced{placed, reversed} {
		pending := decidedOrders(t, held, batch...)
		wg.Go(func() {
			// Batches that meet in opposite order may be told to try again, as the consumer does.
			for {
				_, err := s.store(t.Context(), pending, time.Now())
				if !errors.Is(err, postgres.ErrRetry) {
					if err != nil {
						t.Error(err)
					}
					return
				}
			}
		})
	}
	wg.Wait()
	if orders, out := count(t, s, "orders"), count(t, s, "outbox"); orders != 50 || out != 100 {
		t.Errorf("%d orders and %d messages, want 50 and 100", orders, out)
	}
}

func TestNewPendingOrders_AnOrderTwiceInABatchIsOne(t *testing.T) {
	t.Parallel()
	a, b := newPlaced(), newPlaced()
	pending, err := newPendingOrders(messages(a, b, a))
	if err != nil {
		t.Fatal(err)
	}
	if len(pending) != 2 || pending[0].order.ID.String() != a.GetOrderId() || pending[1].order.ID.String() != b.GetOrderId() {
		t.Errorf("placements are %+v, want one of each order", pending)
	}
}

func TestStore_ALaterStateIsNotOverwritten(t *testing.T) {
	t.Parallel()
	s := newStore(t)
	placed := newPlaced()
	mustStore(t, s, decidedOrders(t, held, placed))
	if _, err := s.db.ExecContext(t.Context(), `UPDATE orders SET state = 'CANCELLED', version = 2`); err != nil {
		t.Fatal(err)
	}
	if n := mustStore(t, s, decidedOrders(t, held, placed)); n != 0 {
		t.Errorf("%d orders were new", n)
	}
	var state string
	if err := s.db.GetContext(t.Context(), &state, `SELECT state FROM orders`); err != nil || state != "CANCELLED" {
		t.Errorf("the order is %s (%v), want CANCELLED", state, err)
	}
	if items, out := count(t, s, "order_item"), count(t, s, "outbox"); items != 2 || out != 2 {
		t.Errorf("%d lines and %d messages, want those of the first time", items, out)
	}
}

// Inventory may have given the stock away by then: it asks whether the order is stored and is told that it is not.
func TestStore_ADecisionOlderThanItsTTLIsNotUsed(t *testing.T) {
	t.Parallel()
	s := newStore(t)
	pending := decidedOrders(t, held, newPlaced())
	for name, asked := range map[string]time.Time{
		"by the monotonic clock": time.Now().Add(-decisionTTL - time.Second),
		"by the wall clock":      time.Now().Round(0).Add(-decisionTTL - time.Second),
	} {
		if stored, err := s.store(t.Context(), pending, asked); err == nil || len(stored) != 0 {
			t.Errorf("too old %s: stored %v, %v", name, stored, err)
		}
	}
	if orders, out := count(t, s, "orders"), count(t, s, "outbox"); orders+out != 0 {
		t.Errorf("%d orders and %d messages were stored", orders, out)
	}
	if n := mustStore(t, s, pending); n != 1 {
		t.Errorf("%d orders stored with a new answer", n)
	}
}

func TestStore_ConfirmedOrderReadsAsItWasDecided(t *testing.T) {
	t.Parallel()
	s := newStore(t)
	placed := newPlaced()
	pending := decidedOrders(t, held, placed)
	mustStore(t, s, pending)
	want := &orderv1.Order{
		Id: placed.GetOrderId(), State: orderv1.Order_CONFIRMED, CustomerName: "Ada", CustomerEmail: "ada@example.org",
		OrderItems: []*orderv1.OrderItem{
			{Line: 1, ProductId: 5, ProductName: "Laptop Stand", Quantity: 3, UnitPrice: money.FromMinor(3500, "USD")},
			{Line: 2, ProductId: 6, ProductName: "Mouse Pad", Quantity: 4, UnitPrice: money.FromMinor(3500, "USD")},
		},
		TotalItems: 7, TotalValue: money.FromMinor(24500, "USD"),
		CreatedAt: timestamppb.New(placed.GetPlacedAt().AsTime().Truncate(time.Microsecond)),
		UpdatedAt: timestamppb.New(pending[0].order.UpdatedAt),
	}
	if got := mustGet(t, s, placed.GetOrderId()); !proto.Equal(got, want) {
		t.Errorf("order is\n%v, want\n%v", got, want)
	}
}

func TestStore_RejectedOrderKeepsReasonAndLines(t *testing.T) {
	t.Parallel()
	s := newStore(t)
	placed := newPlaced(&eventsv1.RequestedLine{ProductName: "Laptop Stand", Quantity: 3}, &eventsv1.RequestedLine{ProductId: 2, Quantity: 1})
	mustStore(t, s, decidedOrders(t, refused, placed))
	got := mustGet(t, s, placed.GetOrderId())
	if got.GetState() != orderv1.Order_REJECTED || got.GetReason() != eventsv1.OrderRejected_OUT_OF_STOCK || got.GetTotalItems() != 4 || got.TotalValue != nil {
		t.Errorf("order is %v", got)
	}
	want := []*orderv1.OrderItem{{Line: 1, ProductName: "Laptop Stand", Quantity: 3}, {Line: 2, ProductId: 2, Quantity: 1}}
	if !slices.EqualFunc(got.GetOrderItems(), want, func(a, b *orderv1.OrderItem) bool { return proto.Equal(a, b) }) {
		t.Errorf("lines are %v, want %v", got.GetOrderItems(), want)
	}
	if n := count(t, s, "outbox WHERE routing_key = 'shop.order.rejected'"); n != 1 || count(t, s, "outbox") != 1 {
		t.Errorf("%d rejections in an outbox of %d, want one and nothing else", n, count(t, s, "outbox"))
	}
	var detail string
	if err := s.db.GetContext(t.Context(), &detail, "SELECT detail FROM orders"); err != nil || detail != "line 1: 2 of 3 left" {
		t.Errorf("detail is %q, %v", detail, err)
	}
}

func TestGetOrder_UnknownIsNotFound(t *testing.T) {
	t.Parallel()
	s := newStore(t)
	_, err := s.GetOrder(t.Context(), &orderv1.GetOrderRequest{OrderId: uuid.NewString()})
	assertError(t, err, codes.NotFound, "ORDER_NOT_FOUND")
}

// pages reads the list to its end and calls between after each page.
func pages(t *testing.T, s *Service, req *orderv1.ListOrdersRequest, between func()) (ids []string) {
	t.Helper()
	for {
		resp, err := s.ListOrders(t.Context(), req)
		if err != nil {
			t.Fatal(err)
		}
		if len(resp.GetOrders()) > int(req.GetPageSize()) {
			t.Fatalf("a page of %d orders, want at most %d", len(resp.GetOrders()), req.GetPageSize())
		}
		for _, o := range resp.GetOrders() {
			ids = append(ids, o.GetId())
		}
		if req.PageToken = resp.GetNextPageToken(); req.PageToken == "" {
			return ids
		}
		between()
	}
}

func TestListOrders_PagesStayAsTheyWereWhileOrdersArrive(t *testing.T) {
	t.Parallel()
	s := newStore(t)
	var want []string
	// Some were placed in the same microsecond: the id decides between them.
	start := time.Now().Add(-time.Hour)
	for i := range 25 {
		placed := newPlaced()
		placed.PlacedAt = timestamppb.New(start.Add(time.Duration(i/5) * time.Second))
		mustStore(t, s, decidedOrders(t, held, placed))
		want = append(want, placed.GetOrderId()) // version 7 ids grow, so this is the order of time and id
	}
	slices.Reverse(want)
	got := pages(t, s, &orderv1.ListOrdersRequest{PageSize: 4}, func() {
		mustStore(t, s, decidedOrders(t, held, newPlaced()))
	})
	if !slices.Equal(got, want) {
		t.Errorf("pages list\n%v, want\n%v", got, want)
	}
}

func TestListOrders_FiltersByState(t *testing.T) {
	t.Parallel()
	s := newStore(t)
	var rejected []string
	for range 3 {
		r := newPlaced()
		mustStore(t, s, decidedOrders(t, refused, r))
		mustStore(t, s, decidedOrders(t, held, newPlaced()))
		rejected = append(rejected, r.GetOrderId())
	}
	slices.Reverse(rejected)
	got := pages(t, s, &orderv1.ListOrdersRequest{PageSize: 2, State: orderv1.Order_REJECTED}, func() {})
	if !slices.Equal(got, rejected) {
		t.Errorf("rejected orders are %v, want %v", got, rejected)
	}
	if got := pages(t, s, &orderv1.ListOrdersRequest{PageSize: 6, State: orderv1.Order_PENDING}, func() {}); got != nil {
		t.Errorf("pending orders are %v, want none", got)
	}
}

func TestListOrders_LeavesOutOlderOrders(t *testing.T) {
	t.Parallel()
	s := newStore(t)
	var ids []string
	start := time.Now().Add(-time.Hour).Truncate(time.Microsecond)
	for i := range 4 {
		p := newPlaced()
		p.PlacedAt = timestamppb.New(start.Add(time.Duration(i) * time.Minute))
		mustStore(t, s, decidedOrders(t, held, p))
		ids = append(ids, p.GetOrderId())
	}
	since := timestamppb.New(start.Add(time.Minute))
	if got, want := pages(t, s, &orderv1.ListOrdersRequest{PageSize: 2, PlacedAfter: since}, func() {}), []string{ids[3], ids[2], ids[1]}; !slices.Equal(got, want) {
		t.Errorf("since the second order there are %v, want %v", got, want)
	}
	page, err := s.ListOrders(t.Context(), &orderv1.ListOrdersRequest{PageSize: 1, PlacedAfter: since})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.ListOrders(t.Context(), &orderv1.ListOrdersRequest{PageSize: 1, PageToken: page.GetNextPageToken()}); status.Code(err) != codes.InvalidArgument {
		t.Errorf("the token of another list: %v", err)
	}
	_, err = s.ListOrders(t.Context(), &orderv1.ListOrdersRequest{PlacedAfter: &timestamppb.Timestamp{Seconds: 1 << 60}})
	if status.Code(err) != codes.InvalidArgument {
		t.Errorf("a time that is none: %v", err)
	}
}

func TestListOrders_FindsByEndOfIDAddressProductAndTime(t *testing.T) {
	t.Parallel()
	s := newStore(t)
	start := time.Now().Add(-time.Hour).Truncate(time.Microsecond)
	var ids []string
	for i, address := range []string{"ada@example.org", "Ada@EXAMPLE.org", "ada_@example.org", "bob@example.org"} {
		p := newPlaced()
		p.CustomerEmail, p.PlacedAt = address, timestamppb.New(start.Add(time.Duration(i)*time.Minute))
		mustStore(t, s, decidedOrders(t, func(m *eventsv1.OrderPlaced) *inventoryv1.StockDecision {
			d := held(m)
			d.Lines[1].ProductId = int32(107 + i/2) //nolint:gosec // of four
			return d
		}, p))
		ids = append(ids, p.GetOrderId())
	}
	for name, search := range map[string]struct {
		req  *orderv1.ListOrdersRequest
		want []string
	}{
		"the end of an id":           {&orderv1.ListOrdersRequest{IdSuffix: ids[2][28:]}, ids[2:3]},
		"an id in upper case":        {&orderv1.ListOrdersRequest{IdSuffix: strings.ToUpper(ids[1])}, ids[1:2]},
		"an address in any spelling": {&orderv1.ListOrdersRequest{CustomerEmail: "ADA@example.ORG"}, []string{ids[1], ids[0]}},
		"no wildcard":                {&orderv1.ListOrdersRequest{CustomerEmail: "%@example.org"}, nil},
		"a product":                  {&orderv1.ListOrdersRequest{ProductId: 108}, []string{ids[3], ids[2]}},
		"a product and an address":   {&orderv1.ListOrdersRequest{ProductId: 108, CustomerEmail: "bob@example.org"}, ids[3:]},
		"a time":                     {&orderv1.ListOrdersRequest{PlacedBefore: timestamppb.New(start.Add(time.Minute))}, ids[:1]},
		"between two times": {&orderv1.ListOrdersRequest{
			PlacedAfter: timestamppb.New(start.Add(time.Minute)), PlacedBefore: timestamppb.New(start.Add(3 * time.Minute)), ProductId: 107,
		}, ids[1:2]},
		"an address and another state": {&orderv1.ListOrdersRequest{CustomerEmail: "ada@example.org", State: orderv1.Order_REJECTED}, nil},
	} {
		search.req.PageSize = 1
		if got := pages(t, s, search.req, func() {}); !slices.Equal(got, search.want) {
			t.Errorf("%s: %v, want %v", name, got, search.want)
		}
	}
	page, err := s.ListOrders(t.Context(), &orderv1.ListOrdersRequest{PageSize: 1, ProductId: 108})
	if err != nil {
		t.Fatal(err)
	}
	_, err = s.ListOrders(t.Context(), &orderv1.ListOrdersRequest{PageSize: 1, ProductId: 107, PageToken: page.GetNextPageToken()})
	assertError(t, err, codes.InvalidArgument, "INVALID_ARGUMENT")
	_, err = s.ListOrders(t.Context(), &orderv1.ListOrdersRequest{PlacedBefore: &timestamppb.Timestamp{Seconds: 1 << 60}})
	assertError(t, err, codes.InvalidArgument, "INVALID_ARGUMENT")
}

// A search that reads on until it has found a page takes as long as there are orders.
func TestListOrders_ASearchReadsSoManyOrdersACall(t *testing.T) {
	t.Parallel()
	s := newStore(t)
	oldest := newPlaced()
	oldest.PlacedAt = timestamppb.New(time.Now().Add(-48 * time.Hour))
	mustStore(t, s, decidedOrders(t, held, oldest))
	if _, err := s.db.Exec(`
		INSERT INTO orders (id, customer_name, customer_email, state, total_items, total_value, currency, created_at, updated_at)
		SELECT gen_random_uuid(), 'Ada', 'ada@example.org', 'CONFIRMED', 1, 1, 'USD', now() - i * interval '1 s', now() FROM generate_series(1, $1) i`, searchLimit); err != nil {
		t.Fatal(err)
	}
	req := &orderv1.ListOrdersRequest{IdSuffix: oldest.GetOrderId()}
	isOnTheSecondPage(t, s, req)
	req.PageToken, req.PlacedAfter = "", timestamppb.New(time.Now().Add(-time.Hour))
	if page, err := s.ListOrders(t.Context(), req); err != nil || page.GetNextPageToken() != "" {
		t.Errorf("of an hour: %v, %v; want no other page: all that follows is older", page, err)
	}
	// To look at items takes longer: five times as many calls.
	pages := 1
	req = &orderv1.ListOrdersRequest{ProductId: 5}
	for ; ; pages++ {
		page, err := s.ListOrders(t.Context(), req)
		if err != nil {
			t.Fatal(err)
		}
		if len(page.GetOrders()) > 0 {
			break
		}
		req.PageToken = page.GetNextPageToken()
		if req.PageToken == "" {
			t.Fatal("the order is on no page")
		}
	}
	if want := searchLimit/itemSearchLimit + 1; pages != want {
		t.Errorf("it is on page %d, want %d", pages, want)
	}
}

// There is no index on confirmed orders, because nearly all are. When a product had sold out nearly none of the last ones was.
func TestListOrders_ConfirmedOnesAreFoundBehindManyRejectedOnes(t *testing.T) {
	t.Parallel()
	s := newStore(t)
	oldest := newPlaced()
	oldest.PlacedAt = timestamppb.New(time.Now().Add(-48 * time.Hour))
	mustStore(t, s, decidedOrders(t, held, oldest))
	if _, err := s.db.Exec(`
		INSERT INTO orders (id, customer_name, customer_email, state, reason, total_items, created_at, updated_at)
		SELECT gen_random_uuid(), 'Ada', 'ada@example.org', 'REJECTED', 'OUT_OF_STOCK', 1, now() - i * interval '1 s', now() FROM generate_series(1, $1) i`, searchLimit); err != nil {
		t.Fatal(err)
	}
	isOnTheSecondPage(t, s, &orderv1.ListOrdersRequest{State: orderv1.Order_CONFIRMED})
}

// isOnTheSecondPage fails the test unless a list has one order, behind as many as one call reads.
func isOnTheSecondPage(t *testing.T, s *Service, req *orderv1.ListOrdersRequest) {
	t.Helper()
	first, err := s.ListOrders(t.Context(), req)
	if err != nil || len(first.GetOrders()) != 0 || first.GetNextPageToken() == "" {
		t.Fatalf("the first page is %v, %v; want none, and another page", first, err)
	}
	req.PageToken = first.GetNextPageToken()
	second, err := s.ListOrders(t.Context(), req)
	if err != nil || len(second.GetOrders()) != 1 || second.GetNextPageToken() != "" {
		t.Errorf("the second page is %v, %v; want the order, and no other page", second, err)
	}
}

func TestListOrders_ForeignTokenIsInvalid(t *testing.T) {
	t.Parallel()
	s := newStore(t)
	for _, token := range []string{"x", "AAAA", position{micros: 1 << 62}.token(""), position{micros: -1 << 62}.token("")} {
		_, err := s.ListOrders(t.Context(), &orderv1.ListOrdersRequest{PageToken: token})
		assertError(t, err, codes.InvalidArgument, "INVALID_ARGUMENT")
	}
}

// A token of one list was taken in another, and skipped what that has.
func TestListOrders_ATokenIsOfOneFilter(t *testing.T) {
	t.Parallel()
	s := newStore(t)
	for range 3 {
		mustStore(t, s, decidedOrders(t, refused, newPlaced()))
	}
	page, err := s.ListOrders(t.Context(), &orderv1.ListOrdersRequest{PageSize: 1, State: orderv1.Order_REJECTED})
	if err != nil || page.GetNextPageToken() == "" {
		t.Fatalf("%v, %v", page, err)
	}
	for _, state := range []orderv1.Order_State{orderv1.Order_STATE_UNSPECIFIED, orderv1.Order_CONFIRMED} {
		_, err := s.ListOrders(t.Context(), &orderv1.ListOrdersRequest{State: state, PageToken: page.GetNextPageToken()})
		assertError(t, err, codes.InvalidArgument, "INVALID_ARGUMENT")
	}
}

func cancelOrder(ctx context.Context, s *Service, id string) (*orderv1.Order, error) {
	resp, err := s.CancelOrder(ctx, &orderv1.CancelOrderRequest{OrderId: id})
	return resp.GetOrder(), err
}

func TestCancelOrder_HasOneEffectHoweverOftenItIsAsked(t *testing.T) {
	t.Parallel()
	s := newStore(t)
	placed := newPlaced()
	mustStore(t, s, decidedOrders(t, held, placed))
	cancelled := make([]*orderv1.Order, 8)
	var wg sync.WaitGroup
	for i := range cancelled {
		wg.Go(func() {
			var err error
			if cancelled[i], err = cancelOrder(t.Context(), s, placed.GetOrderId()); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	want := mustGet(t, s, placed.GetOrderId())
	if want.GetState() != orderv1.Order_CANCELLED || !want.GetUpdatedAt().AsTime().After(want.GetCreatedAt().AsTime()) || len(want.GetOrderItems()) != 2 {
		t.Errorf("cancelled order is %v", want)
	}
	for _, o := range cancelled {
		if !proto.Equal(o, want) {
			t.Errorf("a cancellation returned\n%v, want\n%v", o, want)
		}
	}
	var body []byte
	if err := s.db.GetContext(t.Context(), &body, "SELECT body FROM outbox WHERE routing_key = 'shop.order.cancelled'"); err != nil {
		t.Fatal(err)
	}
	if n := count(t, s, "outbox"); n != 3 {
		t.Errorf("the outbox has %d messages, want confirmed, decrement and one cancelled", n)
	}
	var event eventsv1.OrderCancelled
	if err := proto.Unmarshal(body, &event); err != nil {
		t.Fatal(err)
	}
	if err := contract.Validate(&event); err != nil || len(event.GetLines()) != 2 || !event.GetCancelledAt().AsTime().Equal(want.GetUpdatedAt().AsTime()) {
		t.Errorf("OrderCancelled is %v, %v", &event, err)
	}
}

func TestCancelOrder_RejectedOrderIsNotCancellable(t *testing.T) {
	t.Parallel()
	s := newStore(t)
	placed := newPlaced()
	mustStore(t, s, decidedOrders(t, refused, placed))
	_, err := cancelOrder(t.Context(), s, placed.GetOrderId())
	assertError(t, err, codes.FailedPrecondition, "ORDER_NOT_CANCELLABLE")
	if got := mustGet(t, s, placed.GetOrderId()); got.GetState() != orderv1.Order_REJECTED || count(t, s, "outbox") != 1 {
		t.Errorf("order is %v after a cancellation that was refused", got)
	}
}

func TestCancelOrder_UnknownIsNotFound(t *testing.T) {
	t.Parallel()
	_, err := cancelOrder(t.Context(), newStore(t), uuid.NewString())
	assertError(t, err, codes.NotFound, "ORDER_NOT_FOUND")
}

// BenchmarkStore measures the transaction of a batch: orders, lines and outbox.
func BenchmarkStore(b *testing.B) {
	s := newStore(b)
	for _, size := range []int{1, 50, 200, 500} {
		b.Run(fmt.Sprintf("%d orders of 2 lines", size), func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				b.StopTimer()
				placed := make([]*eventsv1.OrderPlaced, size)
				for i := range placed {
					placed[i] = newPlaced()
				}
				pending := decidedOrders(b, held, placed...)
				b.StartTimer()
				mustStore(b, s, pending)
			}
			b.ReportMetric(float64(size*b.N)/b.Elapsed().Seconds(), "orders/s")
		})
	}
}

// BenchmarkUnknown is what it costs to say which of a thousand orders are stored.
func BenchmarkUnknown(b *testing.B) {
	s := newStore(b)
	var ids []uuid.UUID
	for range 20 {
		var placed []*eventsv1.OrderPlaced
		for range 500 {
			placed = append(placed, newPlaced())
		}
		pending := decidedOrders(b, held, placed...)
		mustStore(b, s, pending)
		if len(ids) < 1000 {
			for _, p := range pending {
				ids = append(ids, p.order.ID)
			}
		}
	}
	for b.Loop() {
		missing, err := missingOrders(b.Context(), s.db, ids)
		if err != nil || len(missing) > 0 {
			b.Fatal(missing, err)
		}
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*len(ids)), "ns/order")
}

// A new state or reason of the contract has to be one that the database takes and queries return.
func TestStates_EachStateAndReasonIsStoredReadAndListed(t *testing.T) {
	t.Parallel()
	s := newStore(t)
	store := func(state orderv1.Order_State, reason string) *Order {
		at := time.Now().Truncate(time.Microsecond)
		o := &Order{
			ID: uuid.Must(uuid.NewV7()), CustomerName: "Ada", CustomerEmail: "ada@example.org", State: State(state.String()), Reason: reason,
			TotalItems: 1, TotalValue: 100, Currency: "USD", CreatedAt: at, UpdatedAt: at,
			Lines: []Line{{Number: 1, ProductID: 1, ProductName: "Laptop", Quantity: 1, UnitPrice: 100}},
		}
		err := postgres.InTx(t.Context(), s.db, func(tx *sqlx.Tx) error {
			_, err := storeOrders(t.Context(), tx, []*Order{o})
			return err
		})
		if err != nil {
			t.Errorf("%s %s is not stored: %v; it may need a migration", state, reason, err)
		}
		return o
	}
	for _, state := range orderstate.Stored() {
		reasons := []string{""}
		if state == orderv1.Order_REJECTED {
			reasons = nil
			values := eventsv1.OrderRejected_REASON_UNSPECIFIED.Descriptor().Values()
			for i := range values.Len() {
				if v := values.Get(i); v.Number() != 0 {
					reasons = append(reasons, string(v.Name()))
				}
			}
		}
		want := map[string]string{} // reason by id
		for _, reason := range reasons {
			want[store(state, reason).ID.String()] = reason
		}
		resp, err := s.ListOrders(t.Context(), &orderv1.ListOrdersRequest{State: state})
		if err != nil {
			t.Fatal(err)
		}
		if len(resp.GetOrders()) != len(want) {
			t.Errorf("%d orders are %s, want %d", len(resp.GetOrders()), state, len(want))
		}
		for _, o := range resp.GetOrders() {
			got := mustGet(t, s, o.GetId())
			reason, known := want[o.GetId()]
			if !known || got.GetState() != state || o.GetState() != state || (reason != "") != (got.Reason != nil) || reason != "" && got.GetReason().String() != reason {
				t.Errorf("an order that is %s %q is read as %v and listed as %v", state, reason, got, o)
			}
		}
	}
}
