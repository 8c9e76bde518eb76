package engine

import (
	"fmt"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgproto3"

	"pgedge/internal/pgtest"
	"pgedge/revoke"
)

func TestKillStopsAStatementInItsTrigger(t *testing.T) {
	t.Parallel()
	const sleep = 5 * time.Second // a busy machine takes its time between the sleep and the kill
	for _, c := range []struct {
		name, when, sql string
		more            bool
	}{
		{"before update", "BEFORE UPDATE", "UPDATE %s SET v = 2", false},
		{"after update", "AFTER UPDATE", "UPDATE %s SET v = 2", false},
		// No transaction id yet: the backend's last word is the evidence.
		{"before insert", "BEFORE INSERT", "INSERT INTO %s VALUES (2)", true},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			n := startNode(t, nil)
			role, table := newRole(t, ""), newTable(t, "v int")
			server.Exec(t, "INSERT INTO "+table+" VALUES (1)")
			newTrigger(t, table, c.when, sleep, false)
			victim := n.login(role)
			result := start(victim, fmt.Sprintf(c.sql, table))
			server.WaitInt(t, 1, asleepSQL, role)
			late := dbClock(t, sleep+2*time.Second)
			r := n.killed(n.revoke(role), role, 1)
			if s := r.Sessions[0]; s.State != "active" || s.Xact != "aborted" || s.MorePossible != c.more {
				t.Errorf("session: %+v", s)
			}
			wantCode(t, <-result, "28000")
			awaitClock(t, late)
			if got := server.QueryString(t, "SELECT string_agg(v::text, ',') FROM "+table); got != "1" {
				t.Errorf("the row was changed all the same: %s", got)
			}
		})
	}
}

func TestKillReleasesTheLocksOfATransaction(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name, then string
		state      string
	}{
		{"idle in transaction", "SAVEPOINT s", "idle_in_transaction"},
		{"failed transaction", "SELECT 1/0", "idle_in_transaction"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			n := startNode(t, nil)
			role, other, table := newRole(t, ""), newRole(t, ""), newTable(t, "v int")
			server.Exec(t, "INSERT INTO "+table+" VALUES (1)")
			victim, bystander := n.login(role), n.login(other)
			mustExec(t, victim, "BEGIN")
			mustExec(t, victim, "UPDATE "+table+" SET v = 2")
			// In a failed transaction the row's lock is gone but that of the advisory kind, which is the session's.
			key := names.Add(1)
			mustExec(t, victim, "SELECT pg_advisory_lock($1)", key)
			if _, err := victim.Exec(bounded(t), c.then); err != nil && c.then == "SAVEPOINT s" {
				t.Fatal(err)
			}
			lock := start(bystander, "SELECT pg_advisory_lock($1)", key)
			server.WaitInt(t, 1, "SELECT count(*) FROM pg_stat_activity WHERE usename = $1 AND wait_event_type = 'Lock'", other)
			r := n.killed(n.revoke(role), role, 1)
			if s := r.Sessions[0]; s.State != c.state || s.Xact != "aborted" || s.MorePossible {
				t.Errorf("session: %+v", s)
			}
			if err := <-lock; err != nil {
				t.Fatalf("the other session did not get the lock: %v", err)
			}
			mustExec(t, bystander, "UPDATE "+table+" SET v = v + 10")
			if got := server.QueryInt(t, "SELECT v FROM "+table); got != 11 {
				t.Errorf("v is %d", got)
			}
		})
	}
}

func TestKillGivesARowLockToTheNext(t *testing.T) {
	t.Parallel()
	n := startNode(t, nil)
	role, other, table := newRole(t, ""), newRole(t, ""), newTable(t, "v int")
	server.Exec(t, "INSERT INTO "+table+" VALUES (1)")
	victim, bystander := n.login(role), n.login(other)
	mustExec(t, victim, "BEGIN")
	mustExec(t, victim, "UPDATE "+table+" SET v = 2")
	update := start(bystander, "UPDATE "+table+" SET v = v + 10")
	server.WaitInt(t, 1, "SELECT count(*) FROM pg_stat_activity WHERE usename = $1 AND wait_event_type = 'Lock'", other)
	n.killed(n.revoke(role), role, 1)
	if err := <-update; err != nil {
		t.Fatalf("the other session did not get the row: %v", err)
	}
	if got := server.QueryInt(t, "SELECT v FROM "+table); got != 11 {
		t.Errorf("v is %d", got)
	}
}

// What the client has sent of a message that is not whole never reaches a parser, and its own stream stands at a
// boundary: it is told.
func TestKillOfAClientInTheMiddleOfAQuery(t *testing.T) {
	t.Parallel()
	n := startNode(t, nil)
	role, table := newRole(t, ""), newTable(t, "v int")
	r := n.raw(role)
	whole := pgtest.Encode(t, &pgproto3.Query{String: "INSERT INTO " + table + " VALUES (1)"})
	for _, part := range []int{3, 5, len(whole) - 1} { // in the header, behind it, before the last byte
		s := n.only(role)
		r.SendBytes(whole[:part])
		waitOnLoop(t, s, func() bool { return s.bytesIn == int64(part) })
		rec := n.killed(n.apply(revoke.VerbKill, revoke.ScopePrincipal, role), role, 1)
		// With its header a request is open; that nothing came of it, the backend's last word says.
		state, xact := "idle", "none"
		if part >= 5 {
			state, xact = "active", "aborted"
		}
		if got := rec.Sessions[0]; got.State != state || got.Xact != xact {
			t.Errorf("after %d bytes: %+v", part, got)
		}
		_ = r.TrySendBytes(whole[part:]) // too late
		h := <-follow(r)
		told(t, h, "57P01")
		if rows := settledRows(t, table); rows != 0 {
			t.Errorf("after %d bytes: %d rows", part, rows)
		}
		r = n.raw(role)
	}
}
