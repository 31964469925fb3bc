package stock

import (
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"maps"
	"slices"

	"github.com/google/uuid"

	"shop.example/domain/money"
)

// reason is why an order is refused, as it is stored, and spelled in OrderRejected.Reason.
type reason string

const (
	outOfStock     reason = "OUT_OF_STOCK"
	unknownProduct reason = "UNKNOWN_PRODUCT"
	priceChanged   reason = "PRICE_CHANGED"
	amountTooLarge reason = "AMOUNT_TOO_LARGE"
	// mixedCurrencies cannot happen while all replicas have the same SHOP_CURRENCY.
	mixedCurrencies reason = "MIXED_CURRENCIES"
)

// order is what a customer asks for.
type order struct {
	id    uuid.UUID
	lines []line
}

// line is a line of an order as the customer asked for it. The product is found by name; by id only if no name is given.
type line struct {
	productID   int32
	productName string
	quantity    int32
	expected    *price // what the customer saw; nil if any price will do
}

type price struct {
	minor    int64 // units of the currency's last decimal
	currency string
}

func (p price) String() string { return money.Format(p.minor, p.currency) }

// hash identifies the lines as they were asked for, to notice when the same order id comes with other lines. It is stored:
// if the computation changed, every order that is asked about again would be refused.
func (o order) hash() []byte {
	var buf []byte
	for _, l := range o.lines {
		buf = binary.AppendVarint(buf, int64(l.productID))
		buf = binary.AppendUvarint(buf, uint64(len(l.productName)))
		buf = append(buf, l.productName...)
		buf = binary.AppendVarint(buf, int64(l.quantity))
		if l.expected == nil {
			buf = append(buf, 0)
			continue
		}
		buf = append(buf, 1)
		buf = binary.AppendVarint(buf, l.expected.minor)
		buf = binary.AppendUvarint(buf, uint64(len(l.expected.currency)))
		buf = append(buf, l.expected.currency...)
	}
	sum := sha256.Sum256(buf)
	return sum[:]
}

// decision is the answer about one order: lines and holds if the stock is held, otherwise reason and detail.
type decision struct {
	order  order
	lines  []pricedLine
	holds  []hold
	reason reason
	detail string // what is wrong with which product, for a person
}

// pricedLine is a line with the catalogue's name and price.
type pricedLine struct {
	productID   int32
	productName string
	quantity    int32
	unitPrice   price
}

func (d decision) pieces() (n int64) {
	for _, l := range d.lines {
		n += int64(l.quantity)
	}
	return n
}

// decide decides the orders one after the other. What one order takes from products is no longer there for the next, so a
// batch never sells a piece twice. products must contain every product of the catalogue that the orders name.
func decide(products []product, orders []order) []decision {
	s := newAllocation(products)
	decisions := make([]decision, len(orders))
	for i, o := range orders {
		decisions[i] = s.decide(o)
	}
	return decisions
}

// allocation is the stock that is left while a batch is being decided.
type allocation struct {
	byID   map[int32]*product
	byName map[string]*product
}

func newAllocation(products []product) allocation {
	s := allocation{make(map[int32]*product, len(products)), make(map[string]*product, len(products))}
	for _, p := range products {
		s.byID[p.ID], s.byName[p.Name] = &p, &p
	}
	return s
}

func (s allocation) find(l line) *product {
	if l.productName != "" {
		return s.byName[l.productName]
	}
	return s.byID[l.productID]
}

// decide decides one order and takes its stock from the allocation. Of several problems it reports an unknown product
// first, then a changed price, a total that is too large, and missing stock.
func (s allocation) decide(o order) decision {
	priced := make([]pricedLine, len(o.lines))
	asked := make(map[int32]int64, len(o.lines)) // by product: lines of one product are one demand
	var unknown, repriced []string
	for i, l := range o.lines {
		p := s.find(l)
		if p == nil {
			unknown = append(unknown, l.describeUnknown())
			continue
		}
		current := p.price()
		if l.expected != nil && *l.expected != current {
			repriced = append(repriced, fmt.Sprintf("%s: the price is %s, not %s", p.Name, current, *l.expected))
		}
		priced[i] = pricedLine{p.ID, p.Name, l.quantity, current}
		asked[p.ID] += int64(l.quantity)
	}
	switch {
	case len(unknown) > 0:
		return reject(o, unknownProduct, unknown)
	case len(repriced) > 0:
		return reject(o, priceChanged, repriced)
	}
	if why, detail := checkTotal(priced); why != "" {
		return reject(o, why, []string{detail})
	}
	ids := slices.Sorted(maps.Keys(asked))
	var short []string
	for _, id := range ids {
		if p := s.byID[id]; asked[id] > int64(p.available()) {
			short = append(short, fmt.Sprintf("%s: you asked for %d, only %d available", p.Name, asked[id], p.available()))
		}
	}
	if len(short) > 0 {
		return reject(o, outOfStock, short)
	}
	d := decision{order: o, lines: priced}
	for _, id := range ids {
		quantity := int32(asked[id]) // fits: no more than what is available
		s.byID[id].Reserved += quantity
		d.holds = append(d.holds, hold{OrderID: o.id, ProductID: id, Quantity: quantity})
	}
	return d
}

// checkTotal returns why the value of lines cannot be represented, "" if it can.
func checkTotal(lines []pricedLine) (why reason, detail string) {
	var sum int64
	currency := lines[0].unitPrice.currency
	for _, l := range lines {
		if l.unitPrice.currency != currency {
			return mixedCurrencies, fmt.Sprintf("%s is priced in %s, %s in %s", lines[0].productName, currency, l.productName, l.unitPrice.currency)
		}
		if l.unitPrice.minor > (money.Max-sum)/int64(l.quantity) {
			return amountTooLarge, "an order is worth at most " + money.Format(money.Max, currency)
		}
		sum += l.unitPrice.minor * int64(l.quantity)
	}
	return "", ""
}

// maxDetail bounds the detail of a refusal, in bytes, which is stored, sent and published with the order. A single problem,
// with a name of 200 characters that all have to be escaped, has up to 2,050.
const maxDetail = 2100

// reject returns a refusal that names the problems as far as they fit into maxDetail, and counts the others.
func reject(o order, why reason, problems []string) decision {
	detail := problems[0]
	for i, p := range problems[1:] {
		more := fmt.Sprintf("; and %d more", len(problems)-1-i)
		if len(detail)+len("; ")+len(p)+len(more) > maxDetail {
			detail += more
			break
		}
		detail += "; " + p
	}
	return decision{order: o, reason: why, detail: detail}
}

func (l line) describeUnknown() string {
	if l.productName != "" {
		return fmt.Sprintf("there is no product %q", l.productName)
	}
	return fmt.Sprintf("there is no product with id %d", l.productID)
}
