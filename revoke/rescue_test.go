package revoke

import (
	"fmt"
	"testing"
	"time"
)

// otherStream puts a stream with one heartbeat in it in the place of the present one.
func (r *beatRig) otherStream(name string, seq uint64) {
	r.t.Helper()
	r.event(JournalReset{Stream: name})
	r.deliver(seq, 0, "pgedge.other", "")
}

func TestBlocksOfALostJournalAreStoredIntoTheNewOne(t *testing.T) {
	r := newBeatRig(t, NodeConfig{})
	until := t0.Add(time.Hour).Format(time.RFC3339)
	r.deliver(30, 0, aliceRevoke, `{"id":"HR-1"}`)
	r.deliver(31, 0, "pgedge.suspend.principal.bob", `{"until":"`+until+`"}`)
	r.deliver(32, 0, "pgedge.kill.principal.carol", "")
	r.otherStream("s2", 4)
	got := stores(r.out)
	if len(got) != 2 {
		t.Fatalf("%+v", r.out)
	}
	for i, subject := range []string{aliceRevoke, "pgedge.suspend.principal.bob"} {
		f, err := DecodeFact(got[i].Subject, got[i].MsgID, got[i].Payload)
		if err != nil || got[i].Subject != subject || got[i].ExpectLastSubjectSeq != 0 || got[i].MsgID == "" {
			t.Fatalf("%+v: %v", got[i], err)
		}
		if f.Verb == VerbSuspend && !f.Until.Equal(t0.Add(time.Hour)) {
			t.Fatalf("the suspend lasts until %s", f.Until)
		}
	}
	// The answer alone ends nothing; the journal's delivery does, and from then on the journal decides.
	r.event(StoreResult{Key: got[0].Key, Outcome: StoreOK, Seq: 5})
	r.pass(recheckAfter)
	r.event(Tick{})
	again := stores(r.out)
	if len(again) != 1 || again[0].MsgID != got[0].MsgID {
		t.Fatalf("%+v", r.out)
	}
	r.event(JournalMessage{got[0].Subject, got[0].MsgID, got[0].Payload, 5, r.now, 0})
	r.wantDenied(true)
	for _, b := range r.n.Table().Blocks(r.now) {
		if b.Carried != (b.Scope.Name == "bob") {
			t.Fatalf("%+v", b)
		}
	}
	r.deliver(6, 0, aliceReinstate, `{"upto":5}`)
	r.wantDenied(false)
	r.pass(time.Hour)
	r.event(Tick{})
	if len(r.n.rescues) != 0 || r.n.flying != 0 || len(stores(r.out)) != 0 {
		t.Fatalf("%d rescues, %d in flight, %+v", len(r.n.rescues), r.n.flying, r.out)
	}
}

// Another node has stored the block, and somebody has reinstated it, before this node reads the new journal.
func TestABlockThatWasRescuedAndUndoneIsNotRescuedAgain(t *testing.T) {
	r := newBeatRig(t, NodeConfig{})
	r.deliver(30, 0, aliceRevoke, "")
	copied := r.n.Table().Blocks(r.now)[0].Fact
	r.event(JournalReset{Stream: "s2"})
	r.event(JournalMessage{aliceRevoke, rescueMsgID(copied), copied.Payload(), 5, r.now, 1})
	r.wantDenied(true)
	r.deliver(6, 0, aliceReinstate, `{"upto":5}`)
	r.wantDenied(false)
	if len(stores(r.out)) != 0 || r.n.Stats().Epoch != 2 {
		t.Fatalf("%+v", r.out)
	}
}

func TestABlockThatTheNewJournalHasItselfIsNotRescued(t *testing.T) {
	r := newBeatRig(t, NodeConfig{})
	r.deliver(30, 0, aliceRevoke, "")
	r.event(JournalReset{Stream: "s2"})
	r.deliver(7, 0, aliceRevoke, "another one")
	if len(stores(r.out)) != 0 {
		t.Fatalf("%+v", r.out)
	}
	r.deliver(8, 0, aliceReinstate, `{"upto":7}`)
	r.wantDenied(false)
}

// A scope that a lost journal blocked for good is not blocked for less by the next one that is lost.
func TestALaterLossForgetsNothingOfAnEarlierOne(t *testing.T) {
	r := newBeatRig(t, NodeConfig{})
	r.deliver(30, 0, aliceRevoke, "")
	r.otherStream("s2", 4)
	r.deliver(5, 0, aliceSuspend, `{"until":"`+t0.Add(time.Minute).Format(time.RFC3339)+`"}`)
	r.otherStream("s3", 2)
	r.pass(time.Hour)
	r.wantDenied(true)
}

// present delivers another node's heartbeat.
func (r *beatRig) present(node string, seq, applied uint64, hash string) {
	r.t.Helper()
	r.deliver(seq, 0, NodeSubject(node, "b1"), fmt.Sprintf(`{"node":%q,"boot":"b1","n":%d,"stream":"s1","applied":%d,"table_hash":%q}`, node, seq, applied, hash))
}

func TestANodeThatMoreContradictThanSupportReloadsThenRefuses(t *testing.T) {
	r := newBeatRig(t, NodeConfig{})
	r.deliver(1, 0, aliceRevoke, "")
	good := r.beat().TableHash
	r.back(1, 2, 0)
	r.want("renew")
	r.present("edge-b", 3, 2, good)
	r.present("edge-c", 4, 2, "bad")
	r.want() // one for, one against
	r.present("edge-d", 5, 3, "bad")
	r.want("reload")
	r.present("edge-d", 6, 4, "bad")
	r.want() // it has not been reloaded yet
	r.event(JournalReset{Stream: "s1"})
	r.deliver(1, 2, aliceRevoke, "")
	r.back(1, 2, 1)
	r.present("edge-d", 6, 4, "bad") // tells of what was before
	r.want()
	r.present("edge-d", 7, 6, "bad")
	r.want("revoke", "freeze")
	c := r.beat()
	r.back(c.N, 8, 0)
	r.want()
	// The heartbeat that has come back meanwhile counts once the others agree.
	r.present("edge-d", 9, 8, good)
	r.want("renew", "thaw")
	if why := r.n.LeaseStatus().Why; why != "" {
		t.Fatal(why)
	}
}

func TestOneNodeWithManyBootsHasOneVoiceAboutTables(t *testing.T) {
	r := newBeatRig(t, NodeConfig{})
	r.deliver(1, 0, aliceRevoke, "")
	good := r.beat().TableHash
	r.back(1, 2, 0)
	r.present("edge-b", 3, 2, good)
	for seq := uint64(4); seq < 9; seq++ {
		boot := fmt.Sprintf("b%d", seq)
		r.deliver(seq, 0, NodeSubject("edge-c", boot), fmt.Sprintf(`{"node":"edge-c","boot":%q,"n":1,"stream":"s1","applied":2,"table_hash":"bad"}`, boot))
		r.want()
	}
}

func TestTablesAreOnlyComparedWhereNothingIsPendingAndNothingWasReplacedByGarbage(t *testing.T) {
	r := newBeatRig(t, NodeConfig{})
	r.deliver(1, 1, aliceRevoke, "")
	if c := r.beat(); c.TableHash != "" {
		t.Fatalf("%+v", c)
	}
	r.present("edge-b", 2, 1, "bad")
	r.want()
	r.deliver(3, 0, aliceSuspend, `{"until":"`+t0.Add(time.Hour).Format(time.RFC3339)+`"}`)
	if c := r.beat(); c.TableHash == "" {
		t.Fatalf("%+v", c)
	}
	r.deliver(4, 0, aliceSuspend, "garbage")
	if c := r.beat(); c.TableHash != "" {
		t.Fatalf("%+v", c)
	}
	r.present("edge-b", 5, 4, "bad")
	r.want()
	r.deliver(6, 0, aliceSuspend, `{"until":"`+t0.Add(time.Hour).Format(time.RFC3339)+`"}`)
	if c := r.beat(); c.TableHash == "" {
		t.Fatalf("%+v", c)
	}
}

// A node may store facts, and so may give one of them the id of a rescue.
func TestOnlyAFactThatDeniesAsMuchEndsTheCarryingOfABlock(t *testing.T) {
	until := t0.Add(time.Hour)
	for _, loading := range []bool{false, true} {
		r := newBeatRig(t, NodeConfig{})
		r.deliver(30, 0, aliceRevoke, "")
		r.deliver(31, 0, "pgedge.suspend.principal.bob", `{"until":"`+until.Format(time.RFC3339)+`"}`)
		blocks := r.n.Table().Blocks(r.now)
		pending := uint64(0)
		r.event(JournalReset{Stream: "s2"})
		if loading {
			pending = 1
		} else {
			r.deliver(4, 0, "pgedge.other", "")
		}
		r.event(JournalMessage{"pgedge.kill.principal.alice", rescueMsgID(blocks[0].Fact), nil, 5, r.now, pending})
		short := []byte(`{"until":"` + t0.Add(time.Second).Format(time.RFC3339) + `"}`)
		r.event(JournalMessage{"pgedge.suspend.principal.bob", rescueMsgID(blocks[1].Fact), short, 6, r.now, 0})
		r.wantDenied(true)
		if got := r.n.Table().carriedBlocks(); len(got) != 2 {
			t.Fatalf("loading %v: carried are %+v", loading, got)
		}
	}
}

// The new journal goes on with greater seqs than the old one's block has, and ends its own block of the scope soon.
func TestAShorterBlockOfAnotherJournalDoesNotDisplaceALongerOne(t *testing.T) {
	for _, stream := range []string{"s2", "s1"} {
		r := newBeatRig(t, NodeConfig{})
		r.deliver(2, 0, aliceSuspend, `{"until":"`+t0.Add(time.Hour).Format(time.RFC3339)+`"}`)
		r.deliver(90, 0, "pgedge.other", "")
		r.event(JournalReset{Stream: stream})
		r.deliver(30, 1, aliceSuspend, `{"until":"`+t0.Add(time.Minute).Format(time.RFC3339)+`"}`)
		r.pass(2 * time.Minute)
		r.wantDenied(true)
		r.deliver(31, 0, "pgedge.other", "")
		if stream == "s1" {
			r.beat()
			r.back(1, 32, 0) // it was set back
		}
		if got := r.n.Stats().Epoch; got != 2 {
			t.Fatalf("epoch %d", got)
		}
		r.wantDenied(true)
		if got := stores(r.out); len(got) != 1 || got[0].ExpectLastSubjectSeq != 30 {
			t.Fatalf("%+v", r.out)
		}
	}
}

func TestAShorterSuspendOfTheSameJournalDecidesOnceItHasBeenRead(t *testing.T) {
	r := newBeatRig(t, NodeConfig{})
	r.deliver(2, 0, aliceSuspend, `{"until":"`+t0.Add(time.Hour).Format(time.RFC3339)+`"}`)
	r.event(JournalReset{Stream: "s1"})
	r.deliver(30, 1, aliceSuspend, `{"until":"`+t0.Add(time.Minute).Format(time.RFC3339)+`"}`)
	r.pass(2 * time.Minute)
	r.wantDenied(true)
	r.deliver(31, 0, "pgedge.other", "")
	r.wantDenied(false)
}

// What the new journal has blocked and reinstated itself is its own affair.
func TestABlockOfTheNewJournalItselfIsNotTakenForTheOldOnes(t *testing.T) {
	r := newBeatRig(t, NodeConfig{})
	r.deliver(1, 0, "pgedge.other", "")
	r.event(JournalReset{Stream: "s2"})
	r.deliver(30, 1, aliceRevoke, "")
	r.deliver(31, 0, aliceReinstate, `{"upto":30}`)
	r.wantDenied(false)
	if len(stores(r.out)) != 0 {
		t.Fatalf("%+v", r.out)
	}
}

func TestABrokenOffLoadDisplacesNoBlock(t *testing.T) {
	r := newBeatRig(t, NodeConfig{})
	r.deliver(2, 0, aliceRevoke, "")
	r.deliver(90, 0, "pgedge.other", "")
	r.event(JournalReset{Stream: "s2"})
	r.deliver(30, 2, aliceRevoke, "")
	r.event(JournalReset{Stream: "s2"})
	r.deliver(31, 1, aliceReinstate, `{"upto":30}`)
	r.deliver(32, 0, "pgedge.other", "")
	r.wantDenied(true)
}
