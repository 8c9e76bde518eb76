package engine

import (
	"encoding/binary"
	"strings"
	"sync"
	"testing"

	"pgedge/codec"
	"pgedge/internal/pgtest"
)

// sleeper is a session that runs a statement nobody waits for.
type sleeper struct {
	*plainConn
	key codec.CancelKey
	sql string
}

func startSleeper(t *testing.T, addr, mark string) *sleeper {
	t.Helper()
	c := dialPlain(t, "tcp", addr)
	c.send(startup("user", "trustuser", "database", pgtest.Database))
	s := &sleeper{plainConn: c, sql: "SELECT pg_sleep(300) /* " + mark + " */"}
	for _, f := range c.until('Z') {
		if f.typ == 'K' {
			key, err := codec.ParseBackendKeyData(f.body)
			if err != nil {
				t.Fatal(err)
			}
			s.key = key
		}
	}
	c.send(query(s.sql))
	s.waitActive(1)
	return s
}

func (s *sleeper) waitActive(n int64) {
	s.t.Helper()
	server.WaitInt(s.t, n, "SELECT count(*) FROM pg_stat_activity WHERE state = 'active' AND query = $1", s.sql)
}

// isCancelled expects that the statement ends by a cancel request and that the session goes on.
func (s *sleeper) isCancelled() {
	s.t.Helper()
	if got := spell(s.until('Z')); !strings.Contains(got, "E(ERROR 57014 canceling statement due to user request)") {
		s.t.Errorf("got %s", got)
	}
	s.send(query("SELECT 'alive'"))
	if got := spell(s.until('Z')); !strings.Contains(got, "alive") {
		s.t.Errorf("got %s", got)
	}
}

// cancelAt sends a cancel request and waits for the end of its connection, on which nothing may come back.
func cancelAt(t *testing.T, addr string, key codec.CancelKey) {
	t.Helper()
	c := dialPlain(t, "tcp", addr)
	c.send(codec.AppendCancelRequest(nil, key))
	if got := c.rest(); len(got) > 0 {
		t.Errorf("a cancel request was answered: %s", spell(got))
	}
}

func TestWireOnlyTheRightKeyCancels(t *testing.T) {
	n := startNode(t, nil)
	s, other := startSleeper(t, n.addr, "right key"), startSleeper(t, n.addr, "bystander")
	if s.key.PID == other.key.PID || string(s.key.Secret) == string(other.key.Secret) {
		t.Fatalf("two sessions were given the same key: %v", s.key)
	}
	wrong := append([]byte(nil), s.key.Secret...)
	wrong[3] ^= 1
	long := append(append([]byte(nil), s.key.Secret...), 0)
	for name, key := range map[string]codec.CancelKey{
		"a wrong secret":           {PID: s.key.PID, Secret: wrong},
		"another session's secret": {PID: s.key.PID, Secret: other.key.Secret},
		"a wrong pid":              {PID: s.key.PID + 100, Secret: s.key.Secret},
		"a longer secret":          {PID: s.key.PID, Secret: long},
		"a shorter secret":         {PID: s.key.PID, Secret: s.key.Secret[:3]},
		"the backend's own pid":    {PID: uint32(server.QueryInt(t, "SELECT pid FROM pg_stat_activity WHERE query = $1", s.sql)), Secret: s.key.Secret},
	} {
		cancelAt(t, n.addr, key)
		if n := server.QueryInt(t, "SELECT count(*) FROM pg_stat_activity WHERE state = 'active' AND query = ANY(ARRAY[$1, $2])", s.sql, other.sql); n != 2 {
			t.Fatalf("%s cancelled a statement", name)
		}
	}
	cancelAt(t, n.addr, s.key)
	s.isCancelled()
	other.waitActive(1)
	cancelAt(t, n.addr, other.key)
	other.isCancelled()
	cancelAt(t, n.addr, s.key) // of an idle session: ignored
	s.send(query("SELECT 'again'"))
	if got := spell(s.until('Z')); !strings.Contains(got, "again") {
		t.Errorf("got %s", got)
	}
	s.send(goodbye)
	s.rest()
	pgtest.Wait(t, "the session to be forgotten", func() bool { return n.cancels.find(s.key) == nil })
}

func TestWireCancelWorksWhenNoSessionIsLeft(t *testing.T) {
	n := startNode(t, func(c *Config) { c.Limits.MaxSessions = 1 })
	s := startSleeper(t, n.addr, "all places taken")
	c := dialPlain(t, "tcp", n.addr)
	c.send(startup("user", "trustuser", "database", pgtest.Database))
	if code := c.refusal(); code != "53300" {
		t.Fatalf("the second session was told %q, want 53300", code)
	}
	cancelAt(t, n.addr, s.key)
	s.isCancelled()
}

// TestWireCancelGoesToTheServerUnderItsOwnKeyOnly looks at what reaches the server, with a backend that gives out the
// long keys of protocol 3.2.
func TestWireCancelGoesToTheServerUnderItsOwnKeyOnly(t *testing.T) {
	own := codec.CancelKey{PID: 77, Secret: []byte(strings.Repeat("own secret ", 6))}
	requests := make(chan []byte, 1)
	f := newFake(t, func(c *fakeConn) {
		if binary.BigEndian.Uint32(c.startup) == cancelCode {
			requests <- c.startup
			return
		}
		c.write(m('R', int32(0)), codec.AppendBackendKeyData(nil, own), m('Z', byte('I')))
		c.hold()
	})
	n := through(t, f.addr, nil)
	for version, length := range map[uint32]int{version30: 4, version30 + 2: randomLength32 + len("edge-t")} {
		c := dialPlain(t, "tcp", n.addr)
		c.send(startupVersion(version, "user", "u", "database", "d"))
		var key codec.CancelKey
		for _, f := range c.until('Z') {
			if f.typ == 'K' {
				key, _ = codec.ParseBackendKeyData(f.body)
			}
		}
		if key.PID == own.PID || len(key.Secret) != length || strings.Contains(string(key.Secret), "own") {
			t.Fatalf("the client of version %x was given %v", version, key)
		}
		c.send(query("SELECT 1")) // for an idle session the server is not bothered
		cancelAt(t, n.addr, key)
		if got := <-requests; string(got) != string(codec.AppendCancelRequest(nil, own)[4:]) {
			t.Errorf("the server was sent %q", got)
		}
	}
}

func TestWireStormOfCancelsIsBounded(t *testing.T) {
	back := pgtest.NewRelay(t, server.Addr())
	n := through(t, back.Addr(), nil)
	s := startSleeper(t, n.addr, "storm")
	const storm = 100
	back.Pause(pgtest.ToServer) // the server takes note of none of them
	var wg sync.WaitGroup
	for range storm {
		c := dialPlain(t, "tcp", n.addr)
		wg.Go(func() {
			if _, err := c.Write(codec.AppendCancelRequest(nil, s.key)); err != nil {
				t.Error(err)
			}
			if f, err := c.next(); !ended(err) {
				t.Errorf("got %q, %v", f.typ, err)
			}
		})
	}
	pgtest.Wait(t, "the storm to be dropped", func() bool { return n.metrics.cancelsDropped.Get() >= storm-maxCancelling })
	if got := back.Conns(); got > 1+maxCancelling {
		t.Errorf("%d connections to the server, want at most %d", got, 1+maxCancelling)
	}
	back.Resume(pgtest.ToServer)
	wg.Wait()
	s.isCancelled()
	pgtest.Wait(t, "the cancel requests to be over", func() bool { return back.Conns() == 1 })
}
