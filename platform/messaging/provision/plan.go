package provision

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"reflect"
	"slices"

	"shop.example/platform/messaging"
)

// Target is a virtual host, and the users of the services on it.
type Target struct {
	// ManagementURL has the form http://user:password@host:15672, with an administrator of the broker.
	ManagementURL string
	Vhost         string
	// Logins are the users of the services, by the services' names. A user without a password must exist, and keeps its
	// password.
	Logins map[string]Login
}

// Change is a difference between a broker and the topology.
type Change struct {
	Text string
	// ByHand means that Apply does not make the change, because messages could be lost: a person has to.
	ByHand bool
}

// Plan compares a broker with the topology. It returns the changes that Apply would make, and those to be made by hand.
func Plan(ctx context.Context, t messaging.Topology, at Target) ([]Change, error) {
	_, changes, err := plan(ctx, t, at)
	return changes, err
}

// Apply creates what is missing, gives users the current rights, and removes bindings of the topology's queues that are not
// in the topology, because messages would arrive that nobody handles. In a cluster it adds nodes that joined later to those
// that keep the queues, and spreads the leaders. It returns the changes it has made, and those that
// are left to be made by hand.
func Apply(ctx context.Context, t messaging.Topology, at Target) ([]Change, error) {
	broker, changes, err := plan(ctx, t, at)
	if err != nil {
		return nil, err
	}
	d := define(t, at.Vhost)
	for _, service := range slices.Sorted(maps.Keys(at.Logins)) {
		if login := at.Logins[service]; login.Password != "" || broker.users[login.User] {
			d.grant(t, service, login)
		}
	}
	d.Users = slices.DeleteFunc(d.Users, func(u user) bool { return u.Password == "" })
	if err := d.load(ctx, t, at.ManagementURL); err != nil {
		return nil, err
	}
	for _, b := range d.surplus(broker.definitions) {
		path := fmt.Sprintf("/api/bindings/%s/e/%s/q/%s/%s", url.PathEscape(at.Vhost), url.PathEscape(b.Source), url.PathEscape(b.Destination), url.PathEscape(b.PropertiesKey))
		if _, err := Call(ctx, http.MethodDelete, at.ManagementURL+path, nil); err != nil {
			return nil, fmt.Errorf("removing %s: %w", b, err)
		}
	}
	return changes, broker.growth.apply(ctx, at)
}

// state is what exists in a virtual host.
type state struct {
	*definitions
	users  map[string]bool
	growth growth
}

func plan(ctx context.Context, t messaging.Topology, at Target) (*state, []Change, error) {
	have, err := look(ctx, at)
	if err != nil {
		return nil, nil, err
	}
	want := define(t, at.Vhost)
	changes := want.changes(have.definitions)
	for _, p := range want.Policies {
		i := slices.IndexFunc(have.Policies, func(h policy) bool { return h.Name == p.Name })
		if i < 0 || !same(have.Policies[i], p) {
			changes = append(changes, Change{Text: fmt.Sprintf("policy %s: %v for queues %s", p.Name, arguments(p.Definition), p.Pattern)})
		}
	}
	for _, service := range slices.Sorted(maps.Keys(at.Logins)) {
		changes = append(changes, have.changesOf(t, service, at.Logins[service], at.Vhost)...)
	}
	if have.growth, err = grow(ctx, t, at); err != nil {
		return nil, nil, err
	}
	return have, append(changes, have.growth.changes(at)...), nil
}

func (have *state) changesOf(t messaging.Topology, service string, login Login, vhost string) (changes []Change) {
	switch {
	case login.Password != "" && have.users[login.User]:
		changes = append(changes, Change{Text: fmt.Sprintf("user %s: set the password", login.User)})
	case login.Password != "":
		changes = append(changes, Change{Text: fmt.Sprintf("user %s: create", login.User)})
	case !have.users[login.User]:
		return []Change{{fmt.Sprintf("user %s is missing: create it, and run this again", login.User), true}}
	}
	want := define(t, vhost)
	want.grant(t, service, login)
	p, topics := want.Permissions[0], want.TopicPermissions[0]
	if !slices.Contains(have.Permissions, p) {
		changes = append(changes, Change{Text: fmt.Sprintf("user %s: configure %s, write %s, read %s", login.User, p.Configure, p.Write, p.Read)})
	}
	if !slices.Contains(have.TopicPermissions, topics) {
		changes = append(changes, Change{Text: fmt.Sprintf("user %s: publish %s to %s, bind %s", login.User, topics.Write, topics.Exchange, topics.Read)})
	}
	return changes
}

// look reads from the broker what exists.
func look(ctx context.Context, at Target) (*state, error) {
	have := &state{definitions: &definitions{}, users: map[string]bool{}}
	vhost := "/" + url.PathEscape(at.Vhost)
	var users []user
	for path, into := range map[string]any{
		"/api/exchanges" + vhost: &have.Exchanges, "/api/queues" + vhost: &have.Queues, "/api/bindings" + vhost: &have.Bindings,
		"/api/policies" + vhost: &have.Policies, "/api/users": &users,
		"/api/vhosts" + vhost + "/permissions": &have.Permissions, "/api/vhosts" + vhost + "/topic-permissions": &have.TopicPermissions,
	} {
		body, err := Call(ctx, http.MethodGet, at.ManagementURL+path, nil)
		if err != nil {
			return nil, fmt.Errorf("asking the broker for %s: %w", path, err)
		}
		if err := json.Unmarshal(body, into); err != nil {
			return nil, fmt.Errorf("reading the broker's %s: %w", path, err)
		}
	}
	for _, u := range users {
		have.users[u.Name] = true
	}
	return have, nil
}

// same compares two values by their JSON, in which numbers have one type.
func same(a, b any) bool {
	var decoded [2]any
	for i, v := range []any{a, b} {
		text, err := json.Marshal(v)
		if err = errors.Join(err, json.Unmarshal(text, &decoded[i])); err != nil {
			return false
		}
	}
	return reflect.DeepEqual(decoded[0], decoded[1])
}
