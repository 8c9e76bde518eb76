package engine

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgproto3"

	"pgedge/internal/pgtest"
	"pgedge/revoke"
)

// loadChildEnv makes the test binary a node with few descriptors.
const loadChildEnv = "PGEDGE_TEST_LOAD_CHILD"

// TestLoadChild is not a test: it is the process that TestAFloodUnderALowDescriptorLimit starts, with a descriptor
// limit of its own. It serves until its standard input ends.
func TestLoadChild(t *testing.T) {
	upstream := os.Getenv(loadChildEnv)
	if upstream == "" {
		return // an ordinary run
	}
	rl := syscall.Rlimit{Cur: 256, Max: 256}
	if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &rl); err != nil {
		t.Fatal(err)
	}
	n := startNode(t, func(c *Config) {
		quiet(c)
		c.Databases["*"] = Database{Upstream: controlUpstream(t, "pgedge_control", upstream, "?sslmode=disable")}
		c.Limits.LoginTimeout = 5 * time.Second
	})
	fmt.Printf("LISTENING %s\n", n.addr)
	in := bufio.NewReader(os.Stdin)
	for {
		line, err := in.ReadString('\n')
		if err != nil {
			return
		}
		switch strings.TrimSpace(line) {
		case "counts":
			fmt.Printf("COUNTS %d %d %d %d\n", n.admitted.Load(), n.index.len(), loadDescriptors(), n.metrics.acceptErrors.Get())
		case "revoke":
			id := n.revoke("alice")
			r := n.receipt(id)
			fmt.Printf("REVOKED %d %d\n", r.Matched, r.Unverified)
		}
	}
}

// loadChild is a node in a process of its own.
type loadChild struct {
	t    *testing.T
	addr string
	in   io.Writer
	out  *bufio.Reader
}

func startLoadChild(t *testing.T) *loadChild {
	t.Helper()
	cmd := exec.Command(os.Args[0], "-test.run=^TestLoadChild$", "-test.v")
	cmd.Env = append(os.Environ(), loadChildEnv+"="+server.Addr())
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	c := &loadChild{t: t, in: in, out: bufio.NewReader(out)}
	t.Cleanup(func() {
		in.Close()
		rest, _ := io.ReadAll(c.out)
		if err := cmd.Wait(); err != nil {
			t.Errorf("the node with few descriptors failed: %v\n%s", err, rest)
		}
	})
	c.addr = c.line("LISTENING ")
	return c
}

// line waits for a line of the child that begins with prefix and returns the rest of it.
func (c *loadChild) line(prefix string) string {
	c.t.Helper()
	for {
		line, err := c.out.ReadString('\n')
		if err != nil {
			c.t.Fatalf("the node with few descriptors ended before it said %q: %v", prefix, err)
		}
		if i := strings.Index(line, prefix); i >= 0 {
			return strings.TrimSpace(line[i+len(prefix):])
		}
	}
}

func (c *loadChild) ask(command, prefix string, into ...any) {
	c.t.Helper()
	fmt.Fprintln(c.in, command)
	if _, err := fmt.Sscan(c.line(prefix), into...); err != nil {
		c.t.Fatal(err)
	}
}

func TestAFloodUnderALowDescriptorLimitLeavesAdmittedSessionsWorking(t *testing.T) {
	c := startLoadChild(t)
	login := func(user string) (*loadClient, error) {
		return loadDial(c.addr, user, pgtest.Password(user), pgtest.Database)
	}
	var admitted []*loadClient
	for range 10 {
		s, err := login("trustuser")
		if err != nil {
			t.Fatal(err)
		}
		admitted = append(admitted, s)
	}
	var alive, index, descriptors, acceptErrors int
	c.ask("counts", "COUNTS ", &alive, &index, &descriptors, &acceptErrors)
	baseline := descriptors

	// A thousand more: some are admitted, some are refused, the rest waits where nothing is spent on them.
	const flood = 1000
	conns := make([]net.Conn, flood)
	var ready, refused, waiting atomic.Int64
	var answered sync.WaitGroup
	release := make(chan struct{})
	for i := range flood {
		conn, err := net.DialTimeout("tcp", c.addr, patience)
		if err != nil {
			t.Fatalf("connection %d: %v", i, err)
		}
		conns[i] = conn
		if i%3 == 0 {
			continue // it says nothing at all
		}
		answered.Go(func() {
			fc := &loadClient{Conn: conn, fe: pgproto3.NewFrontend(conn, conn)}
			err := fc.startup("trustuser", "", pgtest.Database)
			switch {
			case err == nil:
				ready.Add(1)
				<-release
			case loadCode(err) == "53300":
				refused.Add(1)
			default:
				waiting.Add(1)
			}
			conn.Close()
		})
	}
	pgtest.Wait(t, "some of the flood to be admitted", func() bool { return ready.Load() > 10 })
	for range 5 {
		for _, s := range admitted {
			if err := s.query("SELECT 1"); err != nil {
				t.Fatalf("an admitted session does not work during the flood: %v", err)
			}
		}
	}
	c.ask("counts", "COUNTS ", &alive, &index, &descriptors, &acceptErrors)
	if descriptors > 256-reservedDescriptors/2 || acceptErrors > 0 {
		t.Errorf("%d descriptors in use and %d failed accepts during the flood", descriptors, acceptErrors)
	}
	// A revocation works at that moment too.
	var matched, unverified int
	c.ask("revoke", "REVOKED ", &matched, &unverified)

	close(release)
	for i := 0; i < flood; i += 3 {
		conns[i].Close()
	}
	answered.Wait()
	t.Logf("of %d connections %d were admitted, %d refused with 53300, %d ended without an answer", flood, ready.Load(), refused.Load(), waiting.Load())
	for _, s := range admitted {
		if err := s.query("SELECT 1"); err != nil {
			t.Fatalf("an admitted session does not work after the flood: %v", err)
		}
	}
	pgtest.Wait(t, "the flood to be over", func() bool {
		c.ask("counts", "COUNTS ", &alive, &index, &descriptors, &acceptErrors)
		return alive == len(admitted) && index == len(admitted) && descriptors <= baseline
	})
	s, err := login("md5user")
	if err != nil {
		t.Fatalf("nobody can log in after the flood: %v", err)
	}
	s.terminate()
	for _, s := range admitted {
		s.terminate()
	}
	server.WaitBackends(t, "trustuser", 0)
}

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

// loadGarbage makes startup packets that no client should send.
func loadGarbage(i int, pick func(int) int) []byte {
	size := func(n uint32, body []byte) []byte { return append(binary.BigEndian.AppendUint32(nil, n), body...) }
	random := make([]byte, 1+pick(600))
	for k := range random {
		random[k] = byte(pick(256))
	}
	good := loadStartup("ann", pgtest.Database)
	switch i % 10 {
	case 0:
		return random
	case 1:
		return size(uint32(pick(1<<31)), random) // a length that means nothing
	case 2:
		return size(0xffffffff, random)
	case 3:
		return size(uint32(pick(9)), random) // shorter than itself
	case 4:
		return good[:pick(len(good))] // truncated
	case 5:
		return size(10000, random) // the greatest length, and not all of it
	case 6:
		broken := append([]byte(nil), good...)
		broken[pick(len(broken))] ^= byte(1 + pick(255))
		return broken
	case 7:
		return size(uint32(4+len(random)), random) // a packet of garbage, whole
	case 8:
		return append(size(8, []byte{4, 210, 22, 47}), random...) // SSLRequest, and garbage behind it
	default:
		return append([]byte{0x16, 3, 1}, random...) // TLS out of the blue
	}
}

func TestGarbageByTheThousandCostsNothingThatStays(t *testing.T) {
	const packets, workers = 3000, 16
	seed := loadSeed(t)
	fake := startLoadBackend(t)
	n := startNode(t, func(c *Config) {
		quiet(c)
		c.Databases = map[string]Database{"*": {Upstream: fake.upstream(t)}}
		c.Limits.LoginTimeout = 20 * time.Second
	})
	baseline := n.baseline()
	var next atomic.Int64
	var wg sync.WaitGroup
	for w := range workers {
		wg.Go(func() {
			rng := loadRand(seed, uint64(w))
			for i := next.Add(1); i <= packets; i = next.Add(1) {
				conn, err := net.DialTimeout("tcp", n.addr, patience)
				if err != nil {
					t.Error(err)
					return
				}
				conn.SetDeadline(time.Now().Add(patience))
				conn.Write(loadGarbage(int(i), rng.IntN))
				if rng.IntN(2) == 0 {
					conn.(*net.TCPConn).CloseWrite() // else the node closes first, or the close below cuts it off
					if _, err := io.Copy(io.Discard, conn); err != nil && !errors.Is(err, syscall.ECONNRESET) {
						t.Errorf("packet %d: the node did not close: %v", i, err)
					}
				}
				conn.Close()
			}
		})
	}
	wg.Wait()
	n.settledAt(baseline)
	loadCheckHeap(t, "after the garbage")
	n.noBugs()
	c, err := loadDial(n.addr, "ann", "", pgtest.Database)
	if err != nil {
		t.Fatal(err)
	}
	c.terminate()
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
