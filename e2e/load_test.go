package e2e

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/uuid"
	amqp "github.com/rabbitmq/amqp091-go"
	"google.golang.org/protobuf/proto"
)

// load begins to send orders, mostly of one or two products, with lines in any order, some of them of unknown products or
// of ones that run out. It repeats each until it is accepted, and cancels every tenth as soon as possible. The test waits
// for its end.
func (f *deployment) load(t *testing.T, orders int) *sync.WaitGroup {
	var workers sync.WaitGroup
	var next atomic.Int64
	for range 8 {
		workers.Go(func() {
			for i := int(next.Add(1)); i <= orders; i = int(next.Add(1)) {
				location, err := f.order(t, fmt.Sprintf("order-%d", i), linesOf(i))
				if err == nil && i%10 == 0 {
					err = f.cancel(t, location)
				}
				if err != nil {
					t.Error(err)
				}
			}
		})
	}
	t.Cleanup(workers.Wait)
	return &workers
}

// decides waits until so many orders are decided.
func (f *deployment) decides(t *testing.T, orders int) {
	t.Helper()
	f.decidesWithin(t, orders, testTimeout)
}

func (s *shop) decidesWithin(t *testing.T, orders int, limit time.Duration) {
	t.Helper()
	db := s.openDatabase(t)
	eventuallyWithin(t, limit, func() error {
		if n := texts(t, db, `SELECT count(*)::text FROM orders.orders`)[0]; n != strconv.Itoa(orders) {
			return fmt.Errorf("%s orders are decided of %d", n, orders)
		}
		return nil
	})
}

func linesOf(i int) string {
	line := `{"product_id":%d,"quantity":%d}`
	switch {
	case i%20 == 7:
		return fmt.Sprintf(line, 999, 1) // unknown
	case i%3 == 1:
		return fmt.Sprintf(line, 1, 1) // 66 orders for 50 laptops
	case i%2 == 0:
		return fmt.Sprintf(line+","+line, 2, 1, 6, 1)
	default:
		return fmt.Sprintf(line+","+line, 6, 1, 2, 1)
	}
}

// order sends an order under an idempotency key until it is accepted, and returns its path.
func (f *deployment) order(t *testing.T, key, lines string) (location string, err error) {
	body := `{"customer_name":"` + key + `","customer_email":"ada@example.org","order_items":[` + lines + `]}`
	res, err := f.sendUntil(t, http.MethodPost, "/v1/orders", body, key, http.StatusAccepted, http.StatusOK)
	if err != nil {
		return "", err
	}
	return res.Get("Location"), nil
}

// cancel cancels an order as soon as that is possible. One that was rejected stays rejected.
func (f *deployment) cancel(t *testing.T, location string) error {
	_, err := f.sendUntil(t, http.MethodPost, location+":cancel", "", "", http.StatusOK, http.StatusBadRequest)
	return err
}

// sendUntil repeats a call until it is answered with one of the codes.
func (f *deployment) sendUntil(t *testing.T, method, path, body, key string, codes ...int) (http.Header, error) {
	ctx, cancel := context.WithTimeout(t.Context(), testTimeout)
	defer cancel()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		header, err := f.once(ctx, method, path, body, key, codes)
		if err == nil {
			return header, nil
		}
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("%s %s within %s: %w", method, path, testTimeout, err)
		case <-tick.C:
		}
	}
}

func (f *deployment) once(ctx context.Context, method, path, body, key string, codes []int) (http.Header, error) {
	req, err := http.NewRequestWithContext(ctx, method, f.url+path, strings.NewReader(body))
	if err != nil {
		return nil, err
	}
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("Authorization", "Bearer "+operatorToken)
	if key != "" {
		req.Header.Set("Idempotency-Key", key)
	}
	res, err := f.client.Do(req)
	if err != nil {
		return nil, err
	}
	defer res.Body.Close()
	text, err := io.ReadAll(res.Body)
	if err == nil && !slices.Contains(codes, res.StatusCode) {
		err = fmt.Errorf("%s: %s", res.Status, text)
	}
	return res.Header, err
}

func (f *deployment) exec(t *testing.T, statement string) {
	t.Helper()
	if _, err := f.openDatabase(t).ExecContext(t.Context(), statement); err != nil {
		t.Fatal(err)
	}
}

// publish publishes a message several times and returns when the broker has confirmed it each time.
func (f *deployment) publish(t *testing.T, key string, body []byte, times int) {
	t.Helper()
	ch := f.openChannel(t)
	if err := ch.Confirm(false); err != nil {
		t.Fatal(err)
	}
	message := amqp.Publishing{MessageId: uuid.NewString(), DeliveryMode: amqp.Persistent, Timestamp: time.Now(), Body: body}
	confirms := make([]*amqp.DeferredConfirmation, times)
	for i := range confirms {
		var err error
		if confirms[i], err = ch.PublishWithDeferredConfirm("shop.topic", key, true, false, message); err != nil {
			t.Fatal(err)
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), testTimeout)
	defer cancel()
	for _, confirm := range confirms {
		if acked, err := confirm.WaitContext(ctx); err != nil || !acked {
			t.Fatalf("the broker did not take %s: %v", key, err)
		}
	}
}

func encode(t *testing.T, m proto.Message) []byte {
	t.Helper()
	body, err := proto.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	return body
}
