package engine

import (
	"math/rand/v2"
	"strings"
	"sync"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgproto3"

	"pgedge/internal/pgtest"
	"pgedge/revoke"
)

// refused checks what a client is told whose login was cut, and that it learns the revocation only after it has
// proved who it is.
func refused(t testing.TB, err error, proven bool) {
	t.Helper()
	pg := wantCode(t, err, "28000")
	if !strings.Contains(pg.Message, "was revoked") || pg.Hint == "" || (pg.Detail != "") != proven {
		t.Errorf("the client was told %+v", pg)
	}
}

// lastError is what a raw client is told at its end.
func lastError(t testing.TB, r *pgtest.Raw) error {
	t.Helper()
	errs, _ := r.Rest()
	if len(errs) != 1 {
		t.Fatalf("the client was told %+v", errs)
	}
	return &errs[0]
}

// Before its name is known nothing can be cut; the name is looked up when it is.
func TestKillOfAClientInTheMiddleOfItsStartupPacket(t *testing.T) {
	t.Parallel()
	n := startNode(t, nil)
	role := newRole(t, "")
	packet := pgtest.Encode(t, &pgproto3.StartupMessage{ProtocolVersion: pgproto3.ProtocolVersion30,
		Parameters: map[string]string{"user": role, "database": pgtest.Database}})
	r := pgtest.DialRaw(t, n.addr)
	r.SendBytes(packet[:len(packet)-1])
	n.killed(n.revoke(role), role, 0)
	r.SendBytes(packet[len(packet)-1:])
	refused(t, lastError(t, r), false)
	if got := server.Backends(t, role); got != 0 {
		t.Errorf("%d backends", got)
	}
}

// Until the client has answered there is nothing to kill but the login itself.
func TestKillOfALoginThatWaitsForItsClient(t *testing.T) {
	t.Parallel()
	for _, answers := range []int{0, 1} {
		n := startNode(t, nil)
		role := newRole(t, "")
		r := pgtest.DialRaw(t, n.addr)
		r.Startup(role, pgtest.Database, nil)
		pgtest.WaitFor[*pgproto3.AuthenticationSASL](r)
		if answers == 1 {
			r.Send(&pgproto3.SASLInitialResponse{AuthMechanism: "SCRAM-SHA-256", Data: []byte("n,,n=,r=abcdefghijklmnopqrstuvwx")})
			pgtest.WaitFor[*pgproto3.AuthenticationSASLContinue](r)
		}
		rec := n.verified(n.revoke(role), 1)
		got := rec.Sessions[0]
		if got.State != "login" || got.Cut != "login_refused" || got.Backend != "none" || got.Xact != "none" {
			t.Errorf("session: %+v", got)
		}
		n.nothingAfterCut(rec)
		refused(t, lastError(t, r), false)
		server.WaitBackends(t, role, 0) // Postgres itself takes a moment to see its client gone
		if _, err := n.connect(role); err == nil {
			t.Error("the next login was admitted")
		}
	}
}

// The login is stopped by a proxy at each step behind the password. The proxy hides the port, and the moment that a
// backend began is only learned at the end of a login: so the kill is proven or honestly is not.
func TestKillOfALoginBehindThePassword(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name   string
		until  func(typ byte, body []byte) bool
		proven bool
	}{
		{"verdict of the server on its way", func(typ byte, body []byte) bool { return typ == 'R' && body[3] == 11 }, false},
		{"behind AuthenticationOk", func(typ byte, body []byte) bool { return typ == 'R' && body[3] == 0 }, true},
		{"behind BackendKeyData", func(typ byte, _ []byte) bool { return typ == 'K' }, true},
		{"in ReadyForQuery", func(typ byte, _ []byte) bool { return typ == 'Z' }, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			role := newRole(t, "")
			p := newStepProxy(t, role, c.until)
			n := startNode(t, func(cfg *Config) {
				cfg.Databases = map[string]Database{"*": {Upstream: controlUpstream(t, "pgedge_control", p.addr, "?sslmode=disable")}}
			})
			result := make(chan error, 1)
			go func() {
				_, err := n.connect(role)
				result <- err
			}()
			<-p.held
			server.WaitBackends(t, role, 1)
			rec := n.receipt(n.revoke(role))
			if rec.Matched != 1 || len(rec.Sessions) != 1 {
				t.Fatalf("receipt: %+v", rec)
			}
			got := rec.Sessions[0]
			if got.Cut != "login_refused" || got.Verified && got.Backend != "none" && got.Backend != "gone" || !got.Verified && got.Why == "" {
				t.Errorf("session: %+v", got)
			}
			n.nothingAfterCut(rec)
			refused(t, <-result, c.proven)
			close(p.release)
			server.WaitBackends(t, role, 0)
			t.Logf("backend %s, verified %v, why %q", got.Backend, got.Verified, got.Why)
		})
	}
}

// A revocation that runs into many logins at whatever step each of them is: nobody is left, and whoever had come
// through was cut.
func TestKillRacingManyLogins(t *testing.T) {
	t.Parallel()
	n := startNode(t, nil)
	role := newRole(t, "")
	for round := range 5 {
		const logins = 24
		type attempt struct {
			c   *pgx.Conn
			err error
		}
		attempts := make([]attempt, logins)
		first, ok := n.nextID.Load(), n.metrics.logins("ok").Get()
		var wg sync.WaitGroup
		for i := range attempts {
			wg.Go(func() { attempts[i].c, attempts[i].err = n.connect(role) })
		}
		// Anywhere between the first session in the index and the last login.
		goal := 1 + rand.IntN(logins)
		pgtest.Wait(t, "logins to be under way", func() bool { return n.nextID.Load() >= first+uint64(goal) })
		if round%2 == 1 {
			pgtest.Wait(t, "a session to be live", func() bool { return n.metrics.logins("ok").Get() > ok })
		}
		rec := n.receipt(n.revoke(role))
		n.nothingAfterCut(rec)
		for _, s := range rec.Sessions {
			if !s.Verified || s.Xact != "none" {
				t.Errorf("round %d: %+v", round, s)
			}
		}
		wg.Wait()
		admitted := 0
		for _, a := range attempts {
			if a.err != nil {
				wantCode(t, a.err, "28000")
				continue
			}
			admitted++
			if _, err := a.c.Exec(bounded(t), "SELECT 1"); err == nil {
				t.Errorf("round %d: a session lives on behind the receipt", round)
			}
		}
		// Logins that came behind the receipt may still be hearing that they are refused.
		pgtest.Wait(t, "the index to be empty", func() bool { return n.index.len() == 0 })
		server.WaitBackends(t, role, 0)
		t.Logf("round %d: %d matched, %d had been admitted", round, rec.Matched, admitted)
		n.apply(revoke.VerbReinstate, revoke.ScopePrincipal, role)
	}
	if _, err := n.connect(role); err != nil {
		t.Errorf("reinstated, but %v", err)
	}
}

// A login that is being enrolled has left its goroutine and is on no loop yet: the loops stand still meanwhile.
func TestKillOfASessionThatIsBeingEnrolled(t *testing.T) {
	t.Parallel()
	n := startNode(t, nil)
	role := newRole(t, "")
	release := n.holdLoops()
	done := make(chan *pgx.Conn, 1)
	go func() {
		c, _ := n.connect(role) // The greeting is out before the loop has the session.
		done <- c
	}()
	pgtest.Wait(t, "a session being enrolled", func() bool {
		for _, s := range n.index.all() {
			s.mu.Lock()
			state := s.state
			s.mu.Unlock()
			if state == stEnrolling {
				return true
			}
		}
		return false
	})
	c := <-done
	if c == nil {
		t.Fatal("the client was not admitted")
	}
	insert := newTable(t, "v int")
	result := start(c, "INSERT INTO "+insert+" VALUES (1)")
	id := n.revoke(role)
	release()
	rec := n.killed(id, role, 1)
	if got := rec.Sessions[0]; got.Cut != "gate" || got.State != "idle" || got.Xact != "none" {
		t.Errorf("session: %+v", got)
	}
	wantCode(t, <-result, "28000")
	if rows := settledRows(t, insert); rows != 0 {
		t.Errorf("%d rows", rows)
	}
}
