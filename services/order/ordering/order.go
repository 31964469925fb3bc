package ordering

import (
	"errors"
	"fmt"
	"math"
	"time"

	"github.com/google/uuid"

	"shop.example/domain/money"
	"shop.example/domain/orderstate"
)

// State is the state of an order, as the database and the contracts spell it.
type State string

// The states of an order. Package orderstate says which can follow which.
const (
	Pending   State = "PENDING" // accepted by the gateway, not decided; never stored
	Confirmed State = "CONFIRMED"
	Rejected  State = "REJECTED"
	Cancelled State = "CANCELLED"
)

// ErrInvalidTransition means that an order cannot go from its state to the requested one.
var ErrInvalidTransition = errors.New("invalid transition")

// errTotalOutOfRange means that an order has more pieces, or is worth more, than the contracts can represent.
var errTotalOutOfRange = errors.New("total out of range")

// Order is an order as it is decided and stored. The tags are the column names of its row.
type Order struct {
	ID            uuid.UUID `db:"id"`
	CustomerName  string    `db:"customer_name"`  // personal data: never logged
	CustomerEmail string    `db:"customer_email"` // personal data: never logged
	State         State     `db:"state"`
	Reason        string    `db:"reason"` // of a rejected order, as the contracts name it; "" on others
	Detail        string    `db:"detail"` // the reason in words, for a person
	TotalItems    int32     `db:"total_items"`
	TotalValue    int64     `db:"total_value"` // minor units of Currency
	Currency      string    `db:"currency"`    // "" until the catalogue's prices are known
	CreatedAt     time.Time `db:"created_at"`  // when it was placed
	UpdatedAt     time.Time `db:"updated_at"`
	Fingerprint   []byte    `db:"-"`     // SHA-256 of what was ordered by whom; only written, nil if the message has none
	Owner         string    `db:"owner"` // issuer and subject of whom placed it, "" if that is not known; personal data
	Lines         []Line    `db:"-"`     // in the order of their numbers
}

// Line is a line of an order. While the order has no Currency, the line is what the customer asked for, and ProductID or
// ProductName may be missing.
type Line struct {
	Number      int32  `db:"line"` // from 1
	ProductID   int32  `db:"product_id"`
	ProductName string `db:"product_name"`
	Quantity    int32  `db:"quantity"`
	UnitPrice   int64  `db:"unit_price"` // minor units of the order's Currency
}

// confirm makes a pending order CONFIRMED, with the catalogue's lines and their totals.
func (o *Order) confirm(lines []Line, currency string, at time.Time) error {
	items, value, err := totals(lines)
	if err != nil {
		return fmt.Errorf("order %s: %w", o.ID, err)
	}
	if err := o.transition(Confirmed, at); err != nil {
		return err
	}
	o.Lines, o.TotalItems, o.TotalValue, o.Currency = lines, items, value, currency
	return nil
}

// reject makes a pending order REJECTED. It keeps its lines as they were asked for.
func (o *Order) reject(reason, detail string, at time.Time) error {
	items, _, err := totals(o.Lines)
	if err != nil {
		return fmt.Errorf("order %s: %w", o.ID, err)
	}
	if err := o.transition(Rejected, at); err != nil {
		return err
	}
	o.TotalItems, o.Reason, o.Detail = items, reason, detail
	return nil
}

// transition changes the state of the order, or returns ErrInvalidTransition and leaves it unchanged.
func (o *Order) transition(to State, at time.Time) error {
	if !orderstate.CanFollow(orderstate.Parse(string(o.State)), orderstate.Parse(string(to))) {
		return fmt.Errorf("order %s: %w from %s to %s", o.ID, ErrInvalidTransition, o.State, to)
	}
	o.State, o.UpdatedAt = to, at
	return nil
}

// totals returns the sum of the pieces of all lines, and of their value in minor units. It returns errTotalOutOfRange if
// there are no pieces or a sum is out of range.
func totals(lines []Line) (items int32, value int64, err error) {
	if len(lines) == 0 {
		return 0, 0, fmt.Errorf("%w: no lines", errTotalOutOfRange)
	}
	for _, l := range lines {
		if l.Quantity <= 0 || l.UnitPrice < 0 {
			return 0, 0, fmt.Errorf("%w: line %d has the quantity %d and the price %d", errTotalOutOfRange, l.Number, l.Quantity, l.UnitPrice)
		}
		if items > math.MaxInt32-l.Quantity {
			return 0, 0, fmt.Errorf("%w: more than %d pieces", errTotalOutOfRange, math.MaxInt32)
		}
		if l.UnitPrice > (money.Max-value)/int64(l.Quantity) {
			return 0, 0, fmt.Errorf("%w: worth more than %d minor units", errTotalOutOfRange, int64(money.Max))
		}
		items += l.Quantity
		value += l.UnitPrice * int64(l.Quantity)
	}
	return items, value, nil
}
