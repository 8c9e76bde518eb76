package engine

import (
	"fmt"
	"testing"

	"github.com/jackc/pgx/v5/pgconn"

	"pgedge/internal/pgtest"
	"pgedge/revoke"
)

func impactOf(t *testing.T, n *node, role string) []revoke.SessionImpact {
	t.Helper()
	return n.Impact(bounded(t), []revoke.Scope{
		{Kind: revoke.ScopePrincipal, Name: role}, {Kind: revoke.ScopeRole, Name: role}, // a session is listed once
	})
}

func TestImpactTellsOpenTransactionsTheirLocksAndWhoWaits(t *testing.T) {
	t.Parallel()
	n := startNode(t, nil)
	role, other, table := newRole(t, ""), newRole(t, ""), newTable(t, "id int primary key, v int")
	server.Exec(t, fmt.Sprintf("INSERT INTO %s VALUES (1, 0)", table), fmt.Sprintf("GRANT ALL ON %s TO %s, %s", table, role, other))
	holder, idle, waiter := n.login(role), n.login(role), n.login(other)
	mustExec(t, holder, "BEGIN")
	mustExec(t, holder, "UPDATE "+table+" SET v = 1 WHERE id = 1")
	mustExec(t, idle, "SELECT 1")
	waits := start(waiter, "UPDATE "+table+" SET v = 2 WHERE id = 1")
	server.WaitInt(t, 1, fmt.Sprintf("SELECT count(*) FROM pg_stat_activity WHERE usename = '%s' AND wait_event_type = 'Lock'", other))

	n.settledAs(role, "idle_in_transaction")
	got := map[uint32]revoke.SessionImpact{}
	for _, i := range impactOf(t, n, role) {
		got[i.BackendPID] = i
	}
	if len(got) != 2 {
		t.Fatalf("got %+v", got)
	}
	h, i := got[n.backendOf(holder)], got[n.backendOf(idle)]
	if !h.Looked || !h.InTransaction || !h.Written || h.TransactionSeconds <= 0 || h.StatementSeconds != 0 || h.Locks < 2 || h.Blocks != 1 || h.Principal != role {
		t.Errorf("the holder is %+v", h)
	}
	if !i.Looked || i.InTransaction || i.Written || i.TransactionSeconds != 0 || i.Locks != 0 || i.Blocks != 0 {
		t.Errorf("the idle one is %+v", i)
	}
	w := n.Impact(bounded(t), []revoke.Scope{{Kind: revoke.ScopePrincipal, Name: other}})
	if len(w) != 1 || w[0].StatementSeconds <= 0 || w[0].State != "active" {
		t.Errorf("the waiter is %+v", w)
	}
	mustExec(t, holder, "COMMIT") // nothing has been ended
	if err := <-waits; err != nil {
		t.Error(err)
	}
}

func TestImpactWithoutAControlRoleListsTheSessionsAndSaysWhatIsNotKnown(t *testing.T) {
	t.Parallel()
	for _, what := range []string{"none", "weak"} {
		n := startNode(t, func(cfg *Config) {
			u := controlUpstream(t, "pgedge_weak", server.Addr(), "?sslmode=disable")
			if what == "none" {
				u.Control = nil
			}
			cfg.Databases = map[string]Database{"*": {Upstream: u}}
		})
		role := newRole(t, "")
		c := n.login(role)
		mustExec(t, c, "BEGIN")
		n.settledAs(role, "idle_in_transaction")
		got := impactOf(t, n, role)
		if len(got) != 1 || got[0].Looked || got[0].Why == "" || !got[0].InTransaction || got[0].ID == "" {
			t.Errorf("%s: got %+v", what, got)
		}
		mustExec(t, c, "COMMIT")
	}
}

func TestImpactFindsBackendsWhosePortsAreHidden(t *testing.T) {
	t.Parallel()
	relay := pgtest.NewRelay(t, server.Addr())
	n := startNode(t, behind(controlUpstream(t, "pgedge_control", relay.Addr(), "?sslmode=disable")))
	role := newRole(t, "")
	c := n.login(role)
	mustExec(t, c, "BEGIN")
	got := impactOf(t, n, role)
	if len(got) != 1 || !got[0].Looked || got[0].TransactionSeconds <= 0 {
		t.Errorf("got %+v", got)
	}
}

// settledAs waits until the node has seen the end of a principal's last statement, which its client sees first.
func (n *node) settledAs(principal, state string) {
	n.t.Helper()
	pgtest.Wait(n.t, "a session that is "+state, func() bool {
		return len(n.Sessions(func(i revoke.SessionInfo) bool { return i.Principal == principal && i.State == state })) > 0
	})
}

// backendOf is the pid of the backend that serves a connection: its client port finds the session.
func (n *node) backendOf(c interface{ PgConn() *pgconn.PgConn }) uint32 {
	n.t.Helper()
	addr := c.PgConn().Conn().LocalAddr().String()
	for _, s := range n.Sessions(nil) {
		if s.Client == addr {
			return s.BackendPID
		}
	}
	n.t.Fatalf("no session of %s", addr)
	return 0
}
