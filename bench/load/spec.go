// Package load opens Postgres sessions by the ten thousand and measures what happens to them. It speaks the wire
// protocol by itself, on raw sockets and epoll: an idle session costs about 200 bytes here and no goroutine, so that a
// small machine can hold the sessions and the programs under test.
package load

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// maxPerProcess leaves room below the 20,000 descriptors that one process may have on the reference machine.
	maxPerProcess = 18_000
	// perSource bounds the ports that one source address needs towards one node. A source address has 28,000, but the
	// kernel searches longer for a free one as they fill.
	perSource  = 2_000
	minSources = 8

	defaultLogins  = 64
	defaultTimeout = 30 * time.Second
)

// User is who logs in, and how many sessions they get. A server that trusts the user ignores the password.
type User struct {
	Name     string `json:"name"`
	Password string `json:"password,omitempty"`
	Sessions int    `json:"sessions"`
}

// Spec says which sessions to open. Session i goes to Addrs[i mod len(Addrs)]; the users follow each other in the order
// of Users.
type Spec struct {
	Addrs    []string `json:"addrs"` // IPv4 host:port
	Database string   `json:"database"`
	Users    []User   `json:"users"`
	// Logins is how many logins are in flight at most, over all processes. Default 64.
	Logins int `json:"logins,omitempty"`
	// Timeout is how long one login may take. Default 30 s.
	Timeout time.Duration `json:"timeout,omitempty"`
	// Processes is how many worker processes hold the sessions. 0: this process if they fit into it, else as many as
	// are needed. Bystanders belong into a process of their own, so that they do not wait for the work of others.
	Processes int `json:"-"`
	// Progress is called now and then with the number of sessions that are open. Never from two goroutines at a time.
	Progress func(open, total int) `json:"-"`

	// First and Count say which part of the sessions a worker opens.
	First int `json:"first,omitempty"`
	Count int `json:"count,omitempty"`
}

func (s *Spec) total() int {
	n := 0
	for _, u := range s.Users {
		n += u.Sessions
	}
	return n
}

func (s *Spec) normalize() error {
	if len(s.Addrs) == 0 || s.total() == 0 {
		return errors.New("load: no address or no session")
	}
	if s.Logins <= 0 {
		s.Logins = defaultLogins
	}
	if s.Timeout <= 0 {
		s.Timeout = defaultTimeout
	}
	return nil
}

// place is one address that sessions connect to.
type place struct {
	addr string
	sa   unix.SockaddrInet4
	// loopback addresses are reached from any of 127.0.0.0/8.
	loopback bool
}

func places(addrs []string) ([]place, error) {
	var ps []place
	for _, a := range addrs {
		ap, err := netip.ParseAddrPort(a)
		if err != nil || !ap.Addr().Is4() {
			return nil, fmt.Errorf("load: %q is not an IPv4 address and a port", a)
		}
		ps = append(ps, place{addr: a, sa: unix.SockaddrInet4{Port: int(ap.Port()), Addr: ap.Addr().As4()}, loopback: ap.Addr().IsLoopback()})
	}
	return ps, nil
}

// source is the k-th of n addresses from 127.0.0.2 on.
func source(k, n int) [4]byte {
	k = k%n + 2
	return [4]byte{127, 0, byte(k >> 8), byte(k)}
}

// monotonic is CLOCK_MONOTONIC in ns, which all processes of a machine share.
func monotonic() int64 {
	var ts unix.Timespec
	// The clock is always there.
	_ = unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts)
	return ts.Nano()
}

// ctxErr says why a context ended.
func ctxErr(ctx context.Context, what string) error {
	return fmt.Errorf("load: %s: %w", what, context.Cause(ctx))
}
