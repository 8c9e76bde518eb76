package revoke

import (
	"fmt"
	"slices"
	"time"

	"pgregory.net/rapid"
)

// A small fleet in one goroutine: publishers, a journal that keeps the last message per subject, nodes that get
// every message by two ways, sessions. rapid draws what happens next.

type storedMsg struct {
	seq            uint64
	subject, msgID string
	payload        string
	stored         time.Time
}

type world struct {
	t        *rapid.T
	now      time.Time
	last     uint64
	bySubj   map[string]storedMsg
	dedupe   map[string]storedMsg
	down     bool
	nodes    []*simNode
	attempts int
	garbage  bool
	// originals are the identified attempts that the journal took from their publishers.
	originals map[string]bool
	// mayStore says that nodes may add to the journal what it has already had.
	mayStore bool
	// noReinstate leaves reinstates out. With one in the burst that a node missed, and the stream's memory of ids
	// gone, a node cannot know whether its fact came before or after, and stores it.
	noReinstate bool
	stored      []sessionsBefore
	trace       []string
	// stream is the identity of the stream, and gen its number, which nobody but the test knows.
	stream string
	gen    int
	boots  int
}

// sessionsBefore is what a fact that the journal took has to end.
type sessionsBefore struct {
	fact     Fact
	seq      uint64
	at       time.Time
	sessions []*simSession
}

type simSession struct {
	id      Identity
	authSeq Position
	checked bool
	dead    bool
}

type simNode struct {
	n        *Node
	fast     []FastMessage
	pos      uint64
	sessions []*simSession
	stores   []StoreCommand
	reload   bool

	id, boot string
	gen      int // of the stream that its consumer reads
	cutOff   bool
	wall     time.Duration // by how much its wall clock is off
	lease    Lease         // the carrier's
	frozen   bool
	beat     HeartbeatCommand
	blocked  map[Identity]bool // whom it has denied by a revoke
}

func newWorld(t *rapid.T, nodes int) *world {
	w := &world{t: t, now: t0, stream: "s1", bySubj: map[string]storedMsg{}, dedupe: map[string]storedMsg{}, originals: map[string]bool{}}
	for i := range nodes {
		sn := &simNode{id: fmt.Sprintf("n%d", i)}
		w.nodes = append(w.nodes, sn)
		w.start(sn)
	}
	return w
}

func (w *world) note(format string, args ...any) {
	w.trace = append(w.trace, fmt.Sprintf(format, args...))
}

func (w *world) fatal(format string, args ...any) {
	w.t.Helper()
	for _, line := range w.trace {
		w.t.Log(line)
	}
	w.t.Fatalf(format, args...)
}

func (w *world) start(sn *simNode) {
	w.boots++
	id, boot := sn.id, fmt.Sprintf("b%04d", w.boots)
	*sn = simNode{n: NewNode(NodeConfig{ID: id, Boot: boot}), id: id, boot: boot, gen: w.gen, blocked: map[Identity]bool{}}
	w.event(sn, JournalReset{Stream: w.stream})
	if w.last == 0 {
		w.event(sn, JournalEmpty{})
	}
}

// event hands an event to a node and does to its sessions what an engine does.
func (w *world) event(sn *simNode, ev Event) {
	wasReady := sn.n.Ready()
	for _, c := range sn.n.Handle(w.now, w.at(sn), ev) {
		switch c := c.(type) {
		case CutCommand:
			if !sn.n.Ready() {
				w.fatal("a cut before the node is ready: %+v", c)
			}
			if c.Order.SupersededBy != 0 {
				continue
			}
			for _, s := range sn.sessions {
				if c.Order.Fact.Scope.Matches(s.id) && (c.Order.Fact.Seq == 0 || s.authSeq.Before(c.Order.Fact.Position())) {
					s.dead = true
				}
			}
		case StoreCommand:
			sn.stores = append(sn.stores, c)
		case ReloadCommand:
			sn.reload = true
		case ReadyCommand:
			if wasReady {
				w.fatal("ready twice")
			}
		case HeartbeatCommand:
			sn.beat = c
		case RenewCommand:
			w.proven(sn, c.Until.Add(-sn.n.cfg.Lease))
			sn.lease.Renew(c.Until)
		case RevokeLeaseCommand:
			sn.lease.Revoke()
		case FreezeCommand, ThawCommand:
			if _, froze := c.(FreezeCommand); froze == sn.frozen {
				w.fatal("%T, and frozen is %v", c, sn.frozen)
			}
			sn.frozen = !sn.frozen
			if !sn.frozen && !sn.lease.Fresh(w.at(sn)) {
				w.fatal("thawed without a lease")
			}
		case DropCommand:
			for _, s := range sn.sessions {
				s.dead = true
			}
		case RejectCommand, PresenceCommand:
		}
	}
	w.check(sn)
}

// check is G2: no session lives that the table forbids.
func (w *world) check(sn *simNode) {
	for _, s := range sn.sessions {
		if !s.checked || s.dead {
			continue
		}
		if d, denied := sn.n.Table().Check(s.id, s.authSeq, w.now); denied {
			w.fatal("node %d: a session of %s with authSeq %d lives against %+v", slices.Index(w.nodes, sn), s.id.Principal, s.authSeq, d)
		}
	}
}

// publish is one core publish of a fact: every node's fast subscription gets it, and the journal if it is up.
func (w *world) publish(subject, msgID, payload string, expect *uint64) (StoreOutcome, uint64) {
	for _, sn := range w.nodes {
		if !sn.cutOff {
			sn.fast = append(sn.fast, FastMessage{subject, msgID, []byte(payload)})
		}
	}
	if w.down {
		return StoreFailed, 0
	}
	if d, ok := w.dedupe[msgID]; ok && msgID != "" && w.now.Sub(d.stored) < 5*time.Second {
		return StoreOK, d.seq
	}
	if expect != nil && w.bySubj[subject].seq != *expect {
		return StoreWrongLastSequence, 0
	}
	w.last++
	m := storedMsg{w.last, subject, msgID, payload, w.now}
	w.bySubj[subject] = m
	w.dedupe[msgID] = m
	w.note("  stored as %d", w.last)
	if f, err := DecodeFact(subject, msgID, []byte(payload)); err == nil && f.Verb != VerbReinstate {
		b := sessionsBefore{fact: f, seq: w.last, at: w.now}
		for _, sn := range w.nodes {
			b.sessions = append(b.sessions, sn.sessions...)
		}
		w.stored = append(w.stored, b)
	}
	return StoreOK, w.last
}

func (w *world) deliverFast(sn *simNode, i int) {
	m := sn.fast[i]
	sn.fast = slices.Delete(sn.fast, i, i+1)
	w.note("node %d: fast %s %q %q", slices.Index(w.nodes, sn), m.Subject, m.MsgID, m.Payload)
	w.event(sn, m)
}

func (w *world) deliverJournal(sn *simNode) bool {
	if w.down || sn.cutOff || sn.gen != w.gen {
		return false // a consumer of a stream that is gone just waits
	}
	var next storedMsg
	pending := uint64(0)
	for _, m := range w.bySubj {
		if m.seq <= sn.pos {
			continue
		}
		pending++
		if next.seq == 0 || m.seq < next.seq {
			next = m
		}
	}
	if next.seq == 0 {
		return false
	}
	sn.pos = next.seq
	w.note("node %d: journal %d %s %q %.40q, pending %d", slices.Index(w.nodes, sn), next.seq, next.subject, next.msgID, next.payload, pending-1)
	w.event(sn, JournalMessage{next.subject, next.msgID, []byte(next.payload), next.seq, next.stored, pending - 1})
	return true
}

func (w *world) answerStores(sn *simNode, lose bool) {
	for len(sn.stores) > 0 {
		c := sn.stores[0]
		sn.stores = sn.stores[1:]
		before := w.last
		w.note("node %d: store %s %q expecting %d", slices.Index(w.nodes, sn), c.Subject, c.MsgID, c.ExpectLastSubjectSeq)
		outcome, seq := StoreFailed, uint64(0)
		if !sn.cutOff {
			outcome, seq = w.publish(c.Subject, c.MsgID, string(c.Payload), &c.ExpectLastSubjectSeq)
		}
		if w.last > before && w.originals[messageKey(c.Subject, c.MsgID)] && !w.mayStore {
			w.fatal("stored again what the journal had: %+v", c)
		}
		if lose {
			outcome, seq = StoreFailed, 0
		}
		w.note("  answer %d seq %d", outcome, seq)
		w.event(sn, StoreResult{c.Key, outcome, seq})
	}
}

func (w *world) advance(d time.Duration) {
	end := w.now.Add(d)
	for {
		next := end
		for _, sn := range w.nodes {
			if at := sn.n.NextTick(); !at.IsZero() && at.Before(next) {
				next = at
			}
		}
		if next.After(w.now) {
			w.now = next
		}
		for _, sn := range w.nodes {
			w.event(sn, Tick{})
		}
		if !w.now.Before(end) {
			return
		}
	}
}

func (w *world) login(sn *simNode, id Identity) {
	if sn.n.Ready() {
		sn.sessions = append(sn.sessions, &simSession{id: id, authSeq: sn.n.Table().Position()})
	}
}

func (w *world) checkLogins(sn *simNode) {
	for _, s := range sn.sessions {
		if s.checked || s.dead {
			continue
		}
		s.checked = true
		if _, denied := sn.n.Table().Check(s.id, s.authSeq, w.now); denied {
			s.dead = true
		}
	}
}

// quiesce lets everything arrive.
func (w *world) quiesce() {
	w.down = false
	for range 60 {
		for _, sn := range w.nodes {
			if sn.reload {
				sn.reload, sn.pos = false, 0
				w.event(sn, JournalReset{})
			}
			for len(sn.fast) > 0 {
				w.deliverFast(sn, 0)
			}
			for w.deliverJournal(sn) {
			}
			w.answerStores(sn, false)
		}
		w.advance(500 * time.Millisecond)
	}
}

var simIDs = []Identity{NewIdentity("alice", "app", "db", "n-1"), NewIdentity("bob", "app", "db", "n-2")}

func (w *world) converged() {
	w.quiesce()
	fresh := &simNode{}
	w.start(fresh)
	for w.deliverJournal(fresh) {
	}
	for i, sn := range w.nodes {
		w.checkLogins(sn)
		if s := sn.n.Stats(); s.Unsettled != 0 || len(sn.n.Table().provisionalKeys()) != 0 || len(sn.n.heals) != 0 || sn.n.flying != 0 {
			w.fatal("node %d: %+v, %d heals, %d in flight, provisional %q", i, s, len(sn.n.heals), sn.n.flying, sn.n.Table().provisionalKeys())
		}
		if !w.garbage && sn.n.Table().Hash() != fresh.n.Table().Hash() {
			w.fatal("node %d is not what a new node reads", i)
		}
		for _, id := range simIDs {
			_, a := sn.n.Table().Check(id, sn.n.Table().Position(), w.now)
			_, b := fresh.n.Table().Check(id, fresh.n.Table().Position(), w.now)
			if a != b {
				w.fatal("node %d denies %s: %v, a new node: %v", i, id.Principal, a, b)
			}
		}
	}
	for _, b := range w.stored {
		if w.garbage && b.fact.Verb == VerbSuspend {
			continue // garbage may have replaced it before anybody has read it
		}
		for _, s := range b.sessions {
			if !s.dead && s.checked && b.fact.Scope.Matches(s.id) && slices.ContainsFunc(w.nodes, func(sn *simNode) bool { return slices.Contains(sn.sessions, s) }) {
				w.fatal("a session of %s from before %+v is alive", s.id.Principal, b.fact)
			}
		}
	}
}
