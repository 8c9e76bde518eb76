package revoke

import (
	"crypto/sha256"
	"fmt"
	"strings"
	"time"
)

const (
	rescueAttempt   = "node-rescue-"
	rescueKeyPrefix = "rescue|"
)

// rescue is a block of a journal that is gone, on its way into the present one: a node that starts later would not know
// it otherwise. It is stored under its own verb, with Expected-Last-Subject-Sequence as the present journal has it, 0 in
// an empty one, and under an id that is the same on every node, so that the journal takes one of them. Whoever reads that
// id carries the block no longer: from there on the journal decides about it.
//
// A reinstate in the present journal ends the carrying as well. One that is published in the instant in which the block
// is stored loses against it, as its author had not seen the copy; that errs on the side of refusing.
type rescue struct {
	timer
	fact   Fact
	flying bool
}

// rescueMsgID is the Nats-Msg-Id of a rescued block. Every node holds the same message of the journal before, whatever
// it has come to call it.
func rescueMsgID(f Fact) string {
	sum := sha256.Sum256(fmt.Appendf(nil, "%s|%d|%d|%d", f.Subject(), f.Seq, f.Stored.UnixNano(), f.Until.UnixNano()))
	return fmt.Sprintf("%s|%s%x", f.Subject(), rescueAttempt, sum[:12])
}

func isRescue(msgID string) bool { return strings.HasPrefix(AttemptID(msgID), rescueAttempt) }

// beginRescues sees to it that every carried block gets into the journal.
func (n *Node) beginRescues(now time.Time) {
	for _, f := range n.table.carriedBlocks() {
		id := rescueMsgID(f)
		if n.rescues[id] == nil {
			r := &rescue{fact: f}
			n.rescues[id] = r
			n.timers.set(&r.timer, r, now)
		}
	}
}

// rescued takes a message that a node has rescued.
func (n *Node) rescued(msgID string, f Fact) {
	if n.load != nil {
		n.load.rescued[msgID] = f
		return
	}
	n.table.dropCarried(f, msgID)
}

func (n *Node) rescueDue(now time.Time, r *rescue) {
	id := rescueMsgID(r.fact)
	if r.flying {
		r.flying = false
		n.flying--
	}
	if !n.table.carries(r.fact.Scope, id) || n.covered(now, r.fact) {
		n.timers.stop(&r.timer)
		delete(n.rescues, id)
		return
	}
	if n.flying >= maxFlying || !n.quiet {
		n.timers.set(&r.timer, r, now.Add(n.cfg.StoreRetry))
		return
	}
	r.flying = true
	n.flying++
	n.stats.Stores++
	n.stats.Rescued++
	n.timers.set(&r.timer, r, now.Add(flyingFor))
	n.emit(StoreCommand{
		Key: rescueKeyPrefix + id, Subject: r.fact.Subject(), MsgID: id, Payload: r.fact.Payload(),
		ExpectLastSubjectSeq: n.table.LastSeq(r.fact.Subject()),
	})
}

// covered says that the present journal denies all that a carried block denies, so that it need not be told.
func (n *Node) covered(now time.Time, f Fact) bool {
	if _, ok := n.table.inForce(VerbRevoke, f.Scope, now); ok {
		return true
	}
	if f.Verb != VerbSuspend {
		return false
	}
	s, ok := n.table.inForce(VerbSuspend, f.Scope, now)
	return !now.Before(f.Until) || ok && !s.Until.Before(f.Until)
}

func (n *Node) rescueStoreResult(now time.Time, r StoreResult) {
	id, _ := strings.CutPrefix(r.Key, rescueKeyPrefix)
	if res := n.rescues[id]; res != nil && res.flying {
		pause := n.cfg.StoreRetry
		if r.Outcome == StoreOK {
			// Whatever the answer, rescueDue looks whether the journal has delivered it.
			pause = recheckAfter
		}
		res.flying = false
		n.flying--
		n.timers.set(&res.timer, res, now.Add(pause))
	}
}
