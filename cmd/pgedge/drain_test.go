package main

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"pgedge/internal/pgserver"
	"pgedge/internal/pgtest"
)

// startPgedge runs a command that is expected to take a while; done waits for its end and returns what it printed.
func startPgedge(t *testing.T, args ...string) (done func(want int) string) {
	t.Helper()
	cmd := exec.Command("pgedge", args...)
	cmd.Env = cleanEnviron()
	var out strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cmd.Process.Kill() })
	return func(want int) string {
		t.Helper()
		cmd.Wait()
		if got := cmd.ProcessState.ExitCode(); got != want {
			t.Fatalf("pgedge %s: exit code %d, want %d\n%s", strings.Join(args, " "), got, want, out.String())
		}
		return out.String()
	}
}

func sqlstate(err error) string {
	var pgErr *pgconn.PgError
	if errors.As(err, &pgErr) {
		return pgErr.Code
	}
	return ""
}

func TestNodesDrainMakesANodeEndAndWatchesItLeave(t *testing.T) {
	pg := pgtest.Start(t, pgtest.Options{})
	nodes, addrs, state := startTrio(t, pg)
	ctx, cancel := context.WithTimeout(context.Background(), pgtest.Patience)
	defer cancel()
	idle, err := login(addrs[1], "alice")
	if err != nil {
		t.Fatal(err)
	}
	defer idle.Close(ctx)
	busy, err := login(addrs[1], "bob")
	if err != nil {
		t.Fatal(err)
	}
	defer busy.Close(ctx)
	tx, err := busy.Begin(ctx)
	if err != nil {
		t.Fatal(err)
	}
	bystander, err := login(addrs[2], "alice")
	if err != nil {
		t.Fatal(err)
	}
	defer bystander.Close(ctx)

	if out := pgedge(t, 1, "nodes", "drain", "edge-x", "--state-dir", state); !strings.Contains(out, "there is no node edge-x; live are: edge-a, edge-b, edge-c") {
		t.Errorf("an unknown node: %s", out)
	}
	done := startPgedge(t, "nodes", "drain", "edge-b", "--state-dir", state)
	nodes[1].await("draining, as pgedge nodes drain has asked")
	if _, err := idle.WaitForNotification(ctx); sqlstate(err) != "57P01" {
		t.Errorf("the idle session ended with %v", err)
	}
	if code, body := get(t, nodes[1].admin+"/readyz"); code != 503 || !strings.Contains(body, "draining") {
		t.Errorf("/readyz says %d %s", code, body)
	}
	if _, err := login(addrs[1], "alice"); sqlstate(err) != "57P03" {
		t.Errorf("a login while draining: %v", err)
	}
	// The transaction is not disturbed, and a second drain of the same node changes nothing.
	out := pgedge(t, 4, "nodes", "drain", "edge-b", "--wait", "200ms", "--state-dir", state)
	if !strings.Contains(out, "has not left within") || !strings.Contains(out, "1 session ") {
		t.Errorf("printed %s", out)
	}
	if _, err := tx.Exec(ctx, "SELECT 1"); err != nil {
		t.Errorf("the transaction: %v", err)
	}
	if err := tx.Commit(ctx); err != nil {
		t.Errorf("the commit: %v", err)
	}
	out = done(0)
	if !strings.Contains(out, "edge-b  draining, 2 sessions\n") || !strings.Contains(out, "edge-b  left after ") {
		t.Errorf("printed %s", out)
	}
	if code := nodes[1].exitCode(); code != 0 {
		t.Errorf("the node ended with %d", code)
	}
	if err := bystander.Ping(ctx); err != nil {
		t.Errorf("the session of another node: %v", err)
	}
	if out := pgedge(t, 1, "nodes", "drain", "edge-b", "--state-dir", state); !strings.Contains(out, "node edge-b has left already") {
		t.Errorf("a node that has left: %s", out)
	}
	bystander.Close(ctx)
	lines := decodeLines(t, pgedge(t, 0, "nodes", "drain", "edge-c", "-o", "json", "--state-dir", state))
	if first, last := lines[0], lines[len(lines)-1]; first["state"] != "draining" || last["state"] != "left" || last["node"] != "edge-c" {
		t.Errorf("in JSON: %v", lines)
	}
	// The one that runs NATS takes it along.
	if out := pgedge(t, 0, "nodes", "drain", "edge-a", "--state-dir", state); !strings.Contains(out, "left after") && !strings.Contains(out, "and with it the NATS server") {
		t.Errorf("the node that embeds NATS: %s", out)
	}
	if code := nodes[0].exitCode(); code != 0 {
		t.Errorf("the node that embeds NATS ended with %d", code)
	}
}

// A load balancer takes a moment to see that /readyz says 503; until then nobody is turned away.
func TestForTheDrainDelayANodeIsNotReadyAndServesOn(t *testing.T) {
	pg := pgtest.Start(t, pgtest.Options{})
	dir := t.TempDir()
	file := filepath.Join(dir, "pgedge.yaml")
	writeFile(t, file, fmt.Sprintf("node: edge-a\nlisten: ['127.0.0.1:0']\nadmin: 127.0.0.1:0\nstate_dir: %s\ntimeouts: {drain_delay: 1h, drain: 10s}\ndatabases: {'*': {upstream: '%s'}}\n",
		filepath.Join(dir, "state"), pg.URL("pgedge_control", pgserver.Password("pgedge_control"), pgserver.Database)))
	node := startServe(t, "-c", file)
	adminURL := "http://" + node.await("serving health and metrics")["address"].(string)
	addr := node.await(logAccepting)["address"].(string)
	node.await(logReady)
	ctx, cancel := context.WithTimeout(context.Background(), pgtest.Patience)
	defer cancel()
	before, err := login(addr, "alice")
	if err != nil {
		t.Fatal(err)
	}
	defer before.Close(ctx)
	node.cmd.Process.Signal(syscall.SIGTERM)
	pgtest.Wait(t, "/readyz to say 503", func() bool { code, _ := get(t, adminURL+"/readyz"); return code == 503 })
	during, err := login(addr, "bob")
	if err != nil {
		t.Fatalf("a login during the delay: %v", err)
	}
	defer during.Close(ctx)
	for _, c := range []*pgx.Conn{before, during} {
		if err := c.Ping(ctx); err != nil {
			t.Errorf("a session during the delay: %v", err)
		}
	}
	node.cmd.Process.Signal(syscall.SIGTERM) // enough
	if _, err := before.WaitForNotification(ctx); sqlstate(err) != "57P01" {
		t.Errorf("the session ended with %v", err)
	}
	if code := node.exitCode(); code != 0 {
		t.Errorf("exit code %d", code)
	}
}

// writer inserts numbered rows one after the other and logs in anew when it is told to come back.
type writer struct {
	user         string
	addr         string
	acknowledged atomic.Int64
	doubtful     atomic.Int64 // sent, and the connection ended without an answer
	refused      atomic.Pointer[string]
}

func (w *writer) run(t *testing.T, stop <-chan struct{}) {
	ctx := context.Background()
	var conn *pgx.Conn
	defer func() {
		if conn != nil {
			conn.Close(ctx)
		}
	}()
	for n := 0; ; n++ {
		select {
		case <-stop:
			return
		default:
		}
		if conn == nil {
			c, err := login(w.addr, w.user)
			switch code := sqlstate(err); {
			case err == nil:
				conn = c
			case code == "28000":
				w.refused.Store(&code)
				continue
			default: // 57P03, or a node that is not there
				continue
			}
		}
		_, err := conn.Exec(ctx, fmt.Sprintf("INSERT INTO ledger VALUES ('%s', %d, clock_timestamp())", w.user, n))
		switch code := sqlstate(err); {
		case err == nil:
			w.acknowledged.Add(1)
			continue
		case code == "57P01" || code == "57P03":
		case code == "28000":
			w.doubtful.Add(1) // the revocation came in the middle; its receipt says what became of the statement
		case code != "":
			t.Errorf("%s: %v", w.user, err)
		default:
			w.doubtful.Add(1)
		}
		conn.Close(ctx)
		conn = nil
	}
}

func TestARollingRestartUnderLoadLosesNoCommitAndLetsNoRevokedUserIn(t *testing.T) {
	pg := pgtest.Start(t, pgtest.Options{})
	pg.Exec(t, "CREATE TABLE ledger (who text, n int, at timestamptz)", "GRANT ALL ON ledger TO PUBLIC")
	nodes, addrs, state := startTrio(t, pg)
	balancer := pgtest.NewBalancer(t, addrs...)
	stop := make(chan struct{})
	var wg sync.WaitGroup
	var writers []*writer
	for _, user := range []string{"alice", "alice", "bob", "bob", "carol", "carol"} {
		w := &writer{user: user, addr: balancer}
		writers = append(writers, w)
		wg.Go(func() { w.run(t, stop) })
	}
	progress := func(who string) {
		t.Helper()
		from := make(map[*writer]int64)
		for _, w := range writers {
			from[w] = w.acknowledged.Load()
		}
		pgtest.Wait(t, who+" to go on writing", func() bool {
			for _, w := range writers {
				if w.user == who && w.acknowledged.Load() < from[w]+20 {
					return false
				}
			}
			return true
		})
	}
	revokedAt := ""
	for i, name := range map[int]string{1: "edge-b", 2: "edge-c"} {
		progress("alice")
		progress("bob")
		done := startPgedge(t, "nodes", "drain", name, "--state-dir", state)
		if revokedAt == "" {
			nodes[i].await("draining, as pgedge nodes drain has asked")
			pgedge(t, 0, "revoke", "carol", "--state-dir", state) // in the middle of it
			revokedAt = pg.QueryString(t, "SELECT clock_timestamp()::text")
		}
		done(0)
		if code := nodes[i].exitCode(); code != 0 {
			t.Errorf("%s ended with %d", name, code)
		}
		again := startServe(t, "--node", name, "--listen", addrs[i], "--admin", "off", "--state-dir", filepath.Join(t.TempDir(), "state"),
			"--nats", natsURL(t, state).String(), "--upstream", pg.URL("pgedge_control", pgserver.Password("pgedge_control"), pgserver.Database))
		again.await(logReady)
		refusedWith(t, addrs[i], "carol", "28000")
	}
	progress("alice")
	progress("bob")
	close(stop)
	wg.Wait()
	for _, user := range []string{"alice", "bob", "carol"} {
		var acknowledged, doubtful int64
		for _, w := range writers {
			if w.user == user {
				acknowledged += w.acknowledged.Load()
				doubtful += w.doubtful.Load()
			}
		}
		rows := pg.QueryInt(t, "SELECT count(*) FROM ledger WHERE who = $1", user)
		t.Logf("%s: %d rows, %d acknowledged, %d doubtful", user, rows, acknowledged, doubtful)
		if rows < acknowledged || rows > acknowledged+doubtful {
			t.Errorf("%s: %d rows, %d acknowledged, %d doubtful", user, rows, acknowledged, doubtful)
		}
		if user != "carol" && doubtful > 0 {
			t.Errorf("%s was left in doubt %d times: a drain ends sessions where nothing is open", user, doubtful)
		}
	}
	if late := pg.QueryInt(t, "SELECT count(*) FROM ledger WHERE who = 'carol' AND at > $1::text::timestamptz", revokedAt); late > 0 {
		t.Errorf("%d rows of a revoked user were written after the command had returned", late)
	}
	for _, w := range writers {
		if w.user == "carol" && w.refused.Load() == nil {
			t.Error("a writer of the revoked user was never refused")
		}
	}
}
