package engine

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgproto3"

	"pgedge/revoke"
)

// exchange is what a client sends and what the server answers, over and over.
type exchange struct {
	name        string
	ask, answer []byte
}

// scriptPID is the backend pid that the scripted server tells its clients.
const scriptPID = 7777

// scriptServer admits everybody and then answers each ask of its exchange, without looking into it: neither it nor the
// asker allocates or takes a lock of the engine, so that what is counted meanwhile is the relay's.
type scriptServer struct {
	ln net.Listener
	x  exchange
	wg sync.WaitGroup
}

func startScript(t testing.TB, x exchange) *scriptServer {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	b := &scriptServer{ln: ln, x: x}
	b.wg.Go(func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			b.wg.Go(func() {
				defer c.Close()
				b.serve(c)
			})
		}
	})
	// Its sessions end with the node, which is stopped first: it was started later.
	t.Cleanup(func() {
		ln.Close()
		b.wg.Wait()
	})
	return b
}

func (b *scriptServer) serve(c net.Conn) {
	be := pgproto3.NewBackend(c, c)
	if first, err := be.ReceiveStartupMessage(); err != nil {
		return
	} else if _, ok := first.(*pgproto3.StartupMessage); !ok {
		return
	}
	be.Send(&pgproto3.AuthenticationOk{})
	be.Send(&pgproto3.BackendKeyData{ProcessID: scriptPID, SecretKey: []byte{1, 2, 3, 4}})
	be.Send(&pgproto3.ReadyForQuery{TxStatus: 'I'})
	if be.Flush() != nil {
		return
	}
	ask := make([]byte, len(b.x.ask))
	for {
		if _, err := io.ReadFull(c, ask); err != nil || !bytes.Equal(ask, b.x.ask) {
			return
		}
		if _, err := c.Write(b.x.answer); err != nil {
			return
		}
	}
}

// asker is the client of an exchange.
type asker struct {
	*loadClient
	x   exchange
	got []byte
	s   *session // nil on a direct connection
}

// newAsker logs in at addr.
func newAsker(t testing.TB, addr string, x exchange) *asker {
	t.Helper()
	c, err := loadDial(addr, "alice", "", "db")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Time{})
	return &asker{loadClient: c, x: x, got: make([]byte, len(x.answer))}
}

// startAsker logs in through a node of its own with one loop and a real lease.
func startAsker(t testing.TB, x exchange) (*node, *asker) {
	t.Helper()
	b := startScript(t, x)
	var lease revoke.Lease
	began := time.Now()
	now := func() revoke.Instant { return revoke.Instant{Boot: time.Since(began), Wall: time.Now()} }
	lease.Renew(now().Add(time.Hour))
	n := startNode(t, func(c *Config) {
		quiet(c)
		c.Loops = 1
		c.Fresh = func() bool { return lease.Fresh(now()) }
		u, err := ParseUpstream(fmt.Sprintf("postgres://%s?sslmode=disable", b.ln.Addr()))
		if err != nil {
			t.Fatal(err)
		}
		c.Databases = map[string]Database{"*": {Upstream: u}}
	})
	a := newAsker(t, n.addr, x)
	a.s = n.index.match(revoke.Scope{Kind: revoke.ScopePrincipal, Name: "alice"})[0]
	if err := a.once(); err != nil { // the session has come to its loop
		t.Fatal(err)
	}
	return n, a
}

// once is one exchange: the answer has come, whole and as it was sent. Its pid may be another one.
func (a *asker) once() error {
	if _, err := a.Write(a.x.ask); err != nil {
		return err
	}
	if _, err := io.ReadFull(a.Conn, a.got); err != nil {
		return err
	}
	if a.got[len(a.got)-1] != a.x.answer[len(a.x.answer)-1] || a.got[0] != a.x.answer[0] {
		return fmt.Errorf("the answer to %s came out wrong", a.x.name)
	}
	return nil
}

func wireBytes(messages ...interface{ Encode([]byte) ([]byte, error) }) []byte {
	var p []byte
	var err error
	for _, m := range messages {
		if p, err = m.Encode(p); err != nil {
			panic(err) // a test's own message
		}
	}
	return p
}

// exchanges are the shapes of traffic that sessions carry. Each fits one read buffer, and the sockets' own, so that
// nothing is ever buffered for a slow peer.
func exchanges() []exchange {
	ready := &pgproto3.ReadyForQuery{TxStatus: 'I'}
	row := &pgproto3.DataRow{Values: [][]byte{[]byte("1")}}
	one := []interface{ Encode([]byte) ([]byte, error) }{row, &pgproto3.CommandComplete{CommandTag: []byte("SELECT 1")}, ready}
	var batch, batchAnswer, rows, copied []byte
	for range 20 {
		batch = append(batch, wireBytes(&pgproto3.Bind{PreparedStatement: "s"}, &pgproto3.Execute{}, &pgproto3.Sync{})...)
		batchAnswer = append(batchAnswer, wireBytes(&pgproto3.BindComplete{}, row, &pgproto3.CommandComplete{CommandTag: []byte("SELECT 1")}, ready)...)
	}
	for range 400 {
		rows = append(rows, wireBytes(&pgproto3.DataRow{Values: [][]byte{make([]byte, 60)}})...)
		copied = append(copied, wireBytes(&pgproto3.CopyData{Data: make([]byte, 60)})...)
	}
	query := wireBytes(&pgproto3.Query{String: "SELECT 1"})
	return []exchange{
		{"query", query, wireBytes(one...)},
		{"batch", batch, batchAnswer},
		{"rows", query, append(rows, wireBytes(one...)...)},
		{"copy-in", append(copied[:len(copied):len(copied)], wireBytes(&pgproto3.CopyDone{})...), wireBytes(&pgproto3.CommandComplete{CommandTag: []byte("COPY 400")}, ready)},
		{"notification", query, append(wireBytes(&pgproto3.NotificationResponse{PID: scriptPID, Channel: "c", Payload: "p"}), wireBytes(one...)...)},
	}
}
