package db_test

import (
	"encoding/binary"
	"errors"
	"io"
	"net"
	"net/url"
	"slices"
	"strings"
	"sync"
	"testing"

	"shop.example/db"
	"shop.example/platform/testkit/postgrestest"
)

func TestMigrate_APoolerOfTransactionsIsRefusedBeforeItDoesHarm(t *testing.T) {
	t.Parallel()
	databaseURL := postgrestest.NewEmpty(t)
	_, err := db.Migrate(t.Context(), newTransactionPooler(t, databaseURL), "orders")
	if err == nil || !strings.Contains(err.Error(), "pool_mode to session") || strings.Contains(err.Error(), "\n") {
		t.Errorf("Migrate = %v, want one line that says what to set", err)
	}
	if made := queryStrings(t, open(t, databaseURL), "SELECT nspname FROM pg_namespace WHERE nspname = 'orders'"); made != nil {
		t.Error("the schema was made all the same")
	}
}

// transactionPooler does to connections what PgBouncer does with pool_mode=transaction, but that everybody logs in to
// the server by themselves: whoever begins something gets the server connection that was given back last.
type transactionPooler struct {
	t        *testing.T
	listener net.Listener
	target   string

	mu      sync.Mutex
	clients []net.Conn
	idle    []*serverConn // the last one first to go
}

// serverConn is a connection to the server.
type serverConn struct{ net.Conn }

// newTransactionPooler returns the URL of a pooler before the server of databaseURL.
func newTransactionPooler(t *testing.T, databaseURL string) string {
	t.Helper()
	u, err := url.Parse(databaseURL)
	if err != nil {
		t.Fatal(err)
	}
	p := &transactionPooler{t: t, target: u.Host}
	if p.listener, err = net.Listen("tcp", "127.0.0.1:0"); err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			client, err := p.listener.Accept()
			if err != nil {
				return
			}
			p.mu.Lock()
			p.clients = append(p.clients, client)
			p.mu.Unlock()
			wg.Go(func() {
				if err := p.serve(client); err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, net.ErrClosed) {
					t.Errorf("the pooler: %v", err)
				}
				client.Close()
			})
		}
	})
	t.Cleanup(func() {
		p.listener.Close()
		p.mu.Lock()
		for _, c := range p.clients {
			c.Close()
		}
		p.mu.Unlock()
		wg.Wait()
		for _, s := range p.idle {
			s.Close()
		}
	})
	u.Host = p.listener.Addr().String()
	return u.String()
}

func (p *transactionPooler) serve(client net.Conn) error {
	server, err := p.login(client)
	if err != nil {
		return err
	}
	p.release(server)
	for server = nil; ; {
		kind, message, err := readMessage(client)
		if err != nil || kind == 'X' {
			if server != nil {
				server.Close() // in the midst of a transaction
			}
			return err
		}
		if server == nil {
			if server, err = p.take(); err != nil {
				return err
			}
		}
		if _, err := server.Write(message); err != nil {
			return err
		}
		if kind != 'Q' && kind != 'S' { // the answer comes with that to the Sync
			continue
		}
		last, err := server.answer(client)
		if err != nil {
			return err
		}
		if last[5] == 'I' {
			p.release(server) // before the client knows
			server = nil
		}
		if _, err := client.Write(last); err != nil {
			return err
		}
	}
}

// login opens a connection to the server as the client says.
func (p *transactionPooler) login(client net.Conn) (*serverConn, error) {
	conn, err := net.Dial("tcp", p.target)
	if err != nil {
		return nil, err
	}
	server := &serverConn{conn}
	length := make([]byte, 4)
	if _, err := io.ReadFull(client, length); err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	startup := slices.Concat(length, make([]byte, binary.BigEndian.Uint32(length)-4))
	if _, err := io.ReadFull(client, startup[4:]); err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	message := startup
	for {
		if _, err := server.Write(message); err != nil {
			return nil, errors.Join(err, conn.Close())
		}
		last, err := server.answer(client)
		if err == nil {
			_, err = client.Write(last)
		}
		if err != nil {
			return nil, errors.Join(err, conn.Close())
		}
		if last[0] == 'Z' {
			return server, nil
		}
		if _, message, err = readMessage(client); err != nil { // the password
			return nil, errors.Join(err, conn.Close())
		}
	}
}

// answer passes on what the server says, but for the last message: a ReadyForQuery, or one that asks for a password.
func (s *serverConn) answer(client net.Conn) (last []byte, err error) {
	for {
		kind, message, err := readMessage(s)
		if err != nil {
			return nil, err
		}
		if kind == 'Z' {
			return message, nil
		}
		if kind == 'R' {
			if code := binary.BigEndian.Uint32(message[5:]); code != 0 && code != 12 { // neither done nor the server's last word
				return message, nil
			}
		}
		if _, err := client.Write(message); err != nil {
			return nil, err
		}
	}
}

func (p *transactionPooler) take() (*serverConn, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.idle) == 0 {
		return nil, errors.New("more transactions than logins")
	}
	server := p.idle[len(p.idle)-1]
	p.idle = p.idle[:len(p.idle)-1]
	return server, nil
}

func (p *transactionPooler) release(server *serverConn) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.idle = append(p.idle, server)
}

// readMessage reads a message of the protocol: its type, its length, the rest.
func readMessage(from io.Reader) (kind byte, message []byte, err error) {
	head := make([]byte, 5)
	if _, err := io.ReadFull(from, head); err != nil {
		return 0, nil, err
	}
	message = slices.Concat(head, make([]byte, binary.BigEndian.Uint32(head[1:])-4))
	_, err = io.ReadFull(from, message[5:])
	return head[0], message, err
}
