package engine

import (
	"fmt"
	"testing"

	"pgedge/codec"
)

// BenchmarkCancelKeys is the table of cancel keys, up to nearly all that it can give out: what a cancel request looks for,
// a guess as well as a right key, and what a session costs it in its life.
func BenchmarkCancelKeys(b *testing.B) {
	for _, n := range []int{100, 10_000, 60_000} {
		table := newCancelTable("edge-b")
		sessions := make([]*session, n)
		for i := range sessions {
			sessions[i] = new(session)
			if err := table.issue(sessions[i], 0); err != nil {
				b.Fatal(err)
			}
		}
		b.Run(fmt.Sprintf("sessions=%d/find", n), func(b *testing.B) {
			b.ReportAllocs()
			for i := 0; b.Loop(); i++ {
				if s := sessions[i%n]; table.find(s.virtual) != s {
					b.Fatal("a key is not known")
				}
			}
		})
		b.Run(fmt.Sprintf("sessions=%d/guess", n), func(b *testing.B) {
			b.ReportAllocs()
			for i := 0; b.Loop(); i++ {
				key := sessions[i%n].virtual
				if table.find(codec.CancelKey{PID: key.PID, Secret: key.Secret[:3]}) != nil {
					b.Fatal("a wrong key is taken")
				}
			}
		})
		b.Run(fmt.Sprintf("sessions=%d/life", n), func(b *testing.B) {
			b.ReportAllocs()
			for i := 0; b.Loop(); i++ {
				s := sessions[i%n]
				table.revoke(s)
				if err := table.issue(s, 0); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
