package revoke

import (
	"fmt"
	"time"
)

// LeaseState is how a node stands towards its lease.
type LeaseState uint8

const (
	// LeaseStarting is the state before the first proof of this run: nobody is served. Left by that proof.
	LeaseStarting LeaseState = iota
	// LeaseFresh is entered by a proof, and left when the lease ends or is taken away.
	LeaseFresh
	// LeaseFrozen is entered when the lease has ended: sessions are kept, no byte passes. Left by a proof, or when
	// it has lasted for NodeConfig.Freeze.
	LeaseFrozen
	// LeaseDropped is entered from LeaseFrozen: the sessions have been ended. Left by a proof.
	LeaseDropped
)

func (s LeaseState) String() string {
	switch s {
	case LeaseStarting:
		return "starting"
	case LeaseFresh:
		return "fresh"
	case LeaseFrozen:
		return "frozen"
	case LeaseDropped:
		return "dropped"
	}
	return fmt.Sprintf("lease state %d", uint8(s))
}

// leaseMoves are the allowed moves, by the state they leave.
var leaseMoves = [...]map[LeaseState]bool{
	LeaseStarting: {LeaseFresh: true},
	LeaseFresh:    {LeaseFrozen: true},
	LeaseFrozen:   {LeaseFresh: true, LeaseDropped: true},
	LeaseDropped:  {LeaseFresh: true},
}

// What a node does when its lease has ended, as NodeConfig.OnStale and heartbeats tell it.
const (
	OnStaleFreeze = "freeze" // keep the sessions for a while, frozen
	OnStaleDrop   = "drop"   // end them at once
	OnStaleServe  = "serve"  // go on: the lease does not end by itself
)

// leaseKeeper is the part of a node that decides about its lease. The lease that loops read is the carrier's: it
// follows the commands, so that nothing is fresh again before the cuts of the same event have been carried out.
type leaseKeeper struct {
	state LeaseState
	lease Lease // a copy of the carrier's
	// proof is the newest own heartbeat that the present consumer has delivered; used is the newest that has renewed.
	proof sentBeat
	used  sentBeat
	// frozenAt is when the state became LeaseFrozen.
	frozenAt Instant
	// why is why the lease was taken away; "" when it ran out.
	why string
}

// LeaseStatus is what a node tells people about its lease.
type LeaseStatus struct {
	State LeaseState
	// Proven is the moment as of which the node was last proven fresh; zero before the first proof.
	Proven Instant
	// Why says what stands against the lease besides time; "" when nothing does.
	Why string
}

// LeaseStatus is how the node stands towards its lease.
func (n *Node) LeaseStatus() LeaseStatus {
	why := n.keeper.why
	if why == "" {
		why = n.another
	}
	return LeaseStatus{State: n.keeper.state, Proven: n.keeper.used.at, Why: why}
}

func (k *leaseKeeper) move(to LeaseState) {
	if !leaseMoves[k.state][to] {
		// Who may serve has become unknowable: the process has to start over.
		panic(fmt.Sprintf("bug: the lease moves from %s to %s", k.state, to))
	}
	k.state = to
}

// watchLease notices that time has passed. It comes before the event itself, so that what arrives after the end of
// the lease finds the sessions frozen.
func (n *Node) watchLease(at Instant) {
	k := &n.keeper
	switch k.state {
	case LeaseStarting, LeaseDropped:
	case LeaseFresh:
		if !k.lease.Fresh(at) {
			n.freeze(at)
		}
	case LeaseFrozen:
		if at.Boot-k.frozenAt.Boot >= n.cfg.Freeze {
			n.dropSessions()
		}
	}
}

func (n *Node) freeze(at Instant) {
	n.keeper.move(LeaseFrozen)
	n.keeper.frozenAt = at
	n.emit(FreezeCommand{})
	if n.cfg.OnStale == OnStaleDrop {
		n.dropSessions()
	}
}

func (n *Node) dropSessions() {
	n.keeper.move(LeaseDropped)
	n.emit(DropCommand{})
}

// takeLease ends the lease at once, and makes every proof so far worthless.
func (n *Node) takeLease(at Instant, why string) {
	k := &n.keeper
	k.why = why
	k.proof = sentBeat{}
	n.beats.sent = nil
	k.lease.Revoke()
	n.emit(RevokeLeaseCommand{Why: why})
	if k.state == LeaseFresh {
		n.freeze(at)
	}
}

// renewLease turns a proof into a lease, once the node has read all that was in the journal at that time: with one
// message per subject an older fact may be missing at the heartbeat's place in the order because a newer one, still
// to come, has replaced it; nothing pending means that one has come too.
func (n *Node) renewLease(at Instant) {
	k := &n.keeper
	if !n.following() || !n.quiet || n.another != "" || n.tables.state == tablesDiffer || k.proof.n <= k.used.n {
		return
	}
	k.used = k.proof
	c := RenewCommand{Until: k.proof.at.Add(n.cfg.Lease), Never: n.cfg.OnStale == OnStaleServe}
	if c.Never {
		k.lease.Never()
	} else {
		k.lease.Renew(c.Until)
	}
	n.emit(c)
	if k.state == LeaseFresh || !k.lease.Fresh(at) {
		return
	}
	was := k.state
	k.why = ""
	k.move(LeaseFresh)
	switch was {
	case LeaseStarting, LeaseFresh:
	case LeaseFrozen, LeaseDropped:
		n.emit(ThawCommand{})
	}
}

// leaseTick is for how long nothing happens to the lease by itself; negative when nothing will.
func (n *Node) leaseTick() time.Duration {
	k := &n.keeper
	switch k.state {
	case LeaseStarting, LeaseDropped:
	case LeaseFresh:
		if n.cfg.OnStale != OnStaleServe {
			return max(0, k.lease.Remaining(n.at))
		}
	case LeaseFrozen:
		return max(0, k.frozenAt.Boot+n.cfg.Freeze-n.at.Boot)
	}
	return -1
}
