package revoke

import (
	"testing"
	"time"
)

// The stream acknowledged a node's store with the seq it had given the publisher's, and then skipped that seq: the
// fact was stored before the reinstate that follows.
func TestAnAcknowledgedFactThatTheJournalSkippedIsSuperseded(t *testing.T) {
	r := newRig(t)
	r.fast(aliceRevoke, aliceRevoke+"|A", "")
	got := stores(r.tick(time.Second))[0]
	r.handle(StoreResult{Key: got.Key, Outcome: StoreOK, Seq: 1})
	r.wantDenied(true)
	r.journalAt(2, 1, aliceRevoke, aliceRevoke+"|B", "")
	if o := r.wantCuts(2)[1]; o.SupersededBy != 2 || o.Fact.ID != "A" {
		t.Fatalf("%+v", o)
	}
	r.journalAt(3, 0, aliceReinstate, "", `{"upto":2}`)
	r.wantSettled()
	r.wantDenied(false)
	if all := r.tick(time.Minute); len(all) != 0 {
		t.Fatalf("%+v", all)
	}
}

// A node reads a suspend and, still in the same replay, the garbage that has replaced it meanwhile.
func TestASuspendThatGarbageReplacedDuringAReplayIsStoredAgain(t *testing.T) {
	r := &rig{t: t, n: NewNode(NodeConfig{}), now: t0}
	r.handle(JournalReset{})
	r.journalAt(1, 1, aliceSuspend, "", `{"until":"2030-01-01T13:00:00Z"}`)
	r.journalAt(2, 0, aliceSuspend, "", "garbage")
	r.wantDenied(true)
	if got := stores(r.tick(time.Second)); len(got) != 1 || got[0].ExpectLastSubjectSeq != 2 {
		t.Fatalf("%+v", got)
	}
}

// Bare facts that were given up may still be stored by another node for some time; its attempts are no news.
func TestAnotherNodesAttemptAtAFactThatWasGivenUpIsIgnored(t *testing.T) {
	r := newRig(t)
	r.fast(aliceRevoke, "", "one")
	r.seq++
	r.journal(aliceRevoke, aliceRevoke+"|B", "two")
	r.wantCuts(2)
	f, err := DecodeFact(aliceRevoke, "", []byte("one"))
	if err != nil {
		t.Fatal(err)
	}
	r.fast(aliceRevoke, storeMsgID(aliceRevoke, bareContent(f, []byte("one")), 0), "one")
	r.wantCuts(0)
	r.wantSettled()
}

func TestAnOversizedBareFactIsStoredWithinTheLimitAndRecognised(t *testing.T) {
	r := newRig(t)
	big := make([]byte, 3*MaxPayloadBytes)
	r.fast(aliceRevoke, "", string(big))
	got := stores(r.tick(time.Second))
	if len(got) != 1 || len(got[0].Payload) > MaxPayloadBytes {
		t.Fatalf("%d stores", len(got))
	}
	r.journal(aliceRevoke, got[0].MsgID, string(got[0].Payload))
	r.wantCuts(1)
	r.wantSettled()
}
