package engine

import (
	"bufio"
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
)

// loadChildEnv makes the test binary a node with few descriptors.
const loadChildEnv = "PGEDGE_TEST_LOAD_CHILD"

// TestLoadChild is not a test: it is the process that the flood test starts, with a descriptor
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
