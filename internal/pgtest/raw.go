package pgtest

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgproto3"

	"pgedge/internal/pgserver"
)

// Raw is a client that speaks the wire protocol message by message, or byte by byte. It belongs to one goroutine.
// Every read and write has a deadline of Patience and fails the test when it passes.
type Raw struct {
	tb   testing.TB
	conn net.Conn
	in   *countingReader // what fe reads from
	fe   *pgproto3.Frontend
	// boundary is the number of bytes up to the end of the newest whole message.
	boundary int64

	// PID and SecretKey are the cancel key the server gave at login; zero and nil before.
	PID       uint32
	SecretKey []byte
}

// DialRaw connects to host:port and sends nothing. The connection is closed with the test.
func DialRaw(tb testing.TB, addr string) *Raw {
	tb.Helper()
	conn, err := net.DialTimeout("tcp", addr, Patience)
	if err != nil {
		tb.Fatalf("cannot dial %s: %v", addr, err)
	}
	return newRaw(tb, conn)
}

// LoginRaw logs in as a standard role with its password, by whatever method the server asks for, and returns the
// connection at its first ReadyForQuery.
func LoginRaw(tb testing.TB, addr, user, db string) *Raw {
	tb.Helper()
	ctx, cancel := bounded()
	defer cancel()
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		tb.Fatal(err)
	}
	cfg, err := pgconn.ParseConfig(fmt.Sprintf("host=%s port=%s sslmode=disable", host, port))
	if err != nil {
		tb.Fatal(err)
	}
	cfg.User, cfg.Password, cfg.Database = user, Password(user), db
	cfg.RuntimeParams = map[string]string{"application_name": "raw"}
	pc, err := pgconn.ConnectConfig(ctx, cfg)
	if err != nil {
		tb.Fatalf("cannot log in as %s: %v", user, err)
	}
	h, err := pgserver.TakeOver(pc)
	if err != nil {
		tb.Fatal(err)
	}
	r := newRaw(tb, h.Conn)
	r.PID, r.SecretKey = h.PID, h.SecretKey
	return r
}

func newRaw(tb testing.TB, conn net.Conn) *Raw {
	tb.Cleanup(func() { _ = conn.Close() }) // The test may have closed it.
	in := &countingReader{r: conn}
	return &Raw{tb: tb, conn: conn, in: in, fe: pgproto3.NewFrontend(in, conn)}
}

type countingReader struct {
	r io.Reader
	n int64
}

func (c *countingReader) Read(b []byte) (int, error) {
	n, err := c.r.Read(b)
	c.n += int64(n)
	return n, err
}

// Conn is the socket itself.
func (r *Raw) Conn() net.Conn { return r.conn }

// LocalAddr is this client's host:port as a server without a proxy in between sees it.
func (r *Raw) LocalAddr() string { return r.conn.LocalAddr().String() }

// Close ends the connection with a FIN, without a Terminate message.
func (r *Raw) Close() { _ = r.conn.Close() }

// Reset ends the connection with an RST.
func (r *Raw) Reset() { reset(r.conn.(*net.TCPConn)) }

// SendBytes writes bytes as they are.
func (r *Raw) SendBytes(b []byte) {
	r.tb.Helper()
	if err := r.TrySendBytes(b); err != nil {
		r.tb.Fatalf("cannot send %d bytes: %v", len(b), err)
	}
}

// TrySendBytes is SendBytes for when the peer may be gone or may have stopped reading.
func (r *Raw) TrySendBytes(b []byte) error {
	_ = r.conn.SetWriteDeadline(time.Now().Add(Patience)) // A closed socket fails in Write.
	_, err := r.conn.Write(b)
	return err
}

// Send writes messages in one go.
func (r *Raw) Send(msgs ...pgproto3.FrontendMessage) {
	r.tb.Helper()
	r.SendBytes(Encode(r.tb, msgs...))
}

// Query sends a simple query.
func (r *Raw) Query(sql string) {
	r.tb.Helper()
	r.Send(&pgproto3.Query{String: sql})
}

// Startup sends a protocol 3.0 startup packet with user, database and further parameters.
func (r *Raw) Startup(user, db string, params map[string]string) {
	r.tb.Helper()
	p := map[string]string{"user": user, "database": db}
	for k, v := range params {
		p[k] = v
	}
	r.Send(&pgproto3.StartupMessage{ProtocolVersion: pgproto3.ProtocolVersion30, Parameters: p})
}

// Encode returns the bytes of messages.
func Encode(tb testing.TB, msgs ...pgproto3.FrontendMessage) []byte {
	tb.Helper()
	var b []byte
	for _, m := range msgs {
		var err error
		if b, err = m.Encode(b); err != nil {
			tb.Fatalf("cannot encode %T: %v", m, err)
		}
	}
	return b
}

// Receive returns the next message. It is valid until the next Receive.
func (r *Raw) Receive() pgproto3.BackendMessage {
	r.tb.Helper()
	m, err := r.TryReceive(Patience)
	if err != nil {
		r.tb.Fatalf("cannot receive a message: %v", err)
	}
	return m
}

// TryReceive is Receive for when the connection may end or stay silent: see Ended and Silent. A FIN at a message
// boundary is io.EOF, one in the middle of a message io.ErrUnexpectedEOF. After a timeout it may be called again
// without losing bytes.
func (r *Raw) TryReceive(within time.Duration) (pgproto3.BackendMessage, error) {
	_ = r.conn.SetReadDeadline(time.Now().Add(within)) // A closed socket fails in Receive.
	m, err := r.fe.Receive()
	switch {
	case err == nil:
		r.boundary = r.in.n - int64(r.fe.ReadBufferLen())
	case errors.Is(err, io.ErrUnexpectedEOF) && r.in.n == r.boundary:
		err = io.EOF // pgproto3 does not tell the two apart.
	}
	return m, err
}

// Silent reports whether an error of TryReceive or ReadRest means that nothing came in time.
func Silent(err error) bool { return errors.Is(err, os.ErrDeadlineExceeded) }

// Ended reports whether an error means that the peer ended the connection, with FIN or RST.
func Ended(err error) bool {
	return errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE)
}

// WaitFor receives until a message of type T comes, which it returns; what came before is dropped. A FATAL error is
// a failure unless T is ErrorResponse.
func WaitFor[T pgproto3.BackendMessage](r *Raw) T {
	r.tb.Helper()
	for {
		m := r.Receive()
		if t, ok := m.(T); ok {
			return t
		}
		if e, ok := m.(*pgproto3.ErrorResponse); ok && e.SeverityUnlocalized == "FATAL" {
			var want T
			r.tb.Fatalf("got FATAL %s %s while waiting for %T", e.Code, e.Message, want)
		}
	}
}

// Rest receives until the connection ends, and returns copies of the error responses that came and how the
// connection ended, in the words of TryReceive.
func (r *Raw) Rest() (errs []pgconn.PgError, end error) {
	r.tb.Helper()
	for {
		m, err := r.TryReceive(Patience)
		switch {
		case err == nil:
		case Silent(err):
			r.tb.Fatalf("the connection is still open after %v", Patience)
		default:
			return errs, err
		}
		if e, ok := m.(*pgproto3.ErrorResponse); ok {
			errs = append(errs, *pgconn.ErrorResponseToPgError(e))
		}
	}
}

// ReadRest reads bytes, not messages, until the connection ends or limit bytes have come. It must not follow Receive,
// which may have read ahead. A FIN gives a nil error.
func (r *Raw) ReadRest(limit int64) ([]byte, error) {
	_ = r.conn.SetReadDeadline(time.Now().Add(Patience)) // A closed socket fails in Read.
	return io.ReadAll(io.LimitReader(r.conn, limit))
}
