package engine

import (
	"fmt"
	"os"
	"sync"

	"golang.org/x/sys/unix"
)

// drainWatch tells a loop when the socket of a slow peer takes bytes again. gnet would write its outbound buffers by
// itself, without a look at the lease, and calls nobody when one has drained; so the few sockets that have something
// buffered are watched by an epoll descriptor of our own instead. It costs nothing while a peer sleeps, and nothing is
// polled.
type drainWatch struct {
	epfd int
	file *os.File // the same descriptor, for the runtime's poller: waiting for it holds no thread

	mu    sync.Mutex
	sides map[int]*side // by descriptor
}

func newDrainWatch() (*drainWatch, error) {
	epfd, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("cannot watch for drained sockets: %w", err)
	}
	if err := unix.SetNonblock(epfd, true); err != nil {
		unix.Close(epfd)
		return nil, fmt.Errorf("cannot watch for drained sockets: %w", err)
	}
	return &drainWatch{epfd: epfd, file: os.NewFile(uintptr(epfd), "drains"), sides: make(map[int]*side)}, nil
}

// arm asks for one call of sd.drained on its loop, as soon as its socket takes bytes. The kernel forgets a socket that
// is closed.
func (d *drainWatch) arm(sd *side) {
	fd := sd.conn.Fd()
	d.mu.Lock()
	defer d.mu.Unlock()
	d.sides[fd] = sd
	ev := unix.EpollEvent{Fd: int32(fd), Events: unix.EPOLLOUT | unix.EPOLLONESHOT}
	err := unix.EpollCtl(d.epfd, unix.EPOLL_CTL_MOD, fd, &ev)
	if err == unix.ENOENT {
		err = unix.EpollCtl(d.epfd, unix.EPOLL_CTL_ADD, fd, &ev)
	}
	if err != nil {
		sd.s.eng.bugf("cannot watch for a drained socket: %v", err)
	}
}

// forget is called when a watched socket closes; the kernel has no event for it any more.
func (d *drainWatch) forget(fd int, sd *side) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.sides[fd] == sd {
		delete(d.sides, fd)
	}
}

// run serves until close. An event for a descriptor that has meanwhile been given to another side is harmless: drained
// looks at what is so.
func (d *drainWatch) run() {
	rc, err := d.file.SyscallConn()
	if err != nil {
		return
	}
	// Read parks the goroutine until the epoll descriptor itself is readable.
	events := make([]unix.EpollEvent, 64)
	for {
		n := 0
		err := rc.Read(func(fd uintptr) bool {
			n, err = unix.EpollWait(int(fd), events, 0)
			return n > 0
		})
		if err != nil {
			return // closed
		}
		d.mu.Lock()
		for _, ev := range events[:max(n, 0)] {
			sd := d.sides[int(ev.Fd)]
			delete(d.sides, int(ev.Fd))
			if sd != nil {
				sd.s.loop.post(sd.drained)
			}
		}
		d.mu.Unlock()
	}
}

func (d *drainWatch) close() {
	if d != nil {
		d.file.Close()
	}
}

// watch asks to be told when this side's socket takes bytes. Owned by the loop, like drained.
func (sd *side) watch() {
	if !sd.watched && sd.conn != nil {
		sd.watched = true
		sd.s.eng.drains.arm(sd)
	}
}

// drained writes out what is buffered, if the lease allows it, and lets go on what waited for it. Nothing else writes
// out what has been buffered; a thaw asks for it again.
func (sd *side) drained() {
	sd.watched = false
	if sd.conn == nil || sd.phase != phRelay && sd.phase != phFlush || sd.s.cutNow() || !sd.s.mayPass() {
		return
	}
	if sd.buffered() > 0 {
		sd.conn.Flush() // an error closes the connection, which ends the session
		if sd.conn == nil {
			return
		}
		sd.arm() // gnet arms reading when it has written everything
	}
	switch {
	case sd.phase == phFlush && sd.buffered() == 0:
		sd.finish()
		return
	case sd.phase == phRelay && sd.buffered() <= lowMarkBytes:
		sd.peer().resume(pausePeer)
	}
	if sd.buffered() > 0 {
		sd.watch()
	} else if sd.peer().buffered() == 0 {
		sd.s.backlog.Store(false)
	}
}
