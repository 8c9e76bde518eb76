package engine

import (
	"context"
	"flag"
	"fmt"
	"math/rand/v2"
	"net"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/panjf2000/gnet/v2"

	"pgedge/revoke"
)

// crowdSizes is how many sessions an index holds: -args -sessions 1000,1000000 takes other numbers. To build an engine of a
// million takes about ten seconds.
var crowdSizes = flag.String("sessions", "1000,100000", "how many sessions the benchmarks of the index have, separated by commas")

// crowdMatches is how many sessions one person has, the largest first, so that there is room for it.
var crowdMatches = []int{5000, 500, 100, 1}

func eachCrowdSize(b *testing.B, run func(b *testing.B, n int)) {
	for _, size := range strings.Split(*crowdSizes, ",") {
		n, err := strconv.Atoi(size)
		if err != nil || n < 1 || n > 10_000_000 {
			b.Fatalf("-sessions: %q is no number of sessions", size)
		}
		b.Run("sessions="+size, func(b *testing.B) { run(b, n) })
	}
}

// crowd is an engine full of live sessions without sockets. They stand in the index in no order that their persons
// would have anything to do with, as they do when people come and go.
type crowd struct {
	eng      *Engine
	sessions []*session
	people   map[int][]string // principals by how many sessions they have
}

// deafLoop takes every task and runs none: what is measured ends where the loops begin.
type deafLoop struct{ gnet.EventLoop }

func (deafLoop) Execute(context.Context, gnet.Runnable) error { return nil }

func newCrowdEngine(tb testing.TB) *Engine {
	tb.Helper()
	cfg := Config{Node: "edge-b", Boot: "boot", Version: "bench", Table: revoke.NewTable(), Listen: []string{"127.0.0.1:0"},
		Databases: map[string]Database{"*": {Upstream: Upstream{Hosts: []HostPort{{"127.0.0.1", 5432}}}}}}
	quiet(&cfg)
	e, err := New(cfg)
	if err != nil {
		tb.Fatal(err)
	}
	e.loops = []*loop{{eng: e, el: deafLoop{}}}
	return e
}

// crowdNames says who has how many of n sessions; at most half of those that are left go to people with the same number.
func crowdNames(n int) (names []string, people map[int][]string) {
	people = make(map[int][]string)
	for _, m := range crowdMatches {
		groups := min((n-len(names))/2/m, 200)
		if m == 1 {
			groups = n - len(names)
		}
		for g := range groups {
			name := fmt.Sprintf("person-%d-%d@corp.com", m, g)
			people[m] = append(people[m], name)
			for range m {
				names = append(names, name)
			}
		}
	}
	random := rand.New(rand.NewPCG(1, 2))
	random.Shuffle(len(names), func(i, j int) { names[i], names[j] = names[j], names[i] })
	random.Shuffle(len(people[1]), func(i, j int) { people[1][i], people[1][j] = people[1][j], people[1][i] })
	return names, people
}

// crowdConn is where the client of a session without a socket comes from.
type crowdConn struct{ net.Conn }

func (crowdConn) RemoteAddr() net.Addr {
	return &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1).To4(), Port: 1024}
}

// newCrowdSession is a session as a login leaves it, each with names of its own memory.
func (e *Engine) newCrowdSession(i int, name string) *session {
	s := e.newSession(crowdConn{})
	s.id = e.newSessionID()
	name = string([]byte(name))
	s.identity = revoke.NewIdentity(name, name, fmt.Sprintf("app%d", i%10), s.id)
	s.state, s.loop, s.entry = stLive, e.loops[0], e.databases["*"]
	return s
}

func newCrowd(tb testing.TB, n int) *crowd {
	tb.Helper()
	c := &crowd{eng: newCrowdEngine(tb)}
	var names []string
	names, c.people = crowdNames(n)
	for i, name := range names {
		s := c.eng.newCrowdSession(i, name)
		c.sessions = append(c.sessions, s)
		c.eng.index.add(s)
	}
	return c
}

// BenchmarkIndex is what sessions and revocations cost the index, by how many sessions it holds and how many of them match.
func BenchmarkIndex(b *testing.B) {
	eachCrowdSize(b, func(b *testing.B, n int) {
		c := newCrowd(b, n)
		for _, m := range crowdMatches {
			if len(c.people[m]) > 0 {
				matches := fmt.Sprintf("matches=%d", m)
				b.Run("revoke/"+matches, func(b *testing.B) { c.benchmarkRevoke(b, m) })
				b.Run("match/"+matches, func(b *testing.B) { c.benchmarkMatch(b, m) })
				b.Run("count/"+matches, func(b *testing.B) { c.benchmarkCount(b, m) })
				b.Run("receipt/"+matches, func(b *testing.B) { c.benchmarkReceipt(b, m) })
			}
		}
		b.Run("remove+add", c.benchmarkRemoveAdd)
	})
}

// benchmarkRevoke is a revocation from the fact to the last gate shut, loops not included: the index is asked, every
// session's gate is shut under its lock, and the order knows all of them. Each goes for another person, while there are
// any.
func (c *crowd) benchmarkRevoke(b *testing.B, matches int) {
	people := c.people[matches]
	received := time.Now()
	var took []time.Duration
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		scope := revoke.Scope{Kind: revoke.ScopePrincipal, Name: people[i%len(people)]}
		began := time.Now()
		c.eng.Cut(revoke.Order{Key: "bench", Fact: revoke.Fact{Verb: revoke.VerbRevoke, Scope: scope}, ReceivedAt: received, Fast: true})
		took = append(took, time.Since(began))
		b.StopTimer()
		found := c.eng.index.match(scope)
		if len(found) != matches {
			b.Fatalf("%d sessions of %s, want %d", len(found), scope.Name, matches)
		}
		for _, s := range found {
			if !s.cutNow() || len(s.orders) != 1 {
				b.Fatal("a gate is open")
			}
			s.gate.Store(0)
			s.fact.Store(nil)
			s.orders = nil
		}
		delete(c.eng.orders.open, "bench")
		b.StartTimer()
	}
	slices.Sort(took)
	b.ReportMetric(float64(took[len(took)/2]), "median-ns") // the mean is the scheduler's as well
}

// benchmarkReceipt builds the final evidence of a revocation.
func (c *crowd) benchmarkReceipt(b *testing.B, matches int) {
	o := &order{eng: c.eng}
	for _, s := range c.eng.index.match(revoke.Scope{Kind: revoke.ScopePrincipal, Name: c.people[matches][0]}) {
		s.mu.Lock()
		s.describeLocked("idle")
		s.mu.Unlock()
		o.sessions = append(o.sessions, s)
	}
	b.ReportAllocs()
	for b.Loop() {
		if r := o.receipt(prVerified); r.Matched != matches || len(r.Sessions) != matches {
			b.Fatal(r.Matched, len(r.Sessions))
		}
	}
}

// benchmarkMatch is the look into the index alone.
func (c *crowd) benchmarkMatch(b *testing.B, matches int) {
	people := c.people[matches]
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		if got := c.eng.index.match(revoke.Scope{Kind: revoke.ScopePrincipal, Name: people[i%len(people)]}); len(got) != matches {
			b.Fatal(len(got))
		}
	}
}

// benchmarkCount is a session that comes and goes, with a look at limits.per_principal, of a person who has so many.
func (c *crowd) benchmarkCount(b *testing.B, matches int) {
	found := c.eng.index.match(revoke.Scope{Kind: revoke.ScopePrincipal, Name: c.people[matches][0]})
	for _, s := range found {
		if !c.eng.index.count(s, matches) {
			b.Fatal("there is no room")
		}
	}
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		s := found[i%matches]
		c.eng.index.remove(s)
		c.eng.index.add(s)
		if !c.eng.index.count(s, matches) {
			b.Fatal("there is no room")
		}
	}
}

// benchmarkRemoveAdd is what a session costs the index in its life.
func (c *crowd) benchmarkRemoveAdd(b *testing.B) {
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		s := c.sessions[i%len(c.sessions)]
		c.eng.index.remove(s)
		c.eng.index.add(s)
	}
}

// BenchmarkIndexMemory is the heap that a session takes in the index, and by itself with its names, in bytes. Everybody
// has one session, which costs an index the most.
func BenchmarkIndexMemory(b *testing.B) {
	eachCrowdSize(b, func(b *testing.B, n int) {
		e := newCrowdEngine(b)
		all := make([]*session, n)
		empty := heapBytes()
		for i := range all {
			all[i] = e.newCrowdSession(i, fmt.Sprintf("person-%d@corp.com", i))
		}
		made := heapBytes()
		for _, s := range all {
			e.index.add(s)
		}
		b.ReportMetric(float64(heapBytes()-made)/float64(n), "index-bytes/session")
		b.ReportMetric(float64(made-empty)/float64(n), "own-bytes/session")
		b.ReportMetric(0, "ns/op") // no time is measured
		runtime.KeepAlive(e)
	})
}

// heapBytes is what the heap holds after a collection.
func heapBytes() int64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}
