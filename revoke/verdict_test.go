package revoke

import (
	"testing"
	"time"
)

func memberOf(node, state string) Presence {
	return Presence{Node: node, Boot: "b", State: state, LeaseMS: 20000, Heard: t0}
}

func stageOf(node string, stage Stage, unverified int) Receipt {
	return Receipt{Revocation: "R", Seq: 7, Node: node, Boot: "b", Stage: stage, Unverified: unverified, Verb: "revoke", Scope: "principal.alice"}
}

const testStream = "PGEDGE@/1700000000000000000"

func coordinator(members ...Presence) *Coordinator {
	return NewCoordinator("R", 7, t0, testStream, members, 10*time.Second)
}

func wantVerdict(t *testing.T, c *Coordinator, now time.Time, final bool, want Verdict, certain bool) FleetVerdict {
	t.Helper()
	v, ok := c.Verdict(now, final)
	if v.Verdict != want || ok != certain {
		t.Fatalf("verdict %s, certain %v; want %s, %v: %+v", v.Verdict, ok, want, certain, v.Nodes)
	}
	return v
}

func wantLine(t *testing.T, lines []NodeStatus, node, status string) {
	t.Helper()
	if len(lines) != 1 || lines[0].Node != node || lines[0].Status != status {
		t.Fatalf("lines %+v, want %s %s", lines, node, status)
	}
}

func TestAVerdictIsCompleteWhenEveryLiveNodeHasVerified(t *testing.T) {
	c := coordinator(memberOf("a", StateServing), memberOf("b", StateDraining), memberOf("l", StateLeft))
	wantVerdict(t, c, t0, false, Incomplete, false)
	wantLine(t, c.Receipt(t0.Add(time.Millisecond), stageOf("a", StageCut, 0)), "a", StatusCut)
	wantLine(t, c.Receipt(t0.Add(2*time.Millisecond), stageOf("a", StageVerified, 0)), "a", StatusVerified)
	if lines := c.Receipt(t0.Add(3*time.Millisecond), stageOf("a", StageClosed, 0)); lines != nil {
		t.Fatalf("an older stage changed %+v", lines)
	}
	wantVerdict(t, c, t0, false, Incomplete, false)
	wantLine(t, c.Receipt(t0.Add(4*time.Millisecond), stageOf("b", StageVerified, 0)), "b", StatusVerified)
	v := wantVerdict(t, c, t0, false, Complete, true)
	if len(v.Nodes) != 2 || v.Nodes[0].AfterMS != 2 || v.Nodes[1].AfterMS != 4 {
		t.Fatalf("%+v", v.Nodes)
	}
}

func TestBackendsNotSeenGoneAreNotVerified(t *testing.T) {
	c := coordinator(memberOf("a", StateServing), memberOf("b", StateServing))
	wantLine(t, c.Receipt(t0, stageOf("a", StageVerified, 0)), "a", StatusVerified)
	wantLine(t, c.Receipt(t0, stageOf("b", StageClosed, 0)), "b", StatusClosed)
	wantVerdict(t, c, t0, false, CompleteUnverified, false)
	wantVerdict(t, c, t0, true, CompleteUnverified, true)
	c.Receipt(t0, stageOf("b", StageVerified, 2))
	wantVerdict(t, c, t0, false, CompleteUnverified, true)
	wantLine(t, c.Receipt(t0, stageOf("b", StageVerified, 0)), "b", StatusVerified)
	wantVerdict(t, c, t0, false, Complete, true)
}

func TestASilentNodeMakesTheVerdictIncomplete(t *testing.T) {
	c := coordinator(memberOf("a", StateServing), memberOf("b", StateServing))
	c.Receipt(t0, stageOf("a", StageVerified, 0))
	deadline := t0.Add(32 * time.Second)
	wantVerdict(t, c, deadline.Add(-1), false, Incomplete, false)
	v := wantVerdict(t, c, deadline, false, Incomplete, true)
	if v.Nodes[1].Status != StatusSilent {
		t.Fatalf("%+v", v.Nodes)
	}
	// Cut is not closed.
	c.Receipt(t0, stageOf("b", StageCut, 0))
	wantVerdict(t, c, deadline, true, Incomplete, true)
}

func leftOf(node string, sessions int) Presence {
	p := memberOf(node, StateLeft)
	p.Sessions = sessions
	return p
}

func TestANodeThatLeavesWithoutSessionsStopsCounting(t *testing.T) {
	c := coordinator(memberOf("a", StateServing), memberOf("b", StateServing))
	c.Receipt(t0, stageOf("a", StageVerified, 0))
	c.Presence(t0, leftOf("b", 0))
	// A receipt of b may still be on its way, behind the goodbye.
	wantVerdict(t, c, t0, false, Incomplete, false)
	later := t0.Add(verdictSlack)
	v := wantVerdict(t, c, later, false, Complete, true)
	if len(v.Nodes) != 1 {
		t.Fatalf("%+v", v.Nodes)
	}
	c.Presence(later, leftOf("a", 0))
	wantVerdict(t, c, later, false, Complete, true)
	c.Presence(later, memberOf("b", StateServing))
	wantVerdict(t, c, later, false, Incomplete, false)
}

func TestANodeThatEndsBeforeItsLastReceiptIsNeverComplete(t *testing.T) {
	crashed := leftOf("b", 0)
	crashed.Crashed = true
	unsettled := leftOf("b", 0)
	unsettled.Unsettled = 1
	for what, tt := range map[string]struct {
		receipts []Receipt
		left     Presence
		want     Verdict
		status   string
	}{
		"nothing but sessions":      {nil, leftOf("b", 1), Incomplete, StatusSilent},
		"a fact without a position": {nil, unsettled, Incomplete, StatusSilent},
		"sessions since the crash":  {nil, crashed, Incomplete, StatusSilent},
		"cut":                       {[]Receipt{stageOf("b", StageCut, 0)}, leftOf("b", 0), Incomplete, StatusCut},
		"closed":                    {[]Receipt{stageOf("b", StageClosed, 0)}, leftOf("b", 0), CompleteUnverified, StatusClosed},
	} {
		c := coordinator(memberOf("a", StateServing), memberOf("b", StateServing))
		c.Receipt(t0, stageOf("a", StageVerified, 0))
		for _, r := range tt.receipts {
			c.Receipt(t0, r)
		}
		c.Presence(t0, tt.left)
		if v, certain := c.Verdict(t0, false); v.Verdict != tt.want || certain {
			t.Errorf("%s: at once %+v, certain %v", what, v, certain)
		}
		v, certain := c.Verdict(t0.Add(verdictSlack), false)
		if v.Verdict != tt.want || !certain || len(v.Nodes) != 2 || v.Nodes[1].Status != tt.status || v.Nodes[1].Why == "" {
			t.Errorf("%s: %+v, certain %v", what, v, certain)
		}
		// A receipt that was on its way settles it after all.
		c.Receipt(t0, stageOf("b", StageVerified, 0))
		v = wantVerdict(t, c, t0, false, Complete, true)
		if v.Nodes[1].Why != "" {
			t.Errorf("%s: %+v", what, v.Nodes)
		}
	}
}

func TestACrashedNodeThatHadAppliedTheFactWithoutSessionsDoesNotCount(t *testing.T) {
	p := leftOf("b", 0)
	p.Crashed, p.Applied = true, 7
	c := coordinator(memberOf("a", StateServing), memberOf("b", StateServing))
	c.Receipt(t0, stageOf("a", StageVerified, 0))
	c.Presence(t0, p)
	wantVerdict(t, c, t0.Add(verdictSlack), false, Complete, true)
}

func TestANodeThatLeftCountsOnlyIfItWasThereWhenTheFactWasStored(t *testing.T) {
	before, after := leftOf("b", 3), leftOf("b", 3)
	before.Seq, after.Seq = 6, 8
	c := coordinator(memberOf("a", StateServing), before)
	c.Receipt(t0, stageOf("a", StageVerified, 0))
	wantVerdict(t, c, t0, false, Complete, true)
	c = coordinator(memberOf("a", StateServing), after)
	c.Receipt(t0, stageOf("a", StageVerified, 0))
	wantVerdict(t, c, t0.Add(verdictSlack), false, Incomplete, true)
}

func goneMember(onStale string) Presence {
	gone := memberOf("g", StateServing)
	gone.Heard, gone.OnStale = t0.Add(-201*time.Second), onStale
	return gone
}

func TestAGoneNodeThatFencesItselfIsListedAndNotWaitedForUntilItIsHeard(t *testing.T) {
	c := coordinator(memberOf("a", StateServing), goneMember("freeze"))
	c.Receipt(t0, stageOf("a", StageVerified, 0))
	v := wantVerdict(t, c, t0, false, Complete, true)
	if len(v.Nodes) != 2 || v.Nodes[1].Status != StatusGone || v.Nodes[1].Why != "" {
		t.Fatalf("%+v", v.Nodes)
	}
	wantLine(t, c.Presence(t0, memberOf("g", StateServing)), "g", StatusSilent)
	wantVerdict(t, c, t0, false, Incomplete, false)
}

func TestAGoneNodeThatServesOnIsNotWaitedForAndNeverComplete(t *testing.T) {
	for _, onStale := range []string{"serve", "", "later"} {
		c := coordinator(memberOf("a", StateServing), goneMember(onStale))
		wantVerdict(t, c, t0, false, Incomplete, false)
		c.Receipt(t0, stageOf("a", StageVerified, 0))
		v := wantVerdict(t, c, t0, false, Incomplete, true)
		if len(v.Nodes) != 2 || v.Nodes[1].Status != StatusGone || v.Nodes[1].Why == "" {
			t.Fatalf("%+v", v.Nodes)
		}
		c.Receipt(t0, Receipt{Revocation: "R", Seq: 7, Node: "g", Boot: "b", Stage: StageVerified})
		wantVerdict(t, c, t0, false, Complete, true)
	}
}

func TestAFinalReceiptOfAClosedNodeIsItsLastWord(t *testing.T) {
	c := coordinator(memberOf("a", StateServing))
	c.Receipt(t0, stageOf("a", StageClosed, 0))
	wantVerdict(t, c, t0, false, CompleteUnverified, false)
	c.Receipt(t0, stageOf("a", StageClosed, 2))
	v := wantVerdict(t, c, t0, false, CompleteUnverified, true)
	if v.Nodes[0].Status != StatusClosed {
		t.Fatalf("%+v", v.Nodes)
	}
	if lines := c.Receipt(t0, stageOf("a", StageClosed, 0)); lines != nil {
		t.Fatalf("an earlier receipt changed %+v", lines)
	}
	wantVerdict(t, c, t0, false, CompleteUnverified, true)
	// What is not closed is not done, whatever it says of backends.
	c = coordinator(memberOf("a", StateServing))
	c.Receipt(t0, stageOf("a", StageCut, 2))
	wantVerdict(t, c, t0, true, Incomplete, true)
}

func TestANewerFactsReceiptDoesNotHideTheNodesOwn(t *testing.T) {
	newer := stageOf("a", StageVerified, 0)
	newer.Revocation, newer.Seq = "other", 9
	for what, first := range map[string]Receipt{"pending": stageOf("a", StageCut, 0), "given up": stageOf("a", StageClosed, 1)} {
		c := coordinator(memberOf("a", StateServing))
		c.Covers(VerbRevoke, alice)
		c.Receipt(t0, first)
		c.Receipt(t0, newer)
		if v, _ := c.Verdict(t0, false); v.Verdict == Complete {
			t.Errorf("%s: %+v", what, v)
		}
		c = coordinator(memberOf("a", StateServing))
		c.Covers(VerbRevoke, alice)
		c.Receipt(t0, newer)
		c.Receipt(t0, first)
		if v, _ := c.Verdict(t0, false); v.Verdict == Complete {
			t.Errorf("%s, behind the newer one: %+v", what, v)
		}
	}
}

func TestWithoutALiveNodeNothingIsProven(t *testing.T) {
	gone := memberOf("g", StateServing)
	gone.Heard = t0.Add(-time.Hour)
	for _, c := range []*Coordinator{coordinator(), coordinator(gone), coordinator(memberOf("l", StateLeft))} {
		wantVerdict(t, c, t0, false, Incomplete, true)
	}
}

func TestABootUnknownAtTheTimeDoesNotCountUnlessItAnswers(t *testing.T) {
	c := coordinator(memberOf("a", StateServing))
	c.Receipt(t0, stageOf("a", StageVerified, 0))
	if lines := c.Presence(t0, memberOf("late", StateServing)); lines != nil {
		t.Fatalf("%+v", lines)
	}
	wantVerdict(t, c, t0, false, Complete, true)
	wantLine(t, c.Receipt(t0, stageOf("late", StageCut, 0)), "late", StatusCut)
	wantVerdict(t, c, t0, false, Incomplete, false)
}

func TestAStartingNodeThatHasReplayedTheFactOwesNoReceipt(t *testing.T) {
	c := coordinator(memberOf("s", StateStarting))
	p := memberOf("s", StateStarting)
	p.Applied = 6
	c.Presence(t0, p)
	wantVerdict(t, c, t0, false, Incomplete, false)
	p.Applied = 7
	wantLine(t, c.Presence(t0, p), "s", StatusVerified)
	wantVerdict(t, c, t0, false, Complete, true)

	c = coordinator(memberOf("a", StateServing))
	p = memberOf("a", StateServing)
	p.Applied = 99
	c.Presence(t0, p)
	wantVerdict(t, c, t0, false, Incomplete, false)
}

// A node's first heartbeat that says it serves came after its listeners had opened: a session could begin and be cut in
// between, and the verdict was complete before its backend was seen gone.
func TestAStartingNodeThatServesBeforeItShowsTheFactOwesAReceipt(t *testing.T) {
	for what, next := range map[string]func(*Presence){
		"serves":                 func(p *Presence) { p.State = StateServing },
		"serves, then starts":    func(p *Presence) { p.State = StateServing; p.Applied = 6 },
		"has a session, somehow": func(p *Presence) { p.Sessions = 1 },
	} {
		c := coordinator(memberOf("s", StateStarting))
		p := memberOf("s", StateStarting)
		p.Applied = 7
		next(&p)
		c.Presence(t0, p)
		if what == "serves, then starts" {
			p.State, p.Applied = StateStarting, 7
			c.Presence(t0, p)
		}
		wantVerdict(t, c, t0, false, Incomplete, false)
		c.Receipt(t0, stageOf("s", StageVerified, 0))
		wantVerdict(t, c, t0, false, Complete, true)
	}
}

func TestANewerFactsReceiptStandsForOneThatWasNeverSeen(t *testing.T) {
	for what, change := range map[string]func(*Receipt){
		"superseded":      func(r *Receipt) { r.Seq, r.SupersededBy = 0, 9 },
		"id used before":  func(r *Receipt) { r.Revocation = "R-7" },
		"same id again":   func(r *Receipt) { r.Seq = 9 },
		"newer, same way": func(r *Receipt) { r.Revocation, r.Seq = "other", 9 },
	} {
		c := coordinator(memberOf("a", StateServing))
		c.Covers(VerbRevoke, alice)
		r := stageOf("a", StageVerified, 0)
		change(&r)
		if c.Receipt(t0, r) == nil {
			t.Errorf("%s: not taken", what)
		}
	}
	for what, change := range map[string]func(*Receipt){
		"older under the id":  func(r *Receipt) { r.Seq = 6 },
		"older superseded":    func(r *Receipt) { r.Seq, r.SupersededBy = 0, 6 },
		"another revocation":  func(r *Receipt) { r.Revocation = "other" },
		"newer, another verb": func(r *Receipt) { r.Revocation, r.Seq, r.Verb = "other", 9, "kill" },
		"newer, other scope":  func(r *Receipt) { r.Revocation, r.Seq, r.Scope = "other", 9, "principal.bob" },
		"a page":              func(r *Receipt) { r.Page = 1 },
		"no stage":            func(r *Receipt) { r.Stage = "great" },
	} {
		c := coordinator(memberOf("a", StateServing))
		c.Covers(VerbRevoke, alice)
		r := stageOf("a", StageVerified, 0)
		change(&r)
		if lines := c.Receipt(t0, r); lines != nil {
			t.Errorf("%s: taken: %+v", what, lines)
		}
		wantVerdict(t, c, t0, false, Incomplete, false)
	}
}

func TestExitCodes(t *testing.T) {
	for v, want := range map[Verdict]int{Complete: 0, CompleteFenced: 3, CompleteUnverified: 3, Incomplete: 4, "": 4} {
		if got := v.ExitCode(); got != want {
			t.Errorf("%q exits %d, want %d", v, got, want)
		}
	}
}
