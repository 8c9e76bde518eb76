package engine

import (
	"fmt"
	"sync/atomic"
	"testing"
	"time"

	"pgedge/internal/pgtest"
)

// leased is a node whose lease the test holds.
type leased struct {
	*node
	held atomic.Bool
}

func startLeased(t testing.TB, change func(*Config)) *leased {
	t.Helper()
	n := &leased{}
	n.held.Store(true)
	n.node = startNode(t, func(c *Config) {
		c.Fresh = n.held.Load
		c.FreezeInTransaction = time.Hour // a test that is about it sets its own
		if change != nil {
			change(c)
		}
	})
	return n
}

// plainTo sends the sessions of a node to addr, without a control role whose traffic would count as theirs.
func plainTo(t testing.TB, addr, options string) func(*Config) {
	return func(c *Config) {
		u := controlUpstream(t, "pgedge_control", addr, options)
		u.Control = nil
		c.Databases = map[string]Database{"*": {Upstream: u}}
	}
}

// lose is what happens when the lease ends and the cluster notices; the loops have done their part when it returns.
func (n *leased) lose() {
	n.held.Store(false)
	n.Freeze()
	n.loopsPass()
}

func (n *leased) regain() {
	n.held.Store(true)
	n.Thaw()
}

// loopsPass waits until every loop has done what it had been asked when it was called.
func (n *leased) loopsPass() {
	for _, l := range n.loops {
		n.node.onLoop(l, func() {})
		n.node.onLoop(l, func() {})
	}
}

// moved is what a session has relayed, and what it holds for either peer.
type moved struct {
	in, out           int64
	toBackend, toPeer int
}

func (s *session) moved() (m moved) {
	s.onLoop(func() { m = moved{s.bytesIn, s.bytesOut, s.back.buffered(), s.front.buffered()} })
	return m
}

// still waits until a figure has not moved for a while, and returns it.
func still(t testing.TB, what string, figure func() int64) int64 {
	t.Helper()
	last, same := int64(-1), 0
	pgtest.Wait(t, what+" to stand still", func() bool {
		now := figure()
		if now != last {
			last, same = now, 0
		}
		same++
		return same > 60
	})
	return last
}

func (n *leased) closes(r Reason) uint64 {
	return n.metrics.set.GetOrCreateCounter(fmt.Sprintf(`pgedge_closes_total{reason="%s"}`, r)).Get()
}

func (n *leased) frozenSessions() int64 { return n.metrics.frozenSessions.Load() }

// waitFrozen waits for the gauge.
func (n *leased) waitFrozen(count int64) {
	n.t.Helper()
	pgtest.Wait(n.t, fmt.Sprintf("%d frozen sessions", count), func() bool { return n.frozenSessions() == count })
}

// nothingLeft waits until the engine holds no trace of a session: other tests may run beside this one, so nothing of
// the process is counted.
func (n *leased) nothingLeft() {
	n.t.Helper()
	var got loadCounts
	pgtest.Wait(n.t, "every trace of the sessions to go", func() bool {
		got = n.counts()
		got.goroutines, got.descriptors, got.slots = 0, 0, 0
		return got == (loadCounts{}) && n.frozenSessions() == 0
	})
}
