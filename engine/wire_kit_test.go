package engine

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"pgedge/codec"
	"pgedge/internal/pgtest"
)

// m builds a message: a string is written with its terminator, an int32 and an int16 in network order, bytes as they are.
func m(typ byte, parts ...any) []byte {
	return codec.AppendMessage(nil, typ, body(parts...))
}

func body(parts ...any) []byte {
	var b []byte
	for _, p := range parts {
		switch p := p.(type) {
		case string:
			b = append(append(b, p...), 0)
		case []byte:
			b = append(b, p...)
		case int32:
			b = binary.BigEndian.AppendUint32(b, uint32(p))
		case int16:
			b = binary.BigEndian.AppendUint16(b, uint16(p))
		case byte:
			b = append(b, p)
		default:
			panic(fmt.Sprintf("cannot encode %T", p))
		}
	}
	return b
}

// lying is a message whose length word is not that of its body.
func lying(typ byte, length uint32, rest string) []byte {
	return append(binary.BigEndian.AppendUint32([]byte{typ}, length), rest...)
}

// packet builds a startup packet of any version around a body.
func packet(version uint32, b []byte) []byte {
	p := binary.BigEndian.AppendUint32(nil, uint32(8+len(b)))
	return append(binary.BigEndian.AppendUint32(p, version), b...)
}

const (
	version30    = 3 << 16
	sslRequest   = 80877103
	gssRequest   = 80877104
	cancelCode   = 80877102
	frameMaximum = 256 << 20 // of the test's own reader
)

// startup is a whole packet of protocol 3.0 from names and values.
func startup(pairs ...string) []byte { return startupVersion(version30, pairs...) }

func startupVersion(version uint32, pairs ...string) []byte {
	var b []byte
	for _, s := range pairs {
		b = append(append(b, s...), 0)
	}
	return packet(version, append(b, 0))
}

func query(sql string) []byte { return m('Q', sql) }

func join(parts ...[]byte) []byte {
	var b []byte
	for _, p := range parts {
		b = append(b, p...)
	}
	return b
}

func repeat(n int, b []byte) []byte { return []byte(strings.Repeat(string(b), n)) }

var (
	syncMsg  = m('S')
	flushMsg = m('H')
	goodbye  = m('X')
)

// plainConn is a client without any knowledge of a driver.
type plainConn struct {
	t testing.TB
	net.Conn
	got []byte // read and not taken yet
}

func dialPlain(t testing.TB, network, addr string) *plainConn {
	t.Helper()
	c, err := net.DialTimeout(network, addr, patience)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(patience))
	return &plainConn{t: t, Conn: c}
}

// loginPlain logs in as the role that needs no password.
func loginPlain(t testing.TB, addr string) *plainConn {
	t.Helper()
	c := dialPlain(t, "tcp", addr)
	c.send(startup("user", "trustuser", "database", pgtest.Database))
	c.until('Z')
	return c
}

func (c *plainConn) send(b []byte) {
	c.t.Helper()
	if _, err := c.Write(b); err != nil {
		c.t.Fatalf("cannot send %d bytes: %v", len(b), err)
	}
}

func (c *plainConn) closeWrite() {
	c.Conn.(interface{ CloseWrite() error }).CloseWrite()
}

// frame is one message of a server.
type frame struct {
	typ  byte
	body []byte
}

// errMiddle is an end of the stream inside a message.
var errMiddle = errors.New("the stream ended inside a message")

// next returns the next message, io.EOF at an end of the stream between messages.
func (c *plainConn) next() (frame, error) {
	for {
		if len(c.got) >= 5 {
			n := int(binary.BigEndian.Uint32(c.got[1:]))
			if n < 4 || n > frameMaximum {
				return frame{}, fmt.Errorf("a message %q of length %d", c.got[0], n)
			}
			if len(c.got) > n {
				f := frame{c.got[0], c.got[5 : 1+n]}
				c.got = c.got[1+n:]
				return f, nil
			}
		}
		if err := c.fill(); err != nil {
			if ended(err) && len(c.got) > 0 {
				err = errMiddle
			}
			return frame{}, err
		}
	}
}

func (c *plainConn) fill() error {
	buf := make([]byte, 64<<10)
	n, err := c.Read(buf)
	c.got = append(c.got, buf[:n]...)
	if n > 0 {
		return nil
	}
	return err
}

func ended(err error) bool {
	return errors.Is(err, io.EOF) || errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE)
}

func silent(err error) bool { return errors.Is(err, os.ErrDeadlineExceeded) }

// raw takes one byte that is no message.
func (c *plainConn) raw() (byte, error) {
	if len(c.got) == 0 {
		if err := c.fill(); err != nil {
			return 0, err
		}
	}
	b := c.got[0]
	c.got = c.got[1:]
	return b, nil
}

// until reads to a message of a type and returns what came, that message included.
func (c *plainConn) until(typ byte) []frame {
	c.t.Helper()
	var all []frame
	for {
		f, err := c.next()
		if err != nil {
			c.t.Fatalf("waiting for %q: %v after %s", typ, err, spell(all))
		}
		all = append(all, f)
		if f.typ == typ {
			return all
		}
	}
}

// rest reads to the end of the stream, which must come between messages.
func (c *plainConn) rest() []frame {
	c.t.Helper()
	var all []frame
	for {
		f, err := c.next()
		if ended(err) {
			return all
		}
		if err != nil {
			c.t.Fatalf("waiting for the end: %v after %s", err, spell(all))
		}
		all = append(all, f)
	}
}

// refusal reads to the end and returns the SQLSTATE of the last error, "" if there was none.
func (c *plainConn) refusal() string {
	c.t.Helper()
	code := ""
	for _, f := range c.rest() {
		if f.typ == 'E' {
			code = field(f.body, 'C')
		}
	}
	return code
}

// field returns a field of an error or notice.
func field(body []byte, name byte) string {
	for _, s := range strings.Split(string(body), "\x00") {
		if s != "" && s[0] == name {
			return s[1:]
		}
	}
	return ""
}

// spell writes messages as words that two streams are compared by. Keys and counters differ between any two logins.
func spell(frames []frame) string {
	var words []string
	for _, f := range frames {
		word := string(f.typ)
		switch f.typ {
		case 'E', 'N':
			word += "(" + field(f.body, 'V') + " " + field(f.body, 'C') + " " + field(f.body, 'M') + ")"
		case 'Z', 'C', 'D', 'S', 'd', 'T', 'v':
			word += fmt.Sprintf("(%q)", f.body)
		case 'R':
			word += fmt.Sprintf("(%d)", binary.BigEndian.Uint32(f.body))
		}
		words = append(words, word)
	}
	return strings.Join(words, " ")
}

// through starts a node whose only upstream is addr, without a control role.
func through(t testing.TB, addr string, change func(*Config)) *node {
	t.Helper()
	return startNode(t, func(c *Config) {
		u := controlUpstream(t, "pgedge_control", addr, "?sslmode=disable")
		u.Control = nil
		c.Databases = map[string]Database{"*": {Upstream: u}}
		if change != nil {
			change(c)
		}
	})
}
