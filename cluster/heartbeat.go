package cluster

import (
	"context"
	"encoding/json"
	"fmt"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"pgedge/revoke"
)

const (
	heartbeatTimeout = time.Second
	// alarmRepeat is how often the log says again that the journal cannot be written.
	alarmRepeat = time.Minute
	// reviveAfter is how long an embedded journal may refuse heartbeats, with an error in the server's log, before it is
	// closed and opened again, and how often that is tried. Without such an error it may just be slow, and a restart
	// would make that worse, so it gets reviveAnyway.
	reviveAfter  = 5 * time.Second
	reviveAnyway = 30 * time.Second
)

// heartbeat is what a node knows about its own presences beside what the state machine knows. It may be used by any
// goroutine.
type heartbeat struct {
	mu       sync.Mutex
	failing  time.Time
	reminded time.Time
	revived  time.Time
}

func (n *Node) heartbeatLoop() {
	ticker := time.NewTicker(n.cfg.Heartbeat)
	defer ticker.Stop()
	for {
		n.sendHeartbeat(n.ctx)
		select {
		case <-n.ctx.Done():
			return
		case <-ticker.C:
		case <-n.beatNow:
		}
	}
}

// sendHeartbeat publishes one presence. It is not retried and not queued: the next one is fresher.
func (n *Node) sendHeartbeat(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, heartbeatTimeout)
	defer cancel()
	c := n.nextBeat()
	seq, err := n.publish(ctx, n.presence(c, n.State()), c.ExpectLastSubjectSeq)
	result := revoke.HeartbeatResult{N: c.N, Outcome: revoke.StoreOK, Seq: seq}
	switch {
	case n.ctx.Err() != nil:
		return
	case err == nil:
		n.m.heartbeats.Inc()
		n.clearAlarm()
	case isWrongLastSequence(err):
		// The journal can be written; the state machine finds out whether an answer was lost or the stream is another.
		n.m.heartbeatFailures.Inc()
		n.clearAlarm()
		result.Outcome = revoke.StoreWrongLastSequence
		result.Last, result.LastKnown = lastSequenceIn(err)
		n.log.Warn("the journal has refused a heartbeat: its last one of this boot is another", "expected", c.ExpectLastSubjectSeq, "last", result.Last)
	default:
		n.m.heartbeatFailures.Inc()
		result.Outcome = revoke.StoreFailed
		n.raiseAlarm(err)
		n.reviveJournal()
	}
	n.handle(time.Now(), result)
}

// nextBeat is the next heartbeat, as fresh as this moment.
func (n *Node) nextBeat() revoke.HeartbeatCommand {
	n.handle(time.Now(), revoke.HeartbeatDue{})
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.dueBeat
}

// beatSoon makes the next heartbeat come at once.
func (n *Node) beatSoon() {
	select {
	case n.beatNow <- struct{}{}:
	default:
	}
}

// leave publishes the node's last presence.
func (n *Node) leave(ctx context.Context) error {
	n.setState(revoke.StateLeft)
	ctx, cancel := context.WithTimeout(ctx, goodbyeTimeout)
	defer cancel()
	// Without an expected sequence: a heartbeat may be on its way, and this one has to come last anyway.
	p := n.presence(n.nextBeat(), revoke.StateLeft)
	// Without sessions a goodbye excuses the node from answering, so that evidence which is lost has to count as well.
	p.Sessions += n.receipts.pending()
	if _, err := n.publish(ctx, p, anySequence); err != nil {
		return fmt.Errorf("cannot announce that the node has left: %w", err)
	}
	return nil
}

func (n *Node) presence(c revoke.HeartbeatCommand, state string) revoke.Presence {
	stats := n.stats()
	return revoke.Presence{
		V:         1,
		Node:      n.cfg.Node,
		Boot:      n.cfg.Boot,
		N:         c.N,
		Version:   n.cfg.Version,
		At:        time.Now().UTC(),
		LeaseMS:   n.cfg.Lease.Milliseconds(),
		OnStale:   n.cfg.OnStale,
		Applied:   c.Applied,
		TableHash: c.TableHash,
		Stream:    c.Stream,
		Sessions:  n.eng.SessionCount(),
		Unsettled: stats.Unsettled,
		State:     state,
		Rejected:  stats.Rejected,

		HeartbeatMS: n.cfg.Heartbeat.Milliseconds(),
		Upstreams:   n.eng.Upstreams(),
	}
}

// publishPresence stores a presence whatever the subject's last sequence is.
func (n *Node) publishPresence(ctx context.Context, p revoke.Presence) error {
	_, err := n.publish(ctx, p, anySequence)
	return err
}

// anySequence stands for no expectation; no stream gets that far.
const anySequence = ^uint64(0)

func (n *Node) publish(ctx context.Context, p revoke.Presence, expect uint64) (seq uint64, err error) {
	b, err := json.Marshal(p)
	if err != nil {
		return 0, fmt.Errorf("cannot encode presence: %w", err)
	}
	opts := []jetstream.PublishOpt{jetstream.WithExpectStream(journalStream), jetstream.WithRetryAttempts(0)}
	if expect != anySequence {
		opts = append(opts, jetstream.WithExpectLastSequencePerSubject(expect))
	}
	ack, err := n.js.PublishMsg(ctx, &nats.Msg{Subject: revoke.NodeSubject(p.Node, p.Boot), Data: b}, opts...)
	if err != nil {
		return 0, fmt.Errorf("cannot store presence: %w", err)
	}
	return ack.Sequence, nil
}

// raiseAlarm says once, and then every minute, that the journal cannot be written.
func (n *Node) raiseAlarm(err error) {
	now := time.Now()
	n.m.journalAlarm.Store(true)
	h := &n.beat
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.failing.IsZero() {
		h.failing = now
	} else if now.Sub(h.reminded) < alarmRepeat {
		return
	}
	h.reminded = now
	n.log.Error("ALARM: the journal cannot be written; revocations are not stored until it can", "since", h.failing, "error", err)
}

// reviveJournal opens an embedded journal again that refuses writes. On a full disk its server does not even answer,
// so that only its log tells a refusal from slowness.
func (n *Node) reviveJournal() {
	if !n.cfg.alone() {
		// With routes a refusal may be a partition, and a server that leaves its peers only makes that worse.
		return
	}
	now := time.Now()
	h := &n.beat
	h.mu.Lock()
	patience := reviveAnyway
	if n.srv.logger.failedSince(h.failing.Add(-heartbeatTimeout)) || !n.srv.srv.JetStreamEnabled() {
		patience = reviveAfter
	}
	due := now.Sub(h.failing) >= patience && now.Sub(h.revived) >= patience
	if due {
		h.revived = now
	}
	h.mu.Unlock()
	if !due {
		return
	}
	n.log.Warn("opening the journal again")
	if err := n.srv.revive(); err != nil {
		n.log.Error("cannot open the journal again yet", "error", err)
		return
	}
	n.reload("the journal was opened again")
}

func (n *Node) clearAlarm() {
	n.m.journalAlarm.Store(false)
	h := &n.beat
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.failing.IsZero() {
		return
	}
	n.log.Info("the journal can be written again", "after", time.Since(h.failing).Round(time.Millisecond).String())
	h.failing, h.reminded = time.Time{}, time.Time{}
}

// stream is the identity of the journal at present.
func (n *Node) stream() string {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.proto.Stream()
}

// readDomain is the JetStream domain that answers on this connection. It is part of the journal's identity: a leaf node
// may have streams of the same name.
func (n *Node) readDomain() (string, error) {
	ctx, cancel := context.WithTimeout(n.ctx, followRequestTimeout)
	defer cancel()
	account, err := n.js.AccountInfo(ctx)
	if err != nil {
		return "", fmt.Errorf("cannot read JetStream account: %w", err)
	}
	return account.Domain, nil
}
