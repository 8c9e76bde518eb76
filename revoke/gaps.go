package revoke

// maxGaps bounds the ranges that are remembered.
const maxGaps = 1024

// gaps are the seqs that the journal skipped: messages that were replaced by newer ones of their subjects before
// they were delivered. They have happened, and nobody will ever be told what they were.
type gaps struct {
	// count is how many there were while following.
	count  uint64
	ranges []seqRange // the newest ones, ascending
}

type seqRange struct{ first, last uint64 }

func (g *gaps) add(first, last uint64, following bool) {
	if following {
		g.count += last - first + 1
	}
	if len(g.ranges) >= maxGaps {
		g.ranges = append(g.ranges[:0], g.ranges[maxGaps/2:]...)
	}
	g.ranges = append(g.ranges, seqRange{first, last})
}

func (g *gaps) contains(seq uint64) bool {
	for _, r := range g.ranges {
		if r.first <= seq && seq <= r.last {
			return true
		}
	}
	return false
}
