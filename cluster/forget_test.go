package cluster

import (
	"strings"
	"testing"
	"time"

	"pgedge/revoke"
)

// ghost leaves the last heartbeat of a boot that nobody runs.
func ghost(t *testing.T, n *Node, node, boot string) {
	t.Helper()
	err := n.publishPresence(testContext(t), revoke.Presence{V: 1, Node: node, Boot: boot, N: 7, State: revoke.StateServing, LeaseMS: 1, OnStale: "serve", Sessions: 2})
	if err != nil {
		t.Fatal(err)
	}
}

func TestForgettingASilentBootLetsTheNextVerdictBeComplete(t *testing.T) {
	cfg, eng := testConfig(t, "a"), newFakeEngine()
	a := startNode(t, cfg, eng)
	answering(eng, a, 1, 0)
	ghost(t, a, "b", "ghost1")
	c := dial(t, DialOptions{StateDir: cfg.StateDir})
	waitNodes(t, c, "the ghost is gone", func(nodes []NodeInfo) bool {
		return len(nodes) == 2 && nodes[1].Status == "gone" && nodes[1].LeaseLeftMS == 0 && nodes[0].LeaseLeftMS > 0
	})
	verdict := func() revoke.FleetVerdict {
		pub, err := c.Publish(testContext(t), revoke.VerbKill, scopeOf("alice"), PublishOptions{})
		if err != nil {
			t.Fatal(err)
		}
		v, _, err := c.Await(testContext(t), pub, nil)
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
	if v := verdict(); v.Verdict != revoke.Incomplete {
		t.Fatalf("a boot that may serve on does not count: %+v", v)
	}
	info, err := c.FindForgettable(testContext(t), "b", "")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.Forget(testContext(t), info, "op@host"); err != nil {
		t.Fatal(err)
	}
	v := verdict()
	if v.Verdict != revoke.Complete || len(v.Nodes) != 2 || v.Nodes[1].Status != revoke.StatusForgotten || !strings.Contains(v.Nodes[1].Why, "op@host") {
		t.Errorf("the verdict is %+v", v)
	}
	if _, err := c.FindForgettable(testContext(t), "b", ""); err == nil || !strings.Contains(err.Error(), "been forgotten already") {
		t.Errorf("it can be forgotten twice: %v", err)
	}
}

func TestABootThatIsHeardInTheMomentOfForgettingIsNotForgotten(t *testing.T) {
	cfg := testConfig(t, "a")
	a := startNode(t, cfg, newFakeEngine())
	ghost(t, a, "b", "ghost1")
	c := dial(t, DialOptions{StateDir: cfg.StateDir})
	waitNodes(t, c, "the ghost is gone", func(nodes []NodeInfo) bool { return len(nodes) == 2 && nodes[1].Status == "gone" })
	info, err := c.FindForgettable(testContext(t), "b", "ghost1")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	ghost(t, a, "b", "ghost1")
	go func() {
		_, err := c.Forget(testContext(t), info, "op@host")
		done <- err
	}()
	for tick := time.NewTicker(10 * time.Millisecond); ; {
		select {
		case err := <-done:
			if err == nil || !strings.Contains(err.Error(), "heard of again") {
				t.Errorf("the error is %v", err)
			}
			return
		case <-tick.C:
			ghost(t, a, "b", "ghost1")
		}
	}
}

func TestAForgottenBootThatRunsAnnouncesItselfAgain(t *testing.T) {
	owner := testConfig(t, "a")
	a := startNode(t, owner, newFakeEngine())
	b := startSecond(t, a, "b", newFakeEngine())
	c := dial(t, DialOptions{StateDir: owner.StateDir})
	_, presences, _, err := c.State(testContext(t))
	if err != nil {
		t.Fatal(err)
	}
	// What Forget writes, without waiting for the boot to fall silent.
	for _, p := range presences {
		if p.Node == "b" {
			if err := a.publishPresence(testContext(t), p.Forget("op@host", time.Now())); err != nil {
				t.Fatal(err)
			}
		}
	}
	waitNodes(t, c, "b is live again", func(nodes []NodeInfo) bool {
		return len(nodes) == 2 && nodes[1].Status == "live" && nodes[1].Report != nil && nodes[1].Report.Ready
	})
	if b.FatalErr() != nil {
		t.Error(b.FatalErr())
	}
}

func TestANodeWhoseTableDiffersIsFoundOut(t *testing.T) {
	cfg := testConfig(t, "a")
	a := startNode(t, cfg, newFakeEngine())
	c := dial(t, DialOptions{StateDir: cfg.StateDir})
	pub, err := c.Publish(testContext(t), revoke.VerbRevoke, scopeOf("alice"), PublishOptions{})
	if err != nil {
		t.Fatal(err)
	}
	c.Release(pub)
	waitNodes(t, c, "a has applied the revocation", func(nodes []NodeInfo) bool {
		return nodes[0].Report != nil && nodes[0].Report.Applied >= pub.Seq && !nodes[0].TableDiffers
	})
	a.Table().Merge(revoke.Fact{Verb: revoke.VerbRevoke, Scope: scopeOf("bob"), Seq: 1, ID: "x"})
	waitNodes(t, c, "the difference is seen", func(nodes []NodeInfo) bool { return nodes[0].TableDiffers })
}
