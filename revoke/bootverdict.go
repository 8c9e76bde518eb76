package revoke

import (
	"fmt"
	"time"
)

// bootVerdict is what is known about one boot's part of a revocation.
type bootVerdict struct {
	gone bool
	// fences says that every heartbeat so far has announced that the boot stops serving with its lease, so that its
	// silence proves something in time.
	fences bool
	// forgotten is who has declared that the process does not run, before the fact was stored.
	forgotten string
	// lease is the longest that the boot has announced.
	lease time.Duration
	// fenceAt is the moment from which the boot is certainly stale if it has not applied the fact; zero when there is no
	// such moment.
	fenceAt time.Time
	// foreign says that the boot follows another journal than the publisher: its positions do not compare, and what it
	// has applied is not known.
	foreign bool
	// adrift says that the journal which held the fact has been replaced by another one, which the boot may follow by now.
	adrift bool
	// holdsUntil is until when a boot that is known to hold the fact may still have its say: its last heartbeat and a
	// lease. Zero for one that has not shown that it holds the fact.
	holdsUntil time.Time
	sessions   int // as of its last heartbeat
	left       bool
	leftAt     time.Time
	// leftNothing says that the boot had no session left that the fact could have been about.
	leftNothing bool
	// starting says that the boot had not served anybody when the fact was stored.
	starting bool
	// exact says that the boot has spoken of the fact itself, not of a newer one that stands for it.
	exact bool
	// toldFenced says that the line about its fence has been given out.
	toldFenced bool
	rank       receiptRank
	matched    int
	unverified int
	afterMS    float64
}

// standing is how a boot counts in the verdict at a moment.
type standing uint8

const (
	standsWaiting standing = iota // its last word, or its fence, may still come
	standsProven                  // it has said its last word
	standsFenced                  // it is certainly stale, and not known to be alive
	standsLost                    // it will not say more, and what it has said is not enough
	standsAside                   // it does not count
)

func (b *bootVerdict) standing(now time.Time) standing {
	switch {
	case b.forgotten != "", b.gone && b.fences && !b.foreign && !b.adrift:
		return standsAside
	case b.gone:
		return standsLost
	case b.foreign:
		return standsWaiting
	case b.rank == rankFinal:
		return standsProven
	case b.fenced(now):
		return standsFenced
	case b.left && now.Before(b.leftAt.Add(verdictSlack)):
		// Receipts and heartbeats travel on two streams: its last receipt may be behind its goodbye.
		return standsWaiting
	case b.leftClean():
		return standsAside
	case b.left && (b.fenceAt.IsZero() || b.rank >= rankClosed):
		return standsLost
	}
	return standsWaiting
}

// fenced says that nothing new is accepted by the boot: either it has not applied the fact, and then its lease has
// ended, or it has applied it, and then its gates are set. Whoever is known to hold the fact and heard within its
// lease is waited for all the same, since it can say more; and a boot that has closed its sessions has said more.
func (b *bootVerdict) fenced(now time.Time) bool {
	return b.canBeFenced() && !now.Before(b.fenceAt) && !now.Before(b.holdsUntil)
}

func (b *bootVerdict) canBeFenced() bool {
	return !b.fenceAt.IsZero() && b.rank < rankClosed && !b.gone && b.forgotten == "" && !b.foreign && !b.leftClean()
}

// leftClean says that the boot has ended and had nothing left to do for the fact.
func (b *bootVerdict) leftClean() bool { return b.left && b.leftNothing && b.rank == rankNone }

// announce takes what a presence says about lease, journal and sessions. A boot that has once announced that it goes
// on serving, or a lease that cannot be right, is never fenced again.
func (b *bootVerdict) announce(p Presence, journal string, storedAt time.Time) {
	b.fences = b.fences && p.Fences()
	b.foreign = isForeign(journal, p)
	b.sessions = max(0, p.Sessions)
	b.lease = max(b.lease, p.Lease())
	known := journal != "" && p.Stream != "" && !b.foreign && !b.adrift
	if !b.fences || !known || p.LeaseMS <= 0 || p.LeaseMS > MaxLease.Milliseconds() {
		b.fenceAt = time.Time{}
		return
	}
	b.fenceAt = storedAt.Add(withDrift(b.lease))
}

// isForeign says that a boot follows another journal. It takes two known ones to tell.
func isForeign(journal string, p Presence) bool {
	return journal != "" && p.Stream != "" && !SameStream(journal, p.Stream)
}

// withDrift is a duration on another machine's clock, as long as it can last on this one: clocks run at speeds that
// differ by less than one percent.
func withDrift(d time.Duration) time.Duration { return d + d/100 }

// leave takes the boot's last presence. One that a later run has published in its place tells of the last heartbeat
// before the crash: sessions may have begun since, unless the fact had been applied by then.
func (b *bootVerdict) leave(now time.Time, seq uint64, p Presence) {
	if !b.left {
		b.left, b.leftAt = true, now
	}
	b.gone, b.forgotten, b.holdsUntil = false, "", time.Time{}
	b.leftNothing = !b.foreign && p.Sessions == 0 && p.Unsettled == 0 && (!p.Crashed || p.Applied >= seq)
}

func (b *bootVerdict) status(now time.Time) string {
	switch {
	case b.forgotten != "":
		return StatusForgotten
	case b.foreign:
		return StatusSilent
	case b.rank == rankFinal && b.unverified > 0, b.rank == rankClosed:
		return StatusClosed
	case b.rank == rankFinal:
		return StatusVerified
	case b.fenced(now):
		return StatusFenced
	case b.rank == rankCut:
		return StatusCut
	case b.gone:
		return StatusGone
	}
	return StatusSilent
}

// fencedIn is how long the boot has to stay silent until it is fenced; 0 when it is, never will be or need not be.
func (b *bootVerdict) fencedIn(now time.Time) time.Duration {
	if !b.canBeFenced() {
		return 0
	}
	until := b.fenceAt
	if b.holdsUntil.After(until) {
		until = b.holdsUntil
	}
	return max(0, until.Sub(now))
}

// notSeenGone is the number of the boot's backends that are known to have been concerned and were not seen gone.
func (b *bootVerdict) notSeenGone() int {
	switch b.rank {
	case rankFinal:
		return b.unverified
	case rankCut, rankClosed:
		return b.matched
	case rankNone:
	}
	return 0
}

func (b *bootVerdict) why(now time.Time) string {
	switch {
	case b.forgotten != "":
		return "forgotten by " + b.forgotten + ", who declared that its process does not run; nothing here proves it"
	case b.foreign:
		return "it follows another journal than this command: what it has applied is not known here"
	case b.rank == rankFinal:
	case b.gone && !b.fences:
		return "silent for more than ten leases, and it announced that it goes on serving without NATS: it may still serve. Starting it again with the same state directory clears this, and so does pgedge nodes forget once it certainly does not run"
	case b.fenced(now) && b.rank == rankNone && b.sessions > 0:
		return fmt.Sprintf("its lease has ended: it accepts nothing new. What runs in the database for the sessions that it had when last heard (%d, of all users) was not seen to end", b.sessions)
	case b.fenced(now):
		return "its lease has ended: it accepts nothing new"
	case b.left && !b.leftClean():
		return "it ended before it had seen the backends of its sessions gone"
	case b.adrift && !b.left:
		return "the journal that held the fact has been replaced by another one, by which the node may have been proven fresh without it"
	case b.gone || b.left || b.rank != rankNone:
	case !b.fences:
		return "it has not announced that it stops serving without NATS, so its silence proves nothing"
	case b.fenceAt.IsZero():
		return "it has announced neither a lease of at most ten minutes nor the journal it follows, so its silence proves nothing"
	}
	return ""
}
