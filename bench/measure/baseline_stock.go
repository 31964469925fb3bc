package measure

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"time"

	"github.com/google/uuid"
	"github.com/jmoiron/sqlx"
	amqp "github.com/rabbitmq/amqp091-go"

	"shop.example/platform/postgres"
)

const holdBaselineStock = postgres.Prepared + `
WITH taken AS (
    UPDATE inventory.product p SET reserved = p.reserved + d.quantity, version = p.version + 1, updated_at = now()
    FROM unnest($1::int[], $2::int[]) AS d (id, quantity) WHERE p.id = d.id
    RETURNING p.id, p.name, p.version, p.on_hand, p.reserved
), decided AS (
    INSERT INTO inventory.decision (order_id, lines_hash, answer)
    SELECT * FROM unnest($3::uuid[], $4::bytea[], $5::bytea[])
), held AS (
    INSERT INTO inventory.hold (order_id, product_id, quantity) SELECT * FROM unnest($6::uuid[], $7::int[], $8::int[])
)
SELECT * FROM taken`

const settleBaselineStock = postgres.Prepared + `
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
	var (
		decided, orders                   []uuid.UUID
		hashes, answers                   [][]byte
		products, quantities, changed, by []int32
	)
	total := map[int64]int64{}
	for _, body := range bodies {
		id, err := uuid.ParseBytes(text(body, `"order_id":"`))
		if err != nil {
			return nil, nil, err
		}
		_, lines, _ := bytes.Cut(body, []byte(`"lines":`))
		held, answer := linesOf(lines)
		for _, product := range slices.Sorted(maps.Keys(held)) {
			orders = append(orders, id)
			products, quantities = append(products, int32(product)), append(quantities, int32(held[product]))
			total[product] += held[product]
		}
		hash := sha256.Sum256(lines)
		decided, hashes, answers = append(decided, id), append(hashes, hash[:]), append(answers, answer)
	}
	for product, quantity := range total {
		changed, by = append(changed, int32(product)), append(by, int32(quantity))
	}
	changes, err = f.change(ctx, holdBaselineStock, postgres.ArrayOf(changed), postgres.ArrayOf(by), postgres.ArrayOf(decided),
		postgres.ArrayOf(hashes), postgres.ArrayOf(answers), postgres.ArrayOf(orders), postgres.ArrayOf(products), postgres.ArrayOf(quantities))
	if err != nil {
		return nil, nil, fmt.Errorf("holding stock: %w", err)
	}
	return bytes.Join(answers, newline), changes, nil
}

// settleBatch takes what is held out of the stock.
func (f *baseline) settleBatch(ctx context.Context, out *amqp.Channel, batch []amqp.Delivery) error {
	ids := make([]uuid.UUID, len(batch))
	for i, d := range batch {
		var err error
		if ids[i], err = uuid.Parse(d.CorrelationId); err != nil {
			return err
		}
	}
	changes, err := f.change(ctx, settleBaselineStock, postgres.ArrayOf(ids))
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

func (f *baseline) change(ctx context.Context, statement string, args ...any) (changes []change, err error) {
	f.stock.Lock()
	defer f.stock.Unlock()
	rows, err := f.db.QueryContext(ctx, statement, args...)
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

func readProducts(ctx context.Context, db *sqlx.DB) (map[int64]product, error) {
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
