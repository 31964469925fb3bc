package controls

import (
	"context"
	"sync/atomic"
	"time"

	"shop.example/dev/local"
	"shop.example/platform/apierror"
	"shop.example/topology"
)

// cutFor is how long a server is out of reach, or slow.
const cutFor = 2 * time.Second

// answered is enough for answers of the gateway that were on their way.
const answered = 100 * time.Millisecond

type brokerAnswer struct {
	Orders int `json:"orders"`
	attempts
	Promised int64   `json:"promised"` // of the accepted, while the line was cut
	Slowest  float64 `json:"slowest"`  // seconds until an order was accepted, at most
	Cut      float64 `json:"cut"`      // seconds that the line was cut
	Seconds  float64 `json:"seconds"`  // from then until all was settled
	outcome
}

// broker cuts the line between the broker and those who publish orders and take them, while orders come in.
func (e *experiment) broker(ctx context.Context, body []byte) (any, error) {
	const orders, every = 60, 10 * time.Millisecond
	if err := read(body); err != nil {
		return nil, err
	}
	begin := time.Now()
	product, v, back, err := e.alone(ctx, "Ordered without a broker", 2*orders)
	if err != nil {
		return nil, err
	}
	toBroker, err := newLine(e.AMQPURLs[topology.Gateway])
	if err != nil {
		return nil, apierror.Unavailable("EXPERIMENT_UNAVAILABLE", time.Second, "%v", err)
	}
	e.undo = append(e.undo, toBroker.end)
	gateway, err := e.shop.Replica(ctx, topology.Gateway, func(cfg *local.Config) { cfg.AMQPURLs[topology.Gateway] = toBroker.url })
	if err != nil {
		return nil, err
	}
	if err := e.runReplica(ctx, topology.Gateway, gateway); err != nil {
		return nil, err
	}
	e.say("A second gateway, and a replica of the order service that works alone, reach the broker over lines that can be cut. %d orders come in.", orders)
	answer := brokerAnswer{Orders: orders}
	clients := newClient(gateway, product, orders, &answer.attempts, func(after int64) {
		e.say("The gateway refuses, because it has waited long enough: 503, Retry-After: %d. Each client tries again, under the same key.", after)
	})
	defer clients.http.CloseIdleConnections()
	mended := make(chan time.Time, 1)
	ids, slowest, err := placeAll(ctx, orders, every, clients.place, func() {
		v.broker.cut()
		toBroker.cut()
		cut := time.Now()
		<-time.After(answered)
		before := atomic.LoadInt64(&answer.Accepted)
		e.say("The lines are cut, as if the broker had died: %d orders are accepted so far. What was on its way does not arrive.", before)
		go func() {
			<-time.After(cutFor)
			answer.Promised = atomic.LoadInt64(&answer.Accepted) - before
			e.say("%d orders were accepted meanwhile: a gateway that does not reach the broker promises nothing. Customers wait, for 10 s at most.", answer.Promised)
			v.broker.mend()
			toBroker.mend()
			answer.Cut = time.Since(cut).Seconds()
			e.say("The lines are mended after %.1f s. Gateway and order service connect again by themselves.", answer.Cut)
			mended <- time.Now()
		}()
	})
	since := <-mended
	if err != nil {
		return nil, err
	}
	answer.Slowest = slowest.Seconds()
	e.say("All %d orders are accepted: %d attempts, %d answers 503; who waited longest waited %.1f s.", orders, answer.Attempts, answer.Refused, answer.Slowest)
	if err := e.settled(ctx, product.GetId(), product.GetOnHand()-orders); err != nil {
		return nil, err
	}
	answer.Seconds = time.Since(since).Seconds()
	if err := back(); err != nil { // it answers what becomes of orders
		return nil, err
	}
	answer.outcome, err = e.outcome(ctx, ids, product, begin)
	return answer, err
}

type waitedAnswer struct {
	Orders  int     `json:"orders"`
	Waiting int     `json:"waiting"` // accepted, and inventory not asked yet, when the last was accepted
	Slowest float64 `json:"slowest"` // seconds until an order was accepted, at most
	Seconds float64 `json:"seconds"` // from the repair until all was settled
	outcome
}

// database cuts the line between the order service and its database while orders come in.
func (e *experiment) database(ctx context.Context, body []byte) (any, error) {
	if err := read(body); err != nil {
		return nil, err
	}
	return e.hinder(ctx, hindrance{
		product: "Ordered without a database", orders: 60, every: 10 * time.Millisecond,
		begin: func(v *victim) {
			v.database.cut()
			e.say("The line to the database is cut, in the middle of a batch, as if the database had died. Whether its last transaction is stored, the service cannot know.")
		},
		end: func(v *victim) {
			v.database.mend()
			e.say("The line is mended. The order service connects again, and asks for what it has not acknowledged.")
		},
	})
}

// slow makes the order service slow: its database answers late.
func (e *experiment) slow(ctx context.Context, body []byte) (any, error) {
	const late = 150 * time.Millisecond
	if err := read(body); err != nil {
		return nil, err
	}
	return e.hinder(ctx, hindrance{
		product: "Ordered of a slow service", orders: 120, every: 5 * time.Millisecond,
		begin: func(v *victim) {
			v.database.delay.Store(int64(late))
			e.say("Each answer of its database takes %d ms longer from now on: the order service is a slow consumer.", late.Milliseconds())
		},
		end: func(v *victim) {
			v.database.delay.Store(0)
			e.say("The database is as fast as before.")
		},
	})
}

// hindrance is something that keeps the order service from its work.
type hindrance struct {
	product    string
	orders     int
	every      time.Duration
	begin, end func(*victim)
}

// hinder lets orders come in while a replica of the order service, which works alone, is kept from its work.
func (e *experiment) hinder(ctx context.Context, h hindrance) (any, error) {
	begin := time.Now()
	product, v, back, err := e.alone(ctx, h.product, 2*h.orders)
	if err != nil {
		return nil, err
	}
	e.say("A replica of the order service works alone, and reaches its database over a line of its own. %d orders come in.", h.orders)
	answer := waitedAnswer{Orders: h.orders}
	ids, slowest, err := placeAll(ctx, h.orders, h.every, func(ctx context.Context) (string, error) {
		o, err := e.place(ctx, product.GetId(), nil)
		return o.GetId(), err
	}, func() { h.begin(v) })
	if err != nil {
		return nil, err
	}
	answer.Slowest = slowest.Seconds()
	item, err := e.item(ctx, product.GetId())
	if err != nil {
		return nil, err
	}
	answer.Waiting = h.orders - int(product.GetOnHand()-item.GetQuantity()) // no stock is held for them yet
	e.say("All %d orders are accepted, the slowest after %.0f ms: the gateway does not notice. %d of them wait in the queue.", h.orders, 1000*answer.Slowest, answer.Waiting)
	select {
	case <-time.After(cutFor):
	case <-ctx.Done():
		return nil, e.late("the orders wait for the order service")
	}
	h.end(v)
	mended := time.Now()
	if err := e.settled(ctx, product.GetId(), product.GetOnHand()-int32(h.orders)); err != nil {
		return nil, err
	}
	answer.Seconds = time.Since(mended).Seconds()
	e.say("All are decided and settled. Now the audit compares everything.")
	if err := back(); err != nil { // it answers what becomes of orders
		return nil, err
	}
	answer.outcome, err = e.outcome(ctx, ids, product, begin)
	return answer, err
}
