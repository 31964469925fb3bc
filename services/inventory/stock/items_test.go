package stock

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jmoiron/sqlx"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/fieldmaskpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"shop.example/domain/enduser"
	accessv1 "shop.example/gen/shop/access/v1"
	eventsv1 "shop.example/gen/shop/events/v1"
	inventoryv1 "shop.example/gen/shop/inventory/v1"
	moneyv1 "shop.example/gen/shop/money/v1"
	"shop.example/platform/apierror"
	"shop.example/platform/messaging"
)

// inTx runs a change of the catalogue as calls and messages do.
func inTx(t testing.TB, st *store, f func(tx *sqlx.Tx) (catalogueChange, error)) error {
	t.Helper()
	_, err := st.changeCatalogue(t.Context(), "somebody", "something", f)
	return err
}

// byOperator is the context of a call that the gateway makes for an operator.
func byOperator(t testing.TB, name string) context.Context {
	t.Helper()
	md, _ := metadata.FromOutgoingContext(enduser.With(t.Context(), &accessv1.EndUser{Operator: true, Name: name}))
	return metadata.NewIncomingContext(t.Context(), md)
}

// recorded takes out of the outbox what operators have done.
func (st *store) recorded(t testing.TB) (all []string) {
	t.Helper()
	for _, m := range st.published(t) {
		if acted, ok := m.(*eventsv1.OperatorActed); ok {
			all = append(all, strings.Join([]string{acted.GetOperator(), acted.GetMethod(), acted.GetTarget(), acted.GetDetail()}, " | "))
		}
	}
	return all
}

func TestCatalogue_EachChangeIsRecordedWithWhoMadeIt(t *testing.T) {
	t.Parallel()
	st := newTestStore(t)
	c := inventoryServer{store: st}
	ctx := byOperator(t, "ada")
	_, err := c.CreateItems(ctx, &inventoryv1.CreateItemsRequest{Items: []*inventoryv1.CreateItemsRequest_NewItem{
		{ProductName: "Watch", Quantity: 5, Price: usd(99)}, {ProductName: "Tablet", Price: usd(300)},
	}})
	if err != nil {
		t.Fatal(err)
	}
	_, err = c.UpdateItem(ctx, &inventoryv1.UpdateItemRequest{
		Item:       &inventoryv1.Item{Id: laptop, ProductName: "Notebook", OnHand: 40, Price: usd(900)},
		UpdateMask: &fieldmaskpb.FieldMask{Paths: []string{"product_name", "on_hand", "price"}},
	})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.DeleteItem(ctx, &inventoryv1.DeleteItemRequest{Id: phone}); err != nil {
		t.Fatal(err)
	}
	// What is refused was not done.
	if _, err := c.DeleteItem(ctx, &inventoryv1.DeleteItemRequest{Id: phone}); reasonOf(err) != "ITEM_NOT_FOUND" {
		t.Fatal(err)
	}
	const service = "ada | shop.inventory.v1.InventoryService/"
	want := []string{
		service + `CreateItems | item 9 | created: name "Watch", price 99.00 USD, on hand 5`,
		service + `CreateItems | item 10 | created: name "Tablet", price 300.00 USD, on hand 0`,
		service + `UpdateItem | item 1 | name "Notebook", was "Laptop"; price 900.00 USD, was 1000.00 USD; on hand 40, was 50`,
		service + `DeleteItem | item 2 | deleted: name "Phone"`,
	}
	if got := st.recorded(t); !slices.Equal(got, want) {
		t.Errorf("recorded %q, want %q", got, want)
	}
}

// A message is recorded once, as that of the broker's user who published it.
func TestCatalogue_ChangesByMessageAreRecordedToo(t *testing.T) {
	t.Parallel()
	st := newTestStore(t)
	update := delivered(&eventsv1.UpdateItems{RequestId: uuid.NewString(), Items: []*eventsv1.UpdateItems_Item{{Id: laptop, Price: usd(1)}, {Id: phone}}})[0]
	update.User = "backoffice"
	for _, before := range []bool{false, true} {
		answer, err := changeOnce(t.Context(), st, update, st.onUpdateItems)
		if err != nil {
			t.Fatal(err)
		}
		if answer.GetDoneBefore() != before || !before && (len(answer.GetItems()) != 2 || answer.GetItems()[0].GetPrice().GetUnits() != 1) {
			t.Errorf("done before %t: the answer is %v", before, answer)
		}
	}
	remove := delivered(&eventsv1.DeleteItems{RequestId: uuid.NewString(), Ids: []int32{phone}})[0]
	if _, err := changeOnce(t.Context(), st, remove, st.onDeleteItems); err != nil {
		t.Fatal(err)
	}
	want := []string{
		"user of the broker backoffice | shop.events.v1.UpdateItems | item 1 | price 1.00 USD, was 1000.00 USD",
		"user of the broker backoffice | shop.events.v1.UpdateItems | item 2 | nothing changed",
		`unknown user of the broker | shop.events.v1.DeleteItems | item 2 | deleted: name "Phone"`,
	}
	if got := st.recorded(t); !slices.Equal(got, want) {
		t.Errorf("recorded %q, want %q", got, want)
	}
}

// carryOut handles messages as the inventory queue's handler does, without answers.
func carryOut[T proto.Message](t *testing.T, st *store, change changeOnMessage[T], batch []messaging.Message[T]) error {
	t.Helper()
	for _, m := range batch {
		if _, err := changeOnce(t.Context(), st, m, change); err != nil {
			return permanent(err)
		}
	}
	return nil
}

func TestCatalogue_DeceptiveNamesAreRefusedAndOthersNormalised(t *testing.T) {
	t.Parallel()
	st := newTestStore(t)
	c := inventoryServer{store: st}
	create := func(name string) (*inventoryv1.Item, error) {
		made, err := c.CreateItems(t.Context(), &inventoryv1.CreateItemsRequest{Items: []*inventoryv1.CreateItemsRequest_NewItem{{ProductName: name, Quantity: 1, Price: usd(1)}}})
		if err != nil {
			return nil, err
		}
		return made.GetItems()[0], nil
	}
	rename := func(name string) error {
		return carryOut(t, st, st.onUpdateItems, delivered(&eventsv1.UpdateItems{RequestId: uuid.NewString(), Items: []*eventsv1.UpdateItems_Item{{Id: keyboard, ProductName: &name}}}))
	}
	for _, bad := range []string{"Lap\u200btop", "Laptop\u202e", "Laptop\n", "\u3164", strings.Repeat("\u0958", 101)} { // which is 202 characters in its normal form
		if _, err := create(bad); reasonOf(err) != "INVALID_ARGUMENT" {
			t.Errorf("created %q: %v", bad, err)
		}
		if err := rename(bad); reasonOf(err) != "INVALID_ARGUMENT" {
			t.Errorf("renamed to %q: %v", bad, err)
		}
		_, err := c.UpdateItem(t.Context(), &inventoryv1.UpdateItemRequest{
			Item: &inventoryv1.Item{Id: keyboard, ProductName: bad}, UpdateMask: &fieldmaskpb.FieldMask{Paths: []string{"product_name"}},
		})
		if reasonOf(err) != "INVALID_ARGUMENT" {
			t.Errorf("updated to %q: %v", bad, err)
		}
	}
	if item, err := create("Cafe\u0301"); err != nil || item.GetProductName() != "Caf\u00e9" {
		t.Errorf("created %v, %v", item, err)
	}
	if _, err := create("Caf\u00e9"); reasonOf(err) != "ITEM_EXISTS" {
		t.Errorf("the same name, as it looks: %v", err)
	}
	if err := rename("Souris a\u0300 fil"); err != nil {
		t.Fatal(err)
	}
	if got := st.mustCheck(t, orderFor(byName("Souris \u00e0 fil", 1))); got[0].GetRejection() != nil {
		t.Errorf("ordered by its name: %v", got)
	}
}

func usd(units int64) *moneyv1.Money { return &moneyv1.Money{CurrencyCode: "USD", Units: units} }

func createOf(items ...*eventsv1.CreateItems_Item) *eventsv1.CreateItems {
	return &eventsv1.CreateItems{RequestId: uuid.NewString(), Items: items}
}

func (st *store) count(t testing.TB) (n int) {
	t.Helper()
	if err := st.db.GetContext(t.Context(), &n, `SELECT count(*) FROM product WHERE deleted_at IS NULL`); err != nil {
		t.Fatal(err)
	}
	return n
}

func TestCreateItems_AllOrNone(t *testing.T) {
	t.Parallel()
	st := newTestStore(t)
	c := inventoryServer{store: st}
	euros := &moneyv1.Money{CurrencyCode: "EUR", Units: 1}
	tests := map[string]struct {
		items  []*inventoryv1.CreateItemsRequest_NewItem
		reason string
	}{
		"a name that is taken": {[]*inventoryv1.CreateItemsRequest_NewItem{
			{ProductName: "Tablet", Quantity: 1, Price: usd(300)}, {ProductName: "Laptop", Quantity: 1, Price: usd(1)},
		}, "ITEM_EXISTS"},
		"a name twice": {[]*inventoryv1.CreateItemsRequest_NewItem{
			{ProductName: "Tablet", Quantity: 1, Price: usd(300)}, {ProductName: "Tablet", Quantity: 1, Price: usd(1)},
		}, "ITEM_EXISTS"},
		"another currency": {[]*inventoryv1.CreateItemsRequest_NewItem{
			{ProductName: "Tablet", Quantity: 1, Price: usd(300)}, {ProductName: "Watch", Quantity: 1, Price: euros},
		}, "INVALID_ARGUMENT"},
	}
	for name, tt := range tests {
		if _, err := c.CreateItems(t.Context(), &inventoryv1.CreateItemsRequest{Items: tt.items}); reasonOf(err) != tt.reason {
			t.Errorf("%s: %v", name, err)
		}
	}
	if n := st.count(t); n != 8 {
		t.Errorf("%d products after refusals", n)
	}
	made, err := c.CreateItems(t.Context(), &inventoryv1.CreateItemsRequest{Items: []*inventoryv1.CreateItemsRequest_NewItem{
		{ProductName: "Watch", Quantity: 0, Price: &moneyv1.Money{CurrencyCode: "USD", Units: 99, Nanos: 990000000}},
		{ProductName: "Tablet", Quantity: 7, Price: usd(300)},
	}})
	if err != nil {
		t.Fatal(err)
	}
	watch, tablet := made.GetItems()[0], made.GetItems()[1]
	if watch.GetProductName() != "Watch" || watch.GetPrice().GetNanos() != 990000000 || tablet.GetQuantity() != 7 || tablet.GetId() <= watch.GetId() {
		t.Errorf("made %v", made)
	}
	// The first StockChanged of each; a product that begins with nothing is not depleted.
	if got := st.announced(t); len(got) != 2 {
		t.Errorf("announced %v", got)
	}
}

func TestCreateItemsMessage_TwiceIsOneEffect(t *testing.T) {
	t.Parallel()
	st := newTestStore(t)
	m := createOf(&eventsv1.CreateItems_Item{ProductName: "Tablet", Quantity: 7, Price: usd(300)})
	other := createOf(&eventsv1.CreateItems_Item{ProductName: "Watch", Quantity: 1, Price: usd(100)})
	for range 2 {
		if err := carryOut(t, st, st.onCreateItems, delivered(m, m, other)); err != nil {
			t.Fatal(err)
		}
	}
	if n := st.count(t); n != 10 {
		t.Errorf("%d products, want 10", n)
	}
	again := createOf(m.GetItems()...)
	if err := carryOut(t, st, st.onCreateItems, delivered(again)); reasonOf(err) != "ITEM_EXISTS" {
		t.Errorf("another request for the same name: %v", err)
	}
}

func TestUpdateItems_AllOrNone(t *testing.T) {
	t.Parallel()
	st := newTestStore(t)
	st.mustCheck(t, orderFor(byName("Phone", 10)))
	st.announced(t)
	name, taken, more, few := "Notebook", "Mouse", int32(60), int32(9)
	good := &eventsv1.UpdateItems_Item{Id: laptop, ProductName: &name, Quantity: &more, Price: usd(999)}
	tests := map[string]struct {
		bad    *eventsv1.UpdateItems_Item
		reason string
	}{
		"an unknown id":        {&eventsv1.UpdateItems_Item{Id: 99}, "ITEM_NOT_FOUND"},
		"a name that is taken": {&eventsv1.UpdateItems_Item{Id: phone, ProductName: &taken}, "ITEM_EXISTS"},
		"fewer than are held":  {&eventsv1.UpdateItems_Item{Id: phone, Quantity: &few}, "ITEM_HELD"},
		"another currency":     {&eventsv1.UpdateItems_Item{Id: phone, Price: &moneyv1.Money{CurrencyCode: "EUR"}}, "INVALID_ARGUMENT"},
	}
	for name, tt := range tests {
		m := &eventsv1.UpdateItems{RequestId: uuid.NewString(), Items: []*eventsv1.UpdateItems_Item{good, tt.bad}}
		if err := carryOut(t, st, st.onUpdateItems, delivered(m)); reasonOf(err) != tt.reason {
			t.Errorf("%s: %v", name, err)
		}
	}
	wantStock(t, st, laptop, 50, 0)
	if got := st.announced(t); len(got) != 0 {
		t.Errorf("refusals announced %v", got)
	}

	all := int32(10) // exactly what is held
	m := &eventsv1.UpdateItems{RequestId: uuid.NewString(), Items: []*eventsv1.UpdateItems_Item{
		good, {Id: phone, Quantity: &all}, {Id: keyboard, Price: usd(51)},
	}}
	for range 2 {
		if err := carryOut(t, st, st.onUpdateItems, delivered(m)); err != nil {
			t.Fatal(err)
		}
	}
	p, err := readItem(t.Context(), st.db, laptop)
	if err != nil || p.Name != "Notebook" || p.OnHand != 60 || p.UnitPrice != 99900 || p.Version != 2 {
		t.Errorf("updated %+v, %v", p, err)
	}
	// Laptop and Phone have changed stock, and of Phone nothing is left to sell. A new price is no change of stock.
	got := st.announced(t)
	if len(got) != 3 || got[2].(*eventsv1.StockDepleted).GetProductId() != phone {
		t.Errorf("announced %v", got)
	}
}

func TestUpdateItem_ByMaskAndETag(t *testing.T) {
	t.Parallel()
	st := newTestStore(t)
	c := inventoryServer{store: st}
	update := func(item *inventoryv1.Item, paths ...string) (*inventoryv1.Item, error) {
		resp, err := c.UpdateItem(t.Context(), &inventoryv1.UpdateItemRequest{Item: item, UpdateMask: &fieldmaskpb.FieldMask{Paths: paths}})
		return resp.GetItem(), err
	}
	item, err := update(&inventoryv1.Item{Id: laptop, OnHand: 40, ProductName: "ignored", Price: usd(900), Etag: "1"},
		"id", "etag", "on_hand", "price.units", "price.currency_code")
	if err != nil || item.GetProductName() != "Laptop" || item.GetOnHand() != 40 || item.GetPrice().GetUnits() != 900 || item.GetEtag() != "2" {
		t.Errorf("updated %v, %v", item, err)
	}
	tests := map[string]struct {
		item   *inventoryv1.Item
		paths  []string
		reason string
	}{
		"an old etag":          {&inventoryv1.Item{Id: laptop, OnHand: 1, Etag: "1"}, []string{"on_hand"}, "ETAG_MISMATCH"},
		"an unknown id":        {&inventoryv1.Item{Id: 99, OnHand: 1}, []string{"on_hand"}, "ITEM_NOT_FOUND"},
		"nothing":              {&inventoryv1.Item{Id: laptop, Etag: "2"}, nil, "INVALID_ARGUMENT"},
		"a field that follows": {&inventoryv1.Item{Id: laptop, Reserved: 1}, []string{"reserved"}, "INVALID_ARGUMENT"},
		"no name":              {&inventoryv1.Item{Id: laptop}, []string{"product_name"}, "INVALID_ARGUMENT"},
		"less than nothing":    {&inventoryv1.Item{Id: laptop, OnHand: -1}, []string{"on_hand"}, "INVALID_ARGUMENT"},
		"no price":             {&inventoryv1.Item{Id: laptop}, []string{"price"}, "INVALID_ARGUMENT"},
		"another currency":     {&inventoryv1.Item{Id: laptop, Price: &moneyv1.Money{CurrencyCode: "EUR"}}, []string{"price"}, "INVALID_ARGUMENT"},
		"cents alone, which made 1000.99 to 0.99": {&inventoryv1.Item{Id: laptop, Price: &moneyv1.Money{CurrencyCode: "USD", Nanos: 990_000_000}},
			[]string{"price.currency_code", "price.nanos"}, "INVALID_ARGUMENT"},
		"another product's name": {&inventoryv1.Item{Id: laptop, ProductName: "Phone"}, []string{"product_name"}, "ITEM_EXISTS"},
	}
	for name, tt := range tests {
		if _, err := update(tt.item, tt.paths...); reasonOf(err) != tt.reason {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestUpdateItem_WithoutMaskAndWithAllFields(t *testing.T) {
	t.Parallel()
	st := newTestStore(t)
	c := inventoryServer{store: st}
	update := func(item *inventoryv1.Item, mask *fieldmaskpb.FieldMask) (*inventoryv1.Item, error) {
		resp, err := c.UpdateItem(t.Context(), &inventoryv1.UpdateItemRequest{Item: item, UpdateMask: mask})
		return resp.GetItem(), err
	}
	item, err := update(&inventoryv1.Item{Id: laptop, OnHand: 40}, nil)
	if err != nil || item.GetProductName() != "Laptop" || item.GetOnHand() != 40 {
		t.Fatalf("what is set was not changed alone: %v, %v", item, err)
	}
	item.ProductName = "Notebook" // read, changed, written
	item, err = update(item, nil)
	if err != nil || item.GetProductName() != "Notebook" || item.GetOnHand() != 40 {
		t.Fatalf("what was read could not be sent back: %v, %v", item, err)
	}
	stale := proto.CloneOf(item)
	stale.Quantity, stale.Etag = 7, ""
	if _, err := update(stale, nil); reasonOf(err) != "INVALID_ARGUMENT" {
		t.Errorf("another quantity was taken: %v", err)
	}
	// Some generated clients keep times to the millisecond or the second.
	for _, kept := range []time.Duration{time.Millisecond, time.Second} {
		item.OnHand, item.CreatedAt, item.UpdatedAt = 50, timestamppb.New(item.GetCreatedAt().AsTime().Truncate(kept)), timestamppb.New(item.GetUpdatedAt().AsTime().Truncate(kept))
		if item, err = update(item, nil); err != nil {
			t.Fatalf("times to the %s were not taken: %v", kept, err)
		}
	}
	for _, wrong := range []*timestamppb.Timestamp{timestamppb.New(item.GetCreatedAt().AsTime().Truncate(time.Second).Add(time.Second)), {}} {
		changed := proto.CloneOf(item)
		changed.CreatedAt = wrong
		if _, err := update(changed, nil); reasonOf(err) != "INVALID_ARGUMENT" {
			t.Errorf("created at %s was taken: %v", wrong.AsTime(), err)
		}
	}
	item, err = update(&inventoryv1.Item{Id: laptop, ProductName: "Laptop", Price: usd(900)}, &fieldmaskpb.FieldMask{Paths: []string{"*"}})
	if err != nil || item.GetProductName() != "Laptop" || item.GetOnHand() != 0 || item.GetPrice().GetUnits() != 900 {
		t.Errorf("with all fields: %v, %v", item, err)
	}
}

func TestDeleteItems_RefusedWhileHeld(t *testing.T) {
	t.Parallel()
	st := newTestStore(t)
	c := inventoryServer{store: st}
	o := orderFor(byName("Laptop", 1))
	st.mustCheck(t, o)
	deletion := func(ids ...int32) error {
		return carryOut(t, st, st.onDeleteItems, delivered(&eventsv1.DeleteItems{RequestId: uuid.NewString(), Ids: ids}))
	}
	if err := deletion(phone, laptop); reasonOf(err) != "ITEM_HELD" {
		t.Errorf("one of them is held: %v", err)
	}
	if err := deletion(phone, 99); reasonOf(err) != "ITEM_NOT_FOUND" {
		t.Errorf("one of them is unknown: %v", err)
	}
	if n := st.count(t); n != 8 {
		t.Errorf("%d products after refusals", n)
	}
	st.settleNow(t, o)
	if err := deletion(phone, laptop); err != nil {
		t.Fatal(err)
	}
	if _, err := c.DeleteItem(t.Context(), &inventoryv1.DeleteItemRequest{Id: laptop}); reasonOf(err) != "ITEM_NOT_FOUND" {
		t.Errorf("deleted before: %v", err)
	}
	if _, err := c.GetItem(t.Context(), &inventoryv1.GetItemRequest{Id: laptop}); reasonOf(err) != "ITEM_NOT_FOUND" {
		t.Errorf("read after deletion: %v", err)
	}
	d := st.mustCheck(t, orderFor(byName("Laptop", 1)), orderFor(byID(laptop, 1)))
	for _, got := range d {
		if got.GetRejection().GetReason() != eventsv1.OrderRejected_UNKNOWN_PRODUCT {
			t.Errorf("ordered after deletion: %v", got)
		}
	}
	// The name is free again, and an order of the old product can still be given back.
	_, err := c.CreateItems(t.Context(), &inventoryv1.CreateItemsRequest{Items: []*inventoryv1.CreateItemsRequest_NewItem{
		{ProductName: "Laptop", Quantity: 1, Price: usd(1)},
	}})
	if err != nil {
		t.Error(err)
	}
	st.cancelNow(t, o)
	wantStock(t, st, laptop, 50, 0)
}

func TestListItems_PageByPage(t *testing.T) {
	t.Parallel()
	st := newTestStore(t)
	c := inventoryServer{store: st}
	if err := carryOut(t, st, st.onDeleteItems, delivered(&eventsv1.DeleteItems{RequestId: uuid.NewString(), Ids: []int32{phone}})); err != nil {
		t.Fatal(err)
	}
	var names []string
	token := ""
	for page := 0; ; page++ {
		resp, err := c.ListItems(t.Context(), &inventoryv1.ListItemsRequest{PageSize: 3, PageToken: token})
		if err != nil || page > 3 {
			t.Fatal(page, err)
		}
		for _, item := range resp.GetItems() {
			names = append(names, item.GetProductName())
		}
		if token = resp.GetNextPageToken(); token == "" {
			break
		}
	}
	if len(names) != 7 || names[0] != "Laptop" || names[1] != "Keyboard" || names[6] != "KVM Switch" {
		t.Errorf("listed %q", names)
	}
	if resp, err := c.ListItems(t.Context(), &inventoryv1.ListItemsRequest{}); err != nil || len(resp.GetItems()) != 7 || resp.GetNextPageToken() != "" {
		t.Errorf("one page: %v, %v", resp, err)
	}
	for _, bad := range []string{"?", "eA", "OTk5OTk5OTk5OTk5"} {
		if _, err := c.ListItems(t.Context(), &inventoryv1.ListItemsRequest{PageToken: bad}); reasonOf(err) != "INVALID_ARGUMENT" {
			t.Errorf("page token %q: %v", bad, err)
		}
	}
}

func TestDeleteItem_OfAnotherVersionIsRefused(t *testing.T) {
	t.Parallel()
	c := inventoryServer{store: newTestStore(t)}
	if _, err := c.DeleteItem(t.Context(), &inventoryv1.DeleteItemRequest{Id: phone, Etag: "0"}); reasonOf(err) != "ETAG_MISMATCH" {
		t.Errorf("with an old etag: %v", err)
	}
	if _, err := c.DeleteItem(t.Context(), &inventoryv1.DeleteItemRequest{Id: phone, Etag: "1"}); err != nil {
		t.Errorf("with its etag: %v", err)
	}
}

func TestListStockMovements_SaysWhatChangedTheStockPageByPage(t *testing.T) {
	t.Parallel()
	st := newTestStore(t)
	c := inventoryServer{store: st}
	o := orderFor(byName("Laptop", 2))
	st.mustCheck(t, o, orderFor(byName("Phone", 1)))
	st.settleNow(t, o)
	st.cancelNow(t, o)
	if _, err := c.UpdateItem(t.Context(), &inventoryv1.UpdateItemRequest{Item: &inventoryv1.Item{Id: laptop, OnHand: 60}}); err != nil {
		t.Fatal(err)
	}
	var got []string
	for req := (&inventoryv1.ListStockMovementsRequest{ItemId: laptop, PageSize: 1}); ; {
		page, err := c.ListStockMovements(t.Context(), req)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range page.GetMovements() {
			if ofOrder := m.GetOrderId() == o.id.String(); ofOrder != (m.GetQuantity() == -2 || m.GetQuantity() == 2) || m.GetMovedAt() == nil {
				t.Errorf("%v", m)
			}
			got = append(got, fmt.Sprintf("%s %d", m.GetReason(), m.GetQuantity()))
		}
		if req.PageToken = page.GetNextPageToken(); req.PageToken == "" {
			break
		}
	}
	if want := []string{"ADJUSTED 10", "RESTOCKED 2", "SOLD -2", "CREATED 50"}; !slices.Equal(got, want) {
		t.Errorf("%q, want %q", got, want)
	}
	_, err := c.ListStockMovements(t.Context(), &inventoryv1.ListStockMovementsRequest{ItemId: 1 << 30})
	if reasonOf(err) != "ITEM_NOT_FOUND" {
		t.Errorf("of an item that is none: %v", err)
	}
	other, err := c.ListStockMovements(t.Context(), &inventoryv1.ListStockMovementsRequest{ItemId: laptop, PageSize: 1})
	if err != nil {
		t.Fatal(err)
	}
	_, err = c.ListStockMovements(t.Context(), &inventoryv1.ListStockMovementsRequest{ItemId: phone, PageToken: other.GetNextPageToken()})
	if apierror.Status(err).Code() != codes.InvalidArgument {
		t.Errorf("with the token of another product: %v", err)
	}
}

// A search that reads on until it has found a page takes as long as there are movements.
func TestListStockMovements_ACallReadsSoManyAndNoMore(t *testing.T) {
	t.Parallel()
	st := newTestStore(t)
	if _, err := st.db.Exec(`INSERT INTO stock_movement (product_id, quantity, reason) SELECT $1, (-1)^i, 'ADJUSTED' FROM generate_series(1, $2) i`,
		phone, movementsRead); err != nil {
		t.Fatal(err)
	}
	c, req := inventoryServer{store: st}, &inventoryv1.ListStockMovementsRequest{ItemId: laptop}
	first, err := c.ListStockMovements(t.Context(), req)
	if err != nil || len(first.GetMovements()) != 0 || first.GetNextPageToken() == "" {
		t.Fatalf("the first page is %v, %v; want none, and another page", first, err)
	}
	req.PageToken = first.GetNextPageToken()
	second, err := c.ListStockMovements(t.Context(), req)
	if err != nil || len(second.GetMovements()) != 1 || second.GetNextPageToken() != "" {
		t.Errorf("the second page is %v, %v; want the product's first stock, and no other page", second, err)
	}
}
