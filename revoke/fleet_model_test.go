package revoke

import (
	"fmt"
	"maps"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"
)

// act draws one publish.
func (w *world) act(identified, bare bool) {
	s := rapid.SampledFrom([]Scope{alice, {ScopePrincipal, "bob"}, {ScopeRole, "app"}}).Draw(w.t, "scope")
	v := rapid.SampledFrom([]Verb{VerbRevoke, VerbRevoke, VerbKill, VerbSuspend, VerbReinstate}).Draw(w.t, "verb")
	subject := Subject(v, s)
	if rapid.IntRange(0, 9).Draw(w.t, "spelling") == 0 && s == alice {
		subject = "pgedge." + v.String() + ".principal.%61lice"
	}
	payload := rapid.SampledFrom([]string{"", `{"reason":"r"}`, `{"id":"T"}`}).Draw(w.t, "payload")
	switch v {
	case VerbSuspend:
		payload = Fact{Until: w.now.Add(time.Duration(rapid.SampledFrom([]int{1, 20, 3600}).Draw(w.t, "until")) * time.Second)}.payloadOf(VerbSuspend)
	case VerbReinstate:
		seen := max(w.bySubj[Subject(VerbRevoke, s)].seq, w.bySubj[Subject(VerbSuspend, s)].seq)
		if w.down || seen == 0 || w.noReinstate {
			return
		}
		payload = Fact{Upto: seen}.payloadOf(VerbReinstate)
	case VerbKill, VerbRevoke, VerbInvalid:
	}
	msgID := ""
	if identified && (!bare || rapid.Bool().Draw(w.t, "identified")) {
		w.attempts++
		msgID = fmt.Sprintf("%s|A%d", subject, w.attempts)
	}
	w.note("publish %s %q %q", subject, msgID, payload)
	outcome, _ := w.publish(subject, msgID, payload, nil)
	if msgID != "" && outcome == StoreOK {
		w.originals[messageKey(subject, msgID)] = true
	}
	if msgID != "" && outcome == StoreFailed && rapid.Bool().Draw(w.t, "retry") {
		w.publish(subject, msgID, payload, nil)
	}
}

func (f Fact) payloadOf(v Verb) string {
	f.Verb = v
	return string(f.Payload())
}

func (w *world) node() *simNode { return rapid.SampledFrom(w.nodes).Draw(w.t, "node") }

func (w *world) common() map[string]func(*rapid.T) {
	return map[string]func(*rapid.T){
		"login": func(t *rapid.T) { w.login(w.node(), rapid.SampledFrom(simIDs).Draw(t, "who")) },
		"check": func(t *rapid.T) { w.checkLogins(w.node()) },
		"fast": func(t *rapid.T) {
			sn := w.node()
			if len(sn.fast) > 0 {
				w.deliverFast(sn, rapid.IntRange(0, len(sn.fast)-1).Draw(t, "which"))
			}
		},
		"journal": func(t *rapid.T) { w.deliverJournal(w.node()) },
	}
}

// TestNoScheduleLeavesARevokedSessionAlive draws everything that can go wrong short of another stream.
func TestNoScheduleLeavesARevokedSessionAlive(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		w := newWorld(t, 2)
		w.mayStore = true
		actions := w.common()
		actions["publish"] = func(*rapid.T) { w.act(true, true) }
		actions["publish again"] = actions["publish"]
		actions["time"] = func(t *rapid.T) {
			w.advance(time.Duration(rapid.SampledFrom([]int{1, 300, 1000, 4000}).Draw(t, "ms")) * time.Millisecond)
		}
		actions["stores"] = func(t *rapid.T) { w.answerStores(w.node(), rapid.IntRange(0, 4).Draw(t, "lost") == 0) }
		actions["down"] = func(t *rapid.T) { w.down = rapid.Bool().Draw(t, "down"); w.note("down %v", w.down) }
		actions["garbage"] = func(t *rapid.T) {
			w.garbage = true
			w.note("garbage")
			w.publish(rapid.SampledFrom([]string{aliceSuspend, "pgedge.suspend.role.app"}).Draw(t, "on"), "", "garbage", nil)
		}
		actions["lose fast"] = func(t *rapid.T) {
			if sn := w.node(); !w.down && len(sn.fast) > 0 {
				sn.fast = nil
				w.note("fast path lost")
			}
		}
		actions["reset"] = func(t *rapid.T) {
			sn := w.node()
			sn.pos = 0
			w.note("node %d: reset", slices.Index(w.nodes, sn))
			w.event(sn, JournalReset{})
			if w.last == 0 {
				w.event(sn, JournalEmpty{})
			}
		}
		actions["restart"] = func(t *rapid.T) {
			sn := w.node()
			w.note("node %d: restart", slices.Index(w.nodes, sn))
			w.start(sn)
		}
		t.Repeat(actions)
		w.converged()
	})
}

// A node that lags meets only the newest of several facts, and adds nothing to a journal that had them all.
func TestALaggingNodeStoresNothingThatTheJournalHad(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		w := newWorld(t, 2)
		w.noReinstate = true
		actions := w.common()
		actions["publish"] = func(*rapid.T) { w.act(true, false) }
		actions["time"] = func(t *rapid.T) {
			for _, sn := range w.nodes {
				for len(sn.fast) > 0 {
					w.deliverFast(sn, 0)
				}
			}
			w.advance(time.Duration(rapid.IntRange(1, 1500).Draw(t, "ms")) * time.Millisecond)
			for _, sn := range w.nodes {
				w.answerStores(sn, false)
			}
		}
		t.Repeat(actions)
		w.converged()
	})
}

// While both ways work, in whichever order they deliver, no node stores anything.
func TestAHealthyFleetStoresNothing(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		w := newWorld(t, 2)
		drain := func() {
			for _, sn := range w.nodes {
				for len(sn.fast) > 0 {
					w.deliverFast(sn, rapid.IntRange(0, len(sn.fast)-1).Draw(t, "which"))
				}
			}
		}
		actions := w.common()
		actions["publish"] = func(t *rapid.T) {
			w.act(true, true)
			for _, sn := range w.nodes {
				if rapid.Bool().Draw(t, "fast first") {
					for len(sn.fast) > 0 {
						w.deliverFast(sn, 0)
					}
				}
				for w.deliverJournal(sn) {
				}
			}
		}
		actions["time"] = func(t *rapid.T) {
			drain()
			w.advance(time.Duration(rapid.IntRange(1, 5000).Draw(t, "ms")) * time.Millisecond)
		}
		t.Repeat(actions)
		drain()
		w.converged()
		for i, sn := range w.nodes {
			if s := sn.n.Stats(); s.Stores != 0 {
				w.fatal("node %d stored %d times", i, s.Stores)
			}
		}
	})
}

// The stream is emptied or set back while sessions are alive: what the nodes have blocked stays blocked, and what the
// new stream says is carried out on sessions whose positions belong to the old one.
func TestAnotherStreamLetsNobodyIn(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		w := newWorld(t, 1)
		sn := w.nodes[0]
		for range rapid.IntRange(1, 12).Draw(t, "before") {
			w.act(true, true)
			for w.deliverJournal(sn) {
			}
			w.login(sn, rapid.SampledFrom(simIDs).Draw(t, "who"))
			w.checkLogins(sn)
		}
		sn.fast = nil
		// Heartbeats have taken the old stream far.
		w.event(sn, JournalMessage{"pgedge.other", "", nil, w.last + 100, w.now, 0})
		blocked := map[Identity]bool{}
		for _, id := range simIDs {
			_, blocked[id] = sn.n.Table().Check(id, sn.n.Table().Position(), w.now)
		}
		kept := maps.Clone(w.bySubj)
		maps.DeleteFunc(kept, func(string, storedMsg) bool { return rapid.Bool().Draw(t, "lost") })
		w.bySubj, w.last, sn.pos, w.stored = kept, 0, 0, nil
		for _, m := range kept {
			w.last = max(w.last, m.seq)
		}
		w.event(sn, JournalReset{Stream: "s2"})
		if w.last == 0 {
			w.event(sn, JournalEmpty{})
		}
		for w.deliverJournal(sn) {
		}
		for _, id := range simIDs {
			if _, denied := sn.n.Table().Check(id, sn.n.Table().Position(), w.now); blocked[id] && !denied {
				w.fatal("%s was let in by another stream", id.Principal)
			}
		}
		for range rapid.IntRange(1, 5).Draw(t, "after") {
			s := alice
			w.publish(Subject(VerbKill, s), "", "", nil)
			for w.deliverJournal(sn) {
			}
			for _, s := range sn.sessions {
				if s.id.Principal == "alice" && !s.dead {
					w.fatal("a session outlived a kill of the new stream")
				}
			}
			w.login(sn, simIDs[0])
			w.checkLogins(sn)
		}
	})
}
