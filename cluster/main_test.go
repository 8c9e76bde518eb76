package cluster

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"go.uber.org/goleak"

	"pgedge/revoke"
)

// patience is how long a test waits for what has to happen; it is never the measure of anything.
const patience = 30 * time.Second

// childEnv makes the test binary run a node in the state directory it names, until it is killed.
const childEnv = "PGEDGE_TEST_CLUSTER_CHILD"

func TestMain(m *testing.M) {
	if dir := os.Getenv(childEnv); dir != "" {
		runChild(dir)
		return
	}
	goleak.VerifyTestMain(m)
}

func runChild(dir string) {
	n, err := Start(context.Background(), Config{Node: "child", StateDir: dir, Logger: slog.New(slog.DiscardHandler)}, newFakeEngine())
	if err != nil {
		fmt.Println("error", err)
		os.Exit(1)
	}
	<-n.ReadyC()
	fmt.Println("ready", n.URL())
	select {}
}

// startChild runs a node in a process of its own and returns its URL.
func startChild(t *testing.T, dir string) (*exec.Cmd, string) {
	t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), childEnv+"="+dir)
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
	})
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		t.Fatalf("cannot read from the child: %v", err)
	}
	var word, url string
	if _, err := fmt.Sscan(line, &word, &url); err != nil || word != "ready" {
		t.Fatalf("the child says %q", line)
	}
	return cmd, url
}

// fakeEngine records what it is told.
type fakeEngine struct {
	mu       sync.Mutex
	orders   []revoke.Order
	leases   []string // what was said about the lease
	cutAt    []time.Time
	changed  chan struct{} // closed and replaced at every order
	sessions []revoke.SessionInfo
	onCut    func(revoke.Order)

	// Set before the node starts.
	upstreams map[string]revoke.UpstreamPresence
	claims    []revoke.Claim
	onSweep   func(revoke.SweepPass) ([]revoke.SweepOutcome, error)
}

func newFakeEngine() *fakeEngine { return &fakeEngine{changed: make(chan struct{})} }

func (e *fakeEngine) Cut(o revoke.Order) {
	e.mu.Lock()
	e.orders = append(e.orders, o)
	e.cutAt = append(e.cutAt, time.Now())
	close(e.changed)
	e.changed = make(chan struct{})
	onCut := e.onCut
	e.mu.Unlock()
	if onCut != nil {
		onCut(o)
	}
}

func (e *fakeEngine) Impact(_ context.Context, scopes []revoke.Scope) []revoke.SessionImpact {
	var out []revoke.SessionImpact
	for _, s := range e.sessions {
		if slices.ContainsFunc(scopes, func(sc revoke.Scope) bool {
			return sc.Matches(revoke.NewIdentity(s.Principal, s.Role, s.Database, s.ID))
		}) {
			out = append(out, revoke.SessionImpact{SessionInfo: s, Looked: true, Locks: 1})
		}
	}
	return out
}

func (e *fakeEngine) Sessions(f SessionFilter) []revoke.SessionInfo {
	e.mu.Lock()
	defer e.mu.Unlock()
	var list []revoke.SessionInfo
	for _, s := range e.sessions {
		if f.Match(s) {
			list = append(list, s)
		}
	}
	return list
}

func (e *fakeEngine) Freeze() { e.lease("freeze") }
func (e *fakeEngine) Thaw()   { e.lease("thaw") }
func (e *fakeEngine) Drop()   { e.lease("drop") }

func (e *fakeEngine) lease(what string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.leases = append(e.leases, what)
	close(e.changed)
	e.changed = make(chan struct{})
}

// waitLease returns when the engine has been told so many things about the lease, and checks what.
func (e *fakeEngine) waitLease(t testing.TB, want ...string) {
	t.Helper()
	deadline := time.After(patience)
	for {
		e.mu.Lock()
		changed, got := e.changed, slices.Clone(e.leases)
		e.mu.Unlock()
		if len(got) >= len(want) {
			if !slices.Equal(got, want) {
				t.Fatalf("the engine was told to %q, not to %q", got, want)
			}
			return
		}
		select {
		case <-changed:
		case <-deadline:
			t.Fatalf("the engine was told to %q, not to %q", got, want)
		}
	}
}

func (e *fakeEngine) Upstreams() map[string]revoke.UpstreamPresence { return e.upstreams }
func (e *fakeEngine) Claims([]string) []revoke.Claim                { return e.claims }

func (e *fakeEngine) Sweep(_ context.Context, _ string, pass revoke.SweepPass) ([]revoke.SweepOutcome, error) {
	if e.onSweep == nil {
		return nil, errors.New("no server")
	}
	return e.onSweep(pass)
}

func (e *fakeEngine) RestoreLogins(context.Context, string, func(string, revoke.LoginMark) bool) ([]string, error) {
	return nil, errors.New("no server")
}

func (e *fakeEngine) SessionCount() int {
	e.mu.Lock()
	defer e.mu.Unlock()
	return len(e.sessions)
}

// matching lists the orders so far that satisfy ok.
func (e *fakeEngine) matching(ok func(revoke.Order) bool) []revoke.Order {
	e.mu.Lock()
	defer e.mu.Unlock()
	var list []revoke.Order
	for _, o := range e.orders {
		if ok(o) {
			list = append(list, o)
		}
	}
	return list
}

// wait returns the first order that satisfies ok.
func (e *fakeEngine) wait(t testing.TB, what string, ok func(revoke.Order) bool) revoke.Order {
	t.Helper()
	deadline := time.After(patience)
	for looked := 0; ; {
		e.mu.Lock()
		changed, news := e.changed, e.orders[looked:]
		looked = len(e.orders)
		e.mu.Unlock()
		if i := slices.IndexFunc(news, ok); i >= 0 {
			return news[i]
		}
		select {
		case <-changed:
		case <-deadline:
			t.Fatalf("no order came: %s; the orders are %+v", what, e.matching(func(revoke.Order) bool { return true }))
		}
	}
}

func principalOrder(name string) func(revoke.Order) bool {
	return func(o revoke.Order) bool { return o.Fact.Scope == scopeOf(name) }
}

func settledOrder(name string) func(revoke.Order) bool {
	return func(o revoke.Order) bool { return o.Fact.Scope == scopeOf(name) && o.Fact.Seq > 0 }
}

func scopeOf(principal string) revoke.Scope {
	return revoke.Scope{Kind: revoke.ScopePrincipal, Name: principal}
}

// denied reports whether a login of the principal that begins now is refused.
func denied(table *revoke.Table, principal string) bool {
	_, no := table.Check(revoke.NewIdentity(principal, principal, "app", "s"), table.Position(), time.Now())
	return no
}

// testConfig is a node with an embedded server in a directory of the test's.
func testConfig(t testing.TB, node string) Config {
	return Config{
		Node:     node,
		Version:  "test",
		StateDir: filepath.Join(t.TempDir(), "state"),
		Logger:   slog.New(slog.DiscardHandler),
	}
}

// startNode starts a node and waits until it is ready. It is closed with the test unless the test does it before.
func startNode(t testing.TB, cfg Config, eng Engine) *Node {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	n, err := Start(ctx, cfg, eng)
	if err != nil {
		t.Fatalf("cannot start node %s: %v", cfg.Node, err)
	}
	t.Cleanup(func() { closeNode(t, n) })
	select {
	case <-n.ReadyC():
	case <-n.FatalC():
		t.Fatalf("node %s has to stop: %v", cfg.Node, n.FatalErr())
	case <-ctx.Done():
		_, why := n.Ready()
		t.Fatalf("node %s is not ready: %s", cfg.Node, why)
	}
	return n
}

func closeNode(t testing.TB, n *Node) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if err := n.Close(ctx); err != nil && n.FatalErr() == nil {
		t.Errorf("cannot close node %s: %v", n.cfg.Node, err)
	}
}

// crash stops a node without a goodbye, as a kill would.
func crash(n *Node) {
	n.closeOnce.Do(func() {})
	n.release()
}

func dial(t testing.TB, opts DialOptions) *Client {
	t.Helper()
	opts.Timeout = patience
	c, err := Dial(context.Background(), opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}

// rawConn is a NATS connection as any tool would make it.
func rawConn(t testing.TB, url string) *nats.Conn {
	t.Helper()
	nc, err := nats.Connect(url, nats.Timeout(patience))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(nc.Close)
	return nc
}

func testContext(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	t.Cleanup(cancel)
	return ctx
}
