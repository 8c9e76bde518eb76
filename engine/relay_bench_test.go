package engine

import "testing"

// BenchmarkRelay is one exchange through real sockets and a loop: two reads and two writes of pgedge's, OnTraffic, Peek,
// Scan, gate, lease, Write and Discard in both directions. Allocations are those of the whole process, and neither end
// makes any. What the ends and the kernel take by themselves is in BenchmarkDirect.
func BenchmarkRelay(b *testing.B) {
	for _, x := range exchanges() {
		b.Run(x.name, func(b *testing.B) {
			_, a := startAsker(b, x)
			benchmarkAsker(b, a)
		})
	}
}

// BenchmarkDirect is the same without a proxy.
func BenchmarkDirect(b *testing.B) {
	for _, x := range exchanges() {
		b.Run(x.name, func(b *testing.B) {
			server := startScript(b, x)
			a := newAsker(b, server.ln.Addr().String(), x)
			benchmarkAsker(b, a)
			a.Close()
		})
	}
}

func benchmarkAsker(b *testing.B, a *asker) {
	b.SetBytes(int64(len(a.x.ask) + len(a.x.answer)))
	b.ReportAllocs()
	for b.Loop() {
		if err := a.once(); err != nil {
			b.Fatal(err)
		}
	}
}
