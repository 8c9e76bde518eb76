package engine

import (
	"testing"

	"github.com/jackc/pgx/v5/pgproto3"

	"pgedge/internal/pgtest"
	"pgedge/revoke"
)

// Where a kill has many sessions, those that are at work come first: with all in one queue a running statement went on
// until its turn came, behind sessions that could do nothing any more.
func TestAKillOfManyStopsWorkFirstAndTellsEveryClient(t *testing.T) {
	t.Parallel()
	const idle = 3 * cutChunk
	n := startNode(t, func(c *Config) { c.Loops = 1 })
	role, table := newRole(t, ""), newTable(t, "i int")
	server.Exec(t, "GRANT INSERT ON "+table+" TO "+role)
	var clients []*pgtest.Raw
	for range idle {
		clients = append(clients, n.raw(role))
	}
	working, open := n.raw(role), n.raw(role)
	clients = append(clients, working, open)
	open.Query("BEGIN; INSERT INTO " + table + " VALUES (1)")
	pgtest.WaitFor[*pgproto3.ReadyForQuery](open)
	working.Query("SELECT pg_sleep(60)")
	pgtest.Wait(t, "the statement to run", func() bool {
		return server.QueryInt(t, "SELECT count(*) FROM pg_stat_activity WHERE usename = '"+role+"' AND state = 'active'") == 1
	})
	sessions := n.index.match(revoke.Scope{Kind: revoke.ScopePrincipal, Name: role})
	r := n.killed(n.apply(revoke.VerbKill, revoke.ScopePrincipal, role), role, len(clients))

	states := make(map[string]int)
	for _, s := range r.Sessions {
		states[s.State]++
		if s.State == "idle_in_transaction" && s.Xact != "aborted" {
			t.Errorf("the open transaction is said to be %s", s.Xact)
		}
	}
	if states["idle"] != idle || states["active"] != 1 || states["idle_in_transaction"] != 1 {
		t.Errorf("the sessions were %v", states)
	}
	var first, last int64 // latest hand-over of a working backend, earliest of an idle one
	for _, s := range sessions {
		s.onLoop(func() {
			at := s.target.deadline.UnixNano()
			switch s.stateName() {
			case "idle":
				if last == 0 || at < last {
					last = at
				}
			default:
				first = max(first, at)
			}
		})
	}
	if first >= last {
		t.Error("an idle backend was handed over before one that was at work")
	}
	for i, c := range clients {
		if e := pgtest.WaitFor[*pgproto3.ErrorResponse](c); e.Code != ReasonKilled.SQLState() {
			t.Fatalf("client %d was told %s", i, e.Code)
		}
	}
	if got := server.QueryInt(t, "SELECT count(*) FROM "+table); got != 0 {
		t.Error("the open transaction has committed")
	}
}
