package revoke

import (
	"fmt"
	"strings"
	"testing"
	"time"
)

const (
	aliceKill      = "pgedge.kill.principal.alice"
	aliceSuspend   = "pgedge.suspend.principal.alice"
	aliceReinstate = "pgedge.reinstate.principal.alice"
)

// rig drives one node by hand and keeps the commands of the last event.
type rig struct {
	t   *testing.T
	n   *Node
	now time.Time
	seq uint64
	out []Command
	// stored is when the journal took a message, which does not change when it is delivered again.
	stored map[string]time.Time
}

func newRig(t *testing.T) *rig {
	t.Helper()
	r := &rig{t: t, n: NewNode(NodeConfig{ID: "edge-a", Boot: "b1"}), now: t0}
	r.handle(JournalReset{Stream: "s1"})
	r.handle(JournalEmpty{})
	if len(r.out) != 1 || r.out[0] != (ReadyCommand{}) || !r.n.Ready() {
		t.Fatalf("an empty journal gave %+v", r.out)
	}
	return r
}

func (r *rig) handle(ev Event) {
	r.t.Helper()
	r.out = r.n.Handle(r.now, instantAt(r.now), ev)
}

func (r *rig) fast(subject, msgID, payload string) {
	r.t.Helper()
	r.handle(FastMessage{subject, msgID, []byte(payload)})
}

func (r *rig) journal(subject, msgID, payload string) uint64 {
	r.t.Helper()
	r.seq++
	r.journalAt(r.seq, 0, subject, msgID, payload)
	return r.seq
}

func (r *rig) journalAt(seq, pending uint64, subject, msgID, payload string) {
	r.t.Helper()
	if r.stored == nil {
		r.stored = make(map[string]time.Time)
	}
	key := fmt.Sprint(seq, subject, payload)
	if r.stored[key].IsZero() {
		r.stored[key] = r.now
	}
	r.handle(JournalMessage{subject, msgID, []byte(payload), seq, r.stored[key], pending})
}

// tick lets time pass, through every tick that the node asks for, and returns what it wanted done.
func (r *rig) tick(d time.Duration) []Command {
	r.t.Helper()
	var all []Command
	for end := r.now.Add(d); ; {
		next := r.n.NextTick()
		if next.IsZero() || next.After(end) {
			r.now = end
			return all
		}
		if next.Before(r.now) {
			r.t.Fatalf("a tick in the past: %s at %s", next, r.now)
		}
		r.now = next
		r.handle(Tick{})
		all = append(all, r.out...)
	}
}

func cuts(cmds []Command) (out []Order) {
	for _, c := range cmds {
		if c, ok := c.(CutCommand); ok {
			out = append(out, c.Order)
		}
	}
	return out
}

func stores(cmds []Command) (out []StoreCommand) {
	for _, c := range cmds {
		if c, ok := c.(StoreCommand); ok {
			out = append(out, c)
		}
	}
	return out
}

func rejects(cmds []Command) (out []RejectCommand) {
	for _, c := range cmds {
		if c, ok := c.(RejectCommand); ok {
			out = append(out, c)
		}
	}
	return out
}

func (r *rig) wantCuts(n int) []Order {
	r.t.Helper()
	got := cuts(r.out)
	if len(got) != n {
		r.t.Fatalf("%d cuts, want %d: %+v", len(got), n, r.out)
	}
	return got
}

func (r *rig) wantSettled() {
	r.t.Helper()
	if s := r.n.Stats(); s.Unsettled != 0 {
		r.t.Fatalf("%d facts are unsettled", s.Unsettled)
	}
	if left := r.n.Table().provisionalKeys(); len(left) != 0 {
		r.t.Fatalf("provisional facts are left: %q", left)
	}
	if r.n.flying != 0 {
		r.t.Fatalf("%d stores in flight", r.n.flying)
	}
}

func (r *rig) wantDenied(want bool) {
	r.t.Helper()
	if d, ok := r.n.Table().Check(asID, r.n.Table().Position(), r.now); ok != want {
		r.t.Fatalf("alice denied: %v (%+v)", ok, d)
	}
}

func TestAFactCutsBeforeItHasASeqAndIsSettledByTheJournal(t *testing.T) {
	r := newRig(t)
	msgID := aliceRevoke + "|01J"
	r.fast(aliceRevoke, msgID, `{"reason":"r"}`)
	first := r.wantCuts(1)[0]
	if first.Fact.Seq != 0 || !first.Fast || first.Fact.ID != "01J" || first.ReceivedAt != r.now {
		t.Fatalf("%+v", first)
	}
	r.wantDenied(true)
	r.fast(aliceRevoke, msgID, `{"reason":"r"}`) // the publisher tries again
	r.wantCuts(0)
	received := r.now
	r.tick(100 * time.Millisecond)
	seq := r.journal(aliceRevoke, msgID, `{"reason":"r"}`)
	second := r.wantCuts(1)[0]
	if second.Key != first.Key || second.Fact.Seq != seq || !second.Fast || second.Fact.ID != "01J" || second.ReceivedAt != received {
		t.Fatalf("%+v", second)
	}
	r.wantSettled()
	r.wantDenied(true)
	if all := r.tick(time.Minute); len(all) != 0 {
		t.Fatalf("%+v", all)
	}
	if s := r.n.Stats(); s.Facts[FactCount{VerbRevoke, ViaFast}] != 1 || s.Facts[FactCount{VerbRevoke, ViaJournal}] != 0 {
		t.Fatalf("%+v", s)
	}
}

func TestTheFastCopyOfWhatTheJournalDeliveredIsIgnored(t *testing.T) {
	for _, msgID := range []string{aliceKill + "|01J", ""} {
		r := newRig(t)
		seq := r.journal(aliceKill, msgID, "")
		o := r.wantCuts(1)[0]
		if o.Fast || o.Fact.Seq != seq {
			t.Fatalf("%+v", o)
		}
		if msgID == "" && o.Fact.ID != "seq-1" {
			t.Fatalf("id %q", o.Fact.ID)
		}
		r.fast(aliceKill, msgID, "")
		r.wantCuts(0)
		r.wantSettled()
	}
}

func TestBareMessagesAreMatchedAsAMultiset(t *testing.T) {
	r := newRig(t)
	r.fast(aliceKill, "", "")
	r.fast(aliceKill, "", "")
	r.fast(aliceKill, "", `{"reason":"other"}`)
	r.journal(aliceKill, "", "")
	if got := r.wantCuts(1)[0]; got.Fact.ID != "seq-1" || !got.Fast {
		t.Fatalf("%+v", got)
	}
	r.journal(aliceKill, "", `{"reason":"other"}`)
	if got := r.wantCuts(1)[0]; got.Fact.Reason != "other" || !got.Fast {
		t.Fatalf("%+v", got)
	}
	r.journal(aliceKill, "", "")
	r.journal(aliceKill, "", "") // this one was faster than its copy
	r.wantSettled()
	r.fast(aliceKill, "", "")
	r.wantCuts(0)
	r.fast(aliceKill, "", "")
	r.wantCuts(1)
}

func TestACreditExpires(t *testing.T) {
	r := newRig(t)
	r.journal(aliceKill, "", "")
	r.tick(3 * time.Second)
	r.fast(aliceKill, "", "")
	r.wantCuts(1)
}

func TestReplayedHistoryHidesNoFastMessage(t *testing.T) {
	r := &rig{t: t, n: NewNode(NodeConfig{}), now: t0}
	r.handle(JournalReset{})
	r.journalAt(7, 1, aliceKill, "", "")
	r.journalAt(8, 0, "pgedge.other", "", "")
	r.fast(aliceKill, "", "")
	r.wantCuts(1)
}

func TestAFactThatTheJournalDoesNotHaveIsStored(t *testing.T) {
	for _, msgID := range []string{aliceRevoke + "|01J", ""} {
		r := newRig(t)
		r.journal(aliceRevoke, "", "{}")
		r.journal(aliceReinstate, "", `{"upto":1}`)
		r.fast(aliceRevoke, msgID, "x")
		if got := stores(r.tick(time.Second - 1)); len(got) != 0 {
			t.Fatalf("stored too early: %+v", got)
		}
		got := stores(r.tick(1))
		if len(got) != 1 || got[0].Subject != aliceRevoke || string(got[0].Payload) != "x" || got[0].ExpectLastSubjectSeq != 1 {
			t.Fatalf("%+v", got)
		}
		if msgID != "" && got[0].MsgID != msgID {
			t.Fatalf("stored under %q", got[0].MsgID)
		}
		// Failures are tried again, for ever.
		for range 20 {
			r.handle(StoreResult{Key: got[0].Key, Outcome: StoreFailed})
			r.wantDenied(true)
			if got = stores(r.tick(250 * time.Millisecond)); len(got) != 1 {
				t.Fatalf("%+v", got)
			}
		}
		r.handle(StoreResult{Key: got[0].Key, Outcome: StoreOK, Seq: 3})
		r.wantDenied(true)
		if s := r.n.Stats(); s.Unsettled != 1 {
			t.Fatal("an acknowledgement settled a fact")
		}
		// The store is a publish too, so it also comes by the fast path.
		r.fast(aliceRevoke, got[0].MsgID, "x")
		r.wantCuts(0)
		r.journal(aliceRevoke, got[0].MsgID, "x")
		o := r.wantCuts(1)[0]
		if o.Fact.Seq != 3 || !o.Fast || msgID == "" && o.Fact.ID != "seq-3" {
			t.Fatalf("%+v", o)
		}
		r.fast(aliceRevoke, got[0].MsgID, "x")
		r.wantCuts(0)
		r.wantSettled()
		r.wantDenied(true)
		if all := r.tick(time.Minute); len(all) != 0 {
			t.Fatalf("%+v", all)
		}
	}
}

// Two nodes store the same bare fact: the store takes one of them and all settle on it.
func TestAnotherNodesCopySettlesABareFact(t *testing.T) {
	r := newRig(t)
	r.fast(aliceRevoke, "", "")
	got := stores(r.tick(time.Second))[0]
	r.handle(StoreResult{Key: got.Key, Outcome: StoreWrongLastSequence})
	r.wantDenied(true)
	r.journal(aliceRevoke, got.MsgID, "")
	if o := r.wantCuts(1)[0]; o.Fact.Seq != 1 || o.SupersededBy != 0 || o.Fact.ID != "seq-1" {
		t.Fatalf("%+v", o)
	}
	r.wantSettled()
}

func TestABeatenFactIsSupersededByTheNewerMessage(t *testing.T) {
	for _, journalFirst := range []bool{false, true} {
		r := newRig(t)
		r.fast(aliceRevoke, aliceRevoke+"|A", "")
		got := stores(r.tick(time.Second))[0]
		deliver := func() []Order {
			r.journal(aliceRevoke, aliceRevoke+"|B", "")
			return cuts(r.out)
		}
		var orders []Order
		if journalFirst {
			orders = deliver()
		}
		r.handle(StoreResult{Key: got.Key, Outcome: StoreWrongLastSequence})
		orders = append(orders, cuts(r.out)...)
		if !journalFirst {
			r.wantDenied(true)
			if r.n.Stats().Unsettled != 1 {
				t.Fatal("settled before the newer message has come")
			}
			orders = append(orders, deliver()...)
		}
		if len(orders) != 2 || orders[0].Fact.ID != "B" || orders[1].Fact.ID != "A" || orders[1].SupersededBy != 1 || orders[1].Fact.Seq != 0 {
			t.Fatalf("%+v", orders)
		}
		r.wantSettled()
		r.wantDenied(true)
	}
}

// Two connectors revoke the same user and the journal keeps the second only.
func TestAFactThatTheJournalReplacedIsSupersededAndNotStored(t *testing.T) {
	for _, ids := range [][2]string{{aliceRevoke + "|A", aliceRevoke + "|B"}, {"", ""}} {
		r := newRig(t)
		r.journal("pgedge.other", "", "")
		r.fast(aliceRevoke, ids[0], "one")
		r.fast(aliceRevoke, ids[1], "two")
		r.seq++ // seq 2 is gone
		r.journal(aliceRevoke, ids[1], "two")
		got := r.wantCuts(2)
		if got[0].Fact.Reason != "two" || got[0].Fact.Seq != 3 || got[1].Fact.Reason != "one" || got[1].SupersededBy != 3 {
			t.Fatalf("%+v", got)
		}
		r.wantSettled()
		if all := r.tick(time.Minute); len(all) != 0 {
			t.Fatalf("%+v", all)
		}
	}
}

func TestAFactIsNotTakenForReplacedWhenNothingIsMissing(t *testing.T) {
	r := newRig(t)
	r.journal("pgedge.other", "", "")
	r.fast(aliceRevoke, aliceRevoke+"|A", "one")
	r.journal(aliceRevoke, aliceRevoke+"|B", "two")
	if s := r.n.Stats(); s.Unsettled != 1 {
		t.Fatal("a fact that is not in the journal was given up")
	}
	if got := stores(r.tick(time.Second)); len(got) != 1 || got[0].ExpectLastSubjectSeq != 2 {
		t.Fatalf("%+v", got)
	}
}

// A lagging node meets, in one burst, a newer revoke and the reinstate of it. The fact that came by the fast path may
// have been published after both, so it must not be given up.
func TestAReinstateInTheSameBurstDoesNotUndoAPendingRevoke(t *testing.T) {
	r := newRig(t)
	r.journal("pgedge.other", "", "")
	r.fast(aliceRevoke, aliceRevoke+"|A", "")
	r.journalAt(5, 1, aliceRevoke, aliceRevoke+"|B", "")
	r.journalAt(6, 0, aliceReinstate, "", `{"upto":5}`)
	r.wantDenied(true)
	got := stores(r.tick(time.Second))
	if len(got) != 1 || got[0].ExpectLastSubjectSeq != 5 {
		t.Fatalf("%+v", got)
	}
	// The stream remembers the id: it had the fact all along, before what was reinstated.
	r.handle(StoreResult{Key: got[0].Key, Outcome: StoreOK, Seq: 4})
	if o := r.wantCuts(1)[0]; o.SupersededBy != 5 {
		t.Fatalf("%+v", o)
	}
	r.wantSettled()
	r.wantDenied(false)
}

func TestAnAcknowledgementAloneDropsNothing(t *testing.T) {
	r := newRig(t)
	r.journal(aliceRevoke, "", "{}")
	r.journal(aliceReinstate, "", `{"upto":1}`)
	r.fast(aliceRevoke, aliceRevoke+"|A", "")
	got := stores(r.tick(time.Second))[0]
	r.handle(StoreResult{Key: got.Key, Outcome: StoreOK, Seq: 1}) // forged
	r.wantDenied(true)
	if again := stores(r.tick(10 * time.Second)); len(again) != 1 {
		t.Fatalf("%+v", again)
	}
	r.wantDenied(true)
}

func TestAStoreWithoutAnAnswerIsTriedAgain(t *testing.T) {
	r := newRig(t)
	r.fast(aliceRevoke, "", "")
	if got := stores(r.tick(11 * time.Second)); len(got) != 2 {
		t.Fatalf("%d stores", len(got))
	}
	if r.n.flying != 1 {
		t.Fatalf("%d in flight", r.n.flying)
	}
}

func TestFactsOfOneSubjectAreStoredInTheOrderTheyCame(t *testing.T) {
	r := newRig(t)
	r.fast(aliceSuspend, "", `{"until":"2031-01-01T00:00:00Z"}`)
	r.fast(aliceSuspend, "", `{"until":"2032-01-01T00:00:00Z"}`)
	got := stores(r.tick(1100 * time.Millisecond))
	if len(got) != 1 || !strings.Contains(string(got[0].Payload), "2031") {
		t.Fatalf("%+v", got)
	}
	r.journal(aliceSuspend, got[0].MsgID, string(got[0].Payload))
	got = stores(r.tick(time.Second))
	if len(got) != 1 || !strings.Contains(string(got[0].Payload), "2032") || got[0].ExpectLastSubjectSeq != 1 {
		t.Fatalf("%+v", got)
	}
	r.journal(aliceSuspend, got[0].MsgID, string(got[0].Payload))
	r.wantSettled()
}

func TestAProvisionalKillHoldsLoginsForASecondAndIsStoredAllTheSame(t *testing.T) {
	r := newRig(t)
	r.fast(aliceKill, "", "")
	r.wantDenied(true)
	got := stores(r.tick(time.Second))
	r.wantDenied(false)
	if len(got) != 1 {
		t.Fatalf("%+v", got)
	}
	r.journal(aliceKill, got[0].MsgID, "")
	r.wantCuts(1)
	r.wantSettled()
}

func TestAProvisionalSuspendEndsAtItsInstant(t *testing.T) {
	r := newRig(t)
	r.fast(aliceSuspend, "", `{"until":"2030-01-01T12:00:30Z"}`)
	got := stores(r.tick(29 * time.Second))
	r.wantDenied(true)
	r.tick(time.Second)
	r.wantDenied(false)
	if len(got) == 0 || r.n.Stats().Unsettled != 1 {
		t.Fatal("an expired suspend is no longer stored")
	}
}

// instantAt is a moment on clocks that agree with the test's.
func instantAt(now time.Time) Instant { return Instant{Boot: now.Sub(t0) + time.Hour, Wall: now} }
