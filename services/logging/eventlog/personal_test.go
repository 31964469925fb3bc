package eventlog

import (
	"bytes"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"testing"

	"github.com/google/uuid"
	"github.com/jmoiron/sqlx"
	amqp "github.com/rabbitmq/amqp091-go"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	"shop.example/db/dbtest"
	"shop.example/domain/customer"
	customerv1 "shop.example/gen/shop/customer/v1"
	eventsv1 "shop.example/gen/shop/events/v1"
	loggingv1 "shop.example/gen/shop/logging/v1"
	orderv1 "shop.example/gen/shop/order/v1"
	"shop.example/platform/apierror"
	"shop.example/platform/contract"
	"shop.example/platform/messaging"
	"shop.example/platform/pagetoken"
)

// people is a service with a log in which people stand.
func people(t *testing.T) personalDataServer {
	t.Helper()
	return personalDataServer{Service: &Service{
		db: openDB(t, dbtest.New(t)), broker: &messaging.Connection{}, orders: orderv1.NewIntakeServiceClient(startServices(t).conn),
		log: slog.New(slog.DiscardHandler), horizon: 7 * day,
	}}
}

// find goes through all pages.
func (s personalDataServer) find(t *testing.T, p *customerv1.Person) (records []*customerv1.PersonalRecord, pages int) {
	t.Helper()
	for token := ""; ; pages++ {
		resp, err := s.FindPersonalData(t.Context(), &customerv1.FindPersonalDataRequest{Person: p, PageToken: token})
		if err != nil {
			t.Fatal(err)
		}
		records = append(records, resp.GetRecords()...)
		if token = resp.GetNextPageToken(); token == "" {
			return records, pages + 1
		}
	}
}

func (s personalDataServer) eraseAll(t *testing.T, p *customerv1.Person) (events, letters int) {
	t.Helper()
	md, _ := metadata.FromOutgoingContext(asOperator(t.Context(), "ada"))
	ctx := metadata.NewIncomingContext(t.Context(), md)
	for token := ""; ; {
		resp, err := s.ErasePersonalData(ctx, &customerv1.ErasePersonalDataRequest{Person: p, PageToken: token})
		if err != nil {
			t.Fatal(err)
		}
		events, letters = events+int(resp.GetEvents()), letters+int(resp.GetDeadLetters())
		if token = resp.GetNextPageToken(); token == "" {
			return events, letters
		}
	}
}

func placedBy(email, owner string) *eventsv1.OrderPlaced {
	m := placed(newOrderID())
	m.CustomerEmail, m.Owner = email, owner
	if strings.HasPrefix(email, "bob") {
		m.CustomerName = "Bob"
	}
	m.Fingerprint, m.KeyHash = bytes.Repeat([]byte{1}, 32), bytes.Repeat([]byte{2}, 32)
	return m
}

// dump is everything in the tables of the schema, to look for what must not be left.
func dump(t *testing.T, db *sqlx.DB) string {
	t.Helper()
	var b strings.Builder
	for _, query := range []string{
		"SELECT row_to_json(e)::text || convert_from(coalesce(body, ''), 'LATIN1') FROM event_log e",
		"SELECT row_to_json(d)::text || convert_from(body, 'LATIN1') FROM dead_letter d",
		"SELECT row_to_json(a)::text FROM operator_action a",
	} {
		var rows []string
		if err := db.Select(&rows, query); err != nil {
			t.Fatal(err)
		}
		b.WriteString(strings.Join(rows, "\n"))
	}
	return strings.ToLower(b.String())
}

const adasToken = "https://login.example.org ada"

// ada has placed orders in every way, some of which could not be handled.
func (s personalDataServer) adas(t *testing.T) (person *customerv1.Person, events, letters int) {
	t.Helper()
	small, capitals, byToken := placedBy("ada@example.org", ""), placedBy("ADA@Example.org", ""), placedBy("work@example.com", adasToken)
	dead, decidedAbout := placedBy("ada@example.org", ""), placedBy("Ada@example.org", adasToken)
	unreadable := deliveryOf(t, placedBy("ada@example.org", ""))
	unreadable.Body = append([]byte("\xff\xff"), unreadable.Body...)
	unreadable.MessageID = uuid.NewString()
	write(t, s.db, deliveryOf(t, small), deliveryOf(t, capitals), deliveryOf(t, byToken), deliveryOf(t, dead), deliveryOf(t, decidedAbout),
		deliveryOf(t, rejected(small.GetOrderId())), unreadable)

	letterOf := func(d messaging.Delivery, reason string, headers amqp.Table) int64 {
		d.SourceQueue, d.Reason, d.Headers = "order", reason, headers
		return storeLetter(t, s.db, d)
	}
	letterOf(deliveryOf(t, dead), "it failed for ada@example.org", amqp.Table{"x-note": "of Ada@example.org"})
	if _, err := discard(t.Context(), s.db, letterOf(deliveryOf(t, decidedAbout), "it failed", nil), s.rejectDiscardedOrder); err != nil {
		t.Fatal(err)
	}
	letterOf(unreadable, "it cannot be read", nil)
	inHeaders := deliveryOf(t, rejected(newOrderID()))
	letterOf(inHeaders, "it failed", amqp.Table{"x-note": "ADA@example.org"})
	return &customerv1.Person{Email: "ada@EXAMPLE.org", Owner: adasToken}, 6, 4
}

// bobs is what must stay as it is.
func (s personalDataServer) bobs(t *testing.T) {
	t.Helper()
	order := deliveryOf(t, placedBy("bob@example.org", "https://login.example.org bob"))
	write(t, s.db, order)
	order.SourceQueue, order.Reason = "order", "it failed"
	storeLetter(t, s.db, order)
	garbage := deliveryOf(t, placedBy("bob@example.org", ""))
	garbage.Body, garbage.MessageID = append([]byte("\xff"), garbage.Body...), uuid.NewString()
	write(t, s.db, garbage)
}

func TestPersonalData_IsFoundInEventsAndDeadLetters(t *testing.T) {
	t.Parallel()
	s := people(t)
	person, events, letters := s.adas(t)
	s.bobs(t)
	records, _ := s.find(t, person)
	var text strings.Builder
	kinds := map[string]int{}
	for _, r := range records {
		kinds[fmt.Sprintf("%T", r.GetRecord())]++
		b, err := protojson.Marshal(r)
		if err != nil {
			t.Fatal(err)
		}
		text.Write(b)
	}
	if kinds["*customerv1.PersonalRecord_Event"] != events || kinds["*customerv1.PersonalRecord_DeadLetter"] != letters {
		t.Errorf("found %v, want %d events and %d dead letters", kinds, events, letters)
	}
	for _, part := range []string{"ada@example.org", "ADA@Example.org", adasToken, "of Ada@example.org", "it failed for ada@example.org"} {
		if !strings.Contains(text.String(), part) {
			t.Errorf("%q is missing in %s", part, text.String())
		}
	}
	if strings.Contains(text.String(), "bob") {
		t.Errorf("another's data are in %s", text.String())
	}
	if got := count(t, s.db, "SELECT count(*) FROM operator_action WHERE method = 'shop.customer.v1.CustomerService/ExportCustomer'"); got != 3 { // each answer that hands something out
		t.Errorf("the export is recorded %d times", got)
	}
}

func TestPersonalData_OnceErasedNothingNamesThePersonAndTheRestStays(t *testing.T) {
	t.Parallel()
	s := people(t)
	person, events, letters := s.adas(t)
	s.bobs(t)
	rows := count(t, s.db, "SELECT count(*) FROM event_log")
	gotEvents, gotLetters := s.eraseAll(t, person)
	if gotEvents != events || gotLetters != letters {
		t.Errorf("erased %d events and %d dead letters, want %d and %d", gotEvents, gotLetters, events, letters)
	}
	left := dump(t, s.db)
	for _, part := range []string{"ada@example.org", "work@example.com", adasToken, `"name": "ada"`, `customer_name": "ada"`} {
		if strings.Contains(left, strings.ToLower(part)) {
			t.Errorf("%q is there still", part)
		}
	}
	if records, _ := s.find(t, person); len(records) != 0 {
		t.Errorf("found after it: %v", records)
	}
	if again, lettersAgain := s.eraseAll(t, person); again != 0 || lettersAgain != 0 {
		t.Errorf("erased again: %d events, %d dead letters", again, lettersAgain)
	}
	bob := &customerv1.Person{Email: "bob@example.org"}
	if records, _ := s.find(t, bob); len(records) != 3 {
		t.Errorf("of another are left %d records, want 3", len(records))
	}
	if n := count(t, s.db, "SELECT count(*) FROM event_log"); n != rows {
		t.Errorf("%d events are left of %d", n, rows)
	}

	// What is left of an event is what it said of the order, and nothing that anybody could send again.
	owned := 0
	for _, r := range allRows(t, s.db, filter{key: parseKeyPattern("shop.order.placed")}) {
		if !strings.Contains(string(r.Payload), "(erased)") {
			continue
		}
		m := &eventsv1.OrderPlaced{}
		if err := protojson.Unmarshal(r.Payload, m); err != nil {
			t.Fatal(err)
		}
		want := &eventsv1.OrderPlaced{OrderId: m.GetOrderId(), CustomerName: "(erased)", Lines: m.GetLines(), PlacedAt: m.GetPlacedAt()}
		if m.GetOwner() != "" {
			want.Owner = "(erased)"
			owned++
		}
		if !proto.Equal(m, want) || len(m.GetLines()) != 1 {
			t.Errorf("left is %v", m)
		}
		if contract.Validate(m) == nil {
			t.Errorf("it can be sent again: %v", m)
		}
	}
	if owned != 2 {
		t.Errorf("%d of what is left belonged to somebody, want 2", owned)
	}
	if n := count(t, s.db, "SELECT count(*) FROM dead_letter WHERE state = 'OPEN'"); n != 1 { // bob's
		t.Errorf("%d dead letters are open", n)
	}
	if n := count(t, s.db, "SELECT count(*) FROM operator_action WHERE operator = 'ada' AND method LIKE '%DiscardDeadLetter'"); n != 3 {
		t.Errorf("%d discards are recorded, want 3", n)
	}
	var said []string
	if err := s.db.Select(&said, "SELECT target || ': ' || detail FROM operator_action WHERE method = 'shop.customer.v1.CustomerService/EraseCustomer' ORDER BY id"); err != nil {
		t.Fatal(err)
	}
	const who = "customer sha256:cfe00dde46ef9426: "
	if want := []string{who + "5 events", who + "1 events", who + "4 dead letters"}; !slices.Equal(said, want) {
		t.Errorf("recorded %q, want %q", said, want)
	}
}

// A dead letter was everybody's whose address is a part of that of its customer: handed out to them, and discarded with
// their own.
// A field that is marked as personal data in the contract and forgotten here would stay in the log or in a dead letter.
func TestPersonalData_EachMarkedFieldIsErased(t *testing.T) {
	t.Parallel()
	s := people(t)
	order := placedBy("", "")
	for _, field := range customer.PersonalFields(order) {
		order.ProtoReflect().Set(field, protoreflect.ValueOfString("marked."+string(field.Name())+"@example.org"))
	}
	delivery := deliveryOf(t, order)
	write(t, s.db, delivery)
	delivery.SourceQueue, delivery.Reason = "order", "it failed"
	storeLetter(t, s.db, delivery)
	if n := strings.Count(dump(t, s.db), "marked."); n == 0 {
		t.Fatal("nothing was stored")
	}
	if events, letters := s.eraseAll(t, &customerv1.Person{Email: order.GetCustomerEmail()}); events != 1 || letters != 1 {
		t.Errorf("erased %d events and %d dead letters", events, letters)
	}
	left := dump(t, s.db)
	for _, field := range customer.PersonalFields(order) {
		if strings.Contains(left, "marked."+string(field.Name())) {
			t.Errorf("OrderPlaced.%s is personal data and not erased from the log and the dead letters", field.Name())
		}
	}
}

func TestPersonalData_OfWhoseAddressIsAPartOfAnothersIsNotTheOthers(t *testing.T) {
	t.Parallel()
	s := people(t)
	s.adas(t)
	wide := deliveryOf(t, placedBy("da@\uff45\uff58\uff41\uff4d\uff50\uff4c\uff45.org", ""))
	write(t, s.db, wide)
	da := &customerv1.Person{Email: "da@example.org"}
	if records, _ := s.find(t, da); len(records) != 1 || records[0].GetEvent() == nil {
		t.Errorf("found %v", records)
	}
	if events, letters := s.eraseAll(t, da); events != 1 || letters != 0 {
		t.Errorf("erased %d events and %d dead letters", events, letters)
	}
	if n := count(t, s.db, "SELECT count(*) FROM dead_letter WHERE state = 'OPEN'"); n != 3 {
		t.Errorf("%d of 3 dead letters are open still", n)
	}
}

// A dead letter of an erased order can be shown, and nobody can redrive it.
func TestPersonalData_ErasedDeadLettersAreShownAndNotRedriven(t *testing.T) {
	t.Parallel()
	s := people(t)
	order := deliveryOf(t, placedBy("ada@example.org", ""))
	order.SourceQueue, order.Reason = "order", "it failed"
	id := storeLetter(t, s.db, order)
	s.eraseAll(t, &customerv1.Person{Email: "ada@example.org"})
	letters := deadLetterServer{Service: s.Service}
	shown, err := letters.GetDeadLetter(t.Context(), &loggingv1.GetDeadLetterRequest{Id: id})
	if err != nil || shown.GetDeadLetter().GetPayload().GetFields()["customer_name"].GetStringValue() != "(erased)" || shown.GetDeadLetter().GetState() != loggingv1.DeadLetter_DISCARDED {
		t.Errorf("shown as %v, %v", shown, err)
	}
	if _, err := letters.RedriveDeadLetter(t.Context(), &loggingv1.RedriveDeadLetterRequest{Id: id}); apierror.Status(err).Code() != codes.FailedPrecondition {
		t.Errorf("redriving it: %v", err)
	}
}

// No call looks at all of it, however much there is, and all calls together miss nothing.
func TestPersonalData_IsFoundAcrossScanLimits(t *testing.T) {
	t.Parallel()
	s := people(t)
	insert := func(n int, email string) {
		t.Helper()
		tx := s.db.MustBegin()
		tx.MustExec("SET LOCAL statement_timeout = 0") // a service never stores 200,000 rows at once
		tx.MustExec(`
			INSERT INTO event_log (routing_key, exchange, payload, status, message_id, published_at)
			SELECT 'shop.order.placed', 'shop.topic', jsonb_build_object('customer_email', $1::text), 'success', gen_random_uuid(), now() FROM generate_series(1, $2)`,
			email, n)
		if err := tx.Commit(); err != nil {
			t.Fatal(err)
		}
	}
	// A log does not begin with 1 for ever.
	if _, err := s.db.Exec("ALTER TABLE event_log ALTER id RESTART WITH 100000000000"); err != nil {
		t.Fatal(err)
	}
	insert(maxFound+1, "ada@example.org")
	insert(scanLimit, "bob@example.org")
	insert(1, "Ada@example.org")
	large := func(email string) {
		order := deliveryOf(t, rejected(newOrderID()))
		order.SourceQueue, order.Reason, order.Body = "order", "it failed", append(bytes.Repeat([]byte{0xff}, maxRead/3), email...)
		storeLetter(t, s.db, order)
	}
	for range 5 {
		large("ada@example.org")
		large("bob@example.org")
	}
	huge := deliveryOf(t, rejected(newOrderID()))
	huge.SourceQueue, huge.Body = "order", append(bytes.Repeat([]byte{0xff}, 3*maxRead), "ada@example.org"...)
	storeLetter(t, s.db, huge)
	ada := &customerv1.Person{Email: "ada@example.org"}
	records, pages := s.find(t, ada)
	if len(records) != maxFound+2+6 || pages < 7 {
		t.Errorf("found %d records on %d pages, want %d", len(records), pages, maxFound+2+6)
	}
	if pages > 20 {
		t.Errorf("it took %d pages", pages)
	}
	if events, letters := s.eraseAll(t, ada); events != maxFound+2 || letters != 6 {
		t.Errorf("erased %d events and %d dead letters", events, letters)
	}
	if records, _ := s.find(t, ada); len(records) != 0 {
		t.Errorf("found after it: %d", len(records))
	}
}

func TestPersonalData_ATokenIsOfOnePerson(t *testing.T) {
	t.Parallel()
	s := people(t)
	ada, bob := &customerv1.Person{Email: "ada@example.org"}, &customerv1.Person{Email: "bob@example.org"}
	at := search{whose: ada, stage: inEvents}
	for _, token := range []string{at.next(7, false), at.next(0, true), "e", "x", "x" + pagetoken.NewID(7, pagetoken.ListOf(bob)), pagetoken.NewID(7, pagetoken.ListOf(bob)), "e?"} {
		if _, err := s.FindPersonalData(t.Context(), &customerv1.FindPersonalDataRequest{Person: bob, PageToken: token}); apierror.Status(err).Code() != codes.InvalidArgument {
			t.Errorf("token %q: %v", token, err)
		}
	}
	if _, err := s.FindPersonalData(t.Context(), &customerv1.FindPersonalDataRequest{Person: ada, PageToken: at.next(7, false)}); err != nil {
		t.Error(err)
	}
}

// A page token that an operator made up led past the record.
func TestPersonalData_WhatIsHandedOutIsRecordedWhateverTheTokenSays(t *testing.T) {
	t.Parallel()
	s := people(t)
	write(t, s.db, deliveryOf(t, placedBy("ada@example.org", "")))
	md, _ := metadata.FromOutgoingContext(asOperator(t.Context(), "eve"))
	ctx := metadata.NewIncomingContext(t.Context(), md)
	person := &customerv1.Person{Email: "ada@example.org"}
	resp, err := s.FindPersonalData(ctx, &customerv1.FindPersonalDataRequest{Person: person, PageToken: inEvents + pagetoken.NewID(0, pagetoken.ListOf(person))})
	if err != nil || len(resp.GetRecords()) != 1 {
		t.Fatalf("found %v, %v", resp, err)
	}
	if n := count(t, s.db, "SELECT count(*) FROM operator_action WHERE operator = 'eve'"); n != 1 {
		t.Errorf("%d records of it, want 1", n)
	}
}
