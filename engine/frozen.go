package engine

import (
	"time"

	"golang.org/x/sys/unix"

	"pgedge/codec"
)

// A frozen session passes nothing in either direction: both sides are paused, what gnet has buffered is not written
// out, and what comes in stays where it is, so that nothing is lost and nothing overtakes. It goes on with a thaw, or
// comes to its end as by a cut. Everything here is called on the session's loop.

// lookAgainTime is when a session that has found the lease ended by itself looks at it again, until Freeze says that
// it is so: a lease that has been renewed meanwhile was never given up, and no Thaw will come.
const lookAgainTime = 50 * time.Millisecond

// mayPass is asked before each write, with bytes that have been read; what it refuses stays unread. A session that
// finds the lease ended freezes by itself.
func (s *session) mayPass() bool {
	if s.frozen {
		return false
	}
	if s.eng.fresh() {
		return true
	}
	s.freeze()
	return false
}

// freeze pauses the session. One that is ending keeps what it still has to tell its client; what its client had sent
// and the backend has not taken will not come to it any more, so the backend is ended.
func (s *session) freeze() {
	if s.frozen || s.isCut || s.done {
		return
	}
	s.frozen, s.frozenAt = true, s.now()
	s.eng.metrics.frozenSessions.Add(1)
	if s.reason != reasonNone {
		if s.back.open() && s.back.phase == phFlush {
			s.kill(s.reason, "")
		}
		s.rearm()
		return
	}
	status, open := unpackActivity(s.activity.Load())
	s.mayLock = status != 'I' || open > 0
	s.front.pause(pauseFrozen)
	s.back.pause(pauseFrozen)
	s.rearm()
}

// melt ends the frozen state, for a thaw or for good.
func (s *session) melt() {
	if s.frozen {
		s.frozen = false
		s.eng.metrics.frozenSessions.Add(-1)
	}
}

// thaw lets the session go on: first what is buffered for the peers, then what had been read, then what comes. The
// time it was frozen is nobody's idleness.
func (s *session) thaw() {
	if !s.frozen || s.cutNow() {
		return
	}
	s.melt()
	frozen := s.now() - s.frozenAt
	s.lastActive.Add(frozen)
	for _, sd := range []*side{&s.front, &s.back} {
		if sd.buffered() == 0 {
			continue
		}
		if sd.until > 0 {
			sd.until += frozen
		}
		sd.watch()
	}
	if s.reason != reasonNone {
		s.rearm()
		return
	}
	s.catchUp(pauseFrozen)
	if s.reason == reasonNone {
		s.rearm()
	}
}

// closesAt is when this side has had its time to close, 0 for never. It is not short of time for what a freeze keeps back:
// a thaw or a drop follows.
func (sd *side) closesAt() int64 {
	if sd.s.frozen && sd.buffered() > 0 {
		return 0
	}
	return sd.until
}

// kill ends the session as a cut does, without a fact: nothing that is buffered is written, the backend is terminated
// and seen gone, the client is told at a message boundary.
func (s *session) kill(r Reason, detail string) {
	s.shutGate(r, detail)
	s.loop.runCut([]*session{s})
}

// shutGate closes the gate for a reason of the node's own.
func (s *session) shutGate(r Reason, detail string) {
	if s.reason == reasonNone {
		s.detail = detail
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closeGateLocked(r, nil)
}

// frozenDue is when a frozen session has to be looked at next, 0 for never.
func (s *session) frozenDue() int64 {
	var locked int64
	if s.mayLock {
		locked = s.frozenAt + int64(s.eng.cfg.FreezeInTransaction)
	}
	return earliest(s.lookAgainAt(), locked)
}

// lookAgainAt is when a frozen session has to look at the lease by itself, 0 for never: a Thaw will come.
func (s *session) lookAgainAt() int64 {
	if !s.frozen || s.eng.lease.Load() != leaseHeld {
		return 0
	}
	return s.now() + int64(lookAgainTime)
}

func (s *session) onFrozenTimer(now int64) {
	if s.eng.fresh() {
		s.thaw()
		return
	}
	if s.mayLock && now >= s.frozenAt+int64(s.eng.cfg.FreezeInTransaction) {
		if s.mayLock = s.inTransaction(); s.mayLock {
			s.kill(ReasonStale, "frozen inside a transaction for "+s.eng.cfg.FreezeInTransaction.String())
			return
		}
	}
	s.rearm()
}

// inTransaction tells whether the backend of a frozen session may hold locks. A statement that was running may have
// ended since: its answer waits unread, and is looked at here without being passed on.
func (s *session) inTransaction() bool {
	status, open := unpackActivity(s.activity.Load())
	sd := &s.back
	if open == 0 || !sd.open() {
		return status != 'I'
	}
	pieces := [][]byte{sd.held[:sd.heldLen]}
	if s.link.tls == nil {
		unread, _ := sd.conn.Peek(-1)
		n, _, err := unix.Recvfrom(sd.conn.Fd(), s.loop.scratch, unix.MSG_PEEK|unix.MSG_DONTWAIT)
		if err != nil {
			n = 0
		}
		pieces = append(pieces, sd.ahead, unread, s.loop.scratch[:n])
	} else {
		s.readAhead()
		pieces = append(pieces, sd.ahead)
	}
	scan := sd.scan // a copy: the session's own stands where its client does
	scan.SetPIDRewrite(0, 0)
	var seen codec.Seen
	for _, p := range pieces {
		if _, err := scan.Scan(p, &seen); err != nil {
			return true
		}
		if seen.Status != 0 {
			status = seen.Status
		}
	}
	return seen.Ready < open || status != 'I' || !scan.AtBoundary()
}

// readAhead decrypts what has come from the backend, at most what gnet and one more read have got, and keeps it for the
// thaw: crypto/tls gives no second look at a record.
func (s *session) readAhead() {
	sd, w := &s.back, s.link.wire
	if s.link.broken {
		return
	}
	unread, _ := sd.conn.Peek(-1)
	w.in = append(append([]byte(nil), w.in...), unread...)
	sd.conn.Discard(-1)
	if n, err := unix.Read(sd.conn.Fd(), s.loop.scratch); err == nil && n > 0 {
		w.in = append(w.in, s.loop.scratch[:n]...)
	}
	for {
		n, err := s.link.tls.Read(s.loop.scratch)
		sd.ahead = append(sd.ahead, s.loop.scratch[:n]...)
		if err != nil || n == 0 {
			s.link.noteError(err)
			return
		}
	}
}
