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
	// heartbeatEcho is how long an acknowledged heartbeat may take to come back through the journal's consumer
	// before that consumer is taken for dead.
	heartbeatEcho = 2 * time.Second
	// alarmRepeat is how often the log says again that the journal cannot be written.
	alarmRepeat = time.Minute
	// identityCheckEvery is how often the journal is asked whether it is still the same stream.
	identityCheckEvery = time.Minute
	// reviveAfter is how long an embedded journal may refuse heartbeats, with an error in the server's log, before it is
	// closed and opened again, and how often that is tried. Without such an error it may just be slow, and a restart
	// would make that worse, so it gets reviveAnyway.
	reviveAfter  = 5 * time.Second
	reviveAnyway = 30 * time.Second
)

// heartbeat is what a node knows about its own presences. It may be used by any goroutine.
type heartbeat struct {
	mu       sync.Mutex
	n        uint64 // number of the newest one published
	ackedN   uint64 // newest one acknowledged
	ackedAt  time.Time
	backN    uint64 // newest one delivered back
	lastSeq  uint64 // position of the newest one known to be stored
	failing  time.Time
	reminded time.Time
	revived  time.Time
}

func (h *heartbeat) next() (n, expectSeq uint64) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.n++
	return h.n, h.lastSeq
}

func (h *heartbeat) acked(n, seq uint64, now time.Time) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.ackedN, h.ackedAt = n, now
	h.lastSeq = max(h.lastSeq, seq)
}

func (h *heartbeat) delivered(subject, own string, seq uint64) {
	if subject != own {
		return
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.lastSeq = max(h.lastSeq, seq)
}

func (h *heartbeat) back(n uint64) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.backN = max(h.backN, n)
}

func (h *heartbeat) hasComeBack() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.backN > 0
}

// echoOverdue reports whether an acknowledged heartbeat should have come back by now.
func (h *heartbeat) echoOverdue(now time.Time) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.ackedN > h.backN && now.Sub(h.ackedAt) > heartbeatEcho
}

func (n *Node) ownSubject() string { return revoke.NodeSubject(n.cfg.Node, n.cfg.Boot) }

func (n *Node) heartbeatLoop() {
	ticker := time.NewTicker(n.cfg.Heartbeat)
	defer ticker.Stop()
	identityChecked := time.Now()
	for {
		n.sendHeartbeat(n.ctx)
		if n.beat.echoOverdue(time.Now()) {
			n.reload("a stored heartbeat has not come back")
		}
		if now := time.Now(); now.Sub(identityChecked) >= identityCheckEvery {
			identityChecked = now
			n.checkIdentity()
		}
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
	if err := n.announce(ctx, n.State()); err != nil {
		if n.ctx.Err() != nil {
			return
		}
		n.m.heartbeatFailures.Inc()
		if isWrongLastSequence(err) {
			// The node's own last heartbeat is not where it was: a reload finds out whether an acknowledgement was
			// lost or the stream is another one.
			n.reload("the journal holds another last heartbeat of this node")
			return
		}
		n.raiseAlarm(err)
		n.reviveJournal()
		return
	}
	n.m.heartbeats.Inc()
	n.clearAlarm()
}

func (n *Node) announce(ctx context.Context, state string) error {
	number, expect := n.beat.next()
	seq, err := n.publish(ctx, n.presence(number, state), expect)
	if err != nil {
		return err
	}
	n.beat.acked(number, seq, time.Now())
	return nil
}

// leave publishes the node's last presence.
func (n *Node) leave(ctx context.Context) error {
	n.setState(revoke.StateLeft)
	ctx, cancel := context.WithTimeout(ctx, goodbyeTimeout)
	defer cancel()
	// Without an expected sequence: a heartbeat may be on its way, and this one has to come last anyway.
	number, _ := n.beat.next()
	p := n.presence(number, revoke.StateLeft)
	// Without sessions a goodbye excuses the node from answering, so that evidence which is lost has to count as well.
	p.Sessions += n.receipts.pending()
	seq, err := n.publish(ctx, p, anySequence)
	if err != nil {
		return fmt.Errorf("cannot announce that the node has left: %w", err)
	}
	n.beat.acked(number, seq, time.Now())
	return nil
}

func (n *Node) presence(number uint64, state string) revoke.Presence {
	table, stats := n.Table(), n.stats()
	return revoke.Presence{
		V:         1,
		Node:      n.cfg.Node,
		Boot:      n.cfg.Boot,
		N:         number,
		Version:   n.cfg.Version,
		At:        time.Now().UTC(),
		LeaseMS:   n.cfg.Lease.Milliseconds(),
		OnStale:   n.cfg.OnStale,
		Applied:   table.Applied(),
		TableHash: table.Hash(),
		Stream:    n.streamID,
		Sessions:  n.eng.SessionCount(),
		Unsettled: stats.Unsettled,
		State:     state,
		Rejected:  stats.Rejected,
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
	n.log.Info("the journal can be written again", "after", time.Since(h.failing).Round(time.Millisecond))
	h.failing, h.reminded = time.Time{}, time.Time{}
}

// checkIdentity makes the follower start over, and so refuse, when the stream has been replaced. An ordered consumer
// alone never notices: asked for a position beyond the end it just waits.
func (n *Node) checkIdentity() {
	ctx, cancel := context.WithTimeout(n.ctx, followRequestTimeout)
	defer cancel()
	s, err := n.js.Stream(ctx, journalStream)
	if err != nil {
		if n.ctx.Err() == nil {
			n.log.Warn("cannot check the journal's identity", "error", err)
		}
		return
	}
	if identityInDomain(n.streamID, s.CachedInfo()) != n.streamID {
		n.reload("the stream is another one")
	}
}
