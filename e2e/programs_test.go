package e2e

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// builtPackages are the programs that the images carry, in the Dockerfile's go build.
var builtPackages = regexp.MustCompile(`(?s)go build [^&]*? -o /out/ \\\s+(.*?) &&`)

// What runs servers, breaks them, loads them or tests them is for developers. Production does not carry it.
func TestImages_CarryNeitherServersNorFaultsNorLoad(t *testing.T) {
	t.Parallel()
	dockerfile, err := os.ReadFile("../Dockerfile")
	if err != nil {
		t.Fatal(err)
	}
	found := builtPackages.FindSubmatch(dockerfile)
	if found == nil {
		t.Fatal("the Dockerfile builds no programs")
	}
	var programs []string
	for _, pattern := range strings.Fields(string(found[1])) {
		paths, err := filepath.Glob("../" + pattern)
		if err != nil {
			t.Fatal(err)
		}
		for _, path := range paths {
			programs = append(programs, "./"+strings.TrimPrefix(filepath.Clean(path), "../"))
		}
	}
	for _, program := range append([]string{"./shop"}, services...) {
		if !slices.ContainsFunc(programs, func(p string) bool { return filepath.Base(p) == filepath.Base(program) }) {
			t.Errorf("no image carries %s: they carry %v", program, programs)
		}
	}
	forbidden := regexp.MustCompile(`^(shop\.example/(dev|bench|e2e)|shop\.example/.*test(kit)?|github\.com/Shopify/toxiproxy.*|github\.com/creack/pty|testing)(/|$)`)
	for _, program := range programs {
		list := exec.CommandContext(t.Context(), "go", "list", "-deps", program)
		list.Dir = ".."
		out, err := list.Output()
		if err != nil {
			t.Fatalf("%s: %v", program, err)
		}
		packages := strings.Fields(string(out))
		for _, linked := range packages {
			own := strings.HasPrefix(linked, "shop.example/gateway") || strings.HasPrefix(linked, "shop.example/services/")
			if forbidden.MatchString(linked) || own && program == "./shop" {
				t.Errorf("%s links %s", program, linked)
			}
		}
		if !slices.Contains(packages, "shop.example/platform/contract") {
			t.Errorf("%s links %d packages, and not those of the shop", program, len(packages))
		}
	}
}
