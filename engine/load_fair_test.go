package engine

import (
	"io"
	"net"
	"testing"
	"time"

	"pgedge/internal/pgtest"
)

func TestACopyAtFullSpeedDoesNotStarveASessionOfTheSameLoop(t *testing.T) {
	n := startNode(t, func(c *Config) { c.Loops = 1 })
	baseline := n.baseline()
	const copies = 3
	done := make(chan error, copies)
	var conns []net.Conn
	for range copies {
		raw := pgtest.LoginRaw(t, n.addr, "trustuser", pgtest.Database)
		raw.Query("COPY (SELECT repeat('x', 60000), generate_series(1, 1000000000)) TO STDOUT")
		conn := raw.Conn()
		conn.SetDeadline(time.Now().Add(2 * patience))
		conns = append(conns, conn)
		go func() {
			_, err := io.Copy(io.Discard, conn)
			done <- err
		}()
	}
	moved := func() uint64 { return n.metrics.bytesOut.Get() }
	pgtest.Wait(t, "the copies to run", func() bool { return moved() > 4<<20 })

	// Each query completes while the copies go on, and a new session finds its place too.
	other := n.login("md5user")
	for range 100 {
		before := moved()
		var one int
		if err := other.QueryRow(bounded(t), "SELECT 1").Scan(&one); err != nil {
			t.Fatalf("a query beside the copies: %v", err)
		}
		pgtest.Wait(t, "the copies to go on", func() bool { return moved() > before+1<<10 })
	}
	select {
	case err := <-done:
		t.Fatalf("a copy ended (%v): the test proves nothing", err)
	default:
	}
	for _, c := range conns {
		c.Close()
	}
	for range copies {
		<-done
	}
	other.Close(bounded(t))
	n.settledAt(baseline)
	server.WaitBackends(t, "trustuser", 0)
	n.noBugs()
}
