package engine

import (
	"encoding/binary"
	"fmt"
	"reflect"
	"sync/atomic"
	"unsafe"

	"github.com/panjf2000/gnet/v2"
	"golang.org/x/sys/unix"
)

// poller is what a loop knows of gnet's own: gnet cannot be told to stop reading from a socket, nor asked whether it has
// anything to do.
type poller struct {
	epfd    int    // its epoll descriptor
	tasks   int    // the eventfd that announces tasks to it; edge-triggered
	pending *int32 // not 0 from when a task is queued until gnet has run what there was; atomic
}

// reachPoller finds the poller of c's loop. Reading unexported integers by reflection is legal; that they are still where
// they were is proven by watching the probe's socket, and the eventfd, through the epoll descriptor, and by checkPoller.
func reachPoller(c gnet.Conn) (p poller, err error) {
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("this version of gnet keeps its poller elsewhere: %v", r)
		}
	}()
	v := reflect.ValueOf(c).Elem().FieldByName("loop").Elem().FieldByName("poller").Elem()
	p = poller{epfd: int(v.FieldByName("fd").Int()), tasks: int(v.FieldByName("efd").Int()),
		pending: (*int32)(unsafe.Pointer(v.FieldByName("wakeupCall").Addr().UnsafePointer()))}
	for fd, events := range map[int]uint32{c.Fd(): unix.EPOLLIN | unix.EPOLLPRI, p.tasks: unix.EPOLLIN | unix.EPOLLPRI | unix.EPOLLRDHUP | unix.EPOLLET} {
		if err := unix.EpollCtl(p.epfd, unix.EPOLL_CTL_MOD, fd, &unix.EpollEvent{Fd: int32(fd), Events: events}); err != nil {
			return p, fmt.Errorf("this version of gnet keeps its epoll descriptor elsewhere: %w", err)
		}
	}
	return p, nil
}

// checkPoller proves that tasksPending says while a task runs that there is one. The loop has nothing else to do yet. The
// task waits until it has been announced: a loop that is looking for tasks anyway may begin with it before.
func (l *loop) checkPoller() error {
	posted, seen := make(chan struct{}), make(chan bool, 1)
	l.post(func() {
		<-posted
		seen <- l.poller.tasksPending()
	})
	close(posted)
	if !<-seen {
		return fmt.Errorf("this version of gnet counts its tasks elsewhere")
	}
	return nil
}

// tasksPending tells that gnet has tasks to run, or is about to be told of one. It may be called from any goroutine.
func (p *poller) tasksPending() bool { return atomic.LoadInt32(p.pending) != 0 }

// announce makes gnet look for tasks when it next asks its epoll descriptor, whatever became of earlier announcements.
// gnet does not read its eventfd either, until the sum in it is as large as it can be.
func (p *poller) announce() {
	var n [8]byte
	binary.NativeEndian.PutUint64(n[:], 1)
	for {
		if _, err := unix.Write(p.tasks, n[:]); err != unix.EAGAIN && err != unix.EINTR {
			return
		}
		var sum [8]byte
		unix.Read(p.tasks, sum[:])
	}
}

func (l *loop) setInterest(fd int, events uint32) {
	ev := unix.EpollEvent{Fd: int32(fd), Events: events}
	if err := unix.EpollCtl(l.poller.epfd, unix.EPOLL_CTL_MOD, fd, &ev); err != nil {
		l.eng.bugf("cannot change what epoll watches: %v", err)
	}
}
