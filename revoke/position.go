package revoke

// Position is a place in the journals that a node has read. Seqs of different journals do not compare: a greater
// epoch is a later journal, and whatever has a position in an earlier one comes before all of it.
type Position struct {
	Epoch uint64
	Seq   uint64
}

// Before says whether the position comes before another one.
func (p Position) Before(q Position) bool {
	return p.Epoch < q.Epoch || p.Epoch == q.Epoch && p.Seq < q.Seq
}

// Position is where the fact stands in the journals; Seq is 0 while it is provisional.
func (f Fact) Position() Position { return Position{f.Epoch, f.Seq} }
