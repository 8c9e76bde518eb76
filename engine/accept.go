package engine

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// listen opens "host:port", or "unix:DIR" for the socket that clients look for in DIR, or "unix:DIR:PORT".
func listen(ctx context.Context, addr string) (net.Listener, error) {
	dir, ok := strings.CutPrefix(addr, "unix:")
	if !ok {
		ln, err := (&net.ListenConfig{}).Listen(ctx, "tcp", addr)
		if err != nil {
			return nil, fmt.Errorf("cannot listen on %s: %w", addr, err)
		}
		return ln, nil
	}
	port := "5432"
	if i := strings.LastIndexByte(dir, ':'); i >= 0 {
		dir, port = dir[:i], dir[i+1:]
	}
	path := dir + "/.s.PGSQL." + port
	// A socket file left by a process that died keeps the address busy; one that answers belongs to somebody.
	if fi, err := os.Lstat(path); err == nil && fi.Mode()&os.ModeSocket != 0 {
		if c, err := net.DialTimeout("unix", path, time.Second); err == nil {
			c.Close()
			return nil, fmt.Errorf("cannot listen on %s: another process serves it", path)
		}
		if err := os.Remove(path); err != nil {
			return nil, fmt.Errorf("cannot remove the stale socket %s: %w", path, err)
		}
	}
	ln, err := (&net.ListenConfig{}).Listen(ctx, "unix", path)
	if err != nil {
		return nil, fmt.Errorf("cannot listen on %s: %w", path, err)
	}
	return ln, nil
}

// accept takes connections while there is room for their descriptors; the rest waits in the kernel's backlog.
func (e *Engine) accept(ln net.Listener) {
	backoff := time.Millisecond
	for {
		select {
		case e.slots <- struct{}{}:
		case <-e.done:
			return
		}
		conn, err := ln.Accept()
		if err != nil {
			<-e.slots
			if errors.Is(err, net.ErrClosed) {
				return
			}
			// EMFILE and its like: descriptors come back when sessions end. Never spin, never give up.
			e.log.Error("cannot accept", "address", ln.Addr().String(), "error", err)
			e.metrics.acceptErrors.Inc()
			select {
			case <-time.After(backoff):
			case <-e.done:
				return
			}
			backoff = min(2*backoff, time.Second)
			continue
		}
		backoff = time.Millisecond
		s := e.newSession(conn)
		if !e.logins.begin(s, func() { e.login(s, conn) }) {
			conn.Close()
			<-e.slots
			return
		}
	}
}

// ownAddr copies an address that enroll is going to change.
func ownAddr(a net.Addr) net.Addr {
	if tcp, ok := a.(*net.TCPAddr); ok {
		own := *tcp
		return &own
	}
	return a
}

func (e *Engine) newSession(conn net.Conn) *session {
	s := &session{eng: e, began: time.Now(), client: ownAddr(conn.RemoteAddr()), timerIndex: -1}
	s.front.init(s, true)
	s.back.init(s, false)
	return s
}

// loginSet holds the logins under way, those included that have not said who they are, so that Stop can interrupt and
// await them.
type loginSet struct {
	mu       sync.Mutex
	sessions map[*session]struct{}
	stopped  atomic.Bool // written under mu
	running  sync.WaitGroup
}

// begin runs a login on a goroutine of its own. It returns false when the engine stops.
func (ls *loginSet) begin(s *session, login func()) bool {
	ls.mu.Lock()
	defer ls.mu.Unlock()
	if ls.stopped.Load() {
		return false
	}
	ls.sessions[s] = struct{}{}
	ls.running.Go(func() {
		defer ls.end(s)
		login()
	})
	return true
}

func (ls *loginSet) end(s *session) {
	ls.mu.Lock()
	defer ls.mu.Unlock()
	delete(ls.sessions, s)
}

// stop makes reads and writes of all logins fail, also on sockets that they have yet to open.
func (ls *loginSet) stop() {
	ls.mu.Lock()
	defer ls.mu.Unlock()
	ls.stopped.Store(true)
	for s := range ls.sessions {
		s.interruptLogin()
	}
}

// admit takes one of the places of sessions; the caller is refused when there is none.
func (e *Engine) admit() bool {
	if e.admitted.Add(1) > int64(e.capacity.sessions) {
		e.admitted.Add(-1)
		return false
	}
	return true
}
