package measure

import (
	"bytes"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"runtime/debug"
	"strconv"
	"sync"
	"time"

	"github.com/google/uuid"
	"github.com/lib/pq"
	amqp "github.com/rabbitmq/amqp091-go"
	"golang.org/x/sync/errgroup"

	"shop.example/db"
	"shop.example/platform/postgres"
)

// The baseline is the minimum that an order costs: the same queues with the same policies, the same number of persistent
// messages, each confirmed, the same rows in the same tables, committed as durably, orders over HTTP, one RPC over the
// broker and one statement a batch. It leaves out what makes the shop trustworthy: it checks nothing but that the stock
// does not fall below zero, it fails on a redelivered message, it has no outbox, so events are lost if the process dies
// between commit and publishing, and it ends at the first failure. Messages are JSON, encoded and decoded by hand, in the form
// in which the event log stores them.

// Tuned by hand for throughput on a machine of two processors that also runs servers and clients.
const (
	batchLimit   = 500 // orders of one RPC and one statement, at most
	orderWorkers = 2   // while one waits for the broker, the other stores
	logLimit     = 1000
	// linger is how long a batch that is not full waits for more: each one costs a commit and wakes many processes.
	linger = 20 * time.Millisecond
	// gcPercent trades memory, of which the baseline uses little, for processor time.
	gcPercent = 400

	topic  = "shop.topic"
	checks = "inventory-rpc-queue"
)

// baseline is the pipeline in one process.
type baseline struct {
	db *sql.DB
	// The statements of batches, prepared: each connection plans them once.
	holding, settling, storing, logged *sql.Stmt
	// products is the catalogue by id, read when the first order needs it: nobody changes it afterwards.
	products func() (map[int64]product, error)

	publish *amqp.Connection
	consume *amqp.Connection
	intake  *amqp.Channel
	rpc     *caller
	// stock lets one statement at a time change the stock: they would wait for each other's locks anyway, and without
	// order deadlock.
	stock sync.Mutex
}

type product struct {
	name  string
	price int64 // cents
}

func serveBaseline(ctx context.Context, released <-chan struct{}, ready func(addr string) error) (err error) {
	debug.SetGCPercent(gcPercent)
	f := &baseline{}
	if f.db, err = openBaselineDatabase(ctx, os.Getenv("DATABASE_URL")); err != nil {
		return err
	}
	defer f.db.Close()
	for text, to := range map[string]**sql.Stmt{
		holdBaselineStock: &f.holding, settleBaselineStock: &f.settling, insertBaselineOrders: &f.storing, insertBaselineEvents: &f.logged,
	} {
		if *to, err = f.db.PrepareContext(ctx, text); err != nil {
			return fmt.Errorf("preparing a statement: %w", err)
		}
		defer (*to).Close()
	}
	f.products = sync.OnceValues(func() (map[int64]product, error) { return readProducts(ctx, f.db) })
	for _, conn := range []**amqp.Connection{&f.publish, &f.consume} {
		if *conn, err = amqp.DialConfig(os.Getenv("AMQP_URL"), amqp.Config{Heartbeat: 10 * time.Second, Dial: dialCoalescing}); err != nil {
			return fmt.Errorf("connecting to RabbitMQ: %w", err)
		}
		defer (*conn).Close()
	}
	if err := declareBaseline(f.consume); err != nil {
		return fmt.Errorf("declaring the queues: %w", err)
	}
	if f.intake, err = f.confirming(); err != nil {
		return err
	}
	if f.rpc, err = newCaller(f.publish, f.consume); err != nil {
		return err
	}
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	server := &http.Server{Handler: f, ReadHeaderTimeout: time.Minute}
	parts, ctx := errgroup.WithContext(ctx)
	parts.Go(func() error {
		if err := server.Serve(lis); !errors.Is(err, http.ErrServerClosed) {
			return err
		}
		return nil
	})
	parts.Go(func() error {
		<-ctx.Done()
		return server.Close()
	})
	parts.Go(func() error { return f.serveChecks(ctx) })
	parts.Go(func() error { return f.batches(ctx, "inventory", batchLimit, f.settleBatch) })
	parts.Go(func() error { return f.batches(ctx, "logging", logLimit, f.logBatch) })
	for range orderWorkers {
		parts.Go(func() error {
			select {
			case <-released:
				return f.batches(ctx, "order", batchLimit, f.orderBatch)
			case <-ctx.Done():
				return nil
			}
		})
	}
	if err := ready(lis.Addr().String()); err != nil {
		return err
	}
	return parts.Wait()
}

// openBaselineDatabase makes the shop's own tables.
func openBaselineDatabase(ctx context.Context, url string) (*sql.DB, error) {
	for _, schema := range db.Schemas() {
		if _, err := db.Migrate(ctx, url, schema); err != nil {
			return nil, err
		}
	}
	config, err := postgres.Config(url, "")
	if err != nil {
		return nil, err
	}
	config.ApplicationName, config.BinaryParameters = "baseline", true
	// The one plan of a prepared statement is made when the tables are empty, and has to suit full ones (docs/adr/0010).
	config.Runtime["enable_seqscan"], config.Runtime["jit"] = "off", "off"
	connector, err := pq.NewConnectorConfig(config)
	if err != nil {
		return nil, err
	}
	pool := sql.OpenDB(connector)
	pool.SetMaxIdleConns(8)
	return pool, nil
}

// declareBaseline declares what orders go through, as the shop does.
func declareBaseline(conn *amqp.Connection) error {
	ch, err := conn.Channel()
	if err != nil {
		return err
	}
	for name, kind := range map[string]string{topic: amqp.ExchangeTopic, "shop.dlx": amqp.ExchangeFanout} {
		if err := ch.ExchangeDeclare(name, kind, true, false, false, false, nil); err != nil {
			return err
		}
	}
	for queue, key := range map[string]string{"order": "shop.order.placed", "inventory": "shop.inventory.#", "logging": "shop.#"} {
		if _, err := ch.QueueDeclare(queue, true, false, false, false, amqp.Table{amqp.QueueTypeArg: amqp.QueueTypeQuorum}); err != nil {
			return err
		}
		if err := ch.QueueBind(queue, key, topic, false, nil); err != nil {
			return err
		}
	}
	if _, err := ch.QueueDeclare(checks, true, true, false, false, nil); err != nil {
		return err
	}
	return ch.Close()
}

// confirming opens a channel with publisher confirms.
func (f *baseline) confirming() (*amqp.Channel, error) {
	ch, err := f.publish.Channel()
	if err != nil {
		return nil, err
	}
	return ch, ch.Confirm(false)
}

// ServeHTTP takes an order: it is accepted when the broker has it.
func (f *baseline) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	id := uuid.Must(uuid.NewV7()).String()
	_, lines, _ := bytes.Cut(body, []byte(`"order_items":`))
	placed := make([]byte, 0, len(body)+120)
	placed = append(append(append(placed, `{"order_id":"`...), id...), `","customer_name":"`...)
	placed = append(append(placed, text(body, `"customer_name":"`)...), `","customer_email":"`...)
	placed = append(append(placed, text(body, `"customer_email":"`)...), `","placed_at":"`...)
	placed = append(time.Now().UTC().AppendFormat(placed, time.RFC3339Nano), `","lines":`...)
	placed = append(placed, bytes.TrimSuffix(lines, []byte("}"))...)
	placed = append(placed, '}')
	confirm, err := send(f.intake, "shop.order.placed", id, placed)
	if err == nil {
		err = confirmed(confirm)
	}
	if err != nil {
		http.Error(w, err.Error(), http.StatusServiceUnavailable)
		return
	}
	w.Header().Set("Location", "/v1/orders/"+id)
	w.WriteHeader(http.StatusAccepted)
	_, _ = io.WriteString(w, `{"id":"`+id+`","state":"PENDING"}`) // a client that has gone does not read it
}

// send publishes a persistent message and does not wait for its confirm.
func send(ch *amqp.Channel, key, order string, body []byte) (*amqp.DeferredConfirmation, error) {
	return ch.PublishWithDeferredConfirm(topic, key, false, false, amqp.Publishing{
		DeliveryMode: amqp.Persistent, ContentType: "application/json", MessageId: uuid.NewString(), CorrelationId: order,
		Timestamp: time.Now(), AppId: "baseline", Body: body,
	})
}

func confirmed(confirms ...*amqp.DeferredConfirmation) error {
	for _, c := range confirms {
		if !c.Wait() {
			return errors.New("the broker has not confirmed a message")
		}
	}
	return nil
}

// batches consumes a queue in batches: handle gets each of them and a channel to publish on, after which it is acknowledged.
func (f *baseline) batches(ctx context.Context, queue string, limit int, handle func(context.Context, *amqp.Channel, []amqp.Delivery) error) error {
	out, err := f.confirming()
	if err != nil {
		return err
	}
	ch, err := f.consume.Channel()
	if err != nil {
		return err
	}
	if err := ch.Qos(2*limit, 0, false); err != nil {
		return err
	}
	deliveries, err := ch.Consume(queue, "", false, false, false, false, nil)
	if err != nil {
		return err
	}
	waiting := make(chan amqp.Delivery, 2*limit) // the library's channel shows one at a time
	go func() {
		defer close(waiting)
		for d := range deliveries {
			waiting <- d
		}
	}()
	for {
		batch, err := gather(ctx, waiting, limit)
		if err != nil || len(batch) == 0 {
			return err
		}
		if err := handle(context.WithoutCancel(ctx), out, batch); err != nil {
			return fmt.Errorf("handling %d messages of %s: %w", len(batch), queue, err)
		}
		if err := ch.Ack(batch[len(batch)-1].DeliveryTag, true); err != nil {
			return err
		}
	}
}

// gather waits for one message, and then until there are as many as limit or the linger time is over. It returns none
// when ctx has ended.
func gather(ctx context.Context, waiting <-chan amqp.Delivery, limit int) ([]amqp.Delivery, error) {
	var batch []amqp.Delivery
	var enough <-chan time.Time
	for len(batch) < limit {
		select {
		case d, ok := <-waiting:
			if !ok {
				return nil, errors.New("the broker has ended a consumer")
			}
			if batch = append(batch, d); len(batch) == 1 {
				enough = time.After(linger)
			}
		case <-enough:
			return batch, nil
		case <-ctx.Done():
			return nil, nil
		}
	}
	return batch, nil
}

const insertBaselineOrders = `
WITH stored AS (
    INSERT INTO orders.orders (id, customer_name, customer_email, state, total_items, total_value, currency, created_at, updated_at)
    SELECT id, name, email, 'CONFIRMED', items, value, 'USD', placed, now()
    FROM unnest($1::uuid[], $2::text[], $3::text[], $4::int[], $5::bigint[], $6::timestamptz[]) AS o (id, name, email, items, value, placed)
)
INSERT INTO orders.order_item (order_id, line, product_id, product_name, quantity, unit_price)
SELECT * FROM unnest($7::uuid[], $8::int[], $9::int[], $10::text[], $11::int[], $12::bigint[])`

// orderBatch asks for stock, stores the orders and publishes their events.
func (f *baseline) orderBatch(ctx context.Context, out *amqp.Channel, batch []amqp.Delivery) error {
	bodies := make([][]byte, len(batch))
	for i, d := range batch {
		bodies[i] = d.Body
	}
	reply, err := f.rpc.call(bytes.Join(bodies, newline))
	if err != nil {
		return err
	}
	answers := bytes.Split(reply, newline)
	if len(answers) != len(batch) {
		return fmt.Errorf("%d answers about %d orders", len(answers), len(batch))
	}
	catalogue, err := f.products()
	if err != nil {
		return err
	}
	all := arrays(typeUUID, typeText, typeText, typeInt, typeBigint, typeTime, typeUUID, typeInt, typeInt, typeText, typeInt, typeBigint)
	ids, names, emails, items, values, placed := &all[0], &all[1], &all[2], &all[3], &all[4], &all[5]
	orders, lines, products, productNames, quantities, prices := &all[6], &all[7], &all[8], &all[9], &all[10], &all[11]
	events := make([][2][]byte, len(batch))
	for i, d := range batch {
		id, err := uuid.Parse(d.CorrelationId)
		if err != nil {
			return err
		}
		at, err := time.Parse(time.RFC3339Nano, string(text(d.Body, `"placed_at":"`)))
		if err != nil {
			return err
		}
		ids.bytes(id[:])
		names.bytes(text(d.Body, `"customer_name":"`))
		emails.bytes(text(d.Body, `"customer_email":"`))
		placed.time(at)
		var total, value int64
		n := int64(0)
		decrement := append(append([]byte(`{"order_id":"`), d.CorrelationId...), `","lines":[`...)
		for rest := answers[i]; len(rest) > 0; {
			var l line
			l, rest = nextLine(rest)
			p := catalogue[l.product]
			n++
			orders.bytes(id[:])
			lines.int(n)
			products.int(l.product)
			quantities.int(l.quantity)
			prices.bigint(p.price)
			productNames.bytes([]byte(p.name))
			total += l.quantity
			value += l.quantity * p.price
			if n > 1 {
				decrement = append(decrement, ',')
			}
			decrement = appendLine(decrement, n, l, p)
		}
		decrement = append(decrement, ']')
		items.int(total)
		values.bigint(value)
		confirmed := append([]byte(nil), decrement...)
		confirmed = strconv.AppendInt(append(confirmed, `,"total_items":`...), total, 10)
		confirmed = strconv.AppendInt(append(confirmed, `,"total_value":{"currency_code":"USD","units":"`...), value/100, 10)
		confirmed = append(time.Now().UTC().AppendFormat(append(confirmed, `"},"confirmed_at":"`...), time.RFC3339Nano), `"}`...)
		events[i] = [2][]byte{confirmed, append(decrement, '}')}
	}
	if _, err := f.storing.ExecContext(ctx, ends(all)...); err != nil {
		return fmt.Errorf("storing orders: %w", err)
	}
	confirms := make([]*amqp.DeferredConfirmation, 0, 2*len(batch))
	for i, d := range batch {
		for n, key := range []string{"shop.order.confirmed", "shop.inventory.decrement.quantity"} {
			c, err := send(out, key, d.CorrelationId, events[i][n])
			if err != nil {
				return err
			}
			confirms = append(confirms, c)
		}
	}
	return confirmed(confirms...)
}

func appendLine(to []byte, n int64, l line, p product) []byte {
	to = strconv.AppendInt(append(to, `{"line":`...), n, 10)
	to = strconv.AppendInt(append(to, `,"product_id":`...), l.product, 10)
	to = append(append(append(to, `,"product_name":"`...), p.name...), `","quantity":`...)
	to = strconv.AppendInt(to, l.quantity, 10)
	to = strconv.AppendInt(append(to, `,"unit_price":{"currency_code":"USD","units":"`...), p.price/100, 10)
	return append(to, `"}}`...)
}

const insertBaselineEvents = `
INSERT INTO logging.event_log (routing_key, exchange, payload, status, message_id, order_id, source, published_at)
SELECT key, 'shop.topic', payload, 'success', message, order_id, 'baseline', at
FROM unnest($1::text[], $2::jsonb[], $3::uuid[], $4::uuid[], $5::timestamptz[]) AS e (key, payload, message, order_id, at)`

// logBatch writes events to the event log.
func (f *baseline) logBatch(ctx context.Context, _ *amqp.Channel, batch []amqp.Delivery) error {
	all := arrays(typeText, typeJSON, typeUUID, typeUUID, typeTime)
	for _, d := range batch {
		all[0].bytes([]byte(d.RoutingKey))
		all[1].json(d.Body)
		if err := errors.Join(all[2].uuid([]byte(d.MessageId)), all[3].uuid([]byte(d.CorrelationId))); err != nil {
			return err
		}
		all[4].time(d.Timestamp)
	}
	if _, err := f.logged.ExecContext(ctx, ends(all)...); err != nil {
		return fmt.Errorf("writing events: %w", err)
	}
	return nil
}
