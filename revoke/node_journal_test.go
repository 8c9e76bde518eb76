package revoke

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"
)

func TestOneTicketForAKillAndARevokeLosesNeither(t *testing.T) {
	r := newRig(t)
	r.fast(aliceKill, aliceKill+"|01A", `{"id":"HR-1"}`)
	r.fast(aliceRevoke, aliceRevoke+"|01A", `{"id":"HR-1"}`)
	r.journal(aliceKill, aliceKill+"|01A", `{"id":"HR-1"}`)
	if o := r.wantCuts(1)[0]; o.Fact.ID != "HR-1" {
		t.Fatalf("%+v", o)
	}
	r.journal(aliceRevoke, aliceRevoke+"|01A", `{"id":"HR-1"}`)
	if o := r.wantCuts(1)[0]; o.Fact.ID != "HR-1-2" {
		t.Fatalf("the receipts of two facts replace each other: %+v", o)
	}
	r.wantSettled()
	r.wantDenied(true)
	long := strings.Repeat("x", 64)
	if id := SeqID(long, 1<<64-1); !ValidID(id) || !strings.HasSuffix(id, "-18446744073709551615") {
		t.Fatalf("%q", id)
	}
}

func TestARedeliveredHookKeepsTheFirstReceipt(t *testing.T) {
	r := newRig(t)
	r.journal(aliceRevoke, aliceRevoke+"|01A", `{"id":"hook-1"}`)
	r.journal(aliceRevoke, aliceRevoke+"|01B", `{"id":"hook-1"}`)
	if o := r.wantCuts(1)[0]; o.Fact.ID != "hook-1-2" {
		t.Fatalf("%+v", o)
	}
}

func TestOneAttemptStoredTwiceMakesTwoOrders(t *testing.T) {
	r := newRig(t)
	r.journal(aliceKill, aliceKill+"|A", "")
	first := r.wantCuts(1)[0]
	r.journal(aliceKill, aliceKill+"|A", "")
	if second := r.wantCuts(1)[0]; second.Key == first.Key || second.Fact.Seq != 2 {
		t.Fatalf("%+v", second)
	}
}

func TestRedeliveryCutsNothing(t *testing.T) {
	r := newRig(t)
	r.journal(aliceKill, "", "a")
	r.journal(aliceKill, "", "b")
	r.journalAt(2, 0, aliceKill, "", "b")
	r.wantCuts(0)
	r.journalAt(1, 0, aliceKill, "", "a")
	r.wantCuts(0)
	if r.n.Table().Applied() != 2 {
		t.Fatal("the position went back")
	}
}

func TestASeqThatGoesBackAsksForAReload(t *testing.T) {
	r := newRig(t)
	r.journalAt(100, 0, aliceRevoke, "", "")
	r.journalAt(3, 0, "pgedge.revoke.principal.bob", "", "")
	reloads := 0
	for _, c := range r.out {
		if _, ok := c.(ReloadCommand); ok {
			reloads++
		}
	}
	got := cuts(r.out)
	if reloads != 1 || len(got) != 2 || got[0].Fact.Seq != 0 || got[1].Fact.Seq != 3 {
		t.Fatalf("%+v", r.out)
	}
	r.wantDenied(true)
	r.journalAt(4, 0, aliceKill, "", "")
	for _, c := range r.out {
		if _, ok := c.(ReloadCommand); ok {
			t.Fatal("asked again at once")
		}
	}
	// The other journal knows nothing of alice: she stays out until somebody reinstates her there.
	r.handle(JournalReset{})
	r.journalAt(3, 1, "pgedge.revoke.principal.bob", "", "")
	r.journalAt(4, 0, aliceKill, "", "")
	r.wantDenied(true)
	if s := r.n.Stats(); s.Epoch != 2 || r.n.Table().Applied() != 4 {
		t.Fatalf("%+v", s)
	}
	if b := r.n.Table().Blocks(r.now); len(b) != 2 || b[0].Carried == b[1].Carried || r.n.Table().Newest(alice) != 1 {
		t.Fatalf("%+v", b)
	}
	// Sessions have positions of the old journal, so the seq alone finds none of them: the epoch does.
	r.journalAt(5, 0, aliceKill, "", "x")
	if got := r.wantCuts(1); got[0].Fact.Seq != 5 || got[0].Fact.Epoch != 2 || !(Position{1, 100}).Before(got[0].Fact.Position()) {
		t.Fatalf("%+v", got)
	}
	r.journalAt(6, 0, aliceReinstate, "", `{"upto":1}`)
	r.wantDenied(false)
}

func TestReplayServesNobodyAndCutsNothing(t *testing.T) {
	r := &rig{t: t, n: NewNode(NodeConfig{}), now: t0}
	r.handle(JournalReset{})
	r.journalAt(5, 2, aliceRevoke, "", "")
	r.journalAt(8, 1, "pgedge.kill.all", "", "")
	if len(r.out) != 0 || r.n.Ready() {
		t.Fatalf("%+v", r.out)
	}
	// A new consumer in the middle of it.
	r.handle(JournalReset{})
	r.journalAt(5, 1, aliceRevoke, "", "")
	r.journalAt(8, 0, "pgedge.kill.all", "", "")
	if len(r.out) != 1 || r.out[0] != (ReadyCommand{}) || !r.n.Ready() || r.n.Table().Applied() != 8 {
		t.Fatalf("%+v", r.out)
	}
	r.wantDenied(true)
	r.journalAt(9, 0, "pgedge.kill.all", "", "x")
	r.wantCuts(1)
}

func TestFactsThatComeWhileReplayingAreAnsweredOnceReady(t *testing.T) {
	r := &rig{t: t, n: NewNode(NodeConfig{}), now: t0}
	r.fast(aliceKill, aliceKill+"|A", "")
	r.fast(aliceRevoke, aliceRevoke+"|B", "")
	r.fast("pgedge.kill.principal.bob", "", "")
	r.wantCuts(0)
	if !r.n.NextTick().IsZero() {
		t.Fatal("wants to store what the journal may hold")
	}
	r.handle(JournalReset{})
	r.journalAt(3, 1, aliceRevoke, aliceRevoke+"|B", "")
	r.wantCuts(0)
	r.journalAt(4, 0, "pgedge.kill.principal.bob", "", "")
	got := cuts(r.out)
	if r.out[0] != (ReadyCommand{}) || len(got) != 4 {
		t.Fatalf("%+v", r.out)
	}
	settled := map[string]uint64{}
	for _, o := range got {
		settled[o.Fact.Subject()] = max(settled[o.Fact.Subject()], o.Fact.Seq)
	}
	if settled[aliceRevoke] != 3 || settled["pgedge.kill.principal.bob"] != 4 || settled[aliceKill] != 0 {
		t.Fatalf("%v", settled)
	}
	if got := stores(r.tick(time.Second)); len(got) != 1 || got[0].Subject != aliceKill {
		t.Fatalf("%+v", got)
	}
}

func TestAReloadCutsWhatItLearnsAndKeepsBlockingUntilItIsComplete(t *testing.T) {
	r := newRig(t)
	r.journal(aliceRevoke, "", "")
	bob := NewIdentity("bob", "", "", "")
	r.journalAt(20, 0, "pgedge.other", "", "")
	r.handle(JournalReset{})
	r.wantDenied(true)
	r.journalAt(1, 3, aliceRevoke, "", "")
	r.wantCuts(0) // known
	// Missed before, and older than the position: sessions began after it without knowing.
	r.journalAt(9, 2, "pgedge.revoke.principal.bob", "", "")
	if got := r.wantCuts(2); got[0].Fact.Seq != 0 || got[1].Fact.Seq != 9 {
		t.Fatalf("%+v", got)
	}
	if _, denied := r.n.Table().Check(bob, Position{1, 20}, r.now); !denied {
		t.Fatal("what the reload has learned is not in force")
	}
	r.journalAt(21, 1, aliceReinstate, "", `{"upto":1}`)
	r.wantDenied(true)
	r.journalAt(22, 0, "pgedge.other", "", "")
	r.wantDenied(false)
	if _, denied := r.n.Table().Check(bob, Position{1, 22}, r.now); !denied {
		t.Fatal("bob is in")
	}
	r.wantSettled()
	if s := r.n.Stats(); s.Epoch != 1 || s.Resets != 2 {
		t.Fatalf("%+v", s)
	}
}

func TestABrokenOffReloadForgetsNothing(t *testing.T) {
	r := newRig(t)
	r.journalAt(20, 0, "pgedge.other", "", "")
	r.journalAt(21, 0, "pgedge.reinstate.principal.bob", "", `{"upto":20}`)
	r.handle(JournalReset{Stream: "s2"})
	r.journalAt(5, 2, "pgedge.revoke.principal.bob", "", "") // of another stream
	r.handle(JournalReset{Stream: "s2"})
	if _, denied := r.n.Table().Check(NewIdentity("bob", "", "", ""), Position{1, 21}, r.now); !denied {
		t.Fatal("bob is in")
	}
	r.journalAt(6, 0, "pgedge.other", "", "")
	if left := r.n.Table().provisionalKeys(); len(left) != 0 {
		t.Fatalf("%q", left)
	}
}

func TestASettlingReloadKnowsThePendingFact(t *testing.T) {
	r := newRig(t)
	r.journal(aliceRevoke, "", "")
	r.tick(time.Minute)
	r.fast(aliceRevoke, "", "")
	r.handle(JournalReset{})
	// The old message looks the same, and is not the new one.
	r.journalAt(1, 0, aliceRevoke, "", "")
	if r.n.Stats().Unsettled != 1 {
		t.Fatal("history settled a new fact")
	}
	r.handle(JournalReset{})
	r.journalAt(2, 0, aliceRevoke, "", "")
	r.wantCuts(1)
	r.wantSettled()
}

func TestGarbageIsRefusedOnceAndCounted(t *testing.T) {
	r := newRig(t)
	for _, subject := range []string{aliceReinstate, aliceSuspend, "pgedge.kill.nothing.x"} {
		r.fast(subject, "", "garbage")
		if len(r.out) != 0 {
			t.Fatalf("%+v", r.out)
		}
		seq := r.journal(subject, "", "garbage")
		got := rejects(r.out)
		if len(got) != 1 || got[0].Subject != subject || string(got[0].Payload) != "garbage" || got[0].Why == "" {
			t.Fatalf("%+v", r.out)
		}
		r.journalAt(seq, 0, subject, "", "garbage")
		if len(r.out) != 0 {
			t.Fatalf("%+v", r.out)
		}
	}
	r.journal("pgedge.node.a.b", "", "garbage")
	if got := rejects(r.out); len(got) != 1 || r.n.Stats().Rejected != 4 {
		t.Fatalf("%+v, %+v", r.out, r.n.Stats())
	}
	r.wantDenied(false)
	r.journal(aliceRevoke, "", "garbage")
	r.wantDenied(true)
	if r.n.Stats().Raw != 1 || len(rejects(r.out)) != 0 {
		t.Fatalf("%+v", r.n.Stats())
	}
	r.journal(aliceReinstate, "", "garbage")
	r.wantDenied(true)
}

func TestASuspendThatGarbageReplacedIsStoredAgain(t *testing.T) {
	r := newRig(t)
	r.journal(aliceSuspend, aliceSuspend+"|A", `{"id":"HR-1","until":"2030-01-01T13:00:00Z"}`)
	good, _ := r.n.Table().fact(VerbSuspend, alice)
	g := r.journal(aliceSuspend, "", "garbage")
	r.wantDenied(true)
	got := stores(r.tick(time.Second))
	if len(got) != 1 || got[0].Subject != aliceSuspend || got[0].ExpectLastSubjectSeq != g || string(got[0].Payload) != string(good.Payload()) {
		t.Fatalf("%+v", got)
	}
	for range 10 {
		r.handle(StoreResult{Key: got[0].Key, Outcome: StoreFailed})
		if got = stores(r.tick(250 * time.Millisecond)); len(got) != 1 {
			t.Fatal("gave up healing a suspend that is in force")
		}
	}
	// A reload in between does not forget what the journal has lost.
	r.handle(JournalReset{})
	r.journalAt(g, 0, aliceSuspend, "", "garbage")
	r.wantDenied(true)
	r.handle(StoreResult{Key: got[0].Key, Outcome: StoreOK})
	r.fast(aliceSuspend, got[0].MsgID, string(got[0].Payload))
	r.journal(aliceSuspend, got[0].MsgID, string(got[0].Payload))
	o := cuts(r.out)
	if len(o) != 1 || o[0].Fact.ID == "HR-1" {
		t.Fatalf("the copy replaces the receipt: %+v", o)
	}
	r.wantDenied(true)
	if all := r.tick(time.Minute); len(all) != 0 {
		t.Fatalf("%+v", all)
	}
	r.wantSettled()
	if len(r.n.heals) != 0 {
		t.Fatal("the heal goes on")
	}
	fresh := &rig{t: t, n: NewNode(NodeConfig{}), now: r.now}
	fresh.journalAt(r.seq, 0, aliceSuspend, got[0].MsgID, string(got[0].Payload))
	if fresh.n.Table().Hash() != r.n.Table().Hash() {
		t.Fatal("a node that starts later disagrees")
	}
}

func TestAnExpiredOrUndoneSuspendIsNotStoredAgain(t *testing.T) {
	r := newRig(t)
	r.journal(aliceSuspend, "", `{"until":"2030-01-01T12:00:01Z"}`)
	r.tick(2 * time.Second)
	r.journal(aliceSuspend, "", "garbage")
	r.journal("pgedge.suspend.role.app", "", `{"until":"2031-01-01T12:00:01Z"}`)
	r.journal("pgedge.reinstate.role.app", "", `{"upto":3}`)
	r.journal("pgedge.suspend.role.app", "", "garbage")
	if all := r.tick(time.Minute); len(all) != 0 {
		t.Fatalf("%+v", all)
	}
}

func TestHealingAReinstateEndsAfterAFewTries(t *testing.T) {
	r := newRig(t)
	r.journal(aliceRevoke, "", "")
	r.journal(aliceReinstate, "", `{"upto":1}`)
	g := r.journal(aliceReinstate, "", "garbage")
	r.wantDenied(false)
	tries := 0
	for {
		got := stores(r.tick(time.Second))
		if len(got) == 0 {
			break
		}
		tries++
		if got[0].Subject != aliceReinstate || got[0].ExpectLastSubjectSeq != g || tries > 100 {
			t.Fatalf("%+v", got)
		}
		r.handle(StoreResult{Key: got[0].Key, Outcome: StoreFailed})
	}
	if tries != reinstateHealTries {
		t.Fatalf("%d tries", tries)
	}
	r.wantSettled()
	r.wantDenied(false)
}

func TestReinstateIsAppliedFromTheJournalOnly(t *testing.T) {
	r := newRig(t)
	r.journal(aliceRevoke, "", "")
	r.fast(aliceReinstate, "x|A", `{"upto":1}`)
	r.wantDenied(true)
	r.journal(aliceReinstate, "x|A", `{"upto":1}`)
	if len(r.out) != 0 {
		t.Fatalf("%+v", r.out)
	}
	r.wantDenied(false)
}

func TestAReinstateThatUndoesLessThanTheOneBeforeCuts(t *testing.T) {
	r := newRig(t)
	r.journal(aliceRevoke, "", "")
	r.journal(aliceRevoke, "", "")
	r.journal(aliceReinstate, "", `{"upto":2}`)
	r.wantDenied(false)
	r.journal(aliceReinstate, "", `{"upto":1}`)
	got := r.wantCuts(2)
	if got[0].Fact.Seq != 0 || got[1].Fact.Seq != 2 || got[1].Fact.Verb != VerbRevoke || got[1].Fact.ID == "seq-2" {
		t.Fatalf("%+v", got)
	}
	r.wantDenied(true)
}

func TestAFloodOfFactsStillCutsAndStaysBounded(t *testing.T) {
	r := newRig(t)
	const flood = maxPendingPerSubject + 10
	for i := range flood {
		r.fast(aliceRevoke, "", fmt.Sprint(i))
		r.wantCuts(1)
	}
	if s := r.n.Stats(); s.Unsettled != maxPendingPerSubject || s.Overflow != 10 {
		t.Fatalf("%+v", s)
	}
	r = newRig(t)
	for i := range 400 {
		r.fast(fmt.Sprintf("pgedge.revoke.principal.u%d", i), "", "")
	}
	if got := stores(r.tick(1100 * time.Millisecond)); len(got) != maxFlying {
		t.Fatalf("%d stores in flight", len(got))
	}
}

func presencePayload(p Presence) string {
	b, err := json.Marshal(p)
	if err != nil {
		panic(err)
	}
	return string(b)
}

func TestHeartbeatsMakeMembers(t *testing.T) {
	r := &rig{t: t, n: NewNode(NodeConfig{}), now: t0}
	r.handle(JournalReset{})
	server := t0.Add(-50 * 24 * time.Hour) // the server's clock is far off
	deliver := func(seq, pending uint64, node string, stored time.Time, state string) {
		p := Presence{V: 1, Node: node, Boot: "b", LeaseMS: 1000, State: state}
		r.handle(JournalMessage{NodeSubject(node, "b"), "", []byte(presencePayload(p)), seq, stored, pending})
		if got, ok := r.out[0].(PresenceCommand); !ok || got.Presence.Node != node {
			t.Fatalf("%+v", r.out)
		}
	}
	deliver(1, 2, "dead", server.Add(-time.Minute), StateServing)
	deliver(2, 1, "left", server.Add(-time.Second), StateLeft)
	deliver(3, 0, "alive", server, StateServing)
	live := func() (out []string) {
		for _, p := range r.n.Members(r.now) {
			if p.Live(r.now) {
				out = append(out, p.Node)
			}
		}
		return out
	}
	if got := fmt.Sprint(live(), len(r.n.Members(r.now))); got != "[alive] 3" {
		t.Fatal(got)
	}
	r.now = r.now.Add(9 * time.Second)
	if len(live()) != 1 {
		t.Fatal("gone too early")
	}
	r.now = r.now.Add(2 * time.Second)
	if len(live()) != 0 {
		t.Fatal("not gone")
	}
	// A server whose clock has been set back makes nobody gone.
	deliver(4, 0, "alive", server.Add(-time.Hour), StateServing)
	if len(live()) != 1 {
		t.Fatal("a heartbeat just heard does not count")
	}
	r.now = r.now.Add(25 * time.Hour)
	if len(r.n.Members(r.now)) != 0 {
		t.Fatal("never forgotten")
	}
	if p := (Presence{LeaseMS: 1 << 60}); p.Lease() != MaxLease {
		t.Fatal(p.Lease())
	}
}

func TestAHeartbeatForAnotherNodeIsRefused(t *testing.T) {
	r := newRig(t)
	r.journal(NodeSubject("a", "b"), "", presencePayload(Presence{Node: "c", Boot: "b"}))
	if len(rejects(r.out)) != 1 || len(r.n.Members(r.now)) != 0 {
		t.Fatalf("%+v", r.out)
	}
}

func TestMembersAreBounded(t *testing.T) {
	ms := newMembers()
	for i := range maxMembers + 5 {
		ms.live(t0.Add(time.Duration(i)), Presence{Node: fmt.Sprint(i), Boot: "b", State: StateServing})
	}
	if len(ms.byKey) != maxMembers || ms.byKey["4.b"] != nil || ms.byKey["5.b"] == nil {
		t.Fatal(len(ms.byKey))
	}
}
