package stack

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
)

// Several brokers are the nodes of one cluster, each with its folder beside that of the first, rabbitmq-2 and so on. They listen on
// 127.0.0.2 and up, as if they were machines of their own; Erlang's names, and with them the port mapper, are of this machine.

// newCluster returns the first node of a cluster of so many.
func newCluster(h host, dir string, brokers int) *rabbitMQ {
	nodes := make([]*rabbitMQ, brokers)
	for i := range nodes {
		nodes[i] = &rabbitMQ{host: h, dir: filepath.Join(dir, brokerFolder(i)), cluster: nodes}
	}
	return nodes[0]
}

func brokerFolder(i int) string {
	if i == 0 {
		return rabbitKind.folder
	}
	return fmt.Sprintf("%s-%d", rabbitKind.folder, i+1)
}

// brokerFolders are those of the nodes that there are in a stack's folder.
func brokerFolders(dir string) []string {
	more, _ := filepath.Glob(filepath.Join(dir, rabbitKind.folder+"-[0-9]*"))
	return append([]string{filepath.Join(dir, rabbitKind.folder)}, more...)
}

// number is which node of its cluster this is, 0 for the first and for one that is alone.
func (r *rabbitMQ) number() int { return max(0, slices.Index(r.cluster, r)) }

// node is the name that Erlang knows it by.
func (r *rabbitMQ) node() string {
	if n := r.number(); n > 0 {
		return fmt.Sprintf("shop-%d@localhost", n+1)
	}
	return "shop@localhost"
}

// ip is where clients find it.
func (r *rabbitMQ) ip() string {
	if r.cluster == nil {
		return "127.0.0.1"
	}
	return fmt.Sprintf("127.0.0.%d", 2+r.number())
}

// clustering is the part of a node's configuration that docs/production.md recommends for a cluster.
func (r *rabbitMQ) clustering() string {
	if r.cluster == nil {
		return ""
	}
	var text strings.Builder
	text.WriteString("cluster_formation.peer_discovery_backend = classic_config\n")
	for i, n := range r.cluster {
		fmt.Fprintf(&text, "cluster_formation.classic_config.nodes.%d = %s\n", i+1, n.node())
	}
	text.WriteString(ClusterSettings)
	return text.String()
}

// ClusterSettings are the lines of rabbitmq.conf that a cluster of the shop needs, wherever it runs (docs/adr/0039).
const ClusterSettings = `cluster_partition_handling = autoheal
net_ticktime = 8
queue_leader_locator = balanced
`

// ClusterAdvanced is advanced.config of a cluster: how often a node asks whether another one, which leads queues, is alive.
const ClusterAdvanced = "[{aten, [{poll_interval, 1000}]}].\n"

// startCluster starts the nodes that do not run. A cluster that is new grows out of its first node; later none can start without a
// majority of the others, so all are started at once.
func (r *rabbitMQ) startCluster(ctx context.Context) (string, error) {
	for _, n := range r.cluster[1:] {
		n.program, n.epmd = r.program, r.epmd
		if err := n.load(); err != nil {
			return "", err
		}
		n.settings.Password = r.settings.Password
	}
	if _, running := recorded(filepath.Join(r.dir, epmdRecord)); !running {
		port, err := r.host.freePort(r.settings.Ports[epmdPort])
		if err != nil {
			return "", err
		}
		r.settings.Ports[epmdPort] = port
		if err := r.startMapper(ctx); err != nil {
			return "", err
		}
	}
	for _, n := range r.cluster[1:] {
		n.settings.Ports[epmdPort] = r.settings.Ports[epmdPort]
	}
	nodes := r.cluster
	var first, more string
	if _, err := os.Stat(filepath.Join(r.dir, "data")); errors.Is(err, os.ErrNotExist) {
		if first, err = r.startPrivate(ctx); err != nil {
			return "", err
		}
		nodes = nodes[1:]
	}
	abouts, failed := make([]string, len(nodes)), make([]error, len(nodes))
	var starting sync.WaitGroup
	for i, n := range nodes {
		starting.Go(func() { abouts[i], failed[i] = n.startPrivate(ctx) })
	}
	starting.Wait()
	if err := errors.Join(failed...); err != nil {
		return "", err
	}
	if first == "" {
		first, abouts = abouts[0], abouts[1:]
	}
	for _, about := range abouts {
		_, at, _ := strings.Cut(about, " on ")
		more += ", " + at
	}
	return first + more, r.joinURLs()
}

// joinURLs has the first node's URL name all of them.
func (r *rabbitMQ) joinURLs() error {
	var hosts []string
	for _, n := range r.cluster {
		hosts = append(hosts, fmt.Sprintf("%s:%d", n.ip(), n.settings.Ports[0]))
	}
	u, err := url.Parse(r.url)
	if err != nil {
		return err
	}
	u.Host = strings.Join(hosts, ",")
	r.url = u.String()
	return nil
}
