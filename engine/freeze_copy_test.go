package engine

import (
	"bytes"
	"fmt"
	"hash/crc32"
	"io"
	"net"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgproto3"

	"pgedge/internal/pgtest"
)

// tally reads a stream to its last ReadyForQuery and remembers all of it by its sum. begin lets it read.
type tally struct {
	begin chan struct{}
	bytes atomic.Int64
	done  chan error
	sum   uint32
}

func tallyOf(conn net.Conn, total int64) *tally {
	c := &tally{begin: make(chan struct{}), done: make(chan error, 1)}
	go func() {
		<-c.begin
		sum := crc32.NewIEEE()
		buf := make([]byte, 128<<10)
		for total == 0 || c.bytes.Load() < total {
			n, err := conn.Read(buf)
			sum.Write(buf[:n])
			c.bytes.Add(int64(n))
			if err != nil {
				c.done <- err
				return
			}
		}
		c.sum = sum.Sum32()
		c.done <- nil
	}()
	return c
}

// directCopy runs a COPY without pgedge and returns how many bytes answer it, and their sum.
func directCopy(t testing.TB, sql string) (int64, uint32) {
	t.Helper()
	r := pgtest.LoginRaw(t, server.Addr(), "alice", pgtest.Database)
	r.Query(sql)
	sum, n := crc32.NewIEEE(), int64(0)
	in := &loadReader{t: t, r: io.TeeReader(r.Conn(), sum)}
	r.Conn().SetDeadline(time.Now().Add(patience))
	for {
		typ, body := in.message()
		n += int64(5 + len(body))
		if typ == 'Z' {
			return n, sum.Sum32()
		}
	}
}

// A freeze stops a COPY to the client at the byte: what the client gets is what had been handed to the kernel before,
// whether it reads at full speed or not at all, and the thaw brings exactly the rest.
func TestAFrozenCopyOutPassesNothingAndGoesOnWhole(t *testing.T) {
	sql := loadCopyOut(3000) // 180 MB
	total, sum := directCopy(t, sql)
	for _, tls := range []string{"disable", "require"} {
		for _, reads := range []bool{true, false} {
			t.Run(fmt.Sprintf("tls %s, client reads %v", tls, reads), func(t *testing.T) {
				n := startLeased(t, plainTo(t, server.Addr(), "?sslmode="+tls))
				baseline := n.baseline()
				r := pgtest.LoginRaw(t, n.addr, "alice", pgtest.Database)
				conn := r.Conn()
				conn.SetDeadline(time.Now().Add(3 * patience))
				s := n.only("alice")
				c := tallyOf(conn, total)
				r.Query(sql)
				if reads {
					close(c.begin)
					waitOnLoop(t, s, func() bool { return s.bytesOut > 16<<20 })
				} else {
					waitOnLoop(t, s, func() bool { return s.back.paused != 0 && s.front.buffered() > lowMarkBytes })
				}
				for range 3 {
					n.lose()
					at := s.moved()
					if !reads {
						close(c.begin)
						reads = true
					}
					handed := at.out - int64(at.toPeer)
					pgtest.Wait(t, "the client to get what the kernel has", func() bool { return c.bytes.Load() >= handed })
					if got := still(t, "the client", c.bytes.Load); got != handed {
						t.Fatalf("the client got %d bytes more after the freeze", got-handed)
					}
					if now := s.moved(); now != at {
						t.Fatalf("frozen at %+v, and now %+v", at, now)
					}
					n.waitFrozen(1)
					n.regain()
					n.waitFrozen(0)
					pgtest.Wait(t, "the copy to go on", func() bool { return c.bytes.Load() > min(handed+4<<20, total-1) })
				}
				if err := <-c.done; err != nil {
					t.Fatalf("the copy broke off after %d of %d bytes: %v", c.bytes.Load(), total, err)
				}
				if c.bytes.Load() != total || c.sum != sum {
					t.Errorf("%d bytes with sum %08x came, want %d with %08x", c.bytes.Load(), c.sum, total, sum)
				}
				r.Close()
				n.settledAt(baseline)
				n.noBugs()
			})
		}
	}
}

const (
	freezeRows     = 40000
	freezeRowBytes = 1000
)

// sendRows sends numbered rows, and then CopyDone.
func sendRows(conn net.Conn, rows int) error {
	buf := make([]byte, 0, 80*(freezeRowBytes+16))
	var err error
	for i := 1; i <= rows; i++ {
		data := fmt.Appendf(nil, "%08d%0*d\n", i, freezeRowBytes-9, 0)
		if buf, err = (&pgproto3.CopyData{Data: data}).Encode(buf); err != nil {
			return err
		}
		if i%64 == 0 || i == rows {
			if _, err := conn.Write(buf); err != nil {
				return err
			}
			buf = buf[:0]
		}
	}
	buf, err = (&pgproto3.CopyDone{}).Encode(buf)
	if err == nil {
		_, err = conn.Write(buf)
	}
	return err
}

// A freeze stops a COPY from the client at the byte too: the server gets what had been handed to the kernel before,
// even if it has read none of it, and every row arrives in its place after the thaw.
func TestAFrozenCopyInPassesNothingAndGoesOnWhole(t *testing.T) {
	for _, tls := range []string{"disable", "require"} {
		for _, reads := range []bool{true, false} {
			t.Run(fmt.Sprintf("tls %s, server reads %v", tls, reads), func(t *testing.T) {
				relay := pgtest.NewRelay(t, server.Addr())
				n := startLeased(t, plainTo(t, relay.Addr(), "?sslmode="+tls))
				baseline := n.baseline()
				role, table := newRole(t, ""), newTable(t, "v text")
				r, s, _ := copyIn(n.node, role, table)
				base, from := relay.Bytes(pgtest.ToServer), s.moved().in
				arrived := func() int64 { return relay.Bytes(pgtest.ToServer) - base }
				if !reads {
					relay.Pause(pgtest.ToServer)
				}
				sent := make(chan error, 1)
				r.Conn().SetDeadline(time.Now().Add(3 * patience))
				go func() { sent <- sendRows(r.Conn(), freezeRows) }()
				if reads {
					waitOnLoop(t, s, func() bool { return s.bytesIn > 8<<20 })
				} else {
					waitOnLoop(t, s, func() bool { return s.front.paused != 0 && s.back.buffered() > lowMarkBytes })
				}
				n.lose()
				at := s.moved()
				relay.Resume(pgtest.ToServer)
				got := still(t, "the server", arrived)
				if handed := at.in - from - int64(at.toBackend); tls == "disable" && got != handed {
					t.Errorf("%d bytes had been handed over, but %d arrived", handed, got)
				}
				if now := s.moved(); now != at {
					t.Fatalf("frozen at %+v, and now %+v", at, now)
				}
				select {
				case err := <-sent:
					t.Fatalf("all was sent already (%v): the test shows nothing", err)
				default:
				}
				n.regain()
				if err := <-sent; err != nil {
					t.Fatalf("cannot send the copy: %v", err)
				}
				if done := pgtest.WaitFor[*pgproto3.CommandComplete](r); string(done.CommandTag) != fmt.Sprintf("COPY %d", freezeRows) {
					t.Errorf("the server said %q", done.CommandTag)
				}
				pgtest.WaitFor[*pgproto3.ReadyForQuery](r)
				wrong := server.QueryInt(t, fmt.Sprintf(`SELECT count(*) FROM (SELECT v, row_number() OVER (ORDER BY ctid) AS i FROM %s) r
					WHERE v <> lpad(i::text, 8, '0') || repeat('0', %d)`, table, freezeRowBytes-9))
				if rows := rowsOf(t, table); rows != freezeRows || wrong != 0 {
					t.Errorf("%d rows arrived, %d of them not as they were sent", rows, wrong)
				}
				r.Close()
				n.settledAt(baseline)
				n.noBugs()
			})
		}
	}
}

// A process that was stopped past its lease is told nothing when it goes on: every socket that takes bytes again is
// ready at once, and none may get what is buffered for it.
func TestWhatWasBufferedStaysWhenAStoppedProcessGoesOnPastItsLease(t *testing.T) {
	n := startLeased(t, func(c *Config) {
		plainTo(t, server.Addr(), "?sslmode=disable")(c)
		c.Loops = 1
	})
	baseline := n.baseline()
	var clients []*pgtest.Raw
	var tallies []*tally
	for range 4 {
		r := pgtest.LoginRaw(t, n.addr, "alice", pgtest.Database)
		r.Conn().(*net.TCPConn).SetReadBuffer(64 << 10)
		r.Conn().SetDeadline(time.Now().Add(3 * patience))
		r.Query(loadCopyOut(200))
		clients, tallies = append(clients, r), append(tallies, tallyOf(r.Conn(), 0))
	}
	pgtest.Wait(t, "all clients to be behind", func() bool { return n.metrics.pausedSides.Load() == int64(len(clients)) })
	n.stalled()
	release := n.holdLoops() // the process stands still, its kernel does not
	handed := n.metrics.bytesOut.Get()
	for s := range n.loops[0].sessions {
		handed -= uint64(s.front.buffered())
	}
	got := func() (sum int64) {
		for _, c := range tallies {
			sum += c.bytes.Load()
		}
		return sum
	}
	for _, c := range tallies {
		close(c.begin)
	}
	pgtest.Wait(t, "the clients to get what the kernel has", func() bool { return got() == int64(handed) })
	n.held.Store(false)
	release()
	if now := still(t, "the clients", got); now != int64(handed) {
		t.Errorf("%d bytes passed after the lease had ended", now-int64(handed))
	}
	n.Freeze()
	n.regain()
	pgtest.Wait(t, "the rest to arrive", func() bool { return got() >= int64(len(clients))*200*loadRowBytes })
	for _, r := range clients {
		r.Close()
	}
	for _, c := range tallies {
		<-c.done
	}
	n.settledAt(baseline)
	n.noBugs()
}

// gnet writes out what it has buffered when a connection closes. A client that leaves its half, just after a lease that
// has ended unnoticed, gets none of it.
func TestAClientThatLeavesAfterTheLeaseHasEndedGetsNothingThatWasBuffered(t *testing.T) {
	n := startLeased(t, func(c *Config) { c.Loops = 1 })
	r := pgtest.LoginRaw(t, n.addr, "alice", pgtest.Database)
	conn := r.Conn().(*net.TCPConn)
	conn.SetReadBuffer(64 << 10)
	conn.SetDeadline(time.Now().Add(3 * patience))
	s := n.only("alice")
	r.Query(loadCopyOut(200))
	waitOnLoop(t, s, func() bool { return s.back.paused != 0 && s.front.buffered() > lowMarkBytes })
	release := n.holdLoops()
	handed := s.bytesOut - int64(s.front.buffered()) // the loop stands still
	if _, err := io.CopyN(io.Discard, conn, handed); err != nil {
		t.Fatal(err)
	}
	if err := conn.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	n.held.Store(false)
	release()
	if rest, err := io.ReadAll(conn); len(rest) > 0 || err != nil && !pgtest.Ended(err) {
		t.Errorf("%d bytes came after the lease had ended, then %v", len(rest), err)
	}
	server.WaitBackends(t, "alice", 0)
	n.nothingLeft()
	n.noBugs()
}

// endsBehind is a session whose backend has ended while its client is behind: want bytes are on their way to it, the last
// of them in the node.
func (n *leased) endsBehind() (r *pgtest.Raw, s *session, want int64) {
	n.t.Helper()
	role := newRole(n.t, "")
	r = n.raw(role)
	r.Conn().(*net.TCPConn).SetReadBuffer(64 << 10)
	s = n.only(role)
	before := s.moved().out
	pgtest.Wait(n.t, "the client to be behind", func() bool {
		r.Query("SELECT repeat('x', 20000)")
		waitOnLoop(n.t, s, func() bool { return !s.busy() && s.front.scan.AtBoundary() })
		return s.moved().toPeer > 0
	})
	server.Exec(n.t, "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = '"+role+"'")
	waitOnLoop(n.t, s, func() bool { return s.front.phase == phFlush })
	return r, s, s.moved().out - before
}

// wantAll reads to the end of the stream.
func wantAll(t testing.TB, r *pgtest.Raw, want int64) {
	r.Conn().SetDeadline(time.Now().Add(patience))
	if got, err := io.ReadAll(r.Conn()); int64(len(got)) != want || !bytes.Contains(got, []byte("57P01")) {
		t.Errorf("%d bytes came of %d, then %v", len(got), want, err)
	}
}

// A session that is ending has last things to tell its client. A lease that was found ended on the way and is renewed
// before anybody has given it up keeps none of them back.
func TestAnEndingSessionThatFindsTheLeaseEndedFinishesByItself(t *testing.T) {
	t.Parallel()
	n := startLeased(t, func(c *Config) { c.Timeouts.Drain = time.Hour })
	r, _, want := n.endsBehind()
	n.held.Store(false)
	read := make(chan struct{})
	go func() {
		defer close(read)
		wantAll(t, r, want)
	}()
	n.waitFrozen(1)
	n.held.Store(true)
	<-read
	n.nothingLeft()
	n.noBugs()
}

// The time of a freeze does not count against a client that was being told something.
func TestAnEndingSessionTellsTheRestAfterTheThaw(t *testing.T) {
	t.Parallel()
	n := startLeased(t, func(c *Config) { c.Timeouts.Drain = 2 * time.Second })
	r, s, want := n.endsBehind()
	n.lose()
	n.waitFrozen(1)
	until := int64(0)
	s.onLoop(func() { until = s.front.until })
	pgtest.Wait(t, "the time to tell it to be over", func() bool { return s.now() > until+int64(100*time.Millisecond) })
	n.regain()
	wantAll(t, r, want)
	n.nothingLeft()
	n.noBugs()
}

func TestAnEndingSessionDoesNotOutliveADrop(t *testing.T) {
	t.Parallel()
	n := startLeased(t, func(c *Config) { c.Timeouts.Drain = time.Hour })
	r, _, want := n.endsBehind()
	n.lose()
	n.Drop()
	n.nothingLeft()
	r.Conn().SetDeadline(time.Now().Add(patience))
	if got, _ := io.ReadAll(r.Conn()); int64(len(got)) >= want {
		t.Errorf("all %d bytes came past the lease", want)
	}
	n.noBugs()
}
