package cluster

import (
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"pgedge/revoke"
)

// leaseClock reads the two clocks of the lease. The boot-time clock costs a system call (0.4 µs where time.Now takes
// 0.06), too much several times per transaction, so that loops use quick.
type leaseClock struct {
	base time.Time
	// lead is by how much the boot-time clock was ahead of Go's monotonic time since base when it was last read. It
	// grows when the machine sleeps.
	lead atomic.Int64
}

func newLeaseClock() *leaseClock {
	c := &leaseClock{base: time.Now()}
	c.read()
	return c
}

// read asks both clocks.
func (c *leaseClock) read() revoke.Instant {
	// In this order a pause in between makes quick run ahead, which ends leases early, never late.
	now := time.Now()
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts); err != nil {
		// Linux has had the clock since 2.6.39, and the call cannot fail otherwise.
		panic("cannot read the boot-time clock: " + err.Error())
	}
	boot := time.Duration(ts.Nano())
	c.lead.Store(int64(boot - now.Sub(c.base)))
	return revoke.Instant{Boot: boot, Wall: now}
}

// quick is read without the system call. After the machine has slept its boot-time clock is behind until somebody calls
// read, at the latest with the next heartbeat; the wall clock is right at once.
func (c *leaseClock) quick() revoke.Instant {
	now := time.Now()
	return revoke.Instant{Boot: now.Sub(c.base) + time.Duration(c.lead.Load()), Wall: now}
}
