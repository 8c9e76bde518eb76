package engine

import (
	"errors"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/jackc/pgx/v5/pgconn"
)

// A panic of a handler is a bug of pgedge, and costs the session that met it and nothing else.
func TestAPanicInAHandlerEndsOneSessionOnly(t *testing.T) {
	bugPanics = false
	defer func() { bugPanics = true }()
	var victim atomic.Pointer[session]
	var panics atomic.Int64
	n := startNode(t, func(c *Config) {
		c.Loops = 1
		quiet(c)
	})
	// The hook is set and removed on the loop that reads it.
	n.onLoop(n.loops[0], func() {
		testRelayHook = func(s *session) {
			if s == victim.Load() {
				panics.Add(1)
				panic("a test's panic")
			}
		}
	})
	defer n.onLoop(n.loops[0], func() { testRelayHook = nil })
	baseline := n.baseline()
	for round := range 3 {
		other := n.login("bob")
		one := n.login("alice")
		for _, s := range n.index.all() {
			if s.identity.Principal == "alice" {
				victim.Store(s)
			}
		}
		_, err := one.Exec(bounded(t), "SELECT 1")
		var pg *pgconn.PgError
		if errors.As(err, &pg) && pg.Code != "XX000" || err == nil {
			t.Fatalf("the client was told %v, want XX000 or a close", err)
		}
		if err != nil && strings.Contains(err.Error(), "a test's panic") {
			t.Error("the client was told about the panic's inside")
		}
		for range 10 {
			if _, err := other.Exec(bounded(t), "SELECT 1"); err != nil {
				t.Fatalf("another session of the same loop: %v", err)
			}
		}
		n.endedFor(ReasonBug, round+1)
		server.WaitBackends(t, "alice", 0)
		other.Close(bounded(t))
	}
	if bugs := n.metrics.bugs.Get(); panics.Load() == 0 || bugs != uint64(panics.Load()) {
		t.Errorf("%d panics, but pgedge_bugs_total is %d", panics.Load(), bugs)
	}
	n.settledAt(baseline)
}
