package cluster

import (
	"context"
	"time"

	"pgedge/revoke"
)

// awaitTick is how often a verdict is looked at while nothing arrives: fences come with time alone.
const awaitTick = 50 * time.Millisecond

// Await collects the receipts of a publication until its verdict is certain or ctx ends, and calls onLine, if given,
// for every news of a node. It returns the verdict and the nodes' receipts, pages joined. A verdict that is not
// certain yet when ctx ends is not an error: it is what the evidence proves by then.
//
// ctx should allow for the longest lease, the verify timeout and two seconds; see WaitLimit.
func (c *Client) Await(ctx context.Context, pub *Publication, onLine func(revoke.NodeStatus)) (revoke.FleetVerdict, []revoke.Receipt, error) {
	defer c.Release(pub)
	if onLine == nil {
		onLine = func(revoke.NodeStatus) {}
	}
	c.inboxes.wantPresences(pub.inbox)
	coordinator := revoke.NewCoordinator(pub.ID, pub.Seq, pub.SeenAt, pub.members, c.opts.VerifyTimeout)
	coordinator.Covers(pub.Verb, pub.Scope)
	// What the nodes have said between the publication and this call, a goodbye above all, was nobody's so far.
	_, presences, _ := c.view.state()
	for _, p := range presences {
		if p.Seq > pub.Seq {
			for _, line := range coordinator.Presence(time.Now(), p) {
				onLine(line)
			}
		}
	}
	ticker := time.NewTicker(awaitTick)
	defer ticker.Stop()
	for {
		receipts, presences := c.inboxes.take(pub.inbox)
		for _, r := range receipts {
			for _, line := range coordinator.Receipt(time.Now(), r) {
				onLine(line)
			}
		}
		for _, p := range presences {
			for _, line := range coordinator.Presence(time.Now(), p) {
				onLine(line)
			}
		}
		if verdict, certain := coordinator.Verdict(time.Now(), false); certain {
			return verdict, c.inboxes.joined(pub.inbox, pub.Seq), nil
		}
		select {
		case <-pub.inbox.wake:
		case <-ticker.C:
		case <-ctx.Done():
			verdict, _ := coordinator.Verdict(time.Now(), true)
			return verdict, c.inboxes.joined(pub.inbox, pub.Seq), nil
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
