package sim

import (
	"fmt"
	"time"

	"pgedge/revoke"
)

// session is one session of a node.
type session struct {
	id       revoke.Identity
	authSeq  revoke.Position
	began    time.Duration // true time
	indexed  bool
	admitted bool
	ended    bool
	gate     bool // shut
	writing  bool // the gate has been looked at and the write is to come
	reported bool // a receipt says that it is cut
}

// engine is what the real one does as far as the protocol goes: index first, then the table; the gate and the lease
// before each write; a cut is reported when every write that had passed the gate is done.
type engine struct {
	p        *process
	sessions []*session
	logins   int
}

func (e *engine) alive() int {
	n := 0
	for _, s := range e.sessions {
		if !s.ended {
			n++
		}
	}
	return n
}

// login begins a login. What becomes of it is told to done, if that is not nil.
func (e *engine) login(principal string, done func(admitted bool)) {
	p := e.p
	e.logins++
	s := &session{
		id:    revoke.NewIdentity(principal, "app", "db", fmt.Sprintf("%s-%d", p.boot, e.logins)),
		began: p.w.now, authSeq: p.node.Table().Position(),
	}
	refused := func() bool {
		if _, denied := p.node.Table().Check(s.id, s.authSeq, p.m.mono()); denied || s.gate || s.ended || !p.fresh() {
			s.ended = true
			if done != nil {
				done(false)
			}
		}
		return s.ended
	}
	register := func() {
		s.indexed = true
		e.sessions = append(e.sessions, s)
	}
	if p.w.cfg.Broken != CheckBeforeRegister {
		register()
	}
	// The client takes its time, and each time the login goes on it looks again.
	p.later(p.w.between(0, 5*time.Millisecond), func() {
		if refused() {
			return
		}
		p.later(p.w.between(time.Millisecond, 80*time.Millisecond), func() {
			if p.w.cfg.Broken == CheckBeforeRegister {
				register()
			} else if refused() {
				return
			}
			s.admitted = true
			p.w.record.lets(p, s, "admits")
			if done != nil {
				done(true)
			}
			e.relay(s)
		})
	})
}

// relay lets the session send something now and then.
func (e *engine) relay(s *session) {
	p := e.p
	p.later(p.w.between(50*time.Millisecond, 700*time.Millisecond), func() {
		if s.ended {
			return
		}
		if !s.gate && p.fresh() {
			p.w.record.lets(p, s, "passes a byte of")
			s.writing = true
			stops := p.m.stoppedAt
			p.later(p.w.between(0, 2*time.Millisecond), func() {
				// One buffer per loop may stand between check and write while the process is stopped.
				p.w.record.writes(p, s, stops != p.m.stoppedAt)
				s.writing = false
			})
		}
		e.relay(s)
	})
}

// cut carries out an order. The gates are shut when it returns.
func (e *engine) cut(o revoke.Order) {
	var matched []*session
	if o.SupersededBy == 0 {
		for _, s := range e.sessions {
			if !s.ended && s.indexed && o.Fact.Scope.Matches(s.id) && (o.Fact.Seq == 0 || s.authSeq.Before(o.Fact.Position())) {
				s.gate = true
				matched = append(matched, s)
			}
		}
	}
	if o.Fact.Seq == 0 && o.SupersededBy == 0 {
		// Its receipt waits for the journal.
		e.p.later(5*time.Millisecond, func() {
			for _, s := range matched {
				s.ended = s.ended || !s.writing
			}
		})
		return
	}
	e.report(o, matched)
}

// report waits for the loops, ends the sessions and sends the receipts.
func (e *engine) report(o revoke.Order, matched []*session) {
	p := e.p
	for _, s := range matched {
		if s.writing && !s.ended && p.w.cfg.Broken != CutBeforeTheLoops {
			p.later(time.Millisecond, func() { e.report(o, matched) })
			return
		}
	}
	r := revoke.Receipt{
		Schema: revoke.ReceiptSchema, Revocation: o.Fact.ID, Seq: o.Fact.Seq, Epoch: o.Fact.Epoch, Matched: len(matched),
		SupersededBy: o.SupersededBy, Verb: o.Fact.Verb.String(), Scope: o.Fact.Scope.Token(), Node: p.m.name, Boot: p.boot,
	}
	for _, s := range matched {
		s.reported = true
		s.ended = s.ended || p.w.cfg.Broken != CutBeforeTheLoops
	}
	p.w.note("%s: cut %s, %d sessions", p.m.name, r.Verb+" "+o.Fact.Scope.Name, len(matched))
	r.Stage = revoke.StageCut
	p.m.send(r)
	p.later(p.w.between(2*time.Millisecond, 30*time.Millisecond), func() {
		for _, s := range matched {
			s.ended = true
		}
		e.sweep()
		r.Stage = revoke.StageVerified
		p.m.send(r)
	})
}

// drop ends every session.
func (e *engine) drop() {
	for _, s := range e.sessions {
		s.ended = true
	}
	e.sweep()
}

// leave ends a session that its client ends.
func (e *engine) leave() {
	for _, s := range e.sessions {
		if s.admitted && !s.ended && !s.gate {
			s.ended = true
			return
		}
	}
}

func (e *engine) sweep() {
	kept := e.sessions[:0]
	for _, s := range e.sessions {
		if !s.ended {
			kept = append(kept, s)
		}
	}
	clear(e.sessions[len(kept):])
	e.sessions = kept
}

// check is G2 as the node's own table sees it: no session lives with an open gate that it forbids.
func (e *engine) check() {
	for _, s := range e.sessions {
		if !s.admitted || s.ended || s.gate {
			continue
		}
		if d, denied := e.p.node.Table().Check(s.id, s.authSeq, e.p.m.mono()); denied {
			e.p.w.violate("G2", "%s: a session of %s lives that the table forbids: %s %s at %d", e.p.m.name, s.id.Principal, d.Fact.Verb, d.Fact.Scope, d.Fact.Seq)
		}
	}
}
