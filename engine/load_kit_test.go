package engine

import (
	"crypto/md5"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"os"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgproto3"

	"pgedge/internal/pgtest"
)

// loadSeed prints the seed of a randomized test; PGEDGE_SEED sets it. Goroutines and sockets stay free to interleave
// as they like, so that a seed repeats the decisions of a run and not its schedule.
func loadSeed(t testing.TB) uint64 {
	t.Helper()
	seed := uint64(time.Now().UnixNano())
	if s := os.Getenv("PGEDGE_SEED"); s != "" {
		n, err := strconv.ParseUint(s, 10, 64)
		if err != nil {
			t.Fatalf("PGEDGE_SEED: %v", err)
		}
		seed = n
	}
	t.Logf("PGEDGE_SEED=%d", seed)
	return seed
}

func loadRand(seed, stream uint64) *rand.Rand { return rand.New(rand.NewPCG(seed, stream)) }

// loadClient speaks just enough of the protocol to log in and to ask, and reports errors instead of failing a test,
// so that thousands of them can be used by any goroutine.
type loadClient struct {
	net.Conn
	fe  *pgproto3.Frontend
	key pgproto3.BackendKeyData
}

// loadDial connects and logs in; password is only used when the server asks. A refusal is a *pgproto3.ErrorResponse
// inside the error.
func loadDial(addr, user, password, db string) (*loadClient, error) {
	conn, err := net.DialTimeout("tcp", addr, patience)
	if err != nil {
		return nil, err
	}
	conn.SetDeadline(time.Now().Add(patience))
	c := &loadClient{Conn: conn, fe: pgproto3.NewFrontend(conn, conn)}
	if err := c.startup(user, password, db); err != nil {
		conn.Close()
		return nil, err
	}
	return c, nil
}

// loadRefusal is an ErrorResponse that came instead of what was asked for.
type loadRefusal struct{ code, message, detail string }

func (r *loadRefusal) Error() string { return r.code + " " + r.message + " " + r.detail }

func (c *loadClient) startup(user, password, db string) error {
	c.fe.Send(&pgproto3.StartupMessage{ProtocolVersion: pgproto3.ProtocolVersion30,
		Parameters: map[string]string{"user": user, "database": db}})
	if err := c.fe.Flush(); err != nil {
		return err
	}
	for {
		msg, err := c.fe.Receive()
		if err != nil {
			return err
		}
		switch m := msg.(type) {
		case *pgproto3.AuthenticationMD5Password:
			c.fe.Send(&pgproto3.PasswordMessage{Password: loadMD5(user, password, m.Salt[:])})
			if err := c.fe.Flush(); err != nil {
				return err
			}
		case *pgproto3.AuthenticationCleartextPassword:
			c.fe.Send(&pgproto3.PasswordMessage{Password: password})
			if err := c.fe.Flush(); err != nil {
				return err
			}
		case *pgproto3.AuthenticationSASL:
			return errors.New("the load client does not speak SCRAM")
		case *pgproto3.BackendKeyData:
			c.key = *m
		case *pgproto3.ErrorResponse:
			return &loadRefusal{m.Code, m.Message, m.Detail}
		case *pgproto3.ReadyForQuery:
			return nil
		}
	}
}

func loadMD5(user, password string, salt []byte) string {
	inner := md5.Sum([]byte(password + user))
	outer := md5.Sum(append([]byte(hex.EncodeToString(inner[:])), salt...))
	return "md5" + hex.EncodeToString(outer[:])
}

// query runs one simple query and waits for ReadyForQuery.
func (c *loadClient) query(sql string) error {
	c.fe.Send(&pgproto3.Query{String: sql})
	if err := c.fe.Flush(); err != nil {
		return err
	}
	return c.ready()
}

// ready reads up to the next ReadyForQuery; an ErrorResponse on the way is the result.
func (c *loadClient) ready() error {
	var refusal error
	for {
		msg, err := c.fe.Receive()
		if err != nil {
			return errors.Join(refusal, err)
		}
		switch m := msg.(type) {
		case *pgproto3.ErrorResponse:
			refusal = &loadRefusal{m.Code, m.Message, m.Detail}
			if m.Severity == "FATAL" {
				return refusal
			}
		case *pgproto3.ReadyForQuery:
			return refusal
		}
	}
}

// terminate leaves in the ordinary way and waits until the other end has closed.
func (c *loadClient) terminate() {
	c.fe.Send(&pgproto3.Terminate{})
	if c.fe.Flush() == nil {
		io.Copy(io.Discard, c.Conn)
	}
	c.Close()
}

func (c *loadClient) reset() {
	c.Conn.(*net.TCPConn).SetLinger(0)
	c.Close()
}

// loadCode is the SQLSTATE inside err, "" if there is none.
func loadCode(err error) string {
	var r *loadRefusal
	if errors.As(err, &r) {
		return r.code
	}
	return ""
}

// loadBackend is a server that admits everybody and answers every query with nothing. It stands in for Postgres
// where a test needs more logins than a real one gives in reasonable time.
type loadBackend struct {
	ln net.Listener
	wg sync.WaitGroup

	mu     sync.Mutex
	conns  map[net.Conn]struct{}
	nextID uint32
}

func startLoadBackend(t testing.TB) *loadBackend {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	b := &loadBackend{ln: ln, conns: make(map[net.Conn]struct{})}
	b.wg.Go(func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			b.mu.Lock()
			b.conns[c] = struct{}{}
			b.nextID++
			id := b.nextID
			b.mu.Unlock()
			b.wg.Go(func() {
				b.serve(c, id)
				c.Close()
				b.mu.Lock()
				delete(b.conns, c)
				b.mu.Unlock()
			})
		}
	})
	t.Cleanup(func() {
		ln.Close()
		b.mu.Lock()
		for c := range b.conns {
			c.Close()
		}
		b.mu.Unlock()
		b.wg.Wait()
	})
	return b
}

func (b *loadBackend) len() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return len(b.conns)
}

func (b *loadBackend) serve(c net.Conn, id uint32) {
	be := pgproto3.NewBackend(c, c)
	first, err := be.ReceiveStartupMessage()
	if err != nil {
		return
	}
	if _, ok := first.(*pgproto3.StartupMessage); !ok {
		return // a cancel request
	}
	be.Send(&pgproto3.AuthenticationOk{})
	be.Send(&pgproto3.BackendKeyData{ProcessID: id, SecretKey: []byte{1, 2, 3, 4}})
	be.Send(&pgproto3.ReadyForQuery{TxStatus: 'I'})
	for be.Flush() == nil {
		msg, err := be.Receive()
		if err != nil {
			return
		}
		switch msg.(type) {
		case *pgproto3.Query:
			be.Send(&pgproto3.EmptyQueryResponse{})
			be.Send(&pgproto3.ReadyForQuery{TxStatus: 'I'})
		case *pgproto3.Terminate:
			return
		}
	}
}

// upstream is a database entry for the backend; it has no control role, so kills cannot be verified on it.
func (b *loadBackend) upstream(t testing.TB) Upstream {
	t.Helper()
	u, err := ParseUpstream("postgres://" + b.ln.Addr().String() + "?sslmode=disable")
	if err != nil {
		t.Fatal(err)
	}
	return u
}

// audited returns the events of a kind.
func (n *node) audited(kind string) []AuditEvent {
	n.mu.Lock()
	defer n.mu.Unlock()
	var out []AuditEvent
	for _, ev := range n.events {
		if ev.Kind == kind {
			out = append(out, ev)
		}
	}
	return out
}

// endedFor waits until count sessions or logins have ended for the reason.
func (n *node) endedFor(r Reason, count int) {
	n.t.Helper()
	pgtest.Wait(n.t, fmt.Sprintf("%d ends for reason %s", count, r), func() bool {
		got := 0
		for _, kind := range []string{"end", "refusal"} {
			for _, ev := range n.audited(kind) {
				if ev.Reason == r.String() {
					got++
				}
			}
		}
		return got >= count
	})
}

// quiet keeps the lines of thousands of sessions out of a test's output; what pgedge calls a bug panics anyway.
func quiet(c *Config) { c.Logger = slog.New(slog.DiscardHandler) }
