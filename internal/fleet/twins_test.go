package fleet

import (
	"fmt"
	"os"
	"strings"
	"testing"
	"time"
)

// TestOfTwoNodesOfOneNameOneServes starts a second process under a live node's name, with a state directory of its own
// and with a copy of the first one's.
func TestOfTwoNodesOfOneNameOneServes(t *testing.T) {
	f := start(t, Options{Nodes: 2, NATS: 1, Heartbeat: 300 * time.Millisecond, Lease: 4 * time.Second})
	names := people(t, f, 3)
	first := f.Nodes[0]
	for i, clone := range []bool{false, true} {
		twin, err := f.newNode(0)
		if err != nil {
			t.Fatal(err)
		}
		twin.StateDir = fmt.Sprintf("%s-twin-%d", twin.StateDir, i)
		if clone {
			if err := os.CopyFS(twin.StateDir, os.DirFS(first.StateDir)); err != nil {
				t.Fatal(err)
			}
		}
		twin.conf = twin.StateDir + ".yaml"
		if err := os.WriteFile(twin.conf, []byte(f.nodeConfig(twin, f.Postgres.Host, "127.0.0.1")), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := twin.Launch(); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if twin.Running() {
				twin.Kill()
			}
		})
		// Exactly one of the two goes on.
		if err := poll(within(t, 60*time.Second), "one of the twins to end", func() (bool, error) {
			return !first.Running() || !twin.Running(), nil
		}); err != nil {
			t.Fatal(err)
		}
		ended, lives := twin, first
		if !first.Running() {
			ended, lives = first, twin
		}
		if !strings.Contains(ended.Log(), lives.Name) {
			t.Errorf("clone=%v: the process that ended does not say why:\n%s", clone, tail(ended.Log(), 5))
		}
		if err := lives.AwaitReadyz(within(t, 30*time.Second), 200); err != nil {
			t.Fatal(err)
		}
		if v, r := verdict(t, f, "revoke", names[i]); v.Verdict != "complete" && v.Verdict != "complete_fenced" {
			t.Errorf("clone=%v: %s", clone, r)
		}
		refused(t, []*Node{lives, f.Nodes[1]}, names[i])
		if lives == twin {
			if err := twin.Stop(); err != nil {
				t.Fatal(err)
			}
			if err := first.Restart(within(t, time.Minute)); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// TestANodeKilledAndStartedAgainInsideItsLeaseGivesNoWrongVerdict revokes between a crash and the next start.
func TestANodeKilledAndStartedAgainInsideItsLeaseGivesNoWrongVerdict(t *testing.T) {
	f := start(t, Options{Nodes: 2, NATS: 1})
	names := people(t, f, 2)
	ws := NewWriters()
	t.Cleanup(ws.Stop)
	w, err := ws.Add(within(t, time.Minute), f.Nodes[0].Addr, names[0], 10*time.Millisecond)
	if err != nil {
		t.Fatal(err)
	}
	awaitProgress(t, w, 10)
	f.Nodes[0].Kill()
	done := make(chan Result, 1)
	go func() { done <- f.CLI(within(t, 2*time.Minute), "revoke", names[0], "-o", "json") }()
	if err := f.Nodes[0].Restart(within(t, time.Minute)); err != nil {
		t.Fatal(err)
	}
	r := <-done
	v, err := r.Verdict()
	if err != nil {
		t.Fatal(err)
	}
	atReturn := rows(t, f.Postgres, names[0])
	t.Logf("%s, exit code %d: %+v", v.Verdict, r.Code, v.Nodes)
	if v.Verdict == "complete" {
		// It may say so only if the crashed process's backend was seen gone.
		awaitBackends(t, f, names[0], 0)
	}
	refused(t, f.Nodes, names[0])
	if now := rows(t, f.Postgres, names[0]); now != atReturn {
		t.Errorf("%d rows were committed after the command had returned", now-atReturn)
	}
}
