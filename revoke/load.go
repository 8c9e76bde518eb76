package revoke

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"
)

// loading is a journal that is read from its start while the present table goes on refusing logins.
type loading struct {
	table *Table
	// heldKeys are provisional facts that stand for what has been learned and is not in force yet.
	heldKeys map[string]struct{}
	// held are orders that wait for the node to become ready.
	held []Order
	// refused are the subjects on which garbage is the last message, as far as the load has come.
	refused    map[string]uint64
	lastStored time.Time
	// appliedBefore and beatsBefore are what had been applied and sent when the load began, back is this boot's
	// heartbeat in it.
	appliedBefore uint64
	beatsBefore   uint64
	back          beatPlace
	// rescued are the blocks of earlier journals that the load has met, by the id of the message.
	rescued map[string]Fact
	// own are the revokes and suspends of the load that stand in the present table as well. displaced are the blocks that
	// were in force there in their place, by this load and by those that were broken off before it.
	own       map[verbScope]struct{}
	displaced []Fact
}

type verbScope struct {
	verb  Verb
	scope Scope
}

func (n *Node) beginLoad() {
	n.stats.Resets++
	n.keeper.proof = sentBeat{}
	n.reread = false
	n.forgetMarks()
	fresh := &loading{
		table: NewTable(), refused: make(map[string]uint64), heldKeys: make(map[string]struct{}),
		rescued: make(map[string]Fact), own: make(map[verbScope]struct{}),
		appliedBefore: n.table.Applied(), beatsBefore: n.beats.last,
	}
	if n.load != nil {
		// What a broken-off load has learned stays denied until one is complete.
		fresh.held, fresh.heldKeys, fresh.displaced = n.load.held, n.load.heldKeys, n.load.displaced
	}
	n.load = fresh
	n.lastSeq, n.quiet = 0, false
	n.gaps.ranges = nil
}

func (n *Node) journalEmpty(now time.Time, at Instant) {
	if n.load == nil {
		if n.ready {
			return
		}
		n.beginLoad()
	}
	n.endLoad(now, at)
}

// finishLoad puts the loaded table in the place of the present one.
func (n *Node) finishLoad(now time.Time) {
	l := n.load
	recreated := n.another != ""
	if recreated {
		n.epoch++
		n.beats.back, n.beats.expect = l.back, l.back.seq
		n.keeper.proof, n.beats.sent = sentBeat{}, nil
	} else {
		n.keepReplaced(now, l)
		if n.ready {
			n.beats.back = l.back
		}
	}
	news := n.table.replace(l, recreated, n.foreign, n.epoch, now)
	n.another, n.foreign = "", false
	for id, f := range l.rescued {
		n.table.dropCarried(f, id)
	}
	n.beginRescues(now)
	for key := range l.heldKeys {
		n.table.DropProvisional(key)
	}
	n.members.settle(now, l.lastStored)
	n.beats.owedSince = now
	n.load = nil
	n.quiet = true
	n.tablesLoaded()
	n.markTable()
	for _, p := range n.pending.byKey {
		// What was promised was promised by the journal before.
		if p.state == pendingStored || p.state == pendingBeaten {
			p.state = pendingWaiting
			n.timers.set(&p.timer, p, now.Add(n.cfg.StoreAfter))
		}
	}
	if !n.ready {
		n.becomeReady(l.held)
		return
	}
	for _, f := range news {
		n.cutAgain(now, f)
	}
}

// cutAgain cuts for a block that is in force once more, because what had undone it is no longer in the journal or
// was replaced by something that undoes less. Sessions that began in between have positions beyond its seq. Its
// receipt stands beside the first one.
func (n *Node) cutAgain(now time.Time, f Fact) {
	applied := n.table.Applied()
	o := Order{Key: fmt.Sprintf("%s|again-%d-%d-%d", f.Subject(), n.stats.Resets, f.Seq, applied), Fact: f, ReceivedAt: now}
	o.Fact.ID = SeqID(f.ID, applied)
	o.Fact.Seq = 0
	n.emit(CutCommand{o})
	o.Fact.Seq = f.Seq
	n.emit(CutCommand{o})
}

// keepDisplaced keeps the block in whose place the present table is about to take a fact of the load. In one journal the
// newer fact decides, which is only known to be the case when the load is complete; and another journal's fact, of which
// the seq says nothing, must not end a block of the present one.
func (n *Node) keepDisplaced(now time.Time, f Fact) {
	l, key := n.load, verbScope{f.Verb, f.Scope}
	if last, ok := n.table.fact(f.Verb, f.Scope); ok && f.Seq <= last.Seq {
		return
	}
	_, again := l.own[key]
	l.own[key] = struct{}{}
	old, ok := n.table.inForce(f.Verb, f.Scope, now)
	if again || !ok {
		return
	}
	l.displaced = append(l.displaced, old)
	held := "displaced|" + strconv.FormatUint(old.Seq, 10) + "|" + old.Subject()
	l.heldKeys[held] = struct{}{}
	n.table.AddProvisional(held, old, old.Until)
}

// keepReplaced carries good messages over that garbage has replaced in the journal since the present table read
// them, or while the load was on its way.
func (n *Node) keepReplaced(now time.Time, l *loading) {
	for subject, garbage := range l.refused {
		v, s, err := ParseSubject(subject)
		if err != nil {
			continue
		}
		if good, ok := n.table.fact(v, s); ok && good.Subject() == subject && good.Seq < garbage {
			l.table.Merge(good)
		}
		n.healFrom(now, l.table, v, s, subject, garbage)
	}
}

// becomeReady admits logins, and makes up for the orders of facts that came by the fast path meanwhile: there is
// nothing to cut, but their publishers wait for a receipt.
func (n *Node) becomeReady(held []Order) {
	n.ready = true
	n.emit(ReadyCommand{})
	for _, o := range held {
		n.emit(CutCommand{o})
	}
	waiting := make([]*pending, 0, len(n.pending.byKey))
	for _, p := range n.pending.byKey {
		waiting = append(waiting, p)
	}
	slices.SortFunc(waiting, func(a, b *pending) int {
		if c := a.receivedAt.Compare(b.receivedAt); c != 0 {
			return c
		}
		return strings.Compare(a.key, b.key)
	})
	for _, p := range waiting {
		n.emitProvisional(p)
	}
}
