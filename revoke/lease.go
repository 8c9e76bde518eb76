package revoke

import (
	"sync/atomic"
	"time"
)

// Instant is one moment on the two clocks that leases are measured by. Boot counts on while the machine sleeps, which
// Go's own monotonic clock does not; Wall moves on when the machine is restored from a snapshot, which Boot does not.
type Instant struct {
	Boot time.Duration // CLOCK_BOOTTIME
	Wall time.Time
}

// Add is the instant d later on both clocks.
func (i Instant) Add(d time.Duration) Instant { return Instant{i.Boot + d, i.Wall.Add(d)} }

// Lease is the right to serve. It may be used by any goroutine: the state machine renews it, and every loop reads it
// before each write. The zero Lease has ended.
type Lease struct{ end atomic.Pointer[leaseEnd] }

type leaseEnd struct {
	boot  time.Duration
	wall  int64 // ns since 1970
	never bool
}

// Renew makes the lease end at until, unless it ends later already.
func (l *Lease) Renew(until Instant) {
	if e := l.end.Load(); e != nil && (e.never || e.boot >= until.Boot && e.wall >= until.Wall.UnixNano()) {
		return
	}
	l.end.Store(&leaseEnd{boot: until.Boot, wall: until.Wall.UnixNano()})
}

// Revoke ends the lease at once, for a journal that turns out to be another one.
func (l *Lease) Revoke() { l.end.Store(nil) }

// Never makes a lease that does not end, for a node that serves on whatever happens to its journal.
func (l *Lease) Never() { l.end.Store(&leaseEnd{never: true}) }

// Fresh says whether the lease holds now: neither clock has come to its end.
func (l *Lease) Fresh(now Instant) bool {
	e := l.end.Load()
	return e != nil && (e.never || now.Boot < e.boot && now.Wall.UnixNano() < e.wall)
}

// Remaining is the time until the lease ends by the clock that comes to its end first; negative when it has ended.
func (l *Lease) Remaining(now Instant) time.Duration {
	e := l.end.Load()
	switch {
	case e == nil:
		return -1
	case e.never:
		return 1<<63 - 1
	}
	return min(e.boot-now.Boot, time.Duration(e.wall-now.Wall.UnixNano()))
}
