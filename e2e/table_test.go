package e2e

import (
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"shop.example/db"
	"shop.example/shop/audit"
	"shop.example/topology"
)

var certificates = regexp.MustCompile(`command: \[certs, --dir, /certs, (.*)\]`)

// Package topology has the only table of the services. Files that cannot be generated from it are compared with it here.
func TestServices_EachHasWhatTheTableSays(t *testing.T) {
	t.Parallel()
	if folders, schemas := db.Schemas(), slices.Sorted(slices.Values(topology.Schemas())); !slices.Equal(folders, schemas) {
		t.Errorf("db/ has migrations of the schemas %q, the table has %q", folders, schemas)
	}
	for _, schema := range audit.Schemas() {
		if !slices.Contains(topology.Schemas(), schema) {
			t.Errorf("the audit compares schema %s, which no service has", schema)
		}
	}
	programs, err := filepath.Glob("../services/*/main.go")
	if err != nil {
		t.Fatal(err)
	}
	for i := range programs {
		programs[i] = filepath.Base(filepath.Dir(programs[i]))
	}
	others := slices.Sorted(slices.Values(topology.Names()[1:]))
	if !slices.Equal(programs, others) || topology.Names()[0] != topology.Gateway {
		t.Errorf("services/ has the programs %q, the table %q", programs, topology.Names())
	}

	demo, _ := readCompose(t, demoFile)
	production, text := readCompose(t, productionFile)
	certs := certificates.FindStringSubmatch(text)
	if certs == nil {
		t.Fatalf("%s makes no certificates", productionFile)
	}
	for _, s := range topology.Services() {
		if _, ok := demo.Services[s.Name]; !ok {
			t.Errorf("%s has no service %s", demoFile, s.Name)
		}
		if _, ok := production.Services[s.Name]; !ok {
			t.Errorf("%s has no service %s", productionFile, s.Name)
		}
		if !slices.Contains(strings.Split(certs[1], ", "), s.Name) {
			t.Errorf("%s makes no certificate for %s", productionFile, s.Name)
		}
	}

	work, err := os.ReadFile("../go.work")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range others {
		if !strings.Contains(string(work), "\t./services/"+name+"\n") {
			t.Errorf("go.work does not use ./services/%s", name)
		}
	}
}
