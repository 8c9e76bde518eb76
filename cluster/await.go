package cluster

import (
	"context"
	"time"

	"pgedge/revoke"
)

const (
	// awaitTick is how often a verdict is looked at while nothing arrives: fences come with time alone.
	awaitTick = 50 * time.Millisecond
	// noteAfter is after how long a node's silence is worth a line, and noteEvery how often the line is repeated: it says
	// when the silence will prove something.
	noteAfter = time.Second
	noteEvery = 5 * time.Second
)

// Await collects the receipts of a publication until its verdict is certain or ctx ends, and calls onLine, if given,
// for every news of a node; one with FencedInMS is about a node that has not answered yet. It returns the verdict and
// the nodes' receipts, pages joined. A verdict that is not certain yet when ctx ends is not an error: it is what the
// evidence proves by then.
//
// ctx should allow for the longest lease, the verify timeout and two seconds; see WaitLimit.
func (c *Client) Await(ctx context.Context, pub *Publication, onLine func(revoke.NodeStatus)) (revoke.FleetVerdict, []revoke.Receipt, error) {
	defer c.Release(pub)
	if onLine == nil {
		onLine = func(revoke.NodeStatus) {}
	}
	tell := func(lines []revoke.NodeStatus) {
		for _, line := range lines {
			onLine(line)
		}
	}
	c.inboxes.wantPresences(pub.inbox)
	if !pub.counted {
		pub.members, pub.counted = c.view.membersAt(ctx, pub.Seq)
	}
	coordinator := revoke.NewCoordinator(pub.ID, pub.Seq, pub.SeenAt, c.streamID, pub.members, c.opts.VerifyTimeout)
	coordinator.Covers(pub.Verb, pub.Scope)
	// What the nodes have said between the publication and this call, a goodbye above all, was nobody's so far.
	_, presences, _ := c.view.state()
	for _, p := range presences {
		if p.Seq > pub.Seq {
			tell(coordinator.Presence(time.Now(), p))
		}
	}
	var early []revoke.Receipt
	note := pub.SeenAt.Add(noteAfter)
	ticker := time.NewTicker(awaitTick)
	defer ticker.Stop()
	for {
		receipts, presences := c.inboxes.take(pub.inbox)
		now := time.Now()
		receipts, early = append(early, receipts...), nil
		for _, r := range receipts {
			if newer := max(r.Seq, r.SupersededBy); newer > pub.Seq && newer > c.view.newest(pub.Verb, pub.Scope) {
				// It speaks of a newer fact, which this client's journal has still to deliver. One that it never delivers is
				// of another journal, or of another fact under the same id.
				early = append(early, r)
				continue
			}
			tell(coordinator.Receipt(now, r))
		}
		for _, p := range presences {
			if p.Seq > pub.Seq { // not one that is only read again
				tell(coordinator.Presence(now, p))
			}
		}
		if c.replaced.Load() {
			coordinator.JournalReplaced()
		}
		tell(coordinator.Fences(now))
		over := ctx.Err() != nil
		verdict, certain := coordinator.Verdict(now, over)
		if !pub.counted {
			// Nodes may be missing from the list: what the others have proven is not the fleet's word.
			verdict.Verdict, certain = revoke.Incomplete, false
		}
		if certain || over {
			return verdict, c.inboxes.joined(pub.inbox, pub.Seq), nil
		}
		if !now.Before(note) {
			note = now.Add(noteEvery)
			tell(coordinator.Waiting(now))
		}
		select {
		case <-pub.inbox.wake:
		case <-ticker.C:
		case <-ctx.Done():
		}
	}
}

// WaitLimit is how long a verdict can take to become certain: the longest lease announced, the time nodes try to see
// backends gone, and two seconds.
func (c *Client) WaitLimit() time.Duration {
	var longest time.Duration
	if _, presences, _ := c.view.state(); len(presences) > 0 {
		now := time.Now()
		for _, p := range presences {
			if p.Live(now) {
				longest = max(longest, p.Lease())
			}
		}
	}
	return longest + c.opts.VerifyTimeout + 2*time.Second
}
