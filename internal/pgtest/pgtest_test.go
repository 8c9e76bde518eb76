package pgtest

import (
	"errors"
	"io"
	"net"
	"strconv"
	"testing"

	"github.com/jackc/pgx/v5/pgproto3"
)

func TestRelayHidesTheClientsPortAndRelaysBothWays(t *testing.T) {
	relay := NewRelay(t, server.Addr())
	raw := LoginRaw(t, relay.Addr(), "alice", Database)
	_, port, err := net.SplitHostPort(raw.LocalAddr())
	if err != nil {
		t.Fatal(err)
	}
	seen := server.QueryInt(t, "SELECT client_port FROM pg_stat_activity WHERE pid = $1", int32(raw.PID))
	if strconv.FormatInt(seen, 10) == port {
		t.Errorf("the server sees the client's own port %s", port)
	}
	raw.Query("SELECT repeat('x', 1000000)")
	if row := WaitFor[*pgproto3.DataRow](raw); len(row.Values[0]) != 1000000 {
		t.Errorf("got %d bytes through the relay, want 1000000", len(row.Values[0]))
	}
	WaitFor[*pgproto3.ReadyForQuery](raw)
	if relay.Bytes(ToClient) < 1000000 || relay.Bytes(ToServer) == 0 {
		t.Errorf("counted %d bytes to the client and %d to the server", relay.Bytes(ToClient), relay.Bytes(ToServer))
	}
}

func TestPauseHoldsBytesBackAndResumeLosesNone(t *testing.T) {
	relay := NewRelay(t, server.Addr())
	raw := LoginRaw(t, relay.Addr(), "alice", Database)
	relay.Chunk(1)
	relay.Pause(ToServer)
	raw.Query("CREATE TABLE paused (n int)")
	if n := server.QueryInt(t, "SELECT count(*) FROM pg_class WHERE relname = 'paused'"); n != 0 {
		t.Fatal("the statement passed a paused relay")
	}
	relay.Resume(ToServer)
	WaitFor[*pgproto3.ReadyForQuery](raw)
	server.WaitInt(t, 1, "SELECT count(*) FROM pg_class WHERE relname = 'paused'")
}

func TestResetEndsTheSessionOnBothSidesAndCutRefusesUntilMend(t *testing.T) {
	relay := NewRelay(t, server.Addr())
	raw := LoginRaw(t, relay.Addr(), "bob", Database)
	relay.Reset()
	if _, end := raw.Rest(); !Ended(end) || errors.Is(end, io.EOF) {
		t.Errorf("the client saw %v, want a reset", end)
	}
	server.WaitBackends(t, "bob", 0)
	LoginRaw(t, relay.Addr(), "bob", Database).Close()

	relay.Cut()
	if c, err := net.Dial("tcp", relay.Addr()); err == nil {
		c.Close()
		t.Error("a cut relay accepts connections")
	}
	relay.Mend(t)
	LoginRaw(t, relay.Addr(), "bob", Database)
	if relay.Conns() != 1 {
		t.Errorf("%d connections after the mend, want 1", relay.Conns())
	}
}

func TestAFINTravelsThroughTheRelay(t *testing.T) {
	relay := NewRelay(t, server.Addr())
	raw := LoginRaw(t, relay.Addr(), "alice", Database)
	raw.Send(&pgproto3.Terminate{})
	if _, end := raw.Rest(); !errors.Is(end, io.EOF) {
		t.Errorf("the client saw %v, want EOF", end)
	}
	raw.Close()
	Wait(t, "the relay to forget the connection", func() bool { return relay.Conns() == 0 })
}

func TestRawSeesTheServersRefusalMessageByMessage(t *testing.T) {
	raw := DialRaw(t, server.Addr())
	raw.Startup("alice", Database, nil)
	if m, ok := raw.Receive().(*pgproto3.AuthenticationSASL); !ok {
		t.Fatalf("got %T, want AuthenticationSASL", m)
	}
	raw.Send(&pgproto3.SASLInitialResponse{AuthMechanism: "NO-SUCH", Data: nil})
	errs, end := raw.Rest()
	if len(errs) != 1 || errs[0].Code != "08P01" || !errors.Is(end, io.EOF) {
		t.Errorf("got %v and %v, want one 08P01 and EOF", errs, end)
	}
}

func TestRawSeesSilenceAndContinuesAfterwards(t *testing.T) {
	raw := LoginRaw(t, server.Addr(), "trustuser", Database)
	if _, err := raw.TryReceive(1); !Silent(err) {
		t.Fatalf("got %v from an idle server, want a timeout", err)
	}
	raw.Query("SELECT 1")
	WaitFor[*pgproto3.ReadyForQuery](raw)
}

func TestRawTellsAnEndAtAMessageBoundaryFromATruncatedMessage(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	notice := []byte("N\x00\x00\x00\x0aSNOTE\x00\x00")
	notice[4] = byte(len(notice) - 1)
	for cut := 1; cut <= len(notice); cut++ {
		go func() {
			c, err := l.Accept()
			if err == nil {
				c.Write(notice)
				c.Write(notice[:cut])
				c.Close()
			}
		}()
		want := io.ErrUnexpectedEOF
		if cut == len(notice) {
			want = io.EOF
		}
		if _, end := DialRaw(t, l.Addr().String()).Rest(); !errors.Is(end, want) {
			t.Errorf("after %d bytes of the second message: got %v, want %v", cut, end, want)
		}
	}
}
