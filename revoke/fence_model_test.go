package revoke

import (
	"fmt"
	"maps"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"
)

// A small model of nodes with leases around one revocation: it knows what the coordinator cannot see, and checks each
// verdict against it.

const (
	modelLease = 4 * time.Second
	modelNodes = 3
)

// leaseBoot is one run of a process.
type leaseBoot struct {
	node, boot string
	alive      bool
	rate       float64 // of its clock; the design allows one percent
	on         string  // on_stale
	stream     string
	reads      bool // its consumer is connected
	writes     bool // its heartbeats are stored
	pos        uint64
	n          uint64
	sent       map[uint64]time.Duration // its own clock before each heartbeat
	backAt     time.Duration            // of the newest one that came back, while something was pending
	hasBack    bool
	ready      bool // a heartbeat has come back: it may serve
	serving    bool // what it announces
	leaseEnd   time.Duration
	applied    bool // the fact, or it has replayed it
	session    bool // somebody whom the fact is about is connected
	backend    bool // and his statement runs in the database
	owes       bool // a final receipt
}

type leaseMsg struct {
	seq  uint64
	p    Presence
	fact bool
}

// leaseWorld is the journal, the boots and the publisher. Real time is what the publisher's clock shows.
type leaseWorld struct {
	t     *rapid.T
	log   []string
	now   time.Time
	seq   uint64
	keep  map[string]leaseMsg // by subject
	boots []*leaseBoot
	fact  uint64
	// The publisher.
	read      uint64
	connected bool
	seen      map[string]Presence
	c         *Coordinator
}

func (w *leaseWorld) note(format string, args ...any) {
	w.log = append(w.log, w.now.Sub(t0).String()+" "+fmt.Sprintf(format, args...))
}

func (w *leaseWorld) clock(b *leaseBoot) time.Duration {
	return time.Duration(float64(w.now.Sub(t0)) * b.rate)
}

func (w *leaseWorld) start(node string) {
	b := &leaseBoot{
		node: node, boot: fmt.Sprintf("b%d", len(w.boots)), alive: true, reads: true, writes: true,
		rate:   rapid.SampledFrom([]float64{1, 0.9902, 1.005}).Draw(w.t, "rate"),
		on:     rapid.SampledFrom([]string{"freeze", "freeze", "drop", "serve"}).Draw(w.t, "on_stale"),
		stream: testStream, sent: map[uint64]time.Duration{},
	}
	if rapid.IntRange(0, 9).Draw(w.t, "leaf") == 0 {
		b.stream = "PGEDGE@leaf/1"
	}
	w.boots = append(w.boots, b)
	w.note("start %s.%s %s rate %v %s", b.node, b.boot, b.on, b.rate, b.stream)
}

// serves says whether the boot lets bytes of a session through that the fact forbids.
func (w *leaseWorld) serves(b *leaseBoot) bool {
	return w.fact > 0 && b.alive && b.ready && !b.applied && (b.on == "serve" || b.stream != testStream || w.clock(b) < b.leaseEnd)
}

func (w *leaseWorld) put(subject string, m leaseMsg) {
	w.seq++
	m.seq = w.seq
	m.p.Seq = w.seq
	w.keep[subject] = m
}

func (b *leaseBoot) subject() string { return NodeSubject(b.node, b.boot) }

func (w *leaseWorld) presence(b *leaseBoot) Presence {
	p := Presence{Node: b.node, Boot: b.boot, N: b.n, LeaseMS: modelLease.Milliseconds(), OnStale: b.on, Stream: b.stream, State: StateStarting, Applied: b.pos}
	if b.serving {
		p.State = StateServing
	}
	if b.session {
		p.Sessions = 1
	}
	return p
}

func (w *leaseWorld) heartbeat(b *leaseBoot) {
	if !b.alive {
		return
	}
	b.n++
	b.sent[b.n] = w.clock(b)
	if b.writes {
		w.put(b.subject(), leaseMsg{p: w.presence(b)})
		w.note("heartbeat %s %d at seq %d, applied %d", b.boot, b.n, w.seq, b.pos)
	}
}

// after are the messages behind a position, in their order.
func (w *leaseWorld) after(pos uint64) []leaseMsg {
	list := slices.Collect(maps.Values(w.keep))
	list = slices.DeleteFunc(list, func(m leaseMsg) bool { return m.seq <= pos })
	slices.SortFunc(list, func(a, b leaseMsg) int { return int(a.seq) - int(b.seq) })
	return list
}

// deliver gives a boot its next message. One that follows another journal gets the heartbeats only.
func (w *leaseWorld) deliver(b *leaseBoot) bool {
	next := w.after(b.pos)
	if !b.alive || !b.reads || len(next) == 0 {
		return false
	}
	m := next[0]
	b.pos = m.seq
	switch {
	case m.fact && b.stream == testStream:
		b.applied, b.owes = true, b.ready
		b.session = false
	case m.p.Node == b.node && m.p.Boot == b.boot && m.p.State != StateLeft:
		b.backAt, b.hasBack = b.sent[m.p.N], true
	}
	if len(next) == 1 && b.hasBack {
		b.leaseEnd = max(b.leaseEnd, b.backAt+modelLease)
		b.ready = true
	}
	return true
}

// publisherReads brings the publisher to the journal's end. It takes its members only there: the heartbeat that a boot
// published before the fact may have been replaced by one behind it.
func (w *leaseWorld) publisherReads() {
	stored := false
	for _, m := range w.after(w.read) {
		w.read = m.seq
		m.p.Heard = w.now
		if m.fact {
			stored = true
			continue
		}
		w.seen[NodeSubject(m.p.Node, m.p.Boot)] = m.p
		if w.c != nil {
			w.c.Presence(w.now, m.p)
		}
	}
	if stored {
		members := slices.Collect(maps.Values(w.seen))
		w.c = NewCoordinator("R", w.fact, w.now, testStream, members, 2*time.Second)
		w.note("publisher saw it stored, %d members", len(members))
	}
}

func (w *leaseWorld) check() {
	if w.c == nil {
		return
	}
	v, _ := w.c.Verdict(w.now, rapid.Bool().Draw(w.t, "final"))
	if v.Verdict == Incomplete {
		return
	}
	for _, b := range w.boots {
		if _, heard := w.seen[b.subject()]; !heard && b.stream != testStream {
			continue // nobody can know of it: that is what the nodes' own check of their journal is for
		}
		if w.serves(b) {
			w.t.Fatalf("%s, but %s.%s serves on: %+v\n%v", v.Verdict, b.node, b.boot, v.Nodes, w.log)
		}
		// A gone boot is listed and does not count: it has ended its sessions long ago, if it could.
		gone := slices.ContainsFunc(v.Nodes, func(n NodeStatus) bool { return n.Boot == b.boot && n.Status == StatusGone })
		if v.Verdict == Complete && b.alive && b.backend && !gone {
			w.t.Fatalf("complete, but a backend of %s.%s lives: %+v\n%v", b.node, b.boot, v.Nodes, w.log)
		}
	}
}

func (w *leaseWorld) any() *leaseBoot { return rapid.SampledFrom(w.boots).Draw(w.t, "boot") }

// No schedule of leases, losses, crashes and restarts makes a verdict claim what is not so.
func TestNoVerdictIsCompleteWhileANodeCouldStillServe(t *testing.T) {
	verdicts := map[Verdict]int{} // how often each was met, for whoever tunes this test
	rapid.Check(t, func(t *rapid.T) {
		w := &leaseWorld{t: t, now: t0, keep: map[string]leaseMsg{}, seen: map[string]Presence{}, connected: true}
		for i := range modelNodes {
			w.start(fmt.Sprintf("n%d", i))
		}
		allWell := func() {
			for _, b := range w.boots {
				w.heartbeat(b)
			}
			for _, b := range w.boots {
				for w.deliver(b) {
				}
				b.serving = b.serving || b.ready
			}
		}
		if rapid.IntRange(0, 3).Draw(t, "warm") > 0 {
			allWell()
			allWell()
			w.publisherReads()
		}
		t.Repeat(map[string]func(*rapid.T){
			"": func(*rapid.T) {
				if w.connected {
					w.publisherReads()
				}
				w.check()
			},
			"heartbeat": func(*rapid.T) { w.heartbeat(w.any()) },
			"all well":  func(*rapid.T) { allWell() },
			"all answer": func(*rapid.T) {
				for _, b := range w.boots {
					if b.alive && b.owes && b.writes && w.c != nil {
						b.backend, b.owes = false, false
						w.c.Receipt(w.now, Receipt{Revocation: "R", Seq: w.fact, Node: b.node, Boot: b.boot, Stage: StageVerified})
					}
				}
			},
			"deliver": func(*rapid.T) { w.deliver(w.any()) },
			"catch up": func(*rapid.T) {
				for b := w.any(); w.deliver(b); {
				}
			},
			"serve": func(*rapid.T) {
				b := w.any()
				b.serving = b.serving || b.ready
			},
			"login": func(*rapid.T) {
				// Listeners open only once the node says that it serves.
				if b := w.any(); b.alive && b.ready && b.serving && !b.applied && (b.on == "serve" || w.clock(b) < b.leaseEnd) {
					b.session, b.backend = true, true
					w.note("login on %s", b.boot)
				}
			},
			"publish": func(*rapid.T) {
				if w.fact == 0 {
					w.put("fact", leaseMsg{fact: true})
					w.fact = w.seq
					w.note("fact at seq %d", w.fact)
				}
			},
			"receipt": func(*rapid.T) {
				b := w.any()
				if !b.alive || !b.owes || w.c == nil || !b.writes {
					return
				}
				r := Receipt{Revocation: "R", Seq: w.fact, Node: b.node, Boot: b.boot, Stage: rapid.SampledFrom([]Stage{StageCut, StageClosed, StageVerified}).Draw(t, "stage")}
				if r.Stage == StageVerified {
					b.backend, b.owes = false, false
				}
				w.note("%s %s", b.boot, r.Stage)
				w.c.Receipt(w.now, r)
			},
			"time": func(t *rapid.T) {
				w.now = w.now.Add(time.Duration(rapid.SampledFrom([]int{1, 100, 900, 2000, 4039, 50_000}).Draw(t, "ms")) * time.Millisecond)
			},
			"partition": func(t *rapid.T) {
				b := w.any()
				b.reads, b.writes = rapid.Bool().Draw(t, "reads"), rapid.Bool().Draw(t, "writes")
				w.note("%s reads %v writes %v", b.boot, b.reads, b.writes)
			},
			"publisher away": func(t *rapid.T) { w.connected = rapid.Bool().Draw(t, "connected") },
			"crash": func(*rapid.T) {
				b := w.any()
				b.alive = false
				w.note("crash %s", b.boot)
			},
			"restart": func(*rapid.T) {
				b := w.any()
				if b.alive || len(w.boots) > 6 {
					return
				}
				// The next run says goodbye with the numbers of the last heartbeat that was stored.
				if last, ok := w.keep[b.subject()]; ok && last.p.State != StateLeft {
					p := last.p
					p.State, p.Crashed = StateLeft, true
					p.N++
					w.put(b.subject(), leaseMsg{p: p})
				}
				w.start(b.node)
			},
		})
		if w.c != nil {
			v, _ := w.c.Verdict(w.now, true)
			verdicts[v.Verdict]++
		}
	})
	t.Logf("verdicts: %v", verdicts)
}
