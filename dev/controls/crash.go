package controls

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"strings"
	"time"

	"shop.example/dev/local"
	inventoryv1 "shop.example/gen/shop/inventory/v1"
	orderv1 "shop.example/gen/shop/order/v1"
	"shop.example/platform/apierror"
	"shop.example/platform/postgres"
	"shop.example/platform/service"
	"shop.example/topology"
)

// victim is a replica of the order service whose lines to broker and database can be cut. A process cannot kill a part of
// itself; but then nothing of the replica is heard any more, and the others see it die.
type victim struct {
	*local.Service
	broker, database *line
}

// newVictim starts a replica, which ends with the experiment.
func (e *experiment) newVictim(ctx context.Context) (*victim, error) {
	v := &victim{}
	var err error
	if v.broker, err = newLine(e.AMQPURLs[topology.Order]); err != nil {
		return nil, apierror.Unavailable("EXPERIMENT_UNAVAILABLE", time.Second, "%v", err)
	}
	e.undo = append(e.undo, v.broker.end)
	if v.database, err = newLine(e.DatabaseURLs["orders"]); err != nil {
		return nil, apierror.Unavailable("EXPERIMENT_UNAVAILABLE", time.Second, "%v", err)
	}
	e.undo = append(e.undo, v.database.end)
	if v.Service, err = e.shop.Replica(ctx, topology.Order, func(cfg *local.Config) {
		cfg.AMQPURLs[topology.Order], cfg.DatabaseURLs["orders"] = v.broker.url, v.database.url
	}); err != nil {
		return nil, err
	}
	return v, e.runReplica(ctx, topology.Order, v.Service)
}

// runReplica runs a replica of a service until the experiment ends, and returns when it is ready.
func (e *experiment) runReplica(ctx context.Context, name string, replica *local.Service) error {
	running, stop := context.WithCancel(context.WithoutCancel(ctx))
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_ = replica.Run(running) // what it has met was done to it
	}()
	e.undo = append(e.undo, func() { stop(); <-ended })
	return e.until(ctx, fmt.Sprintf("a replica of the %s service was started, but is not ready yet", name), func() bool {
		return service.Probe(ctx, replica.AdminAddr()) == nil
	})
}

// die cuts the replica off, in the middle of what it does.
func (v *victim) die() {
	v.broker.cut()
	v.database.cut()
}

// withoutOrderService stops the shop's own order service until the experiment ends, or until back is called.
func (e *experiment) withoutOrderService(ctx context.Context) (back func() error, err error) {
	own := e.shop.Services()[topology.Order]
	back = func() error {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), experimentTimeout)
		defer cancel()
		return own.Start(ctx)
	}
	e.undo = append(e.undo, func() { _ = back() }) // if it failed, the list of services says so
	return back, own.Stop()
}

// alone makes a product that nobody else orders, and lets a replica of the order service work alone until back is called.
func (e *experiment) alone(ctx context.Context, name string, stock int) (product *inventoryv1.Item, v *victim, back func() error, err error) {
	if product, err = e.newProduct(ctx, name, stock); err != nil {
		return nil, nil, nil, err
	}
	if back, err = e.withoutOrderService(ctx); err != nil {
		return nil, nil, nil, err
	}
	v, err = e.newVictim(ctx)
	return product, v, back, err
}

// outbox is the outbox of the order service, held: its relay publishes nothing until release is called.
type outbox struct {
	pool *sql.DB
	tx   *sql.Tx
}

// holdOutbox takes the lock that one relay at a time has.
func (e *experiment) holdOutbox(ctx context.Context) (*outbox, error) {
	config, err := postgres.Config(e.DatabaseURLs["orders"], "orders")
	if err != nil {
		return nil, err
	}
	config.Runtime["idle_in_transaction_session_timeout"] = fmt.Sprint(experimentTimeout.Milliseconds())
	connector, err := postgres.NewConnector(config)
	if err != nil {
		return nil, err
	}
	o := &outbox{pool: sql.OpenDB(connector)}
	e.undo = append(e.undo, o.release)
	if o.tx, err = o.pool.BeginTx(context.WithoutCancel(ctx), nil); err == nil {
		_, err = o.tx.ExecContext(ctx, `SELECT pg_advisory_xact_lock(hashtext('outbox'), hashtext('orders'))`)
	}
	if err != nil {
		return nil, apierror.Unavailable("EXPERIMENT_UNAVAILABLE", time.Second, "the outbox cannot be held: %v", err).WithCause(err)
	}
	return o, nil
}

func (o *outbox) release() {
	if o.tx != nil {
		_ = o.tx.Rollback() // nothing was written
	}
	_ = o.pool.Close()
}

type crashAnswer struct {
	Orders      int     `json:"orders"`
	Unpublished int     `json:"unpublished"` // events that were stored, and not published, when the service died
	Seconds     float64 `json:"seconds"`     // from the restart until all was settled
	outcome
}

// crash lets the order service die after it has committed orders, and before it has published their events.
func (e *experiment) crash(ctx context.Context, body []byte) (any, error) {
	const orders = 20
	if err := read(body); err != nil {
		return nil, err
	}
	begin := time.Now()
	product, v, back, err := e.alone(ctx, "Ordered before a crash", 2*orders)
	if err != nil {
		return nil, err
	}
	held, err := e.holdOutbox(ctx)
	if err != nil {
		return nil, err
	}
	e.say("A replica of the order service works alone, and its relay is held back from the outbox.")
	placed := make([]string, orders)
	for i := range placed {
		o, err := e.place(ctx, product.GetId(), nil)
		if err != nil {
			return nil, err
		}
		placed[i] = o.GetId()
	}
	answer := crashAnswer{Orders: orders}
	err = e.until(ctx, "the orders are accepted, but not stored yet; they will be", func() bool {
		err := held.tx.QueryRowContext(ctx, `SELECT count(*) FROM orders.outbox WHERE correlation_id = ANY(string_to_array($1, ','))`,
			strings.Join(placed, ",")).Scan(&answer.Unpublished)
		return err == nil && answer.Unpublished == 2*orders // OrderConfirmed and DecrementQuantity of each
	})
	if err != nil {
		return nil, err
	}
	e.say("%d orders are committed, and their %d events stand in the outbox beside them. Nothing is published.", orders, answer.Unpublished)
	v.die()
	held.release()
	e.say("The replica is cut off from broker and database: dead. What it had not committed is gone, what it had committed stays.")
	restarted := time.Now()
	if err := back(); err != nil {
		return nil, err
	}
	e.say("The order service is started again. Its relay finds the outbox.")
	if err := e.settled(ctx, product.GetId(), product.GetOnHand()-orders); err != nil {
		return nil, err
	}
	answer.Seconds = time.Since(restarted).Seconds()
	e.say("All events are published, and inventory has settled the stock. Now the audit compares everything, each event in the log too.")
	answer.outcome, err = e.outcome(ctx, placed, product, begin)
	return answer, err
}

// outcome is what has become of orders of one piece each.
type outcome struct {
	Lost        int     `json:"lost"`    // not confirmed
	Doubled     int     `json:"doubled"` // pieces taken beyond those confirmed
	StockBefore int32   `json:"stock_before"`
	StockAfter  int32   `json:"stock_after"`
	Audit       verdict `json:"audit"`
}

// outcome looks what has become of orders of a product, which were placed after begin, and audits them.
func (e *experiment) outcome(ctx context.Context, placed []string, product *inventoryv1.Item, begin time.Time) (o outcome, err error) {
	o = outcome{Lost: len(placed), StockBefore: product.GetOnHand()}
	orders := orderv1.NewOrderServiceClient(e.gateway)
	err = e.until(ctx, "the orders are settled, but the order service does not answer yet", func() bool {
		_, err := orders.GetOrder(ctx, &orderv1.GetOrderRequest{OrderId: placed[0]})
		return err == nil
	})
	if err != nil {
		return o, err
	}
	for _, id := range placed {
		reply, err := orders.GetOrder(ctx, &orderv1.GetOrderRequest{OrderId: id})
		switch {
		case err != nil:
			return o, err
		case reply.GetOrder().GetState() == orderv1.Order_CONFIRMED:
			o.Lost--
		}
	}
	item, err := e.item(ctx, product.GetId())
	if err != nil {
		return o, err
	}
	o.StockAfter = item.GetOnHand()
	o.Doubled = int(o.StockBefore-o.StockAfter) - (len(placed) - o.Lost)
	o.Audit, err = e.verdict(ctx, time.Since(begin))
	return o, err
}

type replicasAnswer struct {
	Orders  int     `json:"orders"`
	Before  int     `json:"before"`  // confirmed when the replica died
	Seconds float64 `json:"seconds"` // from the death until the last order was decided
	outcome
}

// replicas lets one of two replicas of the order service die while orders come in: the one that works.
func (e *experiment) replicas(ctx context.Context, body []byte) (any, error) {
	const orders, every = 120, 5 * time.Millisecond
	if err := read(body); err != nil {
		return nil, err
	}
	begin := time.Now()
	product, err := e.newProduct(ctx, "Ordered of two replicas", 2*orders)
	if err != nil {
		return nil, err
	}
	back, err := e.withoutOrderService(ctx)
	if err != nil {
		return nil, err
	}
	var two [2]*victim
	for i := range two {
		if two[i], err = e.newVictim(ctx); err != nil {
			return nil, err
		}
	}
	e.say("Two replicas of the order service share one queue. %d orders come in, one every %d ms.", orders, every.Milliseconds())
	answer := replicasAnswer{Orders: orders}
	at := [2]int64{two[0].broker.answered.Load(), two[1].broker.answered.Load()}
	var died time.Time
	killed := make(chan error, 1)
	go func() {
		killed <- e.until(ctx, "the orders are accepted, but not decided yet; they will be", func() bool {
			item, err := e.item(ctx, product.GetId())
			answer.Before = int(product.GetOnHand() - item.GetOnHand() + item.GetReserved())
			return err == nil && answer.Before >= orders/3
		})
		worker := two[0]
		if two[1].broker.answered.Load()-at[1] > two[0].broker.answered.Load()-at[0] {
			worker = two[1]
		}
		died = time.Now()
		worker.die()
		e.say("Of %d orders stock is held. The replica that works is cut off from broker and database, in the middle of its batch.", answer.Before)
	}()
	ids, _, err := placeAll(ctx, orders, every, func(ctx context.Context) (string, error) {
		o, err := e.place(ctx, product.GetId(), nil)
		return o.GetId(), err
	}, nil)
	if err := errors.Join(err, <-killed); err != nil {
		return nil, err
	}
	err = e.until(ctx, "the orders are accepted, but not all of them are settled yet; they will be", func() bool {
		item, err := e.item(ctx, product.GetId())
		return err == nil && item.GetOnHand() == product.GetOnHand()-orders && item.GetReserved() == 0
	})
	if err != nil {
		return nil, err
	}
	answer.Seconds = time.Since(died).Seconds()
	if err := back(); err != nil { // it answers what becomes of orders
		return nil, err
	}
	e.say("The broker has given what the dead one had in hand to the other. All are settled; now the audit compares everything.")
	answer.outcome, err = e.outcome(ctx, ids, product, begin)
	return answer, err
}
