package revoke

import "time"

// maxGaps bounds the ranges that are remembered.
const maxGaps = 1024

// gaps are the seqs that the journal skipped: messages that were replaced by newer ones of their subjects before
// they were delivered. They were stored, and nobody will ever be told what they were.
type gaps struct {
	ranges []seqRange // the newest ones, ascending
}

type seqRange struct {
	first, last uint64
	at          time.Time // when the gap was met
}

func (g *gaps) add(now time.Time, first, last uint64) {
	if len(g.ranges) >= maxGaps {
		g.ranges = append(g.ranges[:0], g.ranges[maxGaps/2:]...)
	}
	g.ranges = append(g.ranges, seqRange{first, last, now})
}

func (g *gaps) contains(seq uint64) bool { return g.between(seq-1, seq+1, time.Time{}) }

// between says whether a seq between two others, exclusively, was skipped since a moment.
func (g *gaps) between(after, before uint64, since time.Time) bool {
	for i := len(g.ranges) - 1; i >= 0; i-- {
		r := g.ranges[i]
		if r.at.Before(since) {
			return false
		}
		if r.first < before && r.last > after {
			return true
		}
	}
	return false
}
