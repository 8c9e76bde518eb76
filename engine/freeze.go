package engine

import "time"

// What the cluster has last said of the lease, in Engine.lease. Whether the node may serve is asked of fresh, which
// looks at the clocks as well: a process that was stopped past its lease learns of it here first.
const (
	leaseHeld    uint32 = iota // sessions are served while Config.Fresh says so
	leaseFrozen                // every session waits for Thaw
	leaseDropped               // and has been ended: the lease has not come back in time
)

// fresh tells whether bytes may pass now. Two loads and two looks at a clock: nothing is allocated and nothing waits.
func (e *Engine) fresh() bool { return e.lease.Load() == leaseHeld && e.cfg.Fresh() }

// Freeze lets no further byte pass in either direction; the sockets stay. Logins under way are refused, and so is who
// comes later. Called from one goroutine at a time, like Cut.
func (e *Engine) Freeze() {
	if !e.lease.CompareAndSwap(leaseHeld, leaseFrozen) {
		return
	}
	refused := e.refuseLogins()
	e.log.Warn("sessions are frozen", "sessions", e.SessionCount(), "logins_refused", refused)
	for _, l := range e.running() {
		l.post(l.freeze)
	}
}

// Thaw lets frozen sessions go on with what is buffered. The facts missed meanwhile have been applied.
func (e *Engine) Thaw() {
	if e.lease.Swap(leaseHeld) != leaseHeld {
		e.log.Info("frozen sessions go on", "sessions", e.SessionCount(), "frozen", e.metrics.frozenSessions.Load())
	}
	for _, l := range e.running() {
		l.post(l.thaw)
	}
}

// Drop ends every session of now with the full kill, for a lease that has not come back in time; logins are refused
// until Thaw.
func (e *Engine) Drop() {
	if e.lease.Swap(leaseDropped) == leaseDropped {
		return
	}
	refused := e.refuseLogins()
	e.log.Warn("sessions and their backends are being ended for the lease", "sessions", e.SessionCount(), "logins_refused", refused)
	at := time.Now()
	for _, l := range e.running() {
		l.post(func() { l.drop(at) })
	}
}

// refuseLogins makes every login under way fail with the reason stale, and returns how many it found. One that begins
// meanwhile is in the set before it looks at the lease, as with revocations.
func (e *Engine) refuseLogins() (refused int) {
	ls := &e.logins
	ls.mu.Lock()
	defer ls.mu.Unlock()
	for s := range ls.sessions {
		if s.refuseStale() {
			refused++
		}
	}
	return refused
}

// heedLease refuses a login whose lease has ended.
func (s *session) heedLease() {
	if !s.eng.fresh() {
		s.refuseStale()
	}
}

// beGreeted is the last moment at which the lease refuses a login.
func (s *session) beGreeted() {
	s.heedLease()
	s.mu.Lock()
	s.greeted = true
	s.mu.Unlock()
}

// refuseStale closes the gate of a login for the lease. One whose client has been let in is left to the loop, which looks
// at the lease before it reads anything; only a greeting that waits for its client to read goes no further, and ends it.
func (s *session) refuseStale() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.state != stLogin || s.cutNow() {
		return false
	}
	if s.greeted {
		s.interruptLocked()
		return false
	}
	s.closeGateLocked(ReasonStaleLogin, nil)
	s.interruptLocked()
	return true
}

// freeze is one task for all sessions of a loop. Tasks can overtake each other in gnet's queues, so each looks at what
// holds now.
func (l *loop) freeze() {
	if l.eng.lease.Load() == leaseHeld {
		return
	}
	for s := range l.sessions {
		func() {
			defer l.eng.guard(s)
			s.freeze()
		}()
	}
}

// thaw wakes the frozen sessions of a loop, a chunk at a time. A session whose gate has been closed is left to its cut.
func (l *loop) thaw() {
	var batch []*session
	for s := range l.sessions {
		if s.frozen {
			batch = append(batch, s)
		}
	}
	l.chunked(cutStep{batch, func(chunk []*session) {
		if l.eng.lease.Load() == leaseHeld {
			l.each(chunk, (*session).thaw)
		}
	}, 0})
}

// drop cuts all sessions that began before the node gave up, those included that are ending but still have a backend, and
// lets go of clients that were still being told something.
func (l *loop) drop(at time.Time) {
	var batch []*session
	for s := range l.sessions {
		if s.isCut || s.began.After(at) {
			continue
		}
		if s.reason != reasonNone && !s.back.open() {
			if s.front.buffered() > 0 {
				s.front.drop() // what it was still to be told is not told any more
			}
			continue
		}
		s.shutGate(ReasonStale, "the lease has not come back in time")
		batch = append(batch, s)
	}
	l.runCut(batch)
}
