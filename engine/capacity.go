package engine

import (
	"fmt"
	"syscall"
)

// capacity is how many sockets this process can hold. Everything is counted before it is opened, since a process
// that runs out of descriptors can do nothing well: not accept, not kill, not even log.
type capacity struct {
	sessions int // two descriptors each
	refusals int // accepted only to be refused politely, or to carry a cancel request
}

const (
	maxEnrolling  = 8  // sessions between login and loop hold a third descriptor each
	maxCancelling = 16 // cancel requests under way hold one more each
	// reservedDescriptors are for the journal's files, its listener and clients, event loops, control connections,
	// the admin listener, log and audit files.
	reservedDescriptors = 64
)

// deriveCapacity divides the descriptor limit. wanted is limits.max_sessions, 0 for as many as there can be.
func deriveCapacity(wanted int) (capacity, error) {
	var rl syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &rl); err != nil {
		return capacity{}, fmt.Errorf("cannot read the descriptor limit: %w", err)
	}
	return divide(int(min(rl.Cur, 1<<22)), wanted)
}

func divide(descriptors, wanted int) (capacity, error) {
	reserved := reservedDescriptors + maxEnrolling + maxCancelling + descriptors/64
	refusals := max(4, descriptors/64)
	sessions := (descriptors - reserved - refusals) / 2
	if sessions < 1 {
		return capacity{}, fmt.Errorf("a limit of %d open files leaves no room for sessions: raise it (ulimit -n) to at least 256", descriptors)
	}
	if wanted > sessions {
		return capacity{}, fmt.Errorf("limits.max_sessions is %d, but a limit of %d open files allows %d: raise the limit (ulimit -n) to %d",
			wanted, descriptors, sessions, 2*wanted+reserved+refusals+wanted/16)
	}
	if wanted > 0 {
		sessions = wanted
	}
	return capacity{sessions: sessions, refusals: refusals}, nil
}
