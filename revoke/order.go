package revoke

import "time"

// Order tells the engine to cut the sessions a fact applies to. A fact first seen on the fast path gives two
// orders with the same Key: a provisional one (Fact.Seq == 0: cut every match that exists now) and one with
// Seq (cut every match with authSeq < Seq, and the receipt may be published now).
type Order struct {
	Key        string
	Fact       Fact
	Fast       bool      // first seen on the fast path
	ReceivedAt time.Time // of the first delivery; carries the monotonic clock
	// SupersededBy is the seq of the newer fact of the same subject that replaced this one in the journal before
	// it was delivered; then Fact.Seq is 0, and the order settles the receipt and cuts nothing.
	SupersededBy uint64
}
