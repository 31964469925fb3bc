package e2e

import (
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"

	"shop.example/platform/telemetry"
)

// builtPackages are the programs that the images carry, in the Dockerfile's go build.
var builtPackages = regexp.MustCompile(`(?s)go build [^&]*? -o /out/ \\\s+(.*?) &&`)

// What runs servers, breaks them, loads them or tests them is for developers. Production does not carry it.
func TestImages_CarryNeitherServersNorFaultsNorLoad(t *testing.T) {
	t.Parallel()
	programs := programsOfImages(t)
	for _, program := range append([]string{"./shop"}, services...) {
		if !slices.ContainsFunc(programs, func(p string) bool { return filepath.Base(p) == filepath.Base(program) }) {
			t.Errorf("no image carries %s: they carry %v", program, programs)
		}
	}
	forbidden := regexp.MustCompile(`^(shop\.example/(dev|bench|e2e)|shop\.example/.*test(kit)?|github\.com/Shopify/toxiproxy.*|github\.com/creack/pty|testing)(/|$)`)
	for _, program := range programs {
		packages := linkedBy(t, program)
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

// The version was given to a variable that only the shop command links: every service of a release said that it was "(devel)".
func TestImages_EveryProgramIsToldTheVersionOfTheRelease(t *testing.T) {
	t.Parallel()
	dockerfile, err := os.ReadFile("../Dockerfile")
	if err != nil {
		t.Fatal(err)
	}
	from := reflect.TypeFor[telemetry.Telemetry]().PkgPath()
	var _ *string = &telemetry.Release // The linker ignores a name that does not exist.
	if want := "-X " + from + ".Release=${VERSION}"; !strings.Contains(string(dockerfile), want) {
		t.Errorf("the Dockerfile does not build with %s", want)
	}
	for _, program := range programsOfImages(t) {
		if !slices.Contains(linkedBy(t, program), from) {
			t.Errorf("%s does not link %s", program, from)
		}
	}
}

// programsOfImages returns the folders of all programs that the images carry.
func programsOfImages(t *testing.T) (programs []string) {
	t.Helper()
	dockerfile, err := os.ReadFile("../Dockerfile")
	if err != nil {
		t.Fatal(err)
	}
	found := builtPackages.FindSubmatch(dockerfile)
	if found == nil {
		t.Fatal("the Dockerfile builds no programs")
	}
	for _, pattern := range strings.Fields(string(found[1])) {
		paths, err := filepath.Glob("../" + pattern)
		if err != nil {
			t.Fatal(err)
		}
		for _, path := range paths {
			programs = append(programs, "./"+strings.TrimPrefix(filepath.Clean(path), "../"))
		}
	}
	return programs
}

// linkedBy returns the packages of a program.
func linkedBy(t *testing.T, program string) []string {
	t.Helper()
	list := exec.CommandContext(t.Context(), "go", "list", "-deps", program)
	list.Dir = ".."
	out, err := list.Output()
	if err != nil {
		t.Fatalf("%s: %v", program, err)
	}
	return strings.Fields(string(out))
}
