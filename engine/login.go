package engine

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"runtime/debug"
	"sync"
	"time"

	"pgedge/codec"
	"pgedge/revoke"
)

// loginError ends a login: a reason, the inner error for the log, and fields that replace the reason's own text
// where Postgres has a text of its own.
type loginError struct {
	reason Reason
	err    error
	fields *codec.ErrorFields
	plain  bool // the client reads errors in the form of protocol 2 only
}

func (e *loginError) Error() string {
	if e.err == nil {
		return e.reason.String()
	}
	return e.err.Error()
}

func fail(r Reason, err error) *loginError { return &loginError{reason: r, err: err} }

func failText(r Reason, text string) *loginError {
	return &loginError{reason: r, err: errors.New(text), fields: &codec.ErrorFields{
		Severity: codec.SeverityFatal, Code: r.SQLState(), Message: text}}
}

// login is the life of a session up to its enrolment: straight-line code on plain connections, one goroutine,
// one deadline for everything.
func (e *Engine) login(s *session, conn net.Conn) {
	front := &wire{s: s, raw: conn}
	defer func() {
		if p := recover(); p != nil {
			e.metrics.bugs.Inc()
			e.log.Error("bug: panic in a login", "panic", p, "stack", string(debug.Stack()))
			e.abandonLogin(s, front, fail(ReasonBug, fmt.Errorf("panic: %v", p)))
		}
	}()
	ctx, cancel := context.WithDeadline(context.Background(), s.began.Add(e.limits().LoginTimeout))
	defer cancel()
	s.mu.Lock()
	s.interrupt = cancel
	s.mu.Unlock()
	s.hold(conn)
	reader := newReader(front)
	defer freeReader(reader)
	lerr := e.runLogin(ctx, s, front, reader)
	if lerr != nil {
		e.endLogin(s, front, lerr)
	}
}

func (e *Engine) runLogin(ctx context.Context, s *session, front *wire, reader *bufio.Reader) *loginError {
	pkt, lerr := readStartup(front, reader)
	if lerr != nil {
		return lerr
	}
	if pkt.Kind == codec.PacketCancelRequest {
		e.relayCancel(s.client, pkt.Cancel)
		return fail(ReasonCancelRequest, nil)
	}
	if lerr := e.register(s, pkt); lerr != nil {
		return lerr
	}
	slot := loginSlot{slots: e.loginSlots}
	defer slot.give()
	if err := slot.take(ctx); err != nil {
		return s.ioError(err, ReasonShutdownLogin)
	}
	l, err := s.entry.upstream.dial(ctx, s)
	if err != nil && e.draining.Load() {
		return fail(ReasonShutdownLogin, err)
	} else if err != nil {
		return fail(ReasonUpstreamUnreachable, err)
	}
	s.link = l
	s.control = e.controls.at(s.entry, l)
	backend := newReader(l.conn())
	defer freeReader(backend)
	p := &passthrough{s: s, pkt: pkt, client: reader, front: front, backend: backend, ctx: ctx, slot: &slot}
	greeting, lerr := p.run()
	if lerr != nil {
		return lerr
	}
	if err := s.control.learn(ctx, s); err != nil {
		e.log.Warn("cannot find the backend of a session; its kill cannot be verified", "session", s.id, "error", err)
	}
	if n := e.limits().PerPrincipal; n > 0 && !e.index.count(s, n) {
		return fail(ReasonPrincipalSessions, nil)
	}
	// The check is repeated now that the client has proved who it is; what comes later finds the session in the index.
	if lerr := e.checkAccess(s); lerr != nil {
		return lerr
	}
	if err := front.greet(greeting); err != nil {
		return s.ioError(err, ReasonClientGone)
	}
	s.front.ahead = takeBuffered(reader)
	s.back.ahead = takeBuffered(backend)
	return e.enroll(s, front)
}

// loginSlot is one of limits.max_logins. A login gives it back while it waits for its client, so that clients that
// take their time block nobody.
type loginSlot struct {
	slots chan struct{}
	held  bool
}

func (l *loginSlot) take(ctx context.Context) error {
	select {
	case l.slots <- struct{}{}:
		l.held = true
		return nil
	case <-ctx.Done():
		if ctx.Err() == context.DeadlineExceeded {
			return os.ErrDeadlineExceeded
		}
		return ctx.Err()
	}
}

func (l *loginSlot) give() {
	if l.held {
		l.held = false
		<-l.slots
	}
}

// readStartup answers SSLRequest and GSSENCRequest as Postgres does without TLS, each at most once, and returns the
// packet behind them.
func readStartup(front *wire, r *bufio.Reader) (*codec.StartupPacket, *loginError) {
	var askedSSL, askedGSS bool
	for {
		if first, err := r.Peek(1); err != nil {
			if !askedSSL && !askedGSS && errors.Is(err, io.EOF) {
				return nil, fail(ReasonProbe, nil) // a load balancer's health check
			}
			return nil, front.s.ioError(err, ReasonClientGone)
		} else if first[0] == 0x16 {
			// Direct TLS without TLS configured: nothing in the clear would be understood.
			return nil, &loginError{reason: ReasonUnsupported, err: errors.New("direct TLS, but TLS is off"), fields: &codec.ErrorFields{}}
		}
		var prefix [4]byte
		if _, err := io.ReadFull(r, prefix[:]); err != nil {
			return nil, front.s.ioError(err, ReasonClientGone)
		}
		n, err := codec.StartupLength(prefix)
		if err != nil {
			return nil, startupError(err)
		}
		body := make([]byte, n)
		if _, err := io.ReadFull(r, body); err != nil {
			return nil, front.s.ioError(err, ReasonClientGone)
		}
		pkt, err := codec.ParseStartup(body)
		if err != nil {
			lerr := startupError(err)
			lerr.plain = pkt.PlainErrors()
			return nil, lerr
		}
		again := false
		switch pkt.Kind {
		case codec.PacketStartup, codec.PacketCancelRequest:
			return &pkt, nil
		case codec.PacketSSLRequest:
			again, askedSSL = askedSSL, true
		case codec.PacketGSSENCRequest:
			again, askedGSS = askedGSS, true
		}
		if again {
			return nil, startupError(codec.UnsupportedProtocol(pkt.Major, pkt.Minor))
		}
		if err := front.answer('N'); err != nil {
			return nil, front.s.ioError(err, ReasonClientGone)
		}
		// Bytes sent without waiting for the answer could be a man in the middle's (CVE-2021-23214).
		if r.Buffered() > 0 {
			text := "received unencrypted data after SSL request"
			if pkt.Kind == codec.PacketGSSENCRequest {
				text = "received unencrypted data after GSSAPI encryption request"
			}
			lerr := failText(ReasonProtocol, text)
			lerr.fields.Detail = "This could be either a client-software bug or evidence of an attempted man-in-the-middle attack."
			return nil, lerr
		}
	}
}

func startupError(err error) *loginError {
	var se *codec.StartupError
	if !errors.As(err, &se) {
		return fail(ReasonProtocol, err)
	}
	reason := ReasonProtocol
	switch se.Code {
	case ReasonNoUser.SQLState():
		reason = ReasonNoUser
	case ReasonUnsupported.SQLState():
		reason = ReasonUnsupported
	}
	return &loginError{reason: reason, err: err,
		fields: &codec.ErrorFields{Severity: codec.SeverityFatal, Code: se.Code, Message: se.Message}}
}

// register puts the session into the index, then looks whether it may exist: whichever of this and a revocation
// runs second sees the other.
func (e *Engine) register(s *session, pkt *codec.StartupPacket) *loginError {
	user, db := pkt.User(), pkt.Database()
	s.application, _ = pkt.Get("application_name")
	s.id = e.newSessionID()
	s.identity = revoke.NewIdentity(user, user, db, s.id)
	s.authSeq = e.cfg.Table.Position()
	e.index.add(s)
	if lerr := e.checkAccess(s); lerr != nil {
		return lerr
	}
	if e.draining.Load() {
		return fail(ReasonShutdownLogin, nil)
	}
	if err := e.cfg.Serving(); err != nil && e.lease.Load() == leaseHeld {
		return fail(ReasonNotReady, err)
	}
	if !e.fresh() {
		return fail(ReasonStaleLogin, nil)
	}
	entry := e.databases[db]
	if entry == nil {
		if entry = e.databases["*"]; entry == nil {
			return fail(ReasonUnknownDatabase, nil)
		}
	}
	if !e.admit() {
		return fail(ReasonTooManySessions, nil)
	}
	s.admitted = true
	s.entry = entry
	if n := entry.sessions.Add(1); entry.max > 0 && n > int64(entry.max) {
		return fail(ReasonDatabaseSessions, nil)
	}
	return nil
}

// checkAccess reads the table. A denial closes the gate like a fact that has just arrived.
func (e *Engine) checkAccess(s *session) *loginError {
	if d, denied := e.cfg.Table.Check(s.identity, s.authSeq, time.Now()); denied {
		s.mu.Lock()
		s.closeGateLocked(reasonOf(d.Fact.Verb), &d.Fact)
		s.mu.Unlock()
	}
	if s.cutNow() {
		return fail(Reason(s.gate.Load()), errCut)
	}
	return nil
}

// ioError turns what a login's socket said into a reason.
func (s *session) ioError(err error, otherwise Reason) *loginError {
	switch {
	case s.cutNow():
		return fail(Reason(s.gate.Load()), errCut)
	case s.eng.draining.Load() && errors.Is(err, os.ErrDeadlineExceeded):
		return fail(ReasonShutdownLogin, err)
	case errors.Is(err, os.ErrDeadlineExceeded) && !s.eng.fresh():
		return fail(ReasonStaleLogin, err)
	case errors.Is(err, os.ErrDeadlineExceeded):
		return fail(ReasonLoginTimeout, err)
	}
	return fail(otherwise, err)
}

// readers are shared by logins: an idle session has none. 4 KiB hold all but the longest startup packets.
var readers = sync.Pool{New: func() any { return bufio.NewReaderSize(nil, 4096) }}

func newReader(r io.Reader) *bufio.Reader {
	b := readers.Get().(*bufio.Reader)
	b.Reset(r)
	return b
}

func freeReader(b *bufio.Reader) {
	b.Reset(nil)
	readers.Put(b)
}

// takeBuffered copies what was read ahead of the login; it is the first thing the loop relays.
func takeBuffered(b *bufio.Reader) []byte {
	if b.Buffered() == 0 {
		return nil
	}
	p, _ := b.Peek(b.Buffered())
	return append([]byte(nil), p...)
}
