package cluster

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"pgedge/revoke"
)

// copyRecord makes a state directory that holds a copy of another one's boot record.
func copyRecord(t *testing.T, from string) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(from, bootFile))
	if err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(t.TempDir(), "copy")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, bootFile), b, 0o600); err != nil {
		t.Fatal(err)
	}
	return dir
}

// A node on a copy of a state directory said goodbye for the node that it was copied from: a revocation was then
// complete while that one, cut off from the journal, served on.
func TestACopiedStateDirectoryDoesNotSpeakForTheNodeItWasCopiedFrom(t *testing.T) {
	owner, engA := testConfig(t, "a"), newFakeEngine()
	a := startNode(t, owner, engA)
	answering(engA, a, 0, 0)
	original := testConfig(t, "b")
	original.NATS, original.OnStale, original.Lease = a.URL(), revoke.OnStaleFreeze, 20*time.Second
	eng := newFakeEngine()
	eng.sessions = fakeSessions("b", 3)
	b := startNode(t, original, eng)

	clone := original
	clone.StateDir = copyRecord(t, original.StateDir)
	if _, err := Start(testContext(t), clone, newFakeEngine()); !errors.Is(err, ErrNodeIDInUse) {
		t.Errorf("under the same id: the error is %v", err)
	}
	clone.Node = "c" // the machine was cloned and given another name
	engC := newFakeEngine()
	c := startNode(t, clone, engC)
	answering(engC, c, 0, 0)
	crash(b) // as far as anybody can see: it may be cut off just as well

	client := dial(t, DialOptions{StateDir: owner.StateDir})
	pub, err := client.Publish(testContext(t), revoke.VerbRevoke, scopeOf("alice"), PublishOptions{})
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	answered := map[string]bool{}
	ctx, cancel := contextUntil(t, done)
	defer cancel()
	verdict, _, err := client.Await(ctx, pub, func(s revoke.NodeStatus) {
		if s.Status == revoke.StatusVerified && !answered[s.Node] {
			answered[s.Node] = true
			if len(answered) == 2 {
				close(done)
			}
		}
	})
	if err != nil || verdict.Verdict != revoke.Incomplete || len(verdict.Nodes) != 3 {
		t.Errorf("the verdict is %+v, error %v", verdict, err)
	}
}

func TestARunThatIsCertainlyStaleIsSaidGoodbyeToFromAnywhere(t *testing.T) {
	owner := testConfig(t, "a")
	a := startNode(t, owner, newFakeEngine())
	for onStale, said := range map[string]bool{revoke.OnStaleFreeze: true, revoke.OnStaleServe: false} {
		original := testConfig(t, "b"+onStale)
		original.NATS, original.OnStale, original.Lease, original.Heartbeat = a.URL(), onStale, 400*time.Millisecond, 100*time.Millisecond
		b := startNode(t, original, newFakeEngine())
		dir := copyRecord(t, original.StateDir)
		crash(b)
		c := dial(t, DialOptions{StateDir: owner.StateDir})
		waitNodes(t, c, "the lease of b has ended", func(nodes []NodeInfo) bool {
			for _, n := range nodes {
				if n.Presence.Boot == b.Boot() {
					return n.HeardMS > 600
				}
			}
			return false
		})
		clone := original
		clone.StateDir = dir
		startNode(t, clone, newFakeEngine())
		waitNodes(t, c, "the clone is heard, and what it has said of b", func(nodes []NodeInfo) bool {
			left, heard := false, false
			for _, n := range nodes {
				if n.Presence.Boot == b.Boot() {
					left = n.Presence.State == revoke.StateLeft
				} else if n.Presence.Node == original.Node {
					heard = true
				}
			}
			if heard && left != said {
				t.Fatalf("%s: left is %v", onStale, left)
			}
			return heard
		})
	}
}

// contextUntil ends with a channel, or with the test's patience.
func contextUntil(t *testing.T, done <-chan struct{}) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancel(testContext(t))
	go func() {
		select {
		case <-done:
			cancel()
		case <-ctx.Done():
		}
	}()
	return ctx, cancel
}
