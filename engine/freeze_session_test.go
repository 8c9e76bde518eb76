package engine

import (
	"context"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgproto3"

	"pgedge/internal/pgtest"
	"pgedge/revoke"
)

// silence checks that nothing comes for a while.
func silence(t testing.TB, r *pgtest.Raw) {
	t.Helper()
	if m, err := r.TryReceive(200 * time.Millisecond); !pgtest.Silent(err) {
		t.Fatalf("while frozen came %T %+v, %v", m, m, err)
	}
}

// answered reads one answer to a query of one row.
func answered(t testing.TB, r *pgtest.Raw, want string) {
	t.Helper()
	row := pgtest.WaitFor[*pgproto3.DataRow](r)
	if got := string(row.Values[0]); got != want {
		t.Fatalf("got %q, want %q", got, want)
	}
	pgtest.WaitFor[*pgproto3.ReadyForQuery](r)
}

func TestAFrozenSessionGoesOnWhenTheLeaseComesBack(t *testing.T) {
	t.Parallel()
	n := startLeased(t, nil)
	role := newRole(t, "")
	idle, asking, working := n.raw(role), n.raw(role), n.raw(role)
	working.Query("SELECT pg_sleep(0.3)::text || 'done'")
	server.WaitInt(t, 1, asleepSQL, role)
	n.lose()
	n.waitFrozen(3)
	asking.Query("SELECT 'asked while frozen'")
	silence(t, asking)
	silence(t, working)
	if got := server.QueryInt(t, "SELECT count(*) FROM pg_stat_activity WHERE usename = $1 AND query LIKE '%while frozen%'", role); got != 0 {
		t.Error("a query came to the server while its session was frozen")
	}
	n.regain()
	answered(t, asking, "asked while frozen")
	answered(t, working, "done")
	idle.Query("SELECT 'still here'")
	answered(t, idle, "still here")
	n.waitFrozen(0)
	for _, r := range []*pgtest.Raw{idle, asking, working} {
		r.Close()
	}
	n.nothingLeft()
	n.noBugs()
}

// The lease ends by the clock; the cluster may come to know of it later than a session that wants to write.
func TestASessionThatFindsTheLeaseEndedFreezesByItself(t *testing.T) {
	t.Parallel()
	for name, tls := range map[string]string{"plain": "disable", "tls": "require"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			n := startLeased(t, func(c *Config) {
				c.Databases = map[string]Database{"*": {Upstream: controlUpstream(t, "pgedge_control", server.Addr(), "?sslmode="+tls)}}
			})
			role := newRole(t, "")
			r, bystander := n.raw(role), n.raw(role)
			pgtest.Wait(t, "both to be on their loops", func() bool { return n.counts().onLoops == 2 })
			n.held.Store(false)
			r.Query("SELECT 'late'")
			silence(t, r)
			n.waitFrozen(1)

			// It is renewed before anybody has given it up: no Freeze and no Thaw will come.
			n.held.Store(true)
			answered(t, r, "late")

			// The answer finds it ended, and Freeze and Thaw follow.
			r.Query("SELECT pg_sleep(1)::text || 'slow'")
			server.WaitInt(t, 1, asleepSQL, role)
			n.held.Store(false)
			n.waitFrozen(1)
			silence(t, r)
			n.lose()
			n.waitFrozen(2)
			n.regain()
			answered(t, r, "slow")
			bystander.Query("SELECT 'well'")
			answered(t, bystander, "well")
			n.noBugs()
		})
	}
}

// One read can hold many records of TLS: the lease is looked at before each is decrypted, and the others stay whole.
func TestALeaseThatEndsBetweenTwoRecordsLetsTheFirstPass(t *testing.T) {
	t.Parallel()
	const looks, answer, recordBytes = 3, 100000, 16 << 10
	var budget atomic.Int64
	budget.Store(1 << 40)
	n := startLeased(t, func(c *Config) {
		c.Databases = map[string]Database{"*": {Upstream: controlUpstream(t, "pgedge_control", server.Addr(), "?sslmode=require")}}
		c.Fresh = func() bool { return budget.Add(-1) >= 0 }
	})
	role := newRole(t, "")
	r := n.raw(role)
	s := n.only(role)
	r.Query(fmt.Sprintf("SELECT pg_sleep(0.5)::text || string_agg(i::text, ',') FROM generate_series(1, %d) i", answer))
	server.WaitInt(t, 1, asleepSQL, role)
	release := n.holdLoops()
	server.WaitInt(t, 1, "SELECT count(*) FROM pg_stat_activity WHERE usename = $1 AND (state = 'idle' OR wait_event = 'ClientWrite')", role)
	before := s.bytesOut // the loop stands still
	budget.Store(looks)
	release()
	n.waitFrozen(1)
	if passed := s.moved().out - before; passed == 0 || passed > looks*recordBytes {
		t.Errorf("%d bytes passed with %d looks at the lease", passed, looks)
	}
	silence := still(t, "the session", func() int64 { return s.moved().out })
	if silence-before > looks*recordBytes {
		t.Errorf("%d bytes passed with %d looks at the lease", silence-before, looks)
	}
	budget.Store(1 << 40)
	var want strings.Builder
	for i := 1; i <= answer; i++ {
		fmt.Fprintf(&want, "%d,", i)
	}
	answered(t, r, strings.TrimSuffix(want.String(), ","))
	n.noBugs()
}

// lockedBy opens a transaction of a new role that holds a lock on a new table.
func (n *leased) lockedBy() (r *pgtest.Raw, role, table string) {
	role, table = newRole(n.t, ""), newTable(n.t, "v int")
	server.Exec(n.t, "ALTER TABLE "+table+" OWNER TO "+role)
	r = n.raw(role)
	r.Query("BEGIN; LOCK TABLE " + table)
	pgtest.WaitFor[*pgproto3.ReadyForQuery](r)
	return r, role, table
}

// waiter asks for a lock without pgedge, and tells when it has got it.
func waiter(t testing.TB, table string) <-chan error {
	conn := server.Conn(t)
	got := start(conn, "TRUNCATE "+table)
	server.WaitInt(t, 1, "SELECT count(*) FROM pg_locks WHERE NOT granted AND relation = $1::regclass", table)
	return got
}

func TestAFrozenTransactionIsDroppedAndSetsFreeWhatItHadLocked(t *testing.T) {
	t.Parallel()
	n := startLeased(t, func(c *Config) { c.FreezeInTransaction = 300 * time.Millisecond })
	r, role, table := n.lockedBy()
	statement, other := n.raw(role), newTable(t, "v int")
	server.Exec(t, "ALTER TABLE "+other+" OWNER TO "+role)
	statement.Query("DO $$ BEGIN LOCK TABLE " + other + "; PERFORM pg_sleep(60); END $$")
	server.WaitInt(t, 1, asleepSQL, role)
	idle := n.raw(newRole(t, ""))
	idleRole := n.audited("login")[2].Role
	first, second := waiter(t, table), waiter(t, other)
	n.lose()
	for _, got := range []<-chan error{first, second} {
		if err := <-got; err != nil {
			t.Fatal(err)
		}
	}
	for _, c := range []*pgtest.Raw{r, statement} {
		told(t, <-follow(c), "57P03")
	}
	server.WaitBackends(t, role, 0)
	server.WaitBackends(t, idleRole, 1)
	n.endedFor(ReasonStale, 2)
	for _, ev := range n.audited("end") {
		if ev.SQLState != "57P03" || !strings.Contains(ev.Detail, "frozen inside a transaction") {
			t.Errorf("audited: %+v", ev)
		}
	}
	if got := n.closes(ReasonStale); got != 2 {
		t.Errorf("%d sessions count as closed for the lease, want 2", got)
	}
	n.regain()
	idle.Query("SELECT 'spared'")
	answered(t, idle, "spared")
	idle.Close()
	n.nothingLeft()
	n.noBugs()
}

// What had been asked before the freeze was carried out and holds no locks any more, though its answer waits unread:
// such a session is kept for as long as an idle one.
func TestAFrozenSessionWhoseStatementHasEndedIsNotTakenForATransaction(t *testing.T) {
	t.Parallel()
	for name, tls := range map[string]string{"plain": "disable", "tls": "require"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			n := startLeased(t, func(c *Config) {
				c.FreezeInTransaction = time.Second
				c.Databases = map[string]Database{"*": {Upstream: controlUpstream(t, "pgedge_control", server.Addr(), "?sslmode="+tls)}}
			})
			role := newRole(t, "")
			r := n.raw(role)
			s := n.only(role)
			r.Query("SELECT pg_sleep(0.2)::text || repeat('r', 10000)")
			server.WaitInt(t, 1, asleepSQL, role)
			n.lose()
			s.onLoop(func() {
				if !s.mayLock {
					t.Error("a running statement may hold locks")
				}
			})
			waitOnLoop(t, s, func() bool { return !s.mayLock })
			silence(t, r)
			n.regain()
			row := pgtest.WaitFor[*pgproto3.DataRow](r)
			if len(row.Values[0]) != 10000 {
				t.Errorf("%d bytes came", len(row.Values[0]))
			}
			pgtest.WaitFor[*pgproto3.ReadyForQuery](r)
			r.Query("SELECT 'and on'")
			answered(t, r, "and on")
			n.noBugs()
		})
	}
}

func TestAClientThatHangsUpInAFrozenTransactionSetsFreeWhatItHadLocked(t *testing.T) {
	t.Parallel()
	for name, leave := range map[string]func(*pgtest.Raw){"fin": (*pgtest.Raw).Close, "reset": (*pgtest.Raw).Reset} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			n := startLeased(t, nil)
			r, role, table := n.lockedBy()
			idle := n.raw(role)
			got := waiter(t, table)
			n.lose()
			r.Query("INSERT INTO " + table + " VALUES (1); COMMIT")
			leave(r)
			if err := <-got; err != nil {
				t.Fatal(err)
			}
			server.WaitBackends(t, role, 1)
			idle.Reset()
			server.WaitBackends(t, role, 0)
			n.nothingLeft()
			if rows := rowsOf(t, table); rows != 0 {
				t.Error("what the client sent while it was frozen was carried out")
			}
			n.noBugs()
		})
	}
}

// A FIN would not stop what Postgres is running; a client that is gone from a frozen session has its backend terminated.
func TestAClientThatHangsUpWhileFrozenStopsWhatItWasRunning(t *testing.T) {
	t.Parallel()
	n := startLeased(t, nil)
	r, role, table := n.lockedBy()
	r.Query("SET client_connection_check_interval = 0")
	pgtest.WaitFor[*pgproto3.ReadyForQuery](r)
	r.Query("SELECT pg_sleep(3600)")
	server.WaitInt(t, 1, asleepSQL, role)
	got := waiter(t, table)
	n.lose()
	r.Close()
	if err := <-got; err != nil {
		t.Fatal(err)
	}
	server.WaitBackends(t, role, 0)
	n.nothingLeft()
	n.noBugs()
}

// A backend that ends meanwhile has said why; its client hears it with the thaw.
func TestTheWordsOfABackendThatEndsWhileFrozenArriveWithTheThaw(t *testing.T) {
	t.Parallel()
	n := startLeased(t, nil)
	role := newRole(t, "")
	r := n.raw(role)
	n.lose()
	server.Exec(t, "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = '"+role+"'")
	server.WaitBackends(t, role, 0)
	silence(t, r)
	n.regain()
	told(t, <-follow(r), "57P01")
	n.noBugs()
}

func TestTheTimeOfAFreezeIsNobodysIdleness(t *testing.T) {
	t.Parallel()
	const timeout = 1500 * time.Millisecond
	n := startLeased(t, func(c *Config) { c.Timeouts.IdleSession = timeout })
	role := newRole(t, "")
	r := n.raw(role)
	s := n.only(role)
	n.lose()
	pgtest.Wait(t, "the idle timeout to be over twice", func() bool { return s.now()-s.lastActive.Load() > 2*int64(timeout) })
	silence(t, r)
	n.regain()
	n.waitFrozen(0)
	s.onLoop(func() {
		if idle := time.Duration(s.now() - s.lastActive.Load()); idle > timeout {
			t.Errorf("the session counts as idle for %v", idle)
		}
	})
	r.Query("SELECT 'not idle'")
	answered(t, r, "not idle")
	told(t, <-follow(r), "57P05")
}

func TestACutOfAFrozenSessionIsAnyCut(t *testing.T) {
	t.Parallel()
	n := startLeased(t, nil)
	for _, self := range []bool{false, true} {
		role, table := newRole(t, ""), newTable(t, "v text")
		full := n.raw(role)
		s := n.only(role)
		full.Query(bigCopy)
		waitOnLoop(t, s, func() bool { return s.back.paused != 0 && s.front.buffered() > lowMarkBytes })
		idle, open := n.raw(role), n.raw(role)
		open.Query("BEGIN; INSERT INTO " + table + " VALUES ('open')")
		pgtest.WaitFor[*pgproto3.ReadyForQuery](open)
		if self {
			n.held.Store(false)
			idle.Query("INSERT INTO " + table + " VALUES ('late')")
			pgtest.Wait(t, "a session to find out", func() bool { return n.frozenSessions() > 0 })
		} else {
			n.lose()
			idle.Query("INSERT INTO " + table + " VALUES ('late')")
		}
		n.killed(n.revoke(role), role, 3)
		n.waitFrozen(0)
		told(t, <-follow(idle), "28000")
		told(t, <-follow(open), "28000")
		if h := <-follow(full); h.bad != nil || h.whole {
			t.Errorf("the client of the copy heard %+v", h)
		}
		n.regain()
		if rows := settledRows(t, table); rows != 0 {
			t.Errorf("%d rows", rows)
		}
	}
	n.nothingLeft()
	n.noBugs()
}

// Facts that were missed are applied before the thaw: whoever they cut is not woken.
func TestACutThatComesWithTheThawComesFirst(t *testing.T) {
	t.Parallel()
	n := startLeased(t, nil)
	role, table := newRole(t, ""), newTable(t, "v int")
	server.Exec(t, "GRANT ALL ON "+table+" TO "+role)
	for range 20 {
		r := n.raw(role)
		n.lose()
		r.Query("INSERT INTO " + table + " VALUES (1)")
		id := n.apply(revoke.VerbKill, revoke.ScopePrincipal, role)
		n.regain()
		n.killed(id, role, 1)
		told(t, <-follow(r), "57P01")
	}
	if rows := settledRows(t, table); rows != 0 {
		t.Errorf("%d rows", rows)
	}
	n.noBugs()
}

func TestDropEndsFrozenSessionsWithWhatTheyRun(t *testing.T) {
	t.Parallel()
	n := startLeased(t, nil)
	role, table := newRole(t, ""), newTable(t, "v int")
	server.Exec(t, "GRANT ALL ON "+table+" TO "+role)
	newTrigger(t, table, "AFTER INSERT", 2*time.Second, true)
	running, idle, queued := n.raw(role), n.raw(role), n.raw(role)
	running.Query("INSERT INTO " + table + " VALUES (1)")
	server.WaitInt(t, 1, asleepSQL, role)
	n.lose()
	queued.Query("INSERT INTO " + table + " VALUES (2)")
	n.Drop()
	for _, r := range []*pgtest.Raw{running, idle, queued} {
		told(t, <-follow(r), "57P03")
	}
	server.WaitBackends(t, role, 0)
	n.endedFor(ReasonStale, 3)
	if _, err := n.connect("alice"); err == nil {
		t.Error("a login was let in after the drop")
	} else {
		wantCode(t, err, "57P03")
	}
	if rows := settledRows(t, table); rows != 0 {
		t.Errorf("%d rows", rows)
	}
	if got := n.closes(ReasonStale); got != 3 {
		t.Errorf("%d sessions count as closed for the lease, want 3", got)
	}
	n.nothingLeft()
	n.regain()
	n.login("alice")
	n.noBugs()
}

// A revocation that meets a session on its way out for the lease is answered by the same kill.
func TestARevocationOfASessionThatIsBeingDroppedIsProven(t *testing.T) {
	t.Parallel()
	n := startLeased(t, nil)
	role := newRole(t, "")
	for range 10 {
		r := n.raw(role)
		r.Query("SELECT pg_sleep(60)")
		server.WaitInt(t, 1, asleepSQL, role)
		n.lose()
		n.Drop()
		id := n.apply(revoke.VerbKill, revoke.ScopePrincipal, role)
		if rec := n.receipt(id); rec.Unverified != 0 || server.Backends(t, role) != 0 {
			t.Errorf("receipt: %+v", rec)
		}
		// Whichever of the two came to the loop first has the word.
		if h := <-follow(r); len(h.errs) != 1 || h.errs[0].Code != "57P03" && h.errs[0].Code != "57P01" {
			t.Errorf("the client heard %+v", h)
		}
		n.regain()
	}
	n.noBugs()
}

func TestAStopOfAFrozenNodeCarriesNothingOut(t *testing.T) {
	t.Parallel()
	role, table := newRole(t, ""), newTable(t, "v int")
	server.Exec(t, "GRANT ALL ON "+table+" TO "+role)
	n := startLeased(t, nil)
	idle, open := n.raw(role), n.raw(role)
	open.Query("BEGIN")
	pgtest.WaitFor[*pgproto3.ReadyForQuery](open)
	n.lose()
	open.Query("INSERT INTO " + table + " VALUES (1); COMMIT")
	idle.Query("INSERT INTO " + table + " VALUES (2)")
	ctx, cancel := context.WithTimeout(context.Background(), 300*time.Millisecond)
	defer cancel()
	n.Drain(ctx)
	for name, r := range map[string]*pgtest.Raw{"idle": idle, "open": open} {
		if h := <-follow(r); len(h.errs) != 1 || h.errs[0].Code != "57P01" {
			t.Errorf("%s was told %+v", name, h)
		}
	}
	server.WaitBackends(t, role, 0)
	if rows := settledRows(t, table); rows != 0 {
		t.Errorf("%d rows", rows)
	}
	if err := n.Stop(bounded(t)); err != nil {
		t.Error(err)
	}
	if got := n.frozenSessions() + n.metrics.pausedSides.Load() + n.admitted.Load() + int64(n.index.len()); got != 0 {
		t.Errorf("%d traces are left", got)
	}
}
