package load

import (
	"errors"
	"math"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"
)

// Latencies are recorded in microseconds, up to two minutes, to three digits.
const (
	maxLatencyMicros = 120_000_000
	// UnitsPerMS is how many units of a histogram of this package are a millisecond.
	UnitsPerMS = 1000
)

func newHistogram() *hdrhistogram.Histogram { return hdrhistogram.New(1, maxLatencyMicros, 3) }

// Window is what bystanders have seen between two calls of Take.
type Window struct {
	// Latency is from the moment a question was due, not from when it could be sent, to its answer; in microseconds.
	Latency *hdrhistogram.Histogram
	Asked   int // questions that were sent
	// Errors counts questions without the right answer, and those that were due on a session that has ended.
	Errors int
	First  string // the first error
	// Waiting are the questions that were due and not answered when the window ended, Oldest is how long the first of
	// them had waited. They are in no histogram yet.
	Waiting int
	Oldest  time.Duration
}

// asks is the open-loop schedule of questions: question k is due at began + k/rate, on session k mod len(askers).
type asks struct {
	rate   float64
	began  int64
	next   int // the first question that is not due yet
	askers []int
	window Window
}

func (a *asks) dueAt(k int) int64 { return a.began + int64(float64(k)/a.rate*1e9) }

func (a *asks) due() int64 {
	if a.rate <= 0 || len(a.askers) == 0 {
		return math.MaxInt64
	}
	return a.dueAt(a.next)
}

// ask begins a schedule; a rate of 0 ends it. Questions that are out are still awaited.
func (l *loop) ask(rate float64) {
	a := &l.asks
	a.rate, a.began, a.next, a.askers = rate, l.now, 0, a.askers[:0]
	for i := range l.slots {
		s := &l.slots[i]
		s.asked, s.owed = 0, 0
		if s.state == stateIdle || s.state == stateAsking {
			s.place0 = uint32(len(a.askers))
			a.askers = append(a.askers, i)
		}
	}
}

func (l *loop) askDue() {
	a := &l.asks
	for a.due() <= l.now {
		i := a.askers[a.next%len(a.askers)]
		a.next++
		s := &l.slots[i]
		switch s.state {
		case stateIdle:
			s.owed++
			l.askOne(i)
		case stateAsking:
			s.owed++
		case stateClosed, stateConnecting, stateGreeting, stateBusy, stateAsleep:
			l.lost(s, errors.New("the session has ended"))
		}
	}
}

func (l *loop) askOne(i int) {
	s, a := &l.slots[i], &l.asks
	s.began = a.dueAt(int(s.place0) + int(s.asked)*len(a.askers))
	s.asked++
	s.owed--
	a.window.Asked++
	l.send(i, question, stateAsking)
}

func (l *loop) answered(i int) {
	s := &l.slots[i]
	s.state = stateIdle
	if s.wrong || s.rows != 1 {
		l.lost(s, errors.New("a wrong answer"))
	} else {
		l.asks.record(l.now - s.began)
	}
	if l.storm != nil {
		l.stormDone(i)
		return
	}
	if s.owed > 0 {
		l.askOne(i)
	}
}

func (a *asks) record(ns int64) {
	if a.window.Latency == nil {
		a.window.Latency = newHistogram()
	}
	// A value above the range is the range's end: it is far beyond any result that counts.
	_ = a.window.Latency.RecordValue(min(max(ns/1000, 1), maxLatencyMicros))
}

// lost counts a question that gets no right answer.
func (l *loop) lost(s *session, err error) {
	w := &l.asks.window
	w.Errors++
	if w.First == "" {
		w.First = err.Error()
		if s.last != nil {
			w.First += ": " + s.last.Error()
		}
	}
}

func (l *loop) take() Window {
	w := l.asks.window
	l.asks.window = Window{}
	if w.Latency == nil {
		w.Latency = newHistogram()
	}
	for _, i := range l.asks.askers {
		s := &l.slots[i]
		if s.state == stateAsking {
			w.Waiting += 1 + int(s.owed)
			w.Oldest = max(w.Oldest, time.Duration(l.now-s.began))
		}
	}
	return w
}
