package gate

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

const fixture = `package hot

import "testing"

var sink [][]byte

func work(n int) { for range n { sink = append(sink[:0], make([]byte, 64)) } }

func BenchmarkWork(b *testing.B) { for b.Loop() { work(LOOPS) } }

func BenchmarkOther(b *testing.B) { for b.Loop() { work(3) } }
`

// tree writes a module whose BenchmarkWork allocates so many times.
func tree(t *testing.T, loops string) string {
	t.Helper()
	root := t.TempDir()
	if err := os.Mkdir(filepath.Join(root, "hot"), 0o700); err != nil {
		t.Fatal(err)
	}
	for name, content := range map[string]string{
		"go.mod": "module hot.example\n\ngo 1.24\n", "hot/hot_test.go": strings.Replace(fixture, "LOOPS", loops, 1),
	} {
		if err := os.WriteFile(filepath.Join(root, name), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return root
}

func compare(t *testing.T, base, this string) (string, error) {
	t.Helper()
	return compareTrees(t, tree(t, base), tree(t, this))
}

func compareTrees(t *testing.T, base, this string) (string, error) {
	t.Helper()
	t.Setenv("GOWORK", "off") // the fixture is no module of the project
	var out strings.Builder
	err := Run(t.Context(), Options{
		Base: base, This: this, Benchmarks: map[string]string{"hot": "."},
		Rounds: 3, Time: 5 * time.Millisecond, Limit: 1.1, Out: &out,
	})
	return out.String(), err
}

func TestGate_FailsIfABenchmarkAllocatesMore(t *testing.T) {
	out, err := compare(t, "5", "9")
	if err == nil || !strings.Contains(err.Error(), "BenchmarkWork in hot: allocs/op is 1.80 times") {
		t.Errorf("the error is %v", err)
	}
	if err != nil && strings.Contains(err.Error(), "BenchmarkOther in hot: allocs/op") {
		t.Errorf("what has not changed fails, too: %v", err)
	}
	if !strings.Contains(out, "flat%") || !strings.Contains(out, "hot.example/hot.work") {
		t.Errorf("no profile shows what allocates:\n%s", out)
	}
}

func TestGate_TheSameAllocationsPass(t *testing.T) {
	out, err := compare(t, "5", "5")
	if err != nil && strings.Contains(err.Error(), "allocs/op") { // a machine that is busy may spoil times of 5 ms
		t.Errorf("%v\n%s", err, out)
	}
	if !strings.Contains(out, "allocs/op  1.000") {
		t.Errorf("no ratio of 1:\n%s", out)
	}
}

// The change that brings a benchmark once failed for it.
func TestGate_ABenchmarkThatIsNewPassesAndOneThatIsGoneFails(t *testing.T) {
	with, without := tree(t, "5"), tree(t, "5")
	if err := os.WriteFile(filepath.Join(without, "hot", "hot_test.go"), []byte("package hot\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if out, err := compareTrees(t, without, with); err != nil || !strings.Contains(out, "is new") {
		t.Errorf("a new one: %v\n%s", err, out)
	}
	if _, err := compareTrees(t, with, without); err == nil || !strings.Contains(err.Error(), "hot: there is no benchmark .") {
		t.Errorf("one that is gone: %v", err)
	}
}

func TestRatio_IsTheMedianAndSeesTheFirstAllocation(t *testing.T) {
	b := benchmark{rounds: map[string][][2]float64{"ns/op": {{100, 105}, {100, 300}, {100, 95}}, "allocs/op": {{0, 1}, {0, 1}}, "B/op": {{0, 0}}}}
	if got := b.ratio("ns/op"); got != 1.05 {
		t.Errorf("the ratio is %v", got)
	}
	if got := b.ratio("allocs/op"); got < 1e9 {
		t.Errorf("an allocation where none was is %v", got)
	}
	if got := b.ratio("B/op"); got != 1 {
		t.Errorf("nothing, as before, is %v", got)
	}
}
