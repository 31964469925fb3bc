package ordering

import (
	"context"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	"shop.example/domain/customer"
	"shop.example/domain/enduser"
	accessv1 "shop.example/gen/shop/access/v1"
	customerv1 "shop.example/gen/shop/customer/v1"
	eventsv1 "shop.example/gen/shop/events/v1"
	orderv1 "shop.example/gen/shop/order/v1"
)

// byOperator is the context of a call that the gateway makes for an operator.
func byOperator(t *testing.T, name string) context.Context {
	t.Helper()
	md, _ := metadata.FromOutgoingContext(enduser.With(t.Context(), &accessv1.EndUser{Operator: true, Name: name}))
	return metadata.NewIncomingContext(t.Context(), md)
}

// recorded takes out of the outbox what operators have done.
func recorded(t *testing.T, s *Service) (all []string) {
	t.Helper()
	var bodies [][]byte
	if err := s.db.SelectContext(t.Context(), &bodies, `WITH taken AS (DELETE FROM outbox RETURNING id, routing_key, body)
		SELECT body FROM taken WHERE routing_key = 'shop.operator.acted' ORDER BY id`); err != nil {
		t.Fatal(err)
	}
	for _, body := range bodies {
		m := &eventsv1.OperatorActed{}
		if err := proto.Unmarshal(body, m); err != nil {
			t.Fatal(err)
		}
		all = append(all, strings.Join([]string{m.GetOperator(), m.GetMethod(), m.GetTarget(), m.GetDetail()}, " | "))
	}
	return all
}

// find goes through all pages.
func find(t *testing.T, s *Service, p *customerv1.Person) (records []*customerv1.PersonalRecord, pages int) {
	t.Helper()
	for token := ""; ; pages++ {
		resp, err := personalDataServer{Service: s}.FindPersonalData(byOperator(t, "ada"), &customerv1.FindPersonalDataRequest{Person: p, PageToken: token})
		if err != nil {
			t.Fatal(err)
		}
		records = append(records, resp.GetRecords()...)
		if token = resp.GetNextPageToken(); token == "" {
			return records, pages + 1
		}
	}
}

func eraseAll(t *testing.T, s *Service, p *customerv1.Person) (orders int) {
	t.Helper()
	for token := ""; ; {
		resp, err := personalDataServer{Service: s}.ErasePersonalData(byOperator(t, "ada"), &customerv1.ErasePersonalDataRequest{Person: p, PageToken: token})
		if err != nil {
			t.Fatal(err)
		}
		orders += int(resp.GetOrders())
		if token = resp.GetNextPageToken(); token == "" {
			return orders
		}
	}
}

func placedBy(email, owner string) *eventsv1.OrderPlaced {
	m := newPlaced()
	m.CustomerEmail, m.Owner = email, owner
	m.Fingerprint = []byte(strings.Repeat("f", 32))
	return m
}

func TestPersonalData_IsFoundByAddressInAnyCaseAndByOwner(t *testing.T) {
	t.Parallel()
	s := newStore(t)
	const ada = "https://login.example.org ada"
	placed := map[string]*eventsv1.OrderPlaced{
		"small": placedBy("ada@example.org", ""), "capitals": placedBy("ADA@Example.ORG", ""), "token": placedBy("work@example.com", ada),
		"bob": placedBy("bob@example.org", "https://login.example.org bob"), "like": placedBy("adaXexample.org", ""), "josé": placedBy("josé@exämple.org", ""),
		"JOSÉ": placedBy("JOSÉ@xn--exmple-cua.org", ""), "percent": placedBy("100%@example.org", ""),
	}
	names := map[string]string{}
	for name, m := range placed {
		names[m.GetOrderId()] = name
		mustStore(t, s, decidedOrders(t, held, m))
	}
	for _, c := range []struct {
		person *customerv1.Person
		want   string
	}{
		{&customerv1.Person{Email: "Ada@example.org"}, "capitals small"},
		{&customerv1.Person{Owner: ada}, "token"},
		{&customerv1.Person{Email: "ada@example.org", Owner: ada}, "capitals small token"},
		{&customerv1.Person{Email: "José@EXÄMPLE.org"}, "JOSÉ josé"},
		{&customerv1.Person{Email: "%@example.org"}, ""},
		{&customerv1.Person{Email: "100%@example.org"}, "percent"},
		{&customerv1.Person{Owner: "https://login.example.org"}, ""},
	} {
		var got []string
		records, _ := find(t, s, c.person)
		for _, r := range records {
			got = append(got, names[r.GetOrder().GetId()])
			if r.GetOrder().GetCustomerName() != "Ada" || len(r.GetOrder().GetOrderItems()) != 2 || r.GetOwner() != placed[names[r.GetOrder().GetId()]].GetOwner() {
				t.Errorf("%v: %v", c.person, r)
			}
		}
		if slices.Sort(got); strings.Join(got, " ") != c.want {
			t.Errorf("%v: found %q, want %q", c.person, got, c.want)
		}
	}
}

// In Turkish I is not the capital of i: the data of Ivan, who had written his address in capitals, were neither exported nor erased.
func TestPersonalData_IsFoundInADatabaseOfAnotherLocale(t *testing.T) {
	t.Parallel()
	s := newStore(t)
	s.db.MustExec(`ALTER TABLE orders ALTER customer_email TYPE text COLLATE "tr-x-icu"`)
	mustStore(t, s, decidedOrders(t, held, placedBy("IVAN@EXAMPLE.ORG", "")))
	if records, _ := find(t, s, &customerv1.Person{Email: "ivan@example.org"}); len(records) != 1 {
		t.Errorf("found %d orders, want 1", len(records))
	}
	page, err := s.ListOrders(t.Context(), &orderv1.ListOrdersRequest{CustomerEmail: "ivan@example.org"})
	if err != nil || len(page.GetOrders()) != 1 {
		t.Errorf("searched: %v, %v", page, err)
	}
}

// A field that is marked as personal data in the contract and forgotten here would stay when its customer has everything
// erased, or be kept from them when they ask for what there is.
func TestPersonalData_EachMarkedFieldIsExportedAndErased(t *testing.T) {
	t.Parallel()
	s := newStore(t)
	placed := newPlaced()
	for _, field := range customer.PersonalFields(placed) {
		placed.ProtoReflect().Set(field, protoreflect.ValueOfString("marked."+string(field.Name())+"@example.org"))
	}
	mustStore(t, s, decidedOrders(t, held, placed))
	person := &customerv1.Person{Email: placed.GetCustomerEmail()}
	records, _ := find(t, s, person)
	if len(records) != 1 {
		t.Fatalf("found %v", records)
	}
	exported, err := protojson.Marshal(records[0])
	if err != nil {
		t.Fatal(err)
	}
	for _, field := range customer.PersonalFields(placed) {
		if !strings.Contains(string(exported), "marked."+string(field.Name())) {
			t.Errorf("OrderPlaced.%s is personal data and not exported: put it into Order, or into PersonalRecord", field.Name())
		}
	}
	if n := eraseAll(t, s, person); n != 1 {
		t.Errorf("erased %d orders", n)
	}
	var left string
	if err := s.db.GetContext(t.Context(), &left, `SELECT concat(
		(SELECT string_agg(row_to_json(o)::text, ' ') FROM orders o), (SELECT string_agg(row_to_json(i)::text, ' ') FROM order_item i))`); err != nil {
		t.Fatal(err)
	}
	for _, field := range customer.PersonalFields(placed) {
		if strings.Contains(left, "marked."+string(field.Name())) {
			t.Errorf("OrderPlaced.%s is personal data and not erased: add its column to ErasePersonalData", field.Name())
		}
	}
}

// An order that nobody could handle is stored when it is discarded: what it says of a person must not be lost to an export.
func TestPersonalData_EachMarkedFieldOfADiscardedOrderIsStored(t *testing.T) {
	t.Parallel()
	s := newStore(t)
	placed := newPlaced()
	for _, field := range customer.PersonalFields(placed) {
		placed.ProtoReflect().Set(field, protoreflect.ValueOfString("marked."+string(field.Name())+"@example.org"))
	}
	body, err := proto.Marshal(placed)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := (intakeServer{Service: s}).RejectDiscarded(t.Context(), &orderv1.RejectDiscardedRequest{OrderId: placed.GetOrderId(), OrderPlaced: body}); err != nil {
		t.Fatal(err)
	}
	var stored string
	if err := s.db.GetContext(t.Context(), &stored, `SELECT row_to_json(o)::text FROM orders o`); err != nil {
		t.Fatal(err)
	}
	for _, field := range customer.PersonalFields(placed) {
		if !strings.Contains(stored, "marked."+string(field.Name())) {
			t.Errorf("OrderPlaced.%s is personal data and lost when the order is discarded: read it in discardedOrder", field.Name())
		}
	}
}

func TestPersonalData_ErasedOrdersNameNobodyAndAreOrdersStill(t *testing.T) {
	t.Parallel()
	s := newStore(t)
	ada := &customerv1.Person{Email: "ADA@example.org"}
	mine, others := placedBy("ada@example.org", "https://login.example.org ada"), placedBy("bob@example.org", "")
	mine.KeyHash = []byte(strings.Repeat("k", 32))
	if _, err := claimKeys(t.Context(), s.db, []claim{{mine.GetKeyHash(), uuid.MustParse(mine.GetOrderId())}}); err != nil {
		t.Fatal(err)
	}
	mustStore(t, s, decidedOrders(t, held, mine, others))
	recorded(t, s)
	before := mustGet(t, s, mine.GetOrderId())

	if n := eraseAll(t, s, ada); n != 1 {
		t.Errorf("erased %d orders", n)
	}
	want := proto.CloneOf(before)
	want.CustomerName, want.CustomerEmail = "(erased)", "(erased)"
	if got := mustGet(t, s, mine.GetOrderId()); !proto.Equal(got, want) {
		t.Errorf("after it the order is %v, want %v", got, want)
	}
	if got := mustGet(t, s, others.GetOrderId()); got.GetCustomerEmail() != "bob@example.org" {
		t.Errorf("another's order is %v", got)
	}
	var left int
	if err := s.db.GetContext(t.Context(), &left, `SELECT count(*) FROM orders WHERE id = $1 AND (owner <> '(erased)' OR fingerprint IS NOT NULL)`, mine.GetOrderId()); err != nil || left != 0 {
		t.Errorf("whom it belonged to is stored still: %d, %v", left, err)
	}
	// An order of somebody's that was erased was everybody's who knew its id.
	md, _ := metadata.FromOutgoingContext(enduser.With(t.Context(), &accessv1.EndUser{}))
	if _, err := s.CancelOrder(metadata.NewIncomingContext(t.Context(), md), &orderv1.CancelOrderRequest{OrderId: mine.GetOrderId()}); status.Code(err) != codes.NotFound {
		t.Errorf("somebody without a token cancels it: %v", err)
	}
	const hashed = "customer sha256:cfe00dde46ef9426" // of ada@example.org
	if got := recorded(t, s); !slices.Equal(got, []string{"ada | shop.customer.v1.CustomerService/EraseCustomer | " + hashed + " | 1 orders"}) {
		t.Errorf("recorded %q", got)
	}

	// Again is no error, and nothing to record.
	if n := eraseAll(t, s, ada); n != 0 || len(recorded(t, s)) != 0 {
		t.Errorf("erased again: %d", n)
	}
	// The order comes again, with who placed it: it stays as it is, and is no dead letter. Its key is its own.
	if n := mustStore(t, s, decidedOrders(t, held, mine)); n != 0 {
		t.Errorf("it was stored again: %d", n)
	}
	if got := mustGet(t, s, mine.GetOrderId()); !proto.Equal(got, want) {
		t.Errorf("after it came again the order is %v", got)
	}
	if n := count(t, s, "idempotency_key"); n != 1 {
		t.Errorf("%d claims of keys are left", n)
	}
	if records, _ := find(t, s, ada); len(records) != 0 {
		t.Errorf("found after it: %v", records)
	}
	if _, err := cancelOrder(t.Context(), s, mine.GetOrderId()); err != nil {
		t.Errorf("cancelling it: %v", err)
	}
}

// No call looks at all orders, however many there are, and all calls together miss none.
func TestPersonalData_IsFoundAcrossScanLimits(t *testing.T) {
	t.Parallel()
	s := newStore(t)
	insert := func(n int, email string, at time.Time) {
		t.Helper()
		_, err := s.db.ExecContext(t.Context(), `
			INSERT INTO orders (id, customer_name, customer_email, state, reason, total_items, created_at)
			SELECT gen_random_uuid(), 'N', $2, 'REJECTED', 'OUT_OF_STOCK', 1, $3::timestamptz + i / 7 * interval '1 ms' FROM generate_series(1, $1) AS i`, n, email, at)
		if err != nil {
			t.Fatal(err)
		}
	}
	now := time.Now().Add(-time.Hour)
	insert(2*maxFound+50, "ada@example.org", now) // in three pages
	insert(scanLimit+10, "bob@example.org", now.Add(time.Minute))
	insert(1, "ADA@example.org", now.Add(time.Minute))
	insert(1, "Ada@example.org", now.Add(2*time.Minute))
	insert(1, "ada@example.org", time.Date(1960, 1, 1, 0, 0, 0, 0, time.UTC))
	const all = 2*maxFound + 53
	ada := &customerv1.Person{Email: "ada@example.org"}
	records, pages := find(t, s, ada)
	distinct := map[string]bool{}
	for _, r := range records {
		distinct[r.GetOrder().GetId()] = true
	}
	if len(records) != all || len(distinct) != all || pages < 4 {
		t.Errorf("found %d records of %d orders on %d pages, want %d", len(records), len(distinct), pages, all)
	}
	if n := eraseAll(t, s, ada); n != all {
		t.Errorf("erased %d, want %d", n, all)
	}
	if n := eraseAll(t, s, ada); n != 0 {
		t.Errorf("erased %d again", n)
	}
}

func TestPersonalData_AnExportIsRecordedAndItsPagesAreOfOnePerson(t *testing.T) {
	t.Parallel()
	s := newStore(t)
	find(t, s, &customerv1.Person{Owner: "https://login.example.org ada"})
	got := recorded(t, s)
	if len(got) != 1 || !strings.HasPrefix(got[0], "ada | shop.customer.v1.CustomerService/ExportCustomer | customer sha256:") || strings.Contains(got[0], "login") {
		t.Errorf("recorded %q", got)
	}
	token := positionAfter(&Order{ID: uuid.New(), CreatedAt: time.Now()}).token(tokenFilter(&customerv1.Person{Email: "ada@example.org"}))
	_, err := personalDataServer{Service: s}.FindPersonalData(t.Context(), &customerv1.FindPersonalDataRequest{Person: &customerv1.Person{Email: "bob@example.org"}, PageToken: token})
	assertError(t, err, codes.InvalidArgument, "INVALID_ARGUMENT")
}

func TestCancelOrder_ByAnOperatorIsRecorded(t *testing.T) {
	t.Parallel()
	s := newStore(t)
	theirs, own := newPlaced(), newPlaced()
	mustStore(t, s, decidedOrders(t, held, theirs, own))
	for range 2 { // the second time nothing changes
		if _, err := s.CancelOrder(byOperator(t, "ada"), &orderv1.CancelOrderRequest{OrderId: theirs.GetOrderId()}); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := s.CancelOrder(t.Context(), &orderv1.CancelOrderRequest{OrderId: own.GetOrderId()}); err != nil {
		t.Fatal(err)
	}
	want := []string{"ada | shop.order.v1.OrderService/CancelOrder | order " + theirs.GetOrderId() + " | cancelled"}
	if got := recorded(t, s); !slices.Equal(got, want) {
		t.Errorf("recorded %q, want %q", got, want)
	}
}
