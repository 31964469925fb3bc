package stack

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"syscall"
	"time"

	"shop.example/platform/messaging"
	"shop.example/platform/messaging/provision"
	"shop.example/topology"
)

// A node has stopped its queues in a fraction of a second, but then its management plugin asks the process that waits
// for it, and gives up after 5 s. We wait just long enough for the tables that name the quorum queues, which RabbitMQ
// writes up to 3 s late; whatever the broker has confirmed is on disk before.
var rabbitKind = kind{name: "RabbitMQ", variable: "AMQP_URL", folder: "rabbitmq", image: "rabbitmq:4.0.9-management", pkg: "rabbitmq-server",
	stopTimeout: 4 * time.Second}

const (
	nodeRecord = "process"
	epmdRecord = "epmd" // Erlang's port mapper, which RabbitMQ does not start without
)

// advancedConfig is the name of the file for what rabbitmq.conf has no words for.
const advancedConfig = "advanced.config"

// rabbitPorts is how many ports a private node has: AMQP, management, distribution, epmd, metrics for Prometheus.
const (
	rabbitPorts = 5
	epmdPort    = 3
)

type rabbitMQ struct {
	host host
	dir  string
	// cluster has the nodes, this one too, if there are several.
	cluster []*rabbitMQ

	program, epmd string // for a private instance
	container     *docker
	settings      settings // ports: see rabbitPorts

	url, management, metrics string
	pid                      int
}

func (r *rabbitMQ) kind() kind       { return rabbitKind }
func (r *rabbitMQ) use(d *docker)    { r.container = d }
func (r *rabbitMQ) given(url string) { r.url, r.management = url, r.host.getenv("AMQP_MANAGEMENT_URL") }

func (r *rabbitMQ) find(context.Context) (bool, error) {
	servers := r.host.programs("rabbitmq-server", r.host.rabbitMQFolders...)
	mappers := r.host.programs("epmd", r.host.erlangFolders...)
	if len(servers) == 0 || len(mappers) == 0 {
		return false, nil
	}
	r.program, r.epmd = servers[0], mappers[0]
	return true, nil
}

func (r *rabbitMQ) start(ctx context.Context) (string, error) {
	if r.url != "" {
		return "of AMQP_URL", r.check(ctx)
	}
	if err := r.load(); err != nil {
		return "", err
	}
	run := r.startPrivate
	switch {
	case r.container != nil && r.cluster != nil:
		return "", errors.New("several brokers need an installed RabbitMQ: install the package rabbitmq-server, or leave --brokers out")
	case r.container != nil:
		run = r.startContainer
	case r.cluster != nil:
		run = r.startCluster
	}
	about, err := run(ctx)
	if err != nil {
		return "", err
	}
	if err := provision.DeliveryLimit(ctx, r.management, "/"); err != nil {
		return "", err
	}
	return about, provision.Topology(ctx, topology.Broker(), r.management, "/")
}

// load makes the node's folder and reads its settings, or invents them.
func (r *rabbitMQ) load() error {
	if err := os.MkdirAll(r.dir, 0o700); err != nil {
		return explain(fmt.Errorf("creating %s: %w", r.dir, err), r.dir)
	}
	if err := r.settings.load(r.dir); err != nil {
		return err
	}
	if n := len(r.settings.Ports); n < rabbitPorts { // from before there were metrics
		r.settings.Ports = append(r.settings.Ports, make([]int, rabbitPorts-n)...)
	}
	if r.settings.Password == "" {
		r.settings = settings{Password: rand.Text(), Ports: make([]int, rabbitPorts)}
	}
	return nil
}

// check reports whether a broker that AMQP_URL names accepts connections. Whether it accepts the user is found out by the
// services.
func (r *rabbitMQ) check(ctx context.Context) (err error) {
	for _, address := range messaging.SplitURL(r.url) {
		u, parseErr := url.Parse(address)
		if parseErr != nil || u.Hostname() == "" {
			return errors.New("AMQP_URL is not of the form amqp://user:password@host:5672/, or amqp://user:password@host1:5672,host2:5672/")
		}
		port := u.Port()
		if port == "" {
			port = map[string]string{"amqp": "5672", "amqps": "5671"}[u.Scheme]
		}
		if err = reachable(ctx, net.JoinHostPort(u.Hostname(), port)); err == nil {
			return nil
		}
	}
	if err == nil {
		err = errors.New("it names none")
	}
	return fmt.Errorf("cannot reach the server that AMQP_URL names: %w", err)
}

func (r *rabbitMQ) startPrivate(ctx context.Context) (string, error) {
	if proc, running := recorded(filepath.Join(r.dir, nodeRecord)); running {
		if version, err := r.await(ctx, proc, 20*time.Second); err == nil {
			return fmt.Sprintf("%s on %s:%d, still running", version, r.ip(), r.settings.Ports[0]), nil
		}
	}
	log := filepath.Join(r.dir, serverLog)
	for attempt := 1; ; attempt++ {
		// What is left of an earlier node would share its data with the new one.
		if err := r.endPredecessor(); err != nil {
			return "", err
		}
		version, err := r.launch(ctx, log)
		if err == nil {
			return fmt.Sprintf("%s on %s:%d", version, r.ip(), r.settings.Ports[0]), nil
		}
		if attempt == 3 || !errors.Is(err, errEnded) || !(portTaken(log) || portTaken(r.epmdLog())) {
			return "", err
		}
		mapper := r.settings.Ports[epmdPort]
		r.settings.Ports = make([]int, rabbitPorts)
		if r.cluster != nil {
			r.settings.Ports[epmdPort] = mapper
		}
	}
}

func (r *rabbitMQ) epmdLog() string { return filepath.Join(r.dir, "epmd.log") }

// launch chooses ports, and starts epmd and then the node on them.
func (r *rabbitMQ) launch(ctx context.Context, log string) (version string, err error) {
	for i, port := range r.settings.Ports {
		if i == epmdPort && r.cluster != nil {
			continue // it runs
		}
		if r.settings.Ports[i], err = r.host.freePort(port); err != nil {
			return "", err
		}
	}
	if err := r.configure(); err != nil {
		return "", explain(fmt.Errorf("configuring RabbitMQ: %w", err), r.dir)
	}
	if r.cluster == nil {
		if err := r.startMapper(ctx); err != nil {
			return "", err
		}
	}
	l := launch{record: filepath.Join(r.dir, nodeRecord), log: log, env: r.environment(), attr: ownSession()}
	proc, err := l.start(r.program)
	if err != nil {
		return "", err
	}
	if version, err = r.await(ctx, proc, 2*time.Minute); err != nil { // a full queue takes its time to recover
		return "", withLog(err, log)
	}
	return version, nil
}

// startMapper starts epmd.
func (r *rabbitMQ) startMapper(ctx context.Context) error {
	port := r.settings.Ports[epmdPort]
	l := launch{record: filepath.Join(r.dir, epmdRecord), log: r.epmdLog(), env: r.environment(), attr: ownSession()}
	proc, err := l.start(r.epmd, "-port", strconv.Itoa(port), "-address", "127.0.0.1")
	if err != nil {
		return err
	}
	err = proc.await(ctx, 10*time.Second, func(ctx context.Context) error { return reachable(ctx, fmt.Sprintf("127.0.0.1:%d", port)) })
	if err != nil {
		return withLog(fmt.Errorf("epmd: %w", err), l.log)
	}
	return nil
}

// configure writes the node's configuration and its cookie, with which Erlang tools log in.
func (r *rabbitMQ) configure() error {
	// Messages may take 40 % of the memory by default, which is the server's share on a machine of its own. A message may be
	// as large as RabbitMQ 4 lets it be; before, 128 MiB were the limit.
	config := fmt.Sprintf(`listeners.tcp.1 = %[1]s:%[2]d
management.tcp.ip = %[1]s
management.tcp.port = %[3]d
prometheus.tcp.ip = %[1]s
prometheus.tcp.port = %[4]d
default_user = shop
default_pass = %[5]s
vm_memory_high_watermark.relative = 0.25
disk_free_limit.absolute = 50MB
management.rates_mode = none
max_message_size = 16777216
`, r.ip(), r.settings.Ports[0], r.settings.Ports[1], r.settings.Ports[4], r.settings.Password) + r.clustering()
	cookie := filepath.Join(r.dir, ".erlang.cookie")
	if _, err := os.Stat(cookie); err != nil {
		text := rand.Text()
		if r.cluster != nil { // its nodes have one
			text = r.settings.Password
		}
		if err := writeFile(cookie, []byte(text), 0o400); err != nil {
			return err
		}
	}
	if r.cluster != nil {
		if err := writeFile(filepath.Join(r.dir, advancedConfig), []byte(ClusterAdvanced), 0o600); err != nil {
			return err
		}
	}
	return errors.Join(
		r.settings.save(r.dir),
		writeFile(filepath.Join(r.dir, "rabbitmq.conf"), []byte(config), 0o600),
		writeFile(filepath.Join(r.dir, "enabled_plugins"), []byte("[rabbitmq_management,rabbitmq_prometheus].\n"), 0o600),
	)
}

// forgiveDeletedQueues is run in a node when it has started. The process that moves the dead letters of a quorum queue crashes,
// and crashes again when it is started again, if the queue is deleted while it comes into being. RabbitMQ 3.10 gives the
// supervisor of all these processes up after two crashes within 5 s, and the node can then make no such queue any more until it
// is started again. Tests delete queues at once, so here a process that has crashed is not started again. The script that starts
// the node splits this at spaces.
const forgiveDeletedQueues = "sys:replace_state(rabbit_fifo_dlx_sup,fun(State)->" +
	"{[Id],Specs}=element(4,State),{maps,Running}=element(5,State)," +
	"Once=setelement(5,maps:get(Id,Specs),temporary)," + // a child specification's restart type
	"setelement(5,setelement(4,State,{[Id],Specs#{Id:=Once}}),{mapsets,maps:map(fun(_,_)->[]end,Running)})end)."

func (r *rabbitMQ) environment() []string {
	in := func(name string) string { return filepath.Join(r.dir, name) }
	port := func(i int) string { return strconv.Itoa(r.settings.Ports[i]) }
	return append(cleanEnvironment(r.dir),
		"ERL_CRASH_DUMP_SECONDS=0", // a node that cannot start says why in its log, and writing the dump takes seconds
		"ERL_EPMD_ADDRESS=127.0.0.1", "ERL_EPMD_PORT="+port(epmdPort),
		"RABBITMQ_NODENAME="+r.node(), "RABBITMQ_DIST_PORT="+port(2),
		"RABBITMQ_BASE="+r.dir, "RABBITMQ_MNESIA_BASE="+in("data"), "RABBITMQ_LOG_BASE="+in("log"), "RABBITMQ_LOGS=-",
		"RABBITMQ_PID_FILE="+in("node.pid"), "RABBITMQ_FEATURE_FLAGS_FILE="+in("feature_flags"),
		"RABBITMQ_CONFIG_FILE="+in("rabbitmq.conf"), "RABBITMQ_ENABLED_PLUGINS_FILE="+in("enabled_plugins"),
		"RABBITMQ_GENERATED_CONFIG_DIR="+in("generated"),
		// The machine's own configuration is not ours: these do not exist, but for the second one in a cluster.
		"RABBITMQ_CONF_ENV_FILE="+in("no-env.conf"), "RABBITMQ_ADVANCED_CONFIG_FILE="+in(advancedConfig),
		// Makes the script become the Erlang machine, so that its process is the server's.
		"RABBITMQ_ALLOW_INPUT=1",
		// A dead letter of which the confirm was missed is sent again after 30 s to a minute, and not after three to six.
		"RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS=-noinput -kernel inet_dist_use_interface {127,0,0,1} "+
			"-rabbit dead_letter_worker_publisher_confirm_timeout 30000 -eval "+forgiveDeletedQueues,
	)
}

func (r *rabbitMQ) await(ctx context.Context, proc process, limit time.Duration) (version string, err error) {
	r.pid = proc.pid
	r.setURLs(r.ip(), r.settings.Ports[0], r.settings.Ports[1])
	if port := r.settings.Ports[4]; port != 0 {
		r.metrics = fmt.Sprintf("%s:%d", r.ip(), port)
	}
	err = proc.await(ctx, limit, func(ctx context.Context) error {
		if version, err = r.ask(ctx); err != nil && r.gaveUp() {
			return errEnded
		}
		return err
	})
	return version, err
}

// gaveUp reports whether, according to the log, the node could not start; its process goes on for another 13 s.
func (r *rabbitMQ) gaveUp() bool {
	log, err := os.Open(filepath.Join(r.dir, serverLog))
	if err != nil {
		return false
	}
	defer log.Close()
	end := make([]byte, 1024)
	size, _ := log.Seek(0, io.SeekEnd)
	n, _ := log.ReadAt(end, max(0, size-int64(len(end))))
	return bytes.Contains(end[:n], []byte("init terminating in do_boot"))
}

func (r *rabbitMQ) setURLs(ip string, port, management int) {
	user := url.UserPassword("shop", r.settings.Password)
	r.url = (&url.URL{Scheme: "amqp", User: user, Host: fmt.Sprintf("%s:%d", ip, port), Path: "/"}).String()
	r.management = (&url.URL{Scheme: "http", User: user, Host: fmt.Sprintf("%s:%d", ip, management)}).String()
}

// ask returns the version once the broker accepts connections, which it does last. Only a node with our password tells it.
func (r *rabbitMQ) ask(ctx context.Context) (version string, err error) {
	body, err := provision.Call(ctx, http.MethodGet, r.management+"/api/overview", nil)
	if err != nil {
		return "", err
	}
	var overview struct {
		Version string `json:"rabbitmq_version"`
	}
	if err := json.Unmarshal(body, &overview); err != nil {
		return "", fmt.Errorf("reading the overview of RabbitMQ: %w", err)
	}
	u, err := url.Parse(r.url)
	if err != nil {
		return "", err
	}
	return overview.Version, reachable(ctx, u.Host)
}

func (r *rabbitMQ) startContainer(ctx context.Context) (string, error) {
	if err := r.settings.save(r.dir); err != nil {
		return "", err
	}
	err := r.container.start(ctx, []int{5672, 15672}, []string{
		"--hostname", "shop", // the node's name, and so where its data is
		"-e", "RABBITMQ_DEFAULT_USER=shop", "-e", "RABBITMQ_DEFAULT_PASS=" + r.settings.Password,
	})
	if err != nil {
		return "", err
	}
	r.pid = r.container.pid
	r.setURLs("127.0.0.1", r.container.ports[0], r.container.ports[1])
	var version string
	err = r.container.await(ctx, 2*time.Minute, func(ctx context.Context) (err error) {
		version, err = r.ask(ctx)
		return err
	})
	return fmt.Sprintf("%s in a container, on 127.0.0.1:%d", version, r.container.ports[0]), err
}

// endPredecessor ends what is left of an earlier node. In a cluster the epmd is that of all nodes, and stays.
func (r *rabbitMQ) endPredecessor() error {
	if r.cluster == nil {
		return stopRabbitMQ(r.dir, true)
	}
	if p, running := recorded(filepath.Join(r.dir, nodeRecord)); running {
		if err := p.stop(step{syscall.SIGKILL, 5 * time.Second}); err != nil {
			return fmt.Errorf("stopping RabbitMQ: %w", err)
		}
	}
	return nil
}

// stopRabbitMQ ends the recorded node and its epmd.
func stopRabbitMQ(dir string, atOnce bool) error {
	steps := []step{{syscall.SIGTERM, rabbitKind.stopTimeout}, {syscall.SIGKILL, 5 * time.Second}}
	if atOnce {
		steps = steps[1:]
	}
	for _, record := range []string{nodeRecord, epmdRecord} {
		if p, running := recorded(filepath.Join(dir, record)); running {
			if err := p.stop(steps...); err != nil {
				return fmt.Errorf("stopping RabbitMQ: %w", err)
			}
		}
	}
	return endHelpers(dir)
}

// endHelpers ends the processes that a node leaves behind, after the node and its epmd have ended. A node that starts makes
// sure of epmd with an Erlang of its own, which can outlive the node and then starts an epmd that nobody would end. They
// are recognized by their environment, which names the node's configuration.
func endHelpers(dir string) error {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	for {
		left := withEnvironment("RABBITMQ_CONFIG_FILE=" + filepath.Join(dir, "rabbitmq.conf"))
		if len(left) == 0 {
			return nil
		}
		for _, pid := range left {
			_ = syscall.Kill(pid, syscall.SIGKILL) // one that has ended meanwhile is not found again
		}
		if pause(ctx, 10*time.Millisecond) != nil {
			return fmt.Errorf("stopping RabbitMQ: its processes %v cannot be killed", left)
		}
	}
}
