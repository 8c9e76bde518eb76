package sim

import (
	"time"

	"pgedge/revoke"
)

// Random runs a schedule that the seed draws: a minute of logins, revocations and faults, a while in which everything
// heals, and the check that all nodes then deny what the journal says.
func Random(cfg Config) *World {
	w := New(cfg)
	disasters := w.rng.IntN(6) == 0
	const trouble = time.Minute
	w.every(20*time.Millisecond, 400*time.Millisecond, trouble, w.someLogin)
	w.every(200*time.Millisecond, 5*time.Second, trouble, w.somePublication)
	w.every(500*time.Millisecond, 8*time.Second, trouble, w.someFault)
	if disasters {
		w.after(w.between(5*time.Second, trouble), w.journal.save)
		w.after(w.between(15*time.Second, trouble), func() {
			if w.rng.IntN(2) == 0 {
				w.journal.restore()
			} else {
				w.journal.recreate()
			}
		})
	}
	w.Run(trouble)
	w.Settle(disasters)
	return w
}

// every does something again and again until a moment.
func (w *World) every(low, high, until time.Duration, do func()) {
	w.after(w.between(low, high), func() {
		if w.now < until {
			do()
			w.every(low, high, until, do)
		}
	})
}

func (w *World) someMachine() *machine { return w.machines[w.rng.IntN(len(w.machines))] }

func (w *World) someLogin() {
	p := w.someMachine().proc
	if p == nil {
		return
	}
	if w.rng.IntN(4) == 0 {
		p.do(p.engine.leave)
		return
	}
	name := principals[w.rng.IntN(len(principals))]
	p.do(func() { p.engine.login(name, nil) })
}

func (w *World) somePublication() {
	// Dave is never revoked, so that nothing but a suspend can keep him out; nobody ever acts on carol.
	name := principals[w.rng.IntN(3)]
	bare := w.rng.IntN(3) == 0
	burst := 1 + w.rng.IntN(2)
	for range burst {
		switch n := w.rng.IntN(6); {
		case n <= 1 && name != "dave":
			w.desk.publish(revoke.VerbRevoke, name, bare, 0)
		case n <= 2:
			w.desk.publish(revoke.VerbSuspend, name, bare, w.between(2*time.Second, 30*time.Second))
		case n == 3:
			w.desk.publish(revoke.VerbKill, name, bare, 0)
		default:
			w.desk.publish(revoke.VerbReinstate, name, false, 0)
		}
	}
}

func (w *World) someFault() {
	m := w.someMachine()
	heal := w.between(100*time.Millisecond, 12*time.Second)
	switch w.rng.IntN(12) {
	case 0, 1, 2:
		m.partition(true)
		w.after(heal, func() { m.partition(false) })
	case 3:
		w.journal.leader(false)
		w.after(heal, func() { w.journal.leader(true) })
	case 4:
		m.kill()
		w.after(heal/4, func() {
			if m.proc == nil {
				m.boot()
			}
		})
	case 5:
		m.halt(stopProcess)
		w.after(heal, m.resume)
	case 6:
		m.halt(sleeping)
		w.after(heal, m.resume)
	case 7:
		m.halt(paused)
		w.after(heal, m.resume)
	case 8:
		m.setWall(time.Duration(w.rng.IntN(41)-20) * time.Second)
	case 9:
		if p := m.proc; p != nil {
			p.journal.lag = w.between(0, 3*time.Second)
			w.after(heal, func() { p.journal.lag = 0 })
		}
	case 10:
		if p := m.proc; p != nil {
			p.journal.slow = w.between(0, 200*time.Millisecond)
			w.after(heal, func() { p.journal.slow = 0 })
		}
	case 11:
		m.deaf = true
		w.after(heal, func() { m.deaf = false })
	}
}

// Settle heals everything, lets it come to rest, and checks what every node holds then, a new one included.
func (w *World) Settle(disaster bool) {
	w.note("everything heals")
	w.journal.leader(true)
	for _, m := range w.machines {
		m.resume()
		m.partition(false)
		if m.proc == nil {
			m.boot()
		}
		m.proc.journal.lag, m.proc.journal.slow, m.deaf = 0, 0, false
	}
	w.Run(w.now + 20*time.Second)
	if w.failed != nil {
		return
	}
	m := newMachine(w, "z")
	w.machines = append(w.machines, m)
	m.boot()
	w.Run(w.now + 10*time.Second)
	for _, m := range w.machines {
		if w.failed != nil {
			return
		}
		w.record.settled(m.proc)
		if !m.proc.fresh() {
			w.violate("liveness", "%s does not serve although everything is well: %+v", m.name, m.proc.node.LeaseStatus())
		}
		if a, b := m.proc.node.Table().Hash(), w.machines[0].proc.node.Table().Hash(); a != b && !disaster {
			w.violate("G5", "%s and %s hold different tables", m.name, w.machines[0].name)
		}
	}
}
