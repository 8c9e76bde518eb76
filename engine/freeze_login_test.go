package engine

import (
	"errors"
	"strings"
	"testing"
	"time"

	"pgedge/internal/pgtest"
)

func TestALoginIsRefusedWhileTheLeaseHasEnded(t *testing.T) {
	t.Parallel()
	n := startLeased(t, nil)
	role := newRole(t, "")
	refused := func() {
		t.Helper()
		_, err := n.connect(role)
		if err == nil {
			t.Fatal("a login was let in")
		}
		if pg := wantCode(t, err, "57P03"); !strings.Contains(pg.Message, "journal") {
			t.Errorf("the client was told %q", pg.Message)
		}
		// psql asks for TLS first, and must be able to read why it is refused.
		c := dialPlain(t, "tcp", n.addr)
		c.send(packet(sslRequest, nil))
		if b, err := c.raw(); b != 'N' || err != nil {
			t.Fatalf("SSLRequest was answered with %q, %v", b, err)
		}
		c.send(startup("user", role, "database", pgtest.Database))
		if code := c.refusal(); code != "57P03" {
			t.Errorf("refused with %q", code)
		}
		if got := server.Backends(t, role); got != 0 {
			t.Errorf("%d backends", got)
		}
	}
	n.held.Store(false) // nobody has noticed yet
	refused()
	n.Freeze()
	refused()
	n.Drop()
	refused()
	n.regain()
	n.login(role).Close(bounded(t))
	n.nothingLeft()
	n.noBugs()
}

// A login that is under way when the lease ends hears of it at once, wherever it stands; what its client sends then is
// not passed on.
func TestALoginUnderWayIsRefusedWhenTheLeaseEnds(t *testing.T) {
	t.Parallel()
	n := startLeased(t, func(c *Config) { c.Limits.LoginTimeout = time.Hour })
	for _, noticed := range []bool{true, false} {
		silent := dialPlain(t, "tcp", n.addr)
		asked := dialPlain(t, "tcp", n.addr)
		asked.send(startup("user", "md5user", "database", pgtest.Database))
		asked.until('R')
		pgtest.Wait(t, "both logins to be under way", func() bool {
			n.logins.mu.Lock()
			defer n.logins.mu.Unlock()
			return len(n.logins.sessions) == 2
		})
		if noticed {
			n.lose()
		} else {
			n.held.Store(false)
			silent.send(startup("user", "trustuser", "database", pgtest.Database))
			asked.send(m('p', "md5 is of no use now"))
		}
		for name, c := range map[string]*plainConn{"silent": silent, "asked": asked} {
			if code := c.refusal(); code != "57P03" {
				t.Errorf("noticed %v: the %s one was refused with %q", noticed, name, code)
			}
		}
		n.regain()
		n.nothingLeft()
	}
	if got := n.closes(ReasonStaleLogin); got != 4 {
		t.Errorf("%d logins count as refused for the lease, want 4", got)
	}
	n.noBugs()
}

// A login that had been answered when the lease ended is a session: it freezes before it has passed anything.
func TestASessionThatIsBeingEnrolledWhenTheLeaseEndsIsFrozen(t *testing.T) {
	t.Parallel()
	n := startLeased(t, func(c *Config) { c.Loops = 1 })
	for _, dropped := range []bool{false, true} {
		release := n.holdLoops()
		c := dialPlain(t, "tcp", n.addr)
		c.send(startup("user", "trustuser", "database", pgtest.Database))
		c.until('Z')
		c.send(query("SELECT 'at once'"))
		pgtest.Wait(t, "the session to be on its way to its loop", func() bool {
			all := n.index.all()
			all[0].mu.Lock()
			defer all[0].mu.Unlock()
			return len(all) == 1 && all[0].state == stEnrolling
		})
		n.held.Store(false)
		n.Freeze()
		if dropped {
			n.Drop()
		}
		release()
		if dropped {
			if code := c.refusal(); code != "57P03" {
				t.Errorf("ended with %q", code)
			}
			n.regain()
			continue
		}
		n.waitFrozen(1)
		n.loopsPass()
		if got := n.metrics.bytesIn.Get(); got != 0 {
			t.Errorf("%d bytes of the client's passed", got)
		}
		n.regain()
		c.until('Z')
		c.Close()
		n.nothingLeft()
	}
	n.nothingLeft()
	n.noBugs()
}

// The cluster is there before the engine has started, and follows the lease from then on.
func TestTheLeaseMayEndAndComeBackWhileTheEngineStarts(t *testing.T) {
	t.Parallel()
	cfg := startLeased(t, nil).cfg
	cfg.Metrics, cfg.Logger = nil, nil
	plainTo(t, server.Addr(), "?sslmode=disable")(&cfg)
	e, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	started, told := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(told)
		for {
			e.Freeze()
			e.Drop()
			e.Thaw()
			select {
			case <-started:
				return
			default:
			}
		}
	}()
	err = e.Start(bounded(t))
	close(started)
	<-told
	if err := errors.Join(err, e.Stop(bounded(t))); err != nil {
		t.Error(err)
	}
}
