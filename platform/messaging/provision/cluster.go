package provision

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"regexp"
	"slices"
	"strings"

	amqp "github.com/rabbitmq/amqp091-go"

	"shop.example/platform/messaging"
)

// maxMembers is how many nodes keep a queue at most: more make each message dearer and a majority no likelier.
const maxMembers = 5

// members is a quorum queue of any virtual host, and where it is kept.
type members struct {
	Name, Vhost, Type string
	Leader            string   // a node
	Members           []string // nodes
}

// growth is what a cluster needs that was given nodes after its queues, or whose nodes were away: RabbitMQ keeps a queue where it
// was declared, and its leader where it was elected last.
type growth struct {
	missing map[string][]string // queues of the topology that a node should keep and does not, by node
	byHand  bool                // RabbitMQ before 3.13 adds no nodes by its API
	crowded bool                // a node leads more queues than its share
}

// grow compares where the broker keeps its quorum queues with where it should.
func grow(ctx context.Context, t messaging.Topology, at Target) (growth, error) {
	var nodes []struct {
		Name    string
		Running bool
	}
	var queues []members
	for path, into := range map[string]any{"/api/nodes": &nodes, "/api/queues?disable_stats=true&enable_queue_totals=true": &queues} {
		body, err := Call(ctx, http.MethodGet, at.ManagementURL+path, nil)
		if err != nil {
			return growth{}, fmt.Errorf("asking the broker for %s: %w", path, err)
		}
		if err := json.Unmarshal(body, into); err != nil {
			return growth{}, fmt.Errorf("reading the broker's %s: %w", path, err)
		}
	}
	var running []string
	for _, n := range nodes {
		if n.Running {
			running = append(running, n.Name)
		}
	}
	g := growth{missing: map[string][]string{}}
	if len(running) < 2 {
		return g, nil
	}
	slices.Sort(running)
	ours := map[string]bool{}
	for _, q := range t.Queues() {
		ours[q.Name] = true
	}
	leads, quorum := map[string]int{}, 0
	for _, q := range queues {
		if q.Type != amqp.QueueTypeQuorum {
			continue
		}
		quorum++
		leads[q.Leader]++
		if q.Vhost != at.Vhost || !ours[q.Name] {
			continue
		}
		room := maxMembers - len(q.Members)
		for _, node := range running {
			if room > 0 && !slices.Contains(q.Members, node) {
				g.missing[node] = append(g.missing[node], q.Name)
				room--
			}
		}
	}
	if len(g.missing) > 0 {
		_, err := Call(ctx, http.MethodOptions, at.ManagementURL+addMember(at, t.Queues()[0].Name), nil)
		g.byHand = err != nil
	}
	share := (quorum + len(running) - 1) / len(running)
	for _, n := range leads {
		g.crowded = g.crowded || n > share
	}
	return g, nil
}

// addMember is where the API adds a node to those that keep a queue.
func addMember(at Target, queue string) string {
	return fmt.Sprintf("/api/queues/quorum/%s/%s/replicas/add", url.PathEscape(at.Vhost), url.PathEscape(queue))
}

// changes says what there is to do.
func (g growth) changes(at Target) (changes []Change) {
	for _, node := range slices.Sorted(maps.Keys(g.missing)) {
		text := fmt.Sprintf("node %s keeps no copy of the queues %s", node, strings.Join(g.missing[node], ", "))
		if g.byHand {
			text += fmt.Sprintf(": run rabbitmq-queues grow %s all --vhost-pattern '^%s$', and this again", node, regexp.QuoteMeta(at.Vhost))
		}
		changes = append(changes, Change{text, g.byHand})
	}
	if g.crowded || len(g.missing) > 0 && !g.byHand {
		changes = append(changes, Change{Text: "the leaders of the queues are not spread evenly over the nodes"})
	}
	return changes
}

// apply adds members, and then spreads the leaders.
func (g growth) apply(ctx context.Context, at Target) error {
	missing := g.missing
	if g.byHand {
		missing = nil
	}
	for _, node := range slices.Sorted(maps.Keys(missing)) {
		for _, queue := range g.missing[node] {
			body, err := json.Marshal(map[string]string{"node": node})
			if err != nil {
				return err
			}
			if _, err := Call(ctx, http.MethodPost, at.ManagementURL+addMember(at, queue), body); err != nil {
				return fmt.Errorf("adding node %s to those that keep queue %s: %w", node, queue, err)
			}
		}
	}
	if !g.crowded && len(missing) == 0 {
		return nil
	}
	if _, err := Call(ctx, http.MethodPost, at.ManagementURL+"/api/rebalance/queues", []byte("{}")); err != nil {
		return fmt.Errorf("spreading the leaders of the queues: %w", err)
	}
	return nil
}
