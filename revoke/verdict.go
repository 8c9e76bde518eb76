package revoke

import (
	"cmp"
	"slices"
	"time"
)

// FleetVerdict is the coordinator's summary.
type FleetVerdict struct {
	Verdict Verdict      `json:"verdict"`
	Nodes   []NodeStatus `json:"nodes"`
}

// Verdict is what a revocation's receipts prove together.
type Verdict string

const (
	Complete           Verdict = "complete"
	CompleteFenced     Verdict = "complete_fenced"
	CompleteUnverified Verdict = "complete_unverified"
	Incomplete         Verdict = "incomplete"
)

// NodeStatus is one node's part of a verdict.
type NodeStatus struct {
	Node    string  `json:"node"`
	Boot    string  `json:"boot,omitempty"`
	Status  string  `json:"status"`   // verified|closed|cut|fenced|silent|gone|forgotten
	AfterMS float64 `json:"after_ms"` // since the fact was seen stored; 0 without a receipt or fence
	// FencedInMS is, for a node that has not answered, the time until its silence proves that it accepts nothing new;
	// 0 when it has answered, is fenced, or can never be.
	FencedInMS float64 `json:"fenced_in_ms,omitempty"`
	// NotSeenGone is the number of backends that are known to have been concerned and were not seen gone (yet). A fenced
	// node that never answered may have more.
	NotSeenGone int `json:"not_seen_gone,omitempty"`
	// Why says, for a person, what a node's silence proves and does not prove, or what keeps it from being proven;
	// empty when there is nothing to say.
	Why string `json:"why,omitempty"`
}

// Statuses of a node in a verdict.
const (
	StatusVerified = "verified" // cut, and every backend seen gone
	StatusClosed   = "closed"   // cut and closed, some backends not (yet) seen gone
	StatusCut      = "cut"      // cut, not all sessions closed yet
	StatusFenced   = "fenced"   // certainly stale: nothing new is accepted there
	StatusSilent   = "silent"   // nothing heard
	StatusGone     = "gone"     // silent for more than ten leases already when the fact was stored; not waited for
	// StatusForgotten: somebody had declared before the fact was stored that the process does not run; not waited for
	StatusForgotten = "forgotten"
)

// ExitCode is the exit code of the commands that wait for a verdict.
func (v Verdict) ExitCode() int {
	switch v {
	case Complete:
		return 0
	case CompleteFenced, CompleteUnverified:
		return 3
	case Incomplete:
	}
	return 4
}

// verdictSlack is what a verdict waits beyond the lease and the verification, for messages on their way.
const verdictSlack = 2 * time.Second

// Coordinator turns the receipts of one revocation into a verdict. It is fed by one goroutine; all times are the
// local clock's and carry its monotonic reading.
//
// The boots that count are those that the caller knew when it saw the fact stored and that had not left by then. A
// boot that came later has replayed the fact before it served anybody. Without any live boot the verdict is
// incomplete: nothing was proven, and a mistaken NATS address looks just the same.
//
// A boot that has been silent for long is not waited for, yet unless it announced that it stops serving with its
// lease it goes on counting: cut off from NATS, it may well be serving still.
//
// Fences need no comparison of clocks. A boot renews its lease only with a heartbeat that has come back to it together
// with everything stored before. One that has not applied the fact therefore holds a lease that began before the fact
// was stored, and so before storedAt: from storedAt + its lease + 1% on it is certainly stale. One that has applied it
// has set its gates. Either way nothing new is accepted there. This holds for boots that announce that they stop with
// their lease, in the publisher's own journal, and for no other.
type Coordinator struct {
	revocation    string
	seq           uint64
	storedAt      time.Time
	verifyTimeout time.Duration
	longestLease  time.Duration // of the boots that are waited for
	// verb and scope are known once Covers or a first receipt has told them.
	verb  string
	scope string
	// journal is the identity of the stream that holds the fact; "" while unknown, and then nobody is ever fenced.
	journal string
	boots   map[bootKey]*bootVerdict
}

type bootKey struct{ node, boot string }

// NewCoordinator begins to wait for the receipts of a revocation that was seen stored at seq. The members are all
// boots in the journal once it has been read to its end at or behind seq, left and gone ones included, however long
// they have been silent: before its end the only heartbeat of a boot may be one still to come. The journal is
// the identity of the stream that holds the fact, as heartbeats spell it; without it no boot is ever fenced.
func NewCoordinator(revocation string, seq uint64, storedAt time.Time, journal string, members []Presence, verifyTimeout time.Duration) *Coordinator {
	c := &Coordinator{
		revocation: revocation, seq: seq, storedAt: storedAt, verifyTimeout: verifyTimeout, journal: journal,
		boots: make(map[bootKey]*bootVerdict),
	}
	for _, p := range members {
		b := &bootVerdict{fences: true, starting: p.State == StateStarting}
		b.announce(p, journal, storedAt)
		if p.Seq > seq && p.N == 1 && p.Forgotten == "" && !b.foreign {
			continue // its first heartbeat is younger than the fact, so it replays the fact before it serves
		}
		switch {
		case p.State == StateLeft && p.Seq <= seq:
			// Whoever left before the fact was stored serves nobody.
			if p.Forgotten == "" || storedAt.Sub(p.Heard) > forgetAfter {
				continue
			}
			b.forgotten = p.Forgotten
		case p.State == StateLeft && p.Forgotten != "":
			// Somebody's word that came after the fact is no evidence about it.
		case p.State == StateLeft:
			b.leave(storedAt, seq, p)
		default:
			b.gone = !p.Heard.IsZero() && p.Gone(storedAt)
		}
		c.boots[bootKey{p.Node, p.Boot}] = b
		if !b.gone && b.forgotten == "" {
			c.longestLease = max(c.longestLease, p.Lease())
		}
	}
	return c
}

// Covers tells the fact's verb and scope, so that the receipt of a newer fact of the same kind counts for a node
// that never saw this one.
func (c *Coordinator) Covers(v Verb, s Scope) { c.verb, c.scope = v.String(), s.Token() }

// Deadline is when the verdict is certain whatever happens. The last fence falls before it.
func (c *Coordinator) Deadline() time.Time {
	return c.storedAt.Add(max(c.longestLease+c.verifyTimeout+verdictSlack, withDrift(c.longestLease)))
}

// Receipt takes the summary of a receipt as it arrives and returns the lines that it changes. Pages, receipts of
// other revocations and stages that have been passed change nothing.
func (c *Coordinator) Receipt(now time.Time, r Receipt) []NodeStatus {
	rank := r.rank()
	if r.Page != 0 || !c.proves(r) || rank == rankNone {
		return nil
	}
	if c.verb == "" {
		c.verb, c.scope = r.Verb, r.Scope
	}
	key := bootKey{r.Node, r.Boot}
	b := c.boots[key]
	if b == nil {
		// A boot that answers has to be waited for, known or not.
		if len(c.boots) >= maxMembers {
			return nil
		}
		b = &bootVerdict{}
		c.boots[key] = b
	}
	before := b.status(now)
	b.gone, b.forgotten = false, ""
	exact := c.isOwn(r) && r.Seq == c.seq
	if b.exact && !exact {
		// The boot speaks of the fact itself. What a newer one found afterwards says nothing about its sessions.
		return c.changed(now, key, b, before)
	}
	if exact && !b.exact {
		b.exact, b.rank = true, rankNone
	}
	if rank < b.rank {
		return c.changed(now, key, b, before)
	}
	b.matched, b.unverified = max(r.Matched, 0), max(r.Unverified, 0)
	if rank > b.rank {
		b.rank, b.afterMS = rank, c.afterMS(now)
	}
	return c.changed(now, key, b, before)
}

// isOwn says whether a receipt bears the revocation's id, or the one a node gives to an id that was used before.
func (c *Coordinator) isOwn(r Receipt) bool {
	return r.Revocation == c.revocation || r.Revocation == SeqID(c.revocation, c.seq)
}

// proves says whether a receipt is about the fact, or about a newer one that stands for it.
func (c *Coordinator) proves(r Receipt) bool {
	newer := r.Seq >= c.seq || r.SupersededBy >= c.seq && r.SupersededBy > 0
	if c.isOwn(r) {
		return newer
	}
	return r.Seq > c.seq && c.verb != "" && r.Verb == c.verb && r.Scope == c.scope
}

// Presence takes a heartbeat and returns the lines that it changes. Boots that were unknown when the fact was stored
// do not count, unless they follow another journal, which does not hold the fact.
func (c *Coordinator) Presence(now time.Time, p Presence) []NodeStatus {
	key := bootKey{p.Node, p.Boot}
	b := c.boots[key]
	if b == nil {
		if !isForeign(c.journal, p) || p.State == StateLeft || len(c.boots) >= maxMembers {
			return nil
		}
		b = &bootVerdict{fences: true}
		c.boots[key] = b
	}
	if p.Forgotten != "" {
		return nil // what is waited for rests on evidence, not on somebody's word
	}
	before := b.status(now)
	wasStarting := b.starting
	b.starting = b.starting && p.State == StateStarting
	b.announce(p, c.journal, c.storedAt)
	if p.State == StateLeft {
		b.leave(now, c.seq, p)
		return c.changed(now, key, b, before)
	}
	// A boot that is heard again has to answer after all.
	b.gone, b.left, b.forgotten = false, false, ""
	c.longestLease = max(c.longestLease, p.Lease())
	holds := !b.foreign && p.Applied >= c.seq
	if holds {
		b.holdsUntil = now.Add(withDrift(b.lease))
	}
	if wasStarting && p.State == StateStarting && holds && p.Sessions == 0 && b.rank == rankNone {
		// It has replayed the fact before it served anybody, and owes no receipt. A heartbeat that says it serves comes
		// too late for that: sessions may have begun, and been cut, in between.
		b.rank, b.afterMS = rankFinal, c.afterMS(now)
	}
	return c.changed(now, key, b, before)
}

// JournalReplaced says that the journal is another stream now: one that does not hold the fact renews leases, and no
// silence proves anything any more. What receipts have proven stays proven.
func (c *Coordinator) JournalReplaced() {
	for _, b := range c.boots {
		b.adrift, b.fenceAt = true, time.Time{}
	}
}

// Fences returns the lines of the boots that have become fenced since the last call: time alone brings them.
func (c *Coordinator) Fences(now time.Time) []NodeStatus {
	var lines []NodeStatus
	for key, b := range c.boots {
		fenced := b.fenced(now)
		if fenced && !b.toldFenced {
			lines = append(lines, c.line(now, key, b))
		}
		b.toldFenced = fenced
	}
	sortLines(lines)
	return lines
}

// Waiting returns a line for every boot whose answer, or fence, is still to come.
func (c *Coordinator) Waiting(now time.Time) []NodeStatus {
	var lines []NodeStatus
	for key, b := range c.boots {
		if b.standing(now) == standsWaiting {
			lines = append(lines, c.line(now, key, b))
		}
	}
	sortLines(lines)
	return lines
}

// Verdict is what has been proven so far. It is certain when nothing to come can make it better: every boot that
// counts has said its last word, is fenced or will never say it, the deadline has passed, or final says that the time
// is over.
//
// Fenced weighs more than unverified: a verdict of complete_fenced may hide backends that were not seen gone, which is
// what NodeStatus.NotSeenGone counts where it is known.
func (c *Coordinator) Verdict(now time.Time, final bool) (FleetVerdict, bool) {
	v := FleetVerdict{Nodes: []NodeStatus{}}
	live, waiting, closed, done, verified, fenced := 0, 0, 0, 0, 0, 0
	for key, b := range c.boots {
		standing := b.standing(now)
		if standing == standsAside && b.left {
			continue
		}
		v.Nodes = append(v.Nodes, c.line(now, key, b))
		if standing == standsAside {
			continue
		}
		live++
		switch {
		case standing == standsFenced:
			fenced++
			continue
		case standing == standsWaiting:
			waiting++
		}
		if b.foreign {
			continue // its receipts are about another journal
		}
		if b.rank >= rankClosed {
			closed++
		}
		if b.rank == rankFinal {
			done++
			if b.unverified == 0 {
				verified++
			}
		}
	}
	sortLines(v.Nodes)
	over := final || waiting == 0 || !now.Before(c.Deadline())
	best, certain := Complete, true
	switch {
	case fenced > 0:
		best = CompleteFenced
	case verified < live:
		best = CompleteUnverified
	}
	switch {
	case live == 0:
		v.Verdict = Incomplete
		return v, true
	case done+fenced == live:
		// A fenced boot that is heard again may still be proven, but nobody waits for that.
	case closed+fenced == live:
		// More may be seen gone until the time is over.
		certain = over
	default:
		best, certain = Incomplete, over
	}
	v.Verdict = best
	return v, certain
}

func sortLines(lines []NodeStatus) {
	slices.SortFunc(lines, func(a, b NodeStatus) int { return cmp.Or(cmp.Compare(a.Node, b.Node), cmp.Compare(a.Boot, b.Boot)) })
}

func (c *Coordinator) afterMS(now time.Time) float64 {
	return max(0, float64(now.Sub(c.storedAt).Microseconds())/1000)
}

func (c *Coordinator) line(now time.Time, key bootKey, b *bootVerdict) NodeStatus {
	s := NodeStatus{Node: key.node, Boot: key.boot, Status: b.status(now), AfterMS: b.afterMS, NotSeenGone: b.notSeenGone(), Why: b.why(now)}
	if s.Status == StatusFenced {
		s.AfterMS = c.afterMS(b.fenceAt)
	}
	s.FencedInMS = float64(b.fencedIn(now).Microseconds()) / 1000
	return s
}

func (c *Coordinator) changed(now time.Time, key bootKey, b *bootVerdict, before string) []NodeStatus {
	if b.status(now) == before {
		return nil
	}
	return []NodeStatus{c.line(now, key, b)}
}
