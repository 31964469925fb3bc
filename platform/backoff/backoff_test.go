package backoff_test

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"shop.example/platform/backoff"
)

func Example() {
	tries := 0
	connect := func() error {
		if tries++; tries < 3 {
			return errors.New("refused")
		}
		return nil
	}
	wait := backoff.New(time.Millisecond, time.Second)
	for connect() != nil {
		wait.Sleep(context.Background())
	}
	wait.Reset()
	fmt.Println(tries)
	// Output: 3
}

func TestBackoff_DoublesUpToItsLimitAndBeginsAgain(t *testing.T) {
	t.Parallel()
	b := backoff.New(100*time.Millisecond, time.Second)
	for range 2 {
		for _, step := range []time.Duration{100, 200, 400, 800, 1000, 1000} {
			step *= time.Millisecond
			if wait := b.Next(); wait < step/2 || wait >= step {
				t.Errorf("a wait of %s in a step of %s", wait, step)
			}
		}
		b.Reset()
	}
}

func TestSleep_EndsWithItsContext(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		begin := time.Now()
		backoff.New(time.Hour, time.Hour).Sleep(ctx)
		if took := time.Since(begin); took != time.Second {
			t.Errorf("it took %s", took)
		}
		begin = time.Now()
		backoff.New(time.Second, time.Second).Sleep(t.Context())
		if took := time.Since(begin); took < time.Second/2 || took >= time.Second {
			t.Errorf("it took %s", took)
		}
	})
}
