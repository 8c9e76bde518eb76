package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"pgedge/internal/pgserver"
	"pgedge/internal/pgtest"
)

// served is a `pgedge serve` in a process of its own.
type served struct {
	t     *testing.T
	cmd   *exec.Cmd
	lines chan map[string]any
	seen  []string
	admin string // URL, where the test has asked for it
}

func startServe(t *testing.T, args ...string) *served {
	t.Helper()
	cmd := exec.Command("pgedge", append([]string{"serve", "--log-format", "json"}, args...)...)
	cmd.Env = cleanEnviron()
	return startCommand(t, cmd)
}

func startCommand(t *testing.T, cmd *exec.Cmd) *served {
	t.Helper()
	s := &served{t: t, cmd: cmd, lines: make(chan map[string]any, 1000)}
	stderr, err := s.cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := s.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.cmd.Process.Kill(); s.cmd.Wait() })
	go func() {
		defer close(s.lines)
		lines := bufio.NewScanner(stderr)
		for lines.Scan() {
			m := map[string]any{}
			if json.Unmarshal(lines.Bytes(), &m) != nil {
				m["msg"] = lines.Text()
			}
			s.lines <- m
		}
	}()
	return s
}

// await returns the next log line with this message.
func (s *served) await(msg string) map[string]any {
	s.t.Helper()
	limit := time.After(pgtest.Patience)
	for {
		select {
		case m, ok := <-s.lines:
			if !ok {
				s.t.Fatalf("the process ended before it logged %q; it logged\n%s", msg, strings.Join(s.seen, "\n"))
			}
			s.seen = append(s.seen, fmt.Sprint(m))
			if text, _ := m["msg"].(string); strings.Contains(text, msg) {
				return m
			}
		case <-limit:
			s.t.Fatalf("not logged: %q", msg)
		}
	}
}

func (s *served) exitCode() int {
	s.t.Helper()
	for m := range s.lines {
		s.seen = append(s.seen, fmt.Sprint(m))
	}
	err := s.cmd.Wait()
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return exit.ExitCode()
	}
	if err != nil {
		s.t.Fatal(err)
	}
	return 0
}

func login(addr, user string) (*pgx.Conn, error) {
	ctx, cancel := context.WithTimeout(context.Background(), pgtest.Patience)
	defer cancel()
	return pgx.Connect(ctx, pgserver.URL(addr, user, pgserver.Password(user), pgserver.Database)+"?sslmode=disable")
}

func get(t *testing.T, url string) (int, string) {
	t.Helper()
	resp, err := http.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(b)
}

func pgedge(t *testing.T, want int, args ...string) string {
	t.Helper()
	cmd := exec.Command("pgedge", args...)
	cmd.Env = cleanEnviron()
	out, _ := cmd.CombinedOutput()
	if got := cmd.ProcessState.ExitCode(); got != want {
		t.Fatalf("pgedge %s: exit code %d, want %d\n%s", strings.Join(args, " "), got, want, out)
	}
	return string(out)
}

func writeFile(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

// A node's life: it starts, serves, revokes, reloads, drains, and remembers after a restart.
func TestServeFromStartToStop(t *testing.T) {
	pg := pgtest.Start(t, pgtest.Options{})
	dir := t.TempDir()
	file, trail, state := filepath.Join(dir, "pgedge.yaml"), filepath.Join(dir, "audit.jsonl"), filepath.Join(dir, "state")
	configFor := func(extra string) string {
		return fmt.Sprintf("node: edge-a\nlisten: ['127.0.0.1:0']\nadmin: 127.0.0.1:0\nstate_dir: %s\naudit: {file: %s}\ntimeouts: {drain: 5s}\ndatabases: {'*': {upstream: '%s'}}\n%s",
			state, trail, pg.URL("pgedge_control", pgserver.Password("pgedge_control"), pgserver.Database), extra)
	}
	writeFile(t, file, configFor("contact: it@corp.com\n"))
	node := startServe(t, "-c", file)
	adminURL := "http://" + node.await("serving health and metrics")["address"].(string)
	addr := node.await(logAccepting)["address"].(string)
	node.await(logReady)
	if code, body := get(t, adminURL+"/readyz"); code != 200 {
		t.Errorf("readyz: %d %s", code, body)
	}
	if code, body := get(t, adminURL+"/metrics"); code != 200 || !strings.Contains(body, "pgedge_journal_seq") || !strings.Contains(body, "pgedge_sessions") {
		t.Errorf("metrics: %d, %d bytes", code, len(body))
	}

	other := startServe(t, "-c", file)
	if code := other.exitCode(); code != 1 || !strings.Contains(strings.Join(other.seen, "\n"), fmt.Sprintf("in use by process %d", node.cmd.Process.Pid)) {
		t.Errorf("a second process on the same state directory: exit code %d, %s", code, other.seen)
	}

	alice, err := login(addr, "alice")
	if err != nil {
		t.Fatal(err)
	}
	defer alice.Close(context.Background())
	pgedge(t, 0, "revoke", "alice", "--reason", "HR-1234", "--state-dir", state)
	refused := func(hint string) {
		t.Helper()
		_, err := login(addr, "alice")
		var pgErr *pgconn.PgError
		if !errors.As(err, &pgErr) || pgErr.Code != "28000" || !strings.Contains(pgErr.Hint, hint) {
			t.Errorf("alice was not refused with HINT %s: %v", hint, err)
		}
	}
	refused("it@corp.com")

	writeFile(t, file, strings.Replace(configFor("contact: desk@corp.com\n"), "node: edge-a", "node: edge-b", 1))
	node.cmd.Process.Signal(syscall.SIGHUP)
	if keys := node.await("some changes need a restart")["keys"]; keys != "node" {
		t.Errorf("needs a restart: %v", keys)
	}
	node.await("reloaded")
	refused("desk@corp.com")
	writeFile(t, file, configFor("contcat: nobody\n"))
	node.cmd.Process.Signal(syscall.SIGHUP)
	node.await("nothing was changed")
	refused("desk@corp.com")

	bob, err := login(addr, "bob")
	if err != nil {
		t.Fatal(err)
	}
	defer bob.Close(context.Background())
	node.cmd.Process.Signal(syscall.SIGTERM)
	ctx, cancel := context.WithTimeout(context.Background(), pgtest.Patience)
	defer cancel()
	_, err = bob.WaitForNotification(ctx)
	var pgErr *pgconn.PgError
	if !errors.As(err, &pgErr) || pgErr.Code != "57P01" {
		t.Errorf("bob's session ended with %v", err)
	}
	if code := node.exitCode(); code != 0 {
		t.Errorf("exit code %d\n%s", code, strings.Join(node.seen, "\n"))
	}
	if _, err := os.Stat(filepath.Join(state, "nats-url")); !errors.Is(err, os.ErrNotExist) {
		t.Error("nats-url was left behind")
	}
	checkTrail(t, trail)

	writeFile(t, file, configFor(""))
	again := startServe(t, "-c", file)
	addr = again.await(logAccepting)["address"].(string)
	refused("")
}

func checkTrail(t *testing.T, path string) {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	kinds := map[string]int{}
	for _, m := range decodeLines(t, string(b)) {
		kinds[m["kind"].(string)]++
		if m["node"] != "edge-a" || m["boot"] == nil || m["time"] == nil {
			t.Errorf("record %v", m)
		}
	}
	for _, kind := range []string{"login", "refusal", "end", "revocation"} {
		if kinds[kind] == 0 {
			t.Errorf("no record of kind %s in %v", kind, kinds)
		}
	}
}

func TestServeRefusesMoreSessionsThanDescriptors(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "pgedge.yaml")
	writeFile(t, file, "node: a\nadmin: off\nlimits: {max_sessions: 1000000}\ndatabases: {'*': {upstream: 'postgres://127.0.0.1:1'}}\n")
	s := startServe(t, "-c", file, "--state-dir", filepath.Join(dir, "state"), "--listen", "127.0.0.1:0")
	if code := s.exitCode(); code != 1 || !strings.Contains(strings.Join(s.seen, "\n"), "max_sessions") {
		t.Errorf("exit code %d\n%s", code, strings.Join(s.seen, "\n"))
	}
}

// A joiner that was started under the id of the embedded server's node ended that node, and with it the cluster.
func TestANodeUnderAnIDThatIsInUseIsRefusedAndTheOtherServesOn(t *testing.T) {
	dir := t.TempDir()
	args := func(id, state string) []string {
		return []string{"--node", id, "--upstream", "postgres://127.0.0.1:1", "--admin", "off", "--listen", "127.0.0.1:0", "--state-dir", filepath.Join(dir, state)}
	}
	hub := startServe(t, args("hub", "hub")...)
	hub.await(logReady)
	url, err := os.ReadFile(filepath.Join(dir, "hub", "nats-url"))
	if err != nil {
		t.Fatal(err)
	}
	nats := []string{"--nats", strings.TrimSpace(string(url))}
	joined := startServe(t, append(args("edge-x", "first"), nats...)...)
	joined.await(logReady)
	for _, id := range []string{"edge-x", "hub"} {
		second := startServe(t, append(args(id, "second"), nats...)...)
		if code := second.exitCode(); code != 1 || !strings.Contains(strings.Join(second.seen, "\n"), "node id "+id+" is in use by boot") {
			t.Errorf("%s: exit code %d\n%s", id, code, strings.Join(second.seen, "\n"))
		}
	}
	for _, s := range []*served{joined, hub} {
		if err := s.cmd.Process.Signal(syscall.SIGTERM); err != nil {
			t.Error(err)
		}
		if code := s.exitCode(); code != 0 {
			t.Errorf("a node that serves on stops with exit code %d\n%s", code, strings.Join(s.seen, "\n"))
		}
	}
}

func TestDemo(t *testing.T) {
	out := pgedge(t, 0, "demo")
	for _, text := range []string{"verdict: complete, 4 sessions", "the value is still 1000", "bob saw no error", "Everything held"} {
		if !strings.Contains(out, text) {
			t.Errorf("the demo does not print %q:\n%s", text, out)
		}
	}
	if strings.Contains(out, "FAILED") {
		t.Error(out)
	}
}

// `pgedge demo | head` died of SIGPIPE and left its directories behind.
func TestADemoThatNobodyReadsLeavesNothingBehind(t *testing.T) {
	// Not t.TempDir: its name is too long for a unix socket, and Postgres's user may not walk through it.
	dir, err := os.MkdirTemp("/tmp", "pgedge-t")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("pgedge", "demo")
	cmd.Env = append(cleanEnviron(), "TMPDIR="+dir)
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if _, err := bufio.NewReader(stdout).ReadString('\n'); err != nil {
		t.Error(err)
	}
	stdout.Close()
	_ = cmd.Wait() // how it ended is looked at below
	if code := cmd.ProcessState.ExitCode(); code != exitFailed || !strings.Contains(stderr.String(), "the output cannot be written") {
		t.Errorf("exit code %d (%s)\n%s", code, cmd.ProcessState, stderr.String())
	}
	left, err := filepath.Glob(filepath.Join(dir, "*"))
	if err != nil || len(left) > 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}
