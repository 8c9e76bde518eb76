package cluster

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"pgedge/revoke"
)

// startSecond starts a node that uses the NATS of another one.
func startSecond(t *testing.T, first *Node, node string, eng Engine) *Node {
	t.Helper()
	cfg := testConfig(t, node)
	cfg.NATS = first.URL()
	return startNode(t, cfg, eng)
}

func fakeSessions(node string, count int) []revoke.SessionInfo {
	list := make([]revoke.SessionInfo, count)
	for i := range list {
		list[i] = revoke.SessionInfo{
			ID: fmt.Sprintf("%s-%d", node, i), Node: node, Principal: fmt.Sprintf("user%d@corp.com", i%7), Role: "app_rw", Database: "app",
			Client: "10.1.2.3:5511", Application: strings.Repeat("x", 60), State: "idle", Upstream: "db1:5432",
		}
	}
	return list
}

// waitNodes polls the fleet until ok; presences come with heartbeats.
func waitNodes(t *testing.T, c *Client, what string, ok func([]NodeInfo) bool) []NodeInfo {
	t.Helper()
	ctx := testContext(t)
	for {
		nodes, err := c.Nodes(ctx)
		if err != nil {
			t.Fatalf("%s: %v", what, err)
		}
		if ok(nodes) {
			return nodes
		}
		select {
		case <-ctx.Done():
			t.Fatalf("%s never came true; the nodes are %+v", what, nodes)
		case <-time.After(10 * time.Millisecond):
		}
	}
}

func TestSecondNodeByURLIsPresentServesTheSameTableAndLeaves(t *testing.T) {
	cfg, engA, engB := testConfig(t, "a"), newFakeEngine(), newFakeEngine()
	a := startNode(t, cfg, engA)
	b := startSecond(t, a, "b", engB)
	c := dial(t, DialOptions{StateDir: cfg.StateDir})
	nodes := waitNodes(t, c, "two live nodes serve", func(nodes []NodeInfo) bool {
		return len(nodes) == 2 && nodes[0].Presence.State == revoke.StateServing && nodes[1].Presence.State == revoke.StateServing
	})
	for i, name := range []string{"a", "b"} {
		n := nodes[i]
		if n.Presence.Node != name || n.Status != "live" || n.Report == nil || !n.Report.Ready || n.Presence.LeaseMS != 20_000 || n.Presence.OnStale != map[string]string{"a": "serve", "b": "freeze"}[name] || n.Presence.Stream == "" {
			t.Errorf("node %s is %+v, report %+v", name, n, n.Report)
		}
	}

	pub, err := c.Publish(testContext(t), revoke.VerbRevoke, scopeOf("alice"), PublishOptions{Reason: "HR-1"})
	if err != nil {
		t.Fatal(err)
	}
	c.Release(pub)
	if pub.Stored.IsZero() || pub.SupersededBy != 0 {
		t.Errorf("the publication is %+v", pub)
	}
	for _, eng := range []*fakeEngine{engA, engB} {
		o := eng.wait(t, "settled, for alice", settledOrder("alice"))
		if o.Fact.Seq != pub.Seq || o.Fact.ID != pub.ID || o.Fact.Reason != "HR-1" {
			t.Errorf("the order is %+v, the publication %+v", o, pub)
		}
	}
	if !denied(a.Table(), "alice") || !denied(b.Table(), "alice") {
		t.Error("a node admits alice")
	}

	closeNode(t, b)
	waitNodes(t, c, "b has left", func(nodes []NodeInfo) bool {
		return len(nodes) == 2 && nodes[1].Status == "left"
	})
	if _, missing, err := c.Sessions(testContext(t), SessionFilter{}); err != nil || len(missing) > 0 {
		t.Errorf("a node that has left is missed: %v, %v", missing, err)
	}
}

func TestNodeGivesWayToAYoungerBootOfItsID(t *testing.T) {
	a := startNode(t, testConfig(t, "a"), newFakeEngine())
	superseded := make(chan string, 1)
	cfg := testConfig(t, "twin")
	cfg.NATS = a.URL()
	cfg.OnSuperseded = func(boot string) { superseded <- boot }
	old := startNode(t, cfg, newFakeEngine())
	// Two that start at the same moment do not see each other before they announce themselves.
	young := newBoot(&bootRecord{bootID: bootID{"twin", old.Boot()}})
	err := a.publishPresence(testContext(t), revoke.Presence{V: 1, Node: "twin", Boot: young, State: revoke.StateStarting})
	if err != nil {
		t.Fatal(err)
	}
	select {
	case boot := <-superseded:
		if boot != young {
			t.Errorf("superseded by %s, want %s", boot, young)
		}
	case <-time.After(patience):
		t.Fatal("the older boot goes on")
	}
	<-old.FatalC()
	if !errors.Is(old.FatalErr(), ErrSuperseded) {
		t.Errorf("the reason is %v", old.FatalErr())
	}
	if ok, _ := old.Ready(); ok {
		t.Error("the older boot still says it is ready")
	}
}

func TestSessionsOfTheWholeFleetComeInPartsBelowTheMessageLimit(t *testing.T) {
	cfg, engA, engB := testConfig(t, "a"), newFakeEngine(), newFakeEngine()
	engA.sessions, engB.sessions = fakeSessions("a", 4900), fakeSessions("b", 3)
	a := startNode(t, cfg, engA)
	b := startSecond(t, a, "b", engB)
	c := dial(t, DialOptions{StateDir: cfg.StateDir, QueryTimeout: patience})
	for _, tt := range []struct {
		filter SessionFilter
		want   int
	}{
		{SessionFilter{}, 4903},
		{SessionFilter{Node: "b"}, 3},
		{SessionFilter{Principal: "user1@corp.com", Node: "a"}, 700},
		{SessionFilter{Principal: "nobody"}, 0},
	} {
		sessions, missing, err := c.Sessions(testContext(t), tt.filter)
		if err != nil || len(missing) > 0 {
			t.Fatalf("%+v: missing %v, error %v", tt.filter, missing, err)
		}
		if len(sessions) != tt.want {
			t.Errorf("%+v: %d sessions, want %d", tt.filter, len(sessions), tt.want)
		}
	}
	if _, missing, _ := c.Sessions(testContext(t), SessionFilter{Node: "nobody"}); len(missing) != 1 || missing[0] != "nobody" {
		t.Errorf("an unknown node: missing is %v", missing)
	}

	crash(b)
	sessions, missing, err := dial(t, DialOptions{StateDir: cfg.StateDir, QueryTimeout: 5 * time.Second}).Sessions(testContext(t), SessionFilter{Principal: "user1@corp.com"})
	if err != nil || len(sessions) != 700 || len(missing) != 1 || missing[0] != "b" {
		t.Errorf("after b crashed: %d sessions, missing %v, error %v", len(sessions), missing, err)
	}
}

func TestStreamsThatWouldLoseFactsAreRefusedByName(t *testing.T) {
	srv, err := startEmbeddedWithToken(testConfig(t, "plain").withDefaults(), t.TempDir(), newToken())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(srv.stop)
	cfg := testConfig(t, "a")
	cfg.NATS = srv.url
	_, err = Start(testContext(t), cfg, newFakeEngine())
	if err == nil || !strings.Contains(err.Error(), "PGEDGE does not exist") {
		t.Errorf("without streams the error is %v", err)
	}

	js, err := jetstream.New(rawConn(t, srv.url))
	if err != nil {
		t.Fatal(err)
	}
	bad := journalConfig(1)
	bad.MaxAge, bad.MaxMsgsPerSubject, bad.DenyDelete = time.Hour, 5, false
	bad.Storage = jetstream.MemoryStorage
	if _, err := js.CreateStream(testContext(t), bad); err != nil {
		t.Fatal(err)
	}
	_, err = Start(testContext(t), cfg, newFakeEngine())
	if err == nil {
		t.Fatal("accepted")
	}
	for _, want := range []string{"max_age", "max_msgs_per_subject is 5, must be 1", "deny_delete", "storage"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("the error does not say %q: %v", want, err)
		}
	}
}

func TestClientOfAServerWithoutAClusterIsToldSo(t *testing.T) {
	srv, err := startEmbeddedWithToken(testConfig(t, "plain").withDefaults(), t.TempDir(), newToken())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(srv.stop)
	_, err = Dial(testContext(t), DialOptions{URL: srv.url})
	if err == nil || !strings.Contains(err.Error(), "carries no pgedge cluster") {
		t.Errorf("the error is %v", err)
	}
}

func TestNodeLearnsAfterAnOutageWhatItMissed(t *testing.T) {
	child := testConfig(t, "child")
	cmd, url := startChild(t, child.StateDir)
	eng := newFakeEngine()
	cfg := testConfig(t, "b")
	cfg.NATS = url
	b := startNode(t, cfg, eng)
	_, addr, _ := strings.Cut(url, "@")
	token := strings.TrimPrefix(url[:strings.Index(url, "@")], "nats://")
	cmd.Process.Kill()
	cmd.Wait()

	// The same journal comes back at the same address, and has a fact that the node never saw on the fast path.
	// For now it is somewhere else, or the node would be back before the look at its table.
	elsewhere := child
	elsewhere.Listen = fmt.Sprintf("127.0.0.1:%d", freePorts(t, 1)[0])
	offline := startNode(t, elsewhere, newFakeEngine())
	c := dial(t, DialOptions{StateDir: child.StateDir})
	pub, err := c.Publish(testContext(t), revoke.VerbRevoke, scopeOf("alice"), PublishOptions{})
	if err != nil {
		t.Fatal(err)
	}
	c.Release(pub)
	c.Close()
	closeNode(t, offline)
	if denied(b.Table(), "alice") {
		t.Fatal("the node knows of a fact it cannot have seen")
	}

	back := child.withDefaults()
	back.Listen = addr
	srv, err := startEmbeddedWithToken(back, child.StateDir, token)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(srv.stop)
	o := eng.wait(t, "for alice, after the outage", settledOrder("alice"))
	if o.Fact.Seq != pub.Seq || !denied(b.Table(), "alice") {
		t.Errorf("the order is %+v", o)
	}
	crash(b) // The server is stopped before the node here, so that nobody is left to say goodbye to.
}

func TestStartGivesUpWithItsContextAndNamesTheReason(t *testing.T) {
	cfg := testConfig(t, "a")
	cfg.NATS = "nats://secret@127.0.0.1:1"
	ctx, cancel := context.WithTimeout(context.Background(), 300*time.Millisecond)
	defer cancel()
	_, err := Start(ctx, cfg, newFakeEngine())
	if err == nil || !strings.Contains(err.Error(), "127.0.0.1:1") || strings.Contains(err.Error(), "secret") {
		t.Errorf("the error is %v", err)
	}
}
