package stock

import (
	"context"
	"errors"
	"fmt"
	"log/slog"

	"github.com/jmoiron/sqlx"
	"google.golang.org/protobuf/types/known/timestamppb"

	"shop.example/domain/enduser"
	"shop.example/domain/orderid"
	eventsv1 "shop.example/gen/shop/events/v1"
	"shop.example/platform/outbox"
	"shop.example/platform/postgres"
)

// warehouse is what calls and messages act on. Its methods may be called concurrently, in any number of processes.
type warehouse struct {
	db       *sqlx.DB
	log      *slog.Logger
	currency string
	wake     func() // tells the relay that the outbox has something
	repeats  *outbox.Repeats
}

// change runs f in a transaction that also announces what f changed, and reports it once it is committed. Where the
// transaction loses against another one, it and f are run once more.
func (w *warehouse) change(ctx context.Context, f func(tx *sqlx.Tx) ([]change, error)) error {
	var changes []change
	attempt := func(tx *sqlx.Tx) (err error) {
		if changes, err = f(tx); err != nil {
			return err
		}
		return outbox.Add(ctx, tx, announcements(changes))
	}
	err := postgres.InTx(ctx, w.db, attempt)
	if errors.Is(err, postgres.ErrRetry) {
		err = postgres.InTx(ctx, w.db, attempt)
	}
	if err != nil || len(changes) == 0 {
		return err
	}
	w.wake()
	for _, c := range changes {
		w.log.LogAttrs(ctx, slog.LevelInfo, "stock updated", slog.String("product", c.Name),
			slog.Int("on_hand", int(c.OnHand)), slog.Int("reserved", int(c.Reserved)), slog.Int("quantity", int(c.available())))
	}
	return nil
}

// maintain changes the catalogue: it runs f as change does, and records that the operator did it, by a method or a
// message. An f that returns nothing has done nothing.
func (w *warehouse) maintain(ctx context.Context, operator, method string, f func(tx *sqlx.Tx) (maintenance, error)) (done maintenance, err error) {
	err = w.change(ctx, func(tx *sqlx.Tx) (_ []change, err error) {
		if done, err = f(tx); err != nil {
			return nil, err
		}
		acts := make([]outbox.Entry, len(done.deeds))
		for i, d := range done.deeds {
			acts[i].Message = enduser.Acted(operator, method, fmt.Sprintf("item %d", d.product), d.detail)
		}
		return done.changes, outbox.Add(ctx, tx, acts)
	})
	if err == nil && len(done.deeds) > 0 {
		w.wake()
	}
	return done, err
}

// announcements are one StockChanged for each change, and StockDepleted where the last piece went.
func announcements(changes []change) []outbox.Entry {
	entries := make([]outbox.Entry, 0, len(changes))
	for _, c := range changes {
		at := timestamppb.New(c.UpdatedAt)
		entries = append(entries, outbox.Entry{Message: &eventsv1.StockChanged{
			ProductId: c.ID, Version: c.Version, ProductName: c.Name, OnHand: c.OnHand, Reserved: c.Reserved, ChangedAt: at,
		}})
		if c.depleted() {
			entries = append(entries, outbox.Entry{Message: &eventsv1.StockDepleted{
				ProductId: c.ID, Version: c.Version, ProductName: c.Name, DepletedAt: at,
			}})
		}
	}
	return entries
}

// report says what was decided, a line an order.
func (w *warehouse) report(ctx context.Context, decided []decision) {
	if !w.log.Enabled(ctx, slog.LevelInfo) {
		return
	}
	for _, d := range decided {
		id := orderid.Attr(d.order.id.String())
		if d.reason == "" {
			w.log.LogAttrs(ctx, slog.LevelInfo, "stock available", id,
				slog.Int("lines", len(d.lines)), slog.Int64("pieces", d.pieces()))
			continue
		}
		w.log.LogAttrs(ctx, slog.LevelInfo, "stock refused", id,
			slog.String("reason", string(d.reason)), slog.String("detail", d.detail))
	}
}
