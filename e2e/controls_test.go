package e2e

import (
	"fmt"
	"maps"
	"net/http"
	"strings"
	"testing"
	"time"

	"shop.example/db/dbtest"
	"shop.example/dev/controls"
	"shop.example/dev/local"
	"shop.example/platform/testkit/brokertest"
	"shop.example/topology"
)

// startDemo starts a shop with the controls under /demo. Its services keep their addresses when they are restarted.
func startDemo(t *testing.T) *shop {
	t.Helper()
	broker, database := brokertest.New(t), dbtest.New(t)
	cfg := config(t, database, broker.Services(t, topology.Broker()))
	for variable, addr := range cfg.Addrs() {
		if variable != "HTTP_ADDR" && variable != "ADMIN_ADDR" {
			*addr = freeAddr(t)
		}
	}
	cfg.Controls = controls.New(controls.Config{
		AMQPURLs: cfg.AMQPURLs, DatabaseURLs: cfg.DatabaseURLs, OperatorToken: operatorToken, Currency: cfg.Currency,
	})
	s, err := local.New(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	run(t, s)
	return &shop{Shop: s, url: "http://" + s.Gateway.HTTPAddr(), database: database, broker: broker}
}

// control calls a control, which must answer with 200, and reads its answer.
func (s *shop) control(t *testing.T, path, body string, answer any) {
	t.Helper()
	a := s.call(t, http.MethodPost, path, body, "Authorization", "Bearer "+operatorToken)
	if a.code != http.StatusOK {
		t.Fatalf("POST %s: %d %s", path, a.code, a.body)
	}
	if answer != nil {
		a.json(t, answer)
	}
}

var allControls = []string{
	"GET /demo", "POST /demo/services/order/stop", "POST /demo/services/order/start", "POST /demo/race", "POST /demo/twice",
	"POST /demo/poison", "POST /demo/audit", "POST /demo/overload", "POST /demo/price", "POST /demo/crash", "POST /demo/disorder",
	"POST /demo/replicas", "POST /demo/compare", "POST /demo/broker", "POST /demo/database", "POST /demo/slow", "POST /demo/repair",
}

func TestControls_AreNotThereUnlessAskedFor(t *testing.T) {
	t.Parallel()
	s := start(t)
	for _, call := range allControls {
		method, path, _ := strings.Cut(call, " ")
		a := s.call(t, method, path, "", "Authorization", "Bearer "+operatorToken)
		if a.code != http.StatusNotFound || !strings.Contains(string(a.body), "UNKNOWN_PATH") {
			t.Errorf("%s: %d %s", call, a.code, a.body)
		}
	}
}

func TestControls_AreForOperatorsAndSayWhatIsWrong(t *testing.T) {
	t.Parallel()
	s := startDemo(t)
	for _, call := range allControls {
		method, path, _ := strings.Cut(call, " ")
		for _, token := range []string{"", "Bearer guess"} {
			header := []string{"Authorization", token}
			if token == "" {
				header = nil
			}
			if a := s.call(t, method, path, "", header...); a.code != http.StatusUnauthorized || !strings.Contains(string(a.body), "OPERATOR_TOKEN_") {
				t.Errorf("%s with %q: %d %s", call, token, a.code, a.body)
			}
		}
	}
	if !s.Order.Running() {
		t.Fatal("somebody without the token has stopped the order service")
	}
	for _, test := range []struct {
		call, body string
		code       int
		says       string
	}{
		{"POST /demo/race", `{"buyers":0}`, 400, `"buyers","description":"must be a whole number from 1 to 500"`},
		{"POST /demo/race", `{"buyers":501,"stock":-1}`, 400, `"stock","description":"must be a whole number from 1 to 500"`},
		{"POST /demo/race", `{"stock":"ten"}`, 400, `"stock"`},
		{"POST /demo/race", `{"stock":1.5}`, 400, `"stock"`},
		{"POST /demo/race", `{"prize":1}`, 400, `"prize","description":"unknown field"`},
		{"POST /demo/race", `[1]`, 400, `INVALID_JSON`},
		{"POST /demo/twice", `{"times":3}`, 400, `"times","description":"unknown field"`},
		{"POST /demo/services/order/stop", `{"kill":true}`, 400, `"kill","description":"unknown field"`},
		{"POST /demo/services/gateway/stop", ``, 404, "there are " + strings.Join(topology.Names()[1:], ", ")},
		{"GET /demo/race", ``, 405, `POST only`},
		{"GET /demo/nothing", ``, 404, `UNKNOWN_PATH`},
	} {
		method, path, _ := strings.Cut(test.call, " ")
		a := s.call(t, method, path, test.body, "Authorization", "Bearer "+operatorToken)
		if a.code != test.code || !strings.Contains(strings.ReplaceAll(string(a.body), " ", ""), strings.ReplaceAll(test.says, " ", "")) {
			t.Errorf("%s %s: %d %s, want %d with %s", test.call, test.body, a.code, a.body, test.code, test.says)
		}
	}
}

func TestControls_ARaceSellsWhatThereIsAndNoMore(t *testing.T) {
	t.Parallel()
	s := startDemo(t)
	var got struct {
		ProductID                      int `json:"product_id"`
		Tried, Sold, Refused, Oversold int
		Seconds                        float64
		Audit                          struct{ Orders, Violations int }
	}
	s.control(t, "/demo/race", `{"buyers":60,"stock":7}`, &got)
	if got.Tried != 60 || got.Sold != 7 || got.Refused != 53 || got.Oversold != 0 || got.Seconds <= 0 || got.Audit.Orders != 60 || got.Audit.Violations != 0 {
		t.Errorf("the race: %+v", got)
	}
	for _, i := range s.settled(t) {
		if i.ID == got.ProductID || strings.HasPrefix(i.Name, "Last pieces ") {
			t.Errorf("the race has left a product behind: %+v", i)
		}
	}
	s.control(t, "/demo/race", ``, &got)
	if got.Tried != 50 || got.Sold != 10 {
		t.Errorf("a race as it is by default: %+v", got)
	}
}

func TestControls_AnEventDeliveredTwiceHasOneEffect(t *testing.T) {
	t.Parallel()
	s := startDemo(t)
	for range 2 {
		var got struct {
			OrderID             string `json:"order_id"`
			Deliveries, Effects int
			Before              int `json:"stock_before"`
			After               int `json:"stock_after"`
		}
		s.control(t, "/demo/twice", ``, &got)
		if got.Deliveries != 2 || got.Effects != 1 || got.Before != 10 || got.After != 9 {
			t.Errorf("twice: %+v", got)
		}
		if o := s.decided(t, "/v1/orders/"+got.OrderID); o.State != "CONFIRMED" || o.TotalItems != 1 {
			t.Errorf("the order: %+v", o)
		}
	}
	for name, admin := range map[string]string{"order": s.Order.AdminAddr(), "inventory": s.Inventory.AdminAddr()} {
		if n := consumed(t, admin, name, "handled"); n < 4 {
			t.Errorf("%s has handled %d messages, want each of its 2 twice", name, n)
		}
	}
	if r, err := auditor(t, s).RunWhenQuiet(t.Context(), testTimeout); err != nil || r.Count() != 0 {
		t.Errorf("the audit: %+v, %v", r, err)
	}
}

func TestControls_PoisonEndsAsADeadLetterThatIsNoViolation(t *testing.T) {
	t.Parallel()
	s := startDemo(t)
	var poison struct {
		MessageID    string  `json:"message_id"`
		DeadLetterID string  `json:"dead_letter_id"`
		OrderID      string  `json:"order_id"`
		State        string  `json:"state"`
		Seconds      float64 `json:"seconds"`
		StockBefore  int     `json:"stock_before"`
		StockAfter   int     `json:"stock_after"`
	}
	s.control(t, "/demo/poison", ``, &poison)
	// Of the orders behind it the experiment promised something, and placed none.
	if poison.State != "CONFIRMED" || poison.Seconds <= 0 || poison.StockBefore-poison.StockAfter != 1 || s.decided(t, "/v1/orders/"+poison.OrderID).State != "CONFIRMED" {
		t.Errorf("the order behind it: %+v", poison)
	}
	var l deadLetter
	s.get(t, "/v1/dead-letters/"+poison.DeadLetterID).json(t, &l)
	if l.MessageID != poison.MessageID || l.SourceQueue != "order" || l.Attempts != 1 || l.State != "OPEN" {
		t.Errorf("dead letter %+v", l)
	}
	var got struct {
		Orders, Violations, Sent int
		DeadLetters              int `json:"dead_letters"`
		Findings                 []struct{ Check, Detail string }
	}
	s.control(t, "/demo/audit", ``, &got)
	if got.Violations != 0 || len(got.Findings) != 0 || got.DeadLetters != 1 || got.Sent != 1 {
		t.Errorf("the audit: %+v", got)
	}
	if a := s.post(t, l.path()+":discard"); a.code != http.StatusOK {
		t.Errorf("discarding: %d %s", a.code, a.body)
	}
	s.control(t, "/demo/audit", ``, &got)
	if got.Violations != 0 || got.DeadLetters != 0 || got.Sent != 0 {
		t.Errorf("the audit: %+v", got)
	}
}

// verdict is what the experiments report, each the part that it has.
type verdict struct {
	Orders, Room, Attempts, Refused, Accepted, Unpublished, Lost, Doubled, Before, Expected, Price int
	Waiting, Effects, Stock, Open, Promised                                                        int

	RetryAfter    int `json:"retry_after"`
	StockBefore   int `json:"stock_before"`
	StockAfter    int `json:"stock_after"`
	InVain        int `json:"in_vain"`
	Seconds, Cut  float64
	Slowest       float64
	State, Reason string
	Usual, Waited string
	Audit         struct{ Orders, Violations int }
}

// Each experiment breaks something, and puts it right again.
func TestControls_WhatBreaksLosesAndDoublesNothing(t *testing.T) {
	t.Parallel()
	s := startDemo(t)
	before := s.stock(t)
	for _, experiment := range []struct {
		name  string
		holds func(v verdict) bool
	}{
		{"crash", func(v verdict) bool { return v.Orders == 20 && v.Unpublished == 40 && v.StockAfter == v.StockBefore-20 }},
		{"disorder", func(v verdict) bool { return v.State == "CANCELLED" && v.StockBefore == 10 && v.StockAfter == 10 }},
		{"price", func(v verdict) bool {
			return v.State == "REJECTED" && v.Reason == "PRICE_CHANGED" && v.Expected == 10 && v.Price == 12 && v.StockAfter == v.StockBefore
		}},
		{"overload", func(v verdict) bool {
			return v.Orders == 120 && v.Accepted == 120 && v.Refused > 0 && v.Attempts == 120+v.Refused && v.RetryAfter > 0 && v.StockAfter == v.StockBefore-120
		}},
		{"replicas", func(v verdict) bool {
			return v.Orders == 120 && v.Before > 0 && v.Before < 120 && v.StockAfter == v.StockBefore-120
		}},
		{"broker", func(v verdict) bool {
			return v.Orders == 60 && v.Promised == 0 && v.Accepted == 60 && v.Attempts == 60+v.Refused && v.Cut >= 2 && v.Slowest > 1 && v.StockAfter == v.StockBefore-60
		}},
		{"database", func(v verdict) bool {
			return v.Orders == 60 && v.Waiting > 0 && v.Waiting <= v.Orders && v.Slowest < 2 && v.StockAfter == v.StockBefore-60
		}},
		{"slow", func(v verdict) bool {
			return v.Orders == 120 && v.Waiting > 0 && v.Slowest < 2 && v.StockAfter == v.StockBefore-120
		}},
		{"repair", func(v verdict) bool {
			return v.InVain == 1 && v.Effects == 1 && v.Expected == 7 && v.Stock == 7 && v.Open == 0 && strings.Contains(v.Reason, "ITEM_EXISTS")
		}},
		{"compare", func(v verdict) bool { return v.Usual != v.Waited && v.Seconds > 2 && v.StockAfter == v.StockBefore-2 }},
	} {
		var v verdict
		begin := time.Now()
		s.control(t, "/demo/"+experiment.name, "", &v)
		t.Logf("%s, in %.1f s: %+v", experiment.name, time.Since(begin).Seconds(), v)
		if !experiment.holds(v) || v.Lost != 0 || v.Doubled != 0 || v.Audit.Violations != 0 {
			t.Errorf("%s: %+v", experiment.name, v)
		}
		var demo struct{ Steps []struct{ Text string } }
		if a := s.get(t, "/demo"); a.code != http.StatusOK {
			t.Errorf("GET /demo: %d %s", a.code, a.body)
		} else if a.json(t, &demo); len(demo.Steps) < 3 {
			t.Errorf("%s has told of %v", experiment.name, demo.Steps)
		}
	}
	if after := s.settled(t); !maps.Equal(before, after) {
		t.Errorf("the catalogue was %+v\nand is        %+v", before, after)
	}
	if names := s.demo(t); strings.Contains(names, `"running":false`) {
		t.Errorf("the experiments have left a service stopped: %s", names)
	}
	if r, err := auditor(t, s).RunWhenQuiet(t.Context(), testTimeout); err != nil || r.Count() != 0 || r.InFlight() != 0 {
		t.Errorf("the audit: %+v, %v", r, err)
	}
}

func (s *shop) demo(t *testing.T) string {
	t.Helper()
	a := s.get(t, "/demo")
	if a.code != http.StatusOK {
		t.Fatalf("GET /demo: %d %s", a.code, a.body)
	}
	return strings.TrimSpace(string(a.body))
}

func TestControls_OrdersAreTakenWhileTheOrderServiceIsStoppedAndDecidedWhenItIsBack(t *testing.T) {
	t.Parallel()
	s := startDemo(t)
	grpcAddr, adminAddr := s.Order.GRPCAddr(), s.Order.AdminAddr()
	for range 2 { // twice is as good as once
		s.control(t, "/demo/services/order/stop", ``, nil)
	}
	var states []string
	for _, name := range topology.Names()[1:] {
		states = append(states, fmt.Sprintf(`{"name":"%s","running":%t}`, name, name != topology.Order))
	}
	if got, want := s.demo(t), `{"services":[`+strings.Join(states, ",")+`]}`; got != want {
		t.Errorf("GET /demo: %s, want %s", got, want)
	}
	var locations []string
	for range 20 {
		locations = append(locations, s.place(t, 1, 1))
	}
	eventually(t, func() error {
		if st := s.status(t); len(st.unready()) != 1 || st.Services[0].Ready || st.waiting("order") != 20 || st.OrdersPerSecond != nil {
			return fmt.Errorf("status %+v", st)
		}
		return nil
	})
	s.control(t, "/demo/services/order/start", ``, nil)
	s.control(t, "/demo/services/order/start", ``, nil)
	for _, location := range locations {
		if o := s.decided(t, location); o.State != "CONFIRMED" {
			t.Errorf("%s is %s %s", location, o.State, o.Reason)
		}
	}
	if s.Order.GRPCAddr() != grpcAddr || s.Order.AdminAddr() != adminAddr {
		t.Error("it has other addresses now")
	}
	if items := s.settled(t); items["Laptop"].OnHand != 30 {
		t.Errorf("Laptop: %+v", items["Laptop"])
	}
	eventually(t, func() error {
		if st := s.status(t); len(st.unready()) > 0 || st.waiting("order") != 0 {
			return fmt.Errorf("status %+v", st)
		}
		return nil
	})
}

func TestControls_TheLogHasEverythingOnceAfterLoggingWasStopped(t *testing.T) {
	t.Parallel()
	s := startDemo(t)
	s.control(t, "/demo/services/logging/stop", ``, nil)
	s.control(t, "/demo/services/inventory/stop", ``, nil)
	var locations []string
	for range 5 {
		locations = append(locations, s.place(t, 2, 1))
	}
	s.control(t, "/demo/services/inventory/start", ``, nil)
	for _, location := range locations {
		if o := s.decided(t, location); o.State != "CONFIRMED" {
			t.Errorf("%s is %s %s", location, o.State, o.Reason)
		}
	}
	s.control(t, "/demo/services/logging/start", ``, nil)
	for _, location := range locations {
		eventually(t, func() error {
			var log struct{ Events []eventRow }
			a := s.get(t, location+"/events")
			if a.code != http.StatusOK {
				return fmt.Errorf("%d %s", a.code, a.body)
			}
			a.json(t, &log)
			if len(log.Events) < 3 {
				return fmt.Errorf("the log has %+v", log.Events)
			}
			return nil
		})
	}
	// Among others: every event is there, and there once.
	if r, err := auditor(t, s).RunWhenQuiet(t.Context(), testTimeout); err != nil || r.Count() != 0 || r.InFlight() != 0 {
		t.Errorf("the audit: %+v, %v", r, err)
	}
}

// An experiment that cannot finish ends in time, with an error that says what is missing. Others are refused meanwhile, and
// what it has left undone is done later.
func TestControls_AnExperimentThatCannotFinishSaysWhatIsStopped(t *testing.T) {
	t.Parallel()
	s := startDemo(t)
	s.control(t, "/demo/services/order/stop", ``, nil)
	const path = "/demo/race"
	ended := make(chan answer, 1)
	begin := time.Now()
	go func() {
		ended <- s.call(t, http.MethodPost, path, `{"buyers":3,"stock":2}`, "Authorization", "Bearer "+operatorToken)
	}()
	eventually(t, func() error {
		if waiting := s.status(t).waiting("order"); waiting != 3 {
			return fmt.Errorf("%d orders wait", waiting)
		}
		return nil
	})
	if a := s.post(t, "/demo/poison"); a.code != http.StatusConflict || !strings.Contains(string(a.body), "EXPERIMENT_RUNNING") {
		t.Errorf("a second experiment: %d %s", a.code, a.body)
	}
	a := <-ended
	if a.code != http.StatusGatewayTimeout || !strings.Contains(string(a.body), "stopped: order") || time.Since(begin) > testTimeout {
		t.Errorf("after %s: %d %s", time.Since(begin), a.code, a.body)
	}
	s.control(t, "/demo/services/inventory/stop", ``, nil)
	if a := s.post(t, path); a.code != http.StatusServiceUnavailable || !strings.Contains(string(a.body), "inventory service") {
		t.Errorf("without inventory: %d %s", a.code, a.body)
	}
	s.control(t, "/demo/services/order/start", ``, nil)
	s.control(t, "/demo/services/inventory/start", ``, nil)
	if r, err := auditor(t, s).RunWhenQuiet(t.Context(), testTimeout); err != nil || r.Orders != 3 || r.Count() != 0 || r.InFlight() != 0 {
		t.Errorf("the audit: %+v, %v", r, err)
	}
}
