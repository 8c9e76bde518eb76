package engine

import (
	"bytes"
	"errors"
	"io"
	"net"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgproto3"

	"pgedge/internal/pgtest"
	"pgedge/revoke"
)

func TestMoreSessionsThanDescriptorsAllowAreAnErrorAtStart(t *testing.T) {
	if c, err := divide(256, 0); err != nil || c.sessions < 50 || 2*c.sessions+c.refusals+reservedDescriptors > 256 {
		t.Errorf("256 descriptors: %+v, %v", c, err)
	}
	for _, descriptors := range []int{256, 1024, 4096, 65536, 1 << 20} {
		c, err := divide(descriptors, 0)
		if err != nil {
			t.Fatal(err)
		}
		if most := 2*c.sessions + c.refusals + maxEnrolling + maxCancelling + reservedDescriptors; most > descriptors {
			t.Errorf("%d descriptors, but up to %d are used", descriptors, most)
		}
		if exact, err := divide(descriptors, c.sessions); err != nil || exact.sessions != c.sessions {
			t.Errorf("max_sessions %d of %d descriptors: %+v, %v", c.sessions, descriptors, exact, err)
		}
		if _, err := divide(descriptors, c.sessions+1); err == nil || !strings.Contains(err.Error(), "max_sessions") {
			t.Errorf("max_sessions %d of %d descriptors: %v, want an error", c.sessions+1, descriptors, err)
		}
	}
	if _, err := divide(64, 0); err == nil {
		t.Error("64 descriptors are enough for nothing, and no error came")
	}
	_, err := New(Config{Node: "n", Listen: []string{"127.0.0.1:0"}, Table: revoke.NewTable(), Limits: Limits{MaxSessions: 1 << 30},
		Databases: map[string]Database{"*": {Upstream: controlUpstream(t, "pgedge_control", server.Addr(), "")}}})
	if err == nil {
		t.Error("New took a max_sessions that no descriptor limit allows")
	}
}

// loadStartup is a startup packet of protocol 3.0.
func loadStartup(user, db string) []byte {
	msg, err := (&pgproto3.StartupMessage{ProtocolVersion: pgproto3.ProtocolVersion30,
		Parameters: map[string]string{"user": user, "database": db}}).Encode(nil)
	if err != nil {
		panic(err)
	}
	return msg
}

func TestSlowLoginsEndSilentlyAtTheLoginTimeoutAndBlockNobody(t *testing.T) {
	const slow = 60
	n := startNode(t, func(c *Config) {
		quiet(c)
		c.Limits.LoginTimeout = 2 * time.Second
		c.Limits.MaxLogins = 4
	})
	baseline := n.baseline()
	packet := loadStartup("alice", pgtest.Database)
	type end struct {
		said []byte
		err  error
	}
	ends := make(chan end, slow)
	for i := range slow {
		conn := n.dial()
		go func() {
			// A byte per second, from different places of the packet, none so late that it becomes whole in time.
			stop := make(chan struct{})
			go func() {
				at := i % (len(packet) - 8)
				conn.Write(packet[:at])
				tick := time.NewTicker(time.Second)
				defer tick.Stop()
				for ; at < len(packet); at++ {
					select {
					case <-tick.C:
						conn.Write(packet[at : at+1])
					case <-stop:
						return
					}
				}
			}()
			said, err := io.ReadAll(conn)
			close(stop)
			conn.Close()
			ends <- end{said, err}
		}()
	}
	pgtest.Wait(t, "the slow logins to be accepted", func() bool { return len(n.slots) > slow/2 })
	// Neither those who type slowly nor those who hold a login slot keep the others out.
	for range 3 {
		c, err := loadDial(n.addr, "trustuser", "", pgtest.Database)
		if err != nil {
			t.Fatalf("a login in the middle of slow ones: %v", err)
		}
		if err := c.query("SELECT 1"); err != nil {
			t.Fatal(err)
		}
		c.terminate()
	}
	for range slow {
		e := <-ends
		if len(e.said) > 0 || e.err != nil && !errors.Is(e.err, syscall.ECONNRESET) {
			t.Errorf("a slow login was told %q, %v; want silence", e.said, e.err)
		}
	}
	n.endedFor(ReasonLoginTimeout, slow)
	n.settledAt(baseline)
	n.noBugs()
}

func TestALoginThatOwesItsPasswordEndsSilentlyAtTheLoginTimeout(t *testing.T) {
	n := startNode(t, func(c *Config) { c.Limits.LoginTimeout = time.Second })
	baseline := n.baseline()
	raw := pgtest.DialRaw(t, n.addr)
	raw.SendBytes(loadStartup("alice", pgtest.Database))
	if m, ok := raw.Receive().(*pgproto3.AuthenticationSASL); !ok {
		t.Fatalf("got %T", m)
	}
	if errs, end := raw.Rest(); len(errs) > 0 || !errors.Is(end, io.EOF) {
		t.Errorf("the client was told %v and then %v; want silence", errs, end)
	}
	raw.Close()
	n.endedFor(ReasonLoginTimeout, 1)
	n.settledAt(baseline)
	server.WaitBackends(t, "alice", 0)
}

func TestLoginsBeyondTheirSlotsWaitAndTheirNumberIsBounded(t *testing.T) {
	const slots = 3
	hung, err := net.Listen("tcp", "127.0.0.1:0") // accepts and says nothing
	if err != nil {
		t.Fatal(err)
	}
	defer hung.Close()
	u, err := ParseUpstream("postgres://" + hung.Addr().String() + "?sslmode=disable")
	if err != nil {
		t.Fatal(err)
	}
	n := startNode(t, func(c *Config) {
		quiet(c)
		c.Limits.MaxLogins = slots
		c.Limits.LoginTimeout = 2 * time.Second
		c.Databases["hung"] = Database{Upstream: u}
	})
	baseline := n.baseline()
	conns := make([]net.Conn, 4*slots)
	for i := range conns {
		conns[i] = n.dial()
		conns[i].Write(loadStartup("ann", "hung"))
	}
	pgtest.Wait(t, "all logins to be registered", func() bool { return n.index.len() == len(conns) })
	dialled := 0
	for _, s := range n.index.all() {
		s.mu.Lock()
		dialled += len(s.conns) - 1
		s.mu.Unlock()
	}
	if dialled > slots || len(n.loginSlots) != slots {
		t.Errorf("%d logins talk to a backend and %d slots are taken, want %d", dialled, len(n.loginSlots), slots)
	}
	// A login that gets its slot in the last moment may be told that it found nobody; the others are told nothing.
	for _, c := range conns {
		said, err := io.ReadAll(c)
		if err != nil || len(said) > 0 && !bytes.Contains(said, []byte("C08001\x00")) {
			t.Errorf("a login that waited was told %q, %v", said, err)
		}
	}
	for _, c := range conns {
		c.Close()
	}
	n.settledAt(baseline)
	n.noBugs()
}

func TestLimitsOfPrincipalDatabaseAndNodeRefuseWith53300(t *testing.T) {
	fake := startLoadBackend(t)
	n := startNode(t, func(c *Config) {
		quiet(c)
		c.Limits.MaxSessions = 6
		c.Limits.PerPrincipal = 3
		c.Databases = map[string]Database{"*": {Upstream: fake.upstream(t)}, "small": {Upstream: fake.upstream(t), MaxBackends: 2}}
	})
	baseline := n.baseline()
	var open []*loadClient
	login := func(user, db, want string) {
		t.Helper()
		c, err := loadDial(n.addr, user, "", db)
		if loadCode(err) != want || (err == nil) != (want == "") {
			t.Fatalf("%s to %s: %v, want %q", user, db, err, want)
		}
		if err == nil {
			open = append(open, c)
		}
	}
	login("ann", "small", "")
	login("ben", "small", "")
	login("cid", "small", "53300")
	login("ann", "big", "")
	login("ann", "big", "")
	login("ann", "big", "53300")
	login("ben", "big", "")
	login("cid", "big", "")
	login("dan", "big", "53300")
	for _, c := range open[:2] {
		c.terminate()
	}
	pgtest.Wait(t, "the places to be free again", func() bool { return n.SessionCount() == len(open)-2 })
	open = open[2:]
	login("dan", "small", "")
	for _, c := range open {
		c.terminate()
	}
	n.settledAt(baseline)
	n.noBugs()
}
