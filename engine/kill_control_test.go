package engine

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"pgedge/internal/pgtest"
	"pgedge/revoke"
)

func behind(u Upstream) func(*Config) {
	return func(cfg *Config) { cfg.Databases = map[string]Database{"*": {Upstream: u}} }
}

// More than one statement of the control connection and more than one go of each loop.
func TestKillOfABatch(t *testing.T) {
	t.Parallel()
	n := startNode(t, nil)
	role, table := newRole(t, ""), newTable(t, "v int")
	const sessions = 120
	conns := make([]*pgx.Conn, sessions)
	var wg sync.WaitGroup
	for w := range 4 {
		wg.Go(func() {
			for i := w; i < sessions; i += 4 {
				var err error
				if conns[i], err = n.connect(role); err != nil {
					t.Errorf("cannot log in: %v", err)
					return
				}
			}
		})
	}
	wg.Wait()
	if t.Failed() {
		return
	}
	t.Cleanup(func() {
		for _, c := range conns { // held until here: a connection that nobody holds is closed by its finalizer
			c.Close(context.Background())
		}
	})
	bystander := n.login("bob")
	var results []<-chan error
	for i, c := range conns {
		switch i % 4 {
		case 0:
			results = append(results, start(c, "SELECT pg_sleep(60)"))
		case 1:
			mustExec(t, c, "BEGIN")
			mustExec(t, c, "INSERT INTO "+table+" VALUES (1)")
		}
	}
	server.WaitInt(t, sessions/4, asleepSQL, role)
	r := n.killed(n.revoke(role), role, sessions)
	count := make(map[string]int)
	for _, s := range r.Sessions {
		count[s.State+" "+s.Xact]++
	}
	if count["active aborted"] != sessions/4 || count["idle_in_transaction aborted"] != sessions/4 || count["idle none"] != sessions/2 {
		t.Errorf("sessions: %v", count)
	}
	for _, result := range results {
		wantCode(t, <-result, "28000")
	}
	mustExec(t, bystander, "SELECT 1")
	if rows := settledRows(t, table); rows != 0 {
		t.Errorf("%d rows", rows)
	}
}

// A superuser's backend must not take the others' end with it: Postgres refuses the whole statement for one.
func TestKillOfABatchWithASuperuser(t *testing.T) {
	t.Parallel()
	n := startNode(t, nil)
	role, super := newRole(t, ""), newRole(t, "SUPERUSER")
	table := newTable(t, "v int")
	newTrigger(t, table, "BEFORE INSERT", 60*time.Second, true)
	for range 3 {
		n.login(role)
	}
	result := start(n.login(super), "INSERT INTO "+table+" VALUES (1)")
	server.WaitInt(t, 1, asleepSQL, super)
	r := n.receipt(n.apply(revoke.VerbKill, revoke.ScopeAll, ""))
	if r.Matched != 4 || r.Unverified != 1 {
		t.Fatalf("receipt: %+v", r)
	}
	for _, s := range r.Sessions {
		if s.Role == super {
			if s.Verified || s.Backend != "cancelled" || !strings.Contains(s.Why, "superuser") || s.Xact != "unknown" || !s.MorePossible {
				t.Errorf("superuser's session: %+v", s)
			}
		} else if !s.Verified || s.Backend != "gone" {
			t.Errorf("session: %+v", s)
		}
	}
	n.nothingAfterCut(r)
	wantCode(t, <-result, "57P01")
	if left := server.Backends(t, role); left != 0 {
		t.Errorf("%d backends", left)
	}
	server.WaitBackends(t, super, 0)
	if rows := settledRows(t, table); rows != 0 {
		t.Errorf("%d rows", rows)
	}
}

func TestKillThroughARelayThatHidesThePort(t *testing.T) {
	t.Parallel()
	relay := pgtest.NewRelay(t, server.Addr())
	n := startNode(t, behind(controlUpstream(t, "pgedge_control", relay.Addr(), "?sslmode=disable")))
	if c := n.Controls(); len(c) != 1 || c[relay.Addr()] != "" {
		t.Fatalf("controls: %v", c)
	}
	role, other := newRole(t, ""), newRole(t, "")
	idle, busy, bystander := n.login(role), n.login(role), n.login(other)
	result := start(busy, "SELECT pg_sleep(60)")
	server.WaitInt(t, 1, asleepSQL, role)
	n.killed(n.revoke(role), role, 2)
	wantCode(t, <-result, "28000")
	_, err := idle.Exec(bounded(t), "SELECT 1")
	wantCode(t, err, "28000")
	mustExec(t, bystander, "SELECT 1")
}

// What cannot be proven is not claimed; what can be done is done.
func TestKillWithoutAUsableControlRole(t *testing.T) {
	t.Parallel()
	weak := controlUpstream(t, "pgedge_weak", server.Addr(), "?sslmode=disable")
	blind := controlUpstream(t, "pgedge_control", server.Addr(), "?sslmode=disable")
	blind.Control = nil
	wrong := controlUpstream(t, "pgedge_control", server.Addr(), "?sslmode=disable")
	wrong.Control.Password = "wrong"
	for _, c := range []struct {
		name     string
		upstream Upstream
		controls string // what Controls says
		why      string // what the receipts say
	}{
		{"without pg_read_all_stats", weak, "pg_read_all_stats", "pg_read_all_stats"},
		{"without a role", blind, "", "no control role"},
		{"with a wrong password", wrong, "password authentication failed", "password authentication failed"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			n := startNode(t, behind(c.upstream))
			for _, missing := range n.Controls() {
				if c.controls == "" || !strings.Contains(missing, c.controls) {
					t.Errorf("controls: %q", missing)
				}
			}
			role, table := newRole(t, ""), newTable(t, "v int")
			newTrigger(t, table, "BEFORE INSERT", 60*time.Second, true)
			idle, busy := n.login(role), n.login(role)
			result := start(busy, "INSERT INTO "+table+" VALUES (1)")
			server.WaitInt(t, 1, asleepSQL, role)
			r := n.receipt(n.revoke(role))
			if r.Matched != 2 || r.Unverified != 2 || len(r.Sessions) != 2 {
				t.Fatalf("receipt: %+v", r)
			}
			for _, s := range r.Sessions {
				if s.Verified || s.Backend != "cancelled" || !strings.Contains(s.Why, c.why) || s.Xact != "unknown" || !s.MorePossible {
					t.Errorf("session: %+v", s)
				}
			}
			n.nothingAfterCut(r)
			wantCode(t, <-result, "28000")
			_, err := idle.Exec(bounded(t), "SELECT 1")
			wantCode(t, err, "28000")
			server.WaitBackends(t, role, 0)
			if rows := settledRows(t, table); rows != 0 {
				t.Errorf("%d rows", rows)
			}
		})
	}
}

// The control connection was alive when last used and is dead when it is needed.
func TestKillOverABrokenControlConnection(t *testing.T) {
	t.Parallel()
	control := newRole(t, "")
	server.Exec(t, "GRANT pg_signal_backend, pg_read_all_stats TO "+control)
	n := startNode(t, behind(controlUpstream(t, control, server.Addr(), "?sslmode=disable")))
	role := newRole(t, "")
	for range 3 {
		busy := n.login(role)
		result := start(busy, "SELECT pg_sleep(60)")
		server.WaitInt(t, 1, asleepSQL, role)
		if got := server.QueryInt(t,
			"WITH c AS MATERIALIZED (SELECT pid FROM pg_stat_activity WHERE usename = $1) SELECT count(*) FILTER (WHERE pg_terminate_backend(pid)) FROM c", control); got != 1 {
			t.Fatalf("%d control connections", got)
		}
		server.WaitBackends(t, control, 0)
		n.killed(n.apply(revoke.VerbKill, revoke.ScopePrincipal, role), role, 1)
		wantCode(t, <-result, "57P01")
	}
}

// Regression: the output of a cut session's backend was read and dropped at once, so that a statement blocked on its
// client could run to its end, and commit, while the terminating statement was still on its way.
func TestKillLetsNothingFinishBeforeTheBackendIsTerminated(t *testing.T) {
	t.Parallel()
	control := newRole(t, "")
	server.Exec(t, "GRANT pg_signal_backend, pg_read_all_stats TO "+control)
	n := startNode(t, behind(controlUpstream(t, control, server.Addr(), "?sslmode=disable")))
	role, table := newRole(t, ""), newTable(t, "v int")
	r := n.raw(role)
	r.Query("WITH w AS (INSERT INTO " + table + " SELECT g FROM generate_series(1, 60000) g RETURNING v) SELECT v, repeat('x', 1000) FROM w")
	s := n.only(role)
	waitOnLoop(t, s, func() bool { return s.back.paused != 0 })
	pid := int(server.QueryInt(t, "SELECT pid FROM pg_stat_activity WHERE usename = $1", control))
	if err := syscall.Kill(pid, syscall.SIGSTOP); err != nil {
		t.Fatalf("cannot hold the control connection up: %v", err)
	}
	t.Cleanup(func() { syscall.Kill(pid, syscall.SIGCONT) })
	id := n.revoke(role)
	began := server.QueryString(t, "SELECT clock_timestamp()::text")
	server.WaitInt(t, 1, "SELECT (clock_timestamp() > $1::timestamptz + interval '1.5 s')::int", began)
	if got := server.QueryString(t, "SELECT state FROM pg_stat_activity WHERE usename = $1", role); got != "active" {
		t.Errorf("the backend is %q before it was terminated", got)
	}
	if err := syscall.Kill(pid, syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	n.killed(id, role, 1)
	if rows := settledRows(t, table); rows != 0 {
		t.Errorf("%d rows", rows)
	}
}

// A backend that does not go away in time is said to be there, never to be gone.
func TestKillThatCannotBeVerifiedInTime(t *testing.T) {
	t.Parallel()
	n := startNode(t, func(cfg *Config) { cfg.VerifyTimeout = 300 * time.Millisecond })
	role, table := newRole(t, ""), newTable(t, "v int")
	newTrigger(t, table, "BEFORE INSERT", 60*time.Second, true)
	stuck, other := n.login(role), n.login(role)
	result := start(stuck, "INSERT INTO "+table+" VALUES (1)")
	server.WaitInt(t, 1, asleepSQL, role)
	pid := int(server.QueryInt(t, "SELECT pid FROM pg_stat_activity WHERE usename = $1 AND state = 'active'", role))
	if err := syscall.Kill(pid, syscall.SIGSTOP); err != nil {
		t.Fatalf("cannot stop the backend: %v", err)
	}
	t.Cleanup(func() { syscall.Kill(pid, syscall.SIGCONT) })
	r := n.receipt(n.revoke(role))
	if r.Matched != 2 || r.Unverified != 1 {
		t.Fatalf("receipt: %+v", r)
	}
	for _, s := range r.Sessions {
		if s.BackendPID == uint32(pid) {
			if s.Verified || s.Backend != "timeout" || s.Why != fmt.Sprintf("the backend was still there after %s", 300*time.Millisecond) || s.Xact != "unknown" || !s.MorePossible {
				t.Errorf("stuck session: %+v", s)
			}
		} else if !s.Verified || s.Backend != "gone" {
			t.Errorf("session: %+v", s)
		}
	}
	if got := server.Backends(t, role); got != 1 {
		t.Errorf("%d backends", got)
	}
	if v := n.metrics.verifyTimeouts.Get(); v != 1 {
		t.Errorf("pgedge_revocation_timeouts_total is %d", v)
	}
	n.nothingAfterCut(r)
	wantCode(t, <-result, "28000")
	_, err := other.Exec(bounded(t), "SELECT 1")
	wantCode(t, err, "28000")
	if err := syscall.Kill(pid, syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	server.WaitBackends(t, role, 0)
	if rows := settledRows(t, table); rows != 0 {
		t.Errorf("%d rows", rows)
	}
}
