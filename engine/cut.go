package engine

import (
	"time"

	"golang.org/x/sys/unix"

	"pgedge/codec"
)

const (
	// cutChunk is how many sessions a loop ends in one go. Telling a client takes two system calls with the kernel's
	// work for loopback or a network card behind them, about 20 us; 48 of them keep the bystanders of the same loop
	// waiting for about a millisecond. Smaller chunks spend more of the time on being handed over.
	cutChunk = 48
	// maxChunkPause bounds the pause between two chunks, which is half of what the chunk has taken. What the chunk has
	// caused, such as the ends of the clients' sockets, comes in then too, so that the loop looks at all sockets in
	// between. A chunk takes much longer than a millisecond only where the machine is crowded, and then the kernel makes
	// the pauses.
	maxChunkPause = time.Millisecond
	// handOverPause is the pause behind each chunk of idle backends that are given to the control connection. What
	// follows comes back to the loop as events, about 50 us a session, so that a chunk takes half of it.
	handOverPause = 6 * time.Millisecond
)

// evidence is what the backend itself said between the cut and its end.
type evidence struct {
	seen  codec.Seen
	fatal bool   // its last word was a FATAL error, behind which Postgres says nothing
	tail  []byte // the end of what it said, at most maxTailBytes
}

// maxTailBytes holds any error that Postgres ends with, its context included.
const maxTailBytes = 16 << 10

// observe takes what scan, the backend's scanner, is about to read.
func (ev *evidence) observe(scan *codec.Scanner, p []byte) {
	scan.Scan(p, &ev.seen) // a broken stream ends the evidence
	if ev.tail = append(ev.tail, p[max(0, len(p)-maxTailBytes):]...); len(ev.tail) > maxTailBytes {
		ev.tail = ev.tail[len(ev.tail)-maxTailBytes:]
	}
	ev.fatal = false
	if n := int(scan.LastBody()); ev.seen.LastType == 'E' && scan.AtBoundary() && n <= len(ev.tail) {
		ev.fatal = codec.ParseErrorResponse(ev.tail[len(ev.tail)-n:]).Severity == codec.SeverityFatal
	}
}

// cut carries out the cut of a batch whose gates are closed. When the task runs, every callback that may have looked
// at a gate just before it was closed has returned.
func (l *loop) cut(batch []*session) {
	l.post(func() { l.runCut(batch) })
}

// restsLocked proves the cut of a session whose gate has just been closed, without waiting for its loop. A loop that is
// not at work at this moment is in no callback that may have looked at the gate before, and whatever it calls from now on
// sees it closed. Only gnet itself might still write then, when it closes a socket for which it has buffered something.
func (s *session) restsLocked() bool {
	return (s.state == stLive || s.state == stEnding) && !s.loop.atWork.Load() && !s.backlog.Load()
}

func (l *loop) runCut(batch []*session) {
	fresh := batch[:0]
	l.each(batch, func(s *session) {
		if !s.isCut {
			s.isCut = true
			s.melt() // a cut is for good
			s.cutOpen = s.front.open() || s.back.open()
			fresh = append(fresh, s)
			s.bearWitness()
			s.front.shut()
			s.back.shut()
		}
	})
	var busy, idle []*session
	l.each(fresh, func(s *session) {
		if s.reason == reasonNone {
			s.reason = Reason(s.gate.Load()) // before a socket of it closes: that is the kill's doing then
		}
		s.advance(prCut)
		if status, open := unpackActivity(s.activity.Load()); open > 0 || status != 'I' || s.back.unsent > 0 {
			busy = append(busy, s)
		} else {
			idle = append(idle, s)
		}
	})
	// A backend that is at work is ended before anything else. One that stands idle outside of a transaction can do
	// nothing more, since nothing reaches it: where there are many, all clients are told first.
	l.chunked(cutStep{busy, l.die, 0}, cutStep{idle, l.tell, 0}, cutStep{idle, l.handOver, handOverPause})
}

// cutStep is something to be done with sessions of a loop, and how long to leave the loop alone behind each chunk at least.
type cutStep struct {
	batch []*session
	do    func([]*session)
	pause time.Duration
}

// chunked takes one step after the other: at once if all are small, else chunk by chunk, posted from outside, so that
// the loop looks at its sockets between two chunks.
func (l *loop) chunked(steps ...cutStep) {
	most := 0
	for _, st := range steps {
		most = max(most, len(st.batch))
	}
	if most <= cutChunk {
		for _, st := range steps {
			if len(st.batch) > 0 {
				st.do(st.batch)
			}
		}
		return
	}
	go func() {
		for _, st := range steps {
			if !l.paced(st) {
				return
			}
		}
	}()
}

// paced takes a step chunk by chunk, from outside of the loop; false says that the engine stops.
func (l *loop) paced(st cutStep) bool {
	pause := time.NewTimer(0)
	defer pause.Stop()
	for len(st.batch) > 0 {
		n := min(cutChunk, len(st.batch))
		chunk, ran := st.batch[:n], make(chan time.Duration, 1)
		st.batch = st.batch[n:]
		l.post(func() {
			began := time.Now()
			defer func() { ran <- time.Since(began) }()
			st.do(chunk)
		})
		select {
		case took := <-ran:
			pause.Reset(max(st.pause, min(took/2, maxChunkPause)))
		case <-l.eng.stopping:
			return false
		}
		select {
		case <-pause.C:
		case <-l.eng.stopping:
			return false
		}
	}
	return true
}

// each runs f for every session; a panic in one does not keep it from the others.
func (l *loop) each(batch []*session, f func(*session)) {
	for _, s := range batch {
		func() {
			defer l.eng.guard(s)
			f(s)
		}()
	}
}

// shut stops a side for good. What is buffered for it is never written, nor when gnet closes it. A backend that is at work is not read either until it has been told to terminate: a statement
// that waits for its output to be taken could finish, and commit, into our hands. Elsewhere reading needs no switch:
// the closed gate drops what comes.
func (sd *side) shut() {
	if sd.conn == nil {
		return
	}
	sd.phase = phCut
	if sd.unsent = int32(sd.buffered()); sd.unsent > 0 || !sd.isFront && sd.s.busy() {
		sd.arm()
	}
}

// terminated runs on the loop when the control connection has told these backends to terminate. Now they are read:
// their last words are evidence, and the end of their streams says when to look for them.
func terminated(batch []*session) {
	for _, s := range batch {
		if s.back.open() && s.back.phase == phCut {
			s.back.phase = phDrain
			s.back.listen()
		}
	}
}

// die ends sessions whose sides are shut: their backends are handed to the control connections first, since nothing
// is more urgent, and their clients are told meanwhile.
func (l *loop) die(batch []*session) {
	l.handOver(batch)
	l.tell(batch)
}

// handOver gives backends to those who end them.
func (l *loop) handOver(batch []*session) {
	targets := make(map[*controller][]*target)
	l.each(batch, func(s *session) {
		t := s.aim()
		t.deadline = time.Now().Add(l.eng.cfg.VerifyTimeout)
		targets[s.control] = append(targets[s.control], t)
	})
	for c, ts := range targets {
		if c != nil {
			c.submit(ts)
			continue
		}
		for _, t := range ts {
			// Without a control role: the reset first, so that Postgres reads no more of what is queued, then the
			// cancel request for what it is running.
			t.s.back.drop()
			l.eng.fallbacks.Go(func() { l.eng.cancelFallback(t) })
		}
	}
}

// aim describes the session for its receipt, once.
func (s *session) aim() *target {
	if s.target == nil {
		s.target = s.newTarget(nil)
	}
	return s.target
}

// tell tells clients that their sessions have ended.
func (l *loop) tell(batch []*session) {
	l.each(batch, func(s *session) {
		s.aim()
		s.dieFront()
		s.advance(prClosed)
	})
}

// dieFront tells the client, if its stream stands at a message boundary and it has read all it was sent; else it is
// reset without a word.
func (s *session) dieFront() {
	front := &s.front
	if !front.open() {
		s.checkDone()
		return
	}
	f := s.lastWord(Reason(s.gate.Load()), true)
	if f.Code == "" && front.unsent == 0 {
		front.close() // there is nothing to say
		return
	}
	if front.unsent > 0 || !s.clientWhole {
		front.drop()
		return
	}
	msg := codec.AppendErrorResponse(nil, f)
	fd := front.conn.Fd()
	// The message waits for the end of the stream, which comes next: one packet, for which the client wakes up once.
	if n, errno := move(unix.SYS_SENDTO, fd, msg, unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL|unix.MSG_MORE); errno != 0 || n < len(msg) {
		front.drop()
		return
	}
	unix.Shutdown(fd, unix.SHUT_WR)
	front.phase = phDrain
	front.listen()
	front.linger(lingerTime)
}

// swallow drops what comes in for a side that relays no more. What the backend still says is looked at, since it
// tells what became of its transaction.
func (sd *side) swallow() {
	s := sd.s
	buf, err := sd.conn.Peek(-1)
	if err != nil || len(buf) == 0 {
		return
	}
	if !sd.isFront {
		s.observe(buf)
	}
	if sd.conn != nil {
		sd.conn.Discard(-1)
	}
}

// observe scans what a backend that is being killed says.
func (s *session) observe(p []byte) {
	if s.link.tls == nil {
		s.observePlain(p)
		return
	}
	w := s.link.wire
	if s.link.broken {
		return // crypto/tls reads nothing any more: what comes is dropped, not collected
	}
	w.in = append(append([]byte(nil), w.in...), p...)
	for {
		n, err := s.link.tls.Read(s.loop.scratch)
		if n > 0 {
			s.observePlain(s.loop.scratch[:n])
		}
		if err != nil || n == 0 {
			s.link.noteError(err)
			w.out = w.out[:0]
			return
		}
	}
}

func (s *session) observePlain(p []byte) {
	s.bearWitness()
	s.evidence.observe(&s.back.scan, p)
}

// bearWitness is called when nothing of the backend's is passed on any more: from here on its scanner follows what is
// dropped, so where the client's own stream stands is noted first. Without the replacement of pids it keeps no byte
// back.
func (s *session) bearWitness() {
	if s.witness {
		return
	}
	s.witness, s.evidence = true, new(evidence)
	sd := &s.back
	s.clientWhole = sd.scan.AtBoundary()
	if !s.clientWhole && s.lastBackend == 'C' {
		s.evidence.seen.Completed++ // its header has passed, and it counts all the same
	}
	sd.scan.SetPIDRewrite(0, 0)
	held := sd.held[:sd.heldLen]
	sd.heldLen = 0
	s.evidence.observe(&sd.scan, held)
	if len(sd.ahead) > 0 {
		s.evidence.observe(&sd.scan, sd.ahead)
		sd.ahead = nil
	}
}

// backendSettled runs on the loop when the end of the backend is certain or has been given up on. What the backend
// said last may still wait in the socket; it is read before the verdict on its transaction.
func (s *session) backendSettled(t *target) {
	if sd := &s.back; sd.open() {
		if sd.conn.InboundBuffered() > 0 {
			sd.swallow()
		}
		ended := false
		for read := 0; read < maxLastWordsBytes; {
			n, err := unix.Read(sd.conn.Fd(), s.loop.scratch)
			if n <= 0 || err != nil {
				ended = err != unix.EAGAIN
				break
			}
			read += n
			// scratch is also where TLS decrypts to, so it is copied there.
			if s.link.tls != nil {
				s.observe(append([]byte(nil), s.loop.scratch[:n]...))
			} else {
				s.observe(s.loop.scratch[:n])
			}
		}
		if t.needsLastWords() && !s.heard().fatal && !ended {
			// A backend leaves the list of backends just before its process closes the socket.
			sd.phase = phDrain
			sd.listen()
			s.awaiting = t
			s.awaitUntil = s.now() + int64(lastWordsTime)
			s.rearm()
			return
		}
		if t.verified && sd.buffered() == 0 {
			sd.close() // nobody is there any more whom a reset could tell anything
		} else {
			sd.drop()
		}
	}
	t.conclude(s.heard())
}

// heard is the evidence so far.
func (s *session) heard() evidence {
	if s.evidence == nil {
		return evidence{}
	}
	return *s.evidence
}

// lastWordsTime bounds the wait for the end of the stream of a backend that has been seen gone.
const lastWordsTime = 2 * time.Second

// maxLastWordsBytes bounds what is read of a dead backend at one go: more than the kernel buffers for one socket by
// default.
const maxLastWordsBytes = 8 << 20
