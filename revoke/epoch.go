package revoke

import (
	"fmt"
	"time"
)

// The stream that is the journal can be lost and made anew, or be set back to an old copy. A consumer alone never
// notices: asked for a seq beyond the end it just waits. What gives another stream away is its identity; a seq that
// goes back; and the place of this boot's last heartbeat, which only this boot writes to. Then the node loads the other
// stream beside its table, and counts a new epoch.
//
// A load that ends short of what had been applied proves nothing by itself, as the consumer may sit on a replica that
// lags: the next heartbeat that comes back, or is refused, decides.

// doubt notes that the journal is another one: nobody is served until all of it has been read.
func (n *Node) doubt(at Instant, why string) {
	if n.another != "" {
		return
	}
	n.another = "the journal is another stream than before: " + why
	n.takeLease(at, n.another)
}

// suspect is doubt about a stream that the present consumer may not have begun with: it has to be read anew.
func (n *Node) suspect(at Instant, why string) {
	if n.another == "" {
		n.doubt(at, why)
		n.reread = true
		n.emit(ReloadCommand{Why: n.another})
	}
}

// adopt takes the identity of the stream that a new consumer reads.
func (n *Node) adopt(at Instant, stream string) {
	was := n.stream
	if stream == "" || stream == was {
		return
	}
	n.stream = stream
	if was == "" {
		return
	}
	n.foreign = true
	why := fmt.Sprintf("was %s, is %s", was, stream)
	if n.ready {
		n.doubt(at, why)
		return
	}
	// Nothing has been read completely yet, so nothing but the heartbeats belongs to the stream before.
	n.beats.back, n.beats.expect, n.beats.sent, n.keeper.proof = beatPlace{}, 0, nil, sentBeat{}
}

// endLoad is called when nothing is pending in the load. It is not finished while it lacks something that had been
// applied and nothing says yet why.
func (n *Node) endLoad(now time.Time, at Instant) {
	l, b := n.load, &n.beats
	if n.reread {
		return
	}
	if n.ready && n.another == "" {
		if l.table.Applied() < l.appliedBefore {
			return
		}
		if l.back.seq < b.back.seq {
			n.doubt(at, fmt.Sprintf("it has lost this node's heartbeat at %d", b.back.seq))
		}
	}
	n.finishLoad(now)
}
