package engine

import (
	"encoding/binary"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"pgedge/codec"
)

// fake is a server that misbehaves, since no real one does.
type fake struct {
	addr    string
	written atomic.Int64
}

// fakeConn is one connection to a fake, after its startup packet.
type fakeConn struct {
	net.Conn
	f       *fake
	startup []byte // the packet without its length word
}

func newFake(t testing.TB, serve func(*fakeConn)) *fake {
	return newBareFake(t, func(f *fake, c net.Conn) {
		fc := &fakeConn{Conn: c, f: f}
		if fc.startup = readPacket(c); fc.startup != nil {
			serve(fc)
		}
	})
}

// newBareFake serves from the first byte on. A connection ends when serve returns.
func newBareFake(t testing.TB, serve func(*fake, net.Conn)) *fake {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	f := &fake{addr: ln.Addr().String()}
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			wg.Go(func() {
				defer c.Close()
				c.SetDeadline(time.Now().Add(patience))
				serve(f, c)
			})
		}
	})
	// The node is stopped before its server: clean-up runs backwards.
	t.Cleanup(func() { ln.Close(); wg.Wait() })
	return f
}

func readPacket(c net.Conn) []byte {
	var prefix [4]byte
	if _, err := io.ReadFull(c, prefix[:]); err != nil {
		return nil
	}
	b := make([]byte, binary.BigEndian.Uint32(prefix[:])-4)
	if _, err := io.ReadFull(c, b); err != nil {
		return nil
	}
	return b
}

// write reports whether all of it was taken.
func (c *fakeConn) write(parts ...[]byte) bool {
	n, err := c.Write(join(parts...))
	c.f.written.Add(int64(n))
	return err == nil
}

// hold reads until the node closes.
func (c *fakeConn) hold() { io.Copy(io.Discard, c.Conn) }

func TestWireHostileServerDuringLogin(t *testing.T) {
	ok, ready := m('R', int32(0)), m('Z', byte('I'))
	key := m('K', int32(5), int32(6))
	says := func(parts ...[]byte) func(*fakeConn) {
		return func(c *fakeConn) { c.write(parts...); c.hold() }
	}
	closes := func(parts ...[]byte) func(*fakeConn) { return func(c *fakeConn) { c.write(parts...) } }
	forever := func(first, again []byte) func(*fakeConn) {
		return func(c *fakeConn) {
			for c.write(first); c.write(again); {
			}
		}
	}
	for name, c := range map[string]struct {
		serve func(*fakeConn)
		want  string // what comes back, in words
	}{
		"garbage":                            {says([]byte("HTTP/1.1 400 Bad Request\r\n\r\n")), upstreamNonsense},
		"a message of length 3":              {says(lying('R', 3, "xxx")), upstreamNonsense},
		"an error without any field":         {closes(m('E', byte(0))), "E(  )"},
		"an error of no bytes":               {closes(m('E')), "E(  )"},
		"an error without an SQLSTATE":       {closes(m('E', "SFATAL", "Mwhy", byte(0))), "E(  why)"},
		"an error and no end":                {says(m('E', "SFATAL", "VFATAL", "C57P03", "Mwait", byte(0))), "E(FATAL 57P03 wait)"},
		"an error behind AuthenticationOk":   {closes(ok, m('E', "SFATAL", "VFATAL", "C53300", "Mfull", byte(0))), "R(0) E(FATAL 53300 full)"},
		"an endless greeting":                {forever(ok, repeat(100, m('S', "name", "value"))), upstreamNonsense},
		"an endless greeting of notices":     {forever(ok, repeat(100, m('N', "Mnote", byte(0)))), upstreamNonsense},
		"a greeting of one huge message":     {says(ok, lying('S', maxGreetingBytes+1, "x")), upstreamNonsense},
		"Kerberos":                           {says(m('R', int32(codec.AuthKerberosV5))), upstreamMethod},
		"GSSAPI":                             {says(m('R', int32(codec.AuthGSS))), upstreamMethod},
		"SSPI":                               {says(m('R', int32(codec.AuthSSPI))), upstreamMethod},
		"an unknown authentication request":  {says(m('R', int32(4711))), upstreamMethod},
		"half an authentication request":     {says(m('R', int16(0))), upstreamNonsense},
		"SASL without a list":                {says(m('R', int32(codec.AuthSASL))), upstreamNonsense},
		"AuthenticationOk twice":             {says(ok, ok, ready), upstreamNonsense},
		"a password asked for after the OK":  {says(ok, m('R', int32(codec.AuthCleartextPassword))), upstreamNonsense},
		"ReadyForQuery without AuthOk":       {says(ready), upstreamNonsense},
		"ReadyForQuery without a status":     {says(ok, m('Z')), upstreamNonsense},
		"a row instead of a greeting":        {says(ok, m('D', int16(0))), upstreamNonsense},
		"BackendKeyData twice":               {says(ok, key, key, ready), upstreamNonsense},
		"BackendKeyData without a secret":    {says(ok, m('K', int32(5)), ready), upstreamNonsense},
		"NegotiateProtocolVersion twice":     {says(m('v', int32(version30), int32(0)), m('v', int32(version30), int32(0)), ok), `v("\x00\x03\x00\x00\x00\x00\x00\x00") ` + upstreamNonsense},
		"NegotiateProtocolVersion of length": {says(m('v', int32(version30), int32(1<<30))), upstreamNonsense},
		"nothing, and the end":               {closes(), upstreamLost},
		"AuthenticationOk, and the end":      {closes(ok), upstreamLost},
		"half a message, and the end":        {closes(ok[:7]), upstreamLost},
		"a greeting without a cancel key":    {says(ok, ready), `R(0) Z("I")`},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := newFake(t, c.serve)
			n := through(t, f.addr, nil)
			client := dialPlain(t, "tcp", n.addr)
			client.send(startup("user", "u", "database", "d"))
			if name == "a greeting without a cancel key" {
				if got := spell(client.until('Z')); got != c.want {
					t.Errorf("got %s, want %s", got, c.want)
				}
				return
			}
			if got := spell(client.rest()); got != c.want {
				t.Errorf("got %s, want %s", got, c.want)
			}
			// What the kernel buffers is not the node's memory; tens of megabytes would be.
			if got := f.written.Load(); got > 32<<20 {
				t.Errorf("%d bytes were taken from the server", got)
			}
		})
	}
}

const (
	upstreamNonsense = "E(FATAL 08P01 the database server answered with something that is not understood)"
	upstreamMethod   = "E(FATAL 0A000 the database server asks for an authentication method that cannot be passed through)"
	upstreamLost     = "E(FATAL 08006 the connection to the database server was lost)"
	unreachable      = "E(FATAL 08001 the database server cannot be reached)"
)

func TestWireSilentServerEndsALoginAtItsDeadline(t *testing.T) {
	for name, serve := range map[string]func(*fakeConn){
		"silence":                     func(c *fakeConn) { c.hold() },
		"silence after the OK":        func(c *fakeConn) { c.write(m('R', int32(0))); c.hold() },
		"half a message":              func(c *fakeConn) { c.write([]byte{'R', 0, 0}); c.hold() },
		"notices without end or rest": func(c *fakeConn) { drip(c) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			n := through(t, newFake(t, serve).addr, func(c *Config) { c.Limits.LoginTimeout = 300 * time.Millisecond })
			client := dialPlain(t, "tcp", n.addr)
			client.send(startup("user", "u", "database", "d"))
			for _, f := range client.rest() { // Postgres says nothing either
				if f.typ != 'N' {
					t.Errorf("got %q", f.typ)
				}
			}
		})
	}
}

// drip sends notices before any authentication request, as long as they are taken.
func drip(c *fakeConn) {
	for c.write(m('N', "Mnote", byte(0))) {
	}
}

func TestWireHostileServerInASession(t *testing.T) {
	greeting := join(m('R', int32(0)), m('K', int32(5), int32(6)), m('Z', byte('I')))
	row := m('D', int16(1), int32(4), []byte("data"))
	for name, c := range map[string]struct {
		answer []byte
		want   string
		middle bool // the stream ends inside a message, and nothing may be put there
	}{
		"a ReadyForQuery of two bytes":   {m('Z', int16(0)), upstreamNonsense, false},
		"a message of length 3":          {lying('D', 3, "xxx"), upstreamNonsense, false},
		"the end":                        {nil, upstreamLost, false},
		"the end behind a message":       {row, spell([]frame{{'D', row[5:]}}) + " " + upstreamLost, false},
		"the end behind its own error":   {m('E', "VFATAL", "C57P01", "Mbye", byte(0)), "E(FATAL 57P01 bye)", false},
		"the end inside a message":       {row[:len(row)-2], "", true},
		"the end inside a header":        {row[:3], "", true},
		"a message of an unknown type":   {m('~', "new"), "~ " + upstreamLost, false},
		"a type of nothing and a length": {lying(0, 1<<31, "x"), upstreamNonsense, false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := newFake(t, func(fc *fakeConn) {
				fc.write(greeting)
				if _, err := io.ReadFull(fc, make([]byte, len(query("SELECT 1")))); err == nil {
					fc.write(c.answer)
				}
			})
			n := through(t, f.addr, nil)
			client := dialPlain(t, "tcp", n.addr)
			client.send(startup("user", "u", "database", "d"))
			client.until('Z')
			client.send(query("SELECT 1"))
			var all []frame
			var err error
			for err == nil {
				var f frame
				if f, err = client.next(); err == nil {
					all = append(all, f)
				}
			}
			if got := spell(all); got != c.want || (err == errMiddle) != c.middle || silent(err) {
				t.Errorf("got %s, %v; want %s", got, err, c.want)
			}
		})
	}
}
