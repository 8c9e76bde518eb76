package load

import (
	"context"
	"errors"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"
)

// StormSpec says how clients come and go: each logs in, perhaps asks one question, and says goodbye.
type StormSpec struct {
	Addrs    []string
	Database string
	Users    []User // in turn; their numbers of sessions do not matter
	Logins   int    // how many; 0: as many as Duration lets
	// Duration ends a storm early; those who are on their way finish. 0: never. One of Logins and Duration must be set.
	Duration time.Duration
	// InFlight is how many clients are there at most at a time. Default 64. With Rate 0 this makes a closed loop.
	InFlight int
	// Rate is the number of logins per second that are due, whether or not earlier ones have finished; a login's
	// latency is from the moment it was due. 0: the next client comes when one has left.
	Rate    float64
	Timeout time.Duration // of one login; default 30 s
	Ask     bool          // each client asks SELECT 1
}

// StormResult is what became of a storm.
type StormResult struct {
	Done   int // clients that got in, had their answer and left
	Failed int
	First  error                   // the first failure
	Login  *hdrhistogram.Histogram // due to ReadyForQuery, in microseconds
	Answer *hdrhistogram.Histogram // due to the answer; empty without Ask
	Took   time.Duration           // from the first login to the last goodbye
}

// storm is a loop's side of it.
type storm struct {
	ask    bool
	free   []int
	login  *hdrhistogram.Histogram
	done   int
	until  int64 // no login begins after it; 0: no end
	over   chan struct{}
	ended  bool
	lastAt int64
}

func (m *storm) takeSlot() int {
	i := m.free[len(m.free)-1]
	m.free = m.free[:len(m.free)-1]
	return i
}

func (m *storm) giveSlot(i int) { m.free = append(m.free, i) }

func (l *loop) stormLoggedIn(i int) {
	s, m := &l.slots[i], l.storm
	_ = m.login.RecordValue(min(max((l.now-s.began)/1000, 1), maxLatencyMicros))
	if m.ask {
		l.send(i, question, stateAsking)
		return
	}
	l.stormDone(i)
}

func (l *loop) stormDone(i int) {
	l.storm.done++
	l.storm.lastAt = l.now
	l.leave(i)
	l.storm.giveSlot(i)
}

func (l *loop) stormFailed(i int, err error) {
	g := &l.logins
	g.failed++
	if g.first == nil {
		g.first = err
	}
	l.storm.giveSlot(i)
}

// stormTick ends the storm when the last client has left.
func (l *loop) stormTick() {
	m, g := l.storm, &l.logins
	if m.until > 0 && l.now >= m.until {
		g.stopped = true
	}
	if !m.ended && g.flying == 0 && l.open == 0 && (g.stopped || g.begun == g.total) {
		m.ended = true
		close(m.over)
	}
}

// Storm runs a storm from this process. Failed logins are counted, not returned as an error.
func Storm(ctx context.Context, spec StormSpec) (StormResult, error) {
	if len(spec.Addrs) == 0 || len(spec.Users) == 0 || spec.Logins <= 0 && spec.Duration <= 0 {
		return StormResult{}, errors.New("load: a storm needs an address, a user and an end")
	}
	if spec.InFlight <= 0 {
		spec.InFlight = defaultLogins
	}
	if spec.Timeout <= 0 {
		spec.Timeout = defaultTimeout
	}
	total := spec.Logins
	if total <= 0 {
		total = 1 << 30
	}
	to, err := places(spec.Addrs)
	if err != nil {
		return StormResult{}, err
	}
	// Ports of sessions that have left stay taken for a minute.
	l, err := newLoop(min(spec.InFlight, total), 64)
	if err != nil {
		return StormResult{}, err
	}
	l.database, l.places, l.users = spec.Database, to, spec.Users
	l.storm = &storm{ask: spec.Ask, login: newHistogram(), over: make(chan struct{})}
	for i := range l.slots {
		l.storm.free = append(l.storm.free, i)
	}
	began := monotonic()
	if spec.Duration > 0 {
		l.storm.until = began + int64(spec.Duration)
	}
	l.logins = logins{total: total, most: len(l.slots), rate: spec.Rate, began: began, timeout: spec.Timeout,
		who: func(k int) (int, int) { return k % len(spec.Users), k % len(to) }}
	go l.run()
	defer l.close()
	l.post(func() {})
	select {
	case <-l.storm.over:
	case <-ctx.Done():
		return StormResult{}, ctxErr(ctx, "a storm was called off")
	}
	var r StormResult
	err = l.do(func() {
		w := l.take()
		r = StormResult{Done: l.storm.done, Failed: l.logins.failed, First: l.logins.first, Login: l.storm.login, Answer: w.Latency,
			Took: time.Duration(l.storm.lastAt - began)}
	})
	return r, err
}
