package stock

import (
	"context"
	"errors"
	"fmt"
	"log/slog"

	"github.com/jmoiron/sqlx"
	"google.golang.org/protobuf/types/known/timestamppb"

	eventsv1 "shop.example/gen/shop/events/v1"
	"shop.example/platform/enduser"
	"shop.example/platform/outbox"
	"shop.example/platform/postgres"
	"shop.example/platform/telemetry"
)

// store changes stock and catalogue for calls and messages. Its methods may be called concurrently, in any number of processes.
type store struct {
	db       *sqlx.DB
	log      *slog.Logger
	currency string
	wake     func() // tells the relay that the outbox has something
	repeats  *outbox.Repeats
}

// changeStock runs f in a transaction that also announces what f changed, and logs it once it is committed. If the
// transaction loses against another one, it and f are run once more.
func (st *store) changeStock(ctx context.Context, f func(tx *sqlx.Tx) ([]stockChange, error)) error {
	var changes []stockChange
	attempt := func(tx *sqlx.Tx) (err error) {
		if changes, err = f(tx); err != nil {
			return err
		}
		return outbox.Add(ctx, tx, stockEvents(changes))
	}
	err := postgres.InTx(ctx, st.db, attempt)
	if errors.Is(err, postgres.ErrRetry) {
		err = postgres.InTx(ctx, st.db, attempt)
	}
	if err != nil || len(changes) == 0 {
		return err
	}
	st.wake()
	for _, c := range changes {
		st.log.LogAttrs(ctx, slog.LevelInfo, "stock updated", slog.String("product", c.Name),
			slog.Int("on_hand", int(c.OnHand)), slog.Int("reserved", int(c.Reserved)), slog.Int("quantity", int(c.available())))
	}
	return nil
}

// changeCatalogue changes the catalogue: it runs f as change does, and records that the operator did it, by a method or a
// message. An f that returns nothing has done nothing.
func (st *store) changeCatalogue(ctx context.Context, operator, method string, f func(tx *sqlx.Tx) (catalogueChange, error)) (done catalogueChange, err error) {
	err = st.changeStock(ctx, func(tx *sqlx.Tx) (_ []stockChange, err error) {
		if done, err = f(tx); err != nil {
			return nil, err
		}
		acts := make([]outbox.Entry, len(done.actions))
		for i, d := range done.actions {
			acts[i].Message = enduser.Acted(operator, method, fmt.Sprintf("item %d", d.product), d.detail)
		}
		return done.stock, outbox.Add(ctx, tx, acts)
	})
	if err == nil && len(done.actions) > 0 {
		st.wake()
	}
	return done, err
}

// stockEvents are one StockChanged for each change, and StockDepleted if no piece is left.
func stockEvents(changes []stockChange) []outbox.Entry {
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

// logDecisions says what was decided, a line an order.
func (st *store) logDecisions(ctx context.Context, decided []decision) {
	if !st.log.Enabled(ctx, slog.LevelInfo) {
		return
	}
	for _, d := range decided {
		id := telemetry.OrderID(d.order.id.String())
		if d.reason == "" {
			st.log.LogAttrs(ctx, slog.LevelInfo, "stock available", id,
				slog.Int("lines", len(d.lines)), slog.Int64("pieces", d.pieces()))
			continue
		}
		st.log.LogAttrs(ctx, slog.LevelInfo, "stock refused", id,
			slog.String("reason", string(d.reason)), slog.String("detail", d.detail))
	}
}
