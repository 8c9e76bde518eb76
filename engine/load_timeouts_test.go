package engine

import (
	"context"
	"errors"
	"fmt"
	"net"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgproto3"
	"go.uber.org/goleak"

	"pgedge/internal/pgtest"
)

// loadTold waits for the end of a session and returns the SQLSTATE that it was told.
func loadTold(t testing.TB, raw *pgtest.Raw) string {
	t.Helper()
	errs, _ := raw.Rest()
	raw.Close()
	if len(errs) != 1 {
		t.Fatalf("the session was told %v, want one error", errs)
	}
	return errs[0].Code
}

// loadBlocked starts a query of raw that waits until the returned function is called.
func loadBlocked(t testing.TB, raw *pgtest.Raw, lock int) (release func()) {
	t.Helper()
	holder := server.Conn(t)
	if _, err := holder.Exec(bounded(t), fmt.Sprintf("SELECT pg_advisory_lock(%d)", lock)); err != nil {
		t.Fatal(err)
	}
	raw.Query(fmt.Sprintf("SELECT pg_advisory_lock_shared(%d)", lock))
	server.WaitInt(t, 1, "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted AND objid = $1", int64(lock))
	return func() {
		t.Helper()
		if _, err := holder.Exec(bounded(t), fmt.Sprintf("SELECT pg_advisory_unlock(%d)", lock)); err != nil {
			t.Fatal(err)
		}
		holder.Close(bounded(t))
	}
}

func loadBegin(raw *pgtest.Raw) {
	raw.Query("BEGIN")
	pgtest.WaitFor[*pgproto3.ReadyForQuery](raw)
}

// A session that came later and is idle shows that the time is over: the one that waits for its answer lives.
func TestIdleSessionTimeoutEndsIdleSessionsAndNeverARunningQuery(t *testing.T) {
	n := startNode(t, func(c *Config) { c.Timeouts.IdleSession = 400 * time.Millisecond })
	baseline := n.baseline()
	busy := n.raw("trustuser")
	release := loadBlocked(t, busy, 81)
	inTransaction := n.raw("trustuser")
	loadBegin(inTransaction)
	for range 2 {
		if code := loadTold(t, n.raw("trustuser")); code != "57P05" {
			t.Errorf("an idle session was told %s, want 57P05", code)
		}
	}
	release()
	pgtest.WaitFor[*pgproto3.ReadyForQuery](busy)
	inTransaction.Query("COMMIT")
	pgtest.WaitFor[*pgproto3.ReadyForQuery](inTransaction)
	for _, raw := range []*pgtest.Raw{busy, inTransaction} {
		if code := loadTold(t, raw); code != "57P05" {
			t.Errorf("a session that has become idle was told %s, want 57P05", code)
		}
	}
	n.endedFor(ReasonIdle, 4)
	n.settledAt(baseline)
	server.WaitBackends(t, "trustuser", 0)
	n.noBugs()
}

func TestIdleInTransactionTimeoutEndsTransactionsThatWaitAndNothingElse(t *testing.T) {
	n := startNode(t, func(c *Config) { c.Timeouts.IdleInTransaction = 400 * time.Millisecond })
	baseline := n.baseline()
	idle, busy := n.raw("trustuser"), n.raw("trustuser")
	loadBegin(busy)
	release := loadBlocked(t, busy, 82)
	for range 2 {
		failed := n.raw("trustuser")
		loadBegin(failed)
		failed.Query("SELECT 1/0") // a failed transaction is one too
		pgtest.WaitFor[*pgproto3.ReadyForQuery](failed)
		if code := loadTold(t, failed); code != "25P03" {
			t.Errorf("a session idle in its transaction was told %s, want 25P03", code)
		}
	}
	release()
	pgtest.WaitFor[*pgproto3.ReadyForQuery](busy)
	if code := loadTold(t, busy); code != "25P03" {
		t.Errorf("the session that was busy was told %s, want 25P03", code)
	}
	idle.Query("SELECT 1")
	pgtest.WaitFor[*pgproto3.ReadyForQuery](idle)
	idle.Close()
	n.endedFor(ReasonIdleInTransaction, 3)
	n.settledAt(baseline)
	n.noBugs()
}

func TestSessionMaxEndsASessionAtItsNextSyncPoint(t *testing.T) {
	n := startNode(t, func(c *Config) { c.Timeouts.SessionMax = 500 * time.Millisecond })
	baseline := n.baseline()
	busy, inTransaction := n.raw("trustuser"), n.raw("trustuser")
	release := loadBlocked(t, busy, 83)
	loadBegin(inTransaction)
	if code := loadTold(t, n.raw("trustuser")); code != "57P05" {
		t.Errorf("an old session was told %s, want 57P05", code)
	}
	inTransaction.Query("SELECT 1")
	pgtest.WaitFor[*pgproto3.ReadyForQuery](inTransaction)
	inTransaction.Query("COMMIT")
	if tag := pgtest.WaitFor[*pgproto3.CommandComplete](inTransaction); string(tag.CommandTag) != "COMMIT" {
		t.Errorf("the commit was answered %q", tag.CommandTag)
	}
	release()
	pgtest.WaitFor[*pgproto3.CommandComplete](busy)
	for _, raw := range []*pgtest.Raw{busy, inTransaction} {
		if code := loadTold(t, raw); code != "57P05" {
			t.Errorf("an old session was told %s at its sync point, want 57P05", code)
		}
	}
	n.endedFor(ReasonSessionMax, 3)
	n.settledAt(baseline)
	n.noBugs()
}

func TestReloadArmsTimeoutsOfSessionsThatExist(t *testing.T) {
	n := startNode(t, func(c *Config) { c.Timeouts.IdleSession = time.Hour })
	idle, inTransaction := n.raw("trustuser"), n.raw("trustuser")
	loadBegin(inTransaction)
	n.Reload(Limits{}, Timeouts{IdleSession: 200 * time.Millisecond}, "")
	if code := loadTold(t, idle); code != "57P05" {
		t.Errorf("the idle session was told %s, want 57P05", code)
	}
	n.Reload(Limits{}, Timeouts{IdleInTransaction: 200 * time.Millisecond}, "")
	if code := loadTold(t, inTransaction); code != "25P03" {
		t.Errorf("the session in a transaction was told %s, want 25P03", code)
	}
	old := n.raw("trustuser")
	n.Reload(Limits{}, Timeouts{SessionMax: time.Millisecond}, "")
	if code := loadTold(t, old); code != "57P05" {
		t.Errorf("the old session was told %s, want 57P05", code)
	}
	n.Reload(Limits{}, Timeouts{}, "")
	spared := n.raw("trustuser")
	spared.Query("SELECT 1")
	pgtest.WaitFor[*pgproto3.ReadyForQuery](spared)
	n.noBugs()
}

// Regression: without timeouts nobody notes when a session was last active. A reload that brings an idle timeout must
// not take a session that was busy until now for one that has been idle since its login.
func TestReloadDoesNotTakeABusySessionForAnIdleOne(t *testing.T) {
	n := startNode(t, nil)
	raw := n.raw("trustuser")
	s := n.only("trustuser")
	s.lastActive.Store(s.now() - int64(time.Hour)) // its login was an hour ago
	raw.Query("SELECT 1")
	pgtest.WaitFor[*pgproto3.ReadyForQuery](raw)
	n.Reload(Limits{}, Timeouts{IdleSession: 30 * time.Minute}, "")
	n.onLoop(s.loop, func() { s.onTimer(s.now()) })
	raw.Query("SELECT 1")
	pgtest.WaitFor[*pgproto3.ReadyForQuery](raw)
}

func TestDrainEndsIdleSessionsAtOnceAndOthersAtTheirSyncPointOrTheDeadline(t *testing.T) {
	n := startNode(t, nil)
	baseline := n.baseline()
	idle, busy, inTransaction, forever := n.raw("trustuser"), n.raw("trustuser"), n.raw("trustuser"), n.raw("trustuser")
	release := loadBlocked(t, busy, 84)
	loadBegin(inTransaction)
	releaseLast := loadBlocked(t, forever, 85)
	defer releaseLast()
	ctx, deadline := context.WithCancel(context.Background())
	drained := make(chan struct{})
	go func() { n.Drain(ctx); close(drained) }()

	if code := loadTold(t, idle); code != "57P01" {
		t.Errorf("the idle session was told %s, want 57P01", code)
	}
	late := pgtest.DialRaw(t, n.addr)
	late.Startup("trustuser", pgtest.Database, nil)
	if code := loadTold(t, late); code != "57P03" {
		t.Errorf("a login while draining was told %s, want 57P03", code)
	}
	release()
	pgtest.WaitFor[*pgproto3.CommandComplete](busy)
	if code := loadTold(t, busy); code != "57P01" {
		t.Errorf("the busy session was told %s at its sync point, want 57P01", code)
	}
	inTransaction.Query("SELECT 1")
	pgtest.WaitFor[*pgproto3.ReadyForQuery](inTransaction)
	select {
	case <-drained:
		t.Fatal("Drain returned while two sessions were at work")
	default:
	}
	deadline()
	<-drained
	for _, raw := range []*pgtest.Raw{inTransaction, forever} {
		if code := loadTold(t, raw); code != "57P01" {
			t.Errorf("a session was told %s at the deadline, want 57P01", code)
		}
	}
	n.endedFor(ReasonShutdown, 4)
	n.endedFor(ReasonShutdownLogin, 1)
	baseline.descriptors++ // the holder of the last lock
	n.settledAt(baseline)
	n.noBugs()
}

func TestDrainReturnsWhenTheLastSessionHasCommitted(t *testing.T) {
	n := startNode(t, nil)
	raw := n.raw("trustuser")
	loadBegin(raw)
	drained := make(chan struct{})
	go func() { n.Drain(context.Background()); close(drained) }()
	pgtest.Wait(t, "the drain to begin", func() bool { return n.draining.Load() })
	raw.Query("COMMIT")
	if code := loadTold(t, raw); code != "57P01" {
		t.Errorf("the session was told %s, want 57P01", code)
	}
	<-drained
	n.noBugs()
}

// loadStates brings sessions into every state that a stop can find them in, and returns how many clients there are
// to be closed.
func loadStates(t *testing.T, n *node) {
	t.Helper()
	n.dial() // says nothing
	half := n.dial()
	half.Write(loadStartup("alice", pgtest.Database)[:11])
	owes := pgtest.DialRaw(t, n.addr) // owes its password
	owes.Startup("alice", pgtest.Database, nil)
	owes.Receive()
	hung := n.dial() // its backend says nothing
	hung.Write(loadStartup("ann", "hung"))
	n.raw("trustuser") // idle
	inTransaction := n.raw("trustuser")
	loadBegin(inTransaction)
	busy := n.raw("trustuser")
	loadBlocked(t, busy, 86)
	sleeps := n.raw("trustuser") // in a copy that it does not read
	sleeps.Query(loadCopyOut(loadRows))
	n.stalled()
	refused := pgtest.DialRaw(t, n.addr) // was refused, and does not close
	refused.Startup("trustuser", "nowhere", nil)
	pgtest.WaitFor[*pgproto3.ErrorResponse](refused)
	leaving := n.raw("md5user") // was killed, and does not close
	n.verified(n.revoke("md5user"), 1)
	pgtest.WaitFor[*pgproto3.ErrorResponse](leaving)
	pgtest.Wait(t, "all logins to be under way", func() bool { return n.index.len() >= 6 && len(n.loginSlots) >= 1 })
}

func TestStopEndsSessionsInEveryStateAndLeavesNothingBehind(t *testing.T) {
	hung, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer hung.Close()
	u, err := ParseUpstream("postgres://" + hung.Addr().String() + "?sslmode=disable")
	if err != nil {
		t.Fatal(err)
	}
	for _, drainFirst := range []bool{false, true} {
		t.Run(fmt.Sprintf("drain=%t", drainFirst), func(t *testing.T) {
			existing := goleak.IgnoreCurrent()
			descriptors := loadDescriptors()
			t.Run("node", func(t *testing.T) {
				n := startNode(t, func(c *Config) {
					c.Limits.LoginTimeout = time.Hour
					c.Databases["hung"] = Database{Upstream: u}
					only := c.Databases["*"]
					delete(c.Databases, "*")
					c.Databases[pgtest.Database] = only
				})
				loadStates(t, n)
				if drainFirst {
					ctx, cancel := context.WithCancel(context.Background())
					cancel()
					n.Drain(ctx)
				}
				ctx, cancel := context.WithTimeout(context.Background(), patience)
				defer cancel()
				if err := n.Stop(ctx); err != nil || ctx.Err() != nil {
					t.Errorf("cannot stop: %v, %v", err, ctx.Err())
				}
				if got := n.index.len() + int(n.admitted.Load()) + len(n.loginSlots) + len(n.cancels.sessions) + len(n.orders.open); got != 0 {
					t.Errorf("%d entries are left: %d in the index, %d admitted", got, n.index.len(), n.admitted.Load())
				}
				if _, err := net.DialTimeout("tcp", n.addr, patience); err == nil {
					t.Error("the stopped engine still listens")
				}
				n.noBugs()
			})
			server.WaitBackends(t, "trustuser", 0)
			pgtest.Wait(t, "all descriptors to be closed", func() bool { return loadDescriptors() <= descriptors })
			if err := goleak.Find(existing, loadPoolWorkers); err != nil {
				t.Errorf("goroutines are left: %v", err)
			}
		})
	}
}

// A stopped process takes no signal but is still there: its kill is under way for as long as the test likes.
func TestStopPublishesReceiptsOfKillsThatItCutsShort(t *testing.T) {
	n := startNode(t, func(c *Config) { c.VerifyTimeout = time.Hour })
	const sessions = 40 // more than a loop ends in one go
	var conns []*pgx.Conn
	for range sessions {
		c := n.login("trustuser")
		var pid int
		if err := c.QueryRow(bounded(t), "SELECT pg_backend_pid()").Scan(&pid); err != nil {
			t.Fatal(err)
		}
		if err := syscall.Kill(pid, syscall.SIGSTOP); err != nil {
			t.Fatal(err)
		}
		defer syscall.Kill(pid, syscall.SIGCONT)
		conns = append(conns, c)
	}
	id := n.revoke("trustuser")
	for _, c := range conns {
		_, err := c.Exec(bounded(t), "SELECT 1")
		var pg *pgconn.PgError
		if !errors.As(err, &pg) || pg.Code != "28000" {
			t.Errorf("a client was told %v", err)
		}
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	if err := n.Stop(ctx); err != nil {
		t.Error(err)
	}
	r := n.receipt(id)
	if r.Matched != sessions || r.Unverified != sessions || r.Sessions[0].Why == "" {
		t.Errorf("the receipt has %d sessions, %d unverified, want %d: %+v", r.Matched, r.Unverified, sessions, r.Sessions[0])
	}
	n.noBugs()
}
