package revoke

import (
	"testing"
	"time"
)

func TestOrdersHeldByABrokenOffReplayAreStillGiven(t *testing.T) {
	r := &rig{t: t, n: NewNode(NodeConfig{}), now: t0}
	r.fast(aliceRevoke, aliceRevoke+"|A", "")
	r.handle(JournalReset{})
	r.journalAt(3, 1, aliceRevoke, aliceRevoke+"|A", "")
	r.handle(JournalReset{})
	r.journalAt(3, 0, aliceRevoke, aliceRevoke+"|A", "")
	if o := r.wantCuts(1)[0]; o.Fact.Seq != 3 || o.Fact.ID != "A" || !o.Fast {
		t.Fatalf("%+v", o)
	}
	r.wantSettled()
}

// Another stream can hold another fact at the place of a known one.
func TestAReloadLearnsFactsByTheirContents(t *testing.T) {
	for _, seq := range []uint64{3, 5} {
		r := newRig(t)
		r.journalAt(5, 0, aliceKill, "", "a")
		r.journalAt(50, 0, "pgedge.other", "", "")
		r.handle(JournalReset{})
		r.journalAt(seq, 1, aliceKill, "", "b")
		if got := r.wantCuts(2); got[0].Fact.Seq != 0 || got[1].Fact.Seq != seq {
			t.Fatalf("%+v", got)
		}
	}
}

func TestAReloadForgetsWhatTheOldConsumerPromised(t *testing.T) {
	for _, outcome := range []StoreOutcome{StoreOK, StoreWrongLastSequence} {
		r := newRig(t)
		r.fast(aliceRevoke, "", "")
		got := stores(r.tick(time.Second))[0]
		r.handle(StoreResult{Key: got.Key, Outcome: outcome})
		r.handle(JournalReset{})
		r.handle(JournalEmpty{})
		r.wantDenied(true)
		if again := stores(r.tick(time.Second)); len(again) != 1 {
			t.Fatalf("%d stores", len(again))
		}
	}
}
