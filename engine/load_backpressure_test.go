package engine

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgproto3"

	"pgedge/internal/pgtest"
	"pgedge/revoke"
)

const (
	loadStreamBytes = 1500 << 20
	loadRowBytes    = 60000 // of payload in a row
	loadRows        = loadStreamBytes / loadRowBytes
)

// stalled waits until a side is paused and no byte has moved between two looks at the counters.
func (n *node) stalled() {
	n.t.Helper()
	last, same := [2]uint64{}, 0
	pgtest.Wait(n.t, "the relay to come to a halt", func() bool {
		now := [2]uint64{n.metrics.bytesIn.Get(), n.metrics.bytesOut.Get()}
		if now != last || n.metrics.pausedSides.Load() == 0 {
			last, same = now, 0
			return false
		}
		same++
		return same > 25
	})
}

// loadCopyOut is a COPY of that many rows of loadRowBytes; each begins with its number.
func loadCopyOut(rows int) string {
	return fmt.Sprintf("COPY (SELECT to_char(i, 'FM00000000') || repeat('x', %d) FROM generate_series(1, %d) i) TO STDOUT",
		loadRowBytes-9, rows)
}

func TestAClientThatSleepsCostsNoMemoryAndGetsEveryByteAfterwards(t *testing.T) {
	n := startNode(t, nil)
	baseline := n.baseline()
	raw := pgtest.LoginRaw(t, n.addr, "alice", pgtest.Database)
	raw.Query(loadCopyOut(loadRows))
	n.stalled()
	loadCheckHeap(t, "while the client sleeps")

	// The client wakes up and reads all of it.
	conn := raw.Conn()
	conn.SetDeadline(time.Now().Add(4 * patience))
	r := &loadReader{t: t, r: conn}
	rows, sum := uint32(0), crc32.NewIEEE()
	for {
		typ, body := r.message()
		if typ == 'd' {
			rows++
			sum.Write(body)
			if rows%8000 == 0 {
				loadCheckHeap(t, "while the client reads")
			}
		}
		if typ == 'E' {
			t.Fatalf("the server said %q", body)
		}
		if typ == 'Z' {
			break
		}
	}
	want := crc32.NewIEEE()
	row := append(bytes.Repeat([]byte{'x'}, loadRowBytes-1), '\n')
	for i := 1; i <= loadRows; i++ {
		copy(row, fmt.Sprintf("%08d", i))
		want.Write(row)
	}
	if rows != loadRows || sum.Sum32() != want.Sum32() {
		t.Fatalf("%d rows with checksum %08x came, want %d with %08x", rows, sum.Sum32(), loadRows, want.Sum32())
	}
	raw.Close()
	n.settledAt(baseline)
	n.noBugs()
}

// loadReader reads messages from a big stream into one buffer.
type loadReader struct {
	t   testing.TB
	r   io.Reader
	buf []byte
	at  int // of the first unread byte
}

// message returns the next message; body is valid until the next call.
func (r *loadReader) message() (byte, []byte) {
	head := r.next(5)
	typ, n := head[0], int(binary.BigEndian.Uint32(head[1:]))-4
	return typ, r.next(n)
}

func (r *loadReader) next(n int) []byte {
	for len(r.buf)-r.at < n {
		if cap(r.buf) == 0 {
			r.buf = make([]byte, 0, 512<<10)
		}
		kept := copy(r.buf[:cap(r.buf)], r.buf[r.at:])
		r.buf, r.at = r.buf[:kept], 0
		if n > cap(r.buf) {
			r.t.Fatalf("a message of %d bytes", n)
		}
		got, err := r.r.Read(r.buf[kept:cap(r.buf)])
		r.buf = r.buf[:kept+got]
		if err != nil && len(r.buf) < n {
			r.t.Fatalf("the stream ended: %v", err)
		}
	}
	r.at += n
	return r.buf[r.at-n : r.at]
}

func TestAKillOfASessionWhoseClientSleepsIsVerified(t *testing.T) {
	n := startNode(t, nil)
	baseline := n.baseline()
	raw := pgtest.LoginRaw(t, n.addr, "alice", pgtest.Database)
	raw.Query(loadCopyOut(loadRows))
	n.stalled()
	before := n.metrics.bytesOut.Get()
	n.verified(n.revoke("alice"), 1)
	loadCheckHeap(t, "after the kill")
	if moved := n.metrics.bytesOut.Get() - before; moved != 0 {
		t.Errorf("%d bytes were relayed after the kill", moved)
	}
	raw.Close()
	n.settledAt(baseline)
	n.noBugs()
}

// loadCopyTable makes a table whose rows wait for an advisory lock and are then counted and thrown away.
func loadCopyTable(t testing.TB, name string, lock int) {
	t.Helper()
	server.Exec(t,
		fmt.Sprintf("CREATE TABLE %s (v text)", name),
		fmt.Sprintf("CREATE SEQUENCE %s_rows", name),
		fmt.Sprintf(`CREATE FUNCTION %[1]s_row() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
			PERFORM pg_advisory_xact_lock_shared(%[2]d);
			IF NEW.v <> repeat('y', %[3]d) THEN RAISE 'row %% is damaged', nextval('%[1]s_rows'); END IF;
			PERFORM nextval('%[1]s_rows');
			RETURN NULL;
		END $$`, name, lock, loadRowBytes),
		fmt.Sprintf("CREATE TRIGGER slow BEFORE INSERT ON %s FOR EACH ROW EXECUTE FUNCTION %[1]s_row()", name))
	t.Cleanup(func() {
		server.Exec(t, "DROP TABLE "+name, "DROP FUNCTION "+name+"_row", "DROP SEQUENCE "+name+"_rows")
	})
}

// loadCopyIn sends count rows from one buffer, and then CopyDone; the error is of the first write that failed.
func loadCopyIn(conn net.Conn, count int) error {
	row := pgproto3.CopyData{Data: append(bytes.Repeat([]byte{'y'}, loadRowBytes), '\n')}
	msg, err := row.Encode(nil)
	if err != nil {
		return err
	}
	for range count {
		if _, err := conn.Write(msg); err != nil {
			return err
		}
	}
	msg, err = (&pgproto3.CopyDone{}).Encode(nil)
	if err == nil {
		_, err = conn.Write(msg)
	}
	return err
}

func TestABackendThatIsSlowToTakeACopyCostsNoMemoryAndGetsEveryByteAfterwards(t *testing.T) {
	loadCopyTable(t, "load_copy_in", 71)
	lock := server.Conn(t)
	if _, err := lock.Exec(bounded(t), "SELECT pg_advisory_lock(71)"); err != nil {
		t.Fatal(err)
	}
	n := startNode(t, nil)
	baseline := n.baseline()
	raw := pgtest.LoginRaw(t, n.addr, "alice", pgtest.Database)
	raw.Query("COPY load_copy_in FROM STDIN")
	pgtest.WaitFor[*pgproto3.CopyInResponse](raw)
	sent := make(chan error, 1)
	raw.Conn().SetDeadline(time.Now().Add(4 * patience))
	go func() { sent <- loadCopyIn(raw.Conn(), loadRows) }()
	n.stalled()
	loadCheckHeap(t, "while the backend sleeps")

	if _, err := lock.Exec(bounded(t), "SELECT pg_advisory_unlock(71)"); err != nil {
		t.Fatal(err)
	}
	tick := time.NewTicker(500 * time.Millisecond)
	defer tick.Stop()
	for done := false; !done; {
		select {
		case err := <-sent:
			if err != nil {
				t.Fatalf("cannot send the copy: %v", err)
			}
			done = true
		case <-tick.C:
			loadCheckHeap(t, "while the backend takes the copy")
		}
	}
	for {
		m := raw.Receive()
		if e, ok := m.(*pgproto3.ErrorResponse); ok {
			t.Fatalf("the copy failed: %s %s", e.Code, e.Message)
		}
		if _, ok := m.(*pgproto3.ReadyForQuery); ok {
			break
		}
	}
	if got := server.QueryInt(t, "SELECT last_value FROM load_copy_in_rows"); got != loadRows {
		t.Fatalf("%d rows arrived, want %d", got, loadRows)
	}
	raw.Close()
	n.settledAt(baseline)
	n.noBugs()
}

func TestAKillOfACopyThatTheBackendDoesNotTakeIsVerified(t *testing.T) {
	loadCopyTable(t, "load_copy_killed", 72)
	lock := server.Conn(t)
	if _, err := lock.Exec(bounded(t), "SELECT pg_advisory_lock(72)"); err != nil {
		t.Fatal(err)
	}
	n := startNode(t, nil)
	baseline := n.baseline()
	raw := pgtest.LoginRaw(t, n.addr, "alice", pgtest.Database)
	raw.Query("COPY load_copy_killed FROM STDIN")
	pgtest.WaitFor[*pgproto3.CopyInResponse](raw)
	sent := make(chan error, 1)
	go func() { sent <- loadCopyIn(raw.Conn(), 20*loadRows) }()
	n.stalled()
	n.verified(n.apply(revoke.VerbKill, revoke.ScopePrincipal, "alice"), 1)
	if err := <-sent; err == nil {
		t.Error("the client could send all of its copy after the kill")
	}
	raw.Close()
	n.settledAt(baseline)
	n.noBugs()
	if got := server.QueryInt(t, "SELECT count(*) FROM load_copy_killed_rows WHERE is_called"); got != 0 {
		t.Error("a row arrived although its trigger waits for a lock")
	}
}

// A pipeline of queries whose results nobody reads blocks both ways. The relay must read on where there is room, and
// must not take more than its marks allow.
func TestAPipelineThatBlocksBothWaysMovesOnWithASlowReader(t *testing.T) {
	const (
		queries     = 120
		queryBytes  = 256 << 10 // 30 MB in all: more than the kernel buffers on the way can hold
		resultBytes = 400 << 10
	)
	n := startNode(t, func(c *Config) { c.Loops = 1 })
	baseline := n.baseline()
	raw := pgtest.LoginRaw(t, n.addr, "alice", pgtest.Database)
	conn := raw.Conn()
	conn.(*net.TCPConn).SetReadBuffer(64 << 10)
	conn.SetDeadline(time.Now().Add(2 * patience))
	sql := fmt.Sprintf("SELECT repeat('z', %d) /* %s */", resultBytes, strings.Repeat("c", queryBytes))
	msg := pgtest.Encode(t, &pgproto3.Query{String: sql})
	sent := make(chan error, 1)
	go func() {
		for range queries {
			if _, err := conn.Write(msg); err != nil {
				sent <- err
				return
			}
		}
		sent <- nil
	}()
	pgtest.Wait(t, "both sides to be paused", func() bool { return n.metrics.pausedSides.Load() == 2 })
	n.stalled()
	loadCheckHeap(t, "while both ways are blocked")
	select {
	case err := <-sent:
		t.Fatalf("the pipeline did not block (%v): the test proves nothing", err)
	default:
	}

	r := &loadReader{t: t, r: &loadSips{r: conn, max: 32 << 10}}
	ready, bytesOut := 0, 0
	for ready < queries {
		switch typ, body := r.message(); typ {
		case 'D':
			bytesOut += len(body)
		case 'E':
			t.Fatalf("the server said %q", body)
		case 'Z':
			ready++
		}
	}
	if err := <-sent; err != nil {
		t.Fatalf("cannot send the pipeline: %v", err)
	}
	if want := queries * (resultBytes + 6); bytesOut != want {
		t.Errorf("%d bytes of rows came, want %d", bytesOut, want)
	}
	loadCheckHeap(t, "at the end of the pipeline")
	raw.Close()
	n.settledAt(baseline)
	n.noBugs()
}

// loadSips reads a little at a time, as a client that is busy with each row does.
type loadSips struct {
	r   io.Reader
	max int
}

func (s *loadSips) Read(p []byte) (int, error) { return s.r.Read(p[:min(s.max, len(p))]) }

// Regression: gnet arms reading again whenever the outbound buffer of a socket has drained, so that a client that is
// paused slips one buffer in each time. While one long answer goes out, a client that keeps sending must not fill
// the memory with what the backend is not ready to take.
func TestAClientThatSendsOnWhileALongAnswerComesCostsNoMemory(t *testing.T) {
	n := startNode(t, func(c *Config) { c.Loops = 1 })
	baseline := n.baseline()
	raw := pgtest.LoginRaw(t, n.addr, "alice", pgtest.Database)
	conn := raw.Conn()
	conn.(*net.TCPConn).SetReadBuffer(32 << 10) // the smaller it is, the more often the buffer behind it drains
	conn.SetDeadline(time.Now().Add(2 * patience))
	raw.Query(loadCopyOut(6000))
	ballast := pgtest.Encode(t, &pgproto3.Query{String: "SELECT 1 /* " + strings.Repeat("c", 256<<10) + " */"})
	stop := make(chan struct{})
	sent := make(chan int, 1)
	go func() {
		count := 0
		for {
			select {
			case <-stop:
				sent <- count
				return
			default:
			}
			if _, err := conn.Write(ballast); err != nil {
				sent <- -1
				return
			}
			count++
		}
	}()
	r := &loadReader{t: t, r: &loadSips{r: conn, max: 32 << 10}}
	rows, worst, unread := 0, uint64(0), 0
	for {
		typ, body := r.message()
		if typ == 'E' {
			t.Fatalf("the server said %q", body)
		}
		if typ == 'Z' {
			break
		}
		if rows++; rows%500 == 0 {
			for _, l := range n.loops {
				n.onLoop(l, func() {
					for s := range l.sessions {
						unread = max(unread, s.front.conn.InboundBuffered())
					}
				})
			}
			worst = max(worst, loadHeap())
		}
	}
	t.Logf("the heap was %d MiB at most, and %d KiB of the client's were unread", worst>>20, unread>>10)
	if unread > highMarkBytes+2*readBufferBytes {
		t.Errorf("%d bytes of the client's slipped in while it was paused", unread)
	}
	if worst > loadHeapLimit {
		t.Errorf("the heap grew to %d MiB, more than %d", worst>>20, loadHeapLimit>>20)
	}
	close(stop)
	count := -2
	for ready := 0; count < 0 || ready < count; {
		if count < 0 {
			select {
			case count = <-sent:
			default:
			}
			if count == -1 {
				t.Fatal("the client could not send")
			}
		}
		if typ, _ := r.message(); typ == 'Z' {
			ready++
		}
	}
	raw.Close()
	n.settledAt(baseline)
	n.noBugs()
}
