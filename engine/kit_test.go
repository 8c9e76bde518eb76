package engine

import (
	"context"
	"flag"
	"fmt"
	"log/slog"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"pgedge/internal/pgtest"
	"pgedge/revoke"
)

// server is shared by the tests of this package; each test uses roles and tables of its own where it matters.
var server *pgtest.Server

func TestMain(m *testing.M) {
	bugPanics = true
	flag.Parse()
	if flag.Lookup("test.run").Value.String() == "^$" { // benchmarks alone need no Postgres
		os.Exit(m.Run())
	}
	var err error
	server, err = pgtest.StartMain(pgtest.Options{MaxConnections: 300, TLS: true})
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	code := m.Run()
	if err := server.Stop(); err != nil {
		fmt.Fprintln(os.Stderr, err)
	}
	os.Exit(code)
}

// patience bounds every wait of these tests; no test asserts how fast something is.
const patience = 30 * time.Second

// node is an engine with a table, driven by hand: facts are merged and orders carried out as the cluster would.
type node struct {
	*Engine
	t     testing.TB
	table *revoke.Table
	addr  string
	seq   atomic.Uint64

	mu       sync.Mutex
	receipts []revoke.Receipt
	changed  chan struct{}
	events   []AuditEvent
}

// testLog shows the engine's log where a test fails.
type testLog struct{ t testing.TB }

func (l testLog) Write(p []byte) (int, error) {
	defer func() { _ = recover() }() // a line that comes after the end of the test
	l.t.Log(string(p[:len(p)-1]))
	return len(p), nil
}

func controlUpstream(t testing.TB, role, addr, options string) Upstream {
	t.Helper()
	u, err := ParseUpstream(fmt.Sprintf("postgres://%s:%s@%s/%s%s", role, pgtest.Password(role), addr, pgtest.Database, options))
	if err != nil {
		t.Fatal(err)
	}
	return u
}

func startNode(t testing.TB, change func(*Config)) *node {
	t.Helper()
	n := &node{t: t, table: revoke.NewTable(), changed: make(chan struct{}, 1)}
	cfg := Config{
		Node: "edge-t", Boot: "boot", Version: "test", Listen: []string{"127.0.0.1:0"},
		Table:   n.table,
		Contact: "it@corp.com",
		Logger:  slog.New(slog.NewTextHandler(testLog{t}, &slog.HandlerOptions{Level: slog.LevelInfo})),
		OnReceipt: func(r revoke.Receipt) {
			n.mu.Lock()
			n.receipts = append(n.receipts, r)
			n.mu.Unlock()
			select {
			case n.changed <- struct{}{}:
			default:
			}
		},
		OnAudit: func(ev AuditEvent) {
			n.mu.Lock()
			n.events = append(n.events, ev)
			n.mu.Unlock()
		},
	}
	if server != nil {
		cfg.Databases = map[string]Database{"*": {Upstream: controlUpstream(t, "pgedge_control", server.Addr(), "?sslmode=disable")}}
	}
	if change != nil {
		change(&cfg)
	}
	e, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	n.Engine = e
	if err := e.Start(context.Background()); err != nil {
		t.Fatal(err)
	}
	n.addr = e.Addrs()[0].String()
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		if err := e.Stop(ctx); err != nil {
			t.Errorf("cannot stop the engine: %v", err)
		}
		if ctx.Err() != nil {
			t.Error("the engine did not stop in time")
		}
	})
	return n
}

// apply stores a fact in the table and has it carried out, as the journal would; it returns its id.
func (n *node) apply(v revoke.Verb, kind revoke.ScopeKind, name string) string {
	n.t.Helper()
	scope, err := revoke.NewScope(kind, name)
	if err != nil {
		n.t.Fatal(err)
	}
	seq := n.seq.Add(1)
	f := revoke.Fact{Verb: v, Scope: scope, ID: fmt.Sprintf("id-%d", seq), Seq: seq}
	if v == revoke.VerbReinstate {
		f.Upto = seq - 1
	}
	received := time.Now()
	n.table.Merge(f)
	n.table.Advance(seq)
	if v != revoke.VerbReinstate {
		n.Cut(revoke.Order{Key: f.ID, Fact: f, ReceivedAt: received})
	}
	return f.ID
}

func (n *node) revoke(name string) string {
	return n.apply(revoke.VerbRevoke, revoke.ScopePrincipal, name)
}

// receipt waits for the final receipt of a revocation.
func (n *node) receipt(id string) revoke.Receipt {
	n.t.Helper()
	deadline := time.After(patience)
	for {
		n.mu.Lock()
		for _, r := range n.receipts {
			if r.Revocation == id && r.Final() {
				n.mu.Unlock()
				return r
			}
		}
		n.mu.Unlock()
		select {
		case <-n.changed:
		case <-deadline:
			n.t.Fatalf("no final receipt came for %s", id)
		}
	}
}

// receiptRank orders the receipts of one revocation: the final one is the last, whatever its stage.
func receiptRank(r revoke.Receipt) int {
	switch {
	case r.Final():
		return int(prVerified)
	case r.Stage == revoke.StageClosed:
		return int(prClosed)
	}
	return int(prCut)
}

// verified waits for the receipt and checks that every backend was seen gone.
func (n *node) verified(id string, matched int) revoke.Receipt {
	n.t.Helper()
	r := n.receipt(id)
	if r.Matched != matched || r.Unverified != 0 {
		n.t.Fatalf("receipt: %d matched, %d unverified; want %d and 0: %+v", r.Matched, r.Unverified, matched, r.Sessions)
	}
	return r
}

func (n *node) url(user string) string {
	return fmt.Sprintf("postgres://%s:%s@%s/%s?sslmode=disable", user, pgtest.Password(user), n.addr, pgtest.Database)
}

func (n *node) connect(user string) (*pgx.Conn, error) {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	return pgx.Connect(ctx, n.url(user))
}

// login is a session of user through the node; it is closed with the test.
func (n *node) login(user string) *pgx.Conn {
	n.t.Helper()
	c, err := n.connect(user)
	if err != nil {
		n.t.Fatalf("%s cannot log in: %v", user, err)
	}
	n.t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		c.Close(ctx)
	})
	return c
}

func bounded(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	t.Cleanup(cancel)
	return ctx
}

func (n *node) dial() net.Conn {
	n.t.Helper()
	c, err := net.DialTimeout("tcp", n.addr, patience)
	if err != nil {
		n.t.Fatal(err)
	}
	c.SetDeadline(time.Now().Add(patience))
	n.t.Cleanup(func() { c.Close() })
	return c
}
