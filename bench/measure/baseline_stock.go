package measure

import (
	"bytes"
	"context"
	"crypto/sha256"
	"database/sql"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"time"

	"github.com/google/uuid"
	amqp "github.com/rabbitmq/amqp091-go"
)

const holdBaselineStock = `
WITH taken AS (
    UPDATE inventory.product p SET reserved = p.reserved + d.quantity, version = p.version + 1, updated_at = now()
    FROM unnest($1::int[], $2::int[]) AS d (id, quantity) WHERE p.id = d.id
    RETURNING p.id, p.name, p.version, p.on_hand, p.reserved
), decided AS (
    INSERT INTO inventory.decision (order_id, lines_hash, answer)
    SELECT order_id, hash, answer
    FROM unnest($3::uuid[], $4::bytea[], $5::bytea[]) AS d (order_id, hash, answer)
), held AS (
    INSERT INTO inventory.hold (order_id, product_id, quantity) SELECT * FROM unnest($6::uuid[], $7::int[], $8::int[])
)
SELECT * FROM taken`

const settleBaselineStock = `
WITH moved AS (
    UPDATE inventory.hold SET state = 'SETTLED', updated_at = now() WHERE order_id = ANY ($1::uuid[]) AND state = 'HELD'
    RETURNING order_id, product_id, quantity
), written AS (
    INSERT INTO inventory.stock_movement (product_id, order_id, quantity, reason) SELECT product_id, order_id, -quantity, 'SOLD' FROM moved
)
UPDATE inventory.product p SET on_hand = p.on_hand - d.quantity, reserved = p.reserved - d.quantity, version = p.version + 1, updated_at = now()
FROM (SELECT product_id, sum(quantity)::int AS quantity FROM moved GROUP BY product_id) AS d WHERE p.id = d.product_id
RETURNING p.id, p.name, p.version, p.on_hand, p.reserved`

// serveChecks answers one call after the other: they would wait for each other's locks anyway.
func (f *baseline) serveChecks(ctx context.Context) error {
	out, err := f.confirming()
	if err != nil {
		return err
	}
	replies, err := f.publish.Channel()
	if err != nil {
		return err
	}
	in, err := f.consume.Channel()
	if err != nil {
		return err
	}
	requests, err := in.Consume(checks, "", true, false, false, false, nil)
	if err != nil {
		return err
	}
	for {
		select {
		case d, ok := <-requests:
			if !ok {
				return errors.New("the broker has ended the consumer of the stock checks")
			}
			answer, changes, err := f.hold(context.WithoutCancel(ctx), bytes.Split(d.Body, newline))
			if err != nil {
				return err
			}
			err = replies.PublishWithContext(ctx, "", d.ReplyTo, false, false, amqp.Publishing{CorrelationId: d.CorrelationId, Body: answer})
			if err != nil {
				return err
			}
			if err := publishChanges(out, changes); err != nil {
				return err
			}
		case <-ctx.Done():
			return nil
		}
	}
}

// hold takes the stock of a batch of orders. The database refuses what is not there, and then the baseline ends.
func (f *baseline) hold(ctx context.Context, bodies [][]byte) (reply []byte, changes []change, err error) {
	all := arrays(typeInt, typeInt, typeUUID, typeBytes, typeBytes, typeUUID, typeInt, typeInt)
	changed, by, decided, hashes, stored, orders, products, quantities := &all[0], &all[1], &all[2], &all[3], &all[4], &all[5], &all[6], &all[7]
	var answers bytes.Buffer
	total := map[int64]int64{}
	for _, body := range bodies {
		id := text(body, `"order_id":"`)
		_, lines, _ := bytes.Cut(body, []byte(`"lines":`))
		held, answer := linesOf(lines)
		for _, product := range slices.Sorted(maps.Keys(held)) {
			if err := orders.uuid(id); err != nil {
				return nil, nil, err
			}
			products.int(product)
			quantities.int(held[product])
			total[product] += held[product]
		}
		hash := sha256.Sum256(lines)
		if err := decided.uuid(id); err != nil {
			return nil, nil, err
		}
		hashes.bytes(hash[:])
		stored.bytes(answer)
		writeLine(&answers, answer)
	}
	for product, quantity := range total {
		changed.int(product)
		by.int(quantity)
	}
	changes, err = f.change(ctx, f.holding, ends(all)...)
	if err != nil {
		return nil, nil, fmt.Errorf("holding stock: %w", err)
	}
	return answers.Bytes(), changes, nil
}

// settleBatch takes what is held out of the stock.
func (f *baseline) settleBatch(ctx context.Context, out *amqp.Channel, batch []amqp.Delivery) error {
	ids := arrays(typeUUID)
	for _, d := range batch {
		if err := ids[0].uuid([]byte(d.CorrelationId)); err != nil {
			return err
		}
	}
	changes, err := f.change(ctx, f.settling, ends(ids)...)
	if err != nil {
		return fmt.Errorf("settling holds: %w", err)
	}
	return publishChanges(out, changes)
}

// change is a product after its stock has changed.
type change struct {
	id, version, onHand, reserved int64
	name                          string
}

func (f *baseline) change(ctx context.Context, statement *sql.Stmt, args ...any) (changes []change, err error) {
	f.stock.Lock()
	defer f.stock.Unlock()
	rows, err := statement.QueryContext(ctx, args...)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	for rows.Next() {
		var c change
		if err := rows.Scan(&c.id, &c.name, &c.version, &c.onHand, &c.reserved); err != nil {
			return nil, err
		}
		changes = append(changes, c)
	}
	return changes, rows.Err()
}

// publishChanges publishes the changes and waits for the confirms.
func publishChanges(out *amqp.Channel, changes []change) error {
	confirms := make([]*amqp.DeferredConfirmation, len(changes))
	for i, c := range changes {
		body := fmt.Appendf(nil, `{"product_id":%d,"version":"%d","product_name":"%s","on_hand":%d,"reserved":%d,"changed_at":"%s"}`,
			c.id, c.version, c.name, c.onHand, c.reserved, time.Now().UTC().Format(time.RFC3339Nano))
		var err error
		if confirms[i], err = send(out, "shop.stock.changed", "", body); err != nil {
			return err
		}
	}
	return confirmed(confirms...)
}

func readProducts(ctx context.Context, db *sql.DB) (map[int64]product, error) {
	rows, err := db.QueryContext(ctx, "SELECT id, name, unit_price FROM inventory.product")
	if err != nil {
		return nil, fmt.Errorf("reading the products: %w", err)
	}
	defer rows.Close()
	products := map[int64]product{}
	for rows.Next() {
		var id int64
		var p product
		if err := rows.Scan(&id, &p.name, &p.price); err != nil {
			return nil, fmt.Errorf("reading the products: %w", err)
		}
		products[id] = p
	}
	return products, rows.Err()
}

// line is one line of an order, in an answer: product and quantity, each followed by a comma.
type line struct{ product, quantity int64 }

// linesOf reads the lines of an order that was placed: what to hold of each product, and the lines as an answer.
func linesOf(lines []byte) (held map[int64]int64, answer []byte) {
	held = map[int64]int64{}
	for {
		_, rest, found := bytes.Cut(lines, []byte(`"product_id":`))
		if !found {
			return held, answer
		}
		var l line
		l.product, rest = integer(rest)
		_, rest, _ = bytes.Cut(rest, []byte(`"quantity":`))
		l.quantity, lines = integer(rest)
		held[l.product] += l.quantity
		answer = append(strconv.AppendInt(answer, l.product, 10), ',')
		answer = append(strconv.AppendInt(answer, l.quantity, 10), ',')
	}
}

func nextLine(answer []byte) (l line, rest []byte) {
	l.product, rest = integer(answer)
	l.quantity, rest = integer(rest[1:])
	return l, rest[1:]
}

// integer reads the digits that b begins with.
func integer(b []byte) (n int64, rest []byte) {
	for len(b) > 0 && '0' <= b[0] && b[0] <= '9' {
		n, b = 10*n+int64(b[0]-'0'), b[1:]
	}
	return n, b
}

// text returns what is in body between key and the next quotation mark.
func text(body []byte, key string) []byte {
	_, rest, _ := bytes.Cut(body, []byte(key))
	value, _, _ := bytes.Cut(rest, []byte(`"`))
	return value
}

var newline = []byte{'\n'}

// writeLine adds a line to lines, which are separated, not ended, by line breaks.
func writeLine(to *bytes.Buffer, line []byte) {
	if to.Len() > 0 {
		to.WriteByte('\n')
	}
	to.Write(line)
}

// array is a one-dimensional PostgreSQL array in its binary form (array_recv in the server's source), which the server reads
// faster than text. The zero value has no elements and no type; init sets the type by its number in pg_type.
type array struct {
	b   []byte
	n   uint32
	oid uint32
}

const (
	typeText, typeUUID, typeInt, typeBigint, typeTime, typeJSON, typeBytes = 25, 2950, 23, 20, 1184, 3802, 17

	arrayHeader = 20 // dimensions, whether there are NULLs, type, length, first index
)

// arrays returns an array for each of the types.
func arrays(oids ...uint32) []array {
	all := make([]array, len(oids))
	for i, oid := range oids {
		all[i] = array{b: make([]byte, arrayHeader, 16<<10), oid: oid}
	}
	return all
}

func (a *array) begin(length int) {
	a.n++
	a.b = binary.BigEndian.AppendUint32(a.b, uint32(length)) //nolint:gosec // a message is smaller
}

func (a *array) int(n int64) {
	a.begin(4)
	a.b = binary.BigEndian.AppendUint32(a.b, uint32(n)) //nolint:gosec // an integer of the database
}

func (a *array) bigint(n int64) {
	a.begin(8)
	a.b = binary.BigEndian.AppendUint64(a.b, uint64(n)) //nolint:gosec // in two's complement, as the server has it
}

func (a *array) time(t time.Time) { a.bigint(t.UnixMicro() - serverEpoch) }

// serverEpoch is the zero of the server's times, in microseconds since 1970.
var serverEpoch = time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC).UnixMicro()

func (a *array) bytes(v []byte) {
	a.begin(len(v))
	a.b = append(a.b, v...)
}

func (a *array) json(v []byte) {
	const version = 1
	a.begin(1 + len(v))
	a.b = append(append(a.b, version), v...)
}

// uuid adds an id from its text; the empty text becomes NULL.
func (a *array) uuid(id []byte) error {
	if len(id) == 0 {
		a.n++
		a.b = append(a.b, 0xff, 0xff, 0xff, 0xff)
		binary.BigEndian.PutUint32(a.b[4:], 1)
		return nil
	}
	parsed, err := uuid.ParseBytes(id)
	if err != nil {
		return err
	}
	a.bytes(parsed[:])
	return nil
}

// end returns the array as a parameter.
func (a *array) end() []byte {
	binary.BigEndian.PutUint32(a.b[8:], a.oid)
	if a.n == 0 {
		return a.b[:12] // of no dimension
	}
	binary.BigEndian.PutUint32(a.b, 1)
	binary.BigEndian.PutUint32(a.b[12:], a.n)
	binary.BigEndian.PutUint32(a.b[16:], 1)
	return a.b
}

func ends(all []array) []any {
	args := make([]any, len(all))
	for i := range all {
		args[i] = all[i].end()
	}
	return args
}
