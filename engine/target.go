package engine

import (
	"context"
	"time"

	"pgedge/revoke"
)

// target is one backend on its way out. It is concluded exactly once, by whoever learns its fate.
type target struct {
	s        *session
	pid      uint32
	port     int    // our own port; 0 where it does not identify the backend
	start    string // backend_start, learned at login or read by the terminating statement
	deadline time.Time
	ended    bool   // the session had ended by itself before the cut reached it, with nothing under way
	requests uint32 // not answered when the cut came
	whenDone func() // for a login: called after the result is final
	found    bool   // the terminating statement returned its row
	server   string // start time of the postmaster that did
	state    string // of pg_stat_activity, just before the terminate
	xid      uint64 // transaction open at that moment, with its epoch; 0: none
	xact     string // what pg_xact_status says of it, once the backend is gone
	backend  string // gone | cancelled | closed | timeout
	verified bool
	why      string
}

// newTarget describes the session for its receipt and sets out to end its backend.
func (s *session) newTarget(whenDone func()) *target {
	s.mu.Lock()
	s.describeLocked(s.stateName())
	over := s.state == stEnded && !s.cutOpen
	s.mu.Unlock()
	_, requests := unpackActivity(s.activity.Load())
	// On its way out, with nothing left for Postgres to do for it.
	ended := s.loop != nil && requests == 0 && (over || s.terminated || !s.reason.cutReason() && s.reason != ReasonStale)
	return &target{s: s, pid: s.key.PID, port: s.link.port, start: s.start, ended: ended, requests: requests,
		deadline: time.Now().Add(s.eng.cfg.VerifyTimeout), whenDone: whenDone}
}

// settle is called when the fate of the backend is known, from any goroutine but a loop.
func (t *target) settle(backend string, verified bool, why string) {
	t.backend, t.verified, t.why = backend, verified, why
	s := t.s
	if s.loop == nil {
		t.conclude(evidence{})
		return
	}
	s.loop.post(func() { s.backendSettled(t) })
}

// settleGone settles backends that were seen gone, those of a loop together: a task for each would keep the loop from its
// sockets until all are done.
func settleGone(gone []*target) {
	byLoop := make(map[*loop][]*session)
	for _, t := range gone {
		if t.s.loop == nil {
			t.settle("gone", true, "")
			continue
		}
		t.backend, t.verified = "gone", true
		byLoop[t.s.loop] = append(byLoop[t.s.loop], t.s)
	}
	for l, sessions := range byLoop {
		l.post(func() { l.chunked(cutStep{sessions, l.settled, 0}) })
	}
}

// settled takes sessions whose target is settled. A session that is on a loop has one target in its life.
func (l *loop) settled(batch []*session) {
	l.each(batch, func(s *session) { s.backendSettled(s.target) })
}

// conclude writes the session's final line of evidence.
func (t *target) conclude(ev evidence) {
	if t.backend == "timeout" {
		t.s.eng.metrics.verifyTimeouts.Inc()
	}
	t.s.conclude(func(r *revoke.SessionReceipt) {
		if t.ended && !t.found && !t.verified {
			*r = revoke.SessionReceipt{} // it was over before, and nothing of it was left
			return
		}
		r.Backend, r.Verified, r.Why = t.backend, t.verified, t.why
		if t.start != "" {
			r.BackendStart = rfc3339(t.start)
		}
		r.Xact, r.MorePossible = t.verdict(ev)
	})
	if t.whenDone != nil {
		t.whenDone()
	}
}

// needsLastWords tells whether the verdict on the transaction rests on what the backend said at its end.
func (t *target) needsLastWords() bool {
	return t.verified && t.xid == 0 && !(t.state == "idle" && t.requests == 0)
}

// verdict says what is known of the transaction that was open at the cut. It rests on the sample of the terminating
// statement and on what the backend itself said until its end.
func (t *target) verdict(ev evidence) (xact string, morePossible bool) {
	if !t.verified || !t.found {
		return "unknown", true
	}
	completed := ev.seen.Completed > 0 || ev.seen.Ready > 0
	// The backend's last word was its own end, and nothing was completed before it since the cut: what it was at did
	// not come to its end. A procedure may have committed on its way all the same.
	stopped := ev.fatal && !completed
	switch {
	case t.xid > 0 && (t.xact == "aborted" || t.xact == "committed"):
		return t.xact, completed || t.xact == "committed" && t.requests > 0
	case t.state == "idle" && t.requests == 0:
		return "none", false
	case t.xid == 0 && stopped:
		return "aborted", t.state == "active"
	}
	return "unknown", true
}

// rfc3339 turns what Postgres prints in ISO style and UTC into the form of all other times.
func rfc3339(s string) string {
	if at, err := time.Parse("2006-01-02 15:04:05.999999-07", s); err == nil {
		return at.UTC().Format(time.RFC3339Nano)
	}
	return s
}

// fallbackSlots bounds the connections that carry cancel requests of kills.
var fallbackSlots = make(chan struct{}, maxCancelling)

// cancelFallback is all that can be done without a control connection, after our own socket has been reset: ask
// Postgres to cancel what the backend runs. What came of it is not seen, and the receipt says so.
func (e *Engine) cancelFallback(t *target) {
	why := t.why
	if why == "" {
		why = "no control role: the backend was reset and its statement cancelled, but not seen gone"
	}
	backend := t.backend
	if len(t.s.key.Secret) == 0 {
		t.settle(orString(backend, "closed"), false, why)
		return
	}
	fallbackSlots <- struct{}{}
	defer func() { <-fallbackSlots }()
	ctx, cancel := context.WithTimeout(context.Background(), cancelTimeout)
	defer cancel()
	if err := t.s.entry.upstream.sendCancel(ctx, t.s.link, t.s.key); err != nil {
		t.settle(orString(backend, "closed"), false, why+"; "+err.Error())
		return
	}
	t.settle(orString(backend, "cancelled"), false, why)
}

func orString(s, otherwise string) string {
	if s != "" {
		return s
	}
	return otherwise
}

// giveUp ends what the control connection could not: reset, then cancel.
func (e *Engine) giveUp(t *target, backend, why string) {
	t.backend, t.why = backend, why
	if t.ended && !t.found {
		t.settle("closed", false, why)
		return
	}
	s := t.s
	if s.loop == nil {
		resetOnClose(s.link.wire.raw)
		s.link.wire.raw.Close()
		e.fallbacks.Go(func() { e.cancelFallback(t) })
		return
	}
	s.loop.post(func() {
		s.back.drop()
		e.fallbacks.Go(func() { e.cancelFallback(t) })
	})
}
