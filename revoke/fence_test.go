package revoke

import (
	"strings"
	"testing"
	"time"
)

// fencing is a member that announces everything a fence needs, with a lease of 20 s: a fence at 20.2 s.
func fencing(node string) Presence {
	p := memberOf(node, StateServing)
	p.OnStale, p.Stream, p.Seq = "freeze", testStream, 5
	return p
}

const fence = 20_200 * time.Millisecond

func TestASilentNodeIsFencedAtTheComputedMomentAndNotBefore(t *testing.T) {
	c := coordinator(fencing("a"), fencing("b"))
	c.Receipt(t0, stageOf("a", StageVerified, 0))
	before := t0.Add(fence - 1)
	v := wantVerdict(t, c, before, false, Incomplete, false)
	if n := v.Nodes[1]; n.Status != StatusSilent || n.Why != "" {
		t.Fatalf("%+v", n)
	}
	if w := c.Waiting(t0.Add(1800 * time.Millisecond)); len(w) != 1 || w[0].Node != "b" || w[0].FencedInMS != 18_400 {
		t.Fatalf("%+v", w)
	}
	if lines := c.Fences(before); lines != nil {
		t.Fatalf("%+v", lines)
	}
	// Being interrupted does not make a fence come sooner.
	wantVerdict(t, c, before, true, Incomplete, true)

	at := t0.Add(fence)
	wantLine(t, c.Fences(at), "b", StatusFenced)
	if lines := c.Fences(at); lines != nil {
		t.Fatalf("told twice: %+v", lines)
	}
	v = wantVerdict(t, c, at, false, CompleteFenced, true)
	if n := v.Nodes[1]; n.Status != StatusFenced || n.AfterMS != 20_200 || n.FencedInMS != 0 || n.Why == "" {
		t.Fatalf("%+v", n)
	}
	if w := c.Waiting(at); w != nil {
		t.Fatalf("%+v", w)
	}
	// It comes back in time to be proven.
	wantLine(t, c.Receipt(at, stageOf("b", StageVerified, 0)), "b", StatusVerified)
	wantVerdict(t, c, at, false, Complete, true)
}

// A boot that follows the other journal by now is fresh without having heard of the fact.
func TestNobodyIsFencedOnceTheJournalIsAnotherStream(t *testing.T) {
	gone := fencing("c")
	gone.Heard = t0.Add(-time.Hour)
	c := coordinator(fencing("a"), fencing("b"), gone)
	c.Receipt(t0, stageOf("a", StageVerified, 0))
	c.JournalReplaced()
	c.Presence(t0.Add(time.Second), fencing("b"))
	late := t0.Add(time.Hour)
	v := wantVerdict(t, c, late, false, Incomplete, true)
	if lines := c.Fences(late); lines != nil || !strings.Contains(v.Nodes[1].Why, "replaced") || !strings.Contains(v.Nodes[2].Why, "replaced") {
		t.Fatalf("%+v, %+v", lines, v.Nodes)
	}
	// What receipts prove stays proven.
	proven := coordinator(fencing("a"))
	proven.JournalReplaced()
	proven.Receipt(t0, stageOf("a", StageVerified, 0))
	wantVerdict(t, proven, t0, false, Complete, true)
}

func TestWhoMayServeWithoutALeaseIsNeverFenced(t *testing.T) {
	for what, change := range map[string]func(*Presence){
		"serves on":                 func(p *Presence) { p.OnStale = "serve" },
		"says nothing of staleness": func(p *Presence) { p.OnStale = "" },
		"another journal":           func(p *Presence) { p.Stream = "PGEDGE@/1700000000000000001" },
		"another domain":            func(p *Presence) { p.Stream = "PGEDGE2@leaf/1700000000000000000" },
		"no journal":                func(p *Presence) { p.Stream = "" },
		"no lease":                  func(p *Presence) { p.LeaseMS = 0 },
		"a negative lease":          func(p *Presence) { p.LeaseMS = -5 },
		"a lease beyond belief":     func(p *Presence) { p.LeaseMS = MaxLease.Milliseconds() + 1 },
	} {
		b := fencing("b")
		change(&b)
		c := coordinator(fencing("a"), b)
		c.Receipt(t0, stageOf("a", StageVerified, 0))
		v := wantVerdict(t, c, t0.Add(time.Hour), false, Incomplete, true)
		if n := v.Nodes[1]; n.Status != StatusSilent || n.Why == "" {
			t.Errorf("%s: %+v", what, n)
		}
		if w := c.Waiting(t0); len(w) != 1 || w[0].FencedInMS != 0 {
			t.Errorf("%s: %+v", what, w)
		}
		// What it says later does not make up for what it said before.
		c = coordinator(fencing("a"), fencing("b"))
		c.Receipt(t0, stageOf("a", StageVerified, 0))
		c.Presence(t0, b)
		if v, _ := c.Verdict(t0.Add(time.Hour), false); v.Verdict != Incomplete {
			t.Errorf("%s, announced later: %+v", what, v)
		}
	}
	// One that has announced that it serves on may do so until it is started again.
	c := coordinator(fencing("a"), fencing("b"))
	c.Receipt(t0, stageOf("a", StageVerified, 0))
	p := fencing("b")
	p.OnStale = "serve"
	c.Presence(t0, p)
	c.Presence(t0, fencing("b"))
	wantVerdict(t, c, t0.Add(time.Hour), false, Incomplete, true)
	// A coordinator that does not know its journal fences nobody.
	c = NewCoordinator("R", 7, t0, "", []Presence{fencing("b")}, time.Second)
	wantVerdict(t, c, t0.Add(time.Hour), false, Incomplete, true)
}

func TestAFenceWaitsForTheLongestLeaseThatTheBootHasAnnounced(t *testing.T) {
	long := fencing("b")
	long.LeaseMS = 60_000
	for what, c := range map[string]*Coordinator{"first": coordinator(long), "later": coordinator(fencing("b"))} {
		if what == "later" {
			c.Presence(t0, long)
		}
		c.Presence(t0, fencing("b"))
		wantVerdict(t, c, t0.Add(60_600*time.Millisecond-1), false, Incomplete, false)
		wantVerdict(t, c, t0.Add(60_600*time.Millisecond), false, CompleteFenced, true)
	}
}

func TestTheReceiptsOfANodeOnAnotherJournalProveNothing(t *testing.T) {
	leaf := fencing("b")
	leaf.Stream = "PGEDGE@leaf/1800000000000000000"
	leaf.Applied = 99
	c := coordinator(fencing("a"), leaf)
	c.Receipt(t0, stageOf("a", StageVerified, 0))
	c.Receipt(t0, stageOf("b", StageVerified, 0))
	v := wantVerdict(t, c, t0, false, Incomplete, false)
	if n := v.Nodes[1]; n.Status != StatusSilent || !strings.Contains(n.Why, "another journal") {
		t.Fatalf("%+v", n)
	}
	// It has found its way back, and what it said counts.
	wantLine(t, c.Presence(t0, fencing("b")), "b", StatusVerified)
	wantVerdict(t, c, t0, false, Complete, true)

	gone := leaf
	gone.Heard = t0.Add(-time.Hour)
	c = coordinator(fencing("a"), gone)
	c.Receipt(t0, stageOf("a", StageVerified, 0))
	wantVerdict(t, c, t0, false, Incomplete, true)
}

func TestANodeThatHoldsTheFactAndIsHeardIsWaitedForInsteadOfFenced(t *testing.T) {
	c := coordinator(fencing("a"))
	alive := fencing("a")
	alive.Applied = 7
	at := t0.Add(fence)
	last := t0.Add(5 * time.Second)
	c.Presence(last, alive)
	wantVerdict(t, c, at, false, Incomplete, false)
	// Its heartbeats end: a lease later it is as silent as any other.
	wantVerdict(t, c, last.Add(fence-1), false, Incomplete, false)
	wantVerdict(t, c, last.Add(fence), false, CompleteFenced, true)
	// Heartbeats that do not show the fact renew no lease.
	c = coordinator(fencing("a"))
	deaf := fencing("a")
	deaf.Applied = 6
	c.Presence(at, deaf)
	wantVerdict(t, c, at, false, CompleteFenced, true)
}

func TestWhatIsKnownOfAFencedNodesBackendsIsTold(t *testing.T) {
	b := fencing("b")
	b.Sessions = 12
	c := coordinator(fencing("a"), b)
	c.Receipt(t0, stageOf("a", StageVerified, 0))
	v := wantVerdict(t, c, t0.Add(fence), false, CompleteFenced, true)
	if n := v.Nodes[1]; n.NotSeenGone != 0 || !strings.Contains(n.Why, "(12, of all") {
		t.Fatalf("%+v", n)
	}
	cut := stageOf("b", StageCut, 0)
	cut.Matched = 3
	c.Receipt(t0, cut)
	v = wantVerdict(t, c, t0.Add(fence), false, CompleteFenced, true)
	if n := v.Nodes[1]; n.Status != StatusFenced || n.NotSeenGone != 3 {
		t.Fatalf("%+v", n)
	}
}

// The table of verdicts: what each combination of two nodes comes to when the time is over.
func TestEveryMixtureOfNodesHasItsVerdict(t *testing.T) {
	verified := func(c *Coordinator, n string) { c.Receipt(t0, stageOf(n, StageVerified, 0)) }
	unverified := func(c *Coordinator, n string) { c.Receipt(t0, stageOf(n, StageClosed, 2)) }
	closed := func(c *Coordinator, n string) { c.Receipt(t0, stageOf(n, StageClosed, 0)) }
	silent := func(*Coordinator, string) {}
	serves := func(c *Coordinator, n string) {
		p := fencing(n)
		p.OnStale = "serve"
		c.Presence(t0, p)
	}
	left := func(c *Coordinator, n string) {
		p := fencing(n)
		p.State = StateLeft
		c.Presence(t0, p)
	}
	crashed := func(c *Coordinator, n string) {
		p := fencing(n)
		p.State, p.Crashed, p.Sessions = StateLeft, true, 4
		c.Presence(t0, p)
	}
	for _, tt := range []struct {
		name string
		a, b func(*Coordinator, string)
		want Verdict
	}{
		{"verified and verified", verified, verified, Complete},
		{"verified and left without sessions", verified, left, Complete},
		{"verified and unverified", verified, unverified, CompleteUnverified},
		{"verified and closed", verified, closed, CompleteUnverified},
		{"closed and unverified", closed, unverified, CompleteUnverified},
		{"verified and silent", verified, silent, CompleteFenced},
		{"verified and crashed with sessions", verified, crashed, CompleteFenced},
		{"unverified and silent", unverified, silent, CompleteFenced},
		{"closed and silent", closed, silent, CompleteFenced},
		{"silent and silent", silent, silent, CompleteFenced},
		{"verified and serving on", verified, serves, Incomplete},
		{"silent and serving on", silent, serves, Incomplete},
		{"unverified and serving on", unverified, serves, Incomplete},
	} {
		for _, swap := range []bool{false, true} {
			c := coordinator(fencing("a"), fencing("b"))
			if swap {
				tt.a, tt.b = tt.b, tt.a
			}
			tt.a(c, "a")
			tt.b(c, "b")
			if v, certain := c.Verdict(c.Deadline(), false); v.Verdict != tt.want || !certain {
				t.Errorf("%s: %+v, certain %v; want %s", tt.name, v, certain, tt.want)
			}
		}
	}
}

func TestABootWhoseFirstHeartbeatIsYoungerThanTheFactIsNoMember(t *testing.T) {
	young := fencing("young")
	young.Seq, young.N = 8, 1
	c := coordinator(fencing("a"), young)
	c.Receipt(t0, stageOf("a", StageVerified, 0))
	if v := wantVerdict(t, c, t0, false, Complete, true); len(v.Nodes) != 1 {
		t.Fatalf("%+v", v.Nodes)
	}
	young.N = 2
	c = coordinator(fencing("a"), young)
	c.Receipt(t0, stageOf("a", StageVerified, 0))
	wantVerdict(t, c, t0, false, Incomplete, false)
}

// Two processes under one name are two boots: neither speaks for the other.
func TestOneOfTwoBootsOfANodeDoesNotProveTheOther(t *testing.T) {
	old, young := fencing("a"), fencing("a")
	young.Boot = "b2"
	c := coordinator(old, young)
	r := stageOf("a", StageVerified, 0)
	r.Boot = "b2"
	c.Receipt(t0, r)
	wantVerdict(t, c, t0.Add(fence-1), false, Incomplete, false)
	wantVerdict(t, c, t0.Add(fence), false, CompleteFenced, true)
}

func TestAStreamIsKnownByItsNameAndCreation(t *testing.T) {
	for _, tt := range []struct {
		a, b string
		want bool
	}{
		{"PGEDGE@/1", "PGEDGE@/1", true},
		{"PGEDGE@hub/1", "PGEDGE@/1", true},
		{"PGEDGE@hub/1", "PGEDGE@leaf/1", false},
		{"PGEDGE@/1", "PGEDGE@/2", false},
		{"PGEDGE@/1", "OTHER@/1", false},
		{"PGEDGE@a/b/1", "PGEDGE@a/b/1", true},
		{"PGEDGE@a/b/1", "PGEDGE@a/c/1", false},
		{"PGEDGE", "PGEDGE@/1", false},
		{"", "", true},
	} {
		if got := SameStream(tt.a, tt.b); got != tt.want || SameStream(tt.b, tt.a) != tt.want {
			t.Errorf("%s and %s: %v", tt.a, tt.b, got)
		}
	}
}
