package revoke

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"
)

// The small fleet with heartbeats, leases, clocks that jump, and streams that are lost or set back.

func (w *world) at(sn *simNode) Instant {
	at := instantAt(w.now)
	at.Wall = at.Wall.Add(sn.wall)
	return at
}

// proven is called when a node takes a lease as of an instant: what the journal holds from before has to be in force.
func (w *world) proven(sn *simNode, asOf Instant) {
	when := t0.Add(asOf.Boot - time.Hour)
	for _, b := range w.stored {
		if !b.at.After(when) {
			w.inForce(sn, b, "is proven fresh as of "+when.Format("05.000"))
		}
	}
}

// inForce checks that a node has carried a fact out.
func (w *world) inForce(sn *simNode, b sessionsBefore, how string) {
	for _, s := range b.sessions {
		if slices.Contains(sn.sessions, s) && s.checked && !s.dead && b.fact.Scope.Matches(s.id) {
			w.fatal("node %s %s, and a session of %s from before %+v is alive", sn.id, how, s.id.Principal, b.fact)
		}
	}
	if b.fact.Verb == VerbKill {
		return
	}
	if b.fact.Verb == VerbSuspend {
		// Of several suspends the journal's last one decides.
		for _, later := range w.stored {
			if later.seq > b.seq && later.fact.Verb == VerbSuspend && later.fact.Scope == b.fact.Scope {
				return
			}
		}
		if !w.now.Before(b.fact.Until) {
			return
		}
	}
	for _, id := range simIDs {
		if _, denied := sn.n.Table().Check(id, sn.n.Table().Position(), w.now); b.fact.Scope.Matches(id) && !denied {
			w.fatal("node %s %s, and admits %s against %+v", sn.id, how, id.Principal, b.fact)
		}
	}
}

// sound checks what holds after every step. There are no reinstates in this model.
func (w *world) sound() {
	for _, sn := range w.nodes {
		for _, id := range simIDs {
			d, denied := sn.n.Table().Check(id, sn.n.Table().Position(), w.now)
			if sn.blocked[id] && !denied {
				w.fatal("node %s has denied %s for good and lets it in", sn.id, id.Principal)
			}
			sn.blocked[id] = sn.blocked[id] || denied && d.Fact.Verb == VerbRevoke
		}
		if !sn.lease.Fresh(w.at(sn)) {
			continue
		}
		for _, b := range w.stored {
			if w.now.Sub(b.at) >= sn.n.cfg.Lease {
				w.inForce(sn, b, "is fresh at "+w.now.Format("05.000"))
			}
		}
	}
}

// heartbeat publishes one; lose is how its answer gets lost: not, on the way back, on the way there.
func (w *world) heartbeat(sn *simNode, lose int) {
	w.event(sn, HeartbeatDue{})
	c := sn.beat
	w.note("node %s: heartbeat %d expecting %d, lost %d", sn.id, c.N, c.ExpectLastSubjectSeq, lose)
	if sn.cutOff || w.down || lose == 2 {
		w.event(sn, HeartbeatResult{N: c.N, Outcome: StoreFailed})
		return
	}
	subject := NodeSubject(sn.id, sn.boot)
	last := w.bySubj[subject].seq
	if last != c.ExpectLastSubjectSeq {
		w.note("  refused: %d", last)
		w.event(sn, HeartbeatResult{N: c.N, Outcome: StoreWrongLastSequence, Last: last, LastKnown: true})
		return
	}
	payload, err := json.Marshal(Presence{Node: sn.id, Boot: sn.boot, N: c.N, Applied: c.Applied, TableHash: c.TableHash, Stream: c.Stream})
	if err != nil {
		w.fatal("%v", err)
	}
	w.last++
	w.bySubj[subject] = storedMsg{seq: w.last, subject: subject, payload: string(payload), stored: w.now}
	if lose == 0 {
		w.event(sn, HeartbeatResult{N: c.N, Outcome: StoreOK, Seq: w.last})
	}
}

type backup struct {
	bySubj map[string]storedMsg
	last   uint64
	stream string
	stored []sessionsBefore
}

func (w *world) backup() backup {
	return backup{maps.Clone(w.bySubj), w.last, w.stream, slices.Clone(w.stored)}
}

// restore puts another stream in the place of the present one.
func (w *world) restore(b backup) {
	w.gen++
	w.bySubj, w.last, w.stream, w.stored = maps.Clone(b.bySubj), b.last, b.stream, slices.Clone(b.stored)
	w.dedupe = map[string]storedMsg{}
	for i := range w.stored {
		w.stored[i].at = w.now // The present stream may never have had it.
	}
	w.note("the stream is %s again, up to %d", w.stream, w.last)
}

func (w *world) reset(sn *simNode) {
	if w.down || sn.cutOff {
		return
	}
	sn.reload, sn.pos, sn.gen = false, 0, w.gen
	w.note("node %s: a new consumer", sn.id)
	w.event(sn, JournalReset{Stream: w.stream})
	if len(w.bySubj) == 0 {
		w.event(sn, JournalEmpty{})
	}
}

func TestNoScheduleOfStreamsAndClocksRevivesAccessOrOutlivesItsProof(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		w := newWorld(t, 2)
		w.mayStore, w.noReinstate = true, true
		kept := []backup{{bySubj: map[string]storedMsg{}, stream: "s0"}}
		streams := 1
		actions := w.common()
		login := actions["login"]
		actions["login"] = func(t *rapid.T) {
			// A login asks for the lease as well.
			for _, sn := range w.nodes {
				if !sn.lease.Fresh(w.at(sn)) {
					return
				}
			}
			login(t)
		}
		actions["publish"] = func(*rapid.T) { w.act(true, true) }
		actions["heartbeat"] = func(t *rapid.T) { w.heartbeat(w.node(), max(0, rapid.IntRange(-4, 2).Draw(t, "lost"))) }
		actions["catch up"] = func(*rapid.T) {
			sn := w.node()
			for w.deliverJournal(sn) {
			}
		}
		actions["a second"] = func(t *rapid.T) {
			for range rapid.IntRange(1, 8).Draw(t, "seconds") {
				w.advance(time.Second)
				for _, sn := range w.nodes {
					w.heartbeat(sn, 0)
					for w.deliverJournal(sn) {
					}
					if sn.reload {
						w.reset(sn)
					}
					w.answerStores(sn, false)
				}
			}
		}
		actions["time"] = func(t *rapid.T) {
			w.advance(time.Duration(rapid.SampledFrom([]int{1, 300, 4000, 21000}).Draw(t, "ms")) * time.Millisecond)
		}
		actions["stores"] = func(t *rapid.T) { w.answerStores(w.node(), rapid.IntRange(0, 4).Draw(t, "lost") == 0) }
		actions["reset"] = func(*rapid.T) { w.reset(w.node()) }
		actions["cut off"] = func(t *rapid.T) {
			sn := w.node()
			if sn.cutOff = rapid.Bool().Draw(t, "cut off"); sn.cutOff {
				sn.fast = nil
			}
		}
		actions["wall clock"] = func(t *rapid.T) {
			w.node().wall = time.Duration(rapid.SampledFrom([]int{-3600, -10, 0, 10, 3600}).Draw(t, "seconds")) * time.Second
		}
		actions["backup"] = func(*rapid.T) { kept = append(kept, w.backup()) }
		actions["another stream"] = func(t *rapid.T) {
			b := rapid.SampledFrom(kept).Draw(t, "backup")
			if b.last == 0 || rapid.Bool().Draw(t, "new identity") {
				streams++
				b.stream = fmt.Sprintf("s%d", streams)
			}
			w.restore(b)
		}
		actions["restart"] = func(*rapid.T) {
			if sn := w.node(); !sn.cutOff {
				w.start(sn)
			}
		}
		actions[""] = func(*rapid.T) { w.sound() }
		t.Repeat(actions)
		w.healed()
	})
}

// healed lets everything arrive: then all nodes serve, and one that starts now denies whom any of them denies for good.
func (w *world) healed() {
	w.note("everything arrives")
	w.down = false
	for range 60 {
		for _, sn := range w.nodes {
			sn.cutOff = false
			if sn.reload || sn.gen != w.gen {
				w.reset(sn)
			}
			for len(sn.fast) > 0 {
				w.deliverFast(sn, 0)
			}
			for w.deliverJournal(sn) {
			}
			w.answerStores(sn, false)
			w.heartbeat(sn, 0)
			for w.deliverJournal(sn) {
			}
			w.sound()
		}
		w.advance(500 * time.Millisecond)
	}
	fresh := &simNode{id: "fresh"}
	w.start(fresh)
	for w.deliverJournal(fresh) {
	}
	for _, sn := range w.nodes {
		if !sn.lease.Fresh(w.at(sn)) || sn.frozen {
			w.fatal("node %s does not serve: %+v", sn.id, sn.n.LeaseStatus())
		}
		if left := sn.n.rescues; len(left) > 0 {
			w.fatal("node %s has %d blocks left to rescue", sn.id, len(left))
		}
		for _, id := range simIDs {
			if _, denied := fresh.n.Table().Check(id, fresh.n.Table().Position(), w.now); sn.blocked[id] && !denied {
				w.fatal("a new node admits %s, whom %s denies", id.Principal, sn.id)
			}
		}
	}
}
