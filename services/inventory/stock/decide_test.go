package stock

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/google/uuid"
)

func testCatalogue() []product {
	return []product{
		{ID: 1, Name: "Laptop", UnitPrice: 100000, Currency: "USD", OnHand: 5},
		{ID: 2, Name: "Phone", UnitPrice: 50000, Currency: "USD", OnHand: 10, Reserved: 8},
		{ID: 3, Name: "Mouse", UnitPrice: 4550, Currency: "USD", OnHand: 0},
		{ID: 4, Name: "Tea", UnitPrice: 500, Currency: "GBP", OnHand: 7},
	}
}

func orderFor(lines ...line) order { return order{id: uuid.New(), lines: lines} }

func byName(name string, quantity int32) line { return line{productName: name, quantity: quantity} }

func byID(id, quantity int32) line { return line{productID: id, quantity: quantity} }

func expecting(l line, minor int64, currency string) line {
	l.expected = &price{minor, currency}
	return l
}

// The detail of a refusal goes into the database, into an answer and into an event.
func TestDecide_ADetailIsBounded(t *testing.T) {
	t.Parallel()
	unprintable := strings.Repeat("\U000E0001", 200) // ten characters for each of them
	for name, lines := range map[string][]line{
		"unknown":        slices.Repeat([]line{byName(unprintable, 1)}, 100),
		"one of them":    {byName(unprintable, 1)},
		"prices":         slices.Repeat([]line{expecting(byName("Laptop", 1), 1, "USD")}, 100),
		"some, and more": slices.Repeat([]line{byID(9, 1)}, 100),
	} {
		d := decide(testCatalogue(), []order{orderFor(lines...)})[0]
		if d.reason == "" || d.detail == "" || len(d.detail) > maxDetail {
			t.Errorf("%s: %q with %d bytes", name, d.reason, len(d.detail))
		}
		named := strings.Count(d.detail, ": the price is") + strings.Count(d.detail, "there is no product")
		if more := len(lines) - named; more > 0 && !strings.HasSuffix(d.detail, fmt.Sprintf("; and %d more", more)) {
			t.Errorf("%s: %d of %d problems are named: …%s", name, named, len(lines), d.detail[max(0, len(d.detail)-80):])
		}
	}
}

func TestDecide_OneOrder(t *testing.T) {
	t.Parallel()
	tests := map[string]struct {
		lines  []line
		reason reason
		detail string
		holds  map[int32]int32 // by product
	}{
		"a line by name":                    {lines: []line{byName("Laptop", 2)}, holds: map[int32]int32{1: 2}},
		"a line by id":                      {lines: []line{byID(1, 2)}, holds: map[int32]int32{1: 2}},
		"the name counts, not the id":       {lines: []line{{productID: 3, productName: "Laptop", quantity: 1}}, holds: map[int32]int32{1: 1}},
		"an unknown name, though id is":     {lines: []line{{productID: 1, productName: "laptop", quantity: 1}}, reason: unknownProduct, detail: `there is no product "laptop"`},
		"an unknown id":                     {lines: []line{byID(9, 1)}, reason: unknownProduct, detail: "there is no product with id 9"},
		"the last piece":                    {lines: []line{byName("Laptop", 5)}, holds: map[int32]int32{1: 5}},
		"one more than there is":            {lines: []line{byName("Laptop", 6)}, reason: outOfStock, detail: "Laptop: you asked for 6, only 5 available"},
		"reserved pieces are not left":      {lines: []line{byName("Phone", 3)}, reason: outOfStock, detail: "Phone: you asked for 3, only 2 available"},
		"nothing left":                      {lines: []line{byName("Mouse", 1)}, reason: outOfStock, detail: "Mouse: you asked for 1, only 0 available"},
		"two lines of one product, enough":  {lines: []line{byName("Laptop", 2), byName("Laptop", 3)}, holds: map[int32]int32{1: 5}},
		"two lines of one product, too few": {lines: []line{byName("Laptop", 3), byName("Laptop", 3)}, reason: outOfStock, detail: "Laptop: you asked for 6, only 5 available"},
		"one product by name and by id":     {lines: []line{byName("Laptop", 3), byID(1, 3)}, reason: outOfStock, detail: "Laptop: you asked for 6, only 5 available"},
		"sums beyond 32 bits": {
			lines: slices.Repeat([]line{byName("Laptop", 1<<31-1)}, 3), reason: outOfStock, detail: "Laptop: you asked for 6442450941, only 5 available",
		},
		"all lines or none":       {lines: []line{byName("Laptop", 1), byName("Phone", 3)}, reason: outOfStock, detail: "Phone: you asked for 3, only 2 available"},
		"every missing product":   {lines: []line{byName("Phone", 3), byName("Laptop", 6)}, reason: outOfStock, detail: "Laptop: you asked for 6, only 5 available; Phone: you asked for 3, only 2 available"},
		"the expected price":      {lines: []line{expecting(byName("Laptop", 1), 100000, "USD")}, holds: map[int32]int32{1: 1}},
		"a price that was lower":  {lines: []line{expecting(byName("Laptop", 1), 99999, "USD")}, reason: priceChanged, detail: "Laptop: the price is 1000.00 USD, not 999.99 USD"},
		"a price that was higher": {lines: []line{expecting(byID(1, 1), 100001, "USD")}, reason: priceChanged, detail: "Laptop: the price is 1000.00 USD, not 1000.01 USD"},
		"another currency":        {lines: []line{expecting(byName("Laptop", 1), 100000, "EUR")}, reason: priceChanged, detail: "Laptop: the price is 1000.00 USD, not 1000.00 EUR"},
		"a price of nothing":      {lines: []line{expecting(byName("Laptop", 1), 0, "USD")}, reason: priceChanged, detail: "Laptop: the price is 1000.00 USD, not 0.00 USD"},
		"unknown goes before price": {
			lines:  []line{expecting(byName("Laptop", 1), 1, "USD"), byName("Tablet", 1)},
			reason: unknownProduct, detail: `there is no product "Tablet"`,
		},
		"price goes before stock": {
			lines:  []line{byName("Laptop", 6), expecting(byName("Phone", 1), 1, "USD")},
			reason: priceChanged, detail: "Phone: the price is 500.00 USD, not 0.01 USD",
		},
		"worth more than an amount can be": { // it became a dead letter, and held its stock
			lines:  slices.Repeat([]line{byName("Laptop", 1<<31-1)}, 5),
			reason: amountTooLarge, detail: "an order is worth at most 9999999999999.99 USD",
		},
		"in two currencies": {
			lines: []line{byName("Laptop", 1), byName("Tea", 1)}, reason: mixedCurrencies, detail: "Laptop is priced in USD, Tea in GBP",
		},
		"unknown goes before stock": {lines: []line{byName("Laptop", 6), byID(9, 1)}, reason: unknownProduct, detail: "there is no product with id 9"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			o := orderFor(tt.lines...)
			d := decide(testCatalogue(), []order{o})[0]
			if d.order.id != o.id || d.reason != tt.reason || d.detail != tt.detail {
				t.Errorf("got %q %q, want %q %q", d.reason, d.detail, tt.reason, tt.detail)
			}
			if len(d.holds) != len(tt.holds) {
				t.Errorf("holds %v, want %v", d.holds, tt.holds)
			}
			for _, h := range d.holds {
				if h.OrderID != o.id || h.Quantity != tt.holds[h.ProductID] {
					t.Errorf("holds %v, want %v", d.holds, tt.holds)
				}
			}
			if wantLines := len(tt.holds) > 0; wantLines != (len(d.lines) == len(tt.lines)) {
				t.Errorf("%d lines are priced", len(d.lines))
			}
		})
	}
}

func TestDecide_LinesHaveTheCataloguesNamesAndPrices(t *testing.T) {
	t.Parallel()
	d := decide(testCatalogue(), []order{orderFor(byID(2, 1), byName("Laptop", 2), byName("Phone", 1))})[0]
	want := []pricedLine{
		{2, "Phone", 1, price{50000, "USD"}},
		{1, "Laptop", 2, price{100000, "USD"}},
		{2, "Phone", 1, price{50000, "USD"}},
	}
	if !slices.Equal(d.lines, want) {
		t.Errorf("lines %v, want %v", d.lines, want)
	}
	if d.pieces() != 4 {
		t.Errorf("%d pieces, want 4", d.pieces())
	}
}

func TestDecide_StockReservedForOneOrderIsGoneForTheNext(t *testing.T) {
	t.Parallel()
	decisions := decide(testCatalogue(), []order{
		orderFor(byName("Laptop", 3)),
		orderFor(byName("Laptop", 3)),                     // too many now
		orderFor(byName("Laptop", 1), byName("Mouse", 1)), // refused, and takes no Laptop
		orderFor(byName("Laptop", 2)),
		orderFor(byName("Laptop", 1)),
	})
	want := []string{"", "Laptop: you asked for 3, only 2 available", "Mouse: you asked for 1, only 0 available", "", "Laptop: you asked for 1, only 0 available"}
	for i, d := range decisions {
		if d.detail != want[i] {
			t.Errorf("order %d: %q, want %q", i, d.detail, want[i])
		}
	}
}

func TestDecide_DoesNotModifyItsInput(t *testing.T) {
	t.Parallel()
	products := testCatalogue()
	decide(products, []order{orderFor(byName("Laptop", 5))})
	if !slices.Equal(products, testCatalogue()) {
		t.Errorf("the stock became %v", products)
	}
}

func TestDecide_RandomBatchesNeverOversell(t *testing.T) {
	t.Parallel()
	for seed := range uint64(200) {
		r := rand.New(rand.NewPCG(seed, 0))
		var products []product
		for id := range int32(6) {
			onHand := r.Int32N(40)
			products = append(products, product{ID: id + 1, Name: fmt.Sprint("P", id+1), OnHand: onHand, Reserved: r.Int32N(onHand + 1)})
		}
		var orders []order
		for range 50 {
			lines := make([]line, 1+r.IntN(4))
			for i := range lines {
				lines[i] = byID(1+r.Int32N(6), 1+r.Int32N(5))
			}
			orders = append(orders, orderFor(lines...))
		}
		taken := map[int32]int32{}
		for i, d := range decide(products, orders) {
			asked := map[int32]int32{}
			for _, l := range orders[i].lines {
				asked[l.productID] += l.quantity
			}
			fits := true
			for id, n := range asked {
				fits = fits && taken[id]+n <= products[id-1].available()
			}
			if fits != (d.reason == "") {
				t.Fatalf("seed %d, order %d: refused with %q, fits %v", seed, i, d.detail, fits)
			}
			for _, h := range d.holds {
				if h.Quantity != asked[h.ProductID] {
					t.Fatalf("seed %d, order %d holds %d of %d, asked %d", seed, i, h.Quantity, h.ProductID, asked[h.ProductID])
				}
				taken[h.ProductID] += h.Quantity
			}
		}
	}
}

func TestHash_TellsLinesApart(t *testing.T) {
	t.Parallel()
	different := []order{
		orderFor(byName("Laptop", 1)),
		orderFor(byName("Laptop", 2)),
		orderFor(byName("Laptop", 1), byName("Laptop", 1)),
		orderFor(byName("Laptop", 1), byName("Phone", 1)),
		orderFor(byName("Phone", 1), byName("Laptop", 1)),
		orderFor(byID(1, 1)),
		orderFor(line{productID: 1, productName: "Laptop", quantity: 1}),
		orderFor(expecting(byName("Laptop", 1), 0, "USD")),
		orderFor(expecting(byName("Laptop", 1), 1, "USD")),
		orderFor(expecting(byName("Laptop", 1), 1, "EUR")),
	}
	for i, a := range different {
		for j, b := range different {
			if same := bytes.Equal(a.hash(), b.hash()); same != (i == j) {
				t.Errorf("%v and %v: same hash is %v", a.lines, b.lines, same)
			}
		}
	}
	// The order id is not part of it, and the value is stored: it may not change from release to release.
	const want = "913e82596b43ded7e9c9d787b4257cef3860b043cc2e600df3c4f0a7eb8bac6b"
	if got := fmt.Sprintf("%x", orderFor(expecting(byName("Laptop", 3), 100000, "USD"), byID(2, 1)).hash()); got != want {
		t.Errorf("the hash became %s", got)
	}
}

func TestApply_ChangesOnlyWhatIsNamed(t *testing.T) {
	t.Parallel()
	stored := product{ID: 2, Name: "Phone", UnitPrice: 50000, Currency: "USD", OnHand: 10, Reserved: 8, Version: 4}
	name, onHand, tooFew := "Telephone", int32(8), int32(7)
	tests := map[string]struct {
		update itemUpdate
		want   product
		reason string
	}{
		"nothing": {want: stored},
		"name": {
			update: itemUpdate{name: &name},
			want:   product{ID: 2, Name: "Telephone", UnitPrice: 50000, Currency: "USD", OnHand: 10, Reserved: 8, Version: 4},
		},
		"price": {
			update: itemUpdate{price: &price{1, "EUR"}},
			want:   product{ID: 2, Name: "Phone", UnitPrice: 1, Currency: "EUR", OnHand: 10, Reserved: 8, Version: 4},
		},
		"down to what is held": {
			update: itemUpdate{onHand: &onHand, etag: "4"},
			want:   product{ID: 2, Name: "Phone", UnitPrice: 50000, Currency: "USD", OnHand: 8, Reserved: 8, Version: 4},
		},
		"below what is held": {update: itemUpdate{onHand: &tooFew}, reason: "ITEM_HELD"},
		"an old etag":        {update: itemUpdate{name: &name, etag: "3"}, reason: "ETAG_MISMATCH"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			got, err := tt.update.apply(stored)
			if reasonOf(err) != tt.reason {
				t.Fatalf("error %v, want reason %q", err, tt.reason)
			}
			if err == nil && got != tt.want {
				t.Errorf("got %+v, want %+v", got, tt.want)
			}
		})
	}
}
