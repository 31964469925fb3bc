package outbox_test

import (
	"testing"
	"time"

	"github.com/google/uuid"

	"shop.example/platform/outbox"
)

func TestRelay_PendingSaysHowManyWaitAndForHowLong(t *testing.T) {
	t.Parallel()
	pool := open(t)
	relay := newRelay(t, pool, &recorder{}, outbox.Options{})
	if n, age, err := relay.Pending(t.Context()); n != 0 || age != 0 || err != nil {
		t.Errorf("empty: %d, %s, %v", n, age, err)
	}
	add(t, pool, outbox.Entry{Message: confirmed(uuid.New())}, outbox.Entry{Message: confirmed(uuid.New())})
	pool.MustExec("UPDATE outbox SET created_at = now() - interval '100 s' WHERE id = (SELECT min(id) FROM outbox)")
	if n, age, err := relay.Pending(t.Context()); n != 2 || age < 100*time.Second || age > 160*time.Second || err != nil {
		t.Errorf("two messages, the oldest 100 s old: %d, %s, %v", n, age, err)
	}
	if err := pool.Close(); err != nil {
		t.Fatal(err)
	}
	if _, _, err := relay.Pending(t.Context()); err == nil {
		t.Error("the database does not answer, and there is no error")
	}
}
