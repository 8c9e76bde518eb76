package engine

import (
	"container/heap"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"runtime"
	"sync/atomic"
	"time"

	"github.com/panjf2000/gnet/v2"
	"golang.org/x/sys/unix"
)

// loop is what pgedge keeps per gnet event loop. Everything but post and count is used on the loop only.
type loop struct {
	eng *Engine
	el  gnet.EventLoop
	poller
	count atomic.Int64
	next  atomic.Int64 // ns since engine start at which the clock posts a tick; 0: never

	// atWork is set while anything of pgedge's runs on the loop: whatever looks at a gate or writes does so meanwhile. It
	// is what session.restsLocked goes by.
	atWork atomic.Bool
	depth  int // callbacks and tasks that run, one inside the other

	sessions map[*session]struct{}
	timers   timerHeap
	woken    int64   // ns since engine start when the callback, task or wait of now began
	sides    []*side // by descriptor
	events   [burstEvents]unix.EpollEvent
	inbound  []byte // what a burst reads into; valid during one message
	scratch  []byte // plaintext of TLS, and messages put together; valid during one callback
}

const readBufferBytes = 64 << 10

// enter and leave are at both ends of everything that gnet calls. gnet closes a connection inside a callback of another.
func (l *loop) enter() {
	if l.depth++; l.depth == 1 {
		l.atWork.Store(true)
	}
}

func (l *loop) leave() {
	if l.depth--; l.depth == 0 {
		l.atWork.Store(false)
	}
}

// post runs f on the loop. It is the only way in. A panic in it ends nothing but f.
func (l *loop) post(f func()) {
	err := l.el.Execute(context.Background(), gnet.RunnableFunc(func(context.Context) error {
		l.enter()
		defer l.leave()
		defer l.eng.guard(nil)
		l.woken = l.now()
		f()
		return nil
	}))
	if err != nil && !l.eng.draining.Load() {
		l.eng.bugf("cannot post to a loop: %v", err)
	}
}

// defaultLoops is one for each two processors. A loop moves about 50,000 queries and answers per second, and the fewer
// loops carry the sessions, the more of them each wake-up finds ready: with 64 clients on two processors one loop takes
// a tenth less time per transaction than two. The other processors are for the kernel's part, logins and the cluster.
func defaultLoops() int { return max(1, runtime.GOMAXPROCS(0)/2) }

// startLoops starts gnet without a listener of its own: its accept ends the whole engine when descriptors run out.
// One socket pair per loop tells which loops there are and proves that their epoll descriptors can be reached.
//
// A loop that waits in epoll keeps its place among the GOMAXPROCS that may run Go code, for up to 10 ms. There is one
// place more than there are loops, so that a revocation that comes in does not wait for one to be taken away.
func (e *Engine) startLoops() error {
	n := e.cfg.Loops
	if n <= 0 {
		n = defaultLoops()
	}
	if runtime.GOMAXPROCS(0) <= n {
		runtime.GOMAXPROCS(n + 1)
	}
	var err error
	e.client, err = gnet.NewClient(&handler{eng: e}, gnet.WithNumEventLoop(n), gnet.WithLogger(gnetLogger{e.log}),
		gnet.WithReadBufferCap(readBufferBytes), gnet.WithWriteBufferCap(readBufferBytes), gnet.WithTicker(false))
	if err != nil {
		return fmt.Errorf("cannot create the event loops: %w", err)
	}
	if err := e.client.Start(); err != nil {
		return fmt.Errorf("cannot start the event loops: %w", err)
	}
	if e.drains, err = newDrainWatch(); err != nil {
		return err
	}
	found := make(map[gnet.EventLoop]gnet.Conn)
	defer func() {
		for _, c := range found {
			c.Close()
		}
	}()
	for range n {
		c, err := e.enrollProbe()
		if err != nil {
			return fmt.Errorf("cannot reach the event loops: %w", err)
		}
		el := c.EventLoop()
		if found[el] != nil {
			return errors.New("cannot reach the event loops: gnet gave the same one twice")
		}
		found[el] = c
		p, err := reachPoller(c)
		if err != nil {
			return err
		}
		l := &loop{eng: e, el: el, poller: p, inbound: make([]byte, readBufferBytes), sessions: make(map[*session]struct{}), scratch: make([]byte, readBufferBytes)}
		if err := l.checkPoller(); err != nil {
			return err
		}
		e.loops = append(e.loops, l)
	}
	e.clock = newClock(e)
	e.looping.Store(true)
	go e.clock.run()
	e.background.Go(e.drains.run)
	return nil
}

// running are the loops, none while they are being started. The cluster follows the lease from before that on; there is
// no session yet whose loop would have to be told.
func (e *Engine) running() []*loop {
	if !e.looping.Load() {
		return nil
	}
	return e.loops
}

// enrollProbe gives gnet one end of a socket pair; the other is closed, which ends both.
func (e *Engine) enrollProbe() (gnet.Conn, error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	file := os.NewFile(uintptr(fds[0]), "probe")
	conn, err := net.FileConn(file)
	file.Close()
	if err != nil {
		unix.Close(fds[1])
		return nil, err
	}
	c, err := e.client.EnrollContext(conn, probe(fds[1]))
	if err != nil {
		unix.Close(fds[1])
	}
	return c, err
}

// probe is the context of a probe's connection: the descriptor of its other end.
type probe int

// know makes sd the side of a descriptor, nil none.
func (l *loop) know(fd int, sd *side) {
	if fd >= len(l.sides) {
		l.sides = append(l.sides, make([]*side, fd+1-len(l.sides))...)
	}
	l.sides[fd] = sd
}

// pickLoop balances by sessions, so that both sockets of a pair live on one loop.
func (e *Engine) pickLoop() *loop {
	best := e.loops[0]
	for _, l := range e.loops[1:] {
		if l.count.Load() < best.count.Load() {
			best = l
		}
	}
	return best
}

func (l *loop) now() int64 { return int64(time.Since(l.eng.epoch)) }

// wakeAt makes sure that a tick comes at the given time or before.
func (l *loop) wakeAt(at int64) {
	if cur := l.next.Load(); cur == 0 || at < cur {
		l.next.Store(at)
		l.eng.clock.poke()
	}
}

// tick is posted by the clock.
func (l *loop) tick() {
	now := l.now()
	for len(l.timers) > 0 && l.timers[0].due <= now {
		s := l.timers[0]
		heap.Pop(&l.timers)
		s.onTimer(now)
	}
	if len(l.timers) > 0 {
		l.wakeAt(l.timers[0].due)
	}
}
