package revoke

import (
	"fmt"
	"time"
)

// Two nodes that have read the same journal up to the same seq, with nothing pending, hold the same table. One that
// does not is broken in a way that nothing else shows, and may let in whom the others refuse. So heartbeats carry seq
// and hash; a node that is contradicted by more nodes than agree with it reads the journal again, and serves nobody if
// that does not help. Two nodes that contradict each other both stop: nothing says which of them is right.

// tablesState is how the node's table compares with those of the others.
type tablesState uint8

const (
	tablesAgree     tablesState = iota // or nothing is known
	tablesReloading                    // contradicted: the journal is to be read again
	tablesReread                       // it has been; the next comparison decides
	tablesDiffer                       // contradicted again: nobody is served until the others agree
)

// maxMarks bounds the seqs whose hash is remembered: a heartbeat tells of a seq that is a moment old.
const maxMarks = 512

// tableMark is the hash of the table when seq had been applied and nothing was pending.
type tableMark struct {
	seq uint64
	sum factSum
}

// opinion is what the last comparison with one node has said. Its boots have one between them: a node's credentials are
// good for any number of boots.
type opinion struct {
	same bool
	at   time.Time
	seq  uint64
}

type tableCompare struct {
	state    tablesState
	marks    []tableMark        // ascending
	opinions map[string]opinion // by node
}

// comparable says that the table is what anybody reads in the journal up to the applied seq. It is not while the node
// holds a good message that garbage has replaced in the journal.
func (n *Node) comparable() bool {
	return n.following() && n.quiet && n.another == "" && n.lastSeq == n.table.Applied() && n.table.pure()
}

// markTable remembers the present table for comparisons.
func (n *Node) markTable() {
	if !n.comparable() {
		return
	}
	c := &n.tables
	if len(c.marks) >= maxMarks {
		c.marks = append(c.marks[:0], c.marks[maxMarks/2:]...)
	}
	c.marks = append(c.marks, tableMark{n.lastSeq, n.table.sum()})
}

// compareTable takes the heartbeat of another boot.
func (n *Node) compareTable(now time.Time, at Instant, p Presence) {
	c := &n.tables
	if p.TableHash == "" || p.Stream != n.stream || p.State == StateLeft || p.Node == n.cfg.ID {
		return
	}
	for i := len(c.marks) - 1; i >= 0 && c.marks[i].seq >= p.Applied; i-- {
		if m := c.marks[i]; m.seq == p.Applied {
			if c.opinions == nil || len(c.opinions) >= maxMembers {
				c.opinions = make(map[string]opinion)
			}
			c.opinions[p.Node] = opinion{m.sum.String() == p.TableHash, now, p.Applied}
			n.judgeTable(now, at)
			return
		}
	}
}

func (n *Node) judgeTable(now time.Time, at Instant) {
	c := &n.tables
	same, different := 0, 0
	var against opinion
	who := ""
	for node, o := range c.opinions {
		switch {
		case now.Sub(o.at) > n.cfg.Lease:
			delete(c.opinions, node)
		case o.same:
			same++
		default:
			different++
			if o.at.After(against.at) || o.at.Equal(against.at) && node < who {
				against, who = o, node
			}
		}
	}
	if different <= same {
		c.state = tablesAgree
		return
	}
	why := fmt.Sprintf("at seq %d its table is not that of node %s, and of %d nodes compared %d agree with it", against.seq, who, same+different, same)
	switch c.state {
	case tablesAgree:
		c.state = tablesReloading
		n.emit(ReloadCommand{Why: why})
	case tablesReread:
		c.state = tablesDiffer
		n.takeLease(at, why+", also after it has read the journal again")
	case tablesReloading, tablesDiffer:
	}
}

// forgetMarks is called when a load begins, tablesLoaded when it is finished.
func (n *Node) forgetMarks() {
	n.tables.marks, n.tables.opinions = nil, nil
}

func (n *Node) tablesLoaded() {
	if n.tables.state == tablesReloading {
		n.tables.state = tablesReread
	}
}
