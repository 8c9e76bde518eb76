package cluster

import (
	"fmt"
	"strings"
	"time"

	"github.com/nats-io/nats.go"

	"pgedge/revoke"
)

// handle gives one event to the state machine and carries out what it wants done, in order. It runs on the goroutine
// that received the message: handing over to another one would put a scheduler's delay in front of every cut.
//
// received is when the event arrived. The state machine never sees time go backwards, which it otherwise might, as two
// events may wait for the lock in another order than they arrived in.
func (n *Node) handle(received time.Time, ev revoke.Event) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.stopped || n.deaf && isFact(ev) {
		return
	}
	if received.Before(n.lastNow) {
		received = n.lastNow
	}
	n.lastNow = received
	commands := n.proto.Handle(received, n.clock.read(), ev)
	// The table comes before the cuts: a login that registers now sees the new one, an earlier one is cut.
	n.table.Store(n.proto.Table())
	for _, c := range commands {
		n.carryOut(c)
	}
	n.armTick()
}

// isFact tells whether an event can change the table.
func isFact(ev revoke.Event) bool {
	switch ev.(type) {
	case revoke.FastMessage, revoke.JournalMessage:
		return true
	}
	return false
}

func (n *Node) carryOut(c revoke.Command) {
	switch c := c.(type) {
	case revoke.CutCommand:
		n.sweeper.order(c.Order)
		n.eng.Cut(c.Order)
	case revoke.StoreCommand:
		n.queueStore(c)
	case revoke.RejectCommand:
		n.queueRejection(c)
	case revoke.ReadyCommand:
		n.replayed = true
		n.log.Info("the journal has been replayed", "seq", n.proto.Table().Applied())
	case revoke.ReloadCommand:
		n.reload(c.Why)
	case revoke.PresenceCommand:
		n.onPresence(c.Presence)
	case revoke.HeartbeatCommand:
		n.dueBeat = c
	default:
		n.carryOutLease(c)
	}
}

// armTick is called with mu held.
func (n *Node) armTick() {
	next := n.proto.NextTick()
	if next.IsZero() {
		n.tick.Stop()
		return
	}
	n.tick.Reset(max(0, time.Until(next)))
}

func (n *Node) onTick() { n.handle(time.Now(), revoke.Tick{}) }

func (n *Node) onFastMessage(m *nats.Msg) {
	received := time.Now()
	n.handle(received, revoke.FastMessage{Subject: m.Subject, MsgID: m.Header.Get(nats.MsgIdHdr), Payload: m.Data})
	n.syncCounters()
}

// onJournalStart begins an incarnation of the journal's consumer. It refuses a stream that would not keep what it is
// given; whether it is the stream that was read so far is for the state machine to decide.
func (n *Node) onJournalStart(start followStart) error {
	if diff := streamDifferences(start.Stream.Config, journalConfig(n.cfg.Replicas)); len(diff) > 0 {
		return streamDiffers(journalConfig(n.cfg.Replicas), diff)
	}
	domain, err := n.readDomain()
	if err != nil {
		return err
	}
	n.pending.Store(start.Pending)
	now := time.Now()
	n.handle(now, revoke.JournalReset{Stream: streamIdentity(start.Stream, domain)})
	if start.Pending == 0 {
		n.handle(now, revoke.JournalEmpty{})
	}
	select {
	case <-n.consuming:
		n.m.reloads.Inc()
		// What the journal does with the next heartbeat tells whether it is the same stream.
		n.beatSoon()
	default:
		close(n.consuming)
	}
	return nil
}

func (n *Node) onJournalMessage(d delivery) {
	n.pending.Store(d.Pending)
	n.handle(time.Now(), revoke.JournalMessage{
		Subject: d.Subject,
		MsgID:   d.MsgID,
		Payload: d.Payload,
		Seq:     d.Seq,
		Stored:  d.Stored,
		Pending: d.Pending,
	})
	if n.isReady.Load() && strings.HasPrefix(d.Subject, reinstatePrefix) {
		n.sweeper.lookForRestores()
	}
	// During a replay the counters would be brought up to date thousands of times for nobody.
	if d.Pending == 0 {
		n.syncCounters()
	}
}

// onPresence is called with mu held.
func (n *Node) onPresence(p revoke.Presence) {
	if p.Node != n.cfg.Node {
		return
	}
	if p.Boot == n.cfg.Boot && p.Forgotten != "" {
		n.log.Error("somebody has declared that this process does not run; its next heartbeat says that it does", "who", p.Forgotten)
	}
	if p.Boot > n.cfg.Boot && p.State != revoke.StateLeft {
		// Two processes with one id would answer for each other: the older one gives way.
		n.supersede(p.Boot)
	}
}

func (n *Node) supersede(boot string) {
	select {
	case <-n.fatalC:
		return
	default:
	}
	n.die(fmt.Errorf("%w: node %s, boot %s, this is %s", ErrSuperseded, n.cfg.Node, boot, n.cfg.Boot))
	if n.cfg.OnSuperseded != nil {
		go n.cfg.OnSuperseded(boot)
	}
}

func (n *Node) appliedSeq() uint64 { return n.Table().Applied() }

// tableDigest is the hash of the table and the position it belongs to.
func (n *Node) tableDigest() (applied uint64, hash string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	table := n.Table()
	return table.Applied(), table.Hash()
}

func (n *Node) stats() revoke.NodeStats {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.proto.Stats()
}

func (n *Node) unsettled() int { return n.stats().Unsettled }

// syncCounters copies the state machine's counts into the metrics.
func (n *Node) syncCounters() {
	n.mu.Lock()
	defer n.mu.Unlock()
	stats := n.proto.Stats()
	for verb, c := range n.m.factsFast {
		c.Set(stats.Facts[revoke.FactCount{Verb: verb, Via: revoke.ViaFast}])
	}
	for verb, c := range n.m.factsJournal {
		c.Set(stats.Facts[revoke.FactCount{Verb: verb, Via: revoke.ViaJournal}])
	}
	n.m.factsRaw.Set(stats.Raw)
	n.m.factsRejected.Set(stats.Rejected)
	n.m.factsSuperseded.Set(stats.Superseded)
	n.m.factsHealed.Set(stats.Healed)
	n.m.factsRescued.Set(stats.Rescued)
	n.m.factsOverflow.Set(stats.Overflow)
}
