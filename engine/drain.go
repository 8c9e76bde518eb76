package engine

import (
	"context"
	"sync"
	"time"
)

// drainChunk is how many sessions a loop ends in one go when its node stops. An idle one takes about ten system calls,
// so that those still at work wait for a few milliseconds at most.
const drainChunk = 256

// Drain refuses new logins and ends every session at its next sync point, at the latest when ctx ends. Listeners stay
// open, and cancel requests are carried out.
func (e *Engine) Drain(ctx context.Context) {
	e.draining.Store(true)
	e.drainLoops(false)
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for e.admitted.Load() > 0 {
		select {
		case <-ctx.Done():
			e.drainLoops(true)
			return
		case <-tick.C:
		}
	}
}

// drainLoopsLimit bounds how long the loops may take to tell all sessions. It has its own bound, since a drain whose
// time is over still has to end them.
const drainLoopsLimit = 5 * time.Second

// drainLoops returns when every session has been told; a session that comes to its loop meanwhile is told there.
func (e *Engine) drainLoops(atOnce bool) {
	ctx, cancel := context.WithTimeout(context.Background(), drainLoopsLimit)
	defer cancel()
	var told sync.WaitGroup
	for _, l := range e.loops {
		told.Go(func() { l.drain(ctx, atOnce) })
	}
	told.Wait()
}

// drain ends the sessions of the loop chunk by chunk. It is called from outside the loop, which looks at its sockets
// between two chunks.
func (l *loop) drain(ctx context.Context, atOnce bool) {
	var all []*session
	if !l.await(ctx, func() {
		all = make([]*session, 0, len(l.sessions))
		for s := range l.sessions {
			all = append(all, s)
		}
	}) {
		return
	}
	for len(all) > 0 {
		chunk := all[:min(drainChunk, len(all))]
		all = all[len(chunk):]
		if !l.await(ctx, func() { l.each(chunk, func(s *session) { s.drain(atOnce) }) }) {
			return
		}
	}
}

// await posts f and returns when it has run; false says that it has not.
func (l *loop) await(ctx context.Context, f func()) bool {
	ran := make(chan struct{})
	l.post(func() {
		defer close(ran)
		f()
	})
	select {
	case <-ran:
		return true
	case <-ctx.Done():
		return false
	}
}

// drain ends the session for a node that stops: at its next sync point, or at once.
func (s *session) drain(atOnce bool) {
	switch {
	case s.done:
	case s.reason != reasonNone && atOnce && s.target == nil && !s.isCut:
		s.front.expire()
		s.back.expire()
	case s.reason != reasonNone:
	case atOnce:
		s.end(ReasonShutdown, "")
		if s.back.phase == phDrain {
			s.back.close() // nobody waits for what Postgres still does
		}
		if s.front.open() {
			s.front.linger(lingerTime) // what a client does not read now it will not get
		}
	default:
		s.endAtSyncPoint(ReasonShutdown)
	}
}

// Responds reports whether every event loop takes a task before ctx ends: a loop that hangs serves nobody, and nothing
// but a restart helps.
func (e *Engine) Responds(ctx context.Context) bool {
	for _, l := range e.running() {
		if l.await(ctx, func() {}) {
			continue
		}
		select {
		case <-e.stopping: // they have ended as they should
			return true
		default:
			return false
		}
	}
	return true
}
