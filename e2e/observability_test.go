package e2e

import (
	"net"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"
)

const observabilityFile = "../deploy/compose/observability.yaml"

// readYAML reads a file into what a test looks at of it.
func readYAML(t *testing.T, path string, into any) {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := yaml.Unmarshal(text, into); err != nil {
		t.Fatalf("%s: %v", path, err)
	}
}

// observability is what the tests look at in the services of the profile observability.
type observability struct {
	Services map[string]struct {
		Image    string
		Profiles []string
		Ports    []string
		Volumes  []string
	}
}

// prometheusFile is a configuration of Prometheus.
type prometheusFile struct {
	Jobs []scrapeJob `yaml:"scrape_configs"`
}

type scrapeJob struct {
	Name   string                       `yaml:"job_name"`
	Static []struct{ Targets []string } `yaml:"static_configs"`
	DNS    []struct{ Names []string }   `yaml:"dns_sd_configs"`
}

func TestObservability_IsAProfileOfItsOwnForThisMachine(t *testing.T) {
	t.Parallel()
	var file observability
	readYAML(t, observabilityFile, &file)
	full := regexp.MustCompile(`^[\w./-]+:v?\d+\.\d+\.\d+$`)
	files := 0
	for name, service := range file.Services {
		if !slices.Equal(service.Profiles, []string{"observability"}) {
			t.Errorf("%s has the profiles %v", name, service.Profiles)
		}
		if service.Image != "shop" && !full.MatchString(service.Image) {
			t.Errorf("%s: %s is no full version", name, service.Image)
		}
		for _, port := range service.Ports {
			if publishedPort.FindStringSubmatch(port) == nil {
				t.Errorf("%s publishes %s: let a variable choose, for this machine alone", name, port)
			}
		}
		for _, volume := range service.Volumes {
			if source, _, _ := strings.Cut(volume, ":"); strings.HasPrefix(source, ".") {
				files++
				if !exists(filepath.Join("../deploy/compose", source)) {
					t.Errorf("%s mounts %s, which does not exist", name, source)
				}
			}
		}
	}
	if len(file.Services) != 6 || files != 5 {
		t.Errorf("%d services with %d files", len(file.Services), files)
	}
	_, demo := readCompose(t, demoFile)
	if !strings.Contains(demo, "\ninclude: [deploy/compose/observability.yaml]\n") {
		t.Errorf("%s does not include it", demoFile)
	}
}

// The addresses and files by which the parts refer to each other exist.
func TestObservability_ThePartsFindEachOther(t *testing.T) {
	t.Parallel()
	var file observability
	readYAML(t, observabilityFile, &file)
	demo, _ := readCompose(t, demoFile)
	container := func(where, host string) {
		t.Helper()
		_, tool := file.Services[host]
		if _, service := demo.Services[host]; !tool && !service {
			t.Errorf("%s: no container is called %q", where, host)
		}
	}

	var prometheus, local prometheusFile
	readYAML(t, "../deploy/prometheus/compose.yaml", &prometheus)
	readYAML(t, "../deploy/prometheus/prometheus.yaml", &local)
	jobs := map[string]bool{}
	for _, job := range prometheus.Jobs {
		jobs[job.Name] = true
		for _, names := range job.DNS {
			container("job "+job.Name, names.Names[0])
		}
		for _, static := range job.Static {
			for _, target := range static.Targets {
				host, _, err := net.SplitHostPort(target)
				if err != nil {
					t.Error(err)
				}
				container("job "+job.Name, host)
			}
		}
	}
	for _, job := range local.Jobs {
		if !jobs[job.Name] {
			t.Errorf("with compose nobody scrapes %s", job.Name)
		}
	}
	for _, service := range append(services, "audit") {
		if !slices.ContainsFunc(local.Jobs, func(j scrapeJob) bool { return j.Name == service }) {
			t.Errorf("prometheus.yaml does not scrape %s", service)
		}
	}

	var sources struct {
		Datasources []struct {
			UID, URL string
			JSON     struct {
				Exemplars []struct {
					UID string `yaml:"datasourceUid"`
				} `yaml:"exemplarTraceIdDestinations"`
			} `yaml:"jsonData"`
		}
	}
	readYAML(t, "../deploy/grafana/provisioning/datasources/shop.yaml", &sources)
	uids := map[string]bool{}
	for _, source := range sources.Datasources {
		uids[source.UID] = true
		u, err := url.Parse(source.URL)
		if err != nil {
			t.Fatal(err)
		}
		container("data source "+source.UID, u.Hostname())
	}
	for _, source := range sources.Datasources {
		for _, exemplar := range source.JSON.Exemplars {
			if !uids[exemplar.UID] {
				t.Errorf("exemplars lead to the data source %s, which there is not", exemplar.UID)
			}
		}
	}
	var provider struct {
		Providers []struct{ Options struct{ Path string } }
	}
	readYAML(t, "../deploy/grafana/provisioning/dashboards/shop.yaml", &provider)
	if want := "../grafana/dashboards:" + provider.Providers[0].Options.Path + ":ro"; !slices.Contains(file.Services["grafana"].Volumes, want) {
		t.Errorf("grafana does not mount %s", want)
	}

	var collector struct {
		Receivers, Processors map[string]any
		Exporters             map[string]struct{ Endpoint string }
		Service               struct {
			Pipelines map[string]struct{ Receivers, Processors, Exporters []string }
		}
	}
	readYAML(t, "../deploy/otel/collector.yaml", &collector)
	for _, signal := range []string{"traces", "logs"} { // what compose.yaml lets services send
		pipeline := collector.Service.Pipelines[signal]
		if len(pipeline.Receivers) == 0 || len(pipeline.Exporters) == 0 {
			t.Errorf("the collector does nothing with %s: %+v", signal, collector.Service)
		}
		for _, name := range pipeline.Receivers {
			if collector.Receivers[name] == nil {
				t.Errorf("the collector has no receiver %s", name)
			}
		}
		for _, name := range pipeline.Processors {
			if collector.Processors[name] == nil {
				t.Errorf("the collector has no processor %s", name)
			}
		}
		for _, name := range pipeline.Exporters {
			exporter, ok := collector.Exporters[name]
			if !ok {
				t.Errorf("the collector has no exporter %s", name)
			}
			if exporter.Endpoint != "" {
				host, _, _ := net.SplitHostPort(exporter.Endpoint)
				container("exporter "+name, host)
			}
		}
	}
}

func TestObservability_ComposeAcceptsIt(t *testing.T) {
	t.Parallel()
	if err := exec.CommandContext(t.Context(), "docker", "compose", "version").Run(); err != nil {
		t.Skip("there is no docker compose")
	}
	cmd := exec.CommandContext(t.Context(), "docker", "compose", "--file", demoFile, "--profile", "observability", "config", "--services")
	cmd.Stderr = t.Output()
	out, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range append([]string{"prometheus", "grafana", "collector", "jaeger", "postgres-exporter", "auditor"}, services...) {
		if !slices.Contains(strings.Fields(string(out)), want) {
			t.Errorf("compose does not start %s but %s", want, strings.Fields(string(out)))
		}
	}
}
