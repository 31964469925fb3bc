package e2e

import (
	"context"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"reflect"
	"strconv"
	"strings"
	"testing"

	"github.com/chromedp/cdproto/browser"
	"github.com/chromedp/chromedp"
	"github.com/chromedp/chromedp/kb"
	"github.com/google/uuid"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	orderv1 "shop.example/gen/shop/order/v1"
)

// confirmedTimeline are the events of a confirmed order in the timeline.
var confirmedTimeline = []string{"shop.order.placed", "shop.order.confirmed", "shop.inventory.decrement.quantity"}

// operatorLink is the address of the front page as an operator opens it.
func (s *shop) operatorLink() string { return s.url + "/#token=" + operatorToken }

// order fills in the form for n pieces of a product and sends it.
func (b *tab) order(productID, n string) {
	b.Helper()
	b.fill(`[name="quantity.`+productID+`"]`, n)
	b.fill("#customer_name", "Ada")
	b.fill("#customer_email", "ada@example.org")
	b.click("#place")
}

// timeline waits until the timeline has exactly these events, each once.
func (b *tab) timeline(keys ...string) {
	b.Helper()
	b.until(fmt.Sprintf(`[...document.querySelectorAll('#timeline [data-key]')].map((row) => row.dataset.key).sort().join() === %q.split(',').sort().join()`,
		strings.Join(keys, ",")))
}

func TestPage_AnOrderIsSeenConfirmedOnItsWay(t *testing.T) {
	t.Parallel()
	s := start(t)
	b := browse(t, s.url)
	b.order("5", "3")
	b.text("#slip-state", "CONFIRMED")
	b.text("#slip-contents", "3 pieces, 105.00 USD")
	b.until("document.querySelector('.token')") // something is seen to move
	b.timeline(confirmedTimeline...)
	b.text(`#timeline [data-key="shop.order.placed"]`, "from gateway, attempt 1, trace ")
	b.text(`[data-id="5"] [data-stock=on_hand]`, "147")
	b.text("#own", "3 pieces")

	b.click("#cancel")
	b.text("#slip-state", "CANCELLED")
	b.timeline(append(confirmedTimeline, "shop.order.cancelled")...)
	b.text(`[data-id="5"] [data-stock=on_hand]`, "150")
	if eval[bool](b, "document.getElementById('log').checkVisibility()") {
		t.Error("a customer sees the event log")
	}
	eventually(t, func() error { // what the page shows is what the API says, if half a second later
		var shown, is any
		s.get(t, "/catalogue").json(t, &shown)
		s.get(t, "/v1/inventory?page_size=100").json(t, &is)
		if !reflect.DeepEqual(shown, is) {
			return fmt.Errorf("the page shows %v, there is %v", shown, is)
		}
		return nil
	})
	if shift := eval[float64](b, layoutShift); shift > 0.02 {
		t.Errorf("the layout has jumped by %.3f", shift)
	}
}

// layoutShift adds up what moved without anybody having asked for it.
const layoutShift = `new Promise((resolve) => {
	new PerformanceObserver((list) => resolve(list.getEntries().filter((e) => !e.hadRecentInput).reduce((sum, e) => sum + e.value, 0)))
		.observe({type: 'layout-shift', buffered: true});
	setTimeout(resolve, 500, 0);
})`

func TestPage_RefusalsSayWhatIsWrongWhereItIs(t *testing.T) {
	t.Parallel()
	s := start(t)
	b := browse(t, s.url)
	b.mayComplain("status of 400") // the browser notes every such answer
	b.click("#place")
	b.text("#customer_name-error", "Enter your name")
	b.text("#customer_email-error", "Enter an email address")
	b.text("#outcome", "Add at least one product")
	if focus := eval[string](b, "document.activeElement.id"); focus != "customer_name" {
		t.Errorf("the focus is on %q, not on the first field that is wrong", focus)
	}
	b.order("1", "100001")
	b.text("#quantity-1-error", "must be")
	b.order("1", "51")
	b.text("#slip-state", "REJECTED")
	b.text("#slip-detail", "Not enough stock. Laptop: you asked for 51, only 50 available. Nothing was reserved.")

	// The price in the page is older than the catalogue's, by the moment that a person takes to order.
	eval[any](b, "document.dispatchEvent(new Event('visibilitychange'))")
	change := s.call(t, http.MethodPatch, "/v1/inventory/2", `{"price":{"currency_code":"USD","units":"501"}}`, "Authorization", "Bearer "+operatorToken)
	if change.code != http.StatusOK {
		t.Fatalf("changing a price: %d %s", change.code, change.body)
	}
	b.text(`[data-id="2"]`, "501.00 USD")
}

func TestPage_TheOrderFormWorksWithoutScripts(t *testing.T) {
	t.Parallel()
	s := start(t)
	b := browse(t, s.url, withoutScripts())
	b.mayComplain("status of 422")
	b.fill(`[name="quantity.5"]`, "3")
	b.fill(`[name="quantity.6"]`, "4")
	b.fill("#customer_email", "no address")
	b.click("#place")
	b.text("#customer_name-error", "Enter your name")
	b.text("#customer_email-error", "Enter an email address")
	if kept := eval[string](b, `document.querySelector('[name="quantity.6"]').value + document.getElementById('customer_email').value`); kept != "4no address" {
		t.Errorf("the form has kept %q", kept)
	}
	b.fill("#customer_name", "Ada")
	b.fill("#customer_email", "ada@example.org")
	b.click("#place")
	b.text(".stamp", "CONFIRMED") // the page looks again by itself until then
	b.text(".slip", "7 pieces, 205.00 USD")
	if stock := s.settled(t); stock["Laptop Stand"].OnHand != 147 || stock["Mouse Pad"].OnHand != 196 {
		t.Errorf("stock %+v", stock)
	}

	// A form that is sent twice is one order.
	client := http.Client{CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	send := func(form url.Values) (location string) {
		res, err := client.PostForm(s.url+"/orders", form)
		if err != nil {
			t.Fatal(err)
		}
		if res.StatusCode != http.StatusSeeOther {
			t.Fatalf("the form is answered with %s", res.Status)
		}
		return res.Header.Get("Location")
	}
	form := url.Values{"customer_name": {"Ada"}, "customer_email": {"ada@example.org"}, "quantity.1": {"2"}, "price.1": {"100000 USD"}, "idempotency_key": {"a form of the tests"}}
	first := send(form)
	s.decided(t, "/v1"+first)
	if again := send(form); again != first {
		t.Errorf("sent twice it is %s and %s", first, again)
	}
	form.Set("price.1", "99900 USD")
	form.Set("idempotency_key", "another")
	if o := s.decided(t, "/v1"+send(form)); o.Reason != "PRICE_CHANGED" {
		t.Errorf("with a price that is not the catalogue's the order is %s %s", o.State, o.Reason)
	}
}

// tabTo presses Tab until the focus is on the element.
func (b *tab) tabTo(selector string) {
	b.Helper()
	for range 80 {
		b.press(kb.Tab)
		if eval[bool](b, fmt.Sprintf("document.activeElement?.matches(%q)", selector)) {
			return
		}
	}
	b.Fatalf("Tab does not get to %s", selector)
}

func TestPage_IsUsedByKeyboardAlone(t *testing.T) {
	t.Parallel()
	s := start(t)
	b := browse(t, s.operatorLink())
	b.press(kb.Tab)
	b.until("document.activeElement.matches('.skip')")
	b.press(kb.Enter)
	b.tabTo(`[name="quantity.2"]`)
	b.press(kb.ArrowUp, kb.ArrowUp)
	b.tabTo("#customer_name")
	b.press("Ada")
	b.tabTo("#customer_email")
	b.press("ada@example.org", kb.Enter)
	b.text("#slip-state", "CONFIRMED")
	b.text("#slip-contents", "2 pieces")
	b.until("!" + disabled("#cancel"))
	b.tabTo("#cancel")
	if outline := eval[string](b, "getComputedStyle(document.activeElement).outlineStyle"); outline != "solid" {
		t.Errorf("the focus is not seen: outline %s", outline)
	}
	b.press(kb.Enter)
	b.text("#slip-state", "CANCELLED")
	b.tabTo("#log-rows summary")
	b.press(kb.Enter)
	b.until("document.querySelector('#log-rows details[open] pre')")
}

func TestPage_OperatorsSeeTheLogLiveAndFiltered(t *testing.T) {
	t.Parallel()
	s := start(t)
	b := browse(t, s.operatorLink())
	b.text("#role", "operator")
	if address := eval[string](b, "location.href"); strings.Contains(address, "token") {
		t.Errorf("the token stays in the address: %s", address)
	}
	location := s.place(t, 1, 1)
	id := strings.TrimPrefix(location, "/v1/orders/")
	rows := func(key string) string {
		return fmt.Sprintf(`[...document.querySelectorAll('#log-rows .key')].filter((e) => e.textContent === %q).length`, key)
	}
	b.until(rows("shop.order.placed") + " === 1 && " + rows("shop.stock.changed") + " === 2")

	b.fill("#log-key", "shop.order.*")
	b.fill("#log-order", id)
	b.press(kb.Enter)
	b.until("document.querySelectorAll('#log-rows details').length === 2")
	s.decided(t, s.place(t, 1, 1)) // of another order
	if a := s.call(t, http.MethodPost, location+":cancel", "{}"); a.code != http.StatusOK {
		t.Fatalf("cancelling: %d %s", a.code, a.body)
	}
	b.until(rows("shop.order.cancelled") + " === 1")
	b.until("document.querySelectorAll('#log-rows details').length === 3")

	b.click("#log-pause")
	b.fill("#log-key", "")
	b.fill("#log-order", "")
	b.click("#log-filter button")
	b.text("#log-state", "paused, ")
	b.until("document.querySelectorAll('#log-rows details').length === 0")
	b.click("#log-pause")
	b.until(rows("shop.order.placed") + " === 2")

	if err := chromedp.Do(b.ctx, allowClipboard(s.url)); err != nil {
		t.Fatal(err)
	}
	eval[any](b, `[...document.querySelectorAll('#log-rows details')].find((row) => row.textContent.includes('shop.order.placed')).open = true`)
	b.text("#log-rows pre", `"customer_name": "Ada"`)
	b.click("#log-rows .actions button")
	want := `grpcurl -plaintext -d '{"order_id":"` + id + `"}' ` + strings.TrimPrefix(s.url, "http://") + " shop.logging.v1.EventLogService/ListEvents"
	if got := eval[string](b, "navigator.clipboard.readText()"); got != want {
		t.Errorf("copied %s\nwant   %s", got, want)
	}
}

// The page reads the log and then follows it. Events between the two must be shown as well, also if the log was empty.
func TestPage_TheFirstEventsOfALogAreNotMissed(t *testing.T) {
	t.Parallel()
	s := start(t)
	b := browse(t, s.operatorLink(), before(`
		const real = window.fetch;
		const released = new Promise((resolve) => { window.release = resolve; });
		window.fetch = async (url, options) => {
			if (String(url).startsWith('/v1/events:stream')) {
				window.held = true;
				await released;
			}
			return real(url, options);
		};`))
	b.until("window.held === true")
	s.decided(t, s.place(t, 1, 1))
	eventually(t, func() error {
		if a := s.get(t, "/v1/events?routing_key=shop.order.confirmed"); !strings.Contains(string(a.body), `"routing_key"`) {
			return fmt.Errorf("the log does not have the order yet: %s", a.body)
		}
		return nil
	})
	eval[any](b, "window.release()")
	b.until(`['shop.order.placed', 'shop.order.confirmed'].every((key) => document.querySelector('#log-rows').textContent.includes(key))`)
}

// allowClipboard lets the pages of an origin use the clipboard.
func allowClipboard(origin string) action {
	return chromedp.Func(func(ctx context.Context, _ *chromedp.Target) error {
		for _, name := range []string{"clipboard-read", "clipboard-write"} {
			_, err := chromedp.CallBrowser(ctx, browser.SetPermission, browser.SetPermissionParams{
				Permission: &browser.PermissionDescriptor{Name: name}, Setting: browser.PermissionSettingGranted, Origin: origin,
				BrowserContextID: chromedp.FromContext(ctx).BrowserContextID,
			})
			if err != nil {
				return err
			}
		}
		return nil
	})
}

func TestPage_AWrongTokenMakesNobodyAnOperator(t *testing.T) {
	t.Parallel()
	s := start(t)
	b := browse(t, "about:blank")
	b.mayComplain("status of 401")
	b.do(chromedp.Navigate(s.url + "/#token=guess"))
	b.text("#operator-hint", "not valid here")
	b.text("#role", "customer")
	if kept := eval[any](b, "sessionStorage.getItem('shop.token')"); kept != nil {
		t.Errorf("the tab has kept %v", kept)
	}
}

func TestPage_GoesOnWhereItWasAfterTheGatewayRestarts(t *testing.T) {
	t.Parallel()
	f := newDeployment(t, deploymentOptions{})
	f.up(t)
	b := browse(t, f.operatorLink())
	b.mayComplain("ERR_CONNECTION_REFUSED", "ERR_INCOMPLETE_CHUNKED_ENCODING", "ERR_CONNECTION_RESET", "ERR_EMPTY_RESPONSE", "ERR_SOCKET_NOT_CONNECTED", "status of 503")
	b.order("1", "1")
	b.timeline(confirmedTimeline...)
	gateway := f.replicas["gateway"][0]
	gateway.kill()
	b.text("#connection", "reconnecting")
	// What happens while nobody can tell the page:
	conn, err := grpc.NewClient(f.replicas["order"][0].addr, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	id := eval[string](b, "document.getElementById('slip-id').title")
	if _, err := orderv1.NewOrderServiceClient(conn).CancelOrder(t.Context(), &orderv1.CancelOrderRequest{OrderId: id}); err != nil {
		t.Fatal(err)
	}
	gateway.start(t)
	gateway.waitReady(t)
	b.timeline(append(confirmedTimeline, "shop.order.cancelled")...)
	b.text("#slip-state", "CANCELLED")
	b.text("#connection", "live")
	b.until(`[...document.querySelectorAll('#log-rows .key')].filter((e) => e.textContent === 'shop.order.cancelled').length === 1`)
	if twice := eval[int](b, `(() => { const ids = [...document.querySelectorAll('#log-rows details')].map((row) => row.dataset.id); return ids.length - new Set(ids).size; })()`); twice != 0 {
		t.Errorf("%d events are twice in the log", twice)
	}
}

// At 500 events/s and more the page shows the newest events in their order, up to its maximum of rows.
func TestPage_AFloodOfEventsIsBoundedAndInOrder(t *testing.T) {
	t.Parallel()
	s := start(t)
	b := browse(t, s.operatorLink())
	b.until("document.getElementById('log-state').textContent.includes('events/s')")
	for range 200 { // orders, of five events each
		s.place(t, 2, 1)
	}
	s.settled(t)
	eventually(t, func() error {
		var log struct {
			Events []struct {
				ID string `json:"id"`
			}
		}
		s.get(t, "/v1/events?page_size=1").json(t, &log)
		if got := eval[string](b, "document.querySelector('#log-rows details:last-child')?.dataset.id ?? ''"); got != log.Events[0].ID {
			return fmt.Errorf("the log shows events up to %s of %s", got, log.Events[0].ID)
		}
		return nil
	})
	ids := eval[[]string](b, "[...document.querySelectorAll('#log-rows details')].map((row) => row.dataset.id)")
	if len(ids) != 300 {
		t.Errorf("the log has %d rows", len(ids))
	}
	for i, before := 1, 0; i < len(ids); i++ {
		id, err := strconv.Atoi(ids[i])
		if err != nil || id <= before {
			t.Errorf("event %s comes after event %d", ids[i], before)
		}
		before = id
	}
}

func TestPage_ARaceSellsTheLastPiecesOnceEach(t *testing.T) {
	t.Parallel()
	s := startDemo(t)
	b := browse(t, s.operatorLink())
	b.click("[data-experiment=race] button")
	b.text("[data-experiment=race] .result", "Passed. 50 tried, 10 sold, 40 refused, 0 oversold; audit of 50 orders: 0 violations.")
	b.click("[data-experiment=twice] button")
	b.text("[data-experiment=twice] .result", "Passed. 2 deliveries of each event, 1 effect; stock 10 → 9.")
}

func TestPage_APoisonMessageIsADeadLetterThatCanBeRedriven(t *testing.T) {
	t.Parallel()
	s := startDemo(t)
	b := browse(t, s.operatorLink())
	b.text("#dead-letters", "No open dead letters.")
	b.click("[data-experiment=poison] button")
	b.text("[data-experiment=poison] .result", "; the order behind it was CONFIRMED after ")
	b.text(".letters .letter-what", "shop.order.placed of queue order")
	first := eval[string](b, "document.querySelector('.letters li').dataset.id")
	b.click(".letters summary")
	b.until("document.querySelector('.letters pre').textContent.length > 0")
	b.click(".letters .actions button")
	b.text("#dead-letters .outcome", "was sent to queue order again")
	// It is poison still, and so comes back as another letter.
	b.until("document.querySelector('.letters li[data-id]') && document.querySelector('.letters li').dataset.id !== '" + first + "'")
	b.click(".letters .actions button:last-child")
	b.text("#dead-letters", "No open dead letters.")
}

func TestPage_OrdersWaitForAServiceThatIsStopped(t *testing.T) {
	t.Parallel()
	s := startDemo(t)
	b := browse(t, s.operatorLink())
	b.mayComplain("status of 503")
	b.click("[data-service=order]")
	b.text("[data-service=order]", "Start order")
	b.order("1", "1")
	b.text("#slip-detail", "Checking stock…")
	b.text("#picture .node.queued", "1 waiting")
	b.text("#picture .node.down", "stopped")
	b.text("#health tr.stopped td", "down: ")
	b.click("[data-service=order]")
	b.text("[data-service=order]", "Stop order")
	b.text("#slip-state", "CONFIRMED")
	b.timeline(confirmedTimeline...)
}

// An invented id was once shown as PENDING for as long as the page was open.
func TestPage_AnInventedIDIsNotAnOrderThatWaits(t *testing.T) {
	t.Parallel()
	s := startDemo(t)
	b := browse(t, s.url+"/#order="+uuid.Must(uuid.NewV7()).String())
	b.mayComplain("status of 404")
	b.text("#slip-state", "NOT FOUND")
	b.text("#slip-detail", "There is no order with this id.")
	b.order("5", "1")
	b.text("#slip-state", "CONFIRMED")
}

// violations are what axe-core finds against WCAG 2.2, levels A and AA, that is serious.
const violations = `axe.run(document, {runOnly: ['wcag2a', 'wcag2aa', 'wcag21a', 'wcag21aa', 'wcag22aa', 'best-practice']})
	.then(({violations}) => violations.filter(({impact}) => ['serious', 'critical'].includes(impact))
		.map(({id, nodes}) => id + ': ' + nodes.map((node) => node.html + ' ' + node.failureSummary).join('; ')))`

func TestPage_HasNoSeriousBarrier(t *testing.T) {
	t.Parallel()
	axe, err := os.ReadFile("../third_party/axe-core/axe.min.js")
	if err != nil {
		t.Fatal(err)
	}
	s := startDemo(t)
	s.control(t, "/demo/poison", "", nil)
	for _, scheme := range []string{"light", "dark"} {
		b := browse(t, s.operatorLink(), preferring("prefers-color-scheme", scheme))
		b.order("5", "3")
		b.timeline(confirmedTimeline...)
		b.text("#dead-letters", "shop.order.placed")
		b.text("#health", "ready")
		b.until("document.querySelector('#log-rows details') && document.querySelector('#breaking [data-service]')")
		eval[any](b, "for (const row of document.querySelectorAll('#timeline details, #log-rows details:last-child, .letters details')) row.open = true")
		b.until("document.getAnimations().length === 0 && !document.querySelector('.token, .on')")
		id := eval[string](b, "document.getElementById('slip-id').title")
		for _, address := range []string{"", "/orders/" + id} {
			if address != "" {
				b.do(chromedp.Navigate(s.url + address))
			}
			eval[any](b, string(axe)+"; null")
			for _, v := range eval[[]string](b, violations) {
				t.Errorf("%s, %s: %s", address, scheme, v)
			}
		}
	}
}

// `make screenshots` sets a folder to keep the pictures in; otherwise the test only looks for what does not fit.
func TestPage_FitsEveryScreen(t *testing.T) {
	t.Parallel()
	s := startDemo(t)
	for _, picture := range []struct {
		name string
		set  []action
	}{
		{"light", []action{preferring("prefers-color-scheme", "light")}},
		{"dark", []action{preferring("prefers-color-scheme", "dark")}},
		{"phone", []action{preferring("prefers-color-scheme", "light"), phone()}},
		{"operator", []action{preferring("prefers-color-scheme", "light")}}, // the last: it leaves a dead letter
	} {
		name := picture.name
		b := browse(t, s.operatorLink(), picture.set...)
		b.order("5", "3")
		b.text("#slip-state", "CONFIRMED")
		b.timeline(confirmedTimeline...)
		b.until("document.querySelector('.token')")
		if name == "operator" {
			for _, experiment := range []string{"twice", "poison", "race"} {
				b.click("[data-experiment=" + experiment + "] button")
				b.text("[data-experiment="+experiment+"] .result", "Passed.")
			}
			b.until("document.querySelector('.letters [data-id]')")
			eval[any](b, "document.getElementById('breaking').scrollIntoView()")
		}
		if wide := eval[int](b, "document.documentElement.scrollWidth - innerWidth"); wide > 0 {
			t.Errorf("%s: the page is %d pixels wider than the screen", name, wide)
		}
		if dir := os.Getenv("SCREENSHOTS"); dir != "" {
			b.saveAs(filepath.Join(dir, name+".png"))
		}
	}
}

func (b *tab) saveAs(path string) {
	b.Helper()
	png, err := chromedp.Run(b.ctx, chromedp.CaptureScreenshot())
	if err == nil {
		err = os.WriteFile(path, png, 0o644)
	}
	if err != nil {
		b.Fatalf("taking a screenshot: %v", err)
	}
}
