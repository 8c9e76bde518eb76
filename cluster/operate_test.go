package cluster

import (
	"context"
	"errors"
	"testing"
	"time"

	"pgedge/revoke"
)

type stubCanary struct{}

func (stubCanary) Drill(_ context.Context, req DrillRequest) DrillAnswer {
	return DrillAnswer{Canary: "canary", Logins: []CanaryLogin{{Listener: req.Step, In: true}}}
}

func TestAFleetIsLookedAfterWithTheShippedPermissions(t *testing.T) {
	s := permittedServer(t)
	initStreams(t, DialOptions{URL: urlAs(s, "operator")}, 1)
	cfg := outsideConfig(t, "edge-a", urlAs(s, "edge-a"), 1)
	cfg.Canary = stubCanary{}
	for range 2 { // before the first start, and beside the running node
		d, err := Diagnose(testContext(t), cfg)
		if err != nil || d.Streams != nil || d.Read != nil || len(d.Missing) > 0 {
			t.Fatalf("a node's own set is found wanting: %+v, %v", d, err)
		}
		if cfg.Boot == "" {
			cfg.Boot = startNode(t, cfg, newFakeEngine()).Boot()
		}
	}
	b := startNode(t, func() Config {
		cfg := outsideConfig(t, "edge-b", urlAs(s, "edge-b"), 1)
		cfg.Lease, cfg.Heartbeat = 300*time.Millisecond, 100*time.Millisecond
		return cfg
	}(), newFakeEngine())
	op := dial(t, DialOptions{URL: urlAs(s, "operator")})
	waitNodes(t, op, "both nodes are live", func(nodes []NodeInfo) bool {
		return len(nodes) == 2 && nodes[0].Report != nil && nodes[1].Report != nil
	})
	asked, missing, err := op.Drill(testContext(t), DrillRequest{ID: "d", Step: DrillAsk}, nil)
	if err != nil || len(missing) > 0 || len(asked) != 2 || asked[0].Canary != "canary" || asked[1].Canary != "" {
		t.Fatalf("drill: %+v, missing %v, %v", asked, missing, err)
	}
	begun, missing, err := op.Drill(testContext(t), DrillRequest{ID: "d", Step: DrillBegin}, asked[:1])
	if err != nil || len(missing) > 0 || len(begun) == 0 || begun[0].Logins[0].Listener != DrillBegin {
		t.Fatalf("drill: %+v, missing %v, %v", begun, missing, err)
	}

	crash(b)
	waitNodes(t, op, "edge-b is silent", func(nodes []NodeInfo) bool { return nodes[1].Status == "silent" || nodes[1].Status == "gone" })
	info, err := op.FindForgettable(testContext(t), "edge-b", "")
	if err != nil {
		t.Fatal(err)
	}
	observer := dial(t, DialOptions{URL: urlAs(s, "observer")})
	var right *MissingRightError
	if _, err := observer.Forget(testContext(t), info, "observer"); !errors.As(err, &right) || right.Sets[0] != setOperator {
		t.Errorf("an observer forgets a node: %v", err)
	}
	for _, query := range []string{"drain", "drill", "forget"} {
		if sets := observer.rights.setsWith("pgedge.query." + query); len(sets) != 1 || sets[0] != setOperator {
			t.Errorf("an observer who asks for %s is told to be one of %v", query, sets)
		}
	}
	if _, err := op.Forget(testContext(t), info, "op"); err != nil {
		t.Error(err)
	}
	waitNodes(t, op, "edge-b is forgotten", func(nodes []NodeInfo) bool {
		return nodes[1].Status == "forgotten" && nodes[1].Presence.State == revoke.StateLeft
	})
}

func TestAStaleNodeThatAnswersSaysSo(t *testing.T) {
	s := natsServer(t, jetStreamConf(t))
	initStreams(t, DialOptions{URL: s.ClientURL(), Timeout: patience}, 1)
	cfg := outsideConfig(t, "a", s.ClientURL(), 1)
	cfg.Heartbeat, cfg.Lease, cfg.OnStale = 200*time.Millisecond, time.Second, "freeze"
	defer crash(startNode(t, cfg, newFakeEngine())) // it cannot say goodbye any more
	c := dial(t, DialOptions{URL: s.ClientURL()})
	waitNodes(t, c, "it is fresh", func(nodes []NodeInfo) bool {
		return len(nodes) == 1 && nodes[0].Report != nil && !nodes[0].Report.Stale && nodes[0].Report.Ready
	})
	// Its connection lives, and its journal does not.
	if err := c.js.DeleteStream(testContext(t), journalStream); err != nil {
		t.Fatal(err)
	}
	waitNodes(t, c, "it is stale", func(nodes []NodeInfo) bool {
		return nodes[0].Report != nil && nodes[0].Report.Stale && nodes[0].Report.NotReady != ""
	})
}
