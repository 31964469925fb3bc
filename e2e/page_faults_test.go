package e2e

import (
	"fmt"
	"net/http"
	"strings"
	"testing"

	"github.com/chromedp/chromedp"
	"github.com/google/uuid"
)

// Between 1024 and 1280 pixels two columns once left no room for product names: they were 3,602 pixels high.
func TestPage_ProductNamesHaveRoomAtEveryWidth(t *testing.T) {
	t.Parallel()
	s := startDemo(t)
	// Figures that are long, and a name that is.
	s.addProduct(t, "A name that takes more room than most of them do", 1_000_000)
	b := browse(t, s.operatorLink())
	b.text("#products", "1000000")
	b.text("#health", "dead-letter")
	for _, width := range []int64{280, 360, 600, 767, 768, 1023, 1024, 1150, 1280, 1440, 2560} {
		b.do(chromedp.EmulateViewport(width, 800))
		b.until(fmt.Sprintf("innerWidth === %d && document.querySelector('#picture svg')", width))
		for what, wrong := range map[string]string{
			"the page is wider than the screen by, in pixels": `Math.max(0, document.documentElement.scrollWidth - innerWidth)`,
			"names with less room than eight letters":         `[...document.querySelectorAll('.product-what')].filter((e) => e.clientWidth < 90).length`,
			"figures on more than one line": `[...document.querySelectorAll('.stock dd, .health td')].filter((e) => {
				const text = document.createRange();
				text.selectNodeContents(e);
				return /^[0-9]/.test(e.textContent) && text.getClientRects().length > 1;
			}).length`,
			"tables without padding":                   `[...document.querySelectorAll('.health table')].filter((e) => parseFloat(getComputedStyle(e.parentElement).paddingLeft) < 8).length`,
			"pixels by which the picture is too large": `Math.max(0, Math.round(document.querySelector('#picture').clientHeight - 500))`,
		} {
			if n := eval[int](b, wrong); n > 0 {
				t.Errorf("at %d pixels: %s: %d", width, what, n)
			}
		}
	}
}

// The picture was once scrolled out of view while it showed something.
func TestPage_ThePictureIsInSightWhileSomethingHappens(t *testing.T) {
	t.Parallel()
	s := startDemo(t)
	const inSight = `(({top, bottom}) => top >= 0 && bottom <= innerHeight)(document.querySelector('#picture').getBoundingClientRect())`
	b := browse(t, s.operatorLink())
	b.until("document.querySelector('[data-experiment=race] button')")
	eval[any](b, "document.querySelector('#breaking').scrollIntoView()")
	b.click("[data-experiment=twice] button")
	if !eval[bool](b, inSight) {
		t.Error("the picture is not seen during an experiment")
	}
	for i := range 100 {
		s.addProduct(t, fmt.Sprintf("Product %03d", i), 1)
	}
	for _, size := range [][2]int64{{1440, 900}, {1024, 768}, {360, 760}} {
		b := browse(t, s.url, chromedp.EmulateViewport(size[0], size[1]))
		b.text("#catalogue-notice", "These are the first 100 products.")
		b.order("5", "1")
		b.until(inSight)
	}
	b = browse(t, s.url)
	b.fill("#find", "mouse pad")
	b.until(`document.querySelectorAll('.product:not([hidden])').length === 1`)
}

// An audit once reported a failure because of the dead letter that the operator had made on purpose.
func TestPage_ADeadLetterThatWaitsIsNoViolation(t *testing.T) {
	t.Parallel()
	s := startDemo(t)
	b := browse(t, s.operatorLink())
	b.click("[data-experiment=poison] button")
	b.text("[data-experiment=poison] .result", "Passed.")
	b.click("[data-experiment=audit] button")
	b.text("[data-experiment=audit] .result", "Passed. 0 orders checked, 0 violations. 1 dead letter waits for a person, you sent it.")
}

// A text that is no id at all was once shown as PENDING for ever.
func TestPage_WhatIsNoIDIsNotAnOrderThatWaits(t *testing.T) {
	t.Parallel()
	s := start(t)
	for _, id := range []string{"nonsense", uuid.NewString()} {
		b := browse(t, "about:blank")
		b.mayComplain("status of 400", "status of 404")
		b.do(chromedp.Navigate(s.url + "/#order=" + id))
		b.text("#slip-state", "NOT FOUND")
		if !eval[bool](b, "document.querySelector('#copy-link').disabled") {
			t.Error("the link to an order that is none can be copied")
		}
	}
}

// While inventory was stopped, the page once marked the order service as stopped, too, and said "live"; while logging was
// stopped, an order was confirmed without events and without a note.
func TestPage_AServiceThatIsDownIsSaidToBe(t *testing.T) {
	t.Parallel()
	s := startDemo(t)
	b := browse(t, s.operatorLink())
	b.mayComplain("status of 503", "ERR_INCOMPLETE_CHUNKED_ENCODING")
	b.click("[data-service=inventory]")
	b.text("[data-service=inventory]", "Start inventory")
	b.text("#connection", "a service is down")
	b.order("1", "1")
	b.text("#slip-detail", "Checking stock…")
	b.until("document.querySelectorAll('#picture .node.down').length === 1") // the order service runs
	b.until(`/1 (waiting|in hand)/.test(document.querySelector('#picture').textContent)`)
	b.click("[data-service=inventory]")
	b.text("#slip-state", "CONFIRMED")
	b.text("#connection", "live")

	b.click("[data-service=logging]")
	b.text("[data-service=logging]", "Start logging")
	b.order("1", "1")
	b.text("#slip-state", "CONFIRMED")
	b.text("#timeline-note", "the event log does not answer")
	b.click("[data-service=logging]")
	b.timeline(confirmedTimeline...)
	b.until("document.querySelector('#timeline-note').hidden")
}

// A rejection once emptied the basket, and a reload the customer's name and address.
func TestPage_WhatWasFilledInIsKept(t *testing.T) {
	t.Parallel()
	s := start(t)
	b := browse(t, s.url)
	b.order("1", "51")
	b.text("#slip-state", "REJECTED")
	b.until(`document.querySelector('[name="quantity.1"]').value === '51'`)
	b.text("#basket-total", "51 pieces")
	b.do(chromedp.Reload())
	b.until("document.querySelector('#customer_name').value === 'Ada' && document.querySelector('#customer_email').value === 'ada@example.org'")
}

// A token that had become invalid was once shown as an operator's for as long as the page was open.
func TestPage_ATokenThatExpiresIsNoticed(t *testing.T) {
	t.Parallel()
	s := start(t)
	b := browse(t, s.operatorLink())
	b.mayComplain("status of 401")
	b.text("#role", "operator")
	eval[any](b, `(() => {
		const real = window.fetch;
		window.fetch = (url, options) => real(url, options?.headers?.Authorization ? {...options, headers: {...options.headers, Authorization: 'Bearer expired'}} : options);
	})()`)
	b.text("#role", "signed out")
	b.text("#operator-hint", "not valid here, or not any more")
}

// The page shows the last eight characters of an order's id; the log's filter once wanted the whole id.
func TestPage_TheLogIsFilteredByTheEndOfAnID(t *testing.T) {
	t.Parallel()
	s := start(t)
	b := browse(t, s.operatorLink())
	s.decided(t, s.place(t, 1, 1))
	location := s.place(t, 1, 1)
	s.decided(t, location)
	id := strings.TrimPrefix(location, "/v1/orders/")
	b.until(fmt.Sprintf("document.querySelector('#log-rows').textContent.includes(%q)", id[len(id)-8:]))
	b.fill("#log-order", id[len(id)-8:])
	b.click("#log-filter button")
	b.until("document.querySelectorAll('#log-rows details').length === 3")
	b.fill("#log-order", "ffff0000")
	b.click("#log-filter button")
	b.text("#log-state", "none of the last 1000 orders end with ffff0000")
}

// Once, 50 of 125 dead letters were shown, one by one, without their number, ids and dates.
func TestPage_DeadLettersAreCountedAndDecidedTogether(t *testing.T) {
	t.Parallel()
	s := startDemo(t)
	for range 52 {
		s.control(t, "/demo/poison", "", nil)
	}
	b := browse(t, s.operatorLink())
	b.text("#letters-count", "52 open")
	b.until("document.querySelectorAll('.letters li').length === 50")
	b.text(".letters .letter-what", "No. 52, shop.order.placed of queue order")
	b.click("#dead-letters-body > .actions button")
	b.until("document.querySelectorAll('.letters li').length === 52")
	b.click(".letters .actions button") // redrives the newest
	b.text("#dead-letters .outcome", "It came back as dead letter 53.")
	b.fill("#letters-text", "nothing like it")
	b.text("#letters-count", "0 of 52 open")
	b.fill("#letters-text", "order.placed")
	eval[any](b, "window.confirm = (text) => { window.asked = text; return true; }")
	b.click("#letters-discard")
	b.text("#dead-letters .outcome", "52 of 52 dead letters discarded.")
	b.text("#dead-letters", "No open dead letters.")
	if asked := eval[string](b, "window.asked"); !strings.Contains(asked, "Discard 52 dead letters?") {
		t.Errorf("before it discarded them the page asked %q", asked)
	}
}

// Once, one had to choose products and make up a name and an address to see what the page shows.
func TestPage_SomethingIsOrderedWithOneClick(t *testing.T) {
	t.Parallel()
	s := start(t)
	b := browse(t, s.url)
	b.click("#order-for-me")
	b.text("#slip-state", "CONFIRMED")
	b.text("#slip-contents", "1 piece")
	b.timeline(confirmedTimeline...)
}

// The picture once moved without saying what each step was and how long it took.
func TestPage_TheJourneyOfAnOrderIsReadAndJoinedToThePicture(t *testing.T) {
	t.Parallel()
	s := start(t)
	b := browse(t, s.operatorLink())
	b.text("#connection", "live")
	if n := eval[int](b, "document.querySelectorAll('.hop').length"); n != 0 {
		t.Errorf("%d hops of no order", n)
	}
	b.text("#log-state", "events/s")
	b.order("5", "3")
	b.timeline(confirmedTimeline...)
	b.until(`['accepted', 'stock check', 'relay, log: OrderConfirmed', 'relay, log: DecrementQuantity', 'settle'].every((hop) => document.querySelector('#journey').textContent.includes(hop))`)
	b.do(chromedp.Focus(chromedp.CSS("#journey .hop")))
	b.text("#hop-text", "copies the message to 2 queues, order and logging, because shop.order.placed matches shop.order.placed and shop.#.")
	b.until("document.querySelectorAll('.node.marked').length === 2")
	b.click("#step")
	b.text("#hop-text", "and is shown slowed down.")
	b.until("document.querySelector('#journey .playing')")
}

// addProduct adds a product to the catalogue.
func (s *shop) addProduct(t *testing.T, name string, quantity int) {
	t.Helper()
	body := fmt.Sprintf(`{"items":[{"product_name":%q,"quantity":%d,"price":{"currency_code":"USD","units":"1"}}]}`, name, quantity)
	if a := s.call(t, http.MethodPost, "/v1/inventory", body, "Authorization", "Bearer "+operatorToken); a.code != http.StatusOK {
		t.Fatalf("adding a product: %d %s", a.code, a.body)
	}
}
