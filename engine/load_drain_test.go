package engine

import (
	"context"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgproto3"

	"pgedge/codec"
	"pgedge/internal/pgtest"
	"pgedge/revoke"
)

// More sessions than one loop ends in one go, and a bystander's task that comes between two chunks.
func TestDrainOfManySessionsLetsTheLoopDoOtherThingsInBetween(t *testing.T) {
	f := newFake(t, func(c *fakeConn) {
		c.write(m('R', int32(0)), m('Z', byte('I')))
		c.hold()
	})
	n := through(t, f.addr, func(c *Config) { c.Loops = 1 })
	const many = 2*drainChunk + 50
	clients := make([]*plainConn, many)
	for i := range clients {
		clients[i] = dialPlain(t, "tcp", n.addr)
		clients[i].send(startup("user", "u", "database", "d"))
		clients[i].until('Z')
	}
	l := n.loops[0]
	told := func() (k int) {
		l.await(bounded(t), func() {
			for s := range l.sessions {
				if s.reason != reasonNone {
					k++
				}
			}
		})
		return k
	}
	pgtest.Wait(t, "all to be on the loop", func() (all bool) {
		l.await(bounded(t), func() { all = len(l.sessions) == many })
		return all
	})
	drained := make(chan struct{})
	go func() { defer close(drained); n.Drain(bounded(t)) }()
	// What this posts while the loop is at a chunk runs before the next one.
	some := false
	for k := 0; k < many; k = told() {
		some = some || k > 0
	}
	if !some {
		t.Error("the loop did nothing else until all sessions had been told")
	}
	for _, c := range clients {
		if code := c.refusal(); code != "57P01" {
			t.Fatalf("a session was told %q", code)
		}
	}
	<-drained
}

// A pipeline that is never empty has no sync point to end at.
func TestASessionThatNeverComesToASyncPointEndsAllTheSameWhenItIsTooOld(t *testing.T) {
	n := startNode(t, func(c *Config) {
		c.Timeouts.SessionMax = 300 * time.Millisecond
		c.Timeouts.Drain = 300 * time.Millisecond
	})
	raw := n.raw("trustuser")
	loadBegin(raw)
	raw.Query("SELECT pg_sleep(300)")
	began := time.Now()
	if code := loadTold(t, raw); code != "57P05" {
		t.Errorf("the session was told %s", code)
	}
	if took := time.Since(began); took < 200*time.Millisecond {
		t.Errorf("it ended after %s, before the time that it has to come to a sync point", took)
	}
	// One that comes to it in time is not cut short.
	raw = n.raw("trustuser")
	raw.Query("SELECT pg_sleep(0.4)")
	pgtest.WaitFor[*pgproto3.DataRow](raw)
	if code := loadTold(t, raw); code != "57P05" {
		t.Errorf("the session was told %s", code)
	}
}

// Without a control role the cancel request is all that stops the statement; a node that ends must not give it up.
func TestAStopWaitsForTheCancelRequestsOfKills(t *testing.T) {
	own := codec.CancelKey{PID: 77, Secret: []byte("own!")}
	arrived, take := make(chan struct{}), make(chan struct{})
	f := newFake(t, func(c *fakeConn) {
		if string(c.startup[:4]) == string(codec.AppendCancelRequest(nil, own)[4:8]) {
			close(arrived)
			<-take
			return
		}
		c.write(m('R', int32(0)), codec.AppendBackendKeyData(nil, own), m('Z', byte('I')))
		c.hold()
	})
	n := through(t, f.addr, nil)
	c := dialPlain(t, "tcp", n.addr)
	c.send(startup("user", "u", "database", "d"))
	c.until('Z')
	c.send(query("SELECT 1"))
	pgtest.Wait(t, "the session to be busy", func() bool {
		for _, s := range n.index.all() {
			return s.busy()
		}
		return false
	})
	id := n.apply(revoke.VerbRevoke, revoke.ScopePrincipal, "u")
	<-arrived
	stopped := make(chan error, 1)
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	go func() { stopped <- n.Stop(ctx) }()
	pgtest.Wait(t, "all sessions to be gone", func() bool { return n.SessionCount() == 0 && n.logins.stopped.Load() })
	select {
	case <-stopped:
		t.Error("the stop did not wait")
	case <-time.After(200 * time.Millisecond):
	}
	close(take)
	if err := <-stopped; err != nil {
		t.Error(err)
	}
	if r := n.receipt(id); len(r.Sessions) != 1 || r.Sessions[0].Backend != "cancelled" {
		t.Errorf("receipt: %+v", r)
	}
}
