// Package provision prepares a broker for the shop, as its administrator: exchanges, queues, bindings and policies, and
// for each service a user that may configure, write and read what is its own and no more. All of it is in
// definitions.json, in RabbitMQ's own form, without users: whoever runs the broker gives them their passwords.
//
// What no right of RabbitMQ can keep apart: the default exchange takes messages for any queue by its name. Those that
// retry, redrive or answer need it: order, inventory and logging. The gateway, which strangers talk to, does not have it.
package provision

import (
	"bytes"
	"context"
	_ "embed"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"shop.example/platform/messaging"
)

//go:embed definitions.json
var definitionsJSON []byte

// callTimeout bounds one call of the management API.
const callTimeout = 10 * time.Second

// Services are those that have a user on the broker.
func Services() []string { return []string{"gateway", "order", "inventory", "logging"} }

// Login is how a service logs in to the broker.
type Login struct{ User, Password string }

// URL returns amqpURL, which is anybody's, as the one that the login is used with.
func (l Login) URL(amqpURL string) (string, error) {
	u, err := url.Parse(amqpURL)
	if err != nil {
		return "", errors.New("the broker's URL is not of the form amqp://user:password@host:5672/")
	}
	u.User = url.UserPassword(l.User, l.Password)
	return u.String(), nil
}

// definitions are RabbitMQ's. What only passes through stays as it is.
type definitions struct {
	Users            []user           `json:"users,omitempty"`
	Permissions      []map[string]any `json:"permissions,omitempty"`
	TopicPermissions []map[string]any `json:"topic_permissions,omitempty"`
	Policies         []map[string]any `json:"policies"`
	Exchanges        []exchange       `json:"exchanges"`
	Queues           []queue          `json:"queues"`
	Bindings         []binding        `json:"bindings"`
}

type user struct {
	Name     string   `json:"name"`
	Password string   `json:"password"`
	Tags     []string `json:"tags"`
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
}

// read returns the shop's definitions.
func read() (d definitions, err error) {
	if err := json.Unmarshal(definitionsJSON, &d); err != nil {
		return d, fmt.Errorf("reading the definitions of the broker: %w", err)
	}
	return d, nil
}

// Topology makes exchanges, queues, bindings and policies in a virtual host, over RabbitMQ's HTTP API at managementURL,
// which carries an administrator's user and password. What is there already stays as it is: see Compare.
func Topology(ctx context.Context, managementURL, vhost string) error {
	return Users(ctx, managementURL, vhost, nil)
}

// Users is Topology that also makes the users of services, by their names, with rights in the virtual host. A user that
// is there already gets the password and the rights of now.
func Users(ctx context.Context, managementURL, vhost string, logins map[string]Login) error {
	d, err := read()
	if err != nil {
		return err
	}
	d.in(vhost, logins)
	// RabbitMQ binds queues in any order. The log's is bound before the others: what is published at this moment, because an
	// exchange was missing in a shop that runs, is in the log at least, from where it is sent again.
	whole := d.Bindings
	d.Bindings = slices.DeleteFunc(slices.Clone(whole), func(b binding) bool { return b.Destination != messaging.LoggingQueue })
	if err := d.load(ctx, managementURL, vhost); err != nil {
		return err
	}
	d.Bindings = whole
	return d.load(ctx, managementURL, vhost)
}

// load imports the definitions.
func (d *definitions) load(ctx context.Context, managementURL, vhost string) error {
	body, err := json.Marshal(d)
	if err != nil {
		return fmt.Errorf("writing the definitions of the broker: %w", err)
	}
	if _, err := Call(ctx, http.MethodPost, managementURL+"/api/definitions", body); err != nil {
		return fmt.Errorf("importing the definitions for virtual host %s: %w", vhost, err)
	}
	return nil
}

// DeliveryLimit gives the quorum queues of a virtual host that no other policy speaks of the limit of 20 deliveries that
// they have by default from RabbitMQ 4.0 on, and not before: what is tried on an older broker then meets it too.
func DeliveryLimit(ctx context.Context, managementURL, vhost string) error {
	const policy = `{"pattern": "", "apply-to": "queues", "priority": -1, "definition": {"delivery-limit": 20}}`
	address := managementURL + "/api/policies/" + url.PathEscape(vhost) + "/default-of-rabbitmq-4"
	if _, err := Call(ctx, http.MethodPut, address, []byte(policy)); err != nil {
		return fmt.Errorf("limiting the deliveries in virtual host %s: %w", vhost, err)
	}
	return nil
}

// in puts the definitions into a virtual host, with the users of logins and the rights of those alone.
func (d *definitions) in(vhost string, logins map[string]Login) {
	for _, service := range slices.Sorted(maps.Keys(logins)) {
		d.Users = append(d.Users, user{logins[service].User, logins[service].Password, []string{}})
	}
	rights := func(all []map[string]any) (granted []map[string]any) {
		for _, right := range all {
			service, _ := right["user"].(string)
			if login, ok := logins[service]; ok {
				right["user"], right["vhost"] = login.User, vhost
				granted = append(granted, right)
			}
		}
		return granted
	}
	d.Permissions, d.TopicPermissions = rights(d.Permissions), rights(d.TopicPermissions)
	for _, policy := range d.Policies {
		policy["vhost"] = vhost
	}
	for i := range d.Exchanges {
		d.Exchanges[i].Vhost = vhost
	}
	for i := range d.Queues {
		d.Queues[i].Vhost = vhost
	}
	for i := range d.Bindings {
		d.Bindings[i].Vhost = vhost
	}
}

// Compare returns one error that lists where exchanges, queues and bindings in the virtual host are not what the shop's
// definitions say. Bindings of the shop's exchanges to queues of others are none of its business.
func Compare(ctx context.Context, managementURL, vhost string) error {
	want, err := read()
	if err != nil {
		return err
	}
	body, err := Call(ctx, http.MethodGet, managementURL+"/api/definitions/"+url.PathEscape(vhost), nil)
	if err != nil {
		return fmt.Errorf("reading the topology of virtual host %s: %w", vhost, err)
	}
	var have definitions
	if err := json.Unmarshal(body, &have); err != nil {
		return fmt.Errorf("reading the topology of virtual host %s: %w", vhost, err)
	}
	if differences := compare(want, have); len(differences) > 0 {
		return fmt.Errorf("the broker's topology in virtual host %s is not the shop's: %s", vhost, strings.Join(differences, "; "))
	}
	return nil
}

func compare(want, have definitions) (differences []string) {
	differ := func(format string, args ...any) { differences = append(differences, fmt.Sprintf(format, args...)) }
	for _, w := range want.Exchanges {
		i := slices.IndexFunc(have.Exchanges, func(e exchange) bool { return e.Name == w.Name })
		switch {
		case i < 0:
			differ("exchange %s is missing", w.Name)
		case have.Exchanges[i].Type != w.Type || have.Exchanges[i].Durable != w.Durable:
			differ("exchange %s is %s, and has to be %s: delete it, and start again", w.Name, have.Exchanges[i], w)
		}
	}
	ours := map[string]bool{}
	for _, w := range want.Queues {
		ours[w.Name] = true
		i := slices.IndexFunc(have.Queues, func(q queue) bool { return q.Name == w.Name })
		switch {
		case i < 0:
			differ("queue %s is missing", w.Name)
		case have.Queues[i].String() != w.String():
			differ("queue %s is %s, and has to be %s: once it is empty delete it, and start again", w.Name, have.Queues[i], w)
		}
	}
	for _, w := range want.Bindings {
		if !slices.ContainsFunc(have.Bindings, func(b binding) bool { return b.String() == w.String() }) {
			differ("%s is missing: start again, or bind it", w)
		}
	}
	for _, b := range have.Bindings {
		if ours[b.Destination] && !slices.ContainsFunc(want.Bindings, func(w binding) bool { return b.String() == w.String() }) {
			differ("%s is too much: unbind it", b)
		}
	}
	return differences
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
	if args["x-queue-type"] == nil {
		args = maps.Clone(args)
		if args == nil {
			args = map[string]any{}
		}
		args["x-queue-type"] = "classic"
	}
	parts := make([]string, 0, len(args))
	for _, name := range slices.Sorted(maps.Keys(args)) {
		parts = append(parts, fmt.Sprintf("%s=%v", name, args[name]))
	}
	return strings.Join(parts, " ")
}

// Call makes one call of RabbitMQ's HTTP API and returns the answer's body. A status of 300 or more is an error with the
// broker's words.
func Call(ctx context.Context, method, address string, body []byte) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, method, address, bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	req.Header.Set("Content-Type", "application/json")
	req.Close = true // nothing of us stays behind to hold up the server's shutdown
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return nil, err
	}
	defer func() { _ = resp.Body.Close() }()
	answer, err := io.ReadAll(resp.Body)
	if err != nil {
		return nil, err
	}
	if resp.StatusCode >= 300 {
		return nil, fmt.Errorf("RabbitMQ answered %s: %s", resp.Status, strings.TrimSpace(string(answer)))
	}
	return answer, nil
}
