package revoke

import (
	"fmt"
	"time"
)

const (
	// maxSentBeats bounds the heartbeats that are remembered. An echo that takes longer than this many heartbeats
	// proves nothing; a consumer that slow is replaced long before.
	maxSentBeats = 256
	// echoWithin is how long an acknowledged heartbeat may take to come back before the consumer is taken for dead.
	echoWithin = 2 * time.Second
	// refusedFor is for how long heartbeats are refused before the stream is taken for another one. A server that has
	// just become its leader answers out of a store that may still lag.
	refusedFor = 900 * time.Millisecond
)

// sentBeat is a heartbeat of this boot and the moment before it was published.
type sentBeat struct {
	n  uint64
	at Instant
}

// beatPlace is where the journal has one of this boot's heartbeats.
type beatPlace struct{ n, seq uint64 }

// beats is what a node knows about its own heartbeats.
type beats struct {
	last uint64     // number of the newest one
	sent []sentBeat // the newest ones, oldest first
	// back is the newest one that the journal has delivered, expect where the newest one is believed to be.
	back   beatPlace
	expect uint64
	// refusedSince is since when the stream says that it does not have what it had delivered; zero while it does not.
	refusedSince time.Time
	// acked is the newest one acknowledged, and owedSince since when the journal owes one that is: none has come back
	// after that. Acknowledgements are hints: others than the stream could give them.
	acked     uint64
	owedSince time.Time
}

// heartbeatDue numbers the next heartbeat and remembers the moment.
func (n *Node) heartbeatDue(now time.Time, at Instant) {
	b := &n.beats
	if b.acked > b.back.n && now.Sub(b.owedSince) > echoWithin && n.following() {
		b.acked = b.back.n
		n.emit(ReloadCommand{Why: "a stored heartbeat has not come back"})
	}
	b.last++
	if len(b.sent) >= maxSentBeats {
		b.sent = append(b.sent[:0], b.sent[len(b.sent)-maxSentBeats/2:]...)
	}
	b.sent = append(b.sent, sentBeat{b.last, at})
	c := HeartbeatCommand{N: b.last, ExpectLastSubjectSeq: b.expect, Applied: n.table.Applied(), Stream: n.stream}
	if n.comparable() {
		c.TableHash = n.table.Hash()
	}
	n.emit(c)
}

// heartbeatResult takes the answer of the stream.
func (n *Node) heartbeatResult(now time.Time, at Instant, r HeartbeatResult) {
	b := &n.beats
	switch r.Outcome {
	case StoreOK:
		if b.acked <= b.back.n {
			b.owedSince = now
		}
		b.acked = max(b.acked, r.N)
		b.expect = max(b.expect, r.Seq)
		b.refusedSince = time.Time{}
	case StoreWrongLastSequence:
		switch {
		case !r.LastKnown:
			// An earlier one is still on its way through the stream.
		case r.Last >= b.back.seq:
			// An acknowledgement was lost, or was not the stream's.
			b.expect = r.Last
			b.refusedSince = time.Time{}
		case n.another != "":
			b.expect = r.Last
		case b.refusedSince.IsZero():
			b.refusedSince = now
			n.emit(ReloadCommand{Why: "the journal does not have this node's last heartbeat where it was"})
		case now.Sub(b.refusedSince) >= refusedFor:
			b.refusedSince, b.expect = time.Time{}, r.Last
			n.suspect(at, fmt.Sprintf("its last heartbeat of this node is at %d, where %d had been delivered", r.Last, b.back.seq))
		}
	case StoreFailed, StoreInvalid:
	}
}

// ownBeat takes a heartbeat of this boot out of the journal.
func (n *Node) ownBeat(at Instant, number, seq uint64) {
	b := &n.beats
	b.expect = seq
	for _, s := range b.sent {
		if s.n == number && s.n > n.keeper.proof.n {
			n.keeper.proof = s
		}
	}
	b.owedSince = n.now
	if n.load == nil || !n.ready {
		b.back = beatPlace{number, seq}
		return
	}
	n.load.back = beatPlace{number, seq}
	if number > n.load.beatsBefore && seq <= n.load.appliedBefore {
		// In one stream it would have come behind everything that was delivered before it was sent.
		n.doubt(at, fmt.Sprintf("a new heartbeat of this node is at %d, where %d had been reached", seq, n.load.appliedBefore))
	}
}
