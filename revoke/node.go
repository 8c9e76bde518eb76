package revoke

import (
	"fmt"
	"maps"
	"strings"
	"time"
)

// NodeConfig is what a Node needs to know. Zero durations take the defaults.
type NodeConfig struct {
	ID   string
	Boot string
	// Lease is for how long a heartbeat that has come back proves the node fresh; default 20 s.
	Lease time.Duration
	// Freeze is for how long the sessions of a node without a lease are kept, frozen; default 30 s.
	Freeze time.Duration
	// OnStale is what happens when the lease has ended: OnStaleFreeze, OnStaleDrop or OnStaleServe; default freeze.
	OnStale string
	// StoreAfter is how long a fact seen on the fast path may be missing in the journal before the node stores it
	// itself; default 1 s.
	StoreAfter time.Duration
	// KillHold is for how long a kill that is not yet settled refuses logins; default 1 s.
	KillHold time.Duration
	// StoreRetry is the pause before a failed store is tried again; default 250 ms.
	StoreRetry time.Duration
	// CreditFor is for how long a bare message of the journal waits for its copy on the fast path; default 3 s.
	CreditFor time.Duration
}

func (c NodeConfig) withDefaults() NodeConfig {
	def := func(d *time.Duration, v time.Duration) {
		if *d <= 0 {
			*d = v
		}
	}
	def(&c.Lease, defaultLease)
	def(&c.Freeze, 30*time.Second)
	if c.OnStale == "" {
		c.OnStale = OnStaleFreeze
	}
	def(&c.StoreAfter, time.Second)
	def(&c.KillHold, time.Second)
	def(&c.StoreRetry, 250*time.Millisecond)
	def(&c.CreditFor, 3*time.Second)
	return c
}

const (
	// seenLimit and seenFor bound the memory of what the journal has delivered. The fast path is at most a
	// network's delay behind, so minutes are generous.
	seenLimit = 16 << 10
	seenFor   = 10 * time.Minute
	// usedIDsLimit and usedIDsFor bound the memory of revocation ids, which connectors repeat when a hook is
	// delivered again.
	usedIDsLimit = 64 << 10
	usedIDsFor   = 30 * 24 * time.Hour
	creditsLimit = 16 << 10
	// creditsPerMessage bounds the copies of one message that the fast path may owe.
	creditsPerMessage = 64
	// reloadEvery is how often a reload is asked for while the journal goes on making no sense.
	reloadEvery = 5 * time.Second
)

// Via says by which way a node first learned of a fact.
const (
	ViaFast    = "fast"
	ViaJournal = "journal"
)

// FactCount is what facts are counted by.
type FactCount struct {
	Verb Verb
	Via  string // ViaFast or ViaJournal
}

// NodeStats are counters since the start, and gauges where it says so.
type NodeStats struct {
	Facts      map[FactCount]uint64
	Rejected   uint64 // refused messages
	Raw        uint64 // facts whose payload was kept as raw reason
	Superseded uint64 // facts settled by a newer one of their subject
	Stores     uint64 // stores asked for
	Healed     uint64 // of these, copies of a good message that garbage had replaced
	Rescued    uint64 // of these, blocks of a journal that is gone
	Resets     uint64 // consumers begun, the first one included
	Overflow   uint64 // provisional facts that were cut but not held, for want of room
	Unsettled  int    // gauge: provisional facts
	Epoch      uint64 // gauge: 1 plus the number of times the journal was found to be another one
}

// Node is the protocol of one node as a pure state machine: events and times in, commands out. Handle and the other
// methods are called from one goroutine; only Table may be used from others.
//
// A fact can come by two ways. The fast path makes it a pending fact, which cuts what exists and refuses logins;
// the journal gives it a seq, which settles it. What the journal does not deliver the node stores itself.
type Node struct {
	cfg   NodeConfig
	table *Table

	ready bool
	// load is the journal being replayed; nil when following.
	load *loading
	// epoch grows when the journal turns out to be another one; seqs of different epochs do not compare.
	epoch uint64
	// lastSeq is the last message of the present consumer, and quiet whether nothing was waiting behind it.
	lastSeq    uint64
	quiet      bool
	gaps       gaps
	lastReload time.Time
	// stream is the identity of the stream read at present. another says why it is not the one that the table is of,
	// "" while it is; foreign that this is known by its identity, so that the streams have no message in common.
	stream  string
	another string
	foreign bool
	// reread says that the present consumer may have begun before what another tells of: only the next one counts.
	reread bool

	beats  beats
	keeper leaseKeeper
	tables tableCompare
	// now and at are those of the event at hand, and afterwards of the last one.
	now time.Time
	at  Instant

	pending pendingSet
	heals   map[string]*heal   // by subject
	rescues map[string]*rescue // by message id
	timers  timerHeap
	flying  int // stores that are not answered

	seen    *expiring[uint64]      // pending key -> seq in the journal
	usedIDs *expiring[idUse]       // revocation id -> its first use
	credits *expiring[[]time.Time] // bare message -> expiries of the copies that the fast path owes

	members members
	stats   NodeStats
	out     []Command
}

type idUse struct {
	subject string
	seq     uint64
}

// NewNode returns a node that has read nothing yet.
func NewNode(cfg NodeConfig) *Node {
	cfg = cfg.withDefaults()
	table := NewTable()
	table.epoch = 1
	return &Node{
		cfg:     cfg,
		table:   table,
		epoch:   1,
		pending: newPendingSet(),
		heals:   make(map[string]*heal),
		rescues: make(map[string]*rescue),
		seen:    newExpiring[uint64](seenFor, seenLimit),
		usedIDs: newExpiring[idUse](usedIDsFor, usedIDsLimit),
		credits: newExpiring[[]time.Time](cfg.CreditFor, creditsLimit),
		members: newMembers(),
		stats:   NodeStats{Facts: make(map[FactCount]uint64)},
	}
}

// Table is what the node denies. It stays the same object for the life of the node.
func (n *Node) Table() *Table { return n.table }

// Stream is the identity of the stream that is read at present.
func (n *Node) Stream() string { return n.stream }

// Ready says that the journal has been replayed once.
func (n *Node) Ready() bool { return n.ready }

// Handle takes one event that happened at now and returns what has to be done, in this order. The table is up to
// date when Handle returns. now is what timers and ages are measured by: it carries the monotonic clock and does not go
// back. at is the same moment on the clocks of the lease, of which Wall may go anywhere.
func (n *Node) Handle(now time.Time, at Instant, ev Event) []Command {
	n.out = nil
	n.now, n.at = now, at
	n.watchLease(at)
	switch ev := ev.(type) {
	case FastMessage:
		n.fast(now, ev)
	case JournalMessage:
		n.journal(now, at, ev)
	case JournalReset:
		n.adopt(at, ev.Stream)
		n.beginLoad()
	case JournalEmpty:
		n.journalEmpty(now, at)
	case StoreResult:
		n.storeResult(now, ev)
	case HeartbeatDue:
		n.heartbeatDue(now, at)
	case HeartbeatResult:
		n.heartbeatResult(now, at, ev)
	case Tick:
	}
	n.resolveCovered(now)
	n.runTimers(now)
	n.renewLease(at)
	return n.out
}

func (n *Node) emit(c Command) { n.out = append(n.out, c) }

// NextTick is when the node next wants a Tick; zero when it waits for nothing but other events.
func (n *Node) NextTick() time.Time {
	var next time.Time
	if n.following() && len(n.timers) > 0 {
		next = n.timers[0].due
	}
	if d := n.leaseTick(); d >= 0 {
		if lease := n.now.Add(d); next.IsZero() || lease.Before(next) {
			next = lease
		}
	}
	return next
}

// following says that the journal has been read to its end, so that what the node knows about it can be relied on.
func (n *Node) following() bool { return n.ready && n.load == nil }

// Stats is a copy of the counters.
func (n *Node) Stats() NodeStats {
	s := n.stats
	s.Facts = maps.Clone(s.Facts)
	s.Unsettled = len(n.pending.byKey)
	s.Epoch = n.epoch
	return s
}

// Members are the boots that have published heartbeats in the last day, this one included, each with its last one
// and when it was heard. Presence.Live tells those that count.
func (n *Node) Members(now time.Time) []Presence { return n.members.list(now) }

// SeqID is the id under which the receipts of a fact are published whose own id another fact had used before.
func SeqID(id string, seq uint64) string {
	suffix := fmt.Sprintf("-%d", seq)
	return id[:min(len(id), maxIDBytes-len(suffix))] + suffix
}

// name gives a fact that now has a seq its final id. Ids come from outside, and tickets and delivery ids are used
// twice: receipts of different facts must not replace each other.
func (n *Node) name(now time.Time, f *Fact) {
	if f.ID == "" {
		f.ID = fmt.Sprintf("seq-%d", f.Seq)
		return
	}
	use := idUse{f.Subject(), f.Seq}
	first, used := n.usedIDs.get(now, f.ID)
	if !used {
		n.usedIDs.put(now, strings.Clone(f.ID), use)
		return
	}
	if first != use {
		f.ID = SeqID(f.ID, f.Seq)
	}
}
