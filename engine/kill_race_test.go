package engine

import (
	"math/rand/v2"
	"strconv"
	"testing"
	"time"

	"pgedge/internal/pgtest"
	"pgedge/revoke"
)

// Two facts that name the same session while it dies: each has a complete receipt.
func TestKillByTwoFactsAtOnce(t *testing.T) {
	t.Parallel()
	for _, second := range []struct {
		verb revoke.Verb
		kind revoke.ScopeKind
	}{{revoke.VerbKill, revoke.ScopeRole}, {revoke.VerbRevoke, revoke.ScopePrincipal}, {revoke.VerbKill, revoke.ScopeAll}} {
		n := startNode(t, nil)
		role := newRole(t, "")
		busy, idle := n.login(role), n.login(role)
		result := start(busy, "SELECT pg_sleep(60)")
		server.WaitInt(t, 1, asleepSQL, role)
		name := role
		if second.kind == revoke.ScopeAll {
			name = ""
		}
		release := n.holdLoops()
		a := n.revoke(role)
		b := n.apply(second.verb, second.kind, name)
		release()
		ra, rb := n.killed(a, role, 2), n.killed(b, role, 2)
		for i := range ra.Sessions {
			// The first one wins, and both tell the same story.
			if ra.Sessions[i].SQLState != "28000" || rb.Sessions[i].SQLState != "28000" {
				t.Errorf("sessions: %+v, %+v", ra.Sessions[i], rb.Sessions[i])
			}
		}
		wantCode(t, <-result, "28000")
		_, err := idle.Exec(bounded(t), "SELECT 1")
		wantCode(t, err, "28000")
	}
}

// A client that says good-bye, or hangs up, just when it is revoked: whether it is matched or not, nothing is left
// and nothing is unverified.
func TestKillOfASessionThatEndsByItself(t *testing.T) {
	t.Parallel()
	n := startNode(t, nil)
	role := newRole(t, "")
	matched := 0
	for round := range 24 {
		r := n.raw(role)
		switch round % 3 {
		case 0:
			r.SendBytes(terminateMessage)
		case 1:
			r.Close()
		case 2:
			r.Reset()
		}
		for range rand.IntN(4) { // anywhere in the loop's work
			n.turn(role)
		}
		rec := n.receipt(n.apply(revoke.VerbKill, revoke.ScopePrincipal, role))
		n.nothingAfterCut(rec)
		if rec.Unverified != 0 || rec.Matched > 1 || len(rec.Sessions) != rec.Matched {
			t.Fatalf("round %d: %+v", round, rec)
		}
		for _, s := range rec.Sessions {
			if s.Backend != "gone" || s.Xact != "none" && s.Xact != "unknown" && s.Xact != "aborted" {
				t.Errorf("round %d: %+v", round, s)
			}
		}
		matched += rec.Matched
		server.WaitBackends(t, role, 0)
		pgtest.Wait(t, "the index to be empty", func() bool { return n.index.len() == 0 })
	}
	t.Logf("%d matched", matched)
}

// turn passes one turn of the loop of a session that may be gone.
func (n *node) turn(principal string) {
	for _, s := range n.index.match(revoke.Scope{Kind: revoke.ScopePrincipal, Name: principal}) {
		s.mu.Lock()
		live := s.state == stLive
		s.mu.Unlock()
		if live {
			s.onLoop(func() {})
		}
	}
}

// A client that hangs up leaves its statement running at Postgres. As long as it runs, a revocation finds it.
func TestKillStopsTheStatementOfAClientThatHasLeft(t *testing.T) {
	t.Parallel()
	n := startNode(t, nil)
	role, table := newRole(t, ""), newTable(t, "v int")
	newTrigger(t, table, "BEFORE INSERT", 2*time.Second, true)
	r := n.raw(role)
	r.Query("INSERT INTO " + table + " VALUES (1)")
	s := n.only(role)
	server.WaitInt(t, 1, asleepSQL, role)
	late := dbClock(t, 2500*time.Millisecond)
	r.Close()
	pgtest.Wait(t, "the client's end to be noticed", func() (left bool) {
		s.onLoop(func() { left = s.reason != reasonNone })
		return left
	})
	rec := n.receipt(n.revoke(role))
	if left := server.Backends(t, role); left != 0 || rec.Unverified != 0 {
		t.Errorf("%d backends are left: %+v", left, rec)
	}
	awaitClock(t, late)
	if rows := rowsOf(t, table); rows != 0 {
		t.Errorf("%d rows", rows)
	}
}

// The verdict on a short statement that is revoked at any moment of its life is never wrong about the row.
func TestKillVerdictIsTrue(t *testing.T) {
	t.Parallel()
	n := startNode(t, nil)
	role, table := newRole(t, ""), newTable(t, "v int")
	seen := make(map[string]int)
	for round := range 30 {
		r := n.raw(role)
		s := n.only(role)
		story := follow(r)
		r.Query("INSERT INTO " + table + " VALUES (" + strconv.Itoa(round) + ")")
		for range rand.IntN(6) {
			s.onLoop(func() {})
		}
		rec := n.killed(n.apply(revoke.VerbKill, revoke.ScopePrincipal, role), role, 1)
		h := <-story
		told(t, h, "57P01")
		row := server.QueryInt(t, "SELECT count(*) FROM "+table+" WHERE v = $1", round) == 1
		got := rec.Sessions[0]
		seen[got.Xact]++
		switch {
		case row && got.Xact == "aborted" && !got.MorePossible,
			!row && got.Xact == "committed",
			row && got.Xact == "none" && h.completed == 0,
			!row && h.completed > 0:
			t.Errorf("round %d: the row is there: %v, acknowledged: %d, receipt: %+v", round, row, h.completed, got)
		}
	}
	t.Logf("verdicts: %v", seen)
}
