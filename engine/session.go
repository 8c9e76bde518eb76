package engine

import (
	"net"
	"sync"
	"sync/atomic"
	"time"

	"pgedge/codec"
	"pgedge/revoke"
)

// sessionState says who owns a session. It changes under session.mu, along sessionMoves only.
type sessionState uint8

const (
	stLogin     sessionState = iota // owned by its login goroutine; entered at accept
	stEnrolling                     // both sockets are on their way to a loop; nothing is read
	stLive                          // on a loop; bytes move both ways
	stEnding                        // on a loop; nothing is relayed any more, last words are being written
	stEnded                         // terminal: no socket is left
)

var sessionMoves = [...][]sessionState{
	stLogin:     {stEnrolling, stEnded},
	stEnrolling: {stLive, stEnding, stEnded},
	stLive:      {stEnding, stEnded},
	stEnding:    {stEnded},
	stEnded:     {},
}

// progress is how far the killing of a session has come. It only grows, under session.mu.
type progress uint8

const (
	prNone     progress = iota // not cut
	prCut                      // no further byte passes the gate
	prClosed                   // the client has been told and both directions are shut
	prVerified                 // the backend was seen gone, or given up on: the result is final
)

// session is one client and its backend, from accept to the last trace. Fields are grouped by who may touch them when; what
// only a kill needs is behind pointers, and small fields stand together: an idle session is what there are most of. What a
// revocation touches in each of its sessions, gate to stage, is one cache line: each that has to be fetched costs as much as
// all the rest.
type session struct {
	// Immutable after creation.
	eng    *Engine
	id     string
	began  time.Time
	client net.Addr

	// Written by the login goroutine before the session is registered, immutable afterwards.
	identity    revoke.Identity
	application string
	entry       *database

	// Written by the login goroutine before the session is enrolled, immutable afterwards.
	link    *link
	key     codec.CancelKey // the backend's own; never given to the client
	virtual codec.CancelKey // what the client was given
	control *controller     // of the server the backend runs on; nil: no control role
	start   string          // backend_start learned at login; "" where ports identify backends

	// Any goroutine.
	lastActive atomic.Int64  // ns since engine start of the last change of activity
	activity   atomic.Uint32 // see activity.go
	opened     atomic.Int32  // sides that a loop has opened
	released   atomic.Bool   // what it counted against has been given back
	indexed    indexEntry    // guarded by the index

	// Written by the login goroutine like those above.
	admitted      bool            // counts against the limits
	authenticated bool            // AuthenticationOk was seen
	greeted       bool            // the client is being told that it is in; guarded by mu
	authSeq       revoke.Position // journal position applied when the login began

	// wmu is held during every write of a login. Taking it once after closing the gate proves that no write is
	// under way. It is never taken by a loop.
	wmu sync.Mutex

	// The gate is read by any goroutine. mu guards what stands behind it, and is never held across I/O.
	gate        atomic.Uint32               // Reason that closed the gate; 0 while it is open
	backlog     atomic.Bool                 // gnet may hold bytes for a side; written by the loop, read by any goroutine
	fact        atomic.Pointer[revoke.Fact] // that closed the gate; any goroutine
	mu          sync.Mutex
	orders      []*order // revocations that wait for this session; the array is never written to
	loop        *loop    // written by the login before it enrolls the session, immutable afterwards
	state       sessionState
	stage       progress
	backendPort uint16                 // our own port towards the backend, known from the dial on; 0 on unix sockets
	conns       []net.Conn             // sockets of a login, whose deadlines a cut pulls to the past
	interrupt   func()                 // ends whatever else a login waits for
	result      *revoke.SessionReceipt // nil until the session is described

	// Owned by the loop once enrolled; by the login goroutine before.
	front, back side
	bytesIn     int64
	bytesOut    int64
	reason      Reason    // first reason wins
	closing     Reason    // draining or too old: end for this reason at the next sync point
	lastBackend byte      // type of the newest message of the backend
	terminated  bool      // the client sent Terminate
	witness     bool      // the backend's words are evidence only
	clientWhole bool      // the client's stream stood at a message boundary when that began
	isCut       bool      // the loop has carried out the cut
	cutOpen     bool      // a socket was still open then: the session had not ended by itself
	frozen      bool      // nothing passes until a thaw; see frozen.go
	mayLock     bool      // frozen inside a transaction, as far as is known
	done        bool      // both sockets are gone
	timerIndex  int32     // in loop.timers, -1 when not armed
	due         int64     // ns since engine start
	frozenAt    int64     // ns since engine start
	detail      string    // for log and audit, never for the client
	evidence    *evidence // nil until the session bears witness
	target      *target
	awaiting    *target // backend seen gone; the end of its stream is still to come
	awaitUntil  int64   // ns since engine start; bounds awaiting
}

// now is the engine's monotonic clock in ns.
func (s *session) now() int64 { return int64(time.Since(s.eng.epoch)) }

func (s *session) cutNow() bool { return s.gate.Load() != 0 }

// move changes the state; an illegal move is a bug of pgedge.
func (s *session) moveLocked(to sessionState) {
	for _, ok := range sessionMoves[s.state] {
		if ok == to {
			s.state = to
			return
		}
	}
	s.eng.bugf("session %s cannot move from state %d to %d", s.id, s.state, to)
}

// hold registers a socket of the login, so that a cut can interrupt it, and sets the login's deadline on it. It
// returns false when the session was cut already: the caller closes the socket.
func (s *session) hold(c net.Conn) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.cutNow() {
		return false
	}
	deadline := s.began.Add(s.eng.limits().LoginTimeout)
	if s.eng.logins.stopped.Load() {
		deadline = longAgo
	}
	c.SetDeadline(deadline)
	s.conns = append(s.conns, c)
	return true
}

func (s *session) letGo(c net.Conn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for i := range s.conns {
		if s.conns[i] == c {
			s.conns = append(s.conns[:i], s.conns[i+1:]...)
			return
		}
	}
}

// cut closes the gate for an order and says where the session stands, so that the caller can do what remains:
// a live session is ended by its loop, a login by its own goroutine, which this wakes.
func (s *session) cut(r Reason, f *revoke.Fact, o *order) sessionState {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closeGateLocked(r, f)
	if s.restsLocked() {
		s.advanceLocked(prCut)
	}
	if s.orders == nil {
		s.orders = o.alone[:] // one array for all sessions that have no other order
	} else {
		s.orders = append(s.orders[:len(s.orders):len(s.orders)], o)
	}
	o.add(s, s.stage)
	if s.state == stLogin {
		s.interruptLocked()
	}
	return s.state
}

// closeGateLocked shuts the gate; the first reason wins. The fact is stored first: who sees the gate sees the fact.
func (s *session) closeGateLocked(r Reason, f *revoke.Fact) {
	if s.gate.Load() == 0 {
		s.fact.Store(f)
		s.gate.Store(uint32(r))
	}
}

// interruptLogin makes a login's reads and writes fail, for a node that stops.
func (s *session) interruptLogin() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.interruptLocked()
}

func (s *session) interruptLocked() {
	for _, c := range s.conns {
		c.SetDeadline(longAgo)
	}
	if s.interrupt != nil {
		s.interrupt()
	}
}

// awaitWrite returns when a write of the login that had passed the gate has ended; its deadline is in the past.
func (s *session) awaitWrite() {
	s.wmu.Lock()
	defer s.wmu.Unlock()
}

// longAgo interrupts reads and writes in progress.
var longAgo = time.Unix(1, 0)

// advance records that the kill has come to stage, and tells every order that waits for it.
func (s *session) advance(to progress) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.advanceLocked(to)
}

func (s *session) advanceLocked(to progress) {
	from := s.stage
	if to <= from {
		return
	}
	s.stage = to
	for _, o := range s.orders {
		o.progressed(from, to)
	}
}

// conclude makes the result final. The session leaves the index: whatever comes later finds nothing of it.
func (s *session) conclude(edit func(*revoke.SessionReceipt)) {
	s.mu.Lock()
	if edit != nil {
		edit(s.resultLocked())
	}
	s.advanceLocked(prVerified)
	s.mu.Unlock()
	s.eng.forget(s)
}

// receipt returns the session's line of evidence.
func (s *session) receipt() revoke.SessionReceipt {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.result == nil {
		return revoke.SessionReceipt{}
	}
	return *s.result
}

// resultLocked makes room for evidence: 272 bytes that a session does without until it is killed.
func (s *session) resultLocked() *revoke.SessionReceipt {
	if s.result == nil {
		s.result = new(revoke.SessionReceipt)
	}
	return s.result
}

// describe fills what a receipt says about the session itself, once, when it is cut.
func (s *session) describeLocked(state string) {
	r := s.resultLocked()
	if r.ID != "" {
		return
	}
	r.ID = s.id
	r.Principal = s.identity.Principal
	r.Role = s.identity.Role
	r.Database = s.identity.Database
	r.Client = s.clientString()
	r.Application = s.application
	r.Since = s.began.UTC()
	r.BackendPID = s.key.PID
	r.BackendStart = s.start
	r.State = state
	r.Cut = "gate"
	r.Backend = "none"
	r.Xact = "unknown"
	r.SQLState = Reason(s.gate.Load()).SQLState()
}

func (s *session) clientString() string {
	if s.client == nil {
		return ""
	}
	if a := s.client.String(); a != "" && a != "@" {
		return a
	}
	return s.client.Network()
}
