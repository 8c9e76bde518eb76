package engine

import (
	"runtime"
	"sync/atomic"
	"testing"

	"github.com/jackc/pgx/v5/pgproto3"

	"pgedge/internal/pgtest"
	"pgedge/revoke"
)

// proven closes the session's gate for an order and tells whether that alone was proof of the cut.
func (s *session) proven() bool {
	o := &order{eng: s.eng}
	o.alone[0] = o
	s.cut(ReasonRevoked, &revoke.Fact{ID: "by-hand"}, o)
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.behind[prCut] == 0
}

func (n *node) nobodyLeft() {
	n.t.Helper()
	pgtest.Wait(n.t, "the session to be settled", func() bool { return n.index.len() == 0 })
}

func (l *loop) awaitRest(t testing.TB) {
	t.Helper()
	pgtest.Wait(t, "the loop to wait for something", func() bool { return !l.atWork.Load() })
}

func TestALoopThatWaitsIsNotAskedForTheProofOfACut(t *testing.T) {
	n := startNode(t, func(c *Config) { c.Loops = 1 })
	r := n.raw("alice")
	r.Query("SELECT 1")
	pgtest.WaitFor[*pgproto3.ReadyForQuery](r) // nothing else is to come
	s := n.only("alice")
	n.loops[0].awaitRest(t)
	if !s.proven() {
		t.Error("a session at rest on a loop that waits was not proven to be cut")
	}
	n.loops[0].cut([]*session{s})
	h := <-follow(r)
	told(t, h, ReasonRevoked.SQLState())
	n.noBugs()
}

func TestALoopThatIsAtWorkProvesACutItself(t *testing.T) {
	n := startNode(t, func(c *Config) { c.Loops = 1 })
	r := n.raw("alice")
	s := n.only("alice")
	release := n.holdLoops()
	if s.proven() {
		t.Error("a cut was proven while a callback might have been about to write")
	}
	n.loops[0].cut([]*session{s})
	release()
	told(t, <-follow(r), ReasonRevoked.SQLState())
	n.noBugs()
}

// gnet writes out what it has buffered for a socket that it closes, whatever the gate says.
func TestASessionWithABacklogIsCutByItsLoop(t *testing.T) {
	n := startNode(t, func(c *Config) { c.Loops = 1 })
	for _, emptied := range []bool{false, true} {
		r := n.raw("alice")
		s := n.only("alice")
		r.Query("SELECT repeat('x', 100000) FROM generate_series(1, 1000)")
		pgtest.Wait(t, "a backlog for a client that does not read", s.backlog.Load)
		if emptied {
			pgtest.WaitFor[*pgproto3.ReadyForQuery](r)
			pgtest.Wait(t, "the backlog to be gone", func() bool { return !s.backlog.Load() })
		}
		n.loops[0].awaitRest(t)
		if got := s.proven(); got != emptied {
			t.Errorf("emptied %v: proven without the loop: %v", emptied, got)
		}
		n.loops[0].cut([]*session{s})
		<-follow(r)
		n.nobodyLeft()
	}
	n.noBugs()
}

// A session that comes to its end by itself behind the proof is told to end in the ordinary way, and sends nothing.
func TestTheEndOfASessionBehindTheProofOfItsCutSendsNothing(t *testing.T) {
	fake := startLoadBackend(t)
	relay := pgtest.NewRelay(t, fake.ln.Addr().String())
	n := startNode(t, func(c *Config) {
		c.Loops = 1
		u, err := ParseUpstream("postgres://" + relay.Addr() + "?sslmode=disable")
		if err != nil {
			t.Fatal(err)
		}
		c.Databases = map[string]Database{"*": {Upstream: u}}
	})
	r := n.raw("alice")
	s := n.only("alice")
	n.loops[0].awaitRest(t)
	sent := relay.Bytes(pgtest.ToServer)
	if !s.proven() {
		t.Fatal("the cut was not proven")
	}
	s.onLoop(func() { s.end(ReasonSessionMax, "") })
	pgtest.Wait(t, "the backend to be left", func() bool { return fake.len() == 0 })
	if more := relay.Bytes(pgtest.ToServer) - sent; more != 0 {
		t.Errorf("%d bytes went to the backend", more)
	}
	r.Rest()
	n.noBugs()
}

// One side sets the mark and then looks at the gate, the other closes the gate and then looks at the mark: whichever way
// the two meet, what has seen the gate open is over when the cut is proven.
func TestNoOrderOfGateAndMarkProvesACutTooEarly(t *testing.T) {
	l := &loop{}
	var current atomic.Pointer[session]
	var writes atomic.Int64
	stop, stopped := make(chan struct{}), make(chan struct{})
	go func() { // the loop: callbacks, one after the other
		defer close(stopped)
		for {
			select {
			case <-stop:
				return
			default:
			}
			l.enter()
			if s := current.Load(); s != nil && !s.cutNow() {
				for range 20 { // it is not over in an instant
					writes.Load()
				}
				writes.Add(1)
			}
			l.leave()
		}
	}()
	proofs := 0
	for range 200_000 {
		s := &session{loop: l, state: stLive}
		current.Store(s)
		if !s.proven() {
			continue
		}
		proofs++
		before := writes.Load()
		for range 100 {
			if writes.Load() != before {
				close(stop)
				t.Fatal("something was written behind the proof")
			}
		}
	}
	close(stop)
	<-stopped
	if proofs == 0 {
		t.Error("no cut was proven")
	}
}

// Nothing moves behind the proof, whenever it comes in a conversation.
func TestNothingPassesBehindTheProofOfACut(t *testing.T) {
	fake := startLoadBackend(t)
	n := startNode(t, func(c *Config) {
		c.Loops = 1
		c.Databases = map[string]Database{"*": {Upstream: fake.upstream(t)}}
		quiet(c)
	})
	rnd := loadRand(loadSeed(t), 1)
	passed := func() int64 { return int64(n.metrics.bytesIn.Get() + n.metrics.bytesOut.Get()) }
	const conversations = 400
	proofs := 0
	for range conversations {
		c, err := loadDial(n.addr, "alice", "", pgtest.Database)
		if err != nil {
			t.Fatal(err)
		}
		s := n.only("alice")
		ended := make(chan struct{})
		go func() {
			defer close(ended)
			for i := 0; c.query("") == nil; i++ {
				if i%2 == 0 {
					n.loops[0].post(func() {}) // gnet takes over, and calls for the next message
				}
			}
		}()
		begin := passed()
		pgtest.Wait(t, "a conversation", func() bool { return passed() > begin+100 })
		for range rnd.IntN(50) {
			runtime.Gosched()
		}
		proven := s.proven()
		before := passed()
		s.passed()
		if after := passed(); proven && after != before {
			t.Fatalf("%d bytes were relayed behind the proof", after-before)
		}
		if proven {
			proofs++
		}
		n.loops[0].cut([]*session{s})
		<-ended
		c.reset()
		n.nobodyLeft()
	}
	if proofs == 0 {
		t.Errorf("none of %d cuts was proven without the loop", conversations)
	}
	t.Logf("%d of %d cuts were proven without the loop", proofs, conversations)
	n.noBugs()
}
