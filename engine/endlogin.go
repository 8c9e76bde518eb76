package engine

import (
	"fmt"
	"io"
	"net"
	"time"

	"pgedge/codec"
	"pgedge/revoke"
)

// lingerTime bounds how long a socket is kept after the last word, so that unread input does not turn the close into
// a reset that destroys the text.
const lingerTime = time.Second

// endLogin ends a session that has not come to a loop. It lingers for up to a second once the evidence is complete.
func (e *Engine) endLogin(s *session, front *wire, lerr *loginError) {
	s.mu.Lock()
	if s.cutNow() && !lerr.reason.cutReason() && lerr.reason != ReasonProbe && lerr.reason != ReasonCancelRequest {
		lerr = fail(Reason(s.gate.Load()), lerr.err) // the cut made the login fail, whatever it looked like
	}
	s.moveLocked(stEnded)
	wasCut := len(s.orders) > 0
	if wasCut {
		s.describeLocked("login")
		s.resultLocked().Cut = "login_refused"
	}
	s.mu.Unlock()
	s.reason = lerr.reason
	e.logLogin(s, lerr)

	backendGone := e.endLoginBackend(s, wasCut)
	told := e.tellClient(s, front, lerr)
	s.advance(prClosed)
	if backendGone != nil {
		<-backendGone
	}
	if s.id != "" {
		s.conclude(nil)
	}
	if told {
		front.raw.SetDeadline(time.Now().Add(lingerTime))
		io.CopyN(io.Discard, front.raw, 1<<20)
	}
	front.raw.Close()
	e.release(s)
}

// abandonLogin ends a session whose login goroutine panicked, wherever it had come to.
func (e *Engine) abandonLogin(s *session, front *wire, lerr *loginError) {
	s.mu.Lock()
	state := s.state
	s.mu.Unlock()
	switch state {
	case stLogin:
		e.endLogin(s, front, lerr)
	case stEnrolling, stLive, stEnding:
		s.loop.post(func() { s.enrollFailed(lerr.err) })
	case stEnded:
		if s.link != nil {
			s.link.wire.raw.Close()
		}
		if s.id != "" {
			s.conclude(nil)
		}
		front.raw.Close()
		e.release(s)
	}
}

// tellClient writes the last word and closes our half of the connection; it reports whether it said anything. A login
// writes whole messages; where a cut has torn one, the client is reset instead. Before the client has proved who it
// is, it learns no id and no time.
func (e *Engine) tellClient(s *session, front *wire, lerr *loginError) (told bool) {
	if front.torn {
		resetOnClose(front.raw)
		return false
	}
	fields := lerr.fields
	if fields == nil {
		f := s.lastWord(lerr.reason, s.authenticated)
		fields = &f
	}
	if fields.Code == "" {
		return lerr.reason == ReasonLoginRefused // what Postgres said must arrive, like a word of our own
	}
	front.raw.SetDeadline(time.Now().Add(lingerTime))
	msg := codec.AppendErrorResponse(nil, *fields)
	if lerr.plain {
		msg = codec.AppendErrorResponseV2(nil, *fields)
	}
	if _, err := front.raw.Write(msg); err != nil {
		return false
	}
	closeWrite(front.raw)
	return true
}

func closeWrite(c net.Conn) {
	if c, ok := c.(interface{ CloseWrite() error }); ok {
		c.CloseWrite()
	}
}

// endLoginBackend stops what the login left at the server. Before AuthenticationOk there is nothing: no byte of the
// client's but the password was handed on. After it the backend is killed like that of any session. The channel,
// if any, is closed when the backend's end is certain or given up on.
func (e *Engine) endLoginBackend(s *session, wasCut bool) <-chan struct{} {
	l := s.link
	if l == nil {
		s.settleLogin(wasCut)
		return nil
	}
	if !wasCut || !s.authenticated {
		l.wire.raw.Close()
		s.settleLogin(wasCut)
		return nil
	}
	deadline := time.Now().Add(e.cfg.VerifyTimeout)
	l.wire.raw.SetDeadline(deadline)
	gone := make(chan struct{})
	t := s.newTarget(func() { close(gone) })
	if s.control != nil {
		s.control.submit([]*target{t})
		go func() {
			// The socket stays open and drained: its end says when to look.
			io.Copy(io.Discard, l.wire.raw)
			s.control.look()
			<-gone
			l.wire.raw.Close()
		}()
		return gone
	}
	resetOnClose(l.wire.raw)
	l.wire.raw.Close()
	e.fallbacks.Go(func() { e.cancelFallback(t) })
	return gone
}

// settleLogin writes the result of a login that had no backend to kill.
func (s *session) settleLogin(wasCut bool) {
	if !wasCut {
		return
	}
	s.mu.Lock()
	r := s.resultLocked()
	r.Backend, r.Verified, r.Xact = "none", true, "none"
	s.mu.Unlock()
}

func resetOnClose(c net.Conn) {
	if c, ok := c.(*net.TCPConn); ok {
		c.SetLinger(0)
	}
}

// lastWord is what a client is told. DETAIL and its id and time only go to a client that has proved who it is.
func (s *session) lastWord(r Reason, proven bool) codec.ErrorFields {
	o := &outcomes[r]
	f := codec.ErrorFields{Severity: o.severity, Code: o.code, Message: o.text}
	switch r {
	case ReasonRevoked, ReasonSuspended, ReasonKilled, ReasonPrincipalSessions:
		f.Message = fmt.Sprintf(o.text, s.identity.Principal)
	case ReasonUnknownDatabase:
		f.Message = fmt.Sprintf(o.text, s.identity.Database)
	}
	if !r.cutReason() {
		return f
	}
	if contact := s.eng.settings.Load().contact; contact != "" {
		f.Hint = "Contact " + contact + "."
	}
	if fact := s.fact.Load(); fact != nil && proven {
		at := fact.At
		if at.IsZero() { // a bare message carries no time; it is carried out the moment it arrives
			at = time.Now()
		}
		f.Detail = "Revocation " + revocationName(fact) + " of " + at.UTC().Format(time.RFC3339) + "."
		if r == ReasonSuspended {
			f.Detail += " Suspended until " + fact.Until.UTC().Format(time.RFC3339) + "."
		}
	}
	return f
}

func revocationName(f *revoke.Fact) string {
	if f.ID == "" {
		return "(not numbered yet)"
	}
	return f.ID
}

// logLogin records a login that did not become a session.
func (e *Engine) logLogin(s *session, lerr *loginError) {
	o := &outcomes[lerr.reason]
	e.metrics.closed(lerr.reason)
	if lerr.reason == ReasonProbe || lerr.reason == ReasonCancelRequest {
		return
	}
	e.metrics.logins("refused").Inc()
	code := o.code
	if lerr.fields != nil {
		code = lerr.fields.Code
	}
	detail := ""
	if lerr.err != nil {
		detail = lerr.err.Error()
	}
	e.sessions.write(o.level, "login refused", "reason", o.label, "principal", s.identity.Principal,
		"database", s.identity.Database, "client", s.clientString(), "detail", detail)
	ev := s.auditEvent("refusal", lerr.reason)
	ev.SQLState, ev.Detail = code, detail
	e.cfg.OnAudit(ev)
}

func (s *session) auditEvent(kind string, r Reason) AuditEvent {
	ev := AuditEvent{Time: time.Now(), Kind: kind, Session: s.id, Principal: s.identity.Principal, Role: s.identity.Role,
		Database: s.identity.Database, Client: s.clientString(), Application: s.application,
		Duration: time.Since(s.began), BytesIn: s.bytesIn, BytesOut: s.bytesOut}
	if r != reasonNone {
		ev.Reason, ev.SQLState = r.String(), r.SQLState()
	}
	if f := s.fact.Load(); f != nil && r.cutReason() {
		ev.Revocation = f.ID
	}
	return ev
}

// release gives back everything a session counted against. It runs once, when no descriptor is left.
func (e *Engine) release(s *session) {
	if !s.released.CompareAndSwap(false, true) {
		return
	}
	if s.link != nil {
		e.cancels.revoke(s)
	}
	if s.admitted {
		e.admitted.Add(-1)
		s.entry.sessions.Add(-1)
	}
	<-e.slots
}
