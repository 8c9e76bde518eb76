package revoke

import (
	"fmt"
	"time"
)

// clockSlack is by how much the clocks of publisher, node and reader may differ before a receipt's times count as
// impossible.
const clockSlack = 5 * time.Minute

// Problems lists what is wrong with a receipt taken by itself: one whose pages are joined, read at now. A receipt that
// a node made has none.
func (r Receipt) Problems(now time.Time) []string {
	var out []string
	bad := func(format string, args ...any) { out = append(out, fmt.Sprintf(format, args...)) }

	if r.Schema != ReceiptSchema {
		bad("schema is %.40q, not %s", r.Schema, ReceiptSchema)
	}
	if !ValidID(r.Revocation) {
		bad("revocation is no id")
	}
	if !ValidNodeID(r.Node) {
		bad("node is no node id")
	}
	if !ValidID(r.Boot) {
		bad("boot is no id")
	}
	if v, ok := ParseVerb(r.Verb); !ok || v == VerbReinstate {
		bad("verb is %.40q: not one that ends sessions", r.Verb)
	}
	if _, err := ParseScope(r.Scope); err != nil {
		bad("scope cannot be read: %v", err)
	}
	if r.Seq == 0 && r.SupersededBy == 0 {
		bad("it has no position in the journal, nor that of a newer fact")
	}
	if r.SupersededBy != 0 && r.SupersededBy <= r.Seq {
		bad("superseded by seq %d, which is not newer than seq %d", r.SupersededBy, r.Seq)
	}
	if r.rank() == rankNone {
		bad("stage is %.40q", r.Stage)
	}
	if r.Page != 0 {
		bad("it is page %d, not a whole receipt", r.Page)
	}
	r.countProblems(bad)
	r.timeProblems(now, bad)
	return out
}

func (r Receipt) countProblems(bad func(string, ...any)) {
	if r.Matched < 0 || r.Unverified < 0 || r.Pages < 0 {
		bad("a count is negative")
	}
	if want := (len(r.Sessions) + SessionsPerPage - 1) / SessionsPerPage; r.Pages < want || len(r.Sessions) == 0 && r.Pages > 0 {
		bad("%d sessions do not come on %d pages", len(r.Sessions), r.Pages)
	}
	unverified, ids := 0, make(map[string]bool, len(r.Sessions))
	for _, s := range r.Sessions {
		if !s.Verified {
			unverified++
		}
		if ids[s.ID] {
			bad("session %.80q comes twice", s.ID)
		}
		ids[s.ID] = true
		if s.BytesAfter != 0 {
			bad("session %.80q passed %d bytes after the cut", s.ID, s.BytesAfter)
		}
		if s.Verified && (s.Backend == "timeout" || s.Backend == "cancelled") {
			bad("session %.80q counts as verified, and its backend as %s", s.ID, s.Backend)
		}
	}
	if !r.Final() {
		return
	}
	if r.Matched != len(r.Sessions) {
		bad("%d sessions matched, %d are listed", r.Matched, len(r.Sessions))
	}
	if unverified != r.Unverified {
		bad("unverified is %d, and %d sessions are not verified", r.Unverified, unverified)
	}
	if r.Stage == StageVerified && r.Unverified > 0 {
		bad("stage is verified with %d sessions that are not", r.Unverified)
	}
}

func (r Receipt) timeProblems(now time.Time, bad func(string, ...any)) {
	switch {
	case r.ReceivedAt.IsZero():
		bad("it does not say when the fact was received")
	case r.ReceivedAt.After(now.Add(clockSlack)):
		bad("it was received in the future, at %s", r.ReceivedAt.Format(time.RFC3339))
	case !r.PublishedAt.IsZero() && r.PublishedAt.After(r.ReceivedAt.Add(clockSlack)):
		bad("it was received at %s, before it was published at %s", r.ReceivedAt.Format(time.RFC3339), r.PublishedAt.Format(time.RFC3339))
	}
	last := int64(0)
	for _, stage := range []struct {
		name string
		us   int64
	}{{"cut", r.CutUS}, {"closed", r.ClosedUS}, {"verified", r.VerifiedUS}} {
		switch {
		case stage.us < 0:
			bad("%s after a negative time", stage.name)
		case stage.us > 0 && stage.us < last:
			bad("%s after %d us, earlier than the stage before it", stage.name, stage.us)
		}
		last = max(last, stage.us)
	}
}
