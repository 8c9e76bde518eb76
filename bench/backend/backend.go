// Package backend plays a Postgres server for benchmarks that need more sessions than a machine can hold server
// processes. A session costs one goroutine and a few KiB. It believes every login, answers trivial statements, sleeps,
// and keeps its promises about what pgedge asks of a server: a session that is told to terminate ends with the error that
// Postgres gives, and the list of sessions says the truth. It stores nothing. What it does not know it refuses, and
// reports, so that no measurement rests on an answer that was made up.
package backend

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"sync"
	"time"
)

// Version is what the server says it is. It begins like a Postgres that pgedge knows.
const Version = "15.0 (bench backend)"

// Server is one such server. Make it with New.
type Server struct {
	unknown func(statement string)
	started time.Time

	mu     sync.Mutex
	last   uint32 // newest process id given
	byPID  map[uint32]*conn
	byRole map[string]map[*conn]struct{}

	work sync.WaitGroup
}

// New makes a server. unknown, which must not block, is told each statement that the server has refused because it does
// not know it.
func New(unknown func(statement string)) *Server {
	return &Server{unknown: unknown, started: time.Now().Truncate(time.Microsecond), last: firstPID,
		byPID: make(map[uint32]*conn), byRole: make(map[string]map[*conn]struct{})}
}

// firstPID is where process ids begin. Real ones are as large, and they never repeat here: a server does not live
// through four billion logins.
const firstPID = 100

// Serve takes connections from l until ctx ends, and then ends them all. It closes l.
func (s *Server) Serve(ctx context.Context, l net.Listener) error {
	stop := context.AfterFunc(ctx, func() { l.Close() })
	defer stop()
	defer s.work.Wait()
	defer s.endAll()
	for {
		nc, err := l.Accept()
		if err != nil {
			if ctx.Err() != nil || errors.Is(err, net.ErrClosed) {
				return nil
			}
			return fmt.Errorf("cannot accept: %w", err)
		}
		s.work.Go(func() { s.serve(nc.(*net.TCPConn)) })
	}
}

// Sessions is how many sessions there are, those of the control role included.
func (s *Server) Sessions() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.byPID)
}

// enter makes a connection whose startup packet has been read one of the server's sessions.
func (s *Server) enter(c *conn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.last++
	c.pid = s.last
	s.byPID[c.pid] = c
	set := s.byRole[c.role]
	if set == nil {
		set = make(map[*conn]struct{}, 1)
		s.byRole[c.role] = set
	}
	set[c] = struct{}{}
}

// leave is called before the socket is closed, as Postgres does it.
func (s *Server) leave(c *conn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.byPID, c.pid)
	set := s.byRole[c.role]
	delete(set, c)
	if len(set) == 0 {
		delete(s.byRole, c.role)
	}
}

func (s *Server) find(pid uint32) *conn {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.byPID[pid]
}

func (s *Server) ofRole(role string) []*conn {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := make([]*conn, 0, len(s.byRole[role]))
	for c := range s.byRole[role] {
		out = append(out, c)
	}
	return out
}

func (s *Server) endAll() {
	s.mu.Lock()
	all := make([]*conn, 0, len(s.byPID))
	for _, c := range s.byPID {
		all = append(all, c)
	}
	s.mu.Unlock()
	for _, c := range all {
		c.terminate()
	}
}

// timestamp prints a time as Postgres does with DateStyle ISO and TimeZone UTC.
func timestamp(t time.Time) string {
	return t.UTC().Format("2006-01-02 15:04:05.999999") + "+00"
}

// oneLine makes statements comparable that differ in white space only.
func oneLine(sql string) string { return strings.Join(strings.Fields(sql), " ") }
