package stock

import (
	"testing"

	"github.com/google/uuid"
)

const benchOrders = 200

// benchBatch is a batch of orders of two lines over the eight products of the catalogue.
func benchBatch() []order {
	orders := make([]order, benchOrders)
	for i := range orders {
		orders[i] = order{id: uuid.Must(uuid.NewV7()), lines: []line{byID(int32(i%8)+1, 1), byID(int32((i+3)%8)+1, 2)}}
	}
	return orders
}

func newStockedStore(b *testing.B) *store {
	b.Helper()
	st := newTestStore(b)
	_, err := st.db.ExecContext(b.Context(), `
		WITH more AS (UPDATE product SET on_hand = on_hand + 100000000 RETURNING id)
		INSERT INTO stock_movement (product_id, quantity, reason) SELECT id, 100000000, 'ADJUSTED' FROM more`)
	if err != nil {
		b.Fatal(err)
	}
	return st
}

func BenchmarkDecide(b *testing.B) {
	products := testCatalogue()
	for id := int32(4); id <= 8; id++ {
		products = append(products, product{ID: id, Name: string(rune('A' + id)), OnHand: 1 << 30})
	}
	orders := benchBatch()
	for b.Loop() {
		decide(products, orders)
	}
	b.ReportMetric(float64(b.N)*benchOrders/b.Elapsed().Seconds(), "orders/s")
}

func BenchmarkCheckStock(b *testing.B) {
	st := newStockedStore(b)
	for b.Loop() {
		st.mustCheck(b, benchBatch()...)
	}
	b.ReportMetric(float64(b.N)*benchOrders/b.Elapsed().Seconds(), "orders/s")
}

func BenchmarkSettle(b *testing.B) {
	st := newStockedStore(b)
	for b.Loop() {
		b.StopTimer()
		orders := benchBatch()
		st.mustCheck(b, orders...)
		b.StartTimer()
		st.settleNow(b, orders...)
	}
	b.ReportMetric(float64(b.N)*benchOrders/b.Elapsed().Seconds(), "orders/s")
}
