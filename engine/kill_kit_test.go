package engine

import (
	"context"
	"crypto/hmac"
	"crypto/pbkdf2"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgproto3"

	"pgedge/internal/pgtest"
	"pgedge/revoke"
)

// names makes roles and tables of their own for each test, so that tests can run side by side and again.
var names atomic.Int64

// newRole makes a login role that nobody else uses, so that its backends can be counted.
func newRole(t testing.TB, attributes string) string {
	t.Helper()
	name := fmt.Sprintf("k%d", names.Add(1))
	server.Exec(t, fmt.Sprintf("CREATE ROLE %s LOGIN %s PASSWORD '%s'", name, attributes, quickVerifier(t, pgtest.Password(name))))
	return name
}

// quickVerifier is a SCRAM verifier of one round instead of 4,096: these tests log in a thousand times.
func quickVerifier(t testing.TB, password string) string {
	t.Helper()
	salt := []byte("sixteen bytes...")
	salted, err := pbkdf2.Key(sha256.New, password, salt, 1, sha256.Size)
	if err != nil {
		t.Fatal(err)
	}
	sign := func(key []byte, text string) []byte {
		h := hmac.New(sha256.New, key)
		h.Write([]byte(text))
		return h.Sum(nil)
	}
	stored := sha256.Sum256(sign(salted, "Client Key"))
	b64 := base64.StdEncoding.EncodeToString
	return "SCRAM-SHA-256$1:" + b64(salt) + "$" + b64(stored[:]) + ":" + b64(sign(salted, "Server Key"))
}

func newTable(t testing.TB, columns string) string {
	t.Helper()
	name := fmt.Sprintf("k%d", names.Add(1))
	server.Exec(t, fmt.Sprintf("CREATE TABLE %s (%s)", name, columns))
	return name
}

// newTrigger makes a row trigger that takes a transaction id, as soon as it is asked to, and then sleeps.
func newTrigger(t testing.TB, table, when string, sleep time.Duration, takesXID bool) {
	t.Helper()
	xid := ""
	if takesXID {
		xid = "PERFORM pg_current_xact_id();"
	}
	server.Exec(t,
		fmt.Sprintf("CREATE FUNCTION slow_%s() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN %s PERFORM pg_sleep(%f); RETURN NEW; END $$", table, xid, sleep.Seconds()),
		fmt.Sprintf("CREATE TRIGGER slow %s ON %s FOR EACH ROW EXECUTE FUNCTION slow_%s()", when, table, table))
}

const (
	// asleepSQL counts the backends of a role that run pg_sleep, in a trigger or not.
	asleepSQL = "SELECT count(*) FROM pg_stat_activity WHERE usename = $1 AND state = 'active' AND wait_event = 'PgSleep'"
	// writingSQL counts the backends of a role whose running statement has a transaction id.
	writingSQL = "SELECT count(*) FROM pg_stat_activity WHERE usename = $1 AND state = 'active' AND backend_xid IS NOT NULL"
)

func rowsOf(t testing.TB, table string) int64 {
	t.Helper()
	return server.QueryInt(t, "SELECT count(*) FROM "+table)
}

// dbClock is an instant of the database's clock.
func dbClock(t testing.TB, ahead time.Duration) string {
	t.Helper()
	return server.QueryString(t, "SELECT (clock_timestamp() + $1 * interval '1 microsecond')::text", ahead.Microseconds())
}

// awaitClock returns when the database's clock has passed an instant.
func awaitClock(t testing.TB, instant string) {
	t.Helper()
	if server.QueryString(t, "SELECT (clock_timestamp() >= $1::timestamptz)::text FROM pg_sleep_until($1::timestamptz)", instant) != "true" {
		t.Fatal("the database woke up too early")
	}
}

// settledRows checks that the number of rows is the same after a while of the database's clock as it is now, and
// returns it.
func settledRows(t testing.TB, table string) int64 {
	t.Helper()
	now, later := rowsOf(t, table), dbClock(t, 400*time.Millisecond)
	awaitClock(t, later)
	if after := rowsOf(t, table); after != now {
		t.Errorf("%d rows when the receipt said verified, %d later", now, after)
	}
	return now
}

// carry stores any fact and has it carried out; apply does so for those that need no more than a scope.
func (n *node) carry(f revoke.Fact) string {
	f.Seq = n.seq.Add(1)
	f.ID = fmt.Sprintf("id-%d", f.Seq)
	n.table.Merge(f)
	n.table.Advance(f.Seq)
	n.Cut(revoke.Order{Key: f.ID, Fact: f, ReceivedAt: time.Now()})
	return f.ID
}

// killed is what nearly every test asks for: the receipt is verified, lists the sessions, and is true.
func (n *node) killed(id, role string, matched int) revoke.Receipt {
	n.t.Helper()
	r := n.verified(id, matched)
	if left := server.Backends(n.t, role); left != 0 {
		n.t.Errorf("the receipt says verified, but %d backends of %s are there", left, role)
	}
	if len(r.Sessions) != matched {
		n.t.Fatalf("the receipt lists %d of %d sessions", len(r.Sessions), matched)
	}
	for _, s := range r.Sessions {
		if s.Backend != "gone" || s.BackendStart == "" || s.Why != "" {
			n.t.Errorf("session: %+v", s)
		}
	}
	n.nothingAfterCut(r)
	return r
}

func (n *node) nothingAfterCut(r revoke.Receipt) {
	n.t.Helper()
	for _, s := range r.Sessions {
		if s.BytesAfter != 0 {
			n.t.Errorf("session %s: %d bytes after the cut", s.ID, s.BytesAfter)
		}
	}
	if v := n.metrics.bytesAfterCut.Get(); v != 0 {
		n.t.Errorf("pgedge_bytes_after_cut_total is %d", v)
	}
	if v := n.metrics.bugs.Get(); v != 0 {
		n.t.Errorf("pgedge_bugs_total is %d", v)
	}
}

// raw is a session of role that speaks the protocol by hand.
func (n *node) raw(role string) *pgtest.Raw {
	n.t.Helper()
	return pgtest.LoginRaw(n.t, n.addr, role, pgtest.Database)
}

// only returns the one session of a principal, once it is on its loop.
func (n *node) only(principal string) *session {
	n.t.Helper()
	var s *session
	pgtest.Wait(n.t, "one live session of "+principal, func() bool {
		found := n.index.match(revoke.Scope{Kind: revoke.ScopePrincipal, Name: principal})
		if len(found) != 1 {
			return false
		}
		s = found[0]
		s.mu.Lock()
		defer s.mu.Unlock()
		return s.state == stLive
	})
	return s
}

// onLoop runs f on the session's loop and waits for it.
func (s *session) onLoop(f func()) {
	ran := make(chan struct{})
	s.loop.post(func() {
		defer close(ran)
		f()
	})
	<-ran
}

// passed waits until the loop has looked at everything that had come in when it was called: sockets come before
// tasks, but the loop may have asked for its sockets just before.
func (s *session) passed() {
	s.onLoop(func() {})
	s.onLoop(func() {})
}

// holdLoops stops all loops of the node until release is called, at the latest when the test ends.
func (n *node) holdLoops() (release func()) {
	n.t.Helper()
	var once sync.Once
	free := make(chan struct{})
	release = func() { once.Do(func() { close(free) }) }
	n.t.Cleanup(release)
	for _, l := range n.loops {
		held := make(chan struct{})
		l.post(func() {
			close(held)
			<-free
		})
		<-held
	}
	return release
}

// closeGate does the first half of a cut and leaves the second to the test: the loop has not been told yet.
func (s *session) closeGate() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closeGateLocked(ReasonRevoked, &revoke.Fact{ID: "by-hand"})
}

// heard is what a client was told until its connection ended.
type heard struct {
	completed int // CommandComplete
	ready     int // ReadyForQuery
	copied    int // CopyData
	errs      []pgconn.PgError
	bad       error // not the end of a connection: garbage, or silence
	whole     bool  // ended by FIN at a message boundary
}

// follow reads everything that comes, on a goroutine of its own: a stream cut in the middle of a message would show
// as garbage or as an error response that is no message of its own.
func follow(r *pgtest.Raw) <-chan heard {
	out := make(chan heard, 1)
	go func() {
		var h heard
		for {
			m, err := r.TryReceive(patience)
			if err != nil {
				if !pgtest.Ended(err) {
					h.bad = err
				}
				h.whole = err == io.EOF
				out <- h
				return
			}
			switch m := m.(type) {
			case *pgproto3.CommandComplete:
				h.completed++
			case *pgproto3.ReadyForQuery:
				h.ready++
			case *pgproto3.CopyData:
				h.copied++
			case *pgproto3.ErrorResponse:
				h.errs = append(h.errs, *pgconn.ErrorResponseToPgError(m))
			}
		}
	}()
	return out
}

// told checks that a client heard nothing but the words of the kill at the end, or was reset without a word.
func told(t testing.TB, h heard, code string) {
	t.Helper()
	switch {
	case h.bad != nil:
		t.Errorf("the stream to the client is broken: %v", h.bad)
	case h.whole && (len(h.errs) != 1 || h.errs[0].Code != code):
		t.Errorf("the client was told %+v, want %s", h.errs, code)
	case !h.whole && len(h.errs) > 0:
		t.Errorf("the client was told %+v and then reset", h.errs)
	}
}

// start runs a statement and returns the channel that its error comes on.
func start(c *pgx.Conn, sql string, args ...any) <-chan error {
	out := make(chan error, 1)
	go func() {
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		_, err := c.Exec(ctx, sql, args...)
		out <- err
	}()
	return out
}

func wantCode(t testing.TB, err error, code string) *pgconn.PgError {
	t.Helper()
	var pg *pgconn.PgError
	if !errors.As(err, &pg) || pg.Code != code {
		t.Fatalf("the client was told %v, want %s", err, code)
	}
	return pg
}

func mustExec(t testing.TB, c *pgx.Conn, sql string, args ...any) {
	t.Helper()
	if _, err := c.Exec(bounded(t), sql, args...); err != nil {
		t.Fatalf("cannot run %q: %v", sql, err)
	}
}

// waitOnLoop waits until a condition holds that only the session's loop may look at.
func waitOnLoop(t testing.TB, s *session, holds func() bool) {
	t.Helper()
	pgtest.Wait(t, "a condition on a loop", func() (ok bool) {
		s.onLoop(func() { ok = holds() })
		return ok
	})
}
