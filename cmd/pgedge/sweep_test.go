package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"pgedge/internal/pgserver"
	"pgedge/internal/pgtest"
	"pgedge/revoke"
)

// member is a real node of a real fleet; the first one carries NATS.
type member struct {
	*served
	addr  string
	state string
}

// join starts a node. The heartbeat is short, so that silence is soon noticed, and the lease long, so that nothing of
// what these tests see is the lease's doing.
func join(t *testing.T, pg *pgtest.Server, id, nats, database string) *member {
	t.Helper()
	dir := t.TempDir()
	m := &member{state: filepath.Join(dir, "state")}
	cluster := "heartbeat: 200ms, lease: 20s"
	if nats != "" {
		cluster += fmt.Sprintf(", nats: ['%s']", nats)
	}
	file := filepath.Join(dir, "pgedge.yaml")
	writeFile(t, file, fmt.Sprintf("node: %s\nlisten: ['127.0.0.1:0']\nadmin: off\nstate_dir: %s\ncluster: {%s}\ntimeouts: {drain: 1s}\ndatabases: {'*': {upstream: '%s'%s}}\n",
		id, m.state, cluster, pg.URL("pgedge_control", pgserver.Password("pgedge_control"), pgserver.Database), database))
	m.served = startServe(t, "-c", file)
	m.addr = m.await(logAccepting)["address"].(string)
	m.await(logReady)
	where := []string{"--state-dir", m.state}
	if nats != "" {
		where = []string{"--nats", nats}
	}
	// A node that is stopped before it has said where its backends come from cannot be acted for.
	pgtest.Wait(t, id+" to announce its addresses", func() bool {
		for line := range strings.Lines(pgedge(t, 0, append([]string{"nodes", "-o", "json"}, where...)...)) {
			if strings.Contains(line, `"node":"`+id+`"`) && strings.Contains(line, `"addresses":["127.0.0.1"]`) {
				return true
			}
		}
		return false
	})
	return m
}

// through is a session that Postgres itself does not end when the process it goes through dies.
func (m *member) through(t *testing.T, role string) *pgx.Conn {
	t.Helper()
	c, err := m.try(role)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { closeNow(c) })
	return c
}

func (m *member) try(role string) (*pgx.Conn, error) {
	ctx, cancel := context.WithTimeout(context.Background(), pgtest.Patience)
	defer cancel()
	return pgx.Connect(ctx, pgserver.URL(m.addr, role, pgserver.Password(role), pgserver.Database)+"?sslmode=disable&client_connection_check_interval=0")
}

func closeNow(c *pgx.Conn) {
	ctx, cancel := context.WithTimeout(context.Background(), 100*time.Millisecond)
	defer cancel()
	c.Close(ctx)
}

const asleep = "SELECT count(*) FROM pg_stat_activity WHERE usename = $1 AND wait_event = 'PgSleep'"

// sleep begins a statement of a minute and returns once it runs.
func sleep(t *testing.T, pg *pgtest.Server, c *pgx.Conn, role string) {
	t.Helper()
	before := pg.QueryInt(t, asleep, role)
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_, _ = c.Exec(ctx, "SELECT pg_sleep(60)") // how it ends is seen in the database
	}()
	t.Cleanup(func() { cancel(); <-ended })
	pg.WaitInt(t, before+1, asleep, role)
}

func ping(t *testing.T, who string, c *pgx.Conn) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), pgtest.Patience)
	defer cancel()
	if _, err := c.Exec(ctx, "SELECT 1"); err != nil {
		t.Errorf("%s: %v", who, err)
	}
}

// publish sends a fact as any tool would.
func (m *member) publish(t *testing.T, verb, principal, id string) {
	t.Helper()
	natsPublish(t, m.state, "pgedge."+verb+".principal."+principal, fmt.Sprintf(`{"id":%q}`, id))
}

// awaitReceipt returns a node's receipt once it says what is waited for.
func (m *member) awaitReceipt(t *testing.T, id, node string, says func(revoke.Receipt) bool) (found revoke.Receipt) {
	t.Helper()
	deadline := time.Now().Add(pgtest.Patience)
	for {
		cmd := exec.Command("pgedge", "receipts", "show", id, "-o", "json", "--state-dir", m.state)
		cmd.Env = cleanEnviron()
		b, _ := cmd.Output() // it fails while there is no receipt
		out := string(b)
		for dec := json.NewDecoder(strings.NewReader(out)); dec.More(); {
			var r revoke.Receipt
			if err := dec.Decode(&r); err != nil {
				t.Fatalf("%v in %s", err, out)
			}
			if r.Node == node {
				if found = r; says(r) {
					return r
				}
			}
		}
		if time.Now().After(deadline) {
			b, _ := json.Marshal(found.Residue)
			t.Fatalf("the receipt of %s does not say it; its residue is %s", node, b)
		}
	}
}

func stoppedFor(node string, atLeast int) func(revoke.Receipt) bool {
	return func(r revoke.Receipt) bool {
		if r.Residue == nil {
			return false
		}
		for _, s := range r.Residue.StoppedFor {
			if s.Node == node && s.Backends >= atLeast {
				return true
			}
		}
		return false
	}
}

func counted(r revoke.Receipt) bool {
	return r.Residue != nil && r.Residue.DirectSessions != nil && r.Residue.RoleCanLogin != nil
}

func TestTheStatementOfACrashedNodeIsStoppedByAHealthyOne(t *testing.T) {
	pg := pgtest.Start(t, pgtest.Options{})
	a := join(t, pg, "edge-a", "", "")
	b := join(t, pg, "edge-b", natsURL(t, a.state).String(), "")
	c := join(t, pg, "edge-c", natsURL(t, a.state).String(), "")
	sleep(t, pg, b.through(t, "alice"), "alice")
	sleep(t, pg, b.through(t, "carol"), "carol")
	bystander := c.through(t, "bob")
	b.cmd.Process.Signal(syscall.SIGKILL)
	b.cmd.Wait()

	a.publish(t, "revoke", "alice", "HR-1")
	pg.WaitBackends(t, "alice", 0)
	a.awaitReceipt(t, "HR-1", "edge-a", stoppedFor("edge-b", 1))
	if r := a.awaitReceipt(t, "HR-1", "edge-c", revoke.Receipt.Final); r.Residue != nil {
		t.Errorf("edge-c was not responsible, but says %+v", r.Residue)
	}
	ping(t, "a bystander on a live node", bystander)
	if left := pg.QueryInt(t, asleep, "carol"); left != 1 {
		t.Errorf("carol was not revoked, but %d of her statements run", left)
	}

	// Restarted, it says goodbye for its crashed run. A kill stops what that one left behind and spares what has begun
	// since, on the same address or past pgedge.
	b.served = startServe(t, "-c", filepath.Join(filepath.Dir(b.state), "pgedge.yaml"))
	b.addr = b.await(logAccepting)["address"].(string)
	b.await(logReady)
	direct := past(t, pg, "carol")
	a.publish(t, "kill", "carol", "HR-2")
	r := a.awaitReceipt(t, "HR-2", "edge-a", func(r revoke.Receipt) bool { return counted(r) && stoppedFor("edge-b", 1)(r) })
	if left := pg.QueryInt(t, asleep, "carol"); left != 0 || *r.Residue.DirectSessions != 1 {
		t.Errorf("%d statements are left, direct sessions %d", left, *r.Residue.DirectSessions)
	}
	ping(t, "carol past pgedge", direct)
	ping(t, "carol, back after the kill", b.through(t, "carol"))
}

func past(t *testing.T, pg *pgtest.Server, role string) *pgx.Conn {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), pgtest.Patience)
	defer cancel()
	c, err := pgx.Connect(ctx, pgserver.URL(pg.Addr(), role, pgserver.Password(role), pgserver.Database)+"?sslmode=disable")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { closeNow(c) })
	return c
}

func TestTheStatementOfAStoppedNodeIsStoppedByAHealthyOne(t *testing.T) {
	pg := pgtest.Start(t, pgtest.Options{})
	a := join(t, pg, "edge-a", "", "")
	b := join(t, pg, "edge-b", natsURL(t, a.state).String(), "")
	sleep(t, pg, b.through(t, "alice"), "alice")
	b.cmd.Process.Signal(syscall.SIGSTOP)
	defer b.cmd.Process.Signal(syscall.SIGCONT)
	a.publish(t, "revoke", "alice", "HR-1")
	pg.WaitBackends(t, "alice", 0)
	a.awaitReceipt(t, "HR-1", "edge-a", stoppedFor("edge-b", 1))
}

// A node that is cut off from NATS goes on serving until its lease ends, and its client comes back through it.
func TestWhatAClientStartsBehindACutOffNodeIsStoppedAgainAndAgain(t *testing.T) {
	pg := pgtest.Start(t, pgtest.Options{})
	a := join(t, pg, "edge-a", "", "")
	u := natsURL(t, a.state)
	relay := pgtest.NewRelay(t, u.Host)
	u.Host = relay.Addr()
	b := join(t, pg, "edge-b", u.String(), "")
	alice, bystander, spared := b.through(t, "alice"), b.through(t, "bob"), a.through(t, "bob")
	sleep(t, pg, alice, "alice")
	relay.Pause(pgtest.BothWays)

	a.publish(t, "revoke", "alice", "HR-1")
	pg.WaitBackends(t, "alice", 0)
	stopped := 1
	for range 3 {
		c, err := b.try("alice")
		if err != nil {
			// Stopped in the middle of its login.
			var pgErr *pgconn.PgError
			if !errors.As(err, &pgErr) || pgErr.Code != "57P01" {
				t.Fatalf("alice cannot log in behind the cut-off node: %v", err)
			}
			continue
		}
		ctx, cancel := context.WithTimeout(context.Background(), pgtest.Patience)
		_, err = c.Exec(ctx, "SELECT pg_sleep(60)")
		cancel()
		closeNow(c)
		var pgErr *pgconn.PgError
		if !errors.As(err, &pgErr) || pgErr.Code != "57P01" {
			t.Fatalf("the statement ended with %v", err)
		}
		stopped++
	}
	a.awaitReceipt(t, "HR-1", "edge-a", stoppedFor("edge-b", stopped))
	refusedWith(t, a.addr, "alice", "28000")
	ping(t, "bob behind the cut-off node", bystander)
	ping(t, "bob on the live node", spared)

	// After a kill the client may come back, and is let alone.
	a.publish(t, "kill", "bob", "HR-2")
	a.awaitReceipt(t, "HR-2", "edge-a", stoppedFor("edge-b", 1))
	back := b.through(t, "bob")
	a.publish(t, "kill", "carol", "HR-3") // a whole round later
	a.awaitReceipt(t, "HR-3", "edge-a", counted)
	ping(t, "bob, back behind the cut-off node after the kill", back)

	// Healed, it ends what it has itself, and nobody acts for it any more.
	relay.Resume(pgtest.BothWays)
	pgtest.Wait(t, "the healed node to refuse alice", func() bool {
		c, err := b.try("alice")
		if err == nil {
			closeNow(c)
		}
		var pgErr *pgconn.PgError
		return errors.As(err, &pgErr) && pgErr.Code == "28000"
	})
}

func TestSweepEndsWhatBypassesPgedgeAndReinstateUndoesIt(t *testing.T) {
	pg := pgtest.Start(t, pgtest.Options{})
	pg.Exec(t, "ALTER ROLE pgedge_control CREATEROLE", "ALTER ROLE carol NOLOGIN", "COMMENT ON ROLE alice IS 'payroll'")
	a := join(t, pg, "edge-a", "", ", sweep: true")
	b := join(t, pg, "edge-b", natsURL(t, a.state).String(), ", sweep: true")
	own := b.through(t, "alice")
	direct, bystander := past(t, pg, "alice"), past(t, pg, "bob")
	const canLogin = "SELECT count(*) FROM pg_roles WHERE rolname = $1 AND rolcanlogin"

	a.publish(t, "revoke", "alice", "HR-1")
	r := a.awaitReceipt(t, "HR-1", "edge-a", func(r revoke.Receipt) bool { return counted(r) && r.Residue.Swept != nil })
	if x := r.Residue; *x.DirectSessions != 0 || *x.RoleCanLogin || x.Swept.DirectSessions != 1 || !x.Swept.NoLogin || x.Why != "" || len(x.StoppedFor) != 0 {
		b, _ := json.Marshal(x)
		t.Errorf("residue: %s", b)
	}
	other := b.awaitOwn(t, a, "HR-1")
	if len(other.Sessions) != 1 || !other.Sessions[0].Verified {
		t.Errorf("edge-b's own session was not left to it: %+v", other)
	}
	for _, c := range []*pgx.Conn{direct, own} {
		if _, err := c.Exec(context.Background(), "SELECT 1"); err == nil {
			t.Error("a session of alice has survived")
		}
	}
	ping(t, "a direct session of bob", bystander)
	if pg.QueryInt(t, canLogin, "alice") != 0 {
		t.Error("alice can log in")
	}

	// Another process restores it: what is to be restored is not in anybody's memory.
	a.publish(t, "revoke", "carol", "HR-2")
	a.awaitReceipt(t, "HR-2", "edge-a", counted)
	a.cmd.Process.Signal(syscall.SIGTERM)
	if code := a.exitCode(); code != 0 {
		t.Fatalf("edge-a: exit code %d", code)
	}
	again := startServe(t, "-c", filepath.Join(filepath.Dir(a.state), "pgedge.yaml"))
	again.await(logReady)
	pgedge(t, 0, "reinstate", "alice", "--state-dir", a.state)
	pgedge(t, 0, "reinstate", "carol", "--state-dir", a.state)
	pg.WaitInt(t, 1, canLogin, "alice")
	if got := pg.QueryString(t, "SELECT shobj_description(oid, 'pg_authid') FROM pg_roles WHERE rolname = 'alice'"); got != "payroll" {
		t.Errorf("the comment is %q", got)
	}
	if pg.QueryInt(t, canLogin, "carol") != 0 {
		t.Error("carol could not log in before, and can now")
	}

	pgedge(t, 0, "suspend", "alice", "--for", "2s", "--state-dir", a.state)
	pg.WaitInt(t, 0, canLogin, "alice")
	pg.WaitInt(t, 1, canLogin, "alice")
}

func (m *member) awaitOwn(t *testing.T, hub *member, id string) revoke.Receipt {
	t.Helper()
	return hub.awaitReceipt(t, id, "edge-b", revoke.Receipt.Final)
}
