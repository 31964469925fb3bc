package provision

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"

	amqp "github.com/rabbitmq/amqp091-go"

	"shop.example/platform/contract"
	"shop.example/platform/messaging"
)

// definitions are RabbitMQ's.
type definitions struct {
	Users            []user            `json:"users,omitempty"`
	Permissions      []permission      `json:"permissions,omitempty"`
	TopicPermissions []topicPermission `json:"topic_permissions,omitempty"`
	Policies         []policy          `json:"policies"`
	Exchanges        []exchange        `json:"exchanges"`
	Queues           []queue           `json:"queues"`
	Bindings         []binding         `json:"bindings"`
}

type user struct {
	Name     string   `json:"name"`
	Password string   `json:"password,omitempty"`
	Tags     []string `json:"tags"`
}

// permission has regular expressions that say what a user may do in a virtual host; configure means to declare and delete.
type permission struct {
	User      string `json:"user"`
	Vhost     string `json:"vhost"`
	Configure string `json:"configure"`
	Write     string `json:"write"`
	Read      string `json:"read"`
}

// topicPermission has regular expressions for the routing keys of a topic exchange that a user may publish and bind.
type topicPermission struct {
	User     string `json:"user"`
	Vhost    string `json:"vhost"`
	Exchange string `json:"exchange"`
	Write    string `json:"write"`
	Read     string `json:"read"`
}

type policy struct {
	Vhost      string         `json:"vhost"`
	Name       string         `json:"name"`
	Pattern    string         `json:"pattern"`
	ApplyTo    string         `json:"apply-to"`
	Priority   int            `json:"priority"`
	Definition map[string]any `json:"definition"`
}

type exchange struct {
	Name       string         `json:"name"`
	Vhost      string         `json:"vhost,omitempty"`
	Type       string         `json:"type"`
	Durable    bool           `json:"durable"`
	AutoDelete bool           `json:"auto_delete"`
	Internal   bool           `json:"internal"`
	Arguments  map[string]any `json:"arguments"`
}

type queue struct {
	Name       string         `json:"name"`
	Vhost      string         `json:"vhost,omitempty"`
	Durable    bool           `json:"durable"`
	AutoDelete bool           `json:"auto_delete"`
	Arguments  map[string]any `json:"arguments"`
}

type binding struct {
	Source          string         `json:"source"`
	Vhost           string         `json:"vhost,omitempty"`
	Destination     string         `json:"destination"`
	DestinationType string         `json:"destination_type"`
	RoutingKey      string         `json:"routing_key"`
	Arguments       map[string]any `json:"arguments"`
	PropertiesKey   string         `json:"properties_key,omitempty"` // by which the broker knows it
}

// JSON returns the definitions of the topology as a file that RabbitMQ imports: for the virtual host /, with the rights of
// users that are named as their services. The users themselves are not in it; whoever runs the broker creates them.
func JSON(t messaging.Topology) ([]byte, error) {
	d := define(t, "/")
	for _, s := range t.Services {
		d.grant(t, s.Name, Login{User: s.Name})
	}
	d.Users = nil
	var lines bytes.Buffer
	lines.WriteString("{\n")
	for i, section := range []struct {
		name    string
		entries []any
	}{
		{"permissions", entries(d.Permissions)}, {"topic_permissions", entries(d.TopicPermissions)}, {"policies", entries(d.Policies)},
		{"exchanges", entries(d.Exchanges)}, {"queues", entries(d.Queues)}, {"bindings", entries(d.Bindings)},
	} {
		if i > 0 {
			lines.WriteString(",\n")
		}
		fmt.Fprintf(&lines, "  %q: [", section.name)
		for j, entry := range section.entries { // one a line, for people to compare
			text, err := json.Marshal(entry)
			if err != nil {
				return nil, fmt.Errorf("writing the definitions of the broker: %w", err)
			}
			if j > 0 {
				lines.WriteString(",")
			}
			fmt.Fprintf(&lines, "\n    %s", text)
		}
		lines.WriteString("\n  ]")
	}
	lines.WriteString("\n}\n")
	return lines.Bytes(), nil
}

func entries[T any](list []T) []any {
	all := make([]any, len(list))
	for i := range list {
		all[i] = list[i]
	}
	return all
}

// define returns the topology in a virtual host, without users.
func define(t messaging.Topology, vhost string) *definitions {
	d := &definitions{}
	for _, e := range t.Exchanges() {
		d.Exchanges = append(d.Exchanges, exchange{Name: e.Name, Vhost: vhost, Type: e.Kind, Durable: true, Arguments: map[string]any{}})
	}
	for _, q := range t.Queues() {
		d.Queues = append(d.Queues, queue{Name: q.Name, Vhost: vhost, Durable: true, Arguments: q.Args})
		for _, key := range q.Keys {
			d.Bindings = append(d.Bindings, binding{Source: q.Exchange, Vhost: vhost, Destination: q.Name, DestinationType: "queue", RoutingKey: key, Arguments: map[string]any{}})
		}
	}
	var consumers []string
	for _, s := range t.Services {
		if s.Consumes() {
			consumers = append(consumers, s.Name)
		}
	}
	const spread = "queue-leader-locator" // where the leader of a new queue is: RabbitMQ's default is where it was declared
	d.Policies = []policy{
		{
			Vhost: vhost, Name: "work-queues", Pattern: exactly(consumers), ApplyTo: "queues",
			Definition: map[string]any{
				"dead-letter-exchange": t.DeadLetterExchange, "dead-letter-strategy": "at-least-once", "delivery-limit": 20, "overflow": "reject-publish",
				spread: "balanced",
			},
		},
		{
			Vhost: vhost, Name: "dead-letters", Pattern: exactly([]string{messaging.DeadLetterQueue}), ApplyTo: "queues",
			Definition: map[string]any{"delivery-limit": 1_000_000_000, spread: "balanced"}, // there is no other place for them
		},
	}
	return d
}

// grant adds the user of a service with the rights to what it needs: what it declares, and what it publishes, binds and
// reads according to the topology and the contracts.
func (d *definitions) grant(t messaging.Topology, service string, login Login) {
	vhost := d.Exchanges[0].Vhost
	s, _ := t.Service(service)
	var configure, write, read []string // regular expressions
	owns := func(names ...string) {
		configure, write, read = append(configure, names...), append(write, names...), append(read, names...)
	}
	quote := regexp.QuoteMeta

	if s.Consumes() {
		owns(quote(service) + `(\.retry\.[0-9]+s)?`)
		write = append(write, quote(t.DeadLetterExchange), `amq\.default`) // the default exchange leads to retry queues
		read = append(read, quote(t.EventExchange))                        // to bind its queue
	}
	if service == t.DeadLetterService {
		owns(quote(messaging.DeadLetterQueue))
		read = append(read, quote(t.DeadLetterExchange))
	}
	published := routingKeys(func(e contract.Event) bool { return slices.Contains(e.PublishedBy, service) })
	if len(published) > 0 {
		write = append(write, quote(t.EventExchange))
	}
	// The queues of one process, whose names the broker chooses: for replies, and for what it follows.
	const own = `amq\.gen-.*`
	replies := len(routingKeys(func(e contract.Event) bool { return e.IsRequest() && slices.Contains(e.PublishedBy, service) })) > 0
	for _, method := range contract.Methods() {
		if slices.Contains(method.CalledBy, service) {
			replies = true
			write = append(write, quote(method.Exchange))
		}
		if method.AnsweredBy == service {
			owns(quote(method.Queue) + fmt.Sprintf(`(\.[2-%d])?`, messaging.RPCSubstitutes+1)) // and its substitutes
			write = append(write, `amq\.default`)                                              // to the caller's queue
			read = append(read, quote(method.Exchange))
		}
	}
	if replies || len(s.Follows) > 0 {
		configure, read = append(configure, own), append(read, own)
	}
	if len(s.Follows) > 0 {
		write, read = append(write, own), append(read, quote(t.EventExchange))
	}

	for _, queue := range s.Exclusive {
		configure = append(configure, quote(queue))
	}

	d.Users = append(d.Users, user{login.User, login.Password, []string{}})
	d.Permissions = append(d.Permissions, permission{login.User, vhost, anyOf(configure), anyOf(write), anyOf(read)})
	d.TopicPermissions = append(d.TopicPermissions, topicPermission{
		login.User, vhost, t.EventExchange, exactly(published), exactly(slices.Concat(s.Bindings, s.Follows)),
	})
}

func routingKeys(of func(contract.Event) bool) (keys []string) {
	for _, e := range contract.Events() {
		if of(e) {
			keys = append(keys, e.RoutingKey)
		}
	}
	return keys
}

// exactly returns a regular expression that matches these texts and nothing else.
func exactly(texts []string) string {
	quoted := make([]string, len(texts))
	for i, text := range texts {
		quoted[i] = regexp.QuoteMeta(text)
	}
	return anyOf(quoted)
}

// anyOf returns a regular expression that matches what any of these matches; "" if there are none.
func anyOf(expressions []string) string {
	expressions = slices.Compact(slices.Sorted(slices.Values(expressions)))
	if len(expressions) == 0 {
		return "^$"
	}
	return "^(" + strings.Join(expressions, "|") + ")$"
}

func (e exchange) String() string { return e.Type + durability(e.Durable) }

func (q queue) String() string { return arguments(q.Arguments) + durability(q.Durable) }

func (b binding) String() string {
	return fmt.Sprintf("the binding of queue %s to %q on %s", b.Destination, b.RoutingKey, b.Source)
}

func durability(durable bool) string {
	if durable {
		return ""
	}
	return ", not durable"
}

// arguments reads like those of a policy. A queue without a type is a classic one.
func arguments(args map[string]any) string {
	if args[amqp.QueueTypeArg] == nil {
		args = maps.Clone(args)
		if args == nil {
			args = map[string]any{}
		}
		args[amqp.QueueTypeArg] = amqp.QueueTypeClassic
	}
	parts := make([]string, 0, len(args))
	for _, name := range slices.Sorted(maps.Keys(args)) {
		parts = append(parts, fmt.Sprintf("%s=%v", name, args[name]))
	}
	return strings.Join(parts, " ")
}
