package sim

import (
	"encoding/json"
	"strings"
	"time"

	"pgedge/revoke"
)

// process is one run of a node: the state machine, and what carries its events and commands.
type process struct {
	m       *machine
	w       *World
	boot    string
	node    *revoke.Node
	lease   revoke.Lease
	journal *consumer
	engine  engine
	alive   bool
	serving bool
	ticks   uint64
	// knows are the facts that have been handed to the state machine by either way.
	knows map[*fact]knowledge
}

func newProcess(m *machine, boot string) *process {
	p := &process{m: m, w: m.w, boot: boot, alive: true, knows: map[*fact]knowledge{}}
	p.engine.p = p
	p.node = revoke.NewNode(revoke.NodeConfig{
		ID: m.name, Boot: boot, Lease: m.w.cfg.Lease, Freeze: m.w.cfg.Freeze, OnStale: m.onStale,
	})
	p.journal = m.w.journal.consume(
		func(jm revoke.JournalMessage) {
			p.do(func() { p.onJournal(jm) })
		},
		func(stream string, empty bool) {
			p.do(func() {
				p.handle(revoke.JournalReset{Stream: stream})
				if empty {
					p.handle(revoke.JournalEmpty{})
				}
			})
		})
	p.journal.connected = !m.cut
	p.journal.begin()
	p.heartbeats()
	return p
}

// do lets the process do something, now or when it runs again.
func (p *process) do(f func()) {
	if !p.alive {
		return
	}
	if p.m.stopped != running {
		p.m.waiting = append(p.m.waiting, func() { p.do(f) })
		return
	}
	f()
}

// later does something after a while by the process's own clock.
func (p *process) later(d time.Duration, f func()) {
	p.w.after(time.Duration(float64(d)/p.m.rate), func() { p.do(f) })
}

func (p *process) fresh() bool {
	return p.w.cfg.Broken == LeaseNotAsked || p.lease.Fresh(p.m.instant())
}

// knowledge is how a process was told of a fact.
type knowledge struct {
	byJournal bool
	at        time.Duration // first, true time
	journalAt time.Duration
}

// owed says that a node takes a bare message of the fast path for the late copy of another one with the same content,
// which the journal has delivered moments ago. The two cannot be told apart; the journal delivers the second one as well.
func (p *process) owed(f *fact) bool {
	for g, k := range p.knows {
		if g != f && f.bare && g.bare && g.name == f.name && k.byJournal && p.w.now-k.journalAt < 4*time.Second {
			return true
		}
	}
	return false
}

func (p *process) learn(f *fact, byJournal bool) {
	k, known := p.knows[f]
	if !known {
		k.at = p.w.now
	}
	if byJournal && !k.byJournal {
		k.byJournal, k.journalAt = true, p.w.now
	}
	p.knows[f] = k
}

func (p *process) onJournal(m revoke.JournalMessage) {
	if p.w.cfg.Broken == NothingEverPending {
		m.Pending = 0
	}
	if f := p.w.record.at(m.Seq, m.Subject); f != nil {
		p.learn(f, true)
	}
	p.handle(m)
}

func (p *process) handle(ev revoke.Event) {
	for _, c := range p.node.Handle(p.m.mono(), p.m.instant(), ev) {
		p.carryOut(c)
	}
	if p.w.cfg.Broken == ServeBeforeReplay && !p.serving {
		p.lease.Renew(p.m.instant().Add(p.w.cfg.Lease))
		p.serving = true
	}
	p.engine.check()
	p.ticks++
	if next := p.node.NextTick(); !next.IsZero() {
		mine := p.ticks
		// A little late, as timers are; and never in a loop at one moment.
		p.later(max(next.Sub(p.m.mono()), 0)+time.Millisecond, func() {
			if mine == p.ticks {
				p.handle(revoke.Tick{})
			}
		})
	}
}

func (p *process) carryOut(c revoke.Command) {
	switch c := c.(type) {
	case revoke.CutCommand:
		p.engine.cut(c.Order)
	case revoke.StoreCommand:
		p.store(c)
	case revoke.HeartbeatCommand:
		p.beat(c)
	case revoke.RenewCommand:
		if c.Never {
			p.lease.Never()
		} else {
			p.lease.Renew(c.Until)
		}
		p.serving = true
	case revoke.RevokeLeaseCommand:
		p.lease.Revoke()
		p.w.note("%s: lease taken away: %s", p.m.name, c.Why)
	case revoke.FreezeCommand:
		p.w.note("%s: frozen, %d sessions", p.m.name, p.engine.alive())
	case revoke.ThawCommand:
		p.w.note("%s: thawed, %d sessions", p.m.name, p.engine.alive())
	case revoke.DropCommand:
		p.w.note("%s: dropped", p.m.name)
		p.engine.drop()
	case revoke.ReloadCommand:
		p.w.note("%s: reads the journal again: %s", p.m.name, c.Why)
		p.later(p.w.between(time.Millisecond, 50*time.Millisecond), p.journal.begin)
	case revoke.ReadyCommand:
		p.w.note("%s: journal replayed to %d", p.m.name, p.node.Table().Applied())
	case revoke.RejectCommand, revoke.PresenceCommand:
	}
}

// publish sends to the stream and waits for its answer, which may not come.
func (p *process) publish(subject, msgID string, payload []byte, expect *uint64, answered func(answer)) {
	lost := func() { p.later(time.Second, func() { answered(answer{outcome: revoke.StoreFailed}) }) }
	p.w.after(p.w.latency(), func() {
		if p.m.cut || !p.alive {
			lost()
			return
		}
		a := p.w.journal.publish(subject, msgID, payload, expect)
		if a.outcome == revoke.StoreFailed || p.w.chance(20) {
			lost()
			return
		}
		p.w.after(p.w.latency(), func() {
			if p.m.cut {
				lost()
				return
			}
			p.do(func() { answered(a) })
		})
	})
}

func (p *process) store(c revoke.StoreCommand) {
	subject, payload := c.Subject, append([]byte(nil), c.Payload...)
	switch p.w.cfg.Broken {
	case NegativeLookUpDrops:
		p.node.Table().DropProvisional(c.Key)
		p.later(0, func() { p.handle(revoke.StoreResult{Key: c.Key, Outcome: revoke.StoreOK}) })
		return
	case SuspendStoredAsRevoke:
		if rest, ok := strings.CutPrefix(subject, "pgedge.suspend."); ok {
			subject = "pgedge.revoke." + rest
		}
	}
	p.w.note("%s: stores %s, expecting %d", p.m.name, strings.TrimPrefix(subject, "pgedge."), c.ExpectLastSubjectSeq)
	p.publish(subject, c.MsgID, payload, &c.ExpectLastSubjectSeq, func(a answer) {
		p.handle(revoke.StoreResult{Key: c.Key, Outcome: a.outcome, Seq: a.seq})
	})
}

func (p *process) heartbeats() {
	p.handle(revoke.HeartbeatDue{})
	p.later(p.w.cfg.Heartbeat, p.heartbeats)
}

func (p *process) beat(c revoke.HeartbeatCommand) {
	state := revoke.StateStarting
	if p.serving {
		state = revoke.StateServing
	}
	presence := revoke.Presence{
		V: 1, Node: p.m.name, Boot: p.boot, N: c.N, At: p.m.instant().Wall, LeaseMS: p.w.cfg.Lease.Milliseconds(),
		OnStale: p.m.onStale, Applied: c.Applied, TableHash: c.TableHash, Stream: c.Stream,
		Sessions: p.engine.alive(), Unsettled: p.node.Stats().Unsettled, State: state,
	}
	payload, err := json.Marshal(presence)
	if err != nil {
		panic(err) // only numbers and text of our own
	}
	expect := c.ExpectLastSubjectSeq
	p.publish(revoke.NodeSubject(p.m.name, p.boot), "", payload, &expect, func(a answer) {
		p.handle(revoke.HeartbeatResult{N: c.N, Outcome: a.outcome, Seq: a.seq, Last: a.last, LastKnown: a.outcome == revoke.StoreWrongLastSequence})
	})
}
