package engine

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"time"

	"golang.org/x/sys/unix"

	"pgedge/codec"
)

// connectTimeout bounds the attempt at one host, so that a dead first host leaves time for the next.
const connectTimeout = 5 * time.Second

// link is a session's connection to its backend.
type link struct {
	wire   *wire
	tls    *tls.Conn // nil on a plain connection
	host   HostPort
	remote net.Addr // as connected; the control connection must reach this very address
	port   int      // our own TCP port: with the pid it identifies the backend; 0 on unix sockets
	broken bool     // the TLS stream cannot be read any more; owned by the loop
}

// noteError remembers an error that crypto/tls will repeat for ever, and lets go of what it has not read.
func (l *link) noteError(err error) (final bool) {
	var empty emptyError
	if err == nil || errors.As(err, &empty) {
		return false
	}
	l.broken, l.wire.in = true, nil
	return true
}

// Read and Write go through TLS where there is one, and always through the wire.
func (l *link) conn() net.Conn {
	if l.tls != nil {
		return l.tls
	}
	return l.wire
}

// dial connects s to the first host of u that answers, TLS included. Every socket it opens is held by the
// session, so that a cut interrupts it.
func (u *Upstream) dial(ctx context.Context, s *session) (*link, error) {
	var errs []error
	for i, host := range u.Hosts {
		l, err := u.dialHost(ctx, s, host, len(u.Hosts)-i)
		if err == nil {
			return l, nil
		}
		errs = append(errs, fmt.Errorf("cannot connect to %s: %w", host, err))
		if ctx.Err() != nil || s.cutNow() {
			break
		}
	}
	return nil, errors.Join(errs...)
}

// dialHost tries one host within its share of the time that is left for as many hosts.
func (u *Upstream) dialHost(ctx context.Context, s *session, host HostPort, hosts int) (*link, error) {
	within := connectTimeout
	if deadline, ok := ctx.Deadline(); ok {
		within = min(within, time.Until(deadline)/time.Duration(hosts))
	}
	dctx, cancel := context.WithTimeout(ctx, within)
	defer cancel()
	network, address := host.dialArgs()
	raw, err := (&net.Dialer{}).DialContext(dctx, network, address)
	if err != nil {
		return nil, err
	}
	if !s.hold(raw) {
		raw.Close()
		return nil, errCut
	}
	limitUnsent(raw)
	w := &wire{s: s, raw: raw}
	l := &link{wire: w, host: host, remote: ownAddr(raw.RemoteAddr())}
	if a, ok := raw.LocalAddr().(*net.TCPAddr); ok {
		l.port = a.Port
	}
	s.noteBackendPort(l.port)
	// A host that accepts and then says nothing must not take the time of the next one either.
	stop := context.AfterFunc(dctx, func() { raw.SetDeadline(longAgo) })
	if l.tls, err = u.negotiateTLS(dctx, w, host); err == nil && !stop() {
		err = context.Cause(dctx)
	}
	if err != nil {
		stop()
		s.letGo(raw)
		raw.Close()
		return nil, err
	}
	return l, nil
}

// unsentBytes is how much may wait in the kernel for a slow server: what has been handed over can no longer be cut
// off by the gate, only with the backend.
const unsentBytes = 128 << 10

func limitUnsent(c net.Conn) {
	tc, ok := c.(*net.TCPConn)
	if !ok {
		return
	}
	if rc, err := tc.SyscallConn(); err == nil {
		rc.Control(func(fd uintptr) {
			unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_NOTSENT_LOWAT, unsentBytes)
		})
	}
}

// negotiateTLS asks for TLS as sslmode wants it. Exactly one byte is read before the handshake: anything a
// man in the middle slipped in behind it fails the handshake instead of being taken for the server's.
func (u *Upstream) negotiateTLS(ctx context.Context, conn net.Conn, host HostPort) (*tls.Conn, error) {
	cfg := u.tlsConfig(host)
	if cfg == nil {
		return nil, nil
	}
	if _, err := conn.Write(codec.AppendSSLRequest(nil)); err != nil {
		return nil, err
	}
	var answer [1]byte
	if _, err := io.ReadFull(conn, answer[:]); err != nil {
		return nil, fmt.Errorf("cannot read the answer to SSLRequest: %w", err)
	}
	switch {
	case answer[0] == 'S':
		tc := tls.Client(conn, cfg)
		if err := tc.HandshakeContext(ctx); err != nil {
			return nil, fmt.Errorf("cannot agree on TLS: %w", err)
		}
		return tc, nil
	case answer[0] == 'N' && u.sslMode() == "prefer":
		return nil, nil
	case answer[0] == 'N':
		return nil, fmt.Errorf("the server does not support TLS, but sslmode is %s", u.sslMode())
	default:
		return nil, errors.New("the server does not understand SSLRequest")
	}
}

// sendCancel asks the server at the very address of l to cancel what the backend with key runs, and waits until
// the server has taken note, which it shows by closing the connection.
func (u *Upstream) sendCancel(ctx context.Context, l *link, key codec.CancelKey) error {
	raw, err := (&net.Dialer{}).DialContext(ctx, l.remote.Network(), l.remote.String())
	if err != nil {
		return fmt.Errorf("cannot connect for a cancel request: %w", err)
	}
	defer raw.Close()
	if deadline, ok := ctx.Deadline(); ok {
		raw.SetDeadline(deadline)
	}
	var conn net.Conn = raw
	if l.tls != nil {
		tc, err := u.negotiateTLS(ctx, raw, l.host)
		if err != nil {
			return err
		}
		if tc != nil {
			conn = tc
		}
	}
	if _, err := conn.Write(codec.AppendCancelRequest(nil, key)); err != nil {
		return fmt.Errorf("cannot send a cancel request: %w", err)
	}
	_, err = io.CopyN(io.Discard, conn, 1)
	if errors.Is(err, io.EOF) {
		err = nil
	}
	return err
}
