package revoke

import (
	"encoding/json"
	"flag"
	"fmt"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"time"
)

// tableSizes is how many facts the table holds: -args -facts 10,1000000 takes other numbers.
var tableSizes = flag.String("facts", "10,10000", "how many facts the benchmarks of the table have, separated by commas")

func benchTable(n int) *Table {
	tab := NewTable()
	for i := range n {
		tab.Merge(Fact{Verb: VerbRevoke, Scope: Scope{ScopePrincipal, fmt.Sprintf("user%d@corp.com", i)}, Seq: uint64(i + 1)})
	}
	return tab
}

// BenchmarkTable is what a login asks the table (twice), and what a fact costs it, by how many facts there are.
func BenchmarkTable(b *testing.B) {
	for _, size := range strings.Split(*tableSizes, ",") {
		n, err := strconv.Atoi(size)
		if err != nil || n < 1 || n > 10_000_000 {
			b.Fatalf("-facts: %q is no number of facts", size)
		}
		b.Run("facts="+size, func(b *testing.B) {
			tab := benchTable(n)
			b.Run("allow", func(b *testing.B) { benchmarkCheck(b, tab, "nobody@corp.com", false) })
			b.Run("deny", func(b *testing.B) { benchmarkCheck(b, tab, "user7@corp.com", true) })
			b.Run("parallel", func(b *testing.B) {
				b.RunParallel(func(pb *testing.PB) {
					for pb.Next() {
						tab.Check(Identity{Principal: "nobody@corp.com", Role: "app", Database: "db", Session: "n-1"}, Position{1, 1}, t0)
					}
				})
			})
			b.Run("merge", func(b *testing.B) { benchmarkMerge(b, tab, n) })
			b.Run("repeat", func(b *testing.B) { // the journal brings what the fast path has brought
				f := Fact{Verb: VerbRevoke, Scope: Scope{ScopePrincipal, "user7@corp.com"}, Seq: 1}
				b.ReportAllocs()
				for b.Loop() {
					if tab.Merge(f) {
						b.Fatal("an old fact has changed the table")
					}
				}
			})
			b.Run("provisional", func(b *testing.B) {
				f := Fact{Verb: VerbRevoke, Scope: Scope{ScopePrincipal, "user7@corp.com"}}
				b.ReportAllocs()
				for b.Loop() {
					tab.AddProvisional("key", f, time.Time{})
					tab.DropProvisional("key")
				}
			})
		})
	}
}

func benchmarkCheck(b *testing.B, tab *Table, principal string, want bool) {
	id := Identity{Principal: principal, Role: "app", Database: "db", Session: "n-1"}
	b.ReportAllocs()
	for b.Loop() {
		if _, denied := tab.Check(id, Position{1, 0}, t0); denied != want {
			b.Fatal("the table says the wrong thing")
		}
	}
}

// benchmarkMerge takes a newer fact for somebody who has one, another one each time.
func benchmarkMerge(b *testing.B, tab *Table, n int) {
	scopes := make([]Scope, min(n, 100_000))
	for i := range scopes {
		scopes[i] = Scope{ScopePrincipal, fmt.Sprintf("user%d@corp.com", i*977%n)}
	}
	seq := tab.Applied()
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		seq++
		if !tab.Merge(Fact{Verb: VerbRevoke, Scope: scopes[i%len(scopes)], Seq: seq}) {
			b.Fatal("a new fact has not changed the table")
		}
	}
}

// BenchmarkTableMemory is the heap that a fact takes, in bytes.
func BenchmarkTableMemory(b *testing.B) {
	for _, size := range strings.Split(*tableSizes, ",") {
		b.Run("facts="+size, func(b *testing.B) {
			n, err := strconv.Atoi(size)
			if err != nil {
				b.Fatal(err)
			}
			heap := func() int64 {
				runtime.GC()
				var m runtime.MemStats
				runtime.ReadMemStats(&m)
				return int64(m.HeapAlloc)
			}
			before := heap()
			tab := benchTable(n)
			b.ReportMetric(float64(heap()-before)/float64(n), "bytes/fact")
			b.ReportMetric(0, "ns/op") // no time is measured
			runtime.KeepAlive(tab)
		})
	}
}

// BenchmarkDecodeFact is the first thing that happens to a message of the journal.
func BenchmarkDecodeFact(b *testing.B) {
	f := Fact{Verb: VerbRevoke, Scope: alice, ID: "HR-4711", Reason: "left the company", Actor: "hr@corp.com", Source: "hr", At: t0}
	subject, payload := f.Subject(), f.Payload()
	b.ReportAllocs()
	for b.Loop() {
		if got, err := DecodeFact(subject, "m|1", payload); err != nil || got.ID != f.ID {
			b.Fatal(got, err)
		}
	}
}

// BenchmarkReceipt splits the evidence of a revocation into a summary and its pages and writes all of them as JSON.
func BenchmarkReceipt(b *testing.B) {
	for _, n := range []int{1, 500, 10_000} {
		b.Run(fmt.Sprintf("sessions=%d", n), func(b *testing.B) {
			r := receiptOf(n)
			for i := range r.Sessions {
				r.Sessions[i] = SessionReceipt{ID: fmt.Sprintf("edge-a-%d", i), Principal: "alice", Role: "alice", Database: "app", Client: "10.1.2.3:54321",
					Application: "psql", Since: t0, BackendPID: uint32(i), BackendStart: "2030-01-01T11:00:00.123456Z", State: "active", Cut: "gate",
					Backend: "gone", Verified: true, Xact: "aborted", SQLState: "57P01"}
			}
			largest, written := 0, 0
			b.ReportAllocs()
			for b.Loop() {
				written = 0
				summary, pages := Paginate(r, 0)
				for _, part := range append(pages, summary) {
					p, err := json.Marshal(part)
					if err != nil {
						b.Fatal(err)
					}
					largest, written = max(largest, len(p)), written+len(p)
				}
			}
			b.SetBytes(int64(written))
			b.ReportMetric(float64(largest), "largest-bytes")
		})
	}
}
