package eventlog

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
	"google.golang.org/protobuf/types/known/timestamppb"

	"shop.example/db/dbtest"
	eventsv1 "shop.example/gen/shop/events/v1"
	"shop.example/platform/contract"
	"shop.example/platform/messaging"
	"shop.example/platform/postgres"
)

// testTimeout bounds every wait of these tests; none waits that long unless something is broken.
const testTimeout = 30 * time.Second

func openDB(t *testing.T, url string) *sqlx.DB {
	t.Helper()
	db, err := postgres.Open(t.Context(), url, schema, postgres.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { db.Close() })
	return db
}

func within(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), testTimeout)
	t.Cleanup(cancel)
	return ctx
}

func count(t *testing.T, db *sqlx.DB, query string, args ...any) (n int) {
	t.Helper()
	if err := db.Get(&n, query, args...); err != nil {
		t.Fatal(err)
	}
	return n
}

// eventually waits for what another process is about to do, if nothing announces it.
func eventually(t *testing.T, what string, holds func() bool) {
	t.Helper()
	waitFor(t, testTimeout, what, holds)
}

func waitFor(t *testing.T, limit time.Duration, what string, holds func() bool) {
	t.Helper()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for timeout := time.After(limit); !holds(); {
		select {
		case <-tick.C:
		case <-timeout:
			t.Fatalf("waited %s for %s", limit, what)
		}
	}
}

func newOrderID() string { return uuid.Must(uuid.NewV7()).String() }

func placed(orderID string) *eventsv1.OrderPlaced {
	return &eventsv1.OrderPlaced{
		OrderId: orderID, CustomerName: "Ada", CustomerEmail: "ada@example.org",
		Lines: []*eventsv1.RequestedLine{{ProductId: 1, Quantity: 2}}, PlacedAt: timestamppb.Now(),
	}
}

func rejected(orderID string) *eventsv1.OrderRejected {
	return &eventsv1.OrderRejected{
		OrderId: orderID, Reason: eventsv1.OrderRejected_OUT_OF_STOCK, Detail: "line 1", RejectedAt: timestamppb.Now(),
	}
}

// write logs messages as the service does. Goroutines of a test may call it.
func write(t *testing.T, db *sqlx.DB, deliveries ...messaging.Delivery) []loggedRow {
	t.Helper()
	records := make([]record, len(deliveries))
	for i, d := range deliveries {
		records[i] = readDelivery(d, time.Now())
	}
	rows, err := insertRecords(t.Context(), db, records)
	if err != nil {
		t.Error(err)
	}
	return rows
}

func allRows(t *testing.T, db *sqlx.DB, f filter) []*row {
	t.Helper()
	rows, next, err := rowsAfter(t.Context(), db, f, 0, 10_000)
	if err != nil || next != 0 {
		t.Fatalf("reading all rows: others follow %d, %v", next, err)
	}
	return rows
}

func TestInsert_ARowSaysWhatTheMessageSaid(t *testing.T) {
	t.Parallel()
	db := openDB(t, dbtest.New(t))
	id := newOrderID()
	d := deliveryOf(t, placed(id))
	d.Timestamp = time.UnixMilli(1_700_000_000_123)
	d.Attempt = 2
	write(t, db, d)
	rows := allRows(t, db, filter{})
	if len(rows) != 1 {
		t.Fatalf("%d rows", len(rows))
	}
	r := rows[0]
	if r.RoutingKey != "shop.order.placed" || r.Exchange != "shop.topic" || r.Status != "success" || r.ErrorMessage != "" ||
		r.MessageID != contract.MessageID(placed(id)).String() || r.OrderID != id || r.Source != "order" || r.Attempt != 2 {
		t.Errorf("row is %+v", r)
	}
	if !r.PublishedAt.Equal(d.Timestamp) {
		t.Errorf("published at %s, want %s to the millisecond", r.PublishedAt, d.Timestamp)
	}
	for _, want := range []string{`"order_id": "` + id + `"`, `"customer_email": "ada@example.org"`, `"quantity": 2`} {
		if !strings.Contains(string(r.Payload), want) {
			t.Errorf("payload %s does not hold %s", r.Payload, want)
		}
	}
}

func TestInsert_EachEventOnce(t *testing.T) {
	t.Parallel()
	db := openDB(t, dbtest.New(t))
	first, second := deliveryOf(t, placed(newOrderID())), deliveryOf(t, placed(newOrderID()))
	again := first
	again.Redelivered = true
	repeated := first // published again, a moment later
	repeated.Timestamp = first.Timestamp.Add(3 * time.Second)
	if rows := write(t, db, first, again, repeated); len(rows) != 1 {
		t.Errorf("one event thrice in a batch made %d rows", len(rows))
	}
	if rows := write(t, db, again, second, repeated); len(rows) != 1 || rows[0].routingKey != second.RoutingKey {
		t.Errorf("an event that is there and a new one made %d rows", len(rows))
	}
	if n := count(t, db, "SELECT count(*) FROM event_log"); n != 2 {
		t.Errorf("%d rows, want 2", n)
	}
}

func TestInsert_ARepetitionThatOvertakesTheFirstIsKnown(t *testing.T) {
	t.Parallel()
	db := openDB(t, dbtest.New(t))
	first := deliveryOf(t, placed(newOrderID()))
	repeated := first
	repeated.Timestamp = first.Timestamp.Add(time.Second)
	if rows := write(t, db, repeated); len(rows) != 1 {
		t.Fatalf("made %d rows, want one", len(rows))
	}
	if rows := write(t, db, first); len(rows) != 0 {
		t.Error("the event is logged twice")
	}
}

func TestInsert_RedeliveredAfterDaysIsKnown(t *testing.T) {
	t.Parallel()
	db := openDB(t, dbtest.New(t))
	old := deliveryOf(t, placed(newOrderID()))
	old.Timestamp = time.Now().Add(-100 * day)
	write(t, db, old)
	if rows := write(t, db, deliveryOf(t, placed(newOrderID())), old); len(rows) != 1 {
		t.Errorf("made %d rows, want only the new one", len(rows))
	}
}

func TestInsert_ARequestKeepsTheIDItWasPublishedWith(t *testing.T) {
	t.Parallel()
	db := openDB(t, dbtest.New(t))
	d := deliveryOf(t, &eventsv1.ListInventory{})
	d.MessageID, d.CorrelationID, d.ReplyTo = uuid.NewString(), uuid.NewString(), "replies"
	if len(write(t, db, d)) != 1 || len(write(t, db, d)) != 0 {
		t.Error("a request that is delivered again is logged again")
	}
	if r := allRows(t, db, filter{})[0]; r.OrderID != "" || r.MessageID != d.MessageID {
		t.Errorf("the request has order id %q and message id %s, published as %s", r.OrderID, r.MessageID, d.MessageID)
	}
}

func TestReadDelivery_WhatCannotBeReadSaysWhy(t *testing.T) {
	t.Parallel()
	good := deliveryOf(t, placed(newOrderID()))
	invalid := placed("no uuid")
	nul := placed(good.CorrelationID)
	nul.CustomerName = "A\x00da"
	for name, c := range map[string]struct {
		change  func(*messaging.Delivery)
		problem string
		payload bool
	}{
		"unknown routing key": {func(d *messaging.Delivery) { d.RoutingKey = "shop.order.melted" }, `no message has the routing key "shop.order.melted"`, false},
		"undecodable body":    {func(d *messaging.Delivery) { d.Body = []byte("\xff\xff\xff") }, "the body is not a shop.events.v1.OrderPlaced", false},
		"JSON":                {func(d *messaging.Delivery) { d.Body = []byte(`{"garbage":true}`) }, "the body is not a shop.events.v1.OrderPlaced", false},
		"empty body":          {func(d *messaging.Delivery) { d.Body = nil }, "the message breaks its contract", true},
		"another type":        {func(d *messaging.Delivery) { d.Type = "shop.events.v1.OrderRejected" }, "the type property says shop.events.v1.OrderRejected", false},
		"invalid":             {func(d *messaging.Delivery) { d.Body = deliveryOf(t, invalid).Body }, "order_id", true},
		"NUL":                 {func(d *messaging.Delivery) { d.Body = deliveryOf(t, nul).Body }, "NUL", false},
		"headers out of joint": {func(d *messaging.Delivery) {
			d.RoutingKey, d.AppID, d.Exchange = "a\x00b\xff", "\x00", strings.Repeat("ß", 2000)
		}, "no message has the routing key", false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			db := openDB(t, dbtest.New(t))
			d := good
			c.change(&d)
			write(t, db, d)
			rows := allRows(t, db, filter{status: "error"})
			if len(rows) != 1 {
				t.Fatalf("%d rows with status error, want 1", len(rows))
			}
			if !strings.Contains(rows[0].ErrorMessage, c.problem) {
				t.Errorf("the reason is %q, want %q in it", rows[0].ErrorMessage, c.problem)
			}
			if (rows[0].Payload != nil) != c.payload {
				t.Errorf("payload is %s", rows[0].Payload)
			}
			if !c.payload {
				if n := count(t, db, "SELECT count(*) FROM event_log WHERE body = $1", d.Body); n != 1 {
					t.Error("the message as it came is lost")
				}
			}
			if rows[0].OrderID != good.CorrelationID {
				t.Errorf("order id %q, want the correlation id %s", rows[0].OrderID, good.CorrelationID)
			}
		})
	}
}

// A name of six characters that look like the escape of a NUL cost the event its content.
func TestToJSON_OnlyANULCharacterIsRefused(t *testing.T) {
	t.Parallel()
	for name, stored := range map[string]bool{
		`Ada`:                       true,
		`\u0000`:                    true,
		`\\u0000`:                   true,
		`\` + "\u0001" + `\u0000 "`: true,
		"\x00":                      false,
		`\` + "\x00":                false,
		`\\` + "\x00":               false,
		`\u0000` + "\x00":           false,
	} {
		text, err := toJSON(&eventsv1.OrderPlaced{CustomerName: name}, nil)
		if (err == nil) != stored || (text != nil) != stored {
			t.Errorf("%q: %s, %v", name, text, err)
		}
	}
}

func TestReadDelivery_WithoutProperties(t *testing.T) {
	t.Parallel()
	now := time.Now()
	m := placed(newOrderID())
	r := readDelivery(messaging.Delivery{Meta: messaging.Meta{RoutingKey: "shop.order.placed", Exchange: "shop.topic"}, Body: deliveryOf(t, m).Body}, now)
	if r.errText != "" || r.messageID != contract.MessageID(m) || r.orderID != m.GetOrderId() || !r.publishedAt.Equal(now.Truncate(time.Millisecond)) {
		t.Errorf("row is %+v", r)
	}
	garbage := messaging.Delivery{Meta: messaging.Meta{RoutingKey: "nobody.knows"}}
	if a, b := readDelivery(garbage, now), readDelivery(garbage, now); a.messageID == b.messageID || a.messageID == uuid.Nil {
		t.Error("two messages without an id share one")
	}
	garbage.MessageID = "of another kind"
	if a, b := readDelivery(garbage, now), readDelivery(garbage, now); a.messageID != b.messageID {
		t.Error("a message that names itself in another way has two ids")
	}
	for _, wrong := range []time.Time{time.UnixMilli(-1 << 60), time.UnixMilli(1 << 60), time.Unix(1, 0), now.Add(48 * time.Hour)} {
		garbage.Timestamp = wrong
		if r := readDelivery(garbage, now); !r.publishedAt.Equal(now.Truncate(time.Millisecond)) {
			t.Errorf("%s was believed", wrong)
		}
	}
}

// A rule of the test stands for whatever the database may refuse.
func TestLogEvents_AMessageThatTheDatabaseRefusesIsLoggedWithoutItsPayload(t *testing.T) {
	t.Parallel()
	db := openDB(t, dbtest.New(t))
	db.MustExec("ALTER TABLE event_log ADD CHECK (payload->>'customer_name' <> 'Refused')")
	s := &Service{db: db, log: slog.New(slog.DiscardHandler), tail: newTail(db, slog.New(slog.DiscardHandler))}
	refused := placed(newOrderID())
	refused.CustomerName = "Refused"
	good, bad := deliveryOf(t, placed(newOrderID())), deliveryOf(t, refused)
	err := s.logEvents(t.Context(), []messaging.Delivery{good, bad})
	if !errors.Is(err, postgres.ErrCheck) {
		t.Fatalf("the batch ended with %v: the consumer would not try its messages one by one", err)
	}
	for _, d := range []messaging.Delivery{good, bad} {
		if err := s.logEvents(t.Context(), []messaging.Delivery{d}); err != nil {
			t.Fatal(err)
		}
	}
	rows := allRows(t, db, filter{})
	if len(rows) != 2 || rows[0].Status != "success" || rows[1].Status != "error" || !strings.Contains(rows[1].ErrorMessage, "the database refused it") {
		t.Errorf("rows: %+v", rows)
	}
	if n := count(t, db, "SELECT count(*) FROM event_log WHERE body = $1", bad.Body); n != 1 {
		t.Error("the message as it came is lost")
	}
}

func TestInsert_TwoWritersAtOnceWriteEachEventOnce(t *testing.T) {
	t.Parallel()
	url := dbtest.New(t)
	var batches [][]messaging.Delivery
	for range 20 {
		var batch []messaging.Delivery
		for range 20 {
			batch = append(batch, deliveryOf(t, placed(newOrderID())))
		}
		batches = append(batches, batch)
	}
	var wg sync.WaitGroup
	for range 2 {
		db := openDB(t, url)
		wg.Go(func() {
			for _, batch := range batches {
				write(t, db, batch...)
			}
		})
	}
	wg.Wait()
	if n := count(t, openDB(t, url), "SELECT count(*) FROM event_log"); n != 400 {
		t.Errorf("%d rows, want 400", n)
	}
}

func TestRead_ByEachFilter(t *testing.T) {
	t.Parallel()
	db := openDB(t, dbtest.New(t))
	a, b := newOrderID(), newOrderID()
	early, late, broken := deliveryOf(t, placed(a)), deliveryOf(t, rejected(a)), deliveryOf(t, placed(b))
	early.Timestamp = time.Now().Add(-2 * time.Hour)
	broken.Body = []byte("broken")
	write(t, db, early, late, broken)
	hourAgo := time.Now().Add(-time.Hour)
	for name, c := range map[string]struct {
		f    filter
		want []string // order and routing key
	}{
		"all":              {filter{}, []string{a + " shop.order.placed", a + " shop.order.rejected", b + " shop.order.placed"}},
		"order":            {filter{orderID: a}, []string{a + " shop.order.placed", a + " shop.order.rejected"}},
		"literal key":      {filter{key: parseKeyPattern("shop.order.placed")}, []string{a + " shop.order.placed", b + " shop.order.placed"}},
		"pattern":          {filter{key: parseKeyPattern("*.*.rejected")}, []string{a + " shop.order.rejected"}},
		"success":          {filter{status: "success"}, []string{a + " shop.order.placed", a + " shop.order.rejected"}},
		"error":            {filter{status: "error"}, []string{b + " shop.order.placed"}},
		"after":            {filter{publishedAfter: hourAgo}, []string{a + " shop.order.rejected", b + " shop.order.placed"}},
		"before":           {filter{publishedBefore: hourAgo}, []string{a + " shop.order.placed"}},
		"order and status": {filter{orderID: a, status: "error"}, nil},
	} {
		t.Run(name, func(t *testing.T) {
			var got []string
			for _, r := range allRows(t, db, c.f) {
				got = append(got, r.OrderID+" "+r.RoutingKey)
			}
			if !slices.Equal(got, c.want) {
				t.Errorf("got %q, want %q", got, c.want)
			}
		})
	}
}

func TestRead_LargeRowsMakeAShorterPage(t *testing.T) {
	t.Parallel()
	db := openDB(t, dbtest.New(t))
	for range 4 {
		big := placed(newOrderID())
		big.CustomerName = strings.Repeat("a", maxReadBytes/2)
		write(t, db, deliveryOf(t, big))
	}
	seen := 0
	for id, more := int64(0), true; more; {
		rows, next, err := rowsAfter(t.Context(), db, filter{}, id, 100)
		if err != nil {
			t.Fatal(err)
		}
		if len(rows) == 0 || len(rows) > 3 {
			t.Fatalf("a page of %d rows of half a page each", len(rows))
		}
		seen += len(rows)
		id, more = next, next > 0
	}
	if seen != 4 {
		t.Errorf("the pages held %d rows, want 4", seen)
	}
}

func TestKeyPattern_MatchesAsABindingDoes(t *testing.T) {
	t.Parallel()
	db := openDB(t, dbtest.New(t))
	for _, c := range []struct {
		pattern string
		yes, no []string
	}{
		{"", []string{"shop.order.placed", ""}, nil},
		{"#", []string{"shop.order.placed", "shop", ""}, nil},
		{"shop.order.placed", []string{"shop.order.placed"}, []string{"shop.order.placed.x", "shop.order", "shopXorder.placed"}},
		{"shop.*.placed", []string{"shop.order.placed"}, []string{"shop.placed", "shop.order.x.placed", "shop.order.placed2"}},
		{"shop.#", []string{"shop", "shop.order", "shop.order.placed"}, []string{"shops", "shopping.cart", "a.shop"}},
		{"#.placed", []string{"placed", "order.placed", "shop.order.placed"}, []string{"shop.order.misplaced", "placed.x"}},
		{"shop.#.quantity", []string{"shop.quantity", "shop.inventory.decrement.quantity"}, []string{"shop.inventory.quantities"}},
		{"shop.#.#.*", []string{"shop.a", "shop.a.b.c"}, []string{"shop"}},
		{"*", []string{"shop"}, []string{"shop.order"}},
		{"*.#", []string{"shop", "shop.order"}, nil},
		{"shop.o*", []string{"shop.o*"}, []string{"shop.order"}}, // a star inside a word is a star
		{`a.(b|c).*`, []string{`a.(b|c).d`}, []string{"a.b.d"}},
		{`%.*`, []string{`%.a`}, []string{"b.a"}},
		{`a\.*`, []string{`a\.b`}, []string{"a.b"}},
		{"ünïcode.*", []string{"ünïcode.ß"}, []string{"unicode.b"}},
	} {
		p := parseKeyPattern(c.pattern)
		for _, key := range slices.Concat(c.yes, c.no) {
			want := slices.Contains(c.yes, key)
			if p.matches(key) != want {
				t.Errorf("%q matches %q: %t", c.pattern, key, !want)
			}
			if p.re == nil {
				continue
			}
			var inSQL bool
			if err := db.Get(&inSQL, "SELECT ('.' || $1) ~ $2", key, p.re.String()); err != nil || inSQL != want {
				t.Errorf("%q matches %q in the database: %t, %v", c.pattern, key, inSQL, err)
			}
		}
	}
	if !parseKeyPattern(strings.Repeat("#.a.", 60) + "#").matches(strings.Repeat("a.", 120) + "a") {
		t.Error("a long pattern does not match")
	}
}

// What is read by id may rely on that: a lower id never appears after a higher one has been seen.
func TestInsert_IDsBecomeVisibleInTheirOrder(t *testing.T) {
	t.Parallel()
	url := dbtest.New(t)
	db := openDB(t, url)
	slow, err := db.BeginTxx(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer slow.Rollback()
	for _, statement := range []string{insertLock, `
		INSERT INTO event_log (routing_key, exchange, payload, status, message_id, published_at)
		VALUES ('slow', '', '{}', 'success', gen_random_uuid(), now())`} {
		if _, err := slow.Exec(statement); err != nil {
			t.Fatal(err)
		}
	}
	other, second := openDB(t, url), make(chan []loggedRow, 1)
	go func() { second <- write(t, other, deliveryOf(t, placed(newOrderID()))) }()
	eventually(t, "the second writer to wait for its turn", func() bool {
		return count(t, db, "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted AND database = (SELECT oid FROM pg_database WHERE datname = current_database())") == 1
	})
	if rows := allRows(t, db, filter{}); len(rows) != 0 {
		t.Fatalf("%d rows are visible", len(rows))
	}
	if err := slow.Commit(); err != nil {
		t.Fatal(err)
	}
	rows := <-second
	all := allRows(t, db, filter{})
	if len(rows) != 1 || len(all) != 2 || all[0].RoutingKey != "slow" || all[1].ID != rows[0].id {
		t.Errorf("the rows are %s", fmt.Sprint(all))
	}
}

// A list by a pattern that few events match, or by a time within a day, read the whole log or the rest of that day.
func TestListEvents_ASearchReadsABoundedPartOfTheLog(t *testing.T) {
	t.Parallel()
	db := openDB(t, dbtest.New(t))
	_, err := db.ExecContext(t.Context(), `
		INSERT INTO event_log (routing_key, exchange, payload, status, message_id, published_at)
		SELECT CASE WHEN n IN (10, $1 + 5) THEN 'shop.inventory.delete' ELSE 'shop.order.placed' END, 'shop.topic', '{}', 'success', gen_random_uuid(), now() - interval '10 min' + n * interval '1 ms'
		FROM generate_series(1, 2 * $1::integer + 10) AS n`, searchLimit)
	if err != nil {
		t.Fatal(err)
	}
	var early time.Time
	if err := db.GetContext(t.Context(), &early, `SELECT published_at FROM event_log WHERE id = 5`); err != nil {
		t.Fatal(err)
	}
	for name, tt := range map[string]struct {
		filter filter
		pages  [][]int64 // the ids of each
	}{
		"pattern": {filter{key: parseKeyPattern("#.delete")}, [][]int64{nil, {searchLimit + 5}, {10}}},
		"time":    {filter{publishedBefore: early}, [][]int64{nil, nil, {4, 3}, {2, 1}}},
		// Of 2*searchLimit+8 that were placed, of which each call reads scatteredLimit.
		"type and time": {filter{key: parseKeyPattern("shop.order.placed"), publishedBefore: early}, slices.Concat(make([][]int64, 2*searchLimit/scatteredLimit), [][]int64{{4, 3}, {2, 1}})},
	} {
		t.Run(name, func(t *testing.T) {
			var next int64
			for i, want := range tt.pages {
				rows, following, err := rowsBefore(t.Context(), db, tt.filter, next, 2)
				if err != nil {
					t.Fatal(err)
				}
				var got []int64
				for _, r := range rows {
					got = append(got, r.ID)
				}
				if !slices.Equal(got, want) || (following == 0) != (i == len(tt.pages)-1) {
					t.Fatalf("page %d has %v, next %d; want %v", i, got, following, want)
				}
				next = following
			}
		})
	}
}

// The plan of a list by type was one for any type: it read the log by id until it had found enough, and all of it for a rare type.
func TestListEvents_ARareTypeIsFoundByItsIndex(t *testing.T) {
	t.Parallel()
	db := openDB(t, dbtest.New(t))
	_, err := db.ExecContext(t.Context(), `
		INSERT INTO event_log (routing_key, exchange, payload, status, message_id, published_at)
		SELECT CASE WHEN n % 5 = 0 THEN 'shop.order.confirmed' ELSE 'shop.order.placed' END, 'shop.topic', '{}', 'success', gen_random_uuid(), now()
		FROM generate_series(1, 20000) AS n`)
	if err == nil {
		_, err = db.ExecContext(t.Context(), `ANALYZE event_log`)
	}
	if err != nil {
		t.Fatal(err)
	}
	f := filter{key: parseKeyPattern("shop.order.confirmed")}
	c := f.conditions()
	c.add("id < %s", int64(20000))
	tx, err := db.BeginTxx(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer tx.Rollback()
	for _, statement := range []string{
		`SET LOCAL plan_cache_mode = force_generic_plan`, // as it is after some calls
		`PREPARE page AS ` + selectRows + c.where() + f.order(true) + ` LIMIT 51`,
	} {
		if _, err := tx.ExecContext(t.Context(), statement); err != nil {
			t.Fatal(err)
		}
	}
	var plan []string
	if err := tx.SelectContext(t.Context(), &plan, `EXPLAIN EXECUTE page ('shop.order.confirmed', 20000)`); err != nil {
		t.Fatal(err)
	}
	if text := strings.Join(plan, "\n"); !strings.Contains(text, "event_log_default_routing_key_id_idx") {
		t.Errorf("it is not found by the index on types:\n%s", text)
	}
	if rows, next, err := rowsBefore(t.Context(), db, f, 0, 2); err != nil || len(rows) != 2 || rows[0].ID != 20000 || next != 19995 {
		t.Errorf("%v, next %d, %v", rows, next, err)
	}
}
