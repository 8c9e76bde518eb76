package sim

import (
	"container/heap"
	"fmt"
	"math/rand/v2"
	"time"
)

// Config is what a run is made of. The zero value of each field takes the default.
type Config struct {
	Seed  uint64
	Nodes int // default 3
	// Lease, Freeze and Heartbeat are those of every node; default 4 s, 5 s, 1 s. Short leases make dense runs.
	Lease, Freeze, Heartbeat time.Duration
	// Broken breaks the engine or what the state machine is told, on purpose: see Breakages.
	Broken Breakage
	// Calm leaves out what the network does by itself, for scripts: loss, repetition, long delays, clocks that drift.
	Calm bool
}

func (c Config) withDefaults() Config {
	if c.Nodes <= 0 {
		c.Nodes = 3
	}
	for _, d := range []struct {
		field *time.Duration
		value time.Duration
	}{{&c.Lease, 4 * time.Second}, {&c.Freeze, 5 * time.Second}, {&c.Heartbeat, time.Second}} {
		if *d.field <= 0 {
			*d.field = d.value
		}
	}
	return c
}

// start is the moment at which every run begins.
var start = time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC)

// Violation is a guarantee that was not kept.
type Violation struct {
	Guarantee string
	What      string
	At        time.Duration // since the start of the run
}

func (v *Violation) Error() string { return fmt.Sprintf("%s at %s: %s", v.Guarantee, v.At, v.What) }

// World is a run. It is used by one goroutine.
type World struct {
	cfg      Config
	rng      *rand.Rand
	now      time.Duration // true time since the start, which no process can read
	queue    events
	serial   uint64
	log      []string
	journal  *journal
	machines []*machine
	desk     *desk // where people publish and wait
	record   record
	failed   *Violation
}

// New returns a world at its start: an empty journal, and every machine with a process that starts.
func New(cfg Config) *World {
	w := &World{cfg: cfg.withDefaults(), rng: rand.New(rand.NewPCG(cfg.Seed, 0x9e3779b97f4a7c15))}
	w.record.w = w
	w.journal = newJournal(w)
	w.desk = newDesk(w)
	for i := range w.cfg.Nodes {
		m := newMachine(w, string(rune('a'+i)))
		w.machines = append(w.machines, m)
		m.boot()
	}
	return w
}

// Err is the first violation, nil while everything holds.
func (w *World) Err() error {
	if w.failed == nil {
		return nil
	}
	return w.failed
}

// Log is what has happened, a line each.
func (w *World) Log() []string { return w.log }

func (w *World) note(format string, args ...any) {
	w.log = append(w.log, fmt.Sprintf("%9.3fs  ", w.now.Seconds())+fmt.Sprintf(format, args...))
}

func (w *World) violate(guarantee, format string, args ...any) {
	v := &Violation{guarantee, fmt.Sprintf(format, args...), w.now}
	w.note("VIOLATION %s: %s", guarantee, v.What)
	if w.failed == nil {
		w.failed = v
	}
}

// Run lets time pass until a moment, or until something is violated.
func (w *World) Run(until time.Duration) {
	for w.failed == nil && len(w.queue) > 0 && w.queue[0].at <= until {
		e := heap.Pop(&w.queue).(*event)
		w.now = e.at
		e.do()
	}
	w.now = max(w.now, until)
}

// after does something later. What happens at the same moment happens in the order in which it was asked for.
func (w *World) after(d time.Duration, do func()) {
	w.serial++
	heap.Push(&w.queue, &event{w.now + max(0, d), w.serial, do})
}

// chance is true in one of n cases, never in a calm world.
func (w *World) chance(n int) bool { return !w.cfg.Calm && w.rng.IntN(n) == 0 }

// between draws a duration; in a calm world it is the shortest.
func (w *World) between(low, high time.Duration) time.Duration {
	if w.cfg.Calm || high <= low {
		return low
	}
	return low + time.Duration(w.rng.Int64N(int64(high-low)))
}

// latency is what a message takes on its way.
func (w *World) latency() time.Duration {
	if w.chance(30) {
		return w.between(time.Millisecond, 400*time.Millisecond)
	}
	return w.between(200*time.Microsecond, 3*time.Millisecond)
}

type event struct {
	at     time.Duration
	serial uint64
	do     func()
}

type events []*event

func (e events) Len() int { return len(e) }
func (e events) Less(i, j int) bool {
	return e[i].at < e[j].at || e[i].at == e[j].at && e[i].serial < e[j].serial
}
func (e events) Swap(i, j int) { e[i], e[j] = e[j], e[i] }

// Push and Pop are heap.Interface's.
func (e *events) Push(x any) { *e = append(*e, x.(*event)) }

func (e *events) Pop() any {
	old := *e
	last := old[len(old)-1]
	old[len(old)-1] = nil
	*e = old[:len(old)-1]
	return last
}
