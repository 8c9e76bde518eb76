package engine

import (
	"errors"
	"io"
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"pgedge/codec"
)

// closed is called when a socket is gone, for whatever cause.
func (sd *side) closed(err error) {
	s := sd.s
	if err == nil && sd.fault != 0 {
		err = os.NewSyscallError("recvfrom", syscall.Errno(sd.fault))
	}
	if sd.unsent > 0 {
		// What was buffered at the cut must still be there. A bare io.EOF says that gnet has thrown it away itself,
		// since the connection was broken.
		if moved := int(sd.unsent) - sd.buffered(); moved > 0 && err != io.EOF {
			s.afterCut(moved)
		}
		unix.Shutdown(sd.conn.Fd(), unix.SHUT_WR) // gnet writes what is buffered after this callback
	} else if sd.buffered() > 0 && !s.mayPass() {
		sd.seal()
	}
	if sd.paused != 0 {
		s.eng.metrics.pausedSides.Add(-1)
		sd.paused = 0
	}
	if sd.watched {
		s.eng.drains.forget(sd.conn.Fd(), sd)
	}
	s.loop.know(sd.conn.Fd(), nil)
	sd.conn = nil
	sd.until = 0
	sd.phase = phClosed
	sd.ahead = nil
	if !sd.isFront && s.target != nil && s.control != nil {
		s.control.look()
		if t := s.awaiting; t != nil {
			s.awaiting = nil
			t.conclude(s.heard())
		}
	}
	if s.reason == reasonNone {
		r := ReasonClientGone
		if !sd.isFront {
			r = s.backendLoss()
		}
		detail := ""
		if err != nil {
			detail = err.Error()
		}
		s.end(r, detail)
		if sd.isFront && !errors.Is(err, io.EOF) && s.back.phase == phDrain && !s.busy() {
			s.back.close() // the client was lost, not done, and nothing is under way
		}
	}
	s.checkDone()
}

// backendLoss says why the backend's stream has ended.
func (s *session) backendLoss() Reason {
	switch {
	case s.terminated:
		return ReasonClientGone
	case s.lastBackend == 'E':
		return ReasonBackendGone // it has told the client why
	}
	return ReasonUpstreamLost
}

// busy tells whether Postgres still has something to do for the session.
func (s *session) busy() bool {
	_, requests := unpackActivity(s.activity.Load())
	return requests > 0
}

// endAtSyncPoint ends the session now if it stands at one, else when it comes to the next.
func (s *session) endAtSyncPoint(r Reason) {
	status, requests := unpackActivity(s.activity.Load())
	if status == 'I' && requests == 0 && s.front.scan.AtBoundary() {
		s.end(r, "")
		return
	}
	s.closing = r
}

// end is the one way a session that was not cut comes to its end; the first reason wins. What the client is told goes
// out behind everything it has coming, and only at a message boundary.
func (s *session) end(r Reason, detail string) {
	if s.reason != reasonNone {
		return
	}
	s.reason, s.detail = r, detail
	if !s.mayPass() {
		s.kill(r, detail)
		return
	}
	s.mu.Lock()
	if s.state != stEnding && s.state != stEnded {
		s.moveLocked(stEnding)
	}
	s.mu.Unlock()
	if s.back.open() && s.back.phase == phRelay {
		if r != ReasonClientGone && s.front.scan.AtBoundary() && !s.cutNow() {
			s.send(&s.front, &s.back, terminateMessage)
		}
		if r == ReasonUpstreamProtocol || r == ReasonBug {
			s.back.close()
		} else {
			s.back.finish()
		}
	} else {
		s.back.close()
	}
	if s.front.open() && s.front.phase == phRelay {
		if f := s.lastWord(r, true); f.Code != "" && s.back.scan.AtBoundary() && s.back.heldLen == 0 {
			if r == ReasonProtocol {
				f.Message = detail
			}
			s.send(&s.back, &s.front, codec.AppendErrorResponse(nil, f))
		}
		s.front.finish()
	} else {
		s.front.close()
	}
	s.checkDone()
}

// terminateMessage lets Postgres end in the ordinary way instead of noting a lost client.
var terminateMessage = []byte{'X', 0, 0, 0, 4}

// linger bounds how long this side may still take to close.
func (sd *side) linger(d time.Duration) {
	sd.until = sd.s.now() + int64(d)
	sd.s.rearm()
}

// expire closes a side whose time is up. A backend that still works for a client that has left keeps its socket:
// Postgres would go on for it without us as well, and as long as the session is known, a revocation finds it.
func (sd *side) expire() {
	s := sd.s
	sd.until = 0
	switch {
	case !sd.open():
	case sd.isFront && sd.buffered() == 0:
		sd.close()
	case sd.isFront:
		sd.drop()
	case s.target != nil || s.isCut: // a backend that is being killed is closed when its end is certain
	case (sd.phase == phDrain || sd.phase == phFlush) && s.busy() && !s.eng.draining.Load():
		sd.linger(s.eng.timeouts().Drain)
	default:
		sd.drop()
	}
}

// checkDone runs when the last socket is gone.
func (s *session) checkDone() {
	if s.front.open() || s.back.open() || s.done || s.reason == reasonNone || s.joining() {
		return
	}
	s.done = true
	s.melt()
	s.rearm()
	l := s.loop
	delete(l.sessions, s)
	l.count.Add(-1)
	s.mu.Lock()
	if s.state != stEnded {
		s.moveLocked(stEnded)
	}
	ordered := len(s.orders) > 0
	s.mu.Unlock()
	e := s.eng
	o := &outcomes[s.reason]
	e.metrics.closed(s.reason)
	e.sessions.write(o.level, "session ended", "session", s.id, "reason", o.label, "principal", s.identity.Principal,
		"database", s.identity.Database, "detail", s.detail)
	ev := s.auditEvent("end", s.reason)
	ev.Detail = s.detail
	e.cfg.OnAudit(ev)
	e.release(s)
	switch {
	case s.isCut: // its target concludes it
	case ordered:
		l.runCut([]*session{s}) // it ended by itself while an order was on its way to it
	default:
		s.conclude(nil)
	}
}

// joining tells whether a side is still on its way to the loop.
func (s *session) joining() bool {
	return s.front.phase == phNew || s.back.phase == phNew
}
