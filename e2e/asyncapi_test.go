package e2e

import (
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"regexp"
	"slices"
	"testing"

	amqp "github.com/rabbitmq/amqp091-go"
	"github.com/santhosh-tekuri/jsonschema/v6"
	"go.yaml.in/yaml/v3"

	"shop.example/gen/asyncapi"
	"shop.example/platform/contract"
)

// asyncAPI returns the document as a JSON value.
func asyncAPI(t *testing.T) any {
	t.Helper()
	var read any
	if err := yaml.Unmarshal(asyncapi.Shop, &read); err != nil {
		t.Fatal(err)
	}
	text, err := json.Marshal(read)
	if err != nil {
		t.Fatal(err)
	}
	var document any
	if err := json.Unmarshal(text, &document); err != nil {
		t.Fatal(err)
	}
	return document
}

func compile(t *testing.T, document any, at string) *jsonschema.Schema {
	t.Helper()
	const url = "https://shop.example/document.json"
	c := jsonschema.NewCompiler()
	c.DefaultDraft(jsonschema.Draft7)
	c.AssertFormat()
	if err := c.AddResource(url, document); err != nil {
		t.Fatal(err)
	}
	s, err := c.Compile(url + at)
	if err != nil {
		t.Fatalf("%s: %v", at, err)
	}
	return s
}

func TestAsyncAPI_IsValidByTheSchemaOfAsyncAPI(t *testing.T) {
	t.Parallel()
	file, err := os.Open("../third_party/asyncapi/asyncapi-3.0.0.json")
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	schema, err := jsonschema.UnmarshalJSON(file)
	if err != nil {
		t.Fatal(err)
	}
	compiled := compile(t, schema, "")
	document := asyncAPI(t)
	if err := compiled.Validate(document); err != nil {
		t.Error(err)
	}
	// A schema that takes everything would show nothing.
	delete(document.(map[string]any), "info")
	if compiled.Validate(document) == nil {
		t.Error("a document without info is taken for valid")
	}
}

func TestAsyncAPI_HasAChannelForEachEvent(t *testing.T) {
	t.Parallel()
	var described []string
	for _, channel := range asyncAPI(t).(map[string]any)["channels"].(map[string]any) {
		if address, ok := channel.(map[string]any)["address"].(string); ok {
			described = append(described, address)
		}
	}
	check, err := contract.MethodOf("/shop.inventory.v1.StockService/CheckStock")
	if err != nil {
		t.Fatal(err)
	}
	published := []string{check.RoutingKey}
	for _, event := range contract.Events() {
		published = append(published, event.RoutingKey)
	}
	slices.Sort(described)
	slices.Sort(published)
	if !slices.Equal(described, published) {
		t.Errorf("described are %q, published are %q", described, published)
	}
}

func TestAsyncAPI_DescribesTheEventsThatWerePublished(t *testing.T) {
	t.Parallel()
	s := start(t)
	confirmed := s.decided(t, s.place(t, 5, 3))
	s.decided(t, s.place(t, 1, 99999)) // is rejected
	s.settled(t)
	if a := s.call(t, http.MethodPost, "/v1/orders/"+confirmed.ID+":cancel", "{}"); a.code != http.StatusOK {
		t.Fatalf("cancelling: %d %s", a.code, a.body)
	}
	s.get(t, "/intermediary/inventory")
	document := asyncAPI(t)
	wanted := []string{
		"shop.order.placed", "shop.order.confirmed", "shop.order.rejected", "shop.order.cancelled",
		"shop.inventory.decrement.quantity", "shop.inventory.list", "shop.stock.changed",
	}
	var log struct {
		Events []struct {
			RoutingKey string `json:"routing_key"`
			Payload    any
		}
	}
	eventually(t, func() error {
		s.get(t, "/v1/events?page_size=1000").json(t, &log)
		for _, key := range wanted {
			if !slices.ContainsFunc(log.Events, func(e struct {
				RoutingKey string `json:"routing_key"`
				Payload    any
			}) bool {
				return e.RoutingKey == key
			}) {
				return fmt.Errorf("no event %s in the log", key)
			}
		}
		return nil
	})
	for _, e := range log.Events {
		event, ok := contract.ByRoutingKey(e.RoutingKey)
		if !ok {
			t.Errorf("an event with the routing key %s", e.RoutingKey)
			continue
		}
		if err := compile(t, document, "#/components/schemas/"+string(event.Name.Name())).Validate(e.Payload); err != nil {
			t.Errorf("%s: %v", event.Name, err)
		}
	}
}

// Readers of events take values that they do not know: a receiver that was made before a reason came must not refuse the event.
func TestAsyncAPI_AnEventWithANewReasonIsValid(t *testing.T) {
	t.Parallel()
	rejected := compile(t, asyncAPI(t), "#/components/schemas/OrderRejected")
	event := map[string]any{"order_id": "01970000-0000-7000-8000-000000000000", "rejected_at": "2026-05-01T12:00:00Z", "reason": "OUT_OF_STOCK"}
	if err := rejected.Validate(event); err != nil {
		t.Fatal(err)
	}
	event["reason"] = "OF_A_LATER_RELEASE"
	if err := rejected.Validate(event); err != nil {
		t.Error(err)
	}
	event["reason"] = 3.0
	if rejected.Validate(event) == nil {
		t.Error("a number is taken for a reason")
	}
}

// A call is worth nothing when nobody waits for it, so it does not have to outlive the broker.
func TestAsyncAPI_EventsArePersistentAndCallsAreNot(t *testing.T) {
	t.Parallel()
	operations := asyncAPI(t).(map[string]any)["operations"].(map[string]any)
	for name, want := range map[string]uint8{"order-sends-CheckStockRequest": amqp.Transient, "gateway-sends-OrderPlaced": amqp.Persistent} {
		o, _ := operations[name].(map[string]any)
		bindings, _ := o["bindings"].(map[string]any)
		if binding, _ := bindings["amqp"].(map[string]any); binding["deliveryMode"] != float64(want) {
			t.Errorf("%s: %v, want the delivery mode %v", name, bindings, want)
		}
	}
}

// Readers of YAML 1.1, most of those in Python and Ruby, take 1e+09 for a text.
func TestAsyncAPI_NumbersAreNumbersInYAML11(t *testing.T) {
	t.Parallel()
	var document yaml.Node
	if err := yaml.Unmarshal(asyncapi.Shop, &document); err != nil {
		t.Fatal(err)
	}
	inYAML11 := regexp.MustCompile(`^-?[0-9]+(\.[0-9]*)?$`)
	numbers := 0
	var look func(*yaml.Node)
	look = func(n *yaml.Node) {
		if n.Tag == "!!int" || n.Tag == "!!float" {
			numbers++
			if !inYAML11.MatchString(n.Value) {
				t.Errorf("line %d: %s is a text in YAML 1.1", n.Line, n.Value)
			}
		}
		for _, child := range n.Content {
			look(child)
		}
	}
	look(&document)
	if numbers < 10 {
		t.Errorf("only %d numbers were found", numbers)
	}
}
