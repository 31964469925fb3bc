package audit

import (
	"database/sql"
	"fmt"
	"math"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
)

// hook writes a webhook for the events of orders, and that it got what the log has of them, ten minutes ago.
func (s *shop) hook(t *testing.T, owner string) (id string) {
	t.Helper()
	id = uuid.NewString()
	s.exec(t, `UPDATE logging.event_log SET created_at = now() - interval '10 min'`)
	s.exec(t, `INSERT INTO webhooks.webhook (id, owner, url, event_types, format, description, secret, since, retry_at)
		VALUES ($1, $2, 'https://receiver.example/', '{shop.order.#}', 'STANDARD', '', '', 0, now() - interval '10 min')`, id, owner)
	s.exec(t, `INSERT INTO webhooks.event (id, message_id, routing_key, order_id, payload, published_at)
		SELECT id, message_id, routing_key, order_id, payload, published_at FROM logging.event_log WHERE routing_key LIKE 'shop.order.%' ON CONFLICT DO NOTHING`)
	s.exec(t, `INSERT INTO webhooks.delivery (event_id, webhook_id, order_id, state, attempts, first_attempt_at, next_attempt_at)
		SELECT id, $1, order_id, 'DELIVERED', 1, now() - interval '10 min' + id * interval '1 s', now() - interval '10 min' FROM webhooks.event ORDER BY id`, id)
	return id
}

// events are the ids of an order's events in the log.
func (s *shop) events(t *testing.T, order string) (ids []string) {
	t.Helper()
	err := rows(t.Context(), s.DB, "events", `SELECT id::text FROM logging.event_log WHERE order_id = $1 AND routing_key LIKE 'shop.order.%' ORDER BY id`,
		[]any{order}, func(r *sql.Rows) error {
			ids = append(ids, "")
			return r.Scan(&ids[len(ids)-1])
		})
	if err != nil {
		t.Fatal(err)
	}
	return ids
}

// %w stands for an operator's webhook, %a for Ada's; %c for the confirmed order, which is hers, with its events %1 and %2, and
// %r for the rejected one, which is nobody's, with its first event %3.
func TestWebhooks_FindsWhatIsWrongAndNamesIt(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct {
		wrong []string
		want  []string // check and what the violation says, all of them
	}{
		"nothing": {},
		"an event that was not kept": {
			[]string{`DELETE FROM webhooks.delivery WHERE event_id = %1`},
			[]string{"deliveries order %c: webhook %a wants shop.order.placed, event %1 of the log, which is not kept for it",
				"deliveries order %c: webhook %w wants shop.order.placed, event %1 of the log, which is not kept for it"},
		},
		"nothing is kept": {
			[]string{`DELETE FROM webhooks.event`, `DELETE FROM webhooks.webhook WHERE id = '%a'`, `DELETE FROM logging.event_log WHERE order_id NOT IN ('%c')`},
			[]string{"deliveries order %c: webhook %w wants shop.order.placed, event %1 of the log, which is not kept for it"},
		},
		"an event that nobody wants any more": {
			[]string{`DELETE FROM webhooks.delivery WHERE event_id = %1`, `UPDATE webhooks.webhook SET since = %1`},
			nil,
		},
		"an event that nobody wants": {
			[]string{`DELETE FROM webhooks.delivery WHERE event_id = %1`, `UPDATE webhooks.webhook SET event_types = '{shop.order.confirmed,shop.stock.*}'`},
			nil,
		},
		"a webhook that gets nothing": {
			[]string{`DELETE FROM webhooks.delivery WHERE event_id = %1`, `UPDATE webhooks.webhook SET state = 'DISABLED'`},
			nil,
		},
		"a webhook of the release before": {
			[]string{`DELETE FROM webhooks.delivery WHERE event_id = %1`, `UPDATE webhooks.webhook SET since = NULL`},
			nil,
		},
		"an event that was erased before it could be kept": {
			[]string{`DELETE FROM webhooks.delivery WHERE event_id = %1`, `UPDATE logging.event_log SET payload = payload - 'customer_email' - 'owner' WHERE id = %1`},
			nil,
		},
		"an event that was deleted, because it is old": {
			[]string{`UPDATE logging.event_log SET created_at = now() - interval '2 h'`, `DELETE FROM webhooks.event WHERE id <= %1`},
			nil,
		},
		"an order that is not the customer's": {
			[]string{`INSERT INTO webhooks.delivery (event_id, webhook_id, order_id) VALUES (%3, '%a', '%r')`,
				`UPDATE webhooks.delivery SET state = 'DELIVERED', attempts = 2 WHERE attempts = 0`},
			[]string{"deliveries order %r: webhook %a gets shop.order.placed, event %3 of the log, although the order is not its owner's"},
		},
		"an OrderPlaced that was logged so late that nobody knew whose the order is": {
			[]string{`DELETE FROM webhooks.webhook WHERE id = '%w'`, `DELETE FROM webhooks.delivery WHERE event_id = %1`, `UPDATE logging.event_log SET id = DEFAULT WHERE id = %1`},
			nil,
		},
		"a webhook that was deleted": {
			[]string{`ALTER TABLE webhooks.delivery DROP CONSTRAINT delivery_webhook_id_fkey`, `DELETE FROM webhooks.delivery WHERE webhook_id = '%w' AND event_id <> %1`,
				`DELETE FROM webhooks.webhook WHERE id = '%w'`},
			[]string{"deliveries order %c: event %1 of the log is kept for webhook %w, which has been deleted"},
		},
		"an event that was sent before the one before it": {
			[]string{`UPDATE webhooks.delivery SET first_attempt_at = now() WHERE webhook_id = '%w' AND event_id = %1`},
			[]string{"delivery_order order %c: webhook %w got event %2 of the log before event %1"},
		},
		"an event that was sent although the one before it waits": {
			[]string{`UPDATE webhooks.delivery SET state = 'PENDING', attempts = 0, first_attempt_at = NULL, next_attempt_at = now() WHERE webhook_id = '%w' AND event_id = %1`},
			[]string{"delivery_order order %c: webhook %w got event %2 of the log before event %1"},
		},
		"events that are kept in another order": {
			[]string{`DELETE FROM webhooks.delivery WHERE webhook_id = '%w' AND event_id = %1`,
				`INSERT INTO webhooks.delivery (event_id, webhook_id, order_id, state, attempts) VALUES (%1, '%w', '%c', 'DELIVERED', 2)`},
			[]string{"delivery_order order %c: webhook %w got event %2 of the log before event %1"},
		},
		"an event that was sent again": {
			[]string{`UPDATE webhooks.delivery SET state = 'PENDING', attempts = 1, first_attempt_at = NULL, next_attempt_at = now() WHERE webhook_id = '%w' AND event_id = %1`},
			nil,
		},
		"an event that was erased while it waited": {
			[]string{`UPDATE webhooks.delivery SET state = 'FAILED', attempts = 0, first_attempt_at = NULL WHERE webhook_id = '%w' AND event_id = %1`},
			nil,
		},
		"an event that nobody sends": {
			[]string{`UPDATE webhooks.delivery SET state = 'PENDING' WHERE webhook_id = '%w' AND event_id IN (%2, %3)`},
			[]string{"deliveries webhook %w: nobody sends 2 events to it, the first of which has been due for 10m0s"},
		},
		"events for a receiver that does not answer": {
			[]string{`UPDATE webhooks.delivery SET state = 'PENDING' WHERE webhook_id = '%w' AND event_id = %2`, `UPDATE webhooks.webhook SET retry_at = now() + interval '1 h'`},
			nil,
		},
		"events for a webhook that is paused": {
			[]string{`UPDATE webhooks.delivery SET state = 'PENDING' WHERE webhook_id = '%w' AND event_id = %2`, `UPDATE webhooks.webhook SET state = 'PAUSED'`},
			nil,
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newShop(t)
			s.exec(t, `UPDATE logging.event_log SET payload = payload || '{"owner": "https://login.example.org ada"}' WHERE order_id = $1`, s.confirmed)
			operators, adas := s.hook(t, ""), s.hook(t, "https://login.example.org ada")
			s.exec(t, `DELETE FROM webhooks.delivery WHERE webhook_id = $1 AND order_id <> $2`, adas, s.confirmed)
			events := s.events(t, s.confirmed)
			names := strings.NewReplacer("%w", operators, "%a", adas, "%c", s.confirmed, "%r", s.rejected,
				"%1", events[0], "%2", events[1], "%3", s.events(t, s.rejected)[0])
			for _, query := range tt.wrong {
				s.exec(t, names.Replace(query))
			}
			found, err := s.deliveries(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			var got, want []string
			for _, f := range found {
				if got = append(got, fmt.Sprintf("%s %s", f.Check, f.Violation)); !f.late {
					t.Errorf("in flight: %v", f)
				}
			}
			for _, w := range tt.want {
				want = append(want, names.Replace(w))
			}
			slices.Sort(got)
			slices.Sort(want)
			if !slices.Equal(got, want) {
				t.Errorf("found\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
			}
		})
	}
}

// A webhook that was made long ago made the audit compare all of the log since then, whose deliveries are deleted.
func TestWebhooks_WhatIsTooOldToBeKeptIsNotRead(t *testing.T) {
	t.Parallel()
	s := newShop(t)
	s.exec(t, `DELETE FROM logging.event_log`)
	for id, age := range map[int64]time.Duration{1: 48 * time.Hour, 100_000: 2 * time.Hour, 150_000: 30 * time.Minute, 200_000: 0} {
		s.exec(t, `INSERT INTO logging.event_log (id, routing_key, exchange, payload, status, message_id, order_id, published_at, created_at) OVERRIDING SYSTEM VALUE
			VALUES ($1, $2, '', '{}', 'success', gen_random_uuid(), gen_random_uuid(), now() - $3 * interval '1 s', now() - $3 * interval '1 s')`, id, placed, age.Seconds())
	}
	const none = math.MaxInt64
	for _, tt := range []struct {
		what            string
		since, oldest   int64
		silent          bool
		atLeast, atMost int64
	}{
		{"an event of today is kept", 0, 99_000, false, 99_000, 99_000},
		{"an event of this hour is kept", 0, 200_000, false, 100_001 - window, 150_000},
		{"nothing is kept", 0, none, false, 100_001 - window, 150_000},
		{"nothing is kept for a new webhook", 180_000, none, false, 180_001, 180_001},
		{"nothing is kept for a webhook that gets nothing", 0, none, true, none, none},
		{"what is kept for a webhook that was changed since", 180_000, 99_000, false, 99_000, 99_000},
	} {
		from, to, err := s.compared(t.Context(), map[string]*webhook{"w": {since: tt.since, silent: tt.silent}}, tt.oldest)
		if err != nil || from < tt.atLeast || from > tt.atMost || to != 200_000 {
			t.Errorf("%s: from %d to %d (%v), want from %d to %d on", tt.what, from, to, err, tt.atLeast, tt.atMost)
		}
	}
}

// Whose orders they are was looked for in all partitions of the log, which takes longer than everything else.
func TestWebhooks_OldPartitionsAreNotSearchedForNewOrders(t *testing.T) {
	t.Parallel()
	s := newShop(t)
	s.exec(t, `CREATE TABLE logging.event_log_20260101 PARTITION OF logging.event_log FOR VALUES FROM ('2026-01-01') TO ('2026-01-02')`)
	s.exec(t, `UPDATE logging.event_log SET payload = payload || '{"owner": "https://login.example.org ada"}'`)
	s.hook(t, "https://login.example.org ada")
	tx, err := s.BeginTx(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = tx.Rollback() }()
	if _, err := tx.ExecContext(t.Context(), `LOCK TABLE logging.event_log_20260101`); err != nil {
		t.Fatal(err)
	}
	s.since = time.Hour // else all that is logged is read
	if found, err := s.deliveries(t.Context()); err != nil || len(found) != 0 {
		t.Errorf("%v, %v", found, err)
	}
	// The id of an order with an idempotency key does not say when it was made.
	s.log(t, uuid.NewString(), placed)
	if _, err := s.deliveries(t.Context()); err == nil || !strings.Contains(err.Error(), "lock timeout") {
		t.Errorf("an order whose age is not known: %v", err)
	}
}

func TestWebhooks_WhatWasLoggedAMomentAgoIsInFlight(t *testing.T) {
	t.Parallel()
	s := newShop(t)
	s.hook(t, "")
	s.log(t, uuid.NewString(), placed)
	found, err := s.deliveries(t.Context())
	if err != nil || len(found) != 1 || found[0].late || found[0].Check != Deliveries {
		t.Errorf("found %v, %v", found, err)
	}
	s.since = time.Nanosecond
	if found, err := s.deliveries(t.Context()); err != nil || len(found) != 0 {
		t.Errorf("of nothing that is older: %v, %v", found, err)
	}
}
