package load

import (
	"bytes"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// state says what a session waits for.
type state uint8

const (
	stateClosed     state = iota // no socket; before its login and at its end
	stateConnecting              // for the connection
	stateGreeting                // for the first ReadyForQuery
	stateIdle                    // for nothing
	stateAsking                  // for the answer to a question that is measured
	stateBusy                    // for the end of a statement
	stateAsleep                  // a statement is out and nobody reads
)

// how says in what way a session ended.
type how uint8

const (
	stillOpen how = iota
	byClient      // by this side
	byEOF
	byReset
)

var howNames = [...]string{stillOpen: "", byClient: "client", byEOF: "eof", byReset: "reset"}

// session is one slot of a loop. In a storm a slot has one session after the other, told apart by gen.
type session struct {
	fd    int32 // -1: none
	gen   uint32
	user  int32
	place int32
	state state
	how   how
	wrong bool  // the answer under way is not the right one
	rows  uint8 // of the answer under way, at most 2
	in    inbox
	scram *scram
	// began is when the login, or the question that is out, was meant to be sent.
	began int64
	// asked and owed count questions: sent, and due but not sent, of those that l.asks schedules.
	asked, owed uint32
	place0      uint32 // position among those who ask
	last        *serverError
	lastAt      int64
	endedAt     int64
}

// question is what bystanders ask, and what they must hear.
var (
	question = query("SELECT 1")
	answer   = []byte{0, 1, 0, 0, 0, 1, '1'} // one column of one byte
)

func (l *loop) event(i int, gen uint32, events uint32) {
	s := &l.slots[i]
	if s.gen != gen || s.fd < 0 {
		return
	}
	gone := events&(unix.EPOLLRDHUP|unix.EPOLLHUP|unix.EPOLLERR) != 0
	if s.state == stateConnecting {
		if events&unix.EPOLLOUT == 0 && !gone {
			return
		}
		if errno, err := unix.GetsockoptInt(int(s.fd), unix.SOL_SOCKET, unix.SO_ERROR); err != nil || errno != 0 {
			l.failLogin(i, fmt.Errorf("cannot connect to %s: %w", l.places[s.place].addr, errors.Join(err, unix.Errno(errno))))
			return
		}
		s.state = stateGreeting
		if !l.write(i, startupPacket(l.users[s.user].Name, l.database)) {
			return
		}
	}
	switch {
	case s.state == stateAsleep && gone:
		l.gone(i, byEOF, nil) // what the other side said last is still unread
	case s.state != stateAsleep && (gone || events&unix.EPOLLIN != 0):
		l.read(i, gone)
	}
}

// read takes what has arrived. A read that does not fill the buffer has emptied the socket, unless its end has arrived too.
func (l *loop) read(i int, gone bool) {
	s := &l.slots[i]
	gen := s.gen
	for {
		n, err := unix.Read(int(s.fd), l.buf)
		switch {
		case err == unix.EINTR:
			continue
		case err == unix.EAGAIN:
			return
		case err != nil:
			l.gone(i, byReset, err)
			return
		case n == 0:
			l.gone(i, byEOF, errors.New("the connection was closed"))
			return
		}
		l.feed(i, l.buf[:n])
		if s.gen != gen || s.fd < 0 || s.state == stateAsleep || n < len(l.buf) && !gone {
			return
		}
	}
}

func (l *loop) feed(i int, b []byte) {
	s := &l.slots[i]
	gen := s.gen
	for {
		kind, body, rest, ok, err := s.in.next(b)
		if err != nil {
			l.broken(i, err)
			return
		}
		if !ok {
			return
		}
		b = rest
		l.message(i, kind, body)
		if s.gen != gen || s.fd < 0 {
			return
		}
	}
}

func (l *loop) message(i int, kind byte, body []byte) {
	s := &l.slots[i]
	switch kind {
	case 'E':
		e := *parseError(body)
		if l.texts[e] == nil {
			l.texts[e] = &e
		}
		s.last, s.lastAt = l.texts[e], l.now
		s.wrong = true
		if s.state == stateGreeting {
			l.failLogin(i, s.last)
		}
	case 'R':
		l.authenticate(i, body)
	case 'D':
		s.rows = min(s.rows+1, 2)
		if s.state == stateAsking && !bytes.Equal(body, answer) {
			s.wrong = true
		}
	case 'Z':
		switch s.state {
		case stateGreeting:
			l.loggedIn(i)
		case stateAsking:
			l.answered(i)
		case stateBusy:
			s.state = stateIdle
		case stateClosed, stateConnecting, stateIdle, stateAsleep:
			l.broken(i, errors.New("a ReadyForQuery that nobody waits for"))
		}
	}
}

// send writes a statement whose answer is awaited in the given state.
func (l *loop) send(i int, statement []byte, st state) {
	s := &l.slots[i]
	s.state, s.wrong, s.rows = st, false, 0
	l.write(i, statement)
}

// write reports whether the session is still there. What is written is small and never follows something unanswered, so
// a socket that does not take it whole is broken.
func (l *loop) write(i int, b []byte) bool {
	n, err := unix.Write(int(l.slots[i].fd), b)
	if err == nil && n == len(b) {
		return true
	}
	if err == unix.EPIPE || err == unix.ECONNRESET {
		l.gone(i, byReset, err)
		return false
	}
	l.broken(i, fmt.Errorf("cannot write %d bytes: %d, %w", len(b), n, err))
	return false
}

// broken ends a session whose other side does not speak the protocol.
func (l *loop) broken(i int, err error) {
	l.gone(i, byClient, err)
}

// gone is a session's end, seen from here.
func (l *loop) gone(i int, h how, err error) {
	s := &l.slots[i]
	switch s.state {
	case stateConnecting, stateGreeting:
		l.failLogin(i, fmt.Errorf("the login ended: %w", err))
		return
	case stateAsking:
		l.lost(s, err)
	case stateClosed:
		return
	case stateIdle, stateBusy, stateAsleep:
	}
	l.open--
	l.ended++
	l.drop(s)
	s.how, s.endedAt = h, l.now
	if l.storm != nil {
		l.stormFailed(i, fmt.Errorf("the session ended: %w", err))
	}
}

// leave ends a session as a client does.
func (l *loop) leave(i int) {
	s := &l.slots[i]
	if s.fd < 0 {
		return
	}
	switch s.state {
	case stateIdle, stateAsking, stateBusy, stateAsleep:
		l.open--
		// Nobody is left who would want to know of an error.
		_, _ = unix.Write(int(s.fd), terminate)
	case stateConnecting, stateGreeting, stateClosed:
	}
	l.drop(s)
	s.how, s.endedAt = byClient, l.now
}

// drop closes the socket, which takes it out of epoll.
func (l *loop) drop(s *session) {
	unix.Close(int(s.fd))
	s.fd, s.state, s.scram, s.in = -1, stateClosed, nil, inbox{}
}
