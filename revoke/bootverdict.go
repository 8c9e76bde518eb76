package revoke

import "time"

// bootVerdict is what is known about one boot's part of a revocation.
type bootVerdict struct {
	gone bool
	// fences says that the boot stops serving with its lease, so that it need not be heard once it is gone.
	fences bool
	// forgotten is who has declared that the process does not run, before the fact was stored.
	forgotten string
	left      bool
	leftAt    time.Time
	// leftNothing says that the boot had no session left that the fact could have been about.
	leftNothing bool
	// starting says that the boot had not served anybody when the fact was stored.
	starting bool
	// exact says that the boot has spoken of the fact itself, not of a newer one that stands for it.
	exact      bool
	rank       receiptRank
	unverified int
	afterMS    float64
}

// standing is how a boot counts in the verdict at a moment.
type standing uint8

const (
	standsWaiting standing = iota // its last word may still come
	standsProven                  // it has said its last word
	standsLost                    // it will not say more, and what it has said is not enough
	standsAside                   // it does not count
)

func (b *bootVerdict) standing(now time.Time) standing {
	switch {
	case b.rank == rankFinal:
		return standsProven
	case b.forgotten != "", b.gone && b.fences:
		return standsAside
	case b.gone:
		return standsLost
	case b.left && now.Before(b.leftAt.Add(verdictSlack)):
		// Receipts and heartbeats travel on two streams: its last receipt may be behind its goodbye.
		return standsWaiting
	case b.left && b.leftNothing && b.rank == rankNone:
		return standsAside
	case b.left:
		return standsLost
	}
	return standsWaiting
}

// leave takes the boot's last presence. One that a later run has published in its place tells of the last heartbeat
// before the crash: sessions may have begun since, unless the fact had been applied by then.
func (b *bootVerdict) leave(now time.Time, seq uint64, p Presence) {
	if !b.left {
		b.left, b.leftAt = true, now
	}
	b.gone, b.forgotten = false, ""
	b.leftNothing = p.Sessions == 0 && p.Unsettled == 0 && (!p.Crashed || p.Applied >= seq)
}

func (b *bootVerdict) status() string {
	switch b.rank {
	case rankCut:
		return StatusCut
	case rankClosed:
		return StatusClosed
	case rankFinal:
		if b.unverified > 0 {
			return StatusClosed
		}
		return StatusVerified
	case rankNone:
	}
	if b.forgotten != "" {
		return StatusForgotten
	}
	if b.gone {
		return StatusGone
	}
	return StatusSilent
}

func (b *bootVerdict) why() string {
	switch {
	case b.rank == rankFinal:
	case b.forgotten != "":
		return "forgotten by " + b.forgotten + ", who declared that its process does not run; nothing here proves it"
	case b.gone && !b.fences:
		return "silent for more than ten leases, and it announced that it goes on serving without NATS: it may still serve. Starting it again with the same state directory clears this, and so does pgedge nodes forget once it certainly does not run"
	case b.left && !(b.leftNothing && b.rank == rankNone):
		return "it ended before it had seen the backends of its sessions gone"
	}
	return ""
}
