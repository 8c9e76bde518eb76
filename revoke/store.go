package revoke

import (
	"fmt"
	"strings"
	"time"
)

const (
	// maxFlying bounds the stores that are not answered.
	maxFlying = 256
	// flyingFor is when an unanswered store counts as failed. The carrier owes an answer to each; this keeps one
	// that forgets from blocking the rest.
	flyingFor = 10 * time.Second
	// recheckAfter is how long the journal may take to deliver what a store's answer has promised. Answers are only
	// hints, since others than the stream could have given them. It is longer than the stream's duplicate window
	// (5 s), so that a store under the same id does store.
	recheckAfter = 6 * time.Second
	// reinstateHealTries bounds the healing of reinstates, which a node's permissions refuse as a rule.
	reinstateHealTries = 5
	maxHeals           = 1024
	healKeyPrefix      = "heal|"
)

// heal is a good suspend or reinstate that garbage has replaced in the journal. This node refused the garbage and
// still holds the good one, but a node that starts later would know neither; so it is stored again.
//
// A suspend that is stored again gets a greater seq, and sessions with a smaller authSeq are cut once more. That
// hits nobody: it is only done while the suspend is in force on a node that has read everything, and while it is in
// force its scope has no sessions. A reinstate that is published in the same instant loses against it, as its upto
// is the old seq; that errs on the side of refusing, shows in the list of blocks, and ends with the suspend.
type heal struct {
	timer
	subject string
	fact    Fact   // its verb and scope; the table knows the rest
	expect  uint64 // the seq of the garbage
	flying  bool
	tries   int
}

func (n *Node) beginHeal(now time.Time, f Fact, garbage uint64) {
	subject := f.Subject()
	h := n.heals[subject]
	if h == nil {
		if len(n.heals) >= maxHeals {
			return
		}
		h = &heal{subject: subject}
		n.heals[subject] = h
	}
	h.fact, h.expect = f, garbage
	if !h.flying {
		// The pause bounds what somebody who keeps on publishing garbage can make the fleet store.
		n.timers.set(&h.timer, h, now.Add(n.cfg.StoreRetry))
	}
}

// runTimers does what is due, but only while following: what is missing in the journal is only known at its end.
func (n *Node) runTimers(now time.Time) {
	if !n.following() {
		return
	}
	for len(n.timers) > 0 && !now.Before(n.timers[0].due) {
		switch o := n.timers[0].owner.(type) {
		case *pending:
			n.pendingDue(now, o)
		case *heal:
			n.healDue(now, o)
		case *rescue:
			n.rescueDue(now, o)
		}
	}
}

func (n *Node) pendingDue(now time.Time, p *pending) {
	switch p.state {
	case pendingFlying:
		n.flying--
		p.state = pendingWaiting
	case pendingBeaten:
		// The newer message that stood in the way should have come by now. If it has not, the stream has put it where
		// this node had read something else already: it was set back by a little, between two heartbeats.
		if n.table.LastSeq(p.subject) == p.expect && p.cover.seq == 0 && (n.lastReload.IsZero() || now.Sub(n.lastReload) >= reloadEvery) {
			n.lastReload = now
			n.emit(ReloadCommand{Why: "it holds a newer message of " + p.subject + " than it has delivered"})
		}
		p.state = pendingWaiting
	case pendingWaiting, pendingStored:
		p.state = pendingWaiting
	}
	// Facts of one subject are stored one after the other in the order they came: the store keeps the last. One that
	// is covered waits for resolveCovered.
	if n.pending.oldestUncovered(p.subject) != p || n.flying >= maxFlying {
		n.timers.set(&p.timer, p, now.Add(n.cfg.StoreRetry))
		return
	}
	p.state = pendingFlying
	p.expect = n.table.LastSeq(p.subject)
	msgID := p.msgID
	if msgID == "" {
		msgID = storeMsgID(p.subject, p.bare, p.expect)
	}
	n.flying++
	n.stats.Stores++
	n.timers.set(&p.timer, p, now.Add(flyingFor))
	n.emit(StoreCommand{Key: p.key, Subject: p.subject, MsgID: msgID, Payload: p.payload, ExpectLastSubjectSeq: p.expect})
}

func (n *Node) healDue(now time.Time, h *heal) {
	if h.flying {
		h.flying = false
		n.flying--
	}
	good, ok := n.table.fact(h.fact.Verb, h.fact.Scope)
	if ok && h.fact.Verb == VerbSuspend {
		good, ok = n.table.inForce(VerbSuspend, h.fact.Scope, now)
	}
	if !ok || good.Subject() != h.subject || n.table.LastSeq(h.subject) != h.expect ||
		h.fact.Verb == VerbReinstate && h.tries >= reinstateHealTries {
		n.timers.stop(&h.timer)
		delete(n.heals, h.subject)
		return
	}
	if n.flying >= maxFlying || !n.quiet {
		n.timers.set(&h.timer, h, now.Add(n.cfg.StoreRetry))
		return
	}
	h.flying = true
	h.tries++
	n.flying++
	n.stats.Stores++
	n.stats.Healed++
	n.timers.set(&h.timer, h, now.Add(flyingFor))
	n.emit(StoreCommand{
		Key:     healKeyPrefix + h.subject,
		Subject: h.subject,
		// The same for every node, so that the store takes one of them.
		MsgID:                fmt.Sprintf("%s|%s%d", h.subject, healAttempt, h.expect),
		Payload:              good.Payload(),
		ExpectLastSubjectSeq: h.expect,
	})
}

func (n *Node) storeResult(now time.Time, r StoreResult) {
	if p := n.pending.byKey[r.Key]; p != nil && p.state == pendingFlying {
		n.pendingStoreResult(now, p, r)
		return
	}
	if strings.HasPrefix(r.Key, rescueKeyPrefix) {
		n.rescueStoreResult(now, r)
		return
	}
	if len(r.Key) > len(healKeyPrefix) && r.Key[:len(healKeyPrefix)] == healKeyPrefix {
		if h := n.heals[r.Key[len(healKeyPrefix):]]; h != nil && h.flying {
			// Whatever the answer, healDue looks at the table: once the journal has delivered a good message, its
			// subject's last seq is no longer the garbage's.
			pause := n.cfg.StoreRetry
			if r.Outcome == StoreOK || r.Outcome == StoreWrongLastSequence {
				pause = recheckAfter
			}
			h.flying = false
			n.flying--
			n.timers.set(&h.timer, h, now.Add(pause))
		}
	}
}

func (n *Node) pendingStoreResult(now time.Time, p *pending, r StoreResult) {
	n.flying--
	last := n.table.LastSeq(p.subject)
	switch r.Outcome {
	case StoreOK:
		p.state = pendingStored
		n.timers.set(&p.timer, p, now.Add(recheckAfter))
		p.acked = r.Seq
		if r.Seq > 0 && r.Seq <= last {
			// The stream had it, and the journal has already delivered a newer one in its place.
			proof := coverGuess
			if n.gaps.contains(r.Seq) {
				proof = coverCertain
			}
			n.coverBy(p, last, proof, nil)
		}
	case StoreWrongLastSequence:
		p.state = pendingBeaten
		n.timers.set(&p.timer, p, now.Add(recheckAfter))
		if last > p.expect {
			n.coverBy(p, last, coverGuess, nil)
		}
	case StoreFailed, StoreInvalid:
		p.state = pendingWaiting
		n.timers.set(&p.timer, p, now.Add(n.cfg.StoreRetry))
	}
}

// coverBy notes that the message seq may stand for a pending fact. It is decided when nothing is pending in the
// journal, see resolveCovered.
func (n *Node) coverBy(p *pending, seq uint64, proof coverProof, same *Fact) {
	if p.cover.seq == 0 {
		n.pending.covered = append(n.pending.covered, p)
	}
	p.cover = cover{seq: seq, proof: proof, same: same}
}

// resolveCovered settles the pending facts for which a newer message of their subject stands. The journal keeps
// the last message per subject, so of two quick revokes of a user the first may never be delivered. Neither silence
// nor an answer to a store proves that this is what happened; so a revoke or suspend is only given up while the
// newer one is in force, at a moment when no later reinstate can be on its way. Otherwise it is stored.
func (n *Node) resolveCovered(now time.Time) {
	if !n.following() || len(n.pending.covered) == 0 {
		return
	}
	covered := n.pending.covered
	n.pending.covered = nil
	for _, p := range covered {
		if n.pending.byKey[p.key] != p {
			continue
		}
		c := p.cover
		switch {
		case !n.quiet && c.proof != coverCertain:
			n.pending.covered = append(n.pending.covered, p)
		case !n.stands(now, p, c):
			p.cover = cover{}
			if p.state != pendingFlying && p.state != pendingStored {
				p.state = pendingWaiting
				n.timers.set(&p.timer, p, later(now, p.receivedAt.Add(n.cfg.StoreAfter)))
			}
		case c.same != nil:
			n.settle(p, *c.same)
		default:
			n.supersede(now, p, c.seq)
		}
	}
}

// stands says whether the message that covers a pending fact denies everything the fact denies. A kill denies
// nothing that a later kill of the scope does not.
func (n *Node) stands(now time.Time, p *pending, c cover) bool {
	if c.proof == coverCertain || p.fact.Verb == VerbKill {
		return true
	}
	f, ok := n.table.notUndone(p.fact.Verb, p.fact.Scope)
	if !ok {
		return p.fact.Verb == VerbSuspend && !now.Before(p.fact.Until)
	}
	// Of two suspends the journal's last one decides, provided that the pending one is in the journal at all.
	return p.fact.Verb != VerbSuspend || c.proof == coverHidden || !f.Until.Before(p.fact.Until)
}

func later(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}
