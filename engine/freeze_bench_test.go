package engine

import (
	"testing"
	"time"

	"pgedge/revoke"
)

// BenchmarkLeaseGate is what the lease costs each forwarded buffer, beside several system calls: two looks at clocks and
// a few loads, without an allocation.
func BenchmarkLeaseGate(b *testing.B) {
	var lease revoke.Lease
	began := time.Now()
	now := func() revoke.Instant { return revoke.Instant{Boot: time.Since(began), Wall: time.Now()} }
	lease.Renew(now().Add(time.Hour))
	s := &session{eng: &Engine{cfg: Config{Fresh: func() bool { return lease.Fresh(now()) }}}}
	b.ReportAllocs()
	for b.Loop() {
		if !s.mayPass() {
			b.Fatal("the lease has ended")
		}
	}
}
