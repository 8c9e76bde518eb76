package load

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"time"

	"golang.org/x/sys/unix"
)

// logins is the schedule of a loop's logins.
type logins struct {
	total, begun, flying, failed int
	most                         int     // in flight at most
	rate                         float64 // per second; 0: as soon as fewer than most are in flight
	began                        int64
	timeout                      time.Duration
	first                        error // the first cause of a failure
	inFlight                     []flight
	who                          func(k int) (user, place int)
	// stopped: no further ones.
	stopped bool
}

// flight is one login's deadline. They expire in the order in which they began.
type flight struct {
	slot int
	gen  uint32
	at   int64
}

// dueAt is when the k-th login is meant to begin.
func (g *logins) dueAt(k int) int64 {
	if g.rate <= 0 {
		return 0
	}
	return g.began + int64(float64(k)/g.rate*1e9)
}

// ready reports whether one more login may begin as soon as it is due. A client of a storm keeps its slot until it leaves.
func (l *loop) ready() bool {
	g := &l.logins
	return !g.stopped && g.begun < g.total && g.flying < g.most && (l.storm == nil || len(l.storm.free) > 0)
}

func (l *loop) loginDue() int64 {
	g := &l.logins
	due := int64(math.MaxInt64)
	if l.ready() {
		due = max(g.dueAt(g.begun), 1)
	}
	if len(g.inFlight) > 0 {
		due = min(due, g.inFlight[0].at)
	}
	return due
}

func (l *loop) beginLogins() {
	g := &l.logins
	for l.ready() && g.dueAt(g.begun) <= l.now {
		slot := g.begun
		if l.storm != nil {
			slot = l.storm.takeSlot()
		}
		k := g.begun
		g.begun++
		g.flying++
		s := &l.slots[slot]
		user, place := g.who(k)
		*s = session{fd: -1, gen: s.gen + 1, user: int32(user), place: int32(place), state: stateConnecting, began: max(g.dueAt(k), 0)}
		if s.began == 0 {
			s.began = monotonic()
		}
		g.inFlight = append(g.inFlight, flight{slot, s.gen, l.now + int64(g.timeout)})
		if err := l.connect(slot, k); err != nil {
			l.failLogin(slot, fmt.Errorf("cannot connect to %s: %w", l.places[place].addr, err))
		}
	}
}

func (l *loop) connect(i, k int) error {
	s := &l.slots[i]
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	s.fd = int32(fd)
	to := &l.places[s.place]
	if err := unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1); err != nil {
		return err
	}
	if to.loopback {
		// The port is chosen at connect, where only the four addresses together must be unique.
		if err := unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_BIND_ADDRESS_NO_PORT, 1); err != nil {
			return err
		}
		if err := unix.Bind(fd, &unix.SockaddrInet4{Addr: source(k, l.sources)}); err != nil {
			return err
		}
	}
	if err := unix.Connect(fd, &to.sa); err != nil && err != unix.EINPROGRESS {
		return err
	}
	return l.watch(fd, i, s.gen, unix.EPOLLIN|unix.EPOLLOUT|unix.EPOLLRDHUP)
}

func (l *loop) expireLogins() {
	g := &l.logins
	for len(g.inFlight) > 0 {
		f := g.inFlight[0]
		s := &l.slots[f.slot]
		over := s.gen != f.gen || s.state != stateConnecting && s.state != stateGreeting
		if !over && f.at > l.now {
			return
		}
		g.inFlight = g.inFlight[1:]
		if !over {
			l.failLogin(f.slot, fmt.Errorf("a login took longer than %v", g.timeout))
		}
	}
}

func (l *loop) authenticate(i int, body []byte) {
	s := &l.slots[i]
	user := &l.users[s.user]
	if len(body) < 4 || s.state != stateGreeting {
		l.broken(i, errors.New("an Authentication message out of place"))
		return
	}
	code, data := binary.BigEndian.Uint32(body), body[4:]
	switch code {
	case authOK:
		s.scram = nil
	case authCleartext:
		l.write(i, message('p', []byte(user.Password), []byte{0}))
	case authSASL:
		if !bytes.Contains(data, []byte("SCRAM-SHA-256\x00")) {
			l.failLogin(i, fmt.Errorf("the server offers %q, not SCRAM-SHA-256", data))
			return
		}
		s.scram = new(scram)
		first := s.scram.begin()
		l.write(i, message('p', []byte("SCRAM-SHA-256\x00"), binary.BigEndian.AppendUint32(nil, uint32(len(first))), first))
	case authSASLContinue, authSASLFinal:
		if s.scram == nil {
			l.broken(i, errors.New("SCRAM goes on before it has begun"))
			return
		}
		if code == authSASLFinal {
			if err := s.scram.finish(data); err != nil {
				l.failLogin(i, err)
			}
			return
		}
		final, err := s.scram.proceed(l.keys, user.Name, user.Password, data)
		if err != nil {
			l.failLogin(i, err)
			return
		}
		l.write(i, message('p', final))
	default:
		l.failLogin(i, fmt.Errorf("the server asks for authentication of kind %d", code))
	}
}

func (l *loop) loggedIn(i int) {
	l.logins.flying--
	l.open++
	l.slots[i].state = stateIdle
	if l.storm != nil {
		l.stormLoggedIn(i)
	}
}

// failLogin ends a login. Without a storm the first failure is the end of all further ones.
func (l *loop) failLogin(i int, err error) {
	s := &l.slots[i]
	g := &l.logins
	g.flying--
	g.failed++
	if g.first == nil {
		g.first = fmt.Errorf("login of %s at %s: %w", l.users[s.user].Name, l.places[s.place].addr, err)
	}
	if s.fd >= 0 {
		l.drop(s)
	}
	s.state = stateClosed
	if l.storm != nil {
		l.storm.giveSlot(i)
		return
	}
	g.stopped = true
}
