package load

import (
	"errors"
	"fmt"
	"math"
	"os"
	"runtime"
	"sync"

	"golang.org/x/sys/unix"
)

const (
	readBytes = 64 << 10
	maxEvents = 256

	// Slots that are no sessions, in the data of an epoll event.
	wakeSlot  = -1
	timerSlot = -2
)

var errClosed = errors.New("load: the sessions are closed")

// loop drives sessions from one goroutine on a thread of its own. Everything but post, do and done belongs to it.
type loop struct {
	ep, wake, timer int
	buf             []byte
	now             int64 // CLOCK_MONOTONIC when epoll last returned
	armed           int64 // when the timer fires; 0: never

	database string
	places   []place
	sources  int
	slots    []session
	users    []User // without their numbers
	keys     scramKeys
	texts    map[serverError]*serverError // errors that were seen, each once

	logins logins
	asks   asks
	storm  *storm // nil: sessions stay open
	open   int    // sessions that have logged in and not ended
	ended  int    // sessions that have logged in and were ended by the other side
	// onOpen and onEnd are called on the loop when the numbers have changed, at most once per batch of events.
	onOpen, onEnd func(n int)
	// settled is called once, when no login is under way any more: all have succeeded, or err is the first cause.
	settled func(err error)

	mu     sync.Mutex
	posted []func()
	shut   bool // nothing is taken any more
	done   chan struct{}
}

func newLoop(slots, sources int) (*loop, error) {
	l := &loop{buf: make([]byte, readBytes), slots: make([]session, slots), sources: sources, keys: make(scramKeys),
		texts: make(map[serverError]*serverError), done: make(chan struct{}), onOpen: func(int) {}, onEnd: func(int) {}}
	for i := range l.slots {
		l.slots[i].fd = -1
	}
	var err1, err2, err3 error
	l.ep, err1 = unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	l.wake, err2 = unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	l.timer, err3 = unix.TimerfdCreate(unix.CLOCK_MONOTONIC, unix.TFD_CLOEXEC|unix.TFD_NONBLOCK)
	err := errors.Join(err1, err2, err3)
	if err == nil {
		err = errors.Join(l.watch(l.wake, wakeSlot, 0, unix.EPOLLIN), l.watch(l.timer, timerSlot, 0, unix.EPOLLIN))
	}
	if err != nil {
		l.release()
		return nil, fmt.Errorf("load: cannot make an event loop: %w", err)
	}
	return l, nil
}

// watch is edge-triggered: neither the wake-up nor the timer is ever read.
func (l *loop) watch(fd, slot int, gen uint32, events uint32) error {
	return unix.EpollCtl(l.ep, unix.EPOLL_CTL_ADD, fd, &unix.EpollEvent{Events: events | unix.EPOLLET, Fd: int32(slot), Pad: int32(gen)})
}

func (l *loop) release() {
	for _, fd := range []int{l.ep, l.wake, l.timer} {
		if fd > 0 {
			unix.Close(fd)
		}
	}
}

// post runs f on the loop. It reports false when the loop has ended.
func (l *loop) post(f func()) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.shut {
		return false
	}
	l.posted = append(l.posted, f)
	// The counter of an eventfd does not overflow in a lifetime.
	_, _ = unix.Write(l.wake, []byte{1, 0, 0, 0, 0, 0, 0, 0})
	return true
}

// do runs f on the loop and waits for it.
func (l *loop) do(f func()) error {
	ran := make(chan struct{})
	if !l.post(func() { f(); close(ran) }) {
		return errClosed
	}
	<-ran
	return nil
}

// close ends all sessions as a client does, and the loop.
func (l *loop) close() {
	l.post(func() {
		for i := range l.slots {
			l.leave(i)
		}
		l.mu.Lock()
		l.shut = true
		l.mu.Unlock()
	})
	<-l.done
}

// run is the loop. It ends after close; what was posted before that has run.
func (l *loop) run() {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	defer close(l.done)
	defer l.release()
	events := make([]unix.EpollEvent, maxEvents)
	for {
		l.arm()
		n, err := unix.EpollWait(l.ep, events, -1)
		if err != nil && err != unix.EINTR {
			panic(os.NewSyscallError("epoll_wait", err)) // a bad descriptor: our own mistake
		}
		l.now = monotonic()
		open, ended, wake := l.open, l.ended, false
		for _, ev := range events[:max(n, 0)] {
			switch {
			case ev.Fd == wakeSlot:
				wake = true
			case ev.Fd == timerSlot:
				l.armed = 0
			default:
				l.event(int(ev.Fd), uint32(ev.Pad), ev.Events)
			}
		}
		if wake && !l.runPosted() {
			return
		}
		l.tick()
		if l.ended != ended {
			l.onEnd(l.ended)
		}
		if l.open != open {
			l.onOpen(l.open)
		}
		if g := &l.logins; l.settled != nil && g.flying == 0 && (g.begun == g.total || g.stopped) {
			l.settled(g.first)
			l.settled = nil
		}
	}
}

func (l *loop) runPosted() bool {
	l.mu.Lock()
	fs := l.posted
	l.posted = nil
	l.mu.Unlock()
	for _, f := range fs {
		f()
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	return !l.shut
}

// tick does what is due.
func (l *loop) tick() {
	l.beginLogins()
	l.expireLogins()
	l.askDue()
	if l.storm != nil {
		l.stormTick()
	}
}

// arm sets the timer to the next thing that is due.
func (l *loop) arm() {
	due := min(l.loginDue(), l.asks.due())
	if due == math.MaxInt64 {
		due = 0
	}
	if due == l.armed {
		return
	}
	l.armed = due
	// A time that has passed fires at once; zero disarms.
	if err := unix.TimerfdSettime(l.timer, unix.TFD_TIMER_ABSTIME, &unix.ItimerSpec{Value: unix.NsecToTimespec(due)}, nil); err != nil {
		panic(os.NewSyscallError("timerfd_settime", err))
	}
}
