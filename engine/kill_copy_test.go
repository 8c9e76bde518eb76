package engine

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgproto3"

	"pgedge/internal/pgtest"
	"pgedge/revoke"
)

// bigCopy is far more than kernel and proxy together hold.
const bigCopy = "COPY (SELECT repeat('x', 1000) FROM generate_series(1, 3000000)) TO STDOUT"

// copyIn begins a COPY into table; row is a message of one row.
func copyIn(n *node, role, table string) (r *pgtest.Raw, s *session, row []byte) {
	n.t.Helper()
	r = n.raw(role)
	r.Query("COPY " + table + " FROM STDIN")
	pgtest.WaitFor[*pgproto3.CopyInResponse](r)
	return r, n.only(role), pgtest.Encode(n.t, &pgproto3.CopyData{Data: append(bytes.Repeat([]byte{'x'}, 1000), '\n')})
}

func TestKillStopsACopyIn(t *testing.T) {
	t.Parallel()
	n := startNode(t, nil)
	role, table := newRole(t, ""), newTable(t, "v text")
	r, s, row := copyIn(n, role, table)
	batch := bytes.Repeat(row, 50)
	stopped := make(chan error, 1)
	go func() {
		var err error
		for err == nil {
			err = r.TrySendBytes(batch)
		}
		stopped <- err
	}()
	server.WaitInt(t, 1, writingSQL, role)
	waitOnLoop(t, s, func() bool { return s.bytesIn > 4<<20 })
	rec := n.killed(n.revoke(role), role, 1)
	if got := rec.Sessions[0]; got.State != "active" || got.Xact != "aborted" {
		t.Errorf("session: %+v", got)
	}
	<-stopped
	told(t, <-follow(r), "28000")
	if rows := settledRows(t, table); rows != 0 {
		t.Errorf("%d rows", rows)
	}
}

func TestKillOfAClientInTheMiddleOfCopyData(t *testing.T) {
	t.Parallel()
	n := startNode(t, nil)
	role, table := newRole(t, ""), newTable(t, "v text")
	r, s, row := copyIn(n, role, table)
	before := int64(0)
	s.onLoop(func() { before = s.bytesIn })
	r.SendBytes(append(append(append([]byte(nil), row...), row...), row[:500]...))
	waitOnLoop(t, s, func() bool { return s.bytesIn == before+int64(2*len(row)+500) })
	rec := n.killed(n.revoke(role), role, 1)
	if got := rec.Sessions[0]; got.State != "active" || got.Xact != "aborted" {
		t.Errorf("session: %+v", got)
	}
	h := <-follow(r)
	told(t, h, "28000")
	if !h.whole {
		t.Error("a client whose own stream stood at a boundary was not told")
	}
	if rows := settledRows(t, table); rows != 0 {
		t.Errorf("%d rows", rows)
	}
}

// The backend is busy with the first row and takes no more: what pgedge holds for it is dropped.
func TestKillDropsWhatTheBackendHasNotTaken(t *testing.T) {
	t.Parallel()
	n := startNode(t, nil)
	role, table := newRole(t, ""), newTable(t, "v text")
	newTrigger(t, table, "BEFORE INSERT", 60*time.Second, true)
	r := n.raw(role)
	r.Query("COPY " + table + " FROM STDIN")
	pgtest.WaitFor[*pgproto3.CopyInResponse](r)
	s := n.only(role)
	row := pgtest.Encode(t, &pgproto3.CopyData{Data: append(bytes.Repeat([]byte{'x'}, 10000), '\n')})
	go func() {
		for r.TrySendBytes(row) == nil {
		}
	}()
	server.WaitInt(t, 1, asleepSQL, role)
	waitOnLoop(t, s, func() bool { return s.front.paused != 0 })
	rec := n.killed(n.revoke(role), role, 1)
	if got := rec.Sessions[0]; got.State != "active" || got.Xact != "aborted" {
		t.Errorf("session: %+v", got)
	}
	s.onLoop(func() {
		if s.back.unsent < highMarkBytes {
			t.Errorf("only %d bytes were buffered for the backend: the test shows nothing", s.back.unsent)
		}
	})
	told(t, <-follow(r), "28000")
	if rows := settledRows(t, table); rows != 0 {
		t.Errorf("%d rows", rows)
	}
}

func TestKillStopsACopyOutAtFullSpeed(t *testing.T) {
	t.Parallel()
	n := startNode(t, nil)
	role := newRole(t, "")
	for round := range 3 {
		r := n.raw(role)
		r.Query(bigCopy)
		s := n.only(role)
		story := follow(r)
		waitOnLoop(t, s, func() bool { return s.bytesOut > 16<<20 })
		rec := n.killed(n.apply(revoke.VerbKill, revoke.ScopePrincipal, role), role, 1)
		if got := rec.Sessions[0]; got.State != "active" || got.Xact == "none" || got.Xact == "committed" {
			t.Errorf("session: %+v", got)
		}
		h := <-story
		told(t, h, "57P01")
		t.Logf("round %d: %d rows, told: %v", round, h.copied, h.whole)
	}
}

// The client reads all that the kernel holds, while the loop is kept from writing more; so there is room in the
// kernel for everything pgedge has buffered when the cut comes. Closing the connection must not fill it.
func TestKillSendsTheClientNothingThatWasBuffered(t *testing.T) {
	t.Parallel()
	n := startNode(t, nil)
	role := newRole(t, "")
	r := n.raw(role)
	if err := r.Conn().(*net.TCPConn).SetReadBuffer(64 << 10); err != nil {
		t.Fatal(err)
	}
	r.Query(bigCopy)
	s := n.only(role)
	waitOnLoop(t, s, func() bool { return s.back.paused != 0 })

	release := n.holdLoops()
	forwarded, buffered := s.bytesOut, s.front.buffered() // the loop stands still
	if buffered < highMarkBytes {
		t.Fatalf("%d bytes are buffered", buffered)
	}
	handedOver := forwarded - int64(buffered)
	if _, err := io.CopyN(io.Discard, r.Conn(), handedOver); err != nil {
		t.Fatalf("cannot read the %d bytes that the kernel has: %v", handedOver, err)
	}
	id := n.revoke(role)
	release()
	rec := n.killed(id, role, 1)
	if got := rec.Sessions[0]; got.State != "active" {
		t.Errorf("session: %+v", got)
	}
	rest, err := r.ReadRest(64 << 20)
	if len(rest) > 0 || err != nil && !pgtest.Ended(err) {
		t.Errorf("the client got %d of %d buffered bytes after the cut, then %v", len(rest), buffered, err)
	}
}

// A client that does not read at all holds up neither the cut nor the proof.
func TestKillOfAClientThatDoesNotRead(t *testing.T) {
	t.Parallel()
	for name, sql := range map[string]string{
		"copy":          bigCopy,
		"middle of row": "SELECT repeat('x', 60000000)",
		"writing":       "WITH w AS (INSERT INTO %s SELECT g FROM generate_series(1, 200000) g RETURNING v) SELECT v, repeat('x', 1000) FROM w",
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			n := startNode(t, nil)
			role, table := newRole(t, ""), newTable(t, "v int")
			r := n.raw(role)
			if name == "writing" {
				sql = fmt.Sprintf(sql, table)
			}
			r.Query(sql)
			s := n.only(role)
			waitOnLoop(t, s, func() bool { return s.back.paused != 0 })
			rec := n.killed(n.revoke(role), role, 1)
			if got := rec.Sessions[0]; got.State != "active" || got.Xact != "aborted" && got.Xact != "unknown" {
				t.Errorf("session: %+v", got)
			}
			h := <-follow(r)
			if h.bad != nil || h.whole || len(h.errs) > 0 {
				t.Errorf("heard: %+v", h)
			}
			if rows := settledRows(t, table); rows != 0 {
				t.Errorf("%d rows", rows)
			}
		})
	}
}
