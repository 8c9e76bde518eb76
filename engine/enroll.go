package engine

import (
	"context"
	"net"

	"github.com/panjf2000/gnet/v2"
)

// enrolling bounds sockets that hold a second descriptor while they move to a loop.
var enrolling = make(chan struct{}, maxEnrolling)

// enroll moves both sockets to one loop and ends the login's part in the session. On an error the session is still
// the login's when no side has been opened; otherwise the loop ends it.
func (e *Engine) enroll(s *session, front *wire) *loginError {
	l := e.pickLoop()
	s.mu.Lock()
	if s.cutNow() {
		s.mu.Unlock()
		return fail(Reason(s.gate.Load()), errCut)
	}
	s.moveLocked(stEnrolling)
	s.conns, s.interrupt = nil, nil // a live session has neither a login's sockets nor its context
	s.mu.Unlock()
	s.loop = l
	l.count.Add(1)
	if s.key.PID != 0 {
		s.back.scan.SetPIDRewrite(s.key.PID, s.virtual.PID)
	}
	if s.link.tls != nil {
		s.link.wire.looped = true
	}
	s.lastActive.Store(s.now())
	e.metrics.logins("ok").Inc()
	e.metrics.loginSeconds.Update(secondsSince(s.began))
	e.cfg.OnAudit(s.auditEvent("login", reasonNone))

	// The loop works on a duplicate of the backend's socket; what the login knew it by would stay with the session.
	back := s.link.wire.raw
	if s.link.tls != nil {
		s.link.wire.raw = nil
	} else {
		s.link.wire = nil
	}
	enrolling <- struct{}{}
	defer func() { <-enrolling }()
	err := l.enroll(back, &s.back)
	if err == nil {
		err = l.enroll(front.raw, &s.front)
	} else {
		front.raw.Close()
	}
	if err != nil || s.opened.Load() < 2 {
		l.post(func() { s.enrollFailed(err) })
	}
	return nil
}

// enroll returns when the loop has opened the side. The connection is closed: the loop has a duplicate.
func (l *loop) enroll(c net.Conn, sd *side) error {
	// gnet recycles the bytes of a zone, which belong to the address.
	for _, a := range []net.Addr{c.LocalAddr(), c.RemoteAddr()} {
		if a, ok := a.(*net.TCPAddr); ok {
			a.Zone = ""
		}
	}
	res, err := l.el.Enroll(gnet.NewContext(context.Background(), sd), c)
	if err != nil {
		c.Close()
		return err
	}
	return (<-res).Err
}

// enrollFailed runs on the loop: out of descriptors, or the engine stops. A side that is not open never will be.
func (s *session) enrollFailed(err error) {
	for _, sd := range []*side{&s.front, &s.back} {
		if !sd.open() {
			sd.phase = phClosed
		}
	}
	if s.reason == reasonNone {
		s.eng.log.Error("cannot hand a session to its loop", "session", s.id, "error", err)
		s.end(ReasonBug, "cannot enroll")
	}
	s.checkDone()
}
