package eventlog

import (
	"context"
	"fmt"
	"log/slog"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jmoiron/sqlx"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"shop.example/db/dbtest"
	"shop.example/domain/orderid"
	eventsv1 "shop.example/gen/shop/events/v1"
	moneyv1 "shop.example/gen/shop/money/v1"
	"shop.example/platform/contract"
	"shop.example/platform/messaging"
	"shop.example/platform/postgres"
)

// The mix that one order of two lines leaves in the log.
func eventsOfOrders(b *testing.B, orders int) []messaging.Delivery {
	b.Helper()
	var deliveries []messaging.Delivery
	for range orders {
		id := uuid.Must(uuid.NewV7()).String()
		money := func(units int64) *moneyv1.Money { return &moneyv1.Money{CurrencyCode: "USD", Units: units} }
		lines := []*eventsv1.PricedLine{
			{Line: 1, ProductId: 5, ProductName: "Laptop Stand", Quantity: 3, UnitPrice: money(35)},
			{Line: 2, ProductId: 6, ProductName: "Mouse Pad", Quantity: 4, UnitPrice: money(25)},
		}
		for _, m := range []proto.Message{
			&eventsv1.OrderPlaced{
				OrderId: id, CustomerName: "Adrian", CustomerEmail: "adrian@example.org", PlacedAt: timestamppb.Now(),
				Lines: []*eventsv1.RequestedLine{
					{ProductName: "Laptop Stand", Quantity: 3, ExpectedUnitPrice: money(35)},
					{ProductName: "Mouse Pad", Quantity: 4, ExpectedUnitPrice: money(25)},
				},
			},
			&eventsv1.OrderConfirmed{OrderId: id, Lines: lines, TotalItems: 7, TotalValue: money(205), ConfirmedAt: timestamppb.Now()},
			&eventsv1.DecrementQuantity{OrderId: id, Lines: lines},
			&eventsv1.StockChanged{
				ProductId: 5, Version: time.Now().UnixNano(), ProductName: "Laptop Stand", OnHand: 150, Reserved: 3, ChangedAt: timestamppb.Now(),
			},
		} {
			deliveries = append(deliveries, deliveryOf(b, m))
		}
	}
	return deliveries
}

func deliveryOf(tb testing.TB, m proto.Message) messaging.Delivery {
	tb.Helper()
	e, _ := contract.EventOf(m)
	body, err := proto.Marshal(m)
	if err != nil {
		tb.Fatal(err)
	}
	return messaging.Delivery{
		Meta:      messaging.Meta{Exchange: e.Exchange, RoutingKey: e.RoutingKey, CorrelationID: orderid.Of(m), AppID: "order", Timestamp: time.Now()},
		MessageID: contract.MessageID(m).String(), Type: string(e.Name), Body: body,
	}
}

func BenchmarkReadDelivery(b *testing.B) {
	deliveries := eventsOfOrders(b, 125)
	now := time.Now()
	b.ReportAllocs()
	for b.Loop() {
		for _, d := range deliveries {
			readDelivery(d, now)
		}
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*len(deliveries)), "ns/event")
}

func BenchmarkInsert(b *testing.B) {
	for _, size := range []int{1, 50, 500} {
		b.Run(fmt.Sprintf("%d events", size), func(b *testing.B) {
			db, err := postgres.Open(b.Context(), dbtest.New(b), schema, postgres.Options{})
			if err != nil {
				b.Fatal(err)
			}
			defer db.Close()
			(&partitions{db: db, log: slog.New(slog.DiscardHandler)}).tryMaintain(b.Context())
			for b.Loop() {
				b.StopTimer()
				var records []record
				for _, d := range eventsOfOrders(b, (size+3)/4)[:size] {
					records = append(records, readDelivery(d, time.Now()))
				}
				b.StartTimer()
				if _, err := insertRecords(b.Context(), db, records); err != nil {
					b.Fatal(err)
				}
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*size), "ns/event")
		})
	}
}

// BenchmarkPartitions is what statements cost with the partitions of 400 days: insert 50 events, an order's events, a page of the
// newest, and the same page on a connection that has planned nothing yet.
func BenchmarkPartitions(b *testing.B) {
	for _, of := range []struct {
		name string
		past time.Duration
		span time.Duration
	}{{"none of the past", 0, week}, {"weeks", 400 * day, week}, {"days", 400 * day, day}} {
		db, err := postgres.Open(b.Context(), dbtest.New(b), schema, postgres.Options{MaxConns: 1})
		if err != nil {
			b.Fatal(err)
		}
		defer db.Close()
		now := time.Now().UTC()
		err = postgres.InTx(b.Context(), db, func(tx *sqlx.Tx) error {
			for _, m := range missingPartitions(nil, now.Add(-of.past), now.Add(8*day), of.span) {
				if err := m.create(b.Context(), tx); err != nil {
					return err
				}
			}
			return nil
		})
		if err != nil {
			b.Fatal(err)
		}
		var records []record
		insert := func(b *testing.B) {
			records = records[:0]
			for _, d := range eventsOfOrders(b, 13)[:50] {
				records = append(records, readDelivery(d, time.Now()))
			}
			b.StartTimer()
			if _, err := insertRecords(b.Context(), db, records); err != nil {
				b.Fatal(err)
			}
		}
		page := func(b *testing.B, f filter) {
			if rows, _, err := rowsBefore(b.Context(), db, f, 0, 50); err != nil || len(rows) == 0 {
				b.Fatal(rows, err)
			}
		}
		b.Run("insert/"+of.name, func(b *testing.B) {
			for b.Loop() {
				b.StopTimer()
				insert(b)
			}
		})
		b.Run("order/"+of.name, func(b *testing.B) {
			for b.Loop() {
				page(b, filter{orderID: records[0].orderID})
			}
		})
		b.Run("page/"+of.name, func(b *testing.B) {
			for b.Loop() {
				page(b, filter{})
			}
		})
		b.Run("first page/"+of.name, func(b *testing.B) {
			for b.Loop() {
				db.SetMaxIdleConns(0)
				page(b, filter{})
			}
		})
	}
}

// BenchmarkCompare is what it costs logging and its database to look whether orders were lost, with few and with many of
// them stored.
func BenchmarkCompare(b *testing.B) {
	for _, stored := range []int{5_000, 50_000} {
		b.Run(fmt.Sprintf("%d orders", stored), func(b *testing.B) {
			db, err := postgres.Open(b.Context(), dbtest.New(b), schema, postgres.Options{})
			if err != nil {
				b.Fatal(err)
			}
			defer db.Close()
			(&partitions{db: db, log: slog.New(slog.DiscardHandler)}).tryMaintain(b.Context())
			for range stored / 125 {
				var records []record
				for _, d := range eventsOfOrders(b, 125) {
					records = append(records, readDelivery(d, time.Now()))
				}
				if _, err := insertRecords(b.Context(), db, records); err != nil {
					b.Fatal(err)
				}
			}
			db.MustExec(`UPDATE event_log SET created_at = created_at - interval '1 min'`)
			db.MustExec(`VACUUM ANALYZE event_log`)
			event, _ := contract.EventOf(&eventsv1.OrderPlaced{})
			rt := &route{event: event, queue: "order", unhandled: func(context.Context, [][]byte) ([][]byte, error) { return nil, nil }}
			e := &lossCheck{reconciler: &reconciler{db: db}, route: rt}
			end, err := readLogEnd(b.Context(), db)
			if err != nil {
				b.Fatal(err)
			}
			compared := 0
			for b.Loop() {
				more, err := e.compare(b.Context(), e, end.logPosition)
				if err != nil {
					b.Fatal(err)
				}
				compared += reconcileBatch
				if !more {
					b.StopTimer()
					db.MustExec(`DELETE FROM event_check WHERE routing_key <> ''`)
					b.StartTimer()
				}
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(compared), "ns/order")
		})
	}
}
