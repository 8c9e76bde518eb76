package sim

import (
	"strings"
	"time"

	"pgedge/revoke"
)

// fact is one publication as nobody in the fleet knows it.
type fact struct {
	revoke.Fact
	name      string
	published time.Duration
	// byDesk says that a person has published it. The rest are nodes' copies of bare messages.
	byDesk bool
	bare   bool // without a Nats-Msg-Id
	// seq is where the stream of the lineage has it; 0 while it has not.
	seq      uint64
	lineage  int
	storedAt time.Duration
	// lost says that the stream was set back to a place before the fact.
	lost bool
	// seenAt is when its publisher reported it as stored, claimedAt when a wait ended with a verdict that nobody is
	// served any more. Both are zero before.
	seenAt, claimedAt time.Duration
	claim             revoke.Verdict
}

// record is what was stored, reported and let through, for the whole fleet.
type record struct {
	w     *World
	facts []*fact
	byID  map[string]*fact // by subject and Nats-Msg-Id
	bySeq map[uint64]*fact // of the present lineage
}

// suspendSlack covers what clocks may differ by when the end of a suspend is judged.
const suspendSlack = 2 * time.Second

// published notes a publication of a fact, nil for anything else. Attempts under one id are one fact.
func (r *record) published(subject, msgID string, payload []byte) *fact {
	f, err := revoke.DecodeFact(subject, msgID, payload)
	if err != nil {
		return nil
	}
	if old := r.byID[subject+msgID]; old != nil && msgID != "" {
		return old
	}
	n := &fact{Fact: f, name: strings.TrimPrefix(subject, "pgedge."), bare: msgID == "", published: r.w.now}
	r.facts = append(r.facts, n)
	if r.byID == nil {
		r.byID = map[string]*fact{}
	}
	r.byID[subject+msgID] = n
	return n
}

// stored notes what the stream has taken. An attempt that is stored once more, beyond the duplicate window or in another
// stream, is a new fact.
func (r *record) stored(f *fact, m *message) {
	if f.seq != 0 {
		f = &fact{Fact: f.Fact, name: f.name, bare: f.bare, published: r.w.now}
		r.facts = append(r.facts, f)
	}
	if r.bySeq == nil {
		r.bySeq = map[uint64]*fact{}
	}
	f.seq, f.lineage, f.storedAt, f.lost = m.seq, r.w.journal.lineage, r.w.now, false
	r.bySeq[m.seq] = f
}

// at is the fact that the stream has at a seq, nil if it is none or the stream has been another one since.
func (r *record) at(seq uint64, subject string) *fact {
	if f := r.bySeq[seq]; f != nil && f.Subject() == subject {
		return f
	}
	return nil
}

// setBack notes that the stream is another one, or was set back, and holds what it held up to last.
func (r *record) setBack(lineage int, last uint64) {
	for _, f := range r.facts {
		if f.seq == 0 || f.lost {
			continue
		}
		if f.seq > last {
			f.lost = true
			delete(r.bySeq, f.seq)
		} else {
			f.lineage = lineage
		}
	}
}

// inForce says that a block has been neither undone nor outlived. Where it is a matter of opinion, the answer is no: a
// reinstate that was stored later undoes what was never stored, and what another lineage held.
func (r *record) inForce(f *fact) bool {
	switch f.Verb {
	case revoke.VerbRevoke:
	case revoke.VerbSuspend:
		if start.Add(r.w.now + suspendSlack).After(f.Until) {
			return false
		}
	case revoke.VerbKill, revoke.VerbReinstate, revoke.VerbInvalid:
		return false
	}
	for _, g := range r.facts {
		if g.Verb != revoke.VerbReinstate || g.Scope != f.Scope || g.seq == 0 || g.storedAt < f.published {
			continue
		}
		if f.seq == 0 || f.lost || g.lost || g.lineage != f.lineage || g.Upto >= f.seq {
			return false
		}
		if f.storedAt > g.storedAt && f.published < g.storedAt {
			return false // its author may have seen it on another way
		}
	}
	return !r.outlived(f)
}

// outlived says that a suspend was replaced by a later one, whose end decides. What is later is for the journal to say: of
// two that wait for a leader the one that was sent first may be stored last.
func (r *record) outlived(f *fact) bool {
	if f.Verb != revoke.VerbSuspend {
		return false
	}
	for _, g := range r.facts {
		if g != f && g.Verb == revoke.VerbSuspend && g.Scope == f.Scope && (g.published+5*time.Second > f.published || f.seq > 0 && g.seq > f.seq) {
			return true
		}
	}
	return false
}

// forbids says that a session must not be served because of a fact: a block that is in force, or a cut that came after it.
func (r *record) forbids(f *fact, s *session) bool {
	return f.Scope.Matches(s.id) && (r.inForce(f) || r.cuts(f, s))
}

// cuts says that a session began before the fact was stored. True time stands in for positions: a login takes the
// position that its node has reached, which is never beyond the stream's.
func (r *record) cuts(f *fact, s *session) bool {
	return f.Verb != revoke.VerbReinstate && f.seq > 0 && !f.lost && s.began < f.storedAt
}

// lets is called when an engine decides to let a session do something.
func (r *record) lets(p *process, s *session, what string) {
	for _, f := range r.facts {
		if !r.forbids(f, s) {
			continue
		}
		// What only the fast path has told cuts the sessions of that moment; a kill keeps later ones out for a second.
		if k, known := p.knows[f]; known && (k.byJournal || s.began < k.at || r.inForce(f)) {
			r.w.violate("G2", "%s %s %s and has been told of %s", p.m.name, what, s.id.Principal, f.name)
		}
		r.bounded(p, f, s, what)
	}
}

// writes is called when a byte reaches the operating system. It may have waited, in a process that was stopped.
func (r *record) writes(p *process, s *session, wasStopped bool) {
	if s.reported {
		r.w.violate("G1", "%s writes a byte of %s after it has reported the cut", p.m.name, s.id.Principal)
	}
	if wasStopped {
		return
	}
	for _, f := range r.facts {
		if r.forbids(f, s) {
			r.bounded(p, f, s, "writes a byte of")
		}
	}
}

// bounded checks what holds without any word from the node: nothing after the lease, nothing after a verdict.
func (r *record) bounded(p *process, f *fact, s *session, what string) {
	if _, known := p.knows[f]; f.lost && !known {
		return // the journal was lost with it, and the node has never heard of it
	}
	lease := r.w.cfg.Lease
	if f.seenAt > 0 && p.m.onStale != revoke.OnStaleServe && r.w.now >= f.seenAt+lease+lease/100 {
		r.w.violate("G6", "%s %s %s, %s after %s was reported as stored", p.m.name, what, s.id.Principal, r.w.now-f.seenAt, f.name)
	}
	if f.claimedAt > 0 {
		r.w.violate("G7", "%s %s %s after the verdict on %s was %s", p.m.name, what, s.id.Principal, f.name, f.claim)
	}
}

// settled checks G5 for a node once everything has arrived: whoever is blocked in the journal is denied, and nobody is
// denied whom nobody has blocked.
func (r *record) settled(p *process) {
	for _, name := range principals {
		id := revoke.NewIdentity(name, "app", "db", "probe-1")
		d, denied := p.node.Table().Check(id, p.node.Table().Position(), p.m.mono())
		may := false
		for _, f := range r.facts {
			if !f.Scope.Matches(id) {
				continue
			}
			if f.seq == 0 && f.seenAt > 0 {
				r.w.violate("G5", "%s was reported as stored and is not", f.name)
			}
			if f.seq > 0 && !f.lost && r.inForce(f) && !denied {
				r.w.violate("G5", "%s would let %s in, against %s at %d", p.m.name, name, f.name, f.seq)
			}
			// A block that was undone may be in force again, where the stream was set back to before the reinstate.
			may = may || f.Verb == revoke.VerbRevoke || f.Verb == revoke.VerbSuspend && p.m.mono().Before(f.Until.Add(suspendSlack))
		}
		// A node's own copy of a suspend is a suspend.
		if denied && !may || denied && !r.revoked(id) && d.Fact.Verb == revoke.VerbRevoke {
			r.w.violate("suspends end", "%s denies %s for %s %s, which nobody has asked for", p.m.name, name, d.Fact.Verb, d.Fact.Scope)
		}
	}
}

// revoked says that a person has published a revoke.
func (r *record) revoked(id revoke.Identity) bool {
	for _, f := range r.w.desk.asked {
		if f.Verb == revoke.VerbRevoke && f.Scope.Matches(id) {
			return true
		}
	}
	return false
}

// principals are the people. Nobody ever revokes dave, and nobody ever acts on carol.
var principals = []string{"alice", "bob", "dave", "carol"}
