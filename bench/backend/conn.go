package backend

import (
	"bufio"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"time"
)

const (
	// readBufferBytes holds a small statement and its Sync; 8,000 sessions keep 8 MiB of them.
	readBufferBytes = 1024
	// maxMessageBytes is more than any statement of pgedge's with its parameters, and bounds what a peer can make the
	// server allocate.
	maxMessageBytes = 1 << 20
	// keepBytes is how much of its buffers a session keeps between two messages.
	keepBytes = 4096
	// startupTime bounds how long a peer may take to say who it is.
	startupTime = 10 * time.Second
	// lastWordTime bounds the final error of a session that was told to terminate.
	lastWordTime = time.Second
)

// Codes in the place of a protocol version.
const (
	codeCancel   = 80877102
	codeSSL      = 80877103
	codeGSS      = 80877104
	protocol30   = 3 << 16
	majorVersion = 3
)

// conn is one session. Its goroutine owns everything but what mu guards.
type conn struct {
	srv *Server
	net *net.TCPConn
	in  *bufio.Reader

	// Fixed once the session has been entered.
	pid         uint32
	secret      uint32
	role        string
	database    string
	application string
	addr        string // of the client
	port        int
	began       time.Time // to the microsecond, as Postgres shows it

	body       []byte // of the message at hand
	out        []byte // not sent yet
	status     byte   // of the transaction: I, T or E
	skipping   bool   // to Sync, after an error of the extended protocol
	statements map[string]string
	portals    map[string]portal

	mu    sync.Mutex
	state string        // as pg_stat_activity shows it
	sleep chan struct{} // closed to interrupt the sleep under way; nil when there is none
	dying bool          // has been told to terminate
}

type portal struct {
	sql    string
	params []string
	binary bool // all results, which is how drivers ask
}

var errTerminated = errors.New("told to terminate")

func (s *Server) serve(nc *net.TCPConn) {
	c := &conn{srv: s, net: nc, in: bufio.NewReaderSize(nc, readBufferBytes), status: 'I', state: "idle"}
	defer nc.Close()
	nc.SetDeadline(time.Now().Add(startupTime))
	if !c.startUp() {
		return
	}
	nc.SetDeadline(time.Time{}) // before anybody can terminate it
	s.enter(c)
	c.greet()
	err := c.flush()
	for err == nil && !c.isDying() {
		err = c.next()
	}
	if c.isDying() {
		nc.SetDeadline(time.Now().Add(lastWordTime))
		c.out = c.out[:0]
		c.fail("FATAL", sqlAdminShutdown, "terminating connection due to administrator command")
		c.net.Write(c.out) // a peer that has gone is told nothing
	}
	s.leave(c)
}

// startUp reads packets until the one that says who wants to log in. false: there is nothing to serve.
func (c *conn) startUp() bool {
	for {
		var head [8]byte
		if _, err := io.ReadFull(c.in, head[:]); err != nil {
			return false
		}
		n, code := binary.BigEndian.Uint32(head[:4]), binary.BigEndian.Uint32(head[4:])
		if n < 8 || n > 10000 {
			return false
		}
		rest := make([]byte, n-8)
		if _, err := io.ReadFull(c.in, rest); err != nil {
			return false
		}
		switch {
		case code == codeSSL || code == codeGSS:
			if _, err := c.net.Write([]byte{'N'}); err != nil {
				return false
			}
		case code == codeCancel && len(rest) >= 8:
			if target := c.srv.find(binary.BigEndian.Uint32(rest)); target != nil && target.secret == binary.BigEndian.Uint32(rest[4:]) {
				target.cancel()
			}
			return false
		case code>>16 == majorVersion:
			if code != protocol30 {
				// NegotiateProtocolVersion: minor version 0, no option refused.
				c.out = append(c.out, 'v', 0, 0, 0, 12, 0, 0, 0, 0, 0, 0, 0, 0)
			}
			return c.identify(rest)
		default:
			return false
		}
	}
}

func (c *conn) identify(params []byte) bool {
	fields := strings.Split(string(params), "\x00")
	for i := 0; i+1 < len(fields) && fields[i] != ""; i += 2 {
		switch fields[i] {
		case "user":
			c.role = fields[i+1]
		case "database":
			c.database = fields[i+1]
		case "application_name":
			c.application = fields[i+1]
		}
	}
	if c.database == "" {
		c.database = c.role
	}
	if a, ok := c.net.RemoteAddr().(*net.TCPAddr); ok {
		c.addr, c.port = a.IP.String(), a.Port
	}
	c.began = time.Now().Truncate(time.Microsecond)
	var b [4]byte
	rand.Read(b[:])
	c.secret = binary.BigEndian.Uint32(b[:])
	return c.role != ""
}

func (c *conn) greet() {
	c.message('R', 0, 0, 0, 0)
	for _, p := range [][2]string{
		{"application_name", c.application}, {"client_encoding", "UTF8"}, {"DateStyle", "ISO, MDY"}, {"default_transaction_read_only", "off"},
		{"in_hot_standby", "off"}, {"integer_datetimes", "on"}, {"IntervalStyle", "postgres"}, {"is_superuser", "off"},
		{"server_encoding", "UTF8"}, {"server_version", Version}, {"session_authorization", c.role},
		{"standard_conforming_strings", "on"}, {"TimeZone", "UTC"},
	} {
		c.message('S', []byte(p[0]+"\x00"+p[1]+"\x00")...)
	}
	key := binary.BigEndian.AppendUint32(nil, c.pid)
	c.message('K', binary.BigEndian.AppendUint32(key, c.secret)...)
	c.ready()
}

// next carries out one message.
func (c *conn) next() error {
	var head [5]byte
	if _, err := io.ReadFull(c.in, head[:]); err != nil {
		return err
	}
	n := binary.BigEndian.Uint32(head[1:])
	if n < 4 || n-4 > maxMessageBytes {
		return fmt.Errorf("a message of %d bytes", n)
	}
	n -= 4
	if cap(c.body) < int(n) || cap(c.body) > keepBytes {
		c.body = make([]byte, n)
	}
	c.body = c.body[:n]
	if _, err := io.ReadFull(c.in, c.body); err != nil {
		return err
	}
	return c.dispatch(head[0])
}

func (c *conn) dispatch(kind byte) error {
	if c.skipping && kind != 'S' && kind != 'X' {
		return nil
	}
	f := fields{b: c.body}
	var err error
	switch kind {
	case 'Q':
		c.enterState("active")
		if err = c.simple(f.text()); err != nil {
			return err
		}
		c.ready()
		return c.flush()
	case 'P':
		name, sql := f.text(), f.text()
		if c.statements == nil {
			c.statements = make(map[string]string)
		}
		c.statements[name] = sql
		c.message('1')
	case 'B':
		c.bind(&f)
	case 'D':
		c.describe(f.byte(), f.text())
	case 'E':
		c.enterState("active")
		err = c.execute(f.text())
	case 'C':
		if what, name := f.byte(), f.text(); what == 'S' {
			delete(c.statements, name)
		} else {
			delete(c.portals, name)
		}
		c.message('3')
	case 'H':
		return c.flush()
	case 'S':
		c.skipping = false
		c.ready()
		return c.flush()
	case 'X':
		return io.EOF
	default:
		c.fail("FATAL", sqlProtocolViolation, fmt.Sprintf("the bench backend does not know messages of type %q", kind))
		c.flush()
		return io.EOF
	}
	if err == nil && f.bad {
		c.refuse(sqlProtocolViolation, fmt.Sprintf("a message of type %q is too short", kind))
	}
	return err
}

// ready says that the session waits for the next request.
func (c *conn) ready() {
	switch c.status {
	case 'I':
		c.enterState("idle")
	case 'T':
		c.enterState("idle in transaction")
	case 'E':
		c.enterState("idle in transaction (aborted)")
	}
	c.message('Z', c.status)
}

func (c *conn) enterState(state string) {
	c.mu.Lock()
	c.state = state
	c.mu.Unlock()
}

// terminate ends the session from outside, and returns before it has ended.
func (c *conn) terminate() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.dying = true
	if c.sleep != nil {
		close(c.sleep)
		c.sleep = nil
	}
	c.net.SetDeadline(time.Unix(1, 0)) // interrupts reads and writes
}

// cancel interrupts what the session runs; one that runs nothing does not notice.
func (c *conn) cancel() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.sleep != nil {
		close(c.sleep)
		c.sleep = nil
	}
}

func (c *conn) isDying() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.dying
}

// rest sleeps; false says that it was interrupted. A client that leaves meanwhile is not noticed before the end, as with
// a Postgres that does not check.
func (c *conn) rest(d time.Duration) (bool, error) {
	woken := make(chan struct{})
	c.mu.Lock()
	if c.dying {
		c.mu.Unlock()
		return false, errTerminated
	}
	c.sleep = woken
	c.mu.Unlock()
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-woken:
		if c.isDying() {
			return false, errTerminated
		}
		return false, nil
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.sleep = nil
	return true, nil
}

func (c *conn) flush() error {
	_, err := c.net.Write(c.out)
	c.out = c.out[:0]
	if cap(c.out) > keepBytes {
		c.out = nil
	}
	return err
}

func (c *conn) message(kind byte, body ...byte) {
	c.out = append(c.out, kind)
	c.out = binary.BigEndian.AppendUint32(c.out, uint32(len(body)+4))
	c.out = append(c.out, body...)
}

func (c *conn) fail(severity, code, text string) {
	c.message('E', []byte("S"+severity+"\x00V"+severity+"\x00C"+code+"\x00M"+text+"\x00\x00")...)
}

// fields reads a message's body; what is missing is zero and sets bad.
type fields struct {
	b   []byte
	bad bool
}

func (f *fields) take(n int) []byte {
	if n < 0 || n > len(f.b) {
		f.bad = true
		return nil
	}
	p := f.b[:n]
	f.b = f.b[n:]
	return p
}

func (f *fields) byte() byte {
	if p := f.take(1); p != nil {
		return p[0]
	}
	return 0
}

func (f *fields) int16() int {
	if p := f.take(2); p != nil {
		return int(int16(binary.BigEndian.Uint16(p)))
	}
	return 0
}

func (f *fields) int32() int {
	if p := f.take(4); p != nil {
		return int(int32(binary.BigEndian.Uint32(p)))
	}
	return 0
}

func (f *fields) text() string {
	for i, b := range f.b {
		if b == 0 {
			s := string(f.b[:i])
			f.b = f.b[i+1:]
			return s
		}
	}
	f.bad = true
	return ""
}
