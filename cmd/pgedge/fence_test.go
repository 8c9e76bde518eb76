package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"pgedge/internal/pgserver"
	"pgedge/internal/pgtest"
)

// stoppable starts a node that joins another one's journal with a lease of two seconds.
func stoppable(t *testing.T, pg *pgtest.Server, dir, id, nats, onStale string) *served {
	t.Helper()
	file := filepath.Join(dir, id+".yaml")
	writeFile(t, file, fmt.Sprintf(`node: %s
listen: ['127.0.0.1:0']
admin: off
state_dir: %s
databases: {'*': {upstream: '%s'}}
cluster: {nats: '%s', heartbeat: 200ms, lease: 2s, freeze: 60s, on_stale: %s}
`, id, filepath.Join(dir, id), pg.URL("pgedge_control", pgserver.Password("pgedge_control"), pgserver.Database), nats, onStale))
	return startServe(t, "-c", file)
}

// A process that stands still cannot answer: its lease proves that it accepts nothing new, at the moment that follows
// from it and not before.
func TestAStoppedNodeIsFencedAtTheComputedMoment(t *testing.T) {
	pg := pgtest.Start(t, pgtest.Options{})
	dir := t.TempDir()
	hubDir := filepath.Join(dir, "hub")
	hub := startServe(t, "--node", "hub", "--upstream", pg.URL("pgedge_control", pgserver.Password("pgedge_control"), pgserver.Database),
		"--admin", "off", "--listen", "127.0.0.1:0", "--state-dir", hubDir)
	hub.await(logReady)
	url, err := os.ReadFile(filepath.Join(hubDir, "nats-url"))
	if err != nil {
		t.Fatal(err)
	}
	edge := stoppable(t, pg, dir, "edge", strings.TrimSpace(string(url)), "freeze")
	addr := edge.await(logAccepting)["address"].(string)
	edge.await(logReady)
	alice, err := login(addr, "alice")
	if err != nil {
		t.Fatal(err)
	}
	defer alice.Close(t.Context())
	pgtest.Wait(t, "the node announces its session", func() bool {
		for _, n := range decodeLines(t, pgedge(t, 0, "nodes", "--state-dir", hubDir, "-o", "json")) {
			if p := n["presence"].(map[string]any); p["node"] == "edge" && p["sessions"] == 1.0 {
				return true
			}
		}
		return false
	})

	if err := edge.cmd.Process.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	defer edge.cmd.Process.Signal(syscall.SIGCONT)
	began := time.Now()
	out := pgedge(t, exitUnverified, "revoke", "alice", "--state-dir", hubDir, "-o", "json")
	took := time.Since(began)
	lines := decodeLines(t, out)
	var announced, fenced, verdict map[string]any
	for _, l := range lines {
		switch {
		case l["verdict"] != nil:
			verdict = l
		case l["node"] == "edge" && l["status"] == "fenced":
			fenced = l
		case l["node"] == "edge" && l["fenced_in_ms"] != nil:
			announced = l
		}
	}
	if verdict == nil || verdict["verdict"] != "complete_fenced" {
		t.Fatalf("the verdict is %v\n%s", verdict, out)
	}
	if fenced == nil || fenced["after_ms"] != 2020.0 || !strings.Contains(fmt.Sprint(fenced["why"]), "(1, of all") {
		t.Errorf("the line of its fence is %v", fenced)
	}
	if announced == nil || announced["fenced_in_ms"].(float64) > 1020 || announced["status"] != "silent" {
		t.Errorf("the line that announces it is %v", announced)
	}
	if took < 2020*time.Millisecond {
		t.Errorf("fenced after %s, while the lease could hold", took)
	}

	// It goes on, learns what it has missed, and answers for itself.
	if err := edge.cmd.Process.Signal(syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	if err := alice.Ping(t.Context()); err == nil {
		t.Error("alice's session goes on")
	}
	pgtest.Wait(t, "the node serves again", func() bool {
		bob, err := login(addr, "bob")
		if err == nil {
			bob.Close(t.Context())
		}
		return err == nil
	})
	if out := pgedge(t, exitDone, "revoke", "bob", "--state-dir", hubDir); !strings.Contains(out, "complete: ") {
		t.Error(out)
	}
}

// One that serves on without its lease proves nothing by its silence, and the command says so.
func TestAStoppedNodeThatServesOnIsNeverFenced(t *testing.T) {
	pg := pgtest.Start(t, pgtest.Options{})
	dir := t.TempDir()
	hubDir := filepath.Join(dir, "hub")
	hub := startServe(t, "--node", "hub", "--upstream", pg.URL("pgedge_control", pgserver.Password("pgedge_control"), pgserver.Database),
		"--admin", "off", "--listen", "127.0.0.1:0", "--state-dir", hubDir)
	hub.await(logReady)
	url, err := os.ReadFile(filepath.Join(hubDir, "nats-url"))
	if err != nil {
		t.Fatal(err)
	}
	edge := stoppable(t, pg, dir, "edge", strings.TrimSpace(string(url)), "serve")
	edge.await(logReady)
	if err := edge.cmd.Process.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	defer edge.cmd.Process.Signal(syscall.SIGCONT)
	out := pgedge(t, exitUnproven, "revoke", "alice", "--state-dir", hubDir, "--wait", "3500ms")
	if !strings.Contains(out, "edge") || !strings.Contains(out, "silence proves nothing") || !strings.Contains(out, "incomplete") || strings.Contains(out, "fenced") {
		t.Error(out)
	}
}
