package e2e

import (
	"errors"
	"fmt"
	"net/http"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/chromedp/chromedp"
	"github.com/chromedp/chromedp/kb"
	"github.com/google/uuid"
	amqp "github.com/rabbitmq/amqp091-go"
)

// What using the page has shown to be wrong with it. The tests share a shop: to start one takes longer than most of them.
func TestPage_Faults(t *testing.T) {
	t.Parallel()
	s := startDemo(t)
	// There is no order yet.
	t.Run("dead letter that waits", s.aDeadLetterThatWaitsIsNoViolation)
	t.Run("many dead letters", s.deadLettersAreCountedAndDecidedTogether)
	// Of orders that are decided together one has the changes of stock in its journey.
	t.Run("journey", s.theJourneyOfAnOrderIsReadAndJoinedToThePicture)
	t.Run("beside each other", func(t *testing.T) {
		for name, test := range map[string]func(*testing.T){
			"widths": s.productNamesHaveRoomAtEveryWidth, "no id": s.whatIsNoIDIsNotAnOrderThatWaits, "filled in": s.whatWasFilledInIsKept,
			"expired token": s.aTokenThatExpiresIsNoticed, "cut answer": s.anAnswerThatIsCutIsNone, "slow catalogue": s.whoIsFasterThanTheCatalogueOrdersWhatWasChosen, "end of an id": s.theLogIsFilteredByTheEndOfAnID,
			"look up":     s.operatorsLookUpOrdersStockAndActions,
			"copied link": s.aCopiedLinkShowsTheOrderAndNoMore, "one click": s.somethingIsOrderedWithOneClick,
			"tour": s.theTourIsTakenByKeyboard, "paused log": s.whatCameWhileTheLogWasPausedIsShownOnce, "keyboard": s.theKeyboardStaysOnAButtonThatWasPressed, "recorded order": s.theRecordedOrderHasTheFormOfARealOne,
		} {
			t.Run(name, func(t *testing.T) {
				t.Parallel()
				test(t)
			})
		}
	})
	// These change what every page shows, and a service that was down may not be reached at once.
	t.Run("picture in sight", s.thePictureIsInSightWhileSomethingHappens)
	t.Run("experiments", s.experimentsAreSeenBesideThePicture)
	t.Run("all products", s.allProductsAreReached)
	t.Run("service that is down", s.aServiceThatIsDownIsSaidToBe)
}

// Two columns left no room for the names of products between 1024 and 1280 pixels: they were 3,602 pixels high.
func (s *shop) productNamesHaveRoomAtEveryWidth(t *testing.T) {
	// Figures that are long, and a name that is.
	s.addProducts(t, 1_000_000, "A name that takes more room than most of them do")
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

// The picture had been scrolled away when something was to be seen in it.
func (s *shop) thePictureIsInSightWhileSomethingHappens(t *testing.T) {
	const inSight = `(({top, bottom}) => top >= 0 && bottom <= innerHeight)(document.querySelector('#picture').getBoundingClientRect())`
	b := browse(t, s.operatorLink())
	b.until("document.querySelector('[data-experiment=race] button')")
	eval[any](b, "document.querySelector('#breaking').scrollIntoView()")
	b.click("[data-experiment=twice] button")
	if !eval[bool](b, inSight) {
		t.Error("the picture is not seen during an experiment")
	}
	names := make([]string, 100)
	for i := range names {
		names[i] = fmt.Sprintf("Product %03d", i)
	}
	s.addProducts(t, 1, names...)
	b = browse(t, s.url)
	b.until("document.querySelectorAll('.product').length === 100")
	for _, size := range [][2]int64{{1440, 900}, {1024, 768}, {360, 760}} {
		b.do(chromedp.EmulateViewport(size[0], size[1]))
		b.until(fmt.Sprintf("innerWidth === %d", size[0]))
		b.order("5", "1")
		b.until(inSight)
	}
	b.fill("#find", "mouse pad")
	b.until(`document.querySelectorAll('.product:not([hidden])').length === 1`)
}

// Of more than 100 products the page showed the first 100.
func (s *shop) allProductsAreReached(t *testing.T) {
	s.addProducts(t, 1, "A product that is far behind")
	b := browse(t, s.url)
	b.until("document.querySelectorAll('.product').length === 100")
	b.fill("#find", "far behind")
	b.until(`document.querySelectorAll('.product:not([hidden])').length === 1`)
	b.do(chromedp.Reload())
	b.click("#more-products a")
	b.until("document.querySelectorAll('.product').length > 100 && document.querySelector('#more-products').hidden")
	last := eval[string](b, "[...document.querySelectorAll('.product')].at(-1).dataset.id")
	b.order(last, "1")
	b.text("#slip-state", "CONFIRMED")

	b = browse(t, s.url, withoutScripts())
	b.mayComplain("status of 422")
	b.click("#more-products a")
	b.fill(`[name="quantity.`+last+`"]`, "1")
	b.click("#place")
	b.text("#customer_name-error", "Enter your name")
	b.text(`[data-id="`+last+`"]`, "A product that is far behind") // the form shows the same products again
}

// An audit said that the shop had failed, because of a message that its operator had sent to be a dead letter.
func (s *shop) aDeadLetterThatWaitsIsNoViolation(t *testing.T) {
	b := browse(t, s.operatorLink())
	b.click("[data-experiment=poison] button")
	b.text("[data-experiment=poison] .result", "Passed.")
	b.click("[data-experiment=audit] button")
	b.text("[data-experiment=audit] .result", "Passed. 1 order checked, 0 violations. 1 dead letter waits for a person, you sent it.")
	// What was compared is said, beside the picture and where one looks things up.
	b.until("document.querySelectorAll('#panel .audit tbody tr').length > 10 && document.querySelectorAll('#panel .audit .wrong').length === 1")
	eval[any](b, "document.querySelector('#lookup-audit').open = true")
	b.text("#audit-body .wrong", "dead letters")
}

// What is no id at all was shown as PENDING for ever.
func (s *shop) whatIsNoIDIsNotAnOrderThatWaits(t *testing.T) {
	for _, id := range []string{"nonsense", uuid.NewString()} {
		b := browse(t, "about:blank")
		b.mayComplain("status of 400", "status of 404")
		b.do(chromedp.Navigate(s.url + "/#order=" + id))
		b.text("#slip-state", "NOT FOUND")
		if !eval[bool](b, disabled("#copy-link")) {
			t.Error("the link to an order that is none can be copied")
		}
	}
}

// contrast is that of the service that is down with what it stands on, as WCAG has it.
const contrast = `(() => {
	const luminance = (colour) => {
		const [r, g, b] = colour.match(/[0-9.]+/g).map((c) => (c /= 255) <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
		return 0.2126 * r + 0.7152 * g + 0.0722 * b;
	};
	const [low, high] = [['#health tr.stopped td', 'color'], ['#health.label', 'backgroundColor']]
		.map(([selector, property]) => luminance(getComputedStyle(document.querySelector(selector))[property])).sort((a, b) => a - b);
	return (high + 0.05) / (low + 0.05);
})()`

// A service that was down was told from others by a thin line alone, and one that waited not at all. With inventory stopped the order service was struck out too, its message was nowhere, and the page said "live". With
// logging stopped an order was confirmed without events, and without a word.
func (s *shop) aServiceThatIsDownIsSaidToBe(t *testing.T) {
	b := browse(t, s.operatorLink())
	b.mayComplain("status of 503", "ERR_INCOMPLETE_CHUNKED_ENCODING")
	b.click("[data-service=inventory]")
	b.text("[data-service=inventory]", "Start inventory")
	b.text("#connection", "a service is down")
	b.text("#health tr.stopped", "inventory")
	b.text("#health tr.stopped td", "down: ")
	for _, scheme := range []string{"light", "dark"} {
		b.do(preferring("prefers-color-scheme", scheme))
		red := eval[string](b, "getComputedStyle(document.querySelector('#health tr.stopped td')).color")
		if c := eval[float64](b, contrast); c < 4.5 || red == eval[string](b, "getComputedStyle(document.querySelector('#health tr.ready td')).color") {
			t.Errorf("%s: a service that is down is %s, with a contrast of %.1f", scheme, red, c)
		}
	}
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

// A rejection emptied the basket, and a reload the customer's name and address.
func (s *shop) whatWasFilledInIsKept(t *testing.T) {
	b := browse(t, s.url)
	b.order("1", "51")
	b.text("#slip-state", "REJECTED")
	b.until(`document.querySelector('[name="quantity.1"]').value === '51'`)
	b.text("#basket-total", "51 pieces")
	b.do(chromedp.Reload())
	b.until("document.querySelector('#customer_name').value === 'Ada' && document.querySelector('#customer_email').value === 'ada@example.org'")
}

// A token that was not good any more was shown as an operator's for as long as the page was open.
func (s *shop) aTokenThatExpiresIsNoticed(t *testing.T) {
	b := browse(t, s.operatorLink())
	b.mayComplain("status of 401")
	b.text("#role", "operator")
	eval[any](b, `(() => {
		const real = window.fetch;
		window.fetch = (url, options) => real(url, options?.headers?.Authorization ? {...options, headers: {...options.headers, Authorization: 'Bearer expired'}} : options);
	})()`)
	b.text("#role", "signed out")
	b.text("#operator-hint", "not valid here, or not any more")
	eval[any](b, "location.hash = '#token="+operatorToken+"'")                        // as if the link was opened in this tab
	b.do(chromedp.WaitVisible(chromedp.CSS("body:has(#operator-hint[hidden]) #log"))) // the page begins anew
	b.text("#log-state", "events/s")
	if role := eval[string](b, "document.querySelector('#role').textContent"); role != "operator" {
		t.Errorf("with a token that is valid the page is that of: %s", role)
	}
}

// Who ordered before the catalogue had come was told to add a product, with one in the basket a moment later.
func (s *shop) whoIsFasterThanTheCatalogueOrdersWhatWasChosen(t *testing.T) {
	b := browse(t, s.url, before(`
		const real = window.fetch;
		const released = new Promise((resolve) => { window.release = resolve; });
		window.fetch = async (url, options) => {
			if (String(url).startsWith('/catalogue')) await released;
			return real(url, options);
		};`))
	b.order("5", "1")
	eval[any](b, "window.release()")
	b.text("#slip-state", "CONFIRMED")
	b.text("#slip-contents", "1 piece, 35.00 USD")
}

// An answer that ended in the middle was taken for an empty one, and an exception ended what had asked for it.
func (s *shop) anAnswerThatIsCutIsNone(t *testing.T) {
	b := browse(t, s.operatorLink(), before(`
		const real = window.fetch;
		window.fetch = async (url, options) => (String(url).startsWith('/v1/dead-letters') ? new Response('{"dead_letters": [') : real(url, options));`))
	b.text("#dead-letters", "Dead letters are unavailable")
}

// The page shows the last eight characters of an order's id, and the log's filter wanted all of it.
func (s *shop) theLogIsFilteredByTheEndOfAnID(t *testing.T) {
	b := browse(t, s.operatorLink())
	s.decided(t, s.place(t, 1, 1))
	location := s.place(t, 1, 1)
	s.decided(t, location)
	id := strings.TrimPrefix(location, "/v1/orders/")
	b.until(fmt.Sprintf("document.querySelector('#log-rows').textContent.includes(%q)", id[len(id)-8:]))
	b.fill("#log-order", id[len(id)-8:])
	b.click("#log-filter button")
	b.until("document.querySelectorAll('#log-rows details').length === 3")
	eval[any](b, "{ const real = URL.createObjectURL; URL.createObjectURL = (blob) => { window.saved = blob; return real(blob); }; }")
	for button, start := range map[string]string{"#log-csv": "id,published_at,", "#log-jsonl": `{"id":`} {
		eval[any](b, "window.saved = null")
		b.click(button)
		b.until("window.saved")
		saved := eval[string](b, "window.saved.text()")
		if !strings.HasPrefix(saved, start) || strings.Count(saved, id) < 3 || strings.Contains(saved, "shop.stock.changed") {
			t.Errorf("%s saves\n%s", button, saved)
		}
	}
	b.fill("#log-order", "ffff0000")
	b.click("#log-filter button")
	b.text("#log-state", "none of the last 1000 orders end with ffff0000")
}

// 50 of 125 dead letters were shown, one by one, without their number, their ids and their dates.
func (s *shop) deadLettersAreCountedAndDecidedTogether(t *testing.T) {
	s.makeDeadLetters(t, 51) // and one is there
	b := browse(t, s.operatorLink())
	b.text("#letters-count", "52 open")
	b.text("#picture .node.letters", "52 wait")
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
	b.text("#picture .node.letters", "empty")
	if asked := eval[string](b, "window.asked"); asked != "Discard 52 dead letters?" { // which are no orders
		t.Errorf("before it discarded them the page asked %q", asked)
	}
	s.anOrderIsDiscardedKnowingly(t, b)
}

// To discard all was said to reject orders that the letters were not, and to discard one rejected its order without a word.
func (s *shop) anOrderIsDiscardedKnowingly(t *testing.T, b *tab) {
	t.Helper()
	nameless := placed()
	nameless.CustomerName = ""
	s.send(t, s.confirming(t), "shop.topic", "shop.order.placed",
		amqp.Publishing{MessageId: uuid.NewString(), DeliveryMode: amqp.Persistent, Timestamp: time.Now(), Body: encode(t, nameless)})
	b.until("document.querySelectorAll('.letters li[data-id] .letter-what a').length === 1")
	id := eval[string](b, "document.querySelector('.letters li').dataset.id")
	eval[any](b, "window.confirm = (text) => { window.asked = text; return false; }")
	for button, question := range map[string]string{".letters .actions button:last-child": "Discard dead letter " + id + "?", "#letters-discard": "Discard 1 dead letter?"} {
		b.click(button)
		if asked := eval[string](b, "window.asked"); asked != question+" 1 order becomes REJECTED, if not decided yet." {
			t.Errorf("%s asks %q", button, asked)
		}
	}
	eval[any](b, "window.confirm = () => true")
	b.click(".letters .actions button:last-child")
	b.text("#dead-letters .outcome", "Dead letter "+id+" was discarded.")
	if o := s.decided(t, "/v1/orders/"+nameless.GetOrderId()); o.State != "REJECTED" || o.Reason != "DISCARDED" {
		t.Errorf("the order is %s %s", o.State, o.Reason)
	}
}

// Who had paused the log and came back from another tab saw what had come meanwhile twice.
func (s *shop) whatCameWhileTheLogWasPausedIsShownOnce(t *testing.T) {
	b := browse(t, s.operatorLink())
	seen := func(location string) {
		t.Helper()
		id := strings.TrimPrefix(location, "/v1/orders/")
		b.until(fmt.Sprintf("document.querySelector('#log-rows').textContent.includes(%q)", id[len(id)-8:]))
	}
	seen(s.place(t, 1, 1))
	b.click("#log-pause")
	location := s.place(t, 1, 1)
	s.decided(t, location)
	b.until("parseInt(document.querySelector('#log-state').textContent.replace('paused, ', '')) >= 3")
	eval[any](b, `{
		const real = window.fetch;
		window.fetch = (url, options) => {
			window.read ||= String(url).startsWith('/v1/events?');
			window.opened ||= window.read && String(url).startsWith('/v1/events:stream');
			return real(url, options);
		};
	}`)
	const awayAndBack = `(async () => {
		Object.defineProperty(document, 'hidden', {value: true, configurable: true});
		document.dispatchEvent(new Event('visibilitychange'));
		await new Promise((resolve) => { setTimeout(resolve); }); // the stream ends
		delete document.hidden;
		document.dispatchEvent(new Event('visibilitychange'));
		return Boolean(window.read);
	})()`
	eventually(t, func() error {
		if !eval[bool](b, awayAndBack) {
			return errors.New("the page does not read what is newest")
		}
		return nil
	})
	b.until("window.opened") // so it has read that
	b.click("#log-pause")
	seen(location)
	seen(s.place(t, 1, 1))
	ids := eval[[]string](b, "[...document.querySelectorAll('#log-rows details')].map((row) => row.dataset.id)")
	if once := slices.Compact(slices.Sorted(slices.Values(ids))); len(once) != len(ids) {
		t.Errorf("of %d rows %d are of different events", len(ids), len(once))
	}
}

// A button that did nothing for a moment lost the keyboard: whoever had pressed it began at the top of the page again.
func (s *shop) theKeyboardStaysOnAButtonThatWasPressed(t *testing.T) {
	b := browse(t, s.operatorLink())
	b.order("5", "1")
	b.text("#slip-state", "CONFIRMED")
	eval[any](b, "{ const real = URL.createObjectURL; URL.createObjectURL = (blob) => { window.saved = blob; return real(blob); }; }")
	for _, button := range []struct{ selector, done string }{{"#replay", disabled("#replay")}, {"#cancel", disabled("#cancel")}, {"#log-csv", "window.saved"}} {
		b.until("!" + disabled(button.selector))
		b.do(chromedp.Focus(chromedp.CSS(button.selector)))
		b.press(kb.Enter)
		b.until(button.done)
		if focus := eval[string](b, "document.activeElement.id"); "#"+focus != button.selector {
			t.Errorf("after %s was pressed the keyboard is on %q", button.selector, focus)
		}
	}
	// Pressed again it does nothing.
	b.do(chromedp.Focus(chromedp.CSS("#cancel")))
	b.text("#slip-state", "CANCELLED")
	b.press(kb.Enter)
	b.text("#slip-detail", "cancelled")
}

// To see what the page shows, one had to choose, and to make up a name and an address.
func (s *shop) somethingIsOrderedWithOneClick(t *testing.T) {
	b := browse(t, s.url)
	b.click("#order-for-me")
	b.text("#slip-state", "CONFIRMED")
	b.text("#slip-contents", "1 piece")
	b.timeline(confirmedTimeline...)
}

// The link to an order that was copied let everybody cancel it, and see who had placed it.
func (s *shop) aCopiedLinkShowsTheOrderAndNoMore(t *testing.T) {
	b := browse(t, s.url)
	b.do(allowClipboard(s.url))
	b.order("5", "1")
	b.text("#slip-state", "CONFIRMED")
	b.click("#copy-link")
	b.text("#copy-link", "Copied")
	link := eval[string](b, "navigator.clipboard.readText()")
	id := eval[string](b, "document.getElementById('slip-id').title")
	b.click("#copy-image")
	b.text("#copy-image", "Copied")
	if types := eval[[]string](b, "navigator.clipboard.read().then((items) => items.flatMap(({types}) => types))"); !slices.Contains(types, "image/png") {
		t.Errorf("as an image is copied %v", types)
	}
	other := browse(t, link)
	other.text(".stamp", "CONFIRMED")
	other.text(".slip-detail", "The order is confirmed.")
	other.text(".order-lines", "1 × Laptop Stand")
	shown := eval[string](other, "document.documentElement.outerHTML")
	for _, secret := range []string{id, id[len(id)-8:], "Ada", "ada@example.org"} {
		if strings.Contains(link+shown, secret) {
			t.Errorf("the page of the link has %q", secret)
		}
	}
	if controls := eval[int](other, "document.querySelectorAll('button, form, script').length"); controls > 0 {
		t.Errorf("it has %d things to press or to run", controls)
	}
}

// The picture moved, and did not say how long each step took, nor what it was.
func (s *shop) theJourneyOfAnOrderIsReadAndJoinedToThePicture(t *testing.T) {
	b := browse(t, s.operatorLink())
	b.text("#connection", "live")
	if n := eval[int](b, "document.querySelectorAll('.hop').length"); n != 0 {
		t.Errorf("%d hops of no order", n)
	}
	if said := eval[string](b, "document.querySelector('#hop-text').textContent"); said != "" {
		t.Errorf("of no hop the page says %q", said)
	}
	b.text("#log-state", "events/s")
	b.order("5", "3")
	b.timeline(confirmedTimeline...)
	b.until(`['accepted', 'stock check', 'relay, log: OrderConfirmed', 'relay, log: DecrementQuantity', 'settle'].every((hop) => document.querySelector('#journey').textContent.includes(hop))`)
	b.do(chromedp.Focus(chromedp.CSS("#journey .hop")))
	b.text("#hop-text", "copies the message to 2 queues, order and logging, because shop.order.placed matches shop.order.placed and shop.#.")
	b.until("document.querySelectorAll('.node.marked').length === 2")
	if n := eval[int](b, "document.querySelectorAll('#picture [marker-end]').length"); n < 13 {
		t.Errorf("%d arrows", n)
	}
	b.text("#picture", "shop.inventory.#shop.order.cancelled") // the keys by which a queue is bound
	// The stock check goes through queues of its own, and not from service to service.
	b.text("#picture .node.call title", "inventory-rpc-queue")
	b.do(chromedp.Focus(chromedp.CSS("#journey li:nth-child(3) .hop")))
	b.text("#hop-text", "over shop.direct and queue inventory-rpc-queue")
	b.until("document.querySelectorAll('#picture .node.call.marked').length >= 1")
	b.click("#slower")
	b.click("#replay")
	b.click("#pause")
	b.text("#replay", "Resume")
	b.until("!" + disabled("#replay")) // the hop that was shown has ended
	if n := eval[int](b, "document.querySelectorAll('#journey .playing').length"); n != 0 {
		t.Errorf("%d hops are shown during the pause", n)
	}
	b.click("#slower")
	b.click("#step")
	b.text("#hop-text", "and is shown slowed down.")
	b.until("document.querySelector('#journey .playing')")
	// What inventory did with the stock of a cancelled order was not told.
	b.click("#cancel")
	b.text("#slip-state", "CANCELLED")
	b.text("#journey", "give back")
	b.text("#picture", "gRPC: cancel") // and was not drawn before
	eval[any](b, "[...document.querySelectorAll('#journey .hop')].find((hop) => hop.textContent.includes('OrderCancelled')).focus()")
	b.text("#hop-text", "The gateway has asked the order service by gRPC, which has stored the order as CANCELLED. The relay")
}

// addProducts adds products of these names to the catalogue.
func (s *shop) addProducts(t *testing.T, quantity int, names ...string) {
	t.Helper()
	items := make([]string, len(names))
	for i, name := range names {
		items[i] = fmt.Sprintf(`{"product_name":%q,"quantity":%d,"price":{"currency_code":"USD","units":"1"}}`, name, quantity)
	}
	if a := s.call(t, http.MethodPost, "/v1/inventory", `{"items":[`+strings.Join(items, ",")+`]}`, "Authorization", "Bearer "+operatorToken); a.code != http.StatusOK {
		t.Fatalf("adding products: %d %s", a.code, a.body)
	}
}

// Badges and greys of the API's page were too pale, and it was white on dark screens, where its colours are turned round now.
func TestDocsPage_CanBeReadInLightAndDark(t *testing.T) {
	t.Parallel()
	axe, err := os.ReadFile("../third_party/axe-core/axe.min.js")
	if err != nil {
		t.Fatal(err)
	}
	s := start(t)
	const filter = "getComputedStyle(document.getElementById('docs')).filter"
	b := browse(t, s.url+"/docs", preferring("prefers-color-scheme", "light"))
	b.until("document.querySelectorAll('.opblock-summary-control').length > 20")
	for _, method := range []string{"get", "post", "patch", "delete"} {
		b.click(".opblock-" + method + " .opblock-summary-control")
	}
	b.until("document.querySelectorAll('.opblock-body').length === 4")
	eval[any](b, string(axe)+"; null")
	for _, fault := range eval[[]string](b, `axe.run({include: ['.info', '.scheme-container', '.opblock.is-open']}, {runOnly: ['color-contrast', 'select-name', 'target-size']}).then(({violations}) =>
		violations.flatMap(({nodes}) => nodes.map((node) => node.html + ' ' + node.failureSummary)))`) {
		t.Error(fault)
	}
	b.do(preferring("prefers-color-scheme", "dark"))
	b.until(filter + " !== 'none'")
	b.do(preferring("prefers-color-scheme", "light"))
	b.until(filter + " === 'none'")
}
