package engine

import (
	"bytes"
	"net"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"pgedge/internal/pgtest"
	"pgedge/revoke"
)

// freezeScript is a conversation whose answers do not depend on when its parts arrive.
var freezeScript = [][]byte{
	query("SELECT 1"),
	query("SELECT repeat('a', 300000)"),
	query("BEGIN"),
	query("CREATE TEMP TABLE freeze_t (v int)"),
	query("COPY freeze_t FROM STDIN"),
	repeat(3000, m('d', []byte("7\n"))),
	m('c'),
	join(m('P', "", "SELECT sum(v) FROM freeze_t", int16(0)), m('B', "", "", int16(0), int16(0), int16(0)), m('E', "", int32(0)), syncMsg),
	query("SELECT 1/0"),
	query("ROLLBACK"),
	query("COPY (SELECT i, repeat('c', 50) FROM generate_series(1, 20000) i) TO STDOUT"),
	query("SELECT pg_sleep(0.002)"),
	query("SELECT 'end'"),
}

// converse sends all of the script and returns all of the answer, without the login.
func converse(t testing.TB, addr string) []byte {
	c := loginPlain(t, addr)
	defer c.Close()
	go c.Write(join(freezeScript...))
	var got []byte
	for {
		f, err := c.next()
		if err != nil {
			t.Fatal(err)
		}
		got = append(append(got, f.typ), f.body...)
		if f.typ == 'D' && strings.Contains(string(f.body), "end") {
			return got
		}
	}
}

// Whatever the lease does on the way, a client gets what it would have got from Postgres, to the last byte; nothing
// passes while it is frozen; and where it is cut, it has got the beginning of that and the words of the cut.
func TestAConversationIsTheSameWhateverTheLeaseDoes(t *testing.T) {
	want := converse(t, server.Addr())
	script := join(freezeScript...)
	for _, tls := range []string{"disable", "require"} {
		t.Run("tls "+tls, func(t *testing.T) {
			n := startLeased(t, func(c *Config) {
				c.Databases = map[string]Database{"*": {Upstream: controlUpstream(t, "pgedge_control", server.Addr(), "?sslmode="+tls)}}
			})
			rapid.Check(t, func(rt *rapid.T) { n.leaseWalk(rt, script, want) })
			n.nothingLeft()
			n.noBugs()
		})
	}
}

func (n *leased) leaseWalk(rt *rapid.T, script, want []byte) {
	c := loginPlain(n.t, n.addr)
	defer c.Close()
	s := n.only("trustuser")
	answer := make(chan []byte, 1)
	go func() {
		var got []byte
		for {
			f, err := c.next()
			if err != nil {
				answer <- got
				return
			}
			got = append(append(got, f.typ), f.body...)
			if f.typ == 'D' && strings.Contains(string(f.body), "end") {
				answer <- got
				return
			}
		}
	}()
	cut, closed, frozen := false, false, false
	var at moved
	check := func() {
		if frozen {
			if now := s.moved(); now.in != at.in || now.out != at.out {
				rt.Fatalf("frozen at %+v, and now %+v", at, now)
			}
		}
	}
	for len(script) > 0 && !cut && !closed {
		switch rapid.IntRange(0, 11).Draw(rt, "step") {
		case 0:
			n.lose()
			if !frozen {
				frozen, at = true, s.moved()
			}
		case 1: // the clock says so, nobody else does
			n.held.Store(false)
		case 2:
			check()
			frozen = false
			n.regain()
		case 3:
			check()
			if frozen = frozen && n.lease.Load() != leaseHeld; !frozen {
				n.held.Store(true)
			}
		case 4:
			if rapid.IntRange(0, 3).Draw(rt, "end") == 0 {
				check()
				cut = true
			}
		case 5:
			if rapid.IntRange(0, 3).Draw(rt, "end") == 0 {
				closed = true
			}
		default:
			p := script[:min(len(script), rapid.SampledFrom([]int{1, 5, 17, 1000, 9000, 70000}).Draw(rt, "bytes"))]
			c.SetWriteDeadline(time.Now().Add(100 * time.Millisecond)) // a client that is not read from may block
			sent, err := c.Write(p)
			if ne, ok := err.(net.Error); err != nil && !(ok && ne.Timeout()) {
				rt.Fatalf("cannot send: %v", err)
			}
			script = script[sent:]
			s.passed()
			check()
		}
	}
	switch {
	case cut:
		id := n.apply(revoke.VerbKill, revoke.ScopePrincipal, "trustuser")
		if r := n.receipt(id); r.Unverified != 0 {
			rt.Fatalf("receipt: %+v", r)
		}
		n.regain()
	case closed:
		c.Close()
		n.regain()
	default:
		check()
		n.regain()
	}
	var got []byte
	select {
	case got = <-answer:
	case <-time.After(patience):
		rt.Fatal("the conversation does not come to its end")
	}
	if cut {
		if i := bytes.LastIndex(got, []byte("ESFATAL\x00")); i >= 0 {
			got = got[:i]
		}
	}
	if !bytes.HasPrefix(want, got) || !cut && !closed && len(got) != len(want) {
		rt.Fatalf("cut %v, closed %v: %d bytes came of %d, the same up to %d", cut, closed, len(got), len(want), common(got, want))
	}
	c.Close()
	pgtest.Wait(n.t, "the session to go", func() bool { return n.index.len() == 0 })
}

// common is how long two streams are the same.
func common(a, b []byte) int {
	for i := range min(len(a), len(b)) {
		if a[i] != b[i] {
			return i
		}
	}
	return min(len(a), len(b))
}
