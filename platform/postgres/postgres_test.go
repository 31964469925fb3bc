package postgres_test

import (
	"context"
	"errors"
	"io"
	"math"
	"net"
	"net/url"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/uuid"
	"github.com/jmoiron/sqlx"
	"github.com/lib/pq"
	"github.com/lib/pq/pqerror"
	sdkmetric "go.opentelemetry.io/otel/sdk/metric"
	"go.opentelemetry.io/otel/sdk/metric/metricdata"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"

	"shop.example/db/dbtest"
	"shop.example/platform/postgres"
)

func TestOpen_BoundsEveryStatementAndResolvesNamesInTheSchema(t *testing.T) {
	t.Parallel()
	pool := open(t, dbtest.New(t), postgres.Options{Application: "stock"})
	got := map[string]string{}
	for _, name := range []string{"search_path", "application_name", "statement_timeout", "lock_timeout", "idle_in_transaction_session_timeout", "enable_seqscan", "jit"} {
		var value string
		if err := pool.Get(&value, "SELECT current_setting($1)", name); err != nil {
			t.Fatal(err)
		}
		got[name] = value
	}
	want := map[string]string{
		"search_path": "inventory", "application_name": "stock", "statement_timeout": "10s", "lock_timeout": "5s",
		"idle_in_transaction_session_timeout": "30s", "enable_seqscan": "off", "jit": "off",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("settings (-want +got):\n%s", diff)
	}
}

func TestOpen_NoServerIsUnavailableAndNamed(t *testing.T) {
	t.Parallel()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := listener.Addr().String()
	listener.Close()
	_, err = postgres.Open(t.Context(), "postgres://orders:s3cret@"+addr+"/shopdb", "orders", postgres.Options{})
	if !errors.Is(err, postgres.ErrUnavailable) || !strings.Contains(err.Error(), addr) || strings.Contains(err.Error(), "s3cret") {
		t.Errorf("Open = %v, want ErrUnavailable with the address and without the password", err)
	}
}

func TestOpen_NoSuchDatabaseIsUnavailable(t *testing.T) {
	t.Parallel()
	u := parse(t, dbtest.AdminURL(t))
	u.Path = "/no_such_database"
	if _, err := postgres.Open(t.Context(), u.String(), "orders", postgres.Options{}); !errors.Is(err, postgres.ErrUnavailable) {
		t.Errorf("Open = %v, want ErrUnavailable", err)
	}
}

func TestOpen_RecordsTheStatementsOfATraceAndThePoolButNoPolls(t *testing.T) {
	t.Parallel()
	spans := tracetest.NewSpanRecorder()
	tracers := sdktrace.NewTracerProvider(sdktrace.WithSpanProcessor(spans))
	reader := sdkmetric.NewManualReader()
	pool := open(t, dbtest.New(t), postgres.Options{Tracer: tracers, Meter: sdkmetric.NewMeterProvider(sdkmetric.WithReader(reader))})
	pool.MustExec("SELECT 1") // a poll: no span is around it
	ctx, request := tracers.Tracer("test").Start(t.Context(), "request")
	err := postgres.InTx(ctx, pool, func(tx *sqlx.Tx) error {
		_, err := tx.ExecContext(ctx, "SELECT FROM inbox WHERE message_id = $1", uuid.New())
		return err
	})
	request.End()
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, span := range spans.Ended() {
		if span.SpanContext().TraceID() != request.SpanContext().TraceID() {
			t.Errorf("span %s is of another trace", span.Name())
		}
		names = append(names, span.Name())
	}
	if diff := cmp.Diff([]string{"sql.conn.begin_tx", "sql.conn.exec", "sql.tx.commit", "request"}, names); diff != "" {
		t.Errorf("spans (-want +got):\n%s", diff)
	}
	var metrics metricdata.ResourceMetrics
	if err := reader.Collect(t.Context(), &metrics); err != nil {
		t.Fatal(err)
	}
	recorded := map[string]bool{}
	for _, scope := range metrics.ScopeMetrics {
		for _, m := range scope.Metrics {
			recorded[m.Name] = true
		}
	}
	for _, name := range []string{"db.client.operation.duration", "db.sql.connection.open"} {
		if !recorded[name] {
			t.Errorf("no metric %s among %v", name, recorded)
		}
	}
}

// What binary_parameters=yes does to each kind of parameter that the services use.
func TestOpen_ParametersArriveAsTheyWereGiven(t *testing.T) {
	t.Parallel()
	pool := open(t, dbtest.New(t), postgres.Options{})
	id := uuid.MustParse("018f3b1c-7c00-7000-8000-0123456789ab")
	at := time.Date(2026, 2, 3, 4, 5, 6, 789012000, time.UTC)
	for _, c := range []struct {
		what, query string
		param       any
	}{
		{"text", `SELECT $1::text = 'it''s "ok", {yes} \ and NULL'`, `it's "ok", {yes} \ and NULL`},
		{"text that is NULL", `SELECT $1::text IS NULL`, (*string)(nil)},
		{"uuid", `SELECT $1::uuid = '018f3b1c-7c00-7000-8000-0123456789ab'`, id},
		{"bytea", `SELECT $1::bytea = '\x00ff5c27'`, []byte{0, 0xff, '\\', '\''}},
		{"bytea that is NULL", `SELECT $1::bytea IS NULL`, []byte(nil)},
		{"bytea that is empty", `SELECT $1::bytea = ''`, []byte{}},
		{"jsonb as a string", `SELECT $1::jsonb ->> 'a' = '1'`, `{"a": 1}`},
		{"timestamptz", `SELECT $1::timestamptz = '2026-02-03 04:05:06.789012Z'`, at},
		{"timestamptz in another zone", `SELECT $1::timestamptz = '2026-02-03 04:05:06.789012Z'`, at.In(time.FixedZone("", 3600))},
		{"bigint", `SELECT $1::bigint = 9007199254740993`, int64(9007199254740993)},
		{"boolean", `SELECT $1::boolean`, true},
		{"interval as seconds", `SELECT $1 * interval '1 second' = '90 s'`, 90.0},
		{"uuid[]", `SELECT $1::uuid[] = '{018f3b1c-7c00-7000-8000-0123456789ab,00000000-0000-0000-0000-000000000000}'`,
			postgres.ArrayOf([]uuid.UUID{id, uuid.Nil})},
		{"uuid[] with a NULL", `SELECT $1::uuid[] IS NOT DISTINCT FROM '{NULL,018f3b1c-7c00-7000-8000-0123456789ab}'`,
			postgres.ArrayOf([]uuid.NullUUID{{}, {UUID: id, Valid: true}})},
		{"text[]", `SELECT $1::text[] = ARRAY['', 'NULL', '{', 'a,"b\', 'Größe']`, postgres.ArrayOf([]string{"", "NULL", "{", `a,"b\`, "Größe"})},
		{"bigint[]", `SELECT $1::bigint[] = '{1,-2,9007199254740993}'`, postgres.ArrayOf([]int64{1, -2, 9007199254740993})},
		{"integer[]", `SELECT $1::integer[] = '{2147483647,-2147483648}'`, postgres.ArrayOf([]int32{math.MaxInt32, math.MinInt32})},
		{"bytea[]", `SELECT $1::bytea[] IS NOT DISTINCT FROM ARRAY['\x00ff5c', '', NULL]::bytea[]`, postgres.ArrayOf([][]byte{{0, 0xff, '\\'}, {}, nil})},
		{"jsonb[]", `SELECT $1::jsonb[] IS NOT DISTINCT FROM ARRAY['{"a": "\""}', NULL, '1']::jsonb[]`,
			postgres.ArrayOf([]postgres.JSON{postgres.JSON(`{"a": "\""}`), nil, postgres.JSON("1")})},
		{"timestamptz[]", `SELECT $1::timestamptz[] = '{2026-02-03 04:05:06.789012Z,1969-07-20 20:17:40Z,2026-02-03 04:05:06.789012Z}'`,
			postgres.ArrayOf([]time.Time{at.Add(999), time.Date(1969, 7, 20, 20, 17, 40, 0, time.UTC), at.In(time.FixedZone("", 3600))})},
		{"one value of each row", `SELECT $1::bigint[] = '{3,5}'`, postgres.Array([]string{"for", "seven"}, func(s string) int64 { return int64(len(s)) })},
		{"an empty array", `SELECT cardinality($1::text[]) = 0`, postgres.ArrayOf([]string{})},
		{"uuid[] of strings from lib/pq", `SELECT u = '018f3b1c-7c00-7000-8000-0123456789ab' FROM unnest($1::uuid[]) u`, pq.Array([]string{id.String()})},
	} {
		var same bool
		if err := pool.Get(&same, c.query, c.param); err != nil || !same {
			t.Errorf("%s: %v, %v", c.what, same, err)
		}
	}
}

func TestInTx_CommitsWhereTheFunctionReturnsNil(t *testing.T) {
	t.Parallel()
	pool := open(t, dbtest.New(t), postgres.Options{})
	if err := postgres.InTx(t.Context(), pool, claim); err != nil {
		t.Fatal(err)
	}
	if n := claimed(t, pool); n != 1 {
		t.Errorf("%d rows, want 1", n)
	}
}

func TestInTx_AnErrorOrAPanicRollsBack(t *testing.T) {
	t.Parallel()
	pool := open(t, dbtest.New(t), postgres.Options{MaxConns: 1}) // a connection that is not given back would block
	cause := errors.New("out of stock")
	err := postgres.InTx(t.Context(), pool, func(tx *sqlx.Tx) error { return errors.Join(claim(tx), cause) })
	if !errors.Is(err, cause) {
		t.Errorf("InTx = %v, want the function's error", err)
	}
	func() {
		defer func() {
			if recover() != "out of stock" {
				t.Error("the panic did not reach the caller")
			}
		}()
		_ = postgres.InTx(t.Context(), pool, func(tx *sqlx.Tx) error {
			if err := claim(tx); err != nil {
				return err
			}
			panic("out of stock")
		})
	}()
	if n := claimed(t, pool); n != 0 {
		t.Errorf("%d rows, want none", n)
	}
}

func TestInTx_AnErrorOfTheCommitIsReturned(t *testing.T) {
	t.Parallel()
	pool := open(t, dbtest.New(t), postgres.Options{})
	pool.MustExec("CREATE TABLE late (id int UNIQUE DEFERRABLE INITIALLY DEFERRED)")
	err := postgres.InTx(t.Context(), pool, func(tx *sqlx.Tx) error {
		_, err := tx.Exec("INSERT INTO late VALUES (1), (1)")
		return err
	})
	if !errors.Is(err, postgres.ErrUnique) || postgres.Constraint(err) != "late_id_key" {
		t.Errorf("InTx = %v, want ErrUnique of late_id_key", err)
	}
	err = postgres.InTx(t.Context(), pool, func(tx *sqlx.Tx) error {
		_, _ = tx.Exec("SELECT 1 / 0") // an error that is swallowed
		return nil
	})
	if err == nil {
		t.Error("InTx = nil for a transaction that the server had aborted")
	}
}

func TestInTx_ACancelledContextNeitherCutsNorHidesTheCommit(t *testing.T) {
	t.Parallel()
	pool := open(t, dbtest.New(t), postgres.Options{})
	ctx, cancel := context.WithCancel(t.Context())
	err := postgres.InTx(ctx, pool, func(tx *sqlx.Tx) error {
		defer cancel()
		return claim(tx)
	})
	if err != nil {
		t.Fatal(err)
	}
	if n := claimed(t, pool); n != 1 {
		t.Errorf("%d rows, want 1", n)
	}
	if err := postgres.InTx(ctx, pool, claim); !errors.Is(err, context.Canceled) {
		t.Errorf("InTx with a cancelled context = %v", err)
	}
}

func TestInTx_TheContextBoundsTheWaitForAConnection(t *testing.T) {
	t.Parallel()
	pool := open(t, dbtest.New(t), postgres.Options{MaxConns: 1})
	err := postgres.InTx(t.Context(), pool, func(*sqlx.Tx) error {
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
		defer cancel()
		return postgres.InTx(ctx, pool, claim)
	})
	if !errors.Is(err, context.DeadlineExceeded) || errors.Is(err, postgres.ErrUnavailable) {
		t.Errorf("InTx = %v, want the caller's own deadline", err)
	}
}

func TestInTx_ALostServerIsUnavailableAndTheNextTransactionRecovers(t *testing.T) {
	t.Parallel()
	databaseURL := dbtest.New(t)
	proxy := newProxy(t, parse(t, databaseURL).Host)
	u := parse(t, databaseURL)
	u.Host = proxy.addr()
	pool := open(t, u.String(), postgres.Options{})

	err := postgres.InTx(t.Context(), pool, func(tx *sqlx.Tx) error {
		proxy.cut()
		return claim(tx)
	})
	if !errors.Is(err, postgres.ErrUnavailable) {
		t.Errorf("a statement on a lost connection: %v, want ErrUnavailable", err)
	}
	err = postgres.InTx(t.Context(), pool, func(tx *sqlx.Tx) error {
		err := claim(tx)
		proxy.cut()
		return err
	})
	if !errors.Is(err, postgres.ErrUnavailable) {
		t.Errorf("a commit on a lost connection: %v, want ErrUnavailable", err)
	}

	// All connections of the pool are dead; the pool has to find out by itself.
	var wg sync.WaitGroup
	fill := sync.WaitGroup{}
	fill.Add(8)
	for range 8 {
		wg.Go(func() {
			err := postgres.InTx(t.Context(), pool, func(*sqlx.Tx) error {
				fill.Done()
				fill.Wait()
				return nil
			})
			if err != nil {
				t.Errorf("InTx: %v", err)
			}
		})
	}
	wg.Wait()
	proxy.cut()
	if err := postgres.InTx(t.Context(), pool, claim); err != nil {
		t.Errorf("the first transaction after the server came back: %v", err)
	}

	proxy.stop()
	if err := postgres.InTx(t.Context(), pool, claim); !errors.Is(err, postgres.ErrUnavailable) {
		t.Errorf("a transaction while the server is gone: %v, want ErrUnavailable", err)
	}
}

func TestClassify_SaysWhatTheServersErrorsMean(t *testing.T) {
	t.Parallel()
	pool := open(t, dbtest.New(t), postgres.Options{})
	pool.MustExec("INSERT INTO inventory.product (id, name, unit_price, currency, on_hand) VALUES (100, 'Desk', 1, 'USD', 1)")
	for _, c := range []struct {
		statement, constraint string
		want                  error
	}{
		{"INSERT INTO inventory.product (name, unit_price, currency, on_hand) VALUES ('Desk', 1, 'USD', 1)", "product_name", postgres.ErrUnique},
		{"UPDATE inventory.product SET reserved = 2 WHERE id = 100", "product_stock", postgres.ErrCheck},
		{"SET LOCAL statement_timeout = 20; SELECT pg_sleep(5)", "", postgres.ErrExhausted},
		{"SELECT pg_terminate_backend(pg_backend_pid())", "", postgres.ErrUnavailable},
		{"SET LOCAL transaction_read_only = on; DELETE FROM inbox", "", postgres.ErrUnavailable},
		{"SELECT FROM dropped_by_a_newer_version", "", postgres.ErrUnavailable},
		{"SELECT dropped_by_a_newer_version FROM inbox", "", postgres.ErrUnavailable},
		{"SET LOCAL ROLE pg_monitor; SELECT FROM inventory.inbox", "", postgres.ErrUnavailable},
		{"EXECUTE of_another_connection", "", postgres.ErrUnavailable},
	} {
		err := postgres.InTx(t.Context(), pool, func(tx *sqlx.Tx) error {
			_, err := tx.Exec(c.statement)
			return err
		})
		if !errors.Is(err, c.want) || postgres.Constraint(err) != c.constraint {
			t.Errorf("%s: %v (constraint %q), want %v (%q)", c.statement, err, postgres.Constraint(err), c.want, c.constraint)
		}
	}
	_, err := pool.Exec("SELECT 1 / 0")
	if got := postgres.Classify(err); got != err { //nolint:errorlint // the very same error
		t.Errorf("Classify of an error that means none of them = %v", got)
	}
}

func TestClassify_TheLoserOfALockMayTryAgain(t *testing.T) {
	t.Parallel()
	pool := open(t, dbtest.New(t), postgres.Options{})
	lock := func(tx *sqlx.Tx, id int) error {
		_, err := tx.Exec("SELECT FROM inventory.product WHERE id = $1 FOR UPDATE", id)
		return err
	}
	// Each of two transactions locks one product, waits until the other has too, and asks for the other's.
	errs := make(chan error, 2)
	var both sync.WaitGroup
	both.Add(2)
	for i := range 2 {
		go func() {
			errs <- postgres.InTx(t.Context(), pool, func(tx *sqlx.Tx) error {
				err := lock(tx, 1+i)
				both.Done()
				both.Wait()
				return errors.Join(err, lock(tx, 2-i))
			})
		}()
	}
	first, second := <-errs, <-errs
	if first == nil {
		first, second = second, first
	}
	if !errors.Is(first, postgres.ErrRetry) || second != nil {
		t.Errorf("a deadlock: %v and %v, want one ErrRetry and one success", first, second)
	}

	err := postgres.InTx(t.Context(), pool, func(tx *sqlx.Tx) error {
		return errors.Join(lock(tx, 1), postgres.InTx(t.Context(), pool, func(other *sqlx.Tx) error {
			_, err := other.Exec("SET LOCAL lock_timeout = 20")
			return errors.Join(err, lock(other, 1))
		}))
	})
	if !errors.Is(err, postgres.ErrRetry) {
		t.Errorf("a lock that is not given up: %v, want ErrRetry", err)
	}
}

func TestClassify_CodesThatNeedAnotherServerToHappen(t *testing.T) {
	t.Parallel()
	for code, want := range map[pqerror.Code]error{
		"53200": postgres.ErrExhausted,   // out of memory
		"53300": postgres.ErrUnavailable, // too many connections
		"57P05": postgres.ErrUnavailable, // idle for too long
		"57P03": postgres.ErrUnavailable, // starting up
		"58030": postgres.ErrUnavailable, // I/O error
		"28P01": postgres.ErrUnavailable, // wrong password
		"40001": postgres.ErrRetry,
	} {
		if err := postgres.Classify(&pq.Error{Code: code}); !errors.Is(err, want) {
			t.Errorf("Classify(%s) = %v, want %v", code, err, want)
		}
	}
}

func TestClassify_AgainChangesNothing(t *testing.T) {
	t.Parallel()
	once := postgres.Classify(io.ErrUnexpectedEOF)
	if twice := postgres.Classify(once); twice != once { //nolint:errorlint // the very same error
		t.Errorf("Classify(%v) = %v", once, twice)
	}
}

// A primary that was demoted answers reads as before, on connections that nothing cuts.
func TestPool_AfterAServerThatTakesNoWritesAllConnectionsAreNew(t *testing.T) {
	t.Parallel()
	pool := open(t, dbtest.New(t), postgres.Options{MaxConns: 2})
	processes := func() (pids [2]int) {
		t.Helper()
		for i := range pids {
			conn, err := pool.Connx(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			if err := conn.GetContext(t.Context(), &pids[i], "SELECT pg_backend_pid()"); err != nil {
				t.Fatal(err)
			}
		}
		slices.Sort(pids[:])
		return pids
	}
	before := processes()
	if now := processes(); now != before {
		t.Fatalf("processes %v, then %v: the pool keeps nothing", before, now)
	}
	for _, write := range []string{"DELETE FROM inbox", postgres.Prepared + "DELETE FROM inbox"} {
		err := postgres.InTx(t.Context(), pool, func(tx *sqlx.Tx) error {
			tx.MustExec("SET LOCAL transaction_read_only = on")
			_, err := tx.Exec(write)
			return err
		})
		if !errors.Is(err, postgres.ErrUnavailable) {
			t.Errorf("a write that is not taken: %v, want ErrUnavailable", err)
		}
		now := processes()
		for _, pid := range now {
			if slices.Contains(before[:], pid) {
				t.Errorf("%s: processes %v, then %v", write, before, now)
			}
		}
		before = now
	}
}

func claim(tx *sqlx.Tx) error {
	_, err := tx.Exec("INSERT INTO inbox (message_id) VALUES ($1)", uuid.New())
	return err
}

func claimed(t *testing.T, pool *sqlx.DB) (n int) {
	t.Helper()
	if err := pool.Get(&n, "SELECT count(*) FROM inbox"); err != nil {
		t.Fatal(err)
	}
	return n
}

func open(t *testing.T, url string, o postgres.Options) *sqlx.DB {
	t.Helper()
	pool, err := postgres.Open(t.Context(), url, "inventory", o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { pool.Close() })
	return pool
}

func parse(t *testing.T, databaseURL string) *url.URL {
	t.Helper()
	u, err := url.Parse(databaseURL)
	if err != nil {
		t.Fatal(err)
	}
	return u
}

// proxy stands between a client and the server, and can be cut.
type proxy struct {
	listener net.Listener
	mu       sync.Mutex
	conns    []net.Conn
}

func newProxy(t *testing.T, target string) *proxy {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p := &proxy{listener: listener}
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			client, err := listener.Accept()
			if err != nil {
				return
			}
			server, err := net.Dial("tcp", target)
			if err != nil {
				t.Errorf("the proxy reaches no server: %v", err)
				return
			}
			p.mu.Lock()
			p.conns = append(p.conns, client, server)
			p.mu.Unlock()
			wg.Go(func() { copyAndClose(server, client) })
			wg.Go(func() { copyAndClose(client, server) })
		}
	})
	t.Cleanup(func() { p.stop(); wg.Wait() })
	return p
}

func copyAndClose(to, from net.Conn) {
	_, _ = io.Copy(to, from)
	to.Close()
}

func (p *proxy) addr() string { return p.listener.Addr().String() }

// cut closes every connection that there is.
func (p *proxy) cut() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, c := range p.conns {
		c.Close()
	}
	p.conns = nil
}

// stop makes the server unreachable.
func (p *proxy) stop() {
	p.listener.Close()
	p.cut()
}

func TestArray_OfAnotherTypeThanTheStatementSaysIsRefused(t *testing.T) {
	t.Parallel()
	pool := open(t, dbtest.New(t), postgres.Options{})
	var n int
	if err := pool.Get(&n, `SELECT cardinality($1::integer[])`, postgres.ArrayOf([]int64{1})); err == nil {
		t.Errorf("int64 was taken as integer[] of %d elements", n)
	}
}
