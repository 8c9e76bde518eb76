package engine

import (
	"errors"

	"github.com/panjf2000/gnet/v2"

	"pgedge/codec"
)

// opened is called when the loop has taken a socket over. Nothing is read before both are there.
func (sd *side) opened(c gnet.Conn) {
	s := sd.s
	sd.conn = c
	s.opened.Add(1)
	s.loop.know(c.Fd(), sd)
	sd.paused |= pauseJoining
	s.eng.metrics.pausedSides.Add(1)
	sd.arm()
	other := sd.peer()
	if s.reason != reasonNone { // the other side is gone already
		sd.close()
		return
	}
	if !other.open() {
		return
	}
	s.join()
}

// join begins the relay, or ends the session if its gate was closed on the way here.
func (s *session) join() {
	s.front.phase, s.back.phase = phRelay, phRelay
	s.loop.sessions[s] = struct{}{}
	s.mu.Lock()
	if s.eng.lease.Load() == leaseDropped {
		s.closeGateLocked(ReasonStale, nil)
	}
	cut := s.cutNow()
	if cut {
		s.moveLocked(stEnding)
	} else {
		s.moveLocked(stLive)
	}
	s.mu.Unlock()
	if cut {
		s.loop.runCut([]*session{s})
		return
	}
	s.catchUp(pauseJoining)
	if s.reason != reasonNone {
		return
	}
	s.rearm()
	if s.eng.draining.Load() {
		s.endAtSyncPoint(ReasonShutdown)
	}
}

// catchUp relays what has been read and not passed on, before anything that comes behind it, and lets both sides go
// on. The session may end or freeze on the way.
func (s *session) catchUp(why pauseSet) {
	for _, sd := range []*side{&s.back, &s.front} {
		if len(sd.ahead) > 0 && s.mayPass() {
			ahead := sd.ahead
			sd.ahead = nil
			s.forward(sd, ahead)
		}
		if s.reason != reasonNone {
			return
		}
	}
	if s.link.tls != nil {
		s.relayTLS() // plaintext may sit inside the TLS connection, since the handshake or since a freeze
		s.keepCiphertext()
	}
	for _, sd := range []*side{&s.front, &s.back} {
		if s.reason != reasonNone || s.frozen && why == pauseFrozen {
			return
		}
		sd.resume(why)
	}
}

// readable is called when bytes have come in for a side.
func (sd *side) readable() {
	switch sd.phase {
	case phRelay:
		if sd.paused != 0 {
			sd.arm() // it was paused after its event had been fetched; this one buffer stays unread
			return
		}
		sd.s.relay(sd)
	case phNew:
		sd.arm()
	case phCut, phFlush, phDrain:
		sd.swallow()
	case phClosed:
	}
}

// relay moves what has been read to the other side, without a copy: the bytes are written from the buffer they were
// read into.
func (s *session) relay(sd *side) {
	if !s.mayPass() {
		return
	}
	buf, err := sd.conn.Peek(-1)
	if err != nil || len(buf) == 0 {
		return
	}
	s.relayed(sd, buf)
	if sd.conn != nil {
		sd.conn.Discard(-1)
	}
}

// relayed moves what has been read from a side's socket; the caller has looked at the lease.
func (s *session) relayed(sd *side, buf []byte) {
	if testRelayHook != nil {
		testRelayHook(s)
	}
	if !sd.isFront && s.link.tls != nil {
		s.link.wire.in = buf
		s.relayTLS()
		s.keepCiphertext()
		return
	}
	s.forward(sd, buf)
}

// forward scans p, looks at the gate, and writes p to the other side; the caller has looked at the lease. p is modified
// only where the backend's pid is replaced; it is not kept.
func (s *session) forward(sd *side, p []byte) {
	if s.gate.Load() != 0 {
		// The loop's own task ends the session; nothing passes any more.
		if !sd.isFront {
			s.observePlain(p)
		}
		return
	}
	if sd.heldLen > 0 {
		p = append(append(make([]byte, 0, int(sd.heldLen)+len(p)), sd.held[:sd.heldLen]...), p...)
		sd.heldLen = 0
	}
	var seen codec.Seen
	n, err := sd.scan.Scan(p, &seen)
	if n > 0 {
		s.send(sd, sd.peer(), p[:n])
		if s.reason != reasonNone {
			return
		}
	}
	if err != nil {
		s.end(framingReason(sd, err), err.Error())
		return
	}
	if n < len(p) {
		sd.heldLen = uint8(copy(sd.held[:], p[n:]))
	}
	if sd.isFront {
		s.bytesIn += int64(n)
		s.eng.metrics.bytesIn.Add(n)
		s.terminated = s.terminated || seen.Terminate
		if seen.Messages > 0 {
			s.noteSent(&seen)
		}
		return
	}
	s.bytesOut += int64(n)
	s.eng.metrics.bytesOut.Add(n)
	if seen.Messages > 0 {
		s.lastBackend = seen.LastType
	}
	if seen.Ready > 0 {
		s.noteReady(seen.Ready, seen.Status)
		if seen.Status == 'I' {
			s.eng.metrics.transactions.Inc()
			if s.closing != reasonNone {
				s.endAtSyncPoint(s.closing)
			}
		}
	}
}

// framingReason says whose fault a broken stream is, and whether Postgres would tell a client about it.
func framingReason(sd *side, err error) Reason {
	var fe *codec.FramingError
	switch {
	case !sd.isFront:
		return ReasonUpstreamProtocol
	case errors.As(err, &fe) && fe.Silent():
		return ReasonBadLength
	}
	return ReasonProtocol
}

// send is where bytes of a session go to the other side, once gate and lease have been looked at. from is paused when
// to has too much waiting.
func (s *session) send(from, to *side, p []byte) {
	if to.conn == nil || to.phase != phRelay {
		if to.phase == phCut {
			s.afterCut(len(p))
		}
		return
	}
	if !to.isFront && s.link.tls != nil {
		w := s.link.wire
		if _, err := s.link.tls.Write(p); err != nil {
			s.end(ReasonUpstreamLost, err.Error())
			return
		}
		to.write(w.out)
		w.out = w.out[:0]
	} else {
		to.write(p)
	}
	if to.buffered() > highMarkBytes && from.phase == phRelay {
		from.pause(pausePeer)
	}
}

// afterCut counts what must never happen.
func (s *session) afterCut(n int) {
	s.eng.metrics.bytesAfterCut.Add(n)
	s.mu.Lock()
	s.resultLocked().BytesAfter += int64(n)
	s.mu.Unlock()
	s.eng.bugf("session %s: %d bytes were to be written after the cut", s.id, n)
}

// relayTLS forwards every whole record that has come in, as long as the lease holds: what has not been decrypted then
// stays where it is.
func (s *session) relayTLS() {
	for s.reason == reasonNone && s.back.open() && s.mayPass() {
		n, err := s.link.tls.Read(s.loop.scratch)
		if n > 0 {
			s.forward(&s.back, s.loop.scratch[:n])
		}
		if err != nil {
			if s.link.noteError(err) {
				s.end(s.backendLoss(), err.Error())
			}
			return
		}
		if n == 0 {
			return
		}
	}
}

// keepCiphertext copies what crypto/tls has not taken yet: the loop's buffer is gone after the callback.
func (s *session) keepCiphertext() {
	w := s.link.wire
	if len(w.in) > 0 {
		w.in = append([]byte(nil), w.in...)
	} else {
		w.in = nil
	}
	if len(w.out) > 0 && s.back.conn != nil && s.back.phase == phRelay && !s.frozen && !s.cutNow() {
		s.back.write(w.out) // a key update's answer, for instance
		w.out = w.out[:0]
	}
}
