package engine

import (
	"errors"
	"net"
	"time"
)

// errCut is what reads and writes of a login return once its gate is closed.
var errCut = errors.New("session was cut")

// wire is the only way bytes of a login reach or leave a socket. It checks the session's gate and the lease
// before every write, under the session's write lock, so that taking that lock once after closing the gate proves that
// nothing more can pass. After the login it is switched to buffers that a loop fills and empties, so that a
// tls.Conn on top of it goes on living without a goroutine.
type wire struct {
	s   *session
	raw net.Conn // *net.TCPConn or *net.UnixConn

	torn bool // a message was written in part: nothing can follow it

	// Loop mode only, owned by the loop.
	looped bool
	in     []byte // ciphertext to be read; aliases the loop's buffer during one callback, else owned
	out    []byte // ciphertext to be written
}

// emptyError is a temporary net.Error: crypto/tls keeps its state across it and can be asked again.
type emptyError struct{}

func (emptyError) Error() string   { return "no more bytes now" }
func (emptyError) Timeout() bool   { return false }
func (emptyError) Temporary() bool { return true }

func (w *wire) Read(p []byte) (int, error) {
	if w.looped {
		if len(w.in) == 0 {
			return 0, emptyError{}
		}
		n := copy(p, w.in)
		w.in = w.in[n:]
		return n, nil
	}
	if w.s.cutNow() {
		return 0, errCut
	}
	n, err := w.raw.Read(p)
	if err != nil && w.s.cutNow() {
		err = errCut
	}
	return n, err
}

func (w *wire) Write(p []byte) (int, error) {
	if w.looped {
		w.out = append(w.out, p...)
		return len(p), nil
	}
	return w.write(p, w.s.heedLease)
}

// greet writes what the client gets once it is admitted. From here on the client has a session, and a freeze is not the
// end of it.
func (w *wire) greet(p []byte) error {
	_, err := w.write(p, w.s.beGreeted)
	return err
}

// answer writes the one byte that an SSLRequest or GSSENCRequest gets. It says nothing of anybody, and a client that
// is refused because the lease has ended could not read why without it.
func (w *wire) answer(b byte) error {
	_, err := w.write([]byte{b}, func() {})
	return err
}

func (w *wire) write(p []byte, look func()) (int, error) {
	w.s.wmu.Lock()
	defer w.s.wmu.Unlock()
	look()
	if w.s.cutNow() {
		return 0, errCut
	}
	n, err := w.raw.Write(p)
	w.torn = w.torn || err != nil && n > 0
	return n, err
}

func (w *wire) Close() error                { return w.raw.Close() }
func (w *wire) LocalAddr() net.Addr         { return w.raw.LocalAddr() }
func (w *wire) RemoteAddr() net.Addr        { return w.raw.RemoteAddr() }
func (w *wire) SetDeadline(time.Time) error { return nil } // the login's own deadline covers everything
func (w *wire) SetReadDeadline(time.Time) error {
	return nil
}
func (w *wire) SetWriteDeadline(time.Time) error { return nil }
