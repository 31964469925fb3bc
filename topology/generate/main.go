// Command generate writes what others read of the contracts and of the table of services in package topology:
// definitions.json, which a broker imports, the list of schemas in db/bootstrap.sql, what Prometheus scrapes, what the
// production overlay for Kubernetes has of each service, and what the front page knows of events and of an order's states. Its
// argument is the folder of the project.
package main

import (
	"bytes"
	"fmt"
	"log"
	"os"
	"path/filepath"
	"regexp"
	"strings"

	"shop.example/domain/orderstate"
	"shop.example/platform/contract"
	"shop.example/platform/messaging/provision"
	"shop.example/topology"
)

func main() {
	log.SetFlags(0)
	log.SetPrefix("generate: ")
	if len(os.Args) != 2 {
		log.Fatal("give the folder of the project")
	}
	if err := run(os.Args[1]); err != nil {
		log.Fatal(err)
	}
}

// list matches the line of bootstrap.sql that names the schemas.
var list = regexp.MustCompile(`ARRAY \[[^]]*\]`)

func run(dir string) error {
	definitions, err := provision.JSON(topology.Broker())
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(dir, "topology", "definitions.json"), definitions, 0o644); err != nil { //nolint:gosec // everybody may read it
		return fmt.Errorf("writing the broker's definitions: %w", err)
	}
	bootstrap := filepath.Join(dir, "db", "bootstrap.sql")
	sql, err := os.ReadFile(bootstrap)
	if err != nil {
		return fmt.Errorf("reading the script that makes the roles: %w", err)
	}
	if n := len(list.FindAll(sql, -1)); n != 1 {
		return fmt.Errorf("%s has %d lists of schemas, ARRAY ['…'], instead of one", bootstrap, n)
	}
	schemas := "ARRAY ['" + strings.Join(topology.Schemas(), "', '") + "']"
	if sql = list.ReplaceAllLiteral(sql, []byte(schemas)); bytes.Contains(sql, []byte("['']")) {
		return fmt.Errorf("no service has a schema")
	}
	if err := os.WriteFile(bootstrap, sql, 0o644); err != nil { //nolint:gosec // everybody may read it
		return fmt.Errorf("writing the script that makes the roles: %w", err)
	}
	for file, target := range map[string]string{
		"prometheus.yaml": "static_configs: [{targets: ['localhost:%[2]d']}]",
		"compose.yaml":    "dns_sd_configs: [{names: [%[1]s], type: A, port: %[2]d}]", // an address for each container
	} {
		if err := writeScrapeJobs(filepath.Join(dir, "deploy", "prometheus", file), target); err != nil {
			return err
		}
	}
	if err := writeKubernetes(dir); err != nil {
		return err
	}
	page := filepath.Join(dir, "gateway", "web", "assets", "contracts.js")
	if err := os.WriteFile(page, module(), 0o644); err != nil { //nolint:gosec // everybody may read it
		return fmt.Errorf("writing what the page knows of events: %w", err)
	}
	return nil
}

// scrapeJobs matches the lines of Prometheus's configuration that are generated: those between two that stay.
var scrapeJobs = regexp.MustCompile(`(?s)(\n  # The services, written by [^\n]*\n).*?(  - job_name: audit\n)`)

// writeScrapeJobs writes a scrape job for each service; target returns the address of a service from its name and admin port.
func writeScrapeJobs(file, target string) error {
	config, err := os.ReadFile(file)
	if err != nil {
		return fmt.Errorf("reading what Prometheus scrapes: %w", err)
	}
	around := scrapeJobs.FindSubmatchIndex(config)
	if around == nil {
		return fmt.Errorf("%s does not have the line \"# The services, written by\" before the job of the audit", file)
	}
	jobs := bytes.NewBuffer(bytes.Clone(config[:around[3]]))
	for _, s := range topology.Services() {
		fmt.Fprintf(jobs, "  - job_name: %s\n    "+target+"\n", s.Name, s.AdminPort)
	}
	jobs.Write(config[around[4]:])
	if err := os.WriteFile(file, jobs.Bytes(), 0o644); err != nil { //nolint:gosec // everybody may read it
		return fmt.Errorf("writing what Prometheus scrapes: %w", err)
	}
	return nil
}

// module is the JavaScript that has the contracts' events, and the states of an order.
func module() []byte {
	var js bytes.Buffer
	js.WriteString("// Written by `make generate` from the contracts; never edited.\n\n" +
		"// keys are the routing keys of events, by the names of their messages.\nexport const keys = {\n")
	for _, e := range contract.Events() {
		fmt.Fprintf(&js, "  %s: '%s',\n", e.Name.Name(), e.RoutingKey)
	}
	js.WriteString("};\n\n// routes say which services publish and handle an event, by its routing key. Operators publish what no service does.\nexport const routes = {\n")
	for _, e := range contract.Events() {
		fmt.Fprintf(&js, "  '%s': {from: [%s], to: [%s]},\n", e.RoutingKey, quoted(e.PublishedBy), quoted(e.HandledBy))
	}
	js.WriteString("};\n\n// states are the states of a stored order, by the routing key of the event that says that an order has come into it.\nexport const states = {\n")
	for _, state := range orderstate.Stored() {
		event, _ := contract.EventOf(orderstate.EventOf(state))
		fmt.Fprintf(&js, "  '%s': '%s',\n", event.RoutingKey, state)
	}
	js.WriteString("};\n\n// ways are the states that an order has been in, by its state.\nexport const ways = {\n")
	for _, state := range orderstate.All() {
		var way []string
		for _, s := range orderstate.UpTo(state) {
			way = append(way, s.String())
		}
		fmt.Fprintf(&js, "  %s: [%s],\n", state, quoted(way))
	}
	js.WriteString("};\n\n// bindings are the patterns of routing keys that the queue of a service takes, by the service.\nexport const bindings = {\n")
	for _, s := range topology.Services() {
		if len(s.Bindings) > 0 {
			fmt.Fprintf(&js, "  %s: [%s],\n", s.Name, quoted(s.Bindings))
		}
	}
	js.WriteString("};\n\n// calls are made over the broker, by services to services.\nexport const calls = [\n")
	for _, m := range contract.Methods() {
		fmt.Fprintf(&js, "  {exchange: '%s', key: '%s', queue: '%s', from: [%s], to: '%s'},\n", m.Exchange, m.RoutingKey, m.Queue, quoted(m.CalledBy), m.AnsweredBy)
	}
	js.WriteString("];\n\n// eventExchange is where events are published to.\n")
	fmt.Fprintf(&js, "export const eventExchange = '%s';\n", topology.Broker().EventExchange)
	return js.Bytes()
}

func quoted(names []string) string {
	texts := make([]string, len(names))
	for i, name := range names {
		texts[i] = "'" + name + "'"
	}
	return strings.Join(texts, ", ")
}
