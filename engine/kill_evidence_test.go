package engine

import (
	"encoding/binary"
	"io"
	"net"
	"testing"

	"pgedge/codec"
	"pgedge/internal/pgtest"
)

// A statement that completes between the closing of the gate and the loop's cut: its answer is dropped by the relay,
// and must be evidence all the same. Once the receipt took it for rolled back.
func TestKillDoesNotCallACompletedStatementAborted(t *testing.T) {
	t.Parallel()
	n := startNode(t, nil)
	role, table := newRole(t, ""), newTable(t, "v int")
	victim := n.login(role)
	result := start(victim, "INSERT INTO "+table+" SELECT 1 FROM pg_sleep(0.5)")
	server.WaitInt(t, 1, asleepSQL, role)
	s := n.only(role)
	s.closeGate()
	server.WaitInt(t, 1, "SELECT count(*) FROM "+table)
	server.WaitInt(t, 1, "SELECT count(*) FROM pg_stat_activity WHERE usename = $1 AND state = 'idle'", role)
	s.passed()
	r := n.killed(n.revoke(role), role, 1)
	if got := r.Sessions[0]; got.Xact == "aborted" || got.Xact == "none" || !got.MorePossible {
		t.Errorf("the row was committed, but the receipt says %+v", got)
	}
	wantCode(t, <-result, "28000")
}

// fakeServer admits everybody without a password and hands the connection over; cancel requests are taken note of.
func fakeServer(t *testing.T) (addr string, sessions <-chan net.Conn) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ln.Close() })
	out := make(chan net.Conn, 16)
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			var h [8]byte
			if _, err := io.ReadFull(c, h[:]); err != nil || binary.BigEndian.Uint32(h[4:]) == 80877102 {
				c.Close()
				continue
			}
			io.CopyN(io.Discard, c, int64(binary.BigEndian.Uint32(h[:]))-8)
			b := codec.AppendMessage(nil, 'R', make([]byte, 4))
			b = codec.AppendBackendKeyData(b, codec.CancelKey{PID: 4711, Secret: []byte{1, 2, 3, 4}})
			c.Write(codec.AppendReadyForQuery(b, 'I'))
			t.Cleanup(func() { c.Close() })
			out <- c
		}
	}()
	return ln.Addr().String(), out
}

func startFake(t *testing.T) (n *node, client *pgtest.Raw, backend net.Conn) {
	t.Helper()
	addr, sessions := fakeServer(t)
	u := controlUpstream(t, "nobody", addr, "?sslmode=disable")
	u.Control = nil
	n = startNode(t, behind(u))
	client = n.raw("alice")
	return n, client, <-sessions
}

// The client has half a message; the other half comes when the gate is closed already. An error response would now be
// read as the rest of the message.
func TestKillSaysNothingInTheMiddleOfAMessage(t *testing.T) {
	t.Parallel()
	n, client, backend := startFake(t)
	s := n.only("alice")
	row := codec.AppendMessage(nil, 'D', make([]byte, 1000))
	backend.Write(row[:300])
	if _, err := io.ReadFull(client.Conn(), make([]byte, 300)); err != nil {
		t.Fatal(err)
	}
	s.closeGate()
	backend.Write(row[300:])
	s.passed()
	n.receipt(n.revoke("alice"))
	if rest, _ := client.ReadRest(1 << 20); len(rest) > 0 {
		t.Errorf("the client got %q in the middle of a message", rest)
	}
}

// The same the other way round: the client's stream is at a boundary, only what the relay drops is not.
func TestKillIsToldWhenOnlyDroppedBytesAreIncomplete(t *testing.T) {
	t.Parallel()
	n, client, backend := startFake(t)
	s := n.only("alice")
	s.closeGate()
	backend.Write(codec.AppendMessage(nil, 'D', make([]byte, 1000))[:300])
	s.passed()
	n.receipt(n.revoke("alice"))
	told(t, <-follow(client), "28000")
}

// A client that hangs up between the two halves of a cut makes gnet throw its buffer away. Nothing of it went out.
func TestKillOfAClientThatHangsUpMeanwhile(t *testing.T) {
	t.Parallel()
	n := startNode(t, nil)
	role := newRole(t, "")
	r := n.raw(role)
	r.Query(bigCopy)
	s := n.only(role)
	waitOnLoop(t, s, func() bool { return s.back.paused != 0 })
	s.closeGate()
	s.onLoop(func() {
		s.reason = ReasonRevoked
		s.bearWitness()
		s.front.shut()
		s.back.shut()
	})
	r.Reset()
	waitOnLoop(t, s, func() bool { return !s.front.open() })
	rec := n.killed(n.revoke(role), role, 1)
	if got := rec.Sessions[0]; got.State != "active" || got.Xact == "none" {
		t.Errorf("session: %+v", got)
	}
}

// What is buffered for a backend is not written when the backend's side ends first: behind a relay somebody might
// still read it.
func TestKillSendsTheBackendNothingThatWasBuffered(t *testing.T) {
	t.Parallel()
	n, client, backend := startFake(t)
	s := n.only("alice")
	if err := backend.(*net.TCPConn).SetReadBuffer(64 << 10); err != nil {
		t.Fatal(err)
	}
	go func() {
		block := codec.AppendMessage(nil, 'd', make([]byte, 1<<20))
		for client.TrySendBytes(block) == nil {
		}
	}()
	waitOnLoop(t, s, func() bool { return s.front.paused != 0 })
	release := n.holdLoops()
	handedOver := s.bytesIn - int64(s.back.buffered())
	if _, err := io.CopyN(io.Discard, backend, handedOver); err != nil {
		t.Fatal(err)
	}
	id := n.revoke("alice")
	backend.(*net.TCPConn).CloseWrite()
	release()
	n.nothingAfterCut(n.receipt(id))
	if rest, err := io.ReadAll(backend); len(rest) > 0 {
		t.Errorf("the backend got %d bytes after the cut, then %v", len(rest), err)
	}
}
