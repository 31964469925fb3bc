package e2e

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	standardwebhooks "github.com/standard-webhooks/standard-webhooks/libraries/go"
)

// hookReceiver is a receiver of webhooks that keeps what it gets, verified.
type hookReceiver struct {
	*httptest.Server
	mu     sync.Mutex
	answer int      // the status; 200 if it is 0
	got    []string // the ids of events by when they came, each as often as it came
	wrong  []string // what was not signed as it must be
	verify *standardwebhooks.Webhook
}

func newHookReceiver(t *testing.T) *hookReceiver {
	t.Helper()
	v := &hookReceiver{}
	v.Server = httptest.NewServer(v)
	t.Cleanup(v.Close)
	return v
}

func (v *hookReceiver) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.verify != nil {
		err = errors.Join(err, v.verify.Verify(body, r.Header))
	}
	if err != nil {
		v.wrong = append(v.wrong, fmt.Sprintf("%v: %s", err, body))
	}
	if v.answer != 0 {
		w.WriteHeader(v.answer)
	}
	v.got = append(v.got, r.Header.Get("webhook-id"))
}

func (v *hookReceiver) ids() []string {
	v.mu.Lock()
	defer v.mu.Unlock()
	return slices.Clone(v.got)
}

// createWebhook makes a webhook for all events of orders.
func (s *shop) createWebhook(t *testing.T, url string) (id, secret string) {
	t.Helper()
	a := s.call(t, http.MethodPost, "/v1/webhooks", `{"url": "`+url+`", "event_types": ["shop.order.#"]}`, "Authorization", "Bearer "+operatorToken)
	if a.code != http.StatusOK {
		t.Fatalf("creating a webhook: %d %s", a.code, a.body)
	}
	var created struct {
		Webhook struct {
			ID string `json:"id"`
		} `json:"webhook"`
		Secret string `json:"secret"`
	}
	a.json(t, &created)
	return created.Webhook.ID, created.Secret
}

// receive makes a webhook for a receiver.
func (s *shop) receive(t *testing.T) (v *hookReceiver, id string) {
	t.Helper()
	v = newHookReceiver(t)
	id, secret := s.createWebhook(t, v.URL)
	library, err := standardwebhooks.NewWebhook(secret)
	if err != nil {
		t.Fatal(err)
	}
	v.mu.Lock()
	v.verify = library
	v.mu.Unlock()
	return v, id
}

type hookDelivery struct {
	ID    string `json:"id"`
	State string `json:"state"`
}

func (s *shop) hookDeliveries(t *testing.T, id string) (list []hookDelivery) {
	t.Helper()
	a := s.get(t, "/v1/webhooks/"+id+"/deliveries?page_size=1000")
	if a.code != http.StatusOK {
		t.Fatalf("listing deliveries: %d %s", a.code, a.body)
	}
	var page struct {
		Deliveries []hookDelivery `json:"deliveries"`
	}
	a.json(t, &page)
	return page.Deliveries
}

// deliveredWebhook makes a webhook and returns it with one of its deliveries, which has been delivered.
func (s *shop) deliveredWebhook(t *testing.T) (hook, delivery string) {
	t.Helper()
	_, hook = s.receive(t)
	s.decided(t, s.place(t, 5, 1))
	eventually(t, func() error {
		list := s.hookDeliveries(t, hook)
		if len(list) == 0 || list[0].State != "DELIVERED" {
			return fmt.Errorf("deliveries: %+v", list)
		}
		delivery = list[0].ID
		return nil
	})
	return hook, delivery
}

func TestWebhooks_AnOrderIsDeliveredAndAReceiverThatIsGoneIsDisabled(t *testing.T) {
	t.Parallel()
	s := start(t)
	v, id := s.receive(t)
	order := s.decided(t, s.place(t, 5, 3))
	eventually(t, func() error {
		if n := len(v.ids()); n < 2 {
			return fmt.Errorf("%d events came", n)
		}
		return nil
	})
	var logged []string
	for _, e := range s.events(t, "&order_id="+order.ID+"&routing_key=shop.order.%23") {
		logged = append(logged, e.MessageID)
	}
	if got := v.ids(); !slices.Equal(got, logged) || len(v.wrong) > 0 {
		t.Errorf("got %q, want %q; not signed: %q", got, logged, v.wrong)
	}
	v.mu.Lock()
	v.answer = http.StatusGone
	v.mu.Unlock()
	s.decided(t, s.place(t, 5, 1))
	eventually(t, func() error {
		var page struct {
			Events []struct {
				Payload struct {
					WebhookID string `json:"webhook_id"`
					Cause     string `json:"cause"`
				} `json:"payload"`
			} `json:"events"`
		}
		s.get(t, "/v1/events?routing_key=shop.webhook.disabled").json(t, &page)
		if len(page.Events) != 1 {
			return fmt.Errorf("%d webhooks were disabled", len(page.Events))
		}
		if e := page.Events[0].Payload; e.WebhookID != id || e.Cause != "GONE" {
			t.Errorf("the event: %+v", e)
		}
		return nil
	})
	a := s.get(t, "/v1/operator-actions?target=webhook%20"+id)
	if !strings.Contains(string(a.body), "shop.webhooks.v1.WebhookService/CreateWebhook") {
		t.Errorf("the creation is not recorded: %s", a.body)
	}
}

// The last hop of an order's journey on the page is what a receiver got.
func TestPage_TheLastHopIsTheDeliveryToAReceiver(t *testing.T) {
	t.Parallel()
	s := start(t)
	v, _ := s.receive(t)
	b := browse(t, s.operatorLink())
	b.order("5", "3")
	b.text("#slip-state", "CONFIRMED")
	b.until(`['webhook: OrderPlaced', 'webhook: OrderConfirmed'].every((hop) => document.querySelector('#journey').textContent.includes(hop))`)
	last := eval[string](b, `document.querySelector('#journey li:last-child .hop').title`)
	if want := "sent the event to a receiver, which answered 200. Attempts: 1."; !strings.Contains(last, want) {
		t.Errorf("the last hop is %q, want one with %q", last, want)
	}
	if n := len(v.ids()); n != 2 || len(v.wrong) > 0 {
		t.Errorf("the receiver got %d events; not signed: %q", n, v.wrong)
	}
}

// registerReceiver makes a webhook before orders are placed.
func registerReceiver(t *testing.T, f *deployment) {
	f.receiver, _ = f.receive(t)
}

func everythingWasReceived(t *testing.T, f *deployment) {
	f.receivesEverything(t, crashOrders, testTimeout)
}

// receivesEverything waits until the receiver has got each event of so many orders, and fails unless those of one order came for
// the first time in their order.
func (f *deployment) receivesEverything(t *testing.T, orders int, testTimeout time.Duration) {
	t.Helper()
	db := f.openDatabase(t)
	eventuallyWithin(t, testTimeout, func() error {
		place := map[string]int{} // of each event, by when it came first
		got := f.receiver.ids()
		for i, id := range slices.Backward(got) {
			place[id] = i
		}
		rows, err := db.Query(`SELECT order_id::text, message_id::text FROM logging.event_log WHERE routing_key LIKE 'shop.order.%' ORDER BY id`)
		if err != nil {
			t.Fatal(err)
		}
		defer rows.Close()
		last := map[string]int{} // the place of the newest event of each order
		missing, n := 0, 0
		for rows.Next() {
			var order, id string
			if err := rows.Scan(&order, &id); err != nil {
				t.Fatal(err)
			}
			n++
			at, came := place[id]
			if !came {
				missing++
				continue
			}
			if before, any := last[order]; any && before > at {
				t.Errorf("event %s of order %s came before the one before it", id, order)
			}
			last[order] = at
		}
		if err := rows.Err(); err != nil {
			t.Fatal(err)
		}
		if missing > 0 || n < 2*orders {
			return fmt.Errorf("%d of %d events have not come", missing, n)
		}
		return nil
	})
	f.receiver.mu.Lock()
	defer f.receiver.mu.Unlock()
	if len(f.receiver.wrong) > 0 {
		t.Errorf("not signed as it must be: %q", f.receiver.wrong)
	}
}

func TestWebhooksCommand_ListenShowsAndForwardsWhatIsVerified(t *testing.T) {
	t.Parallel()
	s := start(t)
	forwarded := newHookReceiver(t)
	ctx, stop := context.WithCancel(t.Context())
	out, notes, ended := &lockedBuffer{}, &lockedBuffer{}, make(chan error, 1)
	listen := s.command(out, notes, "webhooks", "listen", "--forward", forwarded.URL)
	go func() { ended <- listen.ExecuteContext(ctx) }()
	eventually(t, func() error {
		if !strings.Contains(notes.String(), "Listening on 127.0.0.1:") {
			return fmt.Errorf("it says %q", notes)
		}
		return nil
	})
	order := s.decided(t, s.place(t, 5, 1))
	eventually(t, func() error {
		for _, want := range []string{"shop.order.placed  ", "shop.order.confirmed  ", order.ID, "  forwarded: 200"} {
			if !strings.Contains(out.String(), want) {
				return fmt.Errorf("%q is not in %q", want, out)
			}
		}
		return nil
	})
	if n := len(forwarded.ids()); n != 2 {
		t.Errorf("%d events were forwarded, want 2", n)
	}
	id := strings.Fields(strings.Split(s.must(t, "webhooks", "list"), "\n")[1])[0]
	var listed string
	eventually(t, func() error {
		if listed = s.must(t, "webhooks", "deliveries", id); strings.Count(listed, "DELIVERED") != 2 {
			return errors.New(listed)
		}
		return nil
	})
	if got := s.must(t, "webhooks", "test", id); !strings.Contains(got, "Delivered: the answer is 200") {
		t.Errorf("test: %q", got)
	}
	s.must(t, "webhooks", "pause", id)
	delivery := strings.Fields(strings.Split(listed, "\n")[1])[0]
	if got := s.shopCommand(t, "webhooks", "redeliver", id, delivery); got.status != 1 || !strings.Contains(got.errs, "enable it first") {
		t.Errorf("redelivery to a paused webhook: %+v", got)
	}
	s.must(t, "webhooks", "enable", id)
	s.must(t, "webhooks", "redeliver", id, delivery)
	eventually(t, func() error {
		if n := len(forwarded.ids()); n != 4 { // with the test
			return fmt.Errorf("%d events were forwarded", n)
		}
		return nil
	})
	stop()
	if err := <-ended; err != nil {
		t.Error(err)
	}
	if got := s.must(t, "webhooks", "list"); got != "" {
		t.Errorf("left behind: %s", got)
	}
	created := strings.Fields(s.must(t, "webhooks", "create", "https://receiver.example/", "--events", "shop.order.confirmed,shop.stock.#"))
	if len(created) != 2 || !strings.HasPrefix(created[1], "whsec_") || !strings.HasPrefix(s.must(t, "webhooks", "rotate", created[0]), "whsec_") {
		t.Errorf("created: %q", created)
	}
	s.must(t, "webhooks", "delete", created[0])
	if got := s.shopCommand(t, "webhooks", "create", "nowhere"); got.status == 0 || !strings.Contains(got.errs, "URL: must be a URL") {
		t.Errorf("a wrong URL: %+v", got)
	}
}

// A write to a closed pipe ended the process before it had deleted its webhook, and the shop went on sending to nobody.
func TestWebhooksCommand_ListenIntoHeadLeavesNoWebhookBehind(t *testing.T) {
	t.Parallel()
	s := start(t)
	listen := exec.CommandContext(t.Context(), filepath.Join(mustBinaries(t), "shop"), "webhooks", "listen", "--server", s.url, "--token", operatorToken)
	listen.SysProcAttr = endsWithParent()
	notes := &lockedBuffer{}
	listen.Stderr = notes
	out, err := listen.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := listen.Start(); err != nil {
		t.Fatal(err)
	}
	eventually(t, func() error {
		if !strings.Contains(notes.String(), "Listening on ") {
			return fmt.Errorf("it says %q", notes)
		}
		return nil
	})
	s.place(t, 5, 1)
	if line, err := bufio.NewReader(out).ReadString('\n'); err != nil || !strings.Contains(line, "shop.order.") {
		t.Fatalf("it shows %q, %v; %s", line, err, notes)
	}
	_ = out.Close()
	ended := make(chan struct{})
	go func() { _ = listen.Wait(); close(ended) }()
	eventually(t, func() error { // until it writes again
		s.place(t, 5, 1)
		select {
		case <-ended:
			return nil
		case <-time.After(100 * time.Millisecond):
			return errors.New("it goes on")
		}
	})
	if code := listen.ProcessState.ExitCode(); code != 141 {
		t.Errorf("exit code %d; %s", code, notes)
	}
	if got := s.must(t, "webhooks", "list"); got != "" {
		t.Errorf("left behind: %s", got)
	}
}
