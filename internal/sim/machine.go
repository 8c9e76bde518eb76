package sim

import (
	"fmt"
	"time"

	"pgedge/revoke"
)

// machine is where a node runs: clocks of its own, a network that can be cut, and a process that can be stopped.
type machine struct {
	w    *World
	name string
	// rate is that of its clocks; lost is what they have not counted, step how far the wall clock was set.
	rate               float64
	monoLost, bootLost time.Duration
	wallStep           time.Duration
	wallSetAt          time.Duration
	// stopped is how the process is kept from running; waiting is what has happened to it meanwhile.
	stopped   stop
	stoppedAt time.Duration
	waiting   []func()
	onStale   string
	deaf      bool // the fast path loses everything
	cut       bool // from the journal, not from its clients
	boots     int
	proc      *process
	outbox    []revoke.Receipt // waits for the network
}

type stop uint8

const (
	running     stop = iota
	stopProcess      // SIGSTOP: all clocks go on
	sleeping         // the machine sleeps: the monotonic clock stands still
	paused           // a virtual machine that is not run: only the wall clock knows afterwards
)

func newMachine(w *World, name string) *machine {
	m := &machine{w: w, name: name, rate: 1, onStale: revoke.OnStaleFreeze}
	if !w.cfg.Calm {
		m.onStale = []string{revoke.OnStaleServe, revoke.OnStaleDrop, revoke.OnStaleFreeze}[min(w.rng.IntN(12), 2)]
		m.rate = 1 + float64(w.rng.IntN(9)-4)/1000
	}
	return m
}

// mono is what timers are measured by, and here the ends of suspends as well: a time without a monotonic reading has one
// clock only, so a machine that was asleep ends them late.
func (m *machine) mono() time.Time { return start.Add(m.scaled() - m.monoLost) }

func (m *machine) scaled() time.Duration { return time.Duration(float64(m.w.now) * m.rate) }

// instant is what leases are measured by.
func (m *machine) instant() revoke.Instant {
	i := revoke.Instant{Boot: m.scaled() - m.bootLost, Wall: start.Add(m.scaled() + m.wallStep)}
	switch m.w.cfg.Broken {
	case LeaseByWallClockAlone:
		i.Boot = i.Wall.Sub(start)
	case LeaseByBootClockAlone:
		i.Wall = start.Add(i.Boot)
	}
	return i
}

// halt stops the process. A machine that is paused within a lease of having its wall clock set back has no clock left
// that tells: that is beyond what a lease promises, and never happens here.
func (m *machine) halt(how stop) {
	if how == paused && m.wallSetAt > 0 && m.w.now < m.wallSetAt+2*m.w.cfg.Lease {
		return
	}
	if m.stopped == running {
		m.stopped, m.stoppedAt = how, m.w.now
		m.w.note("%s: %s", m.name, [...]string{"runs", "process stopped", "sleeps", "paused"}[how])
	}
}

func (m *machine) resume() {
	if m.stopped == running {
		return
	}
	gone := time.Duration(float64(m.w.now-m.stoppedAt) * m.rate)
	switch m.stopped {
	case paused:
		m.monoLost += gone
		m.bootLost += gone
	case sleeping:
		m.monoLost += gone
	case running, stopProcess:
	}
	m.stopped = running
	m.w.note("%s: runs again", m.name)
	waiting := m.waiting
	m.waiting = nil
	for _, do := range waiting {
		do()
	}
}

// setWall moves the wall clock, which nobody can while the machine is paused.
func (m *machine) setWall(by time.Duration) {
	if m.stopped == paused {
		return
	}
	m.wallStep += by
	m.wallSetAt = m.w.now
	m.w.note("%s: wall clock set by %s", m.name, by)
}

// partition cuts the machine from the journal, or heals that.
func (m *machine) partition(cut bool) {
	if m.cut == cut {
		return
	}
	m.cut = cut
	if cut {
		m.w.note("%s: cut off", m.name)
	} else {
		m.w.note("%s: connected", m.name)
	}
	if m.proc != nil {
		m.proc.journal.connect(!cut)
	}
	if !cut {
		m.flush()
	}
}

// boot starts a process on the machine, in the place of one that is killed.
func (m *machine) boot() {
	m.kill()
	m.boots++
	m.w.note("%s: process %d starts", m.name, m.boots)
	m.proc = newProcess(m, fmt.Sprintf("%s%d", m.name, m.boots))
}

// kill ends the process at once; nothing it knew is kept.
func (m *machine) kill() {
	if m.proc == nil {
		return
	}
	m.w.note("%s: killed", m.name)
	m.proc.alive = false
	m.w.journal.forget(m.proc.journal)
	m.proc, m.waiting, m.outbox = nil, nil, nil
	if m.stopped == stopProcess {
		m.stopped = running
	}
}

// sendFast is the copy of a message that a plain subscription gets, if it does.
func (m *machine) sendFast(f *fact, subject, msgID string, payload []byte) {
	if m.deaf {
		return
	}
	copies := 1
	if m.w.chance(5) {
		copies = m.w.rng.IntN(3)
	}
	for range copies {
		p := m.proc
		m.w.after(m.w.latency(), func() {
			if p != nil && p == m.proc && !m.cut {
				p.do(func() {
					if f.byDesk && !p.owed(f) {
						// A node's copy may be of a message that this one has already given up: it is no news then.
						p.learn(f, false)
					}
					p.handle(revoke.FastMessage{Subject: subject, MsgID: msgID, Payload: payload})
				})
			}
		})
	}
}

// send publishes a receipt, now or when there is a network.
func (m *machine) send(r revoke.Receipt) {
	m.outbox = append(m.outbox, r)
	if !m.cut {
		m.flush()
	}
}

func (m *machine) flush() {
	for _, r := range m.outbox {
		m.w.after(m.w.latency(), func() { m.w.desk.receipt(r) })
	}
	m.outbox = nil
}
