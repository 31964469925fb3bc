// Package provision prepares a broker for the services of a product, as its administrator: exchanges, queues, bindings,
// policies and, for each service, a user with rights to what that service needs and no more. All of it is derived from a
// messaging.Topology and the contracts' options.
//
// RabbitMQ's rights have a gap: the default exchange delivers to any queue by its name. Retries, redrives and replies need
// it, so every service that consumes has it. A service that only publishes does not.
package provision

import (
	"bytes"
	"cmp"
	"context"
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

// callTimeout bounds one call of the management API.
const callTimeout = 10 * time.Second

// Login is the user and the password with which a service logs in to the broker.
type Login struct{ User, Password string }

// URL returns amqpURL, which may name several nodes, with the login in place of its user and password.
func (l Login) URL(amqpURL string) (string, error) {
	urls := messaging.SplitURL(amqpURL)
	for i := range urls {
		u, err := url.Parse(urls[i])
		if err != nil {
			return "", errors.New("the broker's URL is not of the form amqp://user:password@host:5672/")
		}
		u.User = url.UserPassword(l.User, l.Password)
		urls[i] = u.String()
	}
	return strings.Join(urls, ","), nil
}

// Topology creates the exchanges, queues, bindings and policies in a virtual host, through RabbitMQ's HTTP API at
// managementURL, which contains an administrator's user and password. What exists already is not changed; Compare finds
// differences.
func Topology(ctx context.Context, t messaging.Topology, managementURL, vhost string) error {
	return Users(ctx, t, managementURL, vhost, nil)
}

// Users does what Topology does, and creates the users of the services, with rights in the virtual host. logins are by the
// names of the services. A user that exists already gets the given password and the current rights.
func Users(ctx context.Context, t messaging.Topology, managementURL, vhost string, logins map[string]Login) error {
	d := define(t, vhost)
	for _, service := range slices.Sorted(maps.Keys(logins)) {
		d.grant(t, service, logins[service])
	}
	return d.load(ctx, t, managementURL)
}

// load imports the definitions. RabbitMQ binds queues in no particular order, so the queue of the service that keeps the
// event log is bound first: an event that is published at this moment, to an exchange that was missing in a running shop,
// is then in the log at least, and is sent again from there.
func (d *definitions) load(ctx context.Context, t messaging.Topology, managementURL string) error {
	first := *d
	first.Bindings = slices.DeleteFunc(slices.Clone(d.Bindings), func(b binding) bool { return b.Destination != t.DeadLetterService })
	for _, part := range []*definitions{&first, d} {
		body, err := json.Marshal(part)
		if err != nil {
			return fmt.Errorf("writing the definitions of the broker: %w", err)
		}
		if _, err := Call(ctx, http.MethodPost, managementURL+"/api/definitions", body); err != nil {
			return fmt.Errorf("importing the definitions for virtual host %s: %w", d.Exchanges[0].Vhost, err)
		}
	}
	return nil
}

// DeliveryLimit limits the deliveries of a message to 20 on the quorum queues of a virtual host to which no other policy
// applies. RabbitMQ has that limit by default from 4.0 on; this gives older brokers, in tests, the same.
func DeliveryLimit(ctx context.Context, managementURL, vhost string) error {
	const policy = `{"pattern": "", "apply-to": "queues", "priority": -1, "definition": {"delivery-limit": 20}}`
	address := managementURL + "/api/policies/" + url.PathEscape(vhost) + "/default-of-rabbitmq-4"
	if _, err := Call(ctx, http.MethodPut, address, []byte(policy)); err != nil {
		return fmt.Errorf("limiting the deliveries in virtual host %s: %w", vhost, err)
	}
	return nil
}

// Compare returns one error that lists the exchanges, queues and bindings of the virtual host that differ from the
// topology. Bindings of its exchanges to queues of others do not count.
func Compare(ctx context.Context, t messaging.Topology, managementURL, vhost string) error {
	have, err := export(ctx, managementURL, vhost)
	if err != nil {
		return err
	}
	var differences []string
	for _, change := range define(t, vhost).changes(have) {
		differences = append(differences, change.Text)
	}
	if len(differences) > 0 {
		return fmt.Errorf("the broker's topology in virtual host %s is not the one of this release: %s", vhost, strings.Join(differences, "; "))
	}
	return nil
}

func export(ctx context.Context, managementURL, vhost string) (*definitions, error) {
	body, err := Call(ctx, http.MethodGet, managementURL+"/api/definitions/"+url.PathEscape(vhost), nil)
	if err != nil {
		return nil, fmt.Errorf("reading the topology of virtual host %s: %w", vhost, err)
	}
	have := &definitions{}
	if err := json.Unmarshal(body, have); err != nil {
		return nil, fmt.Errorf("reading the topology of virtual host %s: %w", vhost, err)
	}
	return have, nil
}

// changes lists the differences of have from d.
func (d *definitions) changes(have *definitions) (changes []Change) {
	byHand := func(format string, args ...any) {
		changes = append(changes, Change{fmt.Sprintf(format, args...), true})
	}
	missing := func(what string) { changes = append(changes, Change{Text: what + " is missing"}) }
	for _, w := range d.Exchanges {
		i := slices.IndexFunc(have.Exchanges, func(e exchange) bool { return e.Name == w.Name })
		switch {
		case i < 0:
			missing("exchange " + w.Name)
		case have.Exchanges[i].Type != w.Type || have.Exchanges[i].Durable != w.Durable:
			byHand("exchange %s is %s, and has to be %s: delete it, and start again", w.Name, have.Exchanges[i], w)
		}
	}
	for _, w := range d.Queues {
		i := slices.IndexFunc(have.Queues, func(q queue) bool { return q.Name == w.Name })
		switch {
		case i < 0:
			missing("queue " + w.Name)
		case have.Queues[i].String() != w.String():
			byHand("queue %s is %s, and has to be %s: once it is empty delete it, and start again", w.Name, have.Queues[i], w)
		}
	}
	for _, w := range d.Bindings {
		if !have.has(w) {
			missing(w.String())
		}
	}
	for _, b := range d.surplus(have) {
		changes = append(changes, Change{Text: b.String() + " is too much"})
	}
	return changes
}

func (d *definitions) has(b binding) bool {
	return slices.ContainsFunc(d.Bindings, func(h binding) bool { return h.String() == b.String() })
}

// surplus returns the bindings of the topology's queues that have has and d has not.
func (d *definitions) surplus(have *definitions) (surplus []binding) {
	for _, b := range have.Bindings {
		ours := slices.ContainsFunc(d.Queues, func(q queue) bool { return q.Name == b.Destination })
		if ours && b.Source != "" && b.DestinationType == "queue" && !d.has(b) { // to the default exchange all queues are bound
			surplus = append(surplus, b)
		}
	}
	return surplus
}

// Call makes one call of RabbitMQ's HTTP API and returns the body of the response. A status of 300 or more is an error with
// the broker's message.
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
		return nil, fmt.Errorf("RabbitMQ answered %s: %s", resp.Status, cmp.Or(strings.TrimSpace(string(answer)), "its log says why"))
	}
	return answer, nil
}
