package measure

import (
	"testing"
	"time"
)

func TestFairness_CountsLaterOrdersThatWereDecidedEarlier(t *testing.T) {
	t.Parallel()
	begin := time.Now()
	at := func(accepted, decided int) span {
		return span{begin.Add(time.Duration(accepted) * time.Millisecond), begin.Add(time.Duration(decided) * time.Millisecond)}
	}
	f := Figures{}
	// The second waits until three that came after it are decided. The last two are decided together, which is no overtaking.
	f.addFairness([]span{at(5, 20), at(2, 50), at(3, 30), at(1, 10), at(4, 30), at(60, 70), at(61, 70)})
	for name, want := range map[string]float64{overtakenMax: 3, confirmMax: 48, queueMax: 5} {
		if f[name] != want {
			t.Errorf("%s is %v, want %v", name, f[name], want)
		}
	}
	if f[overtakenP99] != 3 {
		t.Errorf("p99 of seven is the largest: %v", f[overtakenP99])
	}
}
