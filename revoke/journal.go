package revoke

import (
	"slices"
	"strconv"
	"strings"
	"time"
)

// journal takes a message of the journal.
func (n *Node) journal(now time.Time, at Instant, m JournalMessage) {
	if m.Seq == 0 {
		return
	}
	if !n.ready && n.load == nil {
		n.beginLoad()
	}
	n.quiet = m.Pending == 0
	switch {
	case m.Seq < n.lastSeq:
		// The stream is another one, or was set back. What it holds is only known after reading all of it; until
		// then the message is merged as any other, which can only deny more.
		why := "it delivered seq " + strconv.FormatUint(m.Seq, 10) + " after " + strconv.FormatUint(n.lastSeq, 10)
		switch {
		case n.ready && n.another == "":
			n.lastReload = now
			n.suspect(at, why)
		case n.lastReload.IsZero() || now.Sub(n.lastReload) >= reloadEvery:
			n.lastReload = now
			n.emit(ReloadCommand{Why: why})
		}
	case m.Seq > n.lastSeq+1:
		n.gaps.add(now, n.lastSeq+1, m.Seq-1)
	}
	n.lastSeq = max(n.lastSeq, m.Seq)

	rest, ours := strings.CutPrefix(m.Subject, subjectPrefix)
	first, _, _ := strings.Cut(rest, ".")
	_, isVerb := ParseVerb(first)
	switch {
	case ours && isVerb:
		n.journalFact(now, m)
	case ours && first == "node":
		n.journalPresence(now, at, m)
	}

	if n.load == nil {
		n.table.Advance(m.Seq)
		n.markTable()
		return
	}
	n.load.table.Advance(m.Seq)
	n.load.lastStored = m.Stored
	if n.ready {
		// What comes after the present table's position is merged into it as well, so its position moves along.
		n.table.Advance(m.Seq)
	}
	if m.Pending == 0 {
		n.endLoad(now, at)
	}
}

// journalFact takes a message whose subject begins like a fact's.
func (n *Node) journalFact(now time.Time, m JournalMessage) {
	f, err := DecodeFact(m.Subject, m.MsgID, m.Payload)
	if err != nil {
		n.refuse(now, m, err)
		return
	}
	f.Seq, f.Epoch, f.Stored = m.Seq, n.epoch, m.Stored
	if isRescue(m.MsgID) {
		defer n.rescued(strings.Clone(m.MsgID), f)
	}
	learned := n.learns(f)
	n.name(now, &f)
	appliedBefore := n.table.Applied()
	again := n.merge(now, f, learned)

	key, known := n.orderKey(now, m, f)
	p := n.pendingFor(m, f, learned)
	if known && learned && p == nil {
		// One attempt stored twice, beyond the stream's duplicate window.
		key += "|" + strconv.FormatUint(m.Seq, 10)
	}
	if learned {
		if p == nil {
			n.stats.Facts[FactCount{f.Verb, ViaJournal}]++
			if f.Raw {
				n.stats.Raw++
			}
		}
		n.coverOthers(f, p)
	}
	if f.Verb == VerbReinstate {
		for _, b := range again {
			n.cutAgain(now, b)
		}
		return
	}
	// Sessions may have begun at or after this position without knowing of the fact: the seq alone does not
	// find them.
	late := learned && n.ready && m.Seq <= appliedBefore
	switch {
	case p != nil:
		if late {
			n.emitProvisional(p)
		}
		n.settle(p, f)
	case learned && n.ready:
		o := Order{Key: key, Fact: f, ReceivedAt: now}
		if late {
			o.Fact.Seq = 0
			n.emit(CutCommand{o})
			o.Fact.Seq = f.Seq
		}
		n.emit(CutCommand{o})
		if m.MsgID == "" && n.load == nil {
			n.giveCredit(now, m.Subject, bareContent(f, m.Payload))
		}
	}
}

// learns says whether a fact of the journal is news. While following, the last seq of its subject decides. While
// loading, the stream may be another one with the same seqs, so the contents have to be the same too.
func (n *Node) learns(f Fact) bool {
	if n.load == nil {
		return f.Seq > n.table.LastSeq(f.Subject())
	}
	if f.Seq <= n.load.table.LastSeq(f.Subject()) {
		return false
	}
	if n.foreign {
		return true
	}
	old, ok := n.table.fact(f.Verb, f.Scope)
	if !ok || old.Subject() != f.Subject() {
		return f.Seq != n.table.LastSeq(f.Subject())
	}
	return !f.sameMessage(old)
}

// merge puts a fact where it belongs. While a ready node loads, the present table takes what denies more at once,
// and what a newer reinstate of the present table would undo is held besides; what allows more waits for the end.
// It returns the blocks that are in force again because of a reinstate that undoes less than the one before.
func (n *Node) merge(now time.Time, f Fact, learned bool) (again []Fact) {
	if n.load == nil {
		_, revoked := n.table.inForce(VerbRevoke, f.Scope, now)
		_, suspended := n.table.inForce(VerbSuspend, f.Scope, now)
		n.table.Merge(f)
		if f.Verb != VerbReinstate {
			return nil
		}
		if b, ok := n.table.inForce(VerbRevoke, f.Scope, now); ok && !revoked {
			again = append(again, b)
		}
		if b, ok := n.table.inForce(VerbSuspend, f.Scope, now); ok && !suspended {
			again = append(again, b)
		}
		return again
	}
	n.load.table.Merge(f)
	delete(n.load.refused, f.Subject())
	if !n.ready || !learned || f.Verb == VerbReinstate {
		return nil
	}
	if f.Verb != VerbKill {
		key := "load|" + strconv.FormatUint(f.Seq, 10) + "|" + f.Subject()
		n.load.heldKeys[key] = struct{}{}
		n.table.AddProvisional(key, f, f.Until)
		n.keepDisplaced(now, f)
	}
	n.table.Merge(f)
	return nil
}

// orderKey is the key of a fact that the fast path did not announce, and whether it has been used.
func (n *Node) orderKey(now time.Time, m JournalMessage, f Fact) (key string, known bool) {
	if m.MsgID == "" {
		return m.Subject + "|seq-" + strconv.FormatUint(m.Seq, 10), false
	}
	key = messageKey(m.Subject, m.MsgID)
	seq, known := n.seen.get(now, key)
	if !known || seq < m.Seq {
		n.seen.put(now, key, m.Seq)
	}
	return key, known && seq != m.Seq
}

// pendingFor finds the pending fact that a message of the journal settles.
func (n *Node) pendingFor(m JournalMessage, f Fact, learned bool) *pending {
	if m.MsgID != "" {
		if p := n.pending.byKey[messageKey(m.Subject, m.MsgID)]; p != nil {
			return p
		}
		if !nodeMade(m.Subject, m.MsgID) {
			return nil
		}
	}
	if !learned {
		return nil
	}
	p := n.pending.oldestBare(m.Subject, bareContent(f, m.Payload))
	if p == nil || n.ready {
		return p
	}
	// In the first replay a bare message may be as old as the journal, and only look like the one that came by the
	// fast path just now.
	n.coverBy(p, f.Seq, coverGuess, &f)
	return nil
}

// coverOthers marks the pending facts of the subject which this message may have replaced in the journal.
func (n *Node) coverOthers(f Fact, settled *pending) {
	for _, p := range n.pending.bySubject[f.Subject()] {
		if p == settled {
			continue
		}
		switch {
		case p.acked != 0 && p.acked < f.Seq && n.gaps.contains(p.acked):
			n.coverBy(p, f.Seq, coverCertain, nil)
		case p.state == pendingBeaten && f.Seq > p.expect:
			n.coverBy(p, f.Seq, coverGuess, p.cover.same)
		case n.ready && (n.load != nil || n.gaps.between(p.known, f.Seq, p.receivedAt.Add(-n.cfg.CreditFor))):
			n.coverBy(p, f.Seq, coverHidden, nil)
		}
	}
}

// refuse counts a message that means nothing, answers it once, and sees to it that the good message it has replaced
// in the journal is not lost.
func (n *Node) refuse(now time.Time, m JournalMessage, why error) {
	v, s, err := ParseSubject(m.Subject)
	news := m.Seq > n.table.Applied()
	if err == nil {
		news = m.Seq > n.table.LastSeq(m.Subject)
		if n.load == nil {
			n.table.noteRefused(m.Subject, m.Seq)
		} else {
			n.load.table.noteRefused(m.Subject, m.Seq)
			n.load.refused[strings.Clone(m.Subject)] = m.Seq
		}
	}
	if !news {
		return
	}
	n.stats.Rejected++
	if n.ready {
		n.emit(RejectCommand{Subject: strings.Clone(m.Subject), Payload: slices.Clone(m.Payload[:min(len(m.Payload), MaxPayloadBytes)]), Why: why.Error()})
	}
	if err == nil && n.load == nil {
		n.healFrom(now, n.table, v, s, m.Subject, m.Seq)
	}
}

// healFrom begins to heal a subject if from holds a good message of it.
func (n *Node) healFrom(now time.Time, from *Table, v Verb, s Scope, subject string, garbage uint64) {
	if good, ok := from.fact(v, s); ok && good.Subject() == subject && good.Seq < garbage {
		n.beginHeal(now, good, garbage)
	}
}

func (n *Node) journalPresence(now time.Time, at Instant, m JournalMessage) {
	p, err := DecodePresence(m.Subject, m.Payload)
	if err != nil {
		if m.Seq > n.table.Applied() {
			n.stats.Rejected++
			if n.ready {
				n.emit(RejectCommand{Subject: strings.Clone(m.Subject), Payload: slices.Clone(m.Payload[:min(len(m.Payload), MaxPayloadBytes)]), Why: err.Error()})
			}
		}
		return
	}
	p.Heard = now
	if p.Node == n.cfg.ID && p.Boot == n.cfg.Boot {
		n.ownBeat(at, p.N, m.Seq)
	}
	if n.following() {
		n.members.live(now, p)
		n.compareTable(now, at, p)
	} else {
		n.members.replayed(now, p, m.Stored)
	}
	n.emit(PresenceCommand{p})
}
