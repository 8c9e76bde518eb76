package engine

import (
	"github.com/panjf2000/gnet/v2"
	"golang.org/x/sys/unix"

	"pgedge/codec"
)

// sidePhase says what happens to bytes of one side. Owned by the loop.
type sidePhase uint8

const (
	phNew    sidePhase = iota // not opened by the loop yet
	phRelay                   // bytes go to the other side
	phCut                     // the gate is closed; input is dropped, nothing is written
	phFlush                   // what is buffered is still written out; input is dropped
	phDrain                   // nothing is written any more; input is dropped until the peer closes or time is up
	phClosed                  // terminal
)

// pauseSet is why a side is not read. Reading goes on when the set is empty.
type pauseSet uint8

const (
	pauseJoining pauseSet = 1 << iota // the other side is not open yet
	pausePeer                         // the other side takes its bytes too slowly
	pauseFrozen                       // the lease has ended
)

// Marks of the bytes buffered for a slow peer. With 256 KiB a fast peer never notices a pause, and a stalled one
// costs at most that and one read buffer.
const (
	highMarkBytes = 256 << 10
	lowMarkBytes  = 64 << 10
)

// side is one socket of a session. All fields are owned by the loop once enrolled.
type side struct {
	s       *session
	isFront bool
	phase   sidePhase
	paused  pauseSet
	watched bool // the engine's drainWatch looks out for its socket
	deaf    bool // the loop does not watch its socket for input
	heldLen uint8
	fault   uint16 // errno with which reading from the socket has failed; 0: none
	scan    codec.Scanner
	unsent  int32     // bytes that were buffered for this side when it was cut, not much over highMarkBytes; they must never move
	conn    gnet.Conn // nil while not open
	ahead   []byte    // read and not passed on yet, during the login or while frozen; relayed first
	held    [8]byte   // the first heldLen bytes of a message that cannot be judged yet
	until   int64     // ns since engine start; how long this side may still take to close; 0: no limit
}

func (sd *side) init(s *session, isFront bool) {
	sd.s, sd.isFront = s, isFront
	dir := codec.FromBackend
	if isFront {
		dir = codec.FromFrontend
	}
	sd.scan = codec.NewScanner(dir)
}

func (sd *side) peer() *side {
	if sd.isFront {
		return &sd.s.back
	}
	return &sd.s.front
}

func (sd *side) open() bool { return sd.conn != nil }

// buffered is how much gnet holds for this side's socket.
func (sd *side) buffered() int {
	if sd.conn == nil {
		return 0
	}
	return sd.conn.OutboundBuffered()
}

func (sd *side) pause(why pauseSet) {
	if sd.paused == 0 {
		sd.s.eng.metrics.pausedSides.Add(1)
	}
	sd.paused |= why
	sd.arm()
}

// resume reads on, beginning with what was left unread.
func (sd *side) resume(why pauseSet) {
	if sd.paused == 0 {
		return
	}
	sd.paused &^= why
	if sd.paused != 0 {
		sd.arm()
		return
	}
	sd.s.eng.metrics.pausedSides.Add(-1)
	if sd.conn == nil {
		return
	}
	sd.arm()
	if sd.phase == phRelay && sd.conn.InboundBuffered() > 0 {
		sd.s.relay(sd)
	}
}

// write hands p to the socket. What the socket does not take waits in gnet's buffer until drained writes it out. An
// error closes the connection, which ends the session.
func (sd *side) write(p []byte) {
	before := sd.buffered()
	if before == 0 {
		n, _ := transmit(sd.conn.Fd(), p)
		if n == len(p) {
			return
		}
		p = p[max(n, 0):] // and gnet meets whatever else is the matter
	}
	sd.conn.Write(p)
	if sd.buffered() > 0 {
		sd.s.backlog.Store(true)
	}
	if before == 0 && sd.buffered() > 0 {
		sd.arm() // gnet has armed reading and writing
		sd.watch()
	}
}

// arm sets what the loop's epoll watches this socket for. gnet has no pause; its own interest set is changed behind
// its back, which its level-triggered mode takes well. EPOLLOUT is never among it: gnet would write out its buffer
// before it calls anybody, so nobody could look at the lease; drained writes instead. gnet itself arms both when it
// could not write everything, and reading when it could: whoever calls Write or Flush arms again in the same callback.
func (sd *side) arm() {
	if sd.conn == nil {
		return
	}
	var ev uint32
	switch sd.phase {
	case phRelay, phNew:
		switch {
		case sd.paused == 0:
			ev = unix.EPOLLIN | unix.EPOLLPRI
		case sd.paused&pauseFrozen != 0 && sd.isFront:
			ev = unix.EPOLLRDHUP // a client that leaves a frozen session is not waited for
		}
	case phFlush, phDrain:
		ev = unix.EPOLLIN | unix.EPOLLPRI
	case phCut, phClosed:
	}
	sd.deaf = ev&unix.EPOLLIN == 0
	sd.s.loop.setInterest(sd.conn.Fd(), ev)
}

// listen sees to it that the socket is read in a phase that drops what comes. A socket that is watched already, which is
// the rule, costs no system call.
func (sd *side) listen() {
	if sd.deaf {
		sd.arm()
	}
}

// drop closes the socket without writing anything that is still buffered: gnet's close would flush it. The peer
// gets a reset and learns that the stream is not whole.
func (sd *side) drop() {
	if sd.conn == nil {
		return
	}
	sd.seal()
	sd.conn.EventLoop().Close(sd.conn)
}

// seal makes it impossible to write to the socket; closing it resets the connection.
func (sd *side) seal() {
	fd := sd.conn.Fd()
	unix.SetsockoptLinger(fd, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1})
	unix.Shutdown(fd, unix.SHUT_WR)
}

// close ends the socket in the ordinary way, unless it was cut: then what is buffered must not go out.
func (sd *side) close() {
	if sd.unsent > 0 && sd.phase == phCut {
		sd.drop()
	} else if sd.conn != nil {
		sd.conn.EventLoop().Close(sd.conn)
	}
}

// finish writes out what is buffered and then closes, politely: input that is still coming does not turn the close
// into a reset. A reset would destroy what the client is told, and would make Postgres drop what it has been sent and
// has not come to, which it carries out for a client that closes its half of the stream.
func (sd *side) finish() {
	switch {
	case sd.conn == nil:
	case sd.conn.OutboundBuffered() > 0:
		sd.phase = phFlush
		sd.arm()
		sd.watch()
		sd.linger(sd.s.eng.timeouts().Drain)
	default:
		sd.phase = phDrain
		unix.Shutdown(sd.conn.Fd(), unix.SHUT_WR)
		sd.listen()
		if sd.isFront {
			sd.linger(lingerTime)
		} else {
			sd.linger(sd.s.eng.timeouts().Drain)
		}
	}
}
