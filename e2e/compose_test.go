package e2e

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"

	"shop.example/dev/stack"
	"shop.example/shop/command"
	"shop.example/topology"
)

const (
	demoFile       = "../compose.yaml"
	productionFile = "../deploy/compose/production.yaml"
	clusterFile    = "../deploy/compose/cluster.yaml"
)

// composeFile is what the tests look at in a compose file.
type composeFile struct {
	Name     string
	Services map[string]struct {
		Image       string
		Ports       []string
		Volumes     []string
		Networks    any
		Command     any
		Environment map[string]any
	}
}

func readCompose(t *testing.T, path string) (file composeFile, text string) {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := yaml.Unmarshal(data, &file); err != nil {
		t.Fatalf("%s: %v", path, err)
	}
	if len(file.Services) < 7 {
		t.Fatalf("%s has the services %v: it was not read", path, file.Services)
	}
	return file, string(data)
}

var (
	fullVersion = regexp.MustCompile(`^(postgres:\d+\.\d+|(rabbitmq|golang|haproxy):\d+\.\d+\.\d+)(-\w+)?(@sha256:[0-9a-f]{64})?$`)
	fromLine    = regexp.MustCompile(`(?m)^FROM (\S+)`)
	stackImage  = regexp.MustCompile(`\bimage: "([^"]+)"`)
	// containerImage is that of the devcontainer, and of CI.
	containerImage = regexp.MustCompile(`(?m)^\s*"?image"?: "?([^",\n]+)`)
	// publishedPort is a port that can be chosen by a variable. 0 is any free one.
	publishedPort = regexp.MustCompile(`^127\.0\.0\.1:\$\{([A-Z_]+):-(\d+)\}:\d+$`)
	// certsFolders is the loop over the folders that shop certs writes to.
	certsFolders = regexp.MustCompile(`for name in (.*); do mkdir -p "/out/all/\$name"`)
	required     = regexp.MustCompile(`\$\{([A-Z_]+):\?`)
	withDefault  = regexp.MustCompile(`\$\{([A-Z_]+(?:PASSWORD|SECRET|TOKENS)):-`)
)

// An image's tag that moves means another program on the next machine.
func TestCompose_ImagesOfOthersHaveTheirFullVersion(t *testing.T) {
	t.Parallel()
	images := map[string]string{} // where they stand
	for _, path := range []string{demoFile, productionFile, clusterFile} {
		file, _ := readCompose(t, path)
		for name, service := range file.Services {
			if service.Image != "" && service.Image != "shop" && !strings.HasPrefix(service.Image, "shop-") {
				images[service.Image] = path + ": " + name
			}
		}
	}
	used := len(images)
	for path, pattern := range map[string]*regexp.Regexp{
		"../Dockerfile": fromLine, "../.devcontainer/devcontainer.json": containerImage, "../.gitlab-ci.yml": containerImage,
		"../dev/stack/postgres.go": stackImage, "../dev/stack/rabbitmq.go": stackImage,
	} {
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		found := pattern.FindAllStringSubmatch(string(text), -1)
		if len(found) == 0 {
			t.Errorf("%s names no image", path)
		}
		for _, m := range found {
			switch where, known := images[m[1]]; {
			case m[1] == "scratch", m[1] == "base":
			case pattern == stackImage && !known:
				t.Errorf("%s starts %s, the compose files do not: one version for all", path, m[1])
			case where == "":
				images[m[1]] = path
			}
		}
	}
	if used != 3 || len(images) != 4 {
		t.Errorf("images %v: one of PostgreSQL, of RabbitMQ, of HAProxy and of Go are expected", images)
	}
	for image, where := range images {
		if !fullVersion.MatchString(image) {
			t.Errorf("%s: %s is no full version", where, image)
		}
	}
}

func TestCompose_NothingIsPublishedToOtherMachines(t *testing.T) {
	t.Parallel()
	published := 0
	for _, path := range []string{demoFile, productionFile} {
		file, _ := readCompose(t, path)
		for name, service := range file.Services {
			for _, port := range service.Ports {
				published++
				if !strings.HasPrefix(port, "127.0.0.1:") {
					t.Errorf("%s: %s is published on %s", path, name, port)
				}
			}
		}
		if path == productionFile && published != 4 {
			t.Errorf("%d ports are published, 4 are expected, all by %s", published, demoFile)
		}
	}
	cluster, _ := readCompose(t, clusterFile)
	for name, service := range cluster.Services {
		for _, port := range service.Ports {
			if m := publishedPort.FindStringSubmatch(port); name != "proxy" || m == nil {
				t.Errorf("%s: %s is published on %s", clusterFile, name, port)
			}
		}
	}
	production, text := readCompose(t, productionFile)
	for _, name := range []string{"db", "rabbitmq"} {
		if production.Services[name].Ports == nil || strings.Count(text, "ports: !reset []") != 2 {
			t.Errorf("%s: %s keeps the ports of %s", productionFile, name, demoFile)
		}
	}
}

// A PostgreSQL or RabbitMQ that runs on this machine does not collide with the shop's, and every port can be chosen.
func TestCompose_TheAPIAloneTakesAFixedPortAndAllCanBeSet(t *testing.T) {
	t.Parallel()
	file, text := readCompose(t, demoFile)
	head, _, _ := strings.Cut(text, "\nname: ") // what can be set is explained there
	for name, service := range file.Services {
		for _, port := range service.Ports {
			m := publishedPort.FindStringSubmatch(port)
			switch {
			case m == nil:
				t.Errorf("%s: %s publishes %s: let a variable choose, as in 127.0.0.1:${POSTGRES_PORT:-0}:5432", demoFile, name, port)
			case (m[2] == "0") == (name == "gateway"):
				t.Errorf("%s: %s takes port %s by default", demoFile, name, m[2])
			case !strings.Contains(head, m[1]):
				t.Errorf("%s: the comment at its top does not explain %s", demoFile, m[1])
			}
		}
	}
}

// Production does not start while a secret has no value, and has no default for one: the demonstration's defaults are
// public.
func TestCompose_ProductionStartsWithTheSecretsOfShopSecretsAlone(t *testing.T) {
	t.Parallel()
	_, demo := readCompose(t, demoFile)
	_, production := readCompose(t, productionFile)
	needs := map[string]bool{}
	for _, m := range required.FindAllStringSubmatch(production, -1) {
		needs[m[1]] = true
	}
	for _, m := range withDefault.FindAllStringSubmatch(demo, -1) {
		if !needs[m[1]] {
			t.Errorf("%s has a default for %s, and %s starts with it", demoFile, m[1], productionFile)
		}
	}
	file := filepath.Join(t.TempDir(), ".env")
	root := command.Root()
	root.SetOut(&bytes.Buffer{})
	root.SetArgs([]string{"secrets", "--file", file})
	if err := root.ExecuteContext(t.Context()); err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		name, value, ok := strings.Cut(strings.TrimSpace(line), "=")
		switch {
		case !ok:
		case name == "COMPOSE_FILE":
			for _, path := range strings.Split(value, ":") {
				if !exists(filepath.Join("..", path)) {
					t.Errorf("%s names %s, which does not exist", name, path)
				}
			}
		case !needs[name]:
			t.Errorf("shop secrets makes %s, without which production starts", name)
		default:
			delete(needs, name)
		}
	}
	for name := range needs {
		t.Errorf("production needs %s, which shop secrets does not make", name)
	}
}

// notPassedOn are variables that containers do not get from the environment or .env, and why.
var notPassedOn = map[string]string{
	"AMQP_URL": "made of the passwords", "DATABASE_URL": "made of the passwords",
	"HTTP_ADDR": "SHOP_PORT is where it is published", "GRPC_ADDR": "its port is part of the others' addresses", "ADMIN_ADDR": "its port is the health check's",
	"ORDER_ADDR": "a container's name", "INVENTORY_ADDR": "a container's name", "LOGGING_ADDR": "a container's name", "WEBHOOKS_ADDR": "a container's name",
	"GRPC_TLS_CERT_FILE": "in a volume", "GRPC_TLS_KEY_FILE": "in a volume", "GRPC_TLS_CA_FILE": "in a volume",
	"TLS_CERT_FILE": "a proxy speaks TLS with the world", "TLS_KEY_FILE": "a proxy speaks TLS with the world",
	"PPROF_ADDR":            "profiles are for the container itself",
	"FLIGHT_RECORDER_LIMIT": "nothing can be written in a container", "FLIGHT_RECORDER_DIR": "nothing can be written in a container",
	"NO_COLOR": "there is no terminal",
}

// EVENT_LOG_RETENTION=0 in .env, as the documents said, reached no container: events were deleted for good.
func TestCompose_WhatAServiceReadsIsPassedOnFromTheEnvironment(t *testing.T) {
	t.Parallel()
	demo, _ := readCompose(t, demoFile)
	passesOn := func(service, name string) bool {
		value, ok := demo.Services[service].Environment[name]
		return ok && (value == nil || strings.HasPrefix(fmt.Sprint(value), "${"+name+":-"))
	}
	passed := 0
	for _, row := range settings(t) {
		for _, name := range row.names {
			for _, service := range services {
				if !slices.Contains(row.readers, service) {
					continue
				}
				why, fixed := notPassedOn[name]
				switch passes := passesOn(service, name); {
				case passes && fixed:
					t.Errorf("%s gets %s, although %s", service, name, why)
				case passes:
					passed++
				case !fixed:
					t.Errorf("%s reads %s, which %s does not pass on: add `%s:` to its environment, or to notPassedOn with the reason", service, name, demoFile, name)
				}
			}
		}
	}
	if passed < 100 {
		t.Errorf("%d variables are passed on", passed)
	}
	// What another file sets can still be set by its user.
	for _, path := range []string{productionFile, clusterFile} {
		file, _ := readCompose(t, path)
		for _, service := range services {
			for name, value := range file.Services[service].Environment {
				if passesOn(service, name) && !strings.HasPrefix(fmt.Sprint(value), "${"+name+":") {
					t.Errorf("%s: %s has %s %v, whatever .env says", path, service, name, value)
				}
			}
		}
	}
}

func TestCompose_ProductionSpeaksTLSWithBrokerAndDatabase(t *testing.T) {
	t.Parallel()
	_, text := readCompose(t, productionFile)
	if n := strings.Count(text, "AMQP_URL: "); n != len(services) || strings.Count(text, "AMQP_URL: amqps://") != n || strings.Count(text, ":5671/?cacertfile=/certs/ca.pem\n") != n {
		t.Errorf("%d services have a broker, not all of them with TLS", n)
	}
	if n := strings.Count(text, "DATABASE_URL: "); n != len(topology.Schemas())+1 || strings.Count(text, "?sslmode=verify-full&sslrootcert=/certs/ca.pem\n") != n {
		t.Errorf("%d services and the audit have a database, not all of them know whose it is", n)
	}
	for _, want := range []string{"listeners.tcp = none\n", "hostssl  all  all"} {
		if !strings.Contains(text, want) {
			t.Errorf("the servers speak without TLS too: %q is missing", want)
		}
	}
}

// The audit could not repair or report anything: it had the database's network alone, and the gateway is in the other.
func TestCompose_TheAuditReachesTheDatabaseAndTheGateway(t *testing.T) {
	t.Parallel()
	file, _ := readCompose(t, productionFile)
	networks := func(name string) []any {
		if of, ok := file.Services[name].Networks.([]any); ok {
			return of
		}
		return []any{"default"}
	}
	audit := file.Services["audit"]
	for name, server := range map[string]string{"db": fmt.Sprint(audit.Environment["DATABASE_URL"]), "gateway": fmt.Sprint(audit.Environment["SHOP_SERVER"])} {
		if !slices.ContainsFunc(networks("audit"), func(n any) bool { return slices.Contains(networks(name), n) }) {
			t.Errorf("audit is in the networks %v, and %s in %v", networks("audit"), name, networks(name))
		}
		if !strings.Contains(server, name+":") {
			t.Errorf("audit looks for %s at %q", name, server)
		}
	}
}

func TestCompose_EachContainerHasItsOwnKeyAlone(t *testing.T) {
	t.Parallel()
	var made []string // what certs makes, by volume
	mounts := map[string][]string{}
	for _, path := range []string{demoFile, productionFile} {
		file, _ := readCompose(t, path)
		for name, service := range file.Services {
			for _, volume := range service.Volumes {
				source, target, _ := strings.Cut(volume, ":")
				owner, isCertificate := strings.CutSuffix(source, "-certs")
				switch {
				case !isCertificate:
				case name == "certs":
					made = append(made, owner)
					if target != "/certs/"+owner {
						t.Errorf("%s: certs writes those of %s to %s", path, owner, target)
					}
				case owner != name || target != "/certs:ro":
					t.Errorf("%s: %s has the certificate of %s, as %s", path, name, owner, target)
				default:
					mounts[name] = append(mounts[name], path)
				}
			}
		}
	}
	production, _ := readCompose(t, productionFile)
	names, _ := production.Services["certs"].Command.([]any)
	dockerfile, err := os.ReadFile("../Dockerfile")
	if err != nil {
		t.Fatal(err)
	}
	loop := certsFolders.FindStringSubmatch(string(dockerfile))
	if loop == nil {
		t.Fatal("Dockerfile makes no folders for certificates")
	}
	folders := strings.Fields(strings.Replace(loop[1], "$(ls services)", strings.Join(topology.Names()[1:], " "), 1))
	for _, owner := range made {
		if len(mounts[owner]) != 1 {
			t.Errorf("%s has its certificate %d times: %v", owner, len(mounts[owner]), mounts[owner])
		}
		if !slices.Contains(names, any(owner)) {
			t.Errorf("%s: certs does not make a certificate of %s", productionFile, owner)
		}
		if !slices.Contains(folders, owner) {
			t.Errorf("Dockerfile: `shop certs` cannot write to the volume of %s: make a folder all/%s", owner, owner)
		}
	}
	if len(made) != len(topology.Names())+3 {
		t.Errorf("certificates are made for %v", made)
	}
}

// What a cluster's brokers are told is the same in the document, in compose and where it is measured.
func TestCompose_TheClustersBrokersAreConfiguredAsDocumentedAndMeasured(t *testing.T) {
	t.Parallel()
	_, cluster := readCompose(t, clusterFile)
	document, err := os.ReadFile("../docs/production.md")
	if err != nil {
		t.Fatal(err)
	}
	lines := slices.Concat(strings.Fields(strings.ReplaceAll(stack.ClusterSettings, " = ", "=")), []string{strings.TrimSpace(stack.ClusterAdvanced)})
	if len(lines) != 4 {
		t.Fatalf("settings %q", lines)
	}
	for _, line := range lines {
		line = strings.Replace(line, "=", " = ", 1)
		for path, text := range map[string]string{clusterFile: cluster, "docs/production.md": string(document)} {
			if !strings.Contains(text, line) {
				t.Errorf("%s does not have %q, which make cluster measures", path, line)
			}
		}
	}
}

// Every service knows all brokers and both databases, and compose itself reads the file as we mean it.
func TestCompose_TheClusterKnowsAllItsServers(t *testing.T) {
	t.Parallel()
	_, text := readCompose(t, clusterFile)
	if n := strings.Count(text, "AMQP_URL: "); n != len(services) || strings.Count(text, "@rabbitmq:5672,rabbitmq-2:5672,rabbitmq-3:5672/\n") != n {
		t.Errorf("%s: %d services have a broker, not all of them know three", clusterFile, n)
	}
	if n := strings.Count(text, "DATABASE_URL: "); n != len(topology.Schemas()) || strings.Count(text, "@db:5432,db-standby:5432/") != n {
		t.Errorf("%s: %d services have a database, not all of them know both", clusterFile, n)
	}
	if err := exec.CommandContext(t.Context(), "docker", "compose", "version").Run(); err != nil {
		t.Skip("docker compose is not installed")
	}
	compose := func(secret string) ([]byte, error) {
		cmd := exec.CommandContext(t.Context(), "docker", "compose", "-f", "compose.yaml", "-f", "deploy/compose/cluster.yaml", "config", "--format", "json")
		cmd.Dir, cmd.Env = "..", append(os.Environ(), "SHOP_ID_SECRET="+secret)
		return cmd.Output()
	}
	if _, err := compose(""); err == nil {
		t.Error("two gateways start without SHOP_ID_SECRET")
	}
	config, err := compose("0123456789abcdef")
	if err != nil {
		t.Fatal(err)
	}
	var merged struct {
		Services map[string]struct {
			Hostname string
			Ports    []any
			Configs  []any
			Deploy   struct{ Replicas int }
			Volumes  []struct{ Source, Target string }
		}
	}
	if err := json.Unmarshal(config, &merged); err != nil {
		t.Fatal(err)
	}
	for _, name := range services {
		if s := merged.Services[name]; s.Deploy.Replicas != 2 || len(s.Ports) > 0 {
			t.Errorf("%s has %d replicas and the ports %v", name, s.Deploy.Replicas, s.Ports)
		}
	}
	data := map[string]bool{}
	for _, name := range []string{"rabbitmq", "rabbitmq-2", "rabbitmq-3"} {
		s := merged.Services[name]
		if s.Hostname != name || len(s.Configs) != 6 || len(s.Volumes) != 1 || data[s.Volumes[0].Source] {
			t.Errorf("%s has the name %q, %d files of configuration and the volumes %v", name, s.Hostname, len(s.Configs), s.Volumes)
			continue
		}
		data[s.Volumes[0].Source] = true
	}
}
