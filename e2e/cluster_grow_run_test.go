//go:build cluster

package e2e

import (
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"

	"shop.example/platform/messaging/provision"
	"shop.example/topology"
)

// keptBy are the nodes that keep a queue, and the one that leads it.
type keptBy struct {
	Name, Leader string
	Members      []string
}

func (s *servers) keptBy(t *testing.T) (queues []keptBy) {
	t.Helper()
	body, err := provision.Call(t.Context(), http.MethodGet, s.management+"/api/queues/%2F", nil)
	if err == nil {
		err = json.Unmarshal(body, &queues)
	}
	if err != nil || len(queues) != len(topology.Broker().Queues()) {
		t.Fatalf("where queues are kept: %v %v", queues, err)
	}
	return queues
}

// provision runs shop provision, and returns what it prints.
func (s *servers) provision(t *testing.T) (said string, err error) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), filepath.Join(mustBinaries(t), "shop"), "provision")
	cmd.Env = append(os.Environ(), "AMQP_MANAGEMENT_URL="+s.management)
	for _, name := range topology.Names() {
		cmd.Env = append(cmd.Env, strings.ToUpper(name)+"_AMQP_PASSWORD=secret-of-"+name)
	}
	out, err := cmd.CombinedOutput()
	return string(out), err
}

// isKept says which queue is not kept by so many nodes.
func (s *servers) isKept(t *testing.T, nodes int) error {
	t.Helper()
	for _, q := range s.keptBy(t) {
		if len(q.Members) != nodes {
			return fmt.Errorf("queue %s is kept by %v, want %d nodes", q.Name, q.Members, nodes)
		}
	}
	return nil
}

// isSpread says which node leads more queues than its share of so many nodes.
func (s *servers) isSpread(t *testing.T, nodes int) error {
	t.Helper()
	queues, leads := s.keptBy(t), map[string]int{}
	for _, q := range queues {
		leads[q.Leader]++
	}
	for node, n := range leads {
		if n > (len(queues)+nodes-1)/nodes {
			return fmt.Errorf("node %s leads %d of %d queues: %v", node, n, len(queues), leads)
		}
	}
	return nil
}

// A broker that is new in the cluster keeps no queue until somebody says so: shop provision does, or says by which command.
func TestCluster_ABrokerThatIsAddedKeepsTheQueuesTooAndLeadersAreSpread(t *testing.T) {
	own := stoppedServers(t, filepath.Join(t.TempDir(), "servers"))
	own.brokers = 3
	own.start(t)
	eventually(t, func() error { return own.isKept(t, 3) })
	eventually(t, func() error { return own.isSpread(t, 3) })
	if said, err := own.provision(t); err != nil {
		t.Fatalf("shop provision on three nodes: %v\n%s", err, said)
	}

	own.release(t, syscall.SIGKILL)
	own.brokers, own.amqp = 4, "" // which names one more
	own.start(t)
	said, err := own.provision(t)
	t.Logf("%s", said)
	if command := regexp.MustCompile(`run rabbitmq-queues (grow \S+ all --vhost-pattern) '(\S+)'`).FindStringSubmatch(said); command != nil { // before RabbitMQ 3.13
		if err == nil {
			t.Error("shop provision says that something is left to be done, and ends with 0")
		}
		grow := own.brokerTool(t, 0, "rabbitmq-queues")
		cmd := exec.CommandContext(t.Context(), grow[0], append(append(grow[1:], strings.Fields(command[1])...), command[2])...)
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%v: %v\n%s", cmd.Args, err, out)
		}
		said, err = own.provision(t)
		t.Logf("%s", said)
	}
	if err != nil {
		t.Fatalf("shop provision on four nodes: %v", err)
	}
	eventually(t, func() error { return own.isKept(t, 4) })
	eventually(t, func() error { return own.isSpread(t, 4) })
	if said, err := own.provision(t); err != nil || strings.Contains(said, "node") {
		t.Errorf("shop provision once more: %v\n%s", err, said)
	}
}
