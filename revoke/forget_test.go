package revoke

import (
	"strings"
	"testing"
	"time"
)

func forgotten(node string, seq uint64) Presence {
	p := memberOf(node, StateServing)
	p.OnStale, p.Sessions = "serve", 3
	p = p.Forget("op@host", t0)
	p.Seq, p.Heard = seq, t0
	return p
}

func TestABootThatWasForgottenBeforeTheFactIsNamedAndNotWaitedFor(t *testing.T) {
	c := coordinator(memberOf("a", StateServing), forgotten("f", 6))
	wantLine(t, c.Receipt(t0, stageOf("a", StageVerified, 0)), "a", StatusVerified)
	v := wantVerdict(t, c, t0, false, Complete, true)
	if len(v.Nodes) != 2 || v.Nodes[1].Status != StatusForgotten || !strings.Contains(v.Nodes[1].Why, "op@host") {
		t.Fatalf("%+v", v.Nodes)
	}
	old := forgotten("f", 6)
	old.Heard = t0.Add(-forgetAfter - 1)
	if v, _ := coordinator(memberOf("a", StateServing), old).Verdict(t0, true); len(v.Nodes) != 1 {
		t.Errorf("after a day it is named still: %+v", v.Nodes)
	}
}

// An assertion must not turn a missing proof into a verdict.
func TestForgettingABootDuringAWaitProvesNothing(t *testing.T) {
	// Before the coordinator is made, and after.
	for _, c := range []*Coordinator{
		coordinator(memberOf("a", StateServing), forgotten("f", 8)),
		coordinator(memberOf("a", StateServing), memberOf("f", StateServing)),
	} {
		c.Receipt(t0, stageOf("a", StageVerified, 0))
		if lines := c.Presence(t0, forgotten("f", 9)); lines != nil {
			t.Errorf("it changed %+v", lines)
		}
		wantVerdict(t, c, t0.Add(5*time.Second), false, Incomplete, false)
		v := wantVerdict(t, c, t0.Add(time.Hour), false, Incomplete, true)
		if v.Nodes[1].Status != StatusSilent {
			t.Errorf("%+v", v.Nodes)
		}
	}
}

func TestAForgottenBootThatIsHeardAgainCounts(t *testing.T) {
	again := map[string]func(*Coordinator){
		"a heartbeat": func(c *Coordinator) { c.Presence(t0, memberOf("f", StateServing)) },
		"a receipt":   func(c *Coordinator) { c.Receipt(t0, stageOf("f", StageCut, 0)) },
	}
	for name, hear := range again {
		c := coordinator(memberOf("a", StateServing), forgotten("f", 6))
		c.Receipt(t0, stageOf("a", StageVerified, 0))
		hear(c)
		if v, _ := c.Verdict(t0.Add(time.Hour), true); v.Verdict != Incomplete {
			t.Errorf("%s: %+v", name, v)
		}
	}
}

func TestTimeForgetsOnlyWhatCannotBeServing(t *testing.T) {
	long := t0.Add(forgetAfter + 1)
	serves, fences, left := memberOf("s", StateServing), memberOf("f", StateServing), memberOf("l", StateLeft)
	serves.OnStale, fences.OnStale = "serve", "freeze"
	for _, tt := range []struct {
		p         Presence
		now, then bool
	}{
		{serves, true, true}, {fences, true, false}, {left, true, false}, {forgotten("x", 1), false, false},
	} {
		if now, then := tt.p.Listed(t0), tt.p.Listed(long); now != tt.now || then != tt.then {
			t.Errorf("%s is listed %v, after a day %v", tt.p.Node, now, then)
		}
	}
}

// A goodbye that numbered itself like a heartbeat still to come would renew the lease of the process it declares dead.
func TestForgettingABootMakesNoHeartbeatThatItHasNotSent(t *testing.T) {
	p := memberOf("f", StateServing)
	p.N = 57
	if n := p.Forget("op@host", t0).N; n != 57 {
		t.Errorf("it is number %d", n)
	}
}

func TestAReplayDoesNotBringBackAForgottenBoot(t *testing.T) {
	ms := newMembers()
	heard := memberOf("f", StateServing)
	heard.N = 57
	ms.live(t0, heard)
	ms.replayed(t0, heard.Forget("op@host", t0), t0)
	if l := ms.list(t0); len(l) != 1 || l[0].State != StateLeft {
		t.Errorf("got %+v", l)
	}
}
