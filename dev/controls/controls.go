// Package controls serves the calls under /demo, with which an operator injects faults into a running shop to see that its
// guarantees hold. A shop has them only if it runs in one process and was started with them.
//
// Services can be stopped and started (controls.go). An experiment injects one fault and reports in figures what happened:
// many orders at once (race.go, overload.go), messages that come twice, in another order or broken (duplicate.go, disorder.go,
// repair.go), services that die (crash.go), servers that are out of reach or slow (away.go), and what changes while an order
// waits (meanwhile.go). One experiment runs at a time, some for two and most for seven seconds; each
// ends within a minute, with an error if the shop is not done by then. It deletes its products; its orders stay in the log.
package controls

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"

	"shop.example/dev/local"
	"shop.example/gateway/rest"
	inventoryv1 "shop.example/gen/shop/inventory/v1"
	loggingv1 "shop.example/gen/shop/logging/v1"
	"shop.example/platform/apierror"
	"shop.example/shop/audit"
	"shop.example/topology"
)

const (
	// experimentTimeout bounds an experiment, and the wait for a service to start. Most take five to seven seconds, and three times as
	// long on a machine with much else to do. What is answered after a minute, the gateway's limit, reaches nobody.
	experimentTimeout = 40 * time.Second
	// auditTimeout is the part of it that is left for the audit at the end, which waits until nothing is in flight.
	auditTimeout = 10 * time.Second
	lookInterval = 20 * time.Millisecond
)

// Config has what the experiments need.
type Config struct {
	AMQPURLs      map[string]string // by service
	DatabaseURLs  map[string]string // by schema, of roles that may read it
	OperatorToken string
	Currency      string // the catalogue's
}

// Add adds the controls to the shop that cfg describes. Experiments use the broker users and database roles in cfg, so call
// it when those are set.
func Add(cfg *local.Config) {
	cfg.Controls = New(Config{AMQPURLs: cfg.AMQPURLs, DatabaseURLs: cfg.DatabaseURLs, OperatorToken: cfg.OperatorToken, Currency: cfg.Currency})
}

// New returns a value for local.Config.Controls: a function that makes the calls under /demo for a shop.
func New(cfg Config) func(*local.Shop) []rest.DemoHandler {
	return func(shop *local.Shop) []rest.DemoHandler {
		c := &controls{Config: cfg, shop: shop}
		return []rest.DemoHandler{
			{Method: http.MethodGet, Path: "/demo", Call: c.list},
			{Method: http.MethodPost, Path: "/demo/services/{service}/stop", Call: c.stop},
			{Method: http.MethodPost, Path: "/demo/services/{service}/start", Call: c.start},
			{Method: http.MethodPost, Path: "/demo/race", Call: c.experiment((*experiment).race)},
			{Method: http.MethodPost, Path: "/demo/twice", Call: c.experiment((*experiment).duplicate)},
			{Method: http.MethodPost, Path: "/demo/poison", Call: c.experiment((*experiment).poison)},
			{Method: http.MethodPost, Path: "/demo/overload", Call: c.experiment((*experiment).overload)},
			{Method: http.MethodPost, Path: "/demo/price", Call: c.experiment((*experiment).price)},
			{Method: http.MethodPost, Path: "/demo/crash", Call: c.experiment((*experiment).crash)},
			{Method: http.MethodPost, Path: "/demo/disorder", Call: c.experiment((*experiment).disorder)},
			{Method: http.MethodPost, Path: "/demo/replicas", Call: c.experiment((*experiment).replicas)},
			{Method: http.MethodPost, Path: "/demo/compare", Call: c.experiment((*experiment).compare)},
			{Method: http.MethodPost, Path: "/demo/broker", Call: c.experiment((*experiment).broker)},
			{Method: http.MethodPost, Path: "/demo/database", Call: c.experiment((*experiment).database)},
			{Method: http.MethodPost, Path: "/demo/slow", Call: c.experiment((*experiment).slow)},
			{Method: http.MethodPost, Path: "/demo/repair", Call: c.experiment((*experiment).repair)},
			{Method: http.MethodPost, Path: "/demo/audit", Call: c.experiment((*experiment).audit)},
		}
	}
}

type controls struct {
	Config
	shop *local.Shop
	busy sync.Mutex // held by the experiment that runs
	sent []string   // the message ids of poison messages; an experiment has them while it runs

	stepsMu sync.Mutex
	begin   time.Time
	steps   []step // of the experiment that runs, or of the last one
}

// step is what has happened in an experiment, in words.
type step struct {
	After int64  `json:"after_ms"` // since its beginning
	Text  string `json:"text"`
}

// say tells those who watch what happens.
func (c *controls) say(format string, args ...any) {
	c.stepsMu.Lock()
	defer c.stepsMu.Unlock()
	c.steps = append(c.steps, step{time.Since(c.begin).Milliseconds(), fmt.Sprintf(format, args...)})
}

// state is the state of a service in a response.
type state struct {
	Name    string `json:"name"`
	Running bool   `json:"running"`
}

var names = topology.Names()[1:] // all but the gateway, whose page the controls are on

func (c *controls) list(context.Context, map[string]string, []byte) (any, error) {
	var answer struct {
		Services []state `json:"services"`
		Steps    []step  `json:"steps,omitempty"`
	}
	c.stepsMu.Lock()
	answer.Steps = slices.Clone(c.steps)
	c.stepsMu.Unlock()
	for _, name := range names {
		answer.Services = append(answer.Services, state{name, c.shop.Services()[name].Running()})
	}
	return answer, nil
}

func (c *controls) service(inPath map[string]string, body []byte) (*local.Service, error) {
	if err := read(body); err != nil {
		return nil, err
	}
	service, ok := c.shop.Services()[inPath["service"]]
	if !ok {
		return nil, apierror.New(codes.NotFound, "UNKNOWN_SERVICE", "there is no such service to stop or start: there are %s", strings.Join(names, ", "))
	}
	return service, nil
}

func (c *controls) stop(_ context.Context, inPath map[string]string, body []byte) (any, error) {
	service, err := c.service(inPath, body)
	if err != nil {
		return nil, err
	}
	if err := service.Stop(); err != nil {
		return nil, apierror.New(codes.Internal, "SERVICE_NOT_STOPPED_WELL", "the service is stopped, but not cleanly: %v", err)
	}
	return state{inPath["service"], false}, nil
}

func (c *controls) start(ctx context.Context, inPath map[string]string, body []byte) (any, error) {
	service, err := c.service(inPath, body)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, experimentTimeout)
	defer cancel()
	if err := service.Start(ctx); err != nil {
		return nil, apierror.Unavailable("SERVICE_NOT_STARTED", time.Second, "%v", err)
	}
	return state{inPath["service"], true}, nil
}

// experiment is the experiment that is running.
type experiment struct {
	*controls
	gateway  *grpc.ClientConn // of an operator
	products []int32          // that it has made
	undo     []func()         // what is to be put right in the end, the last first
}

func (c *controls) experiment(run func(*experiment, context.Context, []byte) (any, error)) func(context.Context, map[string]string, []byte) (any, error) {
	return func(ctx context.Context, _ map[string]string, body []byte) (any, error) {
		if !c.busy.TryLock() {
			return nil, apierror.New(codes.Aborted, "EXPERIMENT_RUNNING", "another experiment is running; try again when it has ended")
		}
		defer c.busy.Unlock()
		c.stepsMu.Lock()
		c.begin, c.steps = time.Now(), nil
		c.stepsMu.Unlock()
		conn, err := grpc.NewClient(c.shop.Gateway.HTTPAddr(), grpc.WithTransportCredentials(insecure.NewCredentials()))
		if err != nil {
			return nil, fmt.Errorf("calling the gateway: %w", err)
		}
		defer conn.Close()
		ctx, cancel := context.WithTimeout(ctx, experimentTimeout)
		defer cancel()
		ctx = metadata.AppendToOutgoingContext(ctx, "authorization", "Bearer "+c.OperatorToken)
		e := &experiment{controls: c, gateway: conn}
		defer e.cleanUp(ctx)
		return run(e, ctx, body)
	}
}

// cleanUp puts right what the experiment has changed, and deletes its products. One that cannot be deleted stays in the
// catalogue, which does no harm.
func (e *experiment) cleanUp(ctx context.Context) {
	for _, undo := range slices.Backward(e.undo) {
		undo()
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), auditTimeout)
	defer cancel()
	for _, id := range e.products {
		_, _ = inventoryv1.NewInventoryServiceClient(e.gateway).DeleteItem(ctx, &inventoryv1.DeleteItemRequest{Id: id})
	}
}

// until calls look until it returns true. If ctx ends before, the error says what was awaited, and which services are
// stopped.
func (e *experiment) until(ctx context.Context, what string, look func() bool) error {
	tick := time.NewTicker(lookInterval)
	defer tick.Stop()
	for !look() {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return e.late(what)
		}
	}
	return nil
}

func (e *experiment) late(what string) error {
	var stopped []string
	for _, name := range names {
		if !e.shop.Services()[name].Running() {
			stopped = append(stopped, name)
		}
	}
	if len(stopped) > 0 {
		what += "; stopped: " + strings.Join(stopped, ", ")
	}
	return apierror.New(codes.DeadlineExceeded, "EXPERIMENT_TIMED_OUT", "%s", what)
}

// verdict is the summary of an audit.
type verdict struct {
	Orders     int `json:"orders"` // that were looked at
	Violations int `json:"violations"`
	InFlight   int `json:"in_flight"`
}

type auditAnswer struct {
	verdict
	Seconds  float64           `json:"seconds"`
	Findings []audit.Violation `json:"findings"`
	// DeadLetters are open: they wait for a person and contradict nothing. Sent of them are poison of these experiments.
	DeadLetters int `json:"dead_letters"`
	Sent        int `json:"sent"`
}

// audit compares everything that the services have stored, once, and reports it, as shop audit --report does. An open dead
// letter is no violation here.
func (e *experiment) audit(ctx context.Context, body []byte) (any, error) {
	if err := read(body); err != nil {
		return nil, err
	}
	r, err := e.auditSince(ctx, 0, 0)
	if err != nil {
		return nil, err
	}
	if _, err := loggingv1.NewAuditServiceClient(e.gateway).ReportAudit(ctx, &loggingv1.ReportAuditRequest{Report: r.Message()}); err != nil {
		return nil, err
	}
	answer := auditAnswer{verdict: newVerdict(r), Seconds: r.Took.Seconds(), Findings: slices.DeleteFunc(r.Violations, func(v audit.Violation) bool {
		return v.Check == audit.DeadLetters
	})}
	for _, c := range r.Checks {
		if c.Check == audit.DeadLetters {
			answer.DeadLetters = c.Violations
		}
	}
	for _, id := range e.sent {
		letters, err := loggingv1.NewDeadLetterServiceClient(e.gateway).ListDeadLetters(ctx, &loggingv1.ListDeadLettersRequest{MessageId: id, State: loggingv1.DeadLetter_OPEN})
		if err != nil {
			return nil, err
		}
		answer.Sent += len(letters.GetDeadLetters())
	}
	return answer, nil
}

// newVerdict summarizes the report of an audit, without open dead letters.
func newVerdict(r *audit.Report) verdict {
	v := verdict{Orders: r.Orders, InFlight: r.InFlight()}
	for _, c := range r.Checks {
		if c.Check != audit.DeadLetters {
			v.Violations += c.Violations
		}
	}
	return v
}

// auditSince audits the orders that are not older than since, and waits up to atMost until nothing is in flight.
func (e *experiment) auditSince(ctx context.Context, since, atMost time.Duration) (r *audit.Report, err error) {
	a, err := audit.Open(ctx, audit.Config{DatabaseURLs: e.DatabaseURLs, Since: since, Pause: 200 * time.Millisecond})
	if err == nil {
		defer a.Close()
		r, err = a.RunWhenQuiet(ctx, atMost)
	}
	switch {
	case ctx.Err() != nil:
		return nil, e.late("the audit has not ended in time; shop audit has all the time it needs")
	case err != nil:
		return nil, apierror.Unavailable("AUDIT_FAILED", time.Second, "%v", err)
	}
	return r, nil
}

// number is a field of a request's body, with its default as the value.
type number struct {
	name     string
	min, max int
	value    *int
}

// read reads whole numbers from a body, which may be empty. Errors name the fields.
func read(body []byte, numbers ...number) error {
	given := map[string]json.RawMessage{}
	if len(bytes.TrimSpace(body)) > 0 {
		if err := json.Unmarshal(body, &given); err != nil {
			return apierror.New(codes.InvalidArgument, "INVALID_JSON", "the body is not a JSON object")
		}
	}
	var violations []apierror.Violation
	for _, n := range numbers {
		raw, ok := given[n.name]
		delete(given, n.name)
		if !ok {
			continue
		}
		if json.Unmarshal(raw, n.value) != nil || *n.value < n.min || *n.value > n.max {
			violations = append(violations, apierror.Violation{
				Field: n.name, Description: fmt.Sprintf("must be a whole number from %d to %d", n.min, n.max),
			})
		}
	}
	for _, name := range slices.Sorted(maps.Keys(given)) {
		violations = append(violations, apierror.Violation{Field: name, Description: "unknown field"})
	}
	if len(violations) > 0 {
		return apierror.InvalidArgument(violations...)
	}
	return nil
}
