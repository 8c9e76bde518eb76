package load

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"
)

// here is how many sessions this process holds.
var here atomic.Int64

// End is how one session ended.
type End struct {
	Session int    `json:"session"` // its index in the Spec's order
	User    string `json:"user"`
	Addr    string `json:"addr"`
	// How is "eof" or "reset" when the other side closed the socket, "client" when this side did.
	How string `json:"how"`
	// Mono is CLOCK_MONOTONIC in ns when the end of the socket had arrived, At the same moment on the wall clock. All
	// processes of a machine share both.
	Mono int64     `json:"mono_ns"`
	At   time.Time `json:"at"`
	// Code and Text are of the last error that the session was sent, ErrorMono is when it had arrived; empty and 0
	// without one.
	Code      string `json:"code,omitempty"`
	Text      string `json:"text,omitempty"`
	ErrorMono int64  `json:"error_mono_ns,omitempty"`
}

// part is some of the sessions: a loop in this process, or a worker process.
type part interface {
	// opened returns when all logins have succeeded, or with the first cause why not.
	opened(ctx context.Context) error
	ask(rate float64) error
	send(sql string, read bool) error
	wakeUp() error
	// running is how many sessions have not finished their statement, and the error of one that has failed.
	running() (int, string, error)
	take() (Window, error)
	ends() ([]End, error)
	size() int
	close() error
}

// Sessions are open sessions. All methods may be used by any goroutine.
type Sessions struct {
	parts []part
	total int

	mu       sync.Mutex
	open     []int // by part
	ended    []int // by part
	progress func(open, total int)
	news     chan struct{} // closed and replaced at each change of ended
	shut     sync.Once
	shutErr  error
}

// Open logs all sessions of a Spec in. When one login fails it closes the others and returns the first cause. The
// sessions outlive ctx; Close ends them.
func Open(ctx context.Context, spec Spec) (*Sessions, error) {
	if err := spec.normalize(); err != nil {
		return nil, err
	}
	n := spec.total()
	s := &Sessions{total: n, progress: spec.Progress, news: make(chan struct{})}
	workers := spec.Processes
	if workers == 0 && here.Load()+int64(n) > maxPerProcess {
		workers = (n + maxPerProcess - 1) / maxPerProcess
	}
	if workers > 0 && n > workers*maxPerProcess {
		return nil, fmt.Errorf("load: %d sessions do not fit into %d processes of %d", n, workers, maxPerProcess)
	}
	count := max(workers, 1)
	s.open, s.ended = make([]int, count), make([]int, count)
	var err error
	for p := range count {
		share := spec
		share.First, share.Count = n*p/count, n*(p+1)/count-n*p/count
		share.Logins = max(spec.Logins/count, 1)
		var made part
		if workers == 0 {
			made, err = newLocal(share, func(n int) { s.noteOpen(p, n) }, func(n int) { s.noteEnded(p, n) })
		} else {
			made, err = startWorker(share, func(n int) { s.noteOpen(p, n) }, func(n int) { s.noteEnded(p, n) })
		}
		if err != nil {
			return nil, errors.Join(err, s.Close())
		}
		s.parts = append(s.parts, made)
	}
	// The first part that fails ends the wait for the others.
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	failed := make(chan error, count)
	for _, p := range s.parts {
		go func() { failed <- p.opened(ctx) }()
	}
	for range s.parts {
		if e := <-failed; e != nil && err == nil {
			err = e
			cancel()
		}
	}
	if err != nil {
		return nil, errors.Join(err, s.Close())
	}
	s.mu.Lock()
	s.progress = nil
	s.mu.Unlock()
	return s, nil
}

func (s *Sessions) noteOpen(p, n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.open[p] = n
	if s.progress != nil {
		s.progress(sum(s.open), s.total)
	}
}

func (s *Sessions) noteEnded(p, n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.ended[p] = n
	close(s.news)
	s.news = make(chan struct{})
}

func sum(v []int) int {
	n := 0
	for _, x := range v {
		n += x
	}
	return n
}

// Len is the number of sessions that were opened.
func (s *Sessions) Len() int { return s.total }

// Ended is how many sessions the other side has ended.
func (s *Sessions) Ended() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return sum(s.ended)
}

// WaitEnded returns when the other side has ended n sessions.
func (s *Sessions) WaitEnded(ctx context.Context, n int) error {
	for {
		s.mu.Lock()
		have, news := sum(s.ended), s.news
		s.mu.Unlock()
		if have >= n {
			return nil
		}
		select {
		case <-news:
		case <-ctx.Done():
			return ctxErr(ctx, fmt.Sprintf("%d of %d sessions have ended", have, n))
		}
	}
}

// Ends are the sessions that have ended so far, in no particular order.
func (s *Sessions) Ends() ([]End, error) {
	var all []End
	for _, p := range s.parts {
		ends, err := p.ends()
		if err != nil {
			return nil, err
		}
		all = append(all, ends...)
	}
	return all, nil
}

// Ask makes bystanders of the sessions: from now on so many questions (SELECT 1) a second are due, spread evenly over
// the sessions that are open and idle. They are due whether or not earlier ones were answered. 0 stops.
func (s *Sessions) Ask(rate float64) error {
	for _, p := range s.parts {
		if err := p.ask(rate * float64(p.size()) / float64(s.total)); err != nil {
			return err
		}
	}
	return nil
}

// Take returns what the bystanders have seen since the last call, or since Ask.
func (s *Sessions) Take() (Window, error) {
	all := Window{Latency: newHistogram()}
	for _, p := range s.parts {
		w, err := p.take()
		if err != nil {
			return all, err
		}
		all.Latency.Merge(w.Latency)
		all.Asked += w.Asked
		all.Errors += w.Errors
		if all.First == "" {
			all.First = w.First
		}
		all.Waiting += w.Waiting
		all.Oldest = max(all.Oldest, w.Oldest)
	}
	return all, nil
}

// Run sends a statement on every idle session and does not wait for its end.
func (s *Sessions) Run(sql string) error { return s.send(sql, true) }

// WaitIdle returns when every session that is open has the whole answer to what Run sent. It is an error when one of
// these answers was one.
func (s *Sessions) WaitIdle(ctx context.Context) error {
	tick := time.NewTicker(idleInterval)
	defer tick.Stop()
	for {
		running := 0
		for _, p := range s.parts {
			n, failed, err := p.running()
			if err != nil {
				return err
			}
			if failed != "" {
				return fmt.Errorf("load: a statement has failed: %s", failed)
			}
			running += n
		}
		if running == 0 {
			return nil
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return ctxErr(ctx, fmt.Sprintf("%d sessions have not finished", running))
		}
	}
}

// idleInterval is how often WaitIdle looks.
const idleInterval = 5 * time.Millisecond

// Sleep sends a statement on every idle session and reads nothing of its result, until WakeUp. A session that ends
// asleep knows when and not why.
func (s *Sessions) Sleep(sql string) error { return s.send(sql, false) }

func (s *Sessions) send(sql string, read bool) error {
	for _, p := range s.parts {
		if err := p.send(sql, read); err != nil {
			return err
		}
	}
	return nil
}

// WakeUp lets sleeping sessions read.
func (s *Sessions) WakeUp() error {
	for _, p := range s.parts {
		if err := p.wakeUp(); err != nil {
			return err
		}
	}
	return nil
}

// Close says goodbye on every session and ends the workers.
func (s *Sessions) Close() error {
	s.shut.Do(func() {
		for _, p := range s.parts {
			s.shutErr = errors.Join(s.shutErr, p.close())
		}
	})
	return s.shutErr
}
