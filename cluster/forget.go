package cluster

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/oklog/ulid/v2"

	"pgedge/revoke"
)

// forgetLimit bounds Forget where its context does not.
const forgetLimit = 10 * time.Second

// FindForgettable returns the boot of a node that can be forgotten: the only one that is silent or gone, or the one
// named. A live one is refused, since it would only announce itself again.
func (c *Client) FindForgettable(ctx context.Context, node, boot string) (NodeInfo, error) {
	if err := c.view.wait(ctx); err != nil {
		return NodeInfo{}, fmt.Errorf("cannot read the journal: %w", err)
	}
	_, presences, _ := c.view.state()
	now := time.Now()
	var known, silent []NodeInfo
	for _, p := range presences {
		if p.Node != node || boot != "" && p.Boot != boot {
			continue
		}
		info := NodeInfo{Presence: p, Status: presenceStatus(p, now), HeardMS: now.Sub(p.Heard).Milliseconds()}
		known = append(known, info)
		if info.Status == "silent" || info.Status == "gone" {
			silent = append(silent, info)
		}
	}
	what := "node " + node
	if boot != "" {
		what = "boot " + boot + " of " + what
	}
	switch {
	case len(silent) == 1:
		return silent[0], nil
	case len(silent) > 1:
		var boots []string
		for _, s := range silent {
			boots = append(boots, fmt.Sprintf("%s (heard %s ago)", s.Presence.Boot, age(s.HeardMS)))
		}
		return NodeInfo{}, fmt.Errorf("several boots of node %s are silent: say which with --boot: %s", node, strings.Join(boots, ", "))
	case len(known) == 0:
		return NodeInfo{}, fmt.Errorf("the journal knows no %s", what)
	}
	for _, k := range known {
		if k.Status == "live" {
			return NodeInfo{}, fmt.Errorf("%s is live, heard %s ago: stop it, and it says goodbye by itself; one that was killed can be forgotten when its lease of %s has ended",
				what, age(k.HeardMS), k.Presence.Lease())
		}
	}
	return NodeInfo{}, fmt.Errorf("%s has %s already: nothing waits for it", what, map[string]string{"left": "left", "forgotten": "been forgotten"}[known[0].Status])
}

func age(ms int64) time.Duration { return (time.Duration(ms) * time.Millisecond).Round(time.Second) }

// Forget declares that a silent boot does not run any more: a goodbye takes the place of its last heartbeat, so that
// no verdict waits for it. by is who says so. It fails when the boot has been heard of since info was looked up.
func (c *Client) Forget(ctx context.Context, info NodeInfo, by string) (seq uint64, err error) {
	ctx, cancel := context.WithTimeout(ctx, forgetLimit)
	defer cancel()
	ctx, unbind := c.rights.bind(ctx)
	defer unbind()
	last := info.Presence
	b, err := json.Marshal(last.Forget(by, time.Now().UTC()))
	if err != nil {
		return 0, fmt.Errorf("cannot encode presence: %w", err)
	}
	subject := revoke.NodeSubject(last.Node, last.Boot)
	msg := nats.NewMsg(subject)
	msg.Data = b
	msg.Header.Set(nats.MsgIdHdr, subject+"|"+ulid.Make().String())
	w, _ := c.view.watch(subject, msg.Header.Get(nats.MsgIdHdr))
	defer c.view.unwatch(subject, w)
	for {
		attempt, cancel := context.WithTimeout(ctx, publishRetry)
		_, err = c.js.PublishMsg(attempt, msg, jetstream.WithExpectStream(journalStream),
			jetstream.WithExpectLastSequencePerSubject(last.Seq), jetstream.WithRetryAttempts(0))
		cancel()
		// An acknowledgement can be lost, and a refusal be due to the message's own first copy: only what comes back
		// through the journal counts.
		if found, ok := c.awaitSubject(ctx, w, last.Seq); ok {
			if found.mine == 0 {
				return 0, fmt.Errorf("node %s has been heard of again in this moment: it runs, and was not forgotten", last.Node)
			}
			return found.mine, nil
		}
		if ctx.Err() != nil {
			return 0, fmt.Errorf("cannot forget node %s: %w", last.Node, c.rights.explain(errors.Join(ErrNotStored, err)))
		}
	}
}

// awaitSubject waits a moment for a message of the subject behind a position.
func (c *Client) awaitSubject(ctx context.Context, w *subjectWaiter, base uint64) (subjectWaiter, bool) {
	ctx, cancel := context.WithTimeout(ctx, publishRetry)
	defer cancel()
	for {
		if found := c.view.look(w); found.mine > 0 || found.newest > base {
			return found, true
		}
		select {
		case <-w.wake:
		case <-ctx.Done():
			return subjectWaiter{}, false
		}
	}
}
