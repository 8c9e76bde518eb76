package cluster

import (
	"testing"
	"time"

	"pgedge/revoke"
)

func TestTheQuickClockAgreesWithTheBootTimeClock(t *testing.T) {
	c := newLeaseClock()
	slow, quick := c.read(), c.quick()
	if d := quick.Boot - slow.Boot; d < 0 || d > time.Second {
		t.Errorf("quick is %s ahead of the clock it stands for", d)
	}
	// After the machine has slept for an hour quick is behind until the clock has been read.
	c.lead.Add(-int64(time.Hour))
	if d := slow.Boot - c.quick().Boot; d < 59*time.Minute {
		t.Errorf("the lead is not used: %s", d)
	}
	c.read()
	if d := c.quick().Boot - slow.Boot; d < 0 || d > time.Second {
		t.Errorf("reading the clock does not correct quick: off by %s", d)
	}
}

func TestAskingWhetherTheLeaseHoldsAllocatesNothing(t *testing.T) {
	n := &Node{clock: newLeaseClock()}
	n.lease.Renew(n.clock.read().Add(time.Hour))
	if allocs := testing.AllocsPerRun(1000, func() { n.Fresh() }); allocs != 0 {
		t.Errorf("%v allocations", allocs)
	}
	if !n.Fresh() {
		t.Error("a lease of an hour has ended")
	}
}

var sinkInstant revoke.Instant

func BenchmarkLeaseFresh(b *testing.B) {
	n := &Node{clock: newLeaseClock()}
	n.lease.Renew(n.clock.read().Add(time.Hour))
	b.ReportAllocs()
	for b.Loop() {
		n.Fresh()
	}
}

func BenchmarkBootTimeClock(b *testing.B) {
	c := newLeaseClock()
	for b.Loop() {
		sinkInstant = c.read()
	}
}
