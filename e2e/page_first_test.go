package e2e

import (
	"encoding/json"
	"flag"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"reflect"
	"testing"

	"github.com/chromedp/chromedp"
	"github.com/chromedp/chromedp/kb"
)

// To record the order anew: go test ./e2e -run 'TestPage_Faults/beside_each_other/recorded_order' -record
var record = flag.Bool("record", false, "write the recorded order that the page shows")

const recording = "../gateway/web/assets/recorded.json"

// The tour says what stands in the picture. It is gone through by keys, waits for those who want no motion, and can be left.
func (s *shop) theTourIsTakenByKeyboard(t *testing.T) {
	b := browse(t, s.url, preferring("prefers-reduced-motion", "reduce"))
	b.click("#tour")
	b.text("#tour-pause", "Go on by itself")
	for i, what := range []string{"Gateway", "Exchange", "Queue", "Stock check", "Outbox", "Dead letter"} {
		b.text(".tour-stop", fmt.Sprintf("%d of 6. %s", i+1, what))
		b.until("document.querySelectorAll('.node.marked').length >= 2")
		b.press(kb.ArrowRight)
	}
	b.press(kb.Escape)
	b.until("document.querySelector('#panel').hidden && document.activeElement.id === 'tour' && !document.querySelector('.node.marked')")

	b.do(preferring("prefers-reduced-motion", "no-preference"))
	b.click("#tour")
	b.text(".tour-stop", "1 of 6.")
	b.text(".tour-stop", "2 of 6.") // by itself
	b.order("1", "1")               // the order that one places meanwhile is what one wants to see
	b.until("document.querySelector('#panel').hidden")
	b.text("#slip-state", "CONFIRMED")
}

// The page shows a recorded order, and says so. What was recorded has the form that events have now.
func (s *shop) theRecordedOrderHasTheFormOfARealOne(t *testing.T) {
	location := s.place(t, 5, 3)
	s.decided(t, location)
	type object = map[string]any
	var log struct{ Events []object }
	eventually(t, func() error {
		if s.get(t, location+"/events").json(t, &log); len(log.Events) != 3 {
			return fmt.Errorf("the log has %d events of the order", len(log.Events))
		}
		return nil
	})
	var order object
	s.get(t, location).json(t, &order)
	for _, personal := range []string{"customer_name", "customer_email"} {
		delete(order, personal)
	}
	var changes []object
	eventually(t, func() error {
		var stock struct{ Events []object }
		s.get(t, "/v1/events?"+url.Values{"routing_key": {"shop.stock.changed"}, "page_size": {"100"}}.Encode()).json(t, &stock)
		changes = nil
		for _, e := range stock.Events {
			if e["trace_id"] == log.Events[0]["trace_id"] {
				changes = append(changes, e)
			}
		}
		if len(changes) != 2 { // held, and settled
			return fmt.Errorf("the log has %d changes of stock of the order", len(changes))
		}
		return nil
	})
	now := object{"order": order, "events": log.Events, "stock": changes}
	text, err := json.MarshalIndent(now, "", " ")
	if err != nil {
		t.Fatal(err)
	}
	if *record {
		if err := os.WriteFile(recording, append(text, '\n'), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	recorded, err := os.ReadFile(recording)
	if err != nil {
		t.Fatal(err)
	}
	var was, is any
	for text, v := range map[*[]byte]*any{&recorded: &was, &text: &is} {
		if err := json.Unmarshal(*text, v); err != nil {
			t.Fatal(err)
		}
	}
	if was, is := form(was), form(is); !reflect.DeepEqual(was, is) {
		t.Errorf("the recorded order has the form\n%v\nand an order now\n%v", was, is)
	}

	b := browse(t, s.url)
	b.click("#recorded")
	b.text("#slip-state", "RECORDED")
	b.text("#slip-detail", "nothing of it happens now")
	b.until(`['accepted', 'stock check', 'relay, log: OrderConfirmed', 'settle'].every((hop) => document.querySelector('#journey').textContent.includes(hop))`)
	b.until(disabled("#cancel") + " && " + disabled("#copy-link"))
	b.order("1", "1")
	b.text("#slip-state", "CONFIRMED")
	b.timeline(confirmedTimeline...)
}

// form is a JSON value without what it says: its fields, and of what kind they are. Ids and figures differ.
func form(v any) any {
	switch v := v.(type) {
	case map[string]any:
		fields := map[string]any{}
		for name, value := range v {
			fields[name] = form(value)
		}
		return fields
	case []any:
		kinds := make([]any, len(v))
		for i := range v {
			kinds[i] = form(v[i])
		}
		return kinds
	default:
		return fmt.Sprintf("%T", v)
	}
}

// An experiment said in one line that it had passed. Now it says what is expected, what happens while it happens, and how it
// ended, beside the picture; and leaves the catalogue as it was.
func (s *shop) experimentsAreSeenBesideThePicture(t *testing.T) {
	b := browse(t, s.operatorLink())
	b.mayComplain("status of 503") // while a service is stopped
	b.until("document.querySelector('.product')")
	products := eval[int](b, "document.querySelectorAll('.product').length")
	for _, experiment := range []struct{ id, figures string }{
		{"crash", "20 orders, 40 events unpublished at the crash; 0 lost, 0 doubled"}, {"last", "5 tried, 1 sold, 4 refused, 0 oversold"},
		{"compare", "2 orders, 2 confirmed; inventory was stopped for "}, {"price", "Seen 10 USD, now 12 USD: REJECTED, PRICE_CHANGED; stock 10 → 10."},
		{"broker", "Cut for 2"}, {"database", "60 orders accepted, the slowest after "}, {"slow", "120 orders accepted, the slowest after "},
		{"repair", "Redriven 1 × in vain, then handled "},
	} {
		b.runExperiment(experiment.id, experiment.figures)
	}
	b.do(chromedp.EmulateViewport(360, 760))
	b.runExperiment("compare", "2 orders, 2 confirmed; ")
	b.runExperiment("price", "Seen 10 USD, now 12 USD: ")
	b.do(chromedp.EmulateViewport(1440, 900))
	if a := s.get(t, "/catalogue"); a.code != http.StatusOK {
		t.Fatalf("GET /catalogue: %d %s", a.code, a.body)
	}
	b.until(fmt.Sprintf("document.querySelectorAll('.product').length === %d", products))
	b.click("#panel .actions button")
	b.until("document.querySelector('#panel').hidden")
}

// runExperiment runs an experiment of the page, and sees that the picture and the verdict are in sight when it has passed. Then
// it reads to the end, as somebody does: the next experiment has to bring its own into sight.
func (b *tab) runExperiment(id, figures string) {
	b.Helper()
	b.click("[data-experiment=" + id + "] button")
	b.text("#panel", "Hypothesis:")
	b.text("#panel .result", "Running")
	b.within(3*testTimeout, `document.querySelector('[data-experiment="`+id+`"] .result').dataset.passed`) // longer than the page waits
	b.text("#panel .result", "Passed. "+figures)
	b.until("document.querySelectorAll('#panel .steps li').length >= 2")
	b.text("#panel .proof code", "Test")
	if id == "compare" {
		b.until("document.querySelectorAll('#panel .waterfall').length === 2 && document.querySelectorAll('#panel .hop').length >= 8")
	}
	for _, part := range []string{"#picture", "#panel .result"} {
		b.until(fmt.Sprintf(`(() => {
			const part = document.querySelector(%q);
			const {left, top, bottom} = part.getBoundingClientRect();
			return [top + 1, bottom - 1].every((y) => part.contains(document.elementFromPoint(left + 1, y)));
		})()`, part)) // else it is out of sight, or behind something
	}
	eval[any](b, "document.querySelector('#panel .actions').scrollIntoView({behavior: 'instant'})")
}
