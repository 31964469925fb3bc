package postgres

import (
	"context"
	"crypto/x509"
	"database/sql/driver"
	"errors"
	"net"
	"os"
	"testing"

	"github.com/lib/pq"
)

// connector fails to connect.
type connector struct {
	driver.Connector
	err error
}

func (c connector) Connect(context.Context) (driver.Conn, error) { return nil, c.err }

// Whatever keeps a transaction from beginning is no fault of what was to be stored in it.
func TestConnect_AnyFailureIsUnavailable(t *testing.T) {
	t.Parallel()
	timedOut, cancel := context.WithTimeout(t.Context(), 0)
	defer cancel()
	_, dial := new(net.Dialer).DialContext(timedOut, "tcp", "192.0.2.1:5432")
	if !errors.Is(dial, context.DeadlineExceeded) {
		t.Fatalf("a dial that timed out is no longer taken for a deadline of the caller: %v", dial)
	}
	for _, cause := range []error{
		dial,
		errors.New("pq: could not connect to any of the hosts: session is read-only"), // target_session_attrs
		x509.UnknownAuthorityError{},
		&pq.Error{Code: "08P01", Message: "unsupported startup parameter"},
	} {
		_, err := (&preparing{Connector: connector{err: cause}}).Connect(t.Context())
		if !errors.Is(Classify(err), ErrUnavailable) || !errors.Is(err, cause) {
			t.Errorf("Connect = %v, want ErrUnavailable for %v", err, cause)
		}
		if _, err := (&preparing{Connector: connector{err: cause}}).Connect(timedOut); errors.Is(err, ErrUnavailable) {
			t.Errorf("Connect = %v, after the caller's own deadline", err)
		}
	}
}

// standby begins nothing.
type standby struct{ pqConn }

func (standby) BeginTx(context.Context, driver.TxOptions) (driver.Tx, error) {
	return nil, &pq.Error{Code: "0A000", Message: "cannot set transaction read-write mode during recovery"}
}
func (standby) IsValid() bool { return true }

func TestBegin_OnAStandbyIsUnavailableAndItsConnectionsAreGivenUpOnce(t *testing.T) {
	t.Parallel()
	pool := &preparing{}
	first, second := &preparedConn{pqConn: standby{}, pool: pool}, &preparedConn{pqConn: standby{}, pool: pool}
	for range 2 {
		for _, c := range []*preparedConn{first, second} {
			if _, err := c.BeginTx(t.Context(), driver.TxOptions{}); !errors.Is(err, ErrUnavailable) {
				t.Errorf("BeginTx = %v, want ErrUnavailable", err)
			}
			if err := c.ResetSession(t.Context()); c.IsValid() || !errors.Is(err, driver.ErrBadConn) {
				t.Errorf("the connection is used again (%v)", err)
			}
		}
	}
	if fresh := (&preparedConn{pqConn: standby{}, pool: pool, generation: 1}); !fresh.IsValid() {
		t.Error("one that was made after the first refusal is given up too")
	}
}

// A service that starts waits for a server, and ends when only somebody else can help.
func TestIsAway_AServerThatCannotBeReachedAndNotALoginThatIsRefused(t *testing.T) {
	t.Parallel()
	_, refused := new(net.Dialer).DialContext(t.Context(), "tcp", "127.0.0.1:1")
	_, noFile := os.ReadFile("no-ca.pem")
	for _, c := range []struct {
		err  error
		away bool
	}{
		{nil, false},
		{refused, true},
		{&net.DNSError{Err: "no such host", Name: "db", IsNotFound: true}, true},
		{&pq.Error{Code: "57P03", Message: "the database system is starting up"}, true},
		{&pq.Error{Code: "53300", Message: "too many clients already"}, true},
		{&pq.Error{Code: "25006", Message: "cannot execute CREATE TABLE in a read-only transaction"}, true},
		{&pq.Error{Code: "08006", Message: "connection failure"}, true},
		{&pq.Error{Code: "28P01", Message: "password authentication failed"}, false},
		{&pq.Error{Code: "3D000", Message: "database does not exist"}, false},
		{&pq.Error{Code: "42501", Message: "permission denied"}, false},
		{&pq.Error{Code: "08P01", Message: "unsupported startup parameter"}, false},
		{&pq.Error{Code: "08P01", Message: "server login has been failing, cached error: connect failed (server_login_retry)"}, true},
		{errors.New("pq: could not connect to any of the hosts: session is read-only"), true},
		{x509.UnknownAuthorityError{}, false},
		{noFile, false},
	} {
		if got := IsAway(c.err); got != c.away {
			t.Errorf("IsAway(%v) = %t", c.err, got)
		}
	}
}
