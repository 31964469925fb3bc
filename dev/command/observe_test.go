package command

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"
)

func TestObserve_WithoutPrometheusSaysWhatToInstall(t *testing.T) {
	t.Chdir(t.TempDir()) // which is in no workspace
	t.Setenv("PATH", "")
	root := Root()
	root.SetArgs([]string{"up", "--observe"})
	err := root.ExecuteContext(t.Context())
	if err == nil || !strings.Contains(err.Error(), "install it from https://prometheus.io/download") {
		t.Errorf("got %v", err)
	}
	if _, err := os.Stat(".shop"); err == nil {
		t.Error("servers were started before")
	}
}

func TestObserve_ScrapesWhatItIsGivenWithTheRulesOfTheShop(t *testing.T) {
	t.Parallel()
	o := &observer{rules: "/srv/rules.yaml", dir: filepath.Join(t.TempDir(), "observe")}
	if err := o.configure(map[string]string{"order": "127.0.0.1:3101", "audit": "127.0.0.1:3109"}, "127.0.0.1:15692"); err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(filepath.Join(o.dir, "prometheus.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	var file struct {
		Rules []string `yaml:"rule_files"`
		Jobs  []struct {
			Name   string                       `yaml:"job_name"`
			Path   string                       `yaml:"metrics_path"`
			Static []struct{ Targets []string } `yaml:"static_configs"`
		} `yaml:"scrape_configs"`
	}
	if err := yaml.Unmarshal(text, &file); err != nil {
		t.Fatal(err)
	}
	got := ""
	for _, job := range file.Jobs {
		got += job.Name + job.Path + "=" + job.Static[0].Targets[0] + " "
	}
	if want := "audit=127.0.0.1:3109 order=127.0.0.1:3101 rabbitmq/metrics/per-object=127.0.0.1:15692 "; got != want || file.Rules[0] != o.rules {
		t.Errorf("it scrapes %s by %v, want %s", got, file.Rules, want)
	}
}
