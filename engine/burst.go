package engine

import (
	"runtime"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// A burst is a loop's run of messages that it relays without going back to gnet in between.
//
// gnet's loop asks its epoll descriptor twice per wake-up, without waiting and then with, and yields to the scheduler
// between the two; the yield wakes another thread, which finds nothing to do. With one query at a time on each of a few
// connections that came to 2 epoll_wait, 0.2 nanosleep and 0.3 futex calls per transaction, beside two reads and two
// writes. So, once gnet has called for one socket, the loop waits at the same descriptor itself and relays what comes,
// until there is anything that is gnet's to do: a task, a socket that closes, one that is paused. The descriptor is
// level-triggered, so whatever a burst leaves alone gnet finds when it asks again; only what announces tasks is not, and
// is announced once more. A task waits for no more than the message at hand, as in gnet's own loop.
const (
	// burstEvents is how many sockets a burst takes per wait. More find nobody to be faster for: the next wait returns
	// at once.
	burstEvents = 64
	// yieldEvery keeps the loop's goroutine below the 10 ms without a pause after which the runtime sends it a signal, and
	// takes its place away whenever it waits.
	yieldEvery = 5 * time.Millisecond
)

// burst is called at the end of a callback of gnet's, when nothing of that callback's connection is left unread.
func (l *loop) burst() {
	yielded := l.woken
	for !l.poller.tasksPending() {
		l.atWork.Store(false)
		n, err := unix.EpollWait(l.poller.epfd, l.events[:], -1)
		l.atWork.Store(true)
		if err != nil && err != unix.EINTR {
			return // gnet meets the same error
		}
		l.woken = l.now()
		left := false
		for i := range max(n, 0) {
			fd := int(l.events[i].Fd)
			if fd == l.poller.tasks || l.poller.tasksPending() { // in the latter case it may be further back in events
				l.poller.announce()
				return
			}
			if !l.pass(fd, l.events[i].Events) {
				left = true
			}
		}
		if left {
			return
		}
		if l.woken-yielded > int64(yieldEvery) {
			runtime.Gosched()
			yielded = l.woken
		}
	}
}

// pass relays what one socket has. It returns false for what is gnet's to do.
func (l *loop) pass(fd int, events uint32) bool {
	if fd >= len(l.sides) || events&^unix.EPOLLIN != 0 {
		return false
	}
	sd := l.sides[fd]
	if sd == nil || sd.phase != phRelay || sd.paused != 0 || sd.conn.InboundBuffered() > 0 {
		return false
	}
	defer l.eng.guard(sd.s)
	if !sd.s.mayPass() {
		return false
	}
	n, errno := receive(fd, l.inbound)
	switch {
	case n > 0:
		sd.s.relayed(sd, l.inbound[:n])
		return true
	case errno == unix.EAGAIN || errno == unix.EINTR:
		return true
	case errno != 0:
		// The socket has told it now; to gnet it would only say that its stream has ended.
		sd.fault = uint16(errno)
		sd.conn.EventLoop().Close(sd.conn)
		return true
	}
	return false // the end of the stream
}

// receive and transmit are for sockets that do not block: the scheduler, which would have to expect that, is not told. Of
// the ways to move bytes these have the least to do on theirs.
func receive(fd int, p []byte) (int, syscall.Errno) {
	return move(unix.SYS_RECVFROM, fd, p, unix.MSG_DONTWAIT)
}

func transmit(fd int, p []byte) (int, syscall.Errno) {
	return move(unix.SYS_SENDTO, fd, p, unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL)
}

func move(call uintptr, fd int, p []byte, flags uintptr) (int, syscall.Errno) {
	n, _, errno := unix.RawSyscall6(call, uintptr(fd), uintptr(unsafe.Pointer(unsafe.SliceData(p))), uintptr(len(p)), flags, 0, 0)
	if errno != 0 {
		return -1, errno
	}
	return int(n), 0
}
