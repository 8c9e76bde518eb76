package revoke

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"
)

// beatRig is a rig whose node sends heartbeats, on clocks that the test sets.
type beatRig struct {
	*rig
	wallStep time.Duration
	kinds    []string // of the commands about the lease, in their order, of the last event
	until    Instant  // of the last renewal
	lease    Lease    // the carrier's
}

func newBeatRig(t *testing.T, cfg NodeConfig) *beatRig {
	t.Helper()
	cfg.ID, cfg.Boot = "edge-a", "b1"
	r := &beatRig{rig: &rig{t: t, n: NewNode(cfg), now: t0}}
	r.event(JournalReset{Stream: "s1"})
	r.event(JournalEmpty{})
	r.want()
	return r
}

func (r *beatRig) at() Instant {
	at := instantAt(r.now)
	at.Wall = at.Wall.Add(r.wallStep)
	return at
}

func (r *beatRig) event(ev Event) {
	r.t.Helper()
	r.out = r.n.Handle(r.now, r.at(), ev)
	r.kinds = nil
	for _, c := range r.out {
		switch c := c.(type) {
		case RenewCommand:
			r.kinds, r.until = append(r.kinds, "renew"), c.Until
			if c.Never {
				r.lease.Never()
			} else {
				r.lease.Renew(c.Until)
			}
		case RevokeLeaseCommand:
			r.kinds = append(r.kinds, "revoke")
			r.lease.Revoke()
		case FreezeCommand:
			r.kinds = append(r.kinds, "freeze")
		case ThawCommand:
			r.kinds = append(r.kinds, "thaw")
		case DropCommand:
			r.kinds = append(r.kinds, "drop")
		case CutCommand:
			r.kinds = append(r.kinds, "cut")
		case ReloadCommand:
			r.kinds = append(r.kinds, "reload")
		default:
		}
	}
}

func (r *beatRig) want(kinds ...string) {
	r.t.Helper()
	if !slices.Equal(r.kinds, kinds) {
		r.t.Fatalf("the node wants %q, not %q: %+v", r.kinds, kinds, r.out)
	}
}

// beat sends a heartbeat and returns it.
func (r *beatRig) beat() HeartbeatCommand {
	r.t.Helper()
	r.event(HeartbeatDue{})
	for _, c := range r.out {
		if c, ok := c.(HeartbeatCommand); ok {
			return c
		}
	}
	r.t.Fatalf("no heartbeat: %+v", r.out)
	return HeartbeatCommand{}
}

// back delivers a heartbeat of the node's with seq.
func (r *beatRig) back(n, seq, pending uint64) {
	r.t.Helper()
	r.deliver(seq, pending, NodeSubject("edge-a", "b1"), fmt.Sprintf(`{"node":"edge-a","boot":"b1","n":%d}`, n))
}

func (r *beatRig) deliver(seq, pending uint64, subject, payload string) {
	r.t.Helper()
	r.event(JournalMessage{subject, "", []byte(payload), seq, r.now, pending})
}

func (r *beatRig) pass(d time.Duration) { r.now = r.now.Add(d) }

func TestTheLeaseBeginsBeforeTheHeartbeatWasPublished(t *testing.T) {
	r := newBeatRig(t, NodeConfig{})
	sent := r.at()
	c := r.beat()
	if c.N != 1 || c.ExpectLastSubjectSeq != 0 || r.lease.Fresh(r.at()) {
		t.Fatalf("%+v", c)
	}
	r.pass(3 * time.Second)
	r.back(1, 1, 0)
	r.want("renew")
	if r.until != sent.Add(20*time.Second) || !r.lease.Fresh(r.at()) {
		t.Fatalf("%+v", r.until)
	}
	if next := r.n.NextTick(); !next.Equal(t0.Add(20 * time.Second)) {
		t.Fatalf("next tick %s", next)
	}
	if c := r.beat(); c.N != 2 || c.ExpectLastSubjectSeq != 1 {
		t.Fatalf("%+v", c)
	}
}

func TestNothingIsProvenWhileSomethingIsPending(t *testing.T) {
	r := newBeatRig(t, NodeConfig{})
	r.beat()
	r.back(1, 2, 1)
	r.want()
	// What is pending has replaced an older fact, which was stored before the heartbeat.
	r.deliver(3, 0, aliceRevoke, "")
	r.want("cut", "renew")
}

func TestOnlyAHeartbeatThatTheNodeRemembersRenews(t *testing.T) {
	r := newBeatRig(t, NodeConfig{})
	r.beat()
	r.back(7, 1, 0)
	r.want()
	r.deliver(2, 0, NodeSubject("edge-b", "b1"), `{"node":"edge-b","boot":"b1","n":1}`)
	r.want()
	r.deliver(3, 0, NodeSubject("edge-a", "b0"), `{"node":"edge-a","boot":"b0","n":1}`)
	r.want()
	for range maxSentBeats {
		r.beat()
	}
	r.back(1, 4, 0)
	r.want()
	if len(r.n.beats.sent) > maxSentBeats {
		t.Fatalf("%d heartbeats are remembered", len(r.n.beats.sent))
	}
	r.back(maxSentBeats, 5, 0)
	r.want("renew")
	r.back(maxSentBeats, 6, 0)
	r.want() // the same proof again
}

func TestAFrozenNodeThawsAfterTheFactsItMissed(t *testing.T) {
	r := newBeatRig(t, NodeConfig{})
	r.beat()
	r.back(1, 1, 0)
	r.pass(20 * time.Second)
	// The message that comes after the end finds the sessions frozen, before its cut.
	r.deliver(2, 1, aliceRevoke, "")
	r.want("freeze", "cut")
	r.beat()
	r.deliver(3, 1, aliceKill, "")
	r.want("cut")
	r.back(2, 4, 0)
	r.want("renew", "thaw")
	if s := r.n.LeaseStatus(); s.State != LeaseFresh || s.Proven != r.at() {
		t.Fatalf("%+v", s)
	}
}

func TestALeaseThatDoesNotComeBackDropsTheSessions(t *testing.T) {
	r := newBeatRig(t, NodeConfig{Freeze: 5 * time.Second})
	r.beat()
	r.back(1, 1, 0)
	r.now = r.n.NextTick()
	r.event(Tick{})
	r.want("freeze")
	if next := r.n.NextTick(); next.Sub(r.now) != 5*time.Second {
		t.Fatalf("next tick in %s", next.Sub(r.now))
	}
	r.pass(5*time.Second - 1)
	r.event(Tick{})
	r.want()
	r.pass(1)
	r.event(Tick{})
	r.want("drop")
	if s := r.n.LeaseStatus(); s.State != LeaseDropped || !r.n.NextTick().IsZero() {
		t.Fatalf("%+v", s)
	}
	r.beat()
	r.back(2, 2, 0)
	r.want("renew", "thaw")
}

func TestOnStaleDropDoesNotWait(t *testing.T) {
	r := newBeatRig(t, NodeConfig{OnStale: OnStaleDrop})
	r.beat()
	r.back(1, 1, 0)
	r.pass(20 * time.Second)
	r.event(Tick{})
	r.want("freeze", "drop")
}

func TestOnStaleServeNeverFreezesByItself(t *testing.T) {
	r := newBeatRig(t, NodeConfig{OnStale: OnStaleServe})
	if r.lease.Fresh(r.at()) {
		t.Fatal("a node serves before its first heartbeat has come back")
	}
	r.beat()
	r.back(1, 1, 0)
	r.want("renew")
	r.pass(1000 * time.Hour)
	r.event(Tick{})
	r.want()
	if !r.lease.Fresh(r.at()) || !r.n.NextTick().IsZero() {
		t.Fatal("the lease ends")
	}
}

func TestEitherClockEndsTheLease(t *testing.T) {
	for _, step := range []time.Duration{time.Hour, -time.Hour} {
		r := newBeatRig(t, NodeConfig{})
		r.beat()
		r.back(1, 1, 0)
		r.wallStep = step
		r.event(Tick{})
		if step > 0 {
			r.want("freeze")
			// One heartbeat makes up for the step.
			r.beat()
			r.back(2, 2, 0)
			r.want("renew", "thaw")
			continue
		}
		r.want()
		r.pass(20 * time.Second)
		r.event(Tick{})
		r.want("freeze")
	}
}

func TestAHeartbeatThatDoesNotComeBackMakesANewConsumer(t *testing.T) {
	r := newBeatRig(t, NodeConfig{})
	c := r.beat()
	r.event(HeartbeatResult{N: c.N, Outcome: StoreOK, Seq: 1})
	r.pass(echoWithin)
	r.beat()
	r.want()
	r.pass(1)
	r.beat()
	r.want("reload")
	r.beat()
	r.want()
}

// Acknowledgements of later heartbeats are no excuse for the first, but those that come back are.
func TestAConsumerThatDeliversNoHeartbeatIsReplacedWhileHeartbeatsAreAcknowledged(t *testing.T) {
	r := newBeatRig(t, NodeConfig{})
	acked := func() HeartbeatCommand {
		c := r.beat()
		r.event(HeartbeatResult{N: c.N, Outcome: StoreOK, Seq: c.N})
		r.pass(time.Second)
		return c
	}
	for last := acked(); last.N < 10; {
		c := acked() // one is always on its way
		r.back(last.N, last.N, 0)
		r.want("renew")
		last = c
	}
	for range 3 {
		acked()
		r.want()
	}
	r.beat()
	r.want("reload")
}

func TestAnotherStreamTakesTheLeaseUntilItHasBeenRead(t *testing.T) {
	r := newBeatRig(t, NodeConfig{})
	r.deliver(40, 0, aliceRevoke, "")
	r.beat()
	r.back(1, 41, 0)
	r.event(JournalReset{Stream: "s2"})
	r.want("revoke", "freeze")
	if r.lease.Fresh(r.at()) || !strings.Contains(r.n.LeaseStatus().Why, "another stream") {
		t.Fatalf("%+v", r.n.LeaseStatus())
	}
	c := r.beat()
	r.deliver(3, 1, "pgedge.kill.principal.bob", "")
	r.want("cut", "cut")
	r.back(c.N, 4, 0)
	// The heartbeat was sent before the stream had been read: the next one counts.
	if r.n.Stats().Epoch != 2 || slices.Contains(r.kinds, "renew") {
		t.Fatalf("%q, %+v", r.kinds, r.n.Stats())
	}
	r.wantDenied(true)
	c = r.beat()
	if c.ExpectLastSubjectSeq != 4 || c.Stream != "s2" {
		t.Fatalf("%+v", c)
	}
	r.back(c.N, 5, 0)
	r.want("renew", "thaw")
	r.wantDenied(true)
	if p := r.n.Table().Position(); p != (Position{2, 5}) {
		t.Fatalf("%+v", p)
	}
}

// A stream restored from an old copy keeps its identity, and its seqs may have caught up.
func TestARefusedHeartbeatThatNothingExplainsMeansAnotherStream(t *testing.T) {
	r := newBeatRig(t, NodeConfig{})
	r.deliver(4, 0, "pgedge.kill.principal.bob", "")
	r.beat()
	r.back(1, 10, 0)
	r.deliver(20, 0, aliceRevoke, "")
	c := r.beat()
	// A lost acknowledgement explains a later one.
	r.event(HeartbeatResult{N: c.N, Outcome: StoreWrongLastSequence, Last: 11, LastKnown: true})
	r.want()
	c = r.beat()
	if c.ExpectLastSubjectSeq != 11 {
		t.Fatalf("%+v", c)
	}
	refused := func() {
		t.Helper()
		r.event(HeartbeatResult{N: r.beat().N, Outcome: StoreWrongLastSequence, Last: 6, LastKnown: true})
	}
	// A new leader may lag.
	refused()
	r.want("reload")
	r.pass(refusedFor - 1)
	refused()
	r.want()
	r.pass(1)
	refused()
	r.want("revoke", "freeze", "reload")
	// Only a consumer that begins after this tells what the stream holds.
	r.back(r.beat().N, 21, 0)
	r.want()
	r.event(JournalReset{Stream: "s1"})
	r.deliver(4, 2, "pgedge.kill.principal.bob", "")
	r.back(1, 6, 1)
	r.deliver(22, 0, "pgedge.other", "")
	if s := r.n.Stats(); s.Epoch != 2 {
		t.Fatalf("%+v", s)
	}
	r.wantDenied(true)
	if b := r.n.Table().Blocks(r.now); len(b) != 1 || !b[0].Carried {
		t.Fatalf("%+v", b)
	}
	c = r.beat()
	if c.ExpectLastSubjectSeq != 6 {
		t.Fatalf("%+v", c)
	}
	r.back(c.N, 23, 0)
	r.want("renew", "thaw")
}

func TestALoadThatEndsShortWaitsForTheNextHeartbeat(t *testing.T) {
	for _, seq := range []uint64{12, 31} {
		r := newBeatRig(t, NodeConfig{})
		r.beat()
		r.back(1, 10, 0)
		r.deliver(30, 0, aliceRevoke, "")
		// The consumer sits on a replica that lags, or on an old copy.
		r.event(JournalReset{Stream: "s1"})
		r.back(1, 10, 0)
		r.want()
		if r.n.following() || !r.lease.Fresh(r.at()) {
			t.Fatal("a short load has been taken for the truth")
		}
		r.wantDenied(true)
		c := r.beat()
		if seq == 31 {
			r.deliver(30, 1, aliceRevoke, "")
		}
		r.back(c.N, seq, 0)
		if seq == 31 {
			r.want("renew")
		} else {
			r.want("revoke", "freeze")
		}
		if e := r.n.Stats().Epoch; e != map[uint64]uint64{12: 2, 31: 1}[seq] {
			t.Fatalf("epoch %d", e)
		}
		r.wantDenied(true)
	}
}

// An operator can empty a stream without making it another one.
func TestAPurgedStreamIsAnotherOne(t *testing.T) {
	r := newBeatRig(t, NodeConfig{})
	r.deliver(4, 0, aliceRevoke, "")
	r.beat()
	r.back(1, 10, 0)
	r.event(JournalReset{Stream: "s1"})
	r.deliver(50, 0, "pgedge.other", "")
	r.want("revoke", "freeze")
	if e := r.n.Stats().Epoch; e != 2 {
		t.Fatalf("epoch %d", e)
	}
	r.wantDenied(true)
}

func TestAnIllegalMoveOfTheLeaseIsABug(t *testing.T) {
	defer func() {
		if recover() == nil {
			t.Fatal("a frozen node froze again")
		}
	}()
	k := leaseKeeper{state: LeaseFrozen}
	k.move(LeaseFrozen)
}

func TestALoadThatBeganBeforeTheStreamWasReplacedDoesNotCount(t *testing.T) {
	r := newBeatRig(t, NodeConfig{})
	r.beat()
	r.back(1, 10, 0)
	r.deliver(30, 0, aliceRevoke, "")
	r.event(JournalReset{Stream: "s1"})
	r.back(1, 10, 1)
	for range 2 {
		r.event(HeartbeatResult{N: r.beat().N, Outcome: StoreWrongLastSequence, Last: 6, LastKnown: true})
		r.pass(refusedFor)
	}
	r.want("revoke", "freeze", "reload")
	r.deliver(30, 0, aliceRevoke, "")
	if e := r.n.Stats().Epoch; e != 1 || r.n.following() {
		t.Fatalf("epoch %d: the old stream was taken for the new one", e)
	}
	r.otherStream("s1", 7)
	if e := r.n.Stats().Epoch; e != 2 || !r.n.following() {
		t.Fatalf("epoch %d", e)
	}
	r.wantDenied(true)
}
