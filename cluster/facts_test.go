package cluster

import (
	"encoding/json"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"pgedge/revoke"
)

func TestBarePublishWithoutPayloadCutsAtOnceAndHoldsAfterARestart(t *testing.T) {
	cfg, eng := testConfig(t, "a"), newFakeEngine()
	n := startNode(t, cfg, eng)
	if err := rawConn(t, n.URL()).Publish("pgedge.revoke.principal.alice@corp.com", nil); err != nil {
		t.Fatal(err)
	}
	first := eng.wait(t, "for alice", principalOrder("alice@corp.com"))
	if first.Fact.Verb != revoke.VerbRevoke {
		t.Errorf("the order's verb is %s", first.Fact.Verb)
	}
	if !denied(n.Table(), "alice@corp.com") {
		t.Error("a login is admitted after the cut")
	}
	eng.wait(t, "settled, for alice", settledOrder("alice@corp.com"))
	crash(n)

	n = startNode(t, cfg, newFakeEngine())
	if !denied(n.Table(), "alice@corp.com") {
		t.Error("a login is admitted after the restart")
	}
	if denied(n.Table(), "bob@corp.com") {
		t.Error("a bystander is refused")
	}
}

func TestGarbageOnRevokeStillRevokesAlsoAfterARestart(t *testing.T) {
	cfg, eng := testConfig(t, "a"), newFakeEngine()
	n := startNode(t, cfg, eng)
	if err := rawConn(t, n.URL()).Publish("pgedge.revoke.principal.mallory", []byte("\x00{not json")); err != nil {
		t.Fatal(err)
	}
	o := eng.wait(t, "settled, for mallory", settledOrder("mallory"))
	if !o.Fact.Raw {
		t.Error("the fact is not marked as raw")
	}
	n.syncCounters()
	if got := n.m.factsRaw.Get(); got != 1 {
		t.Errorf("pgedge_facts_raw_total is %d, want 1", got)
	}
	crash(n)
	n = startNode(t, cfg, newFakeEngine())
	if !denied(n.Table(), "mallory") {
		t.Error("a login is admitted after the restart")
	}
}

func TestGarbageOnReinstateAndSuspendChangesNothingAndIsVisible(t *testing.T) {
	cfg, eng := testConfig(t, "a"), newFakeEngine()
	n := startNode(t, cfg, eng)
	nc := rawConn(t, n.URL())
	rejected, err := nc.SubscribeSync("pgedge.rejected")
	if err != nil {
		t.Fatal(err)
	}
	if err := nc.Publish("pgedge.revoke.principal.alice", nil); err != nil {
		t.Fatal(err)
	}
	eng.wait(t, "settled, for alice", settledOrder("alice"))
	subjects := []string{"pgedge.reinstate.principal.alice", "pgedge.suspend.principal.bob"}
	for _, subject := range subjects {
		if err := nc.Publish(subject, []byte("garbage")); err != nil {
			t.Fatal(err)
		}
		m, err := rejected.NextMsg(patience)
		if err != nil {
			t.Fatalf("nothing was published on pgedge.rejected for %s: %v", subject, err)
		}
		var r rejection
		if err := json.Unmarshal(m.Data, &r); err != nil {
			t.Fatal(err)
		}
		if r.Subject != subject || r.Node != "a" || string(r.Payload) != "garbage" || r.Why == "" {
			t.Errorf("the rejection is %+v", r)
		}
	}
	check := func(when string) {
		t.Helper()
		if !denied(n.Table(), "alice") {
			t.Errorf("alice is admitted %s", when)
		}
		if denied(n.Table(), "bob") {
			t.Errorf("bob is refused %s", when)
		}
	}
	check("after garbage")
	n.syncCounters()
	if got := n.m.factsRejected.Get(); got != 2 {
		t.Errorf("pgedge_facts_rejected_total is %d, want 2", got)
	}
	if orders := eng.matching(principalOrder("bob")); len(orders) > 0 {
		t.Errorf("garbage made orders: %+v", orders)
	}
	crash(n)
	n = startNode(t, cfg, newFakeEngine())
	check("after the restart")
}

func TestOneTicketForAKillAndARevokeLosesNeither(t *testing.T) {
	cfg, eng := testConfig(t, "a"), newFakeEngine()
	n := startNode(t, cfg, eng)
	c := dial(t, DialOptions{StateDir: cfg.StateDir})
	for _, verb := range []revoke.Verb{revoke.VerbKill, revoke.VerbRevoke} {
		pub, err := c.Publish(testContext(t), verb, scopeOf("carol"), PublishOptions{ID: "HR-1234"})
		if err != nil {
			t.Fatal(err)
		}
		c.Release(pub)
		eng.wait(t, verb.String(), func(o revoke.Order) bool { return o.Fact.Verb == verb && o.Fact.Seq == pub.Seq })
	}
	crash(n)
	n = startNode(t, cfg, newFakeEngine())
	if !denied(n.Table(), "carol") {
		t.Error("the revoke is lost")
	}
}

func TestJetStreamPublishGivesExactlyOneSettledOrder(t *testing.T) {
	cfg, eng := testConfig(t, "a"), newFakeEngine()
	n := startNode(t, cfg, eng)
	nc := rawConn(t, n.URL())
	msg := nats.NewMsg("pgedge.kill.principal.dave")
	msg.Header.Set(nats.MsgIdHdr, msg.Subject+"|01JZZZZZZZZZZZZZZZZZZZZZZZ")
	// The same attempt twice, as a publisher does who has lost the first answer.
	for range 2 {
		answer, err := nc.RequestMsg(msg, patience)
		if err != nil {
			t.Fatal(err)
		}
		if strings.Contains(string(answer.Data), "error") {
			t.Fatalf("the stream answers %s", answer.Data)
		}
	}
	settled := eng.wait(t, "settled, for dave", settledOrder("dave"))
	// A later fact that has been settled proves that nothing else is on its way for dave.
	if err := nc.Publish("pgedge.kill.principal.erin", nil); err != nil {
		t.Fatal(err)
	}
	eng.wait(t, "settled, for erin", settledOrder("erin"))
	if all := eng.matching(settledOrder("dave")); len(all) != 1 {
		t.Errorf("%d settled orders came: %+v", len(all), all)
	}
	if all := eng.matching(principalOrder("dave")); len(all) > 2 {
		t.Errorf("%d orders came: %+v", len(all), all)
	}
	if settled.Fact.ID != "01JZZZZZZZZZZZZZZZZZZZZZZZ" {
		t.Errorf("the revocation id is %q", settled.Fact.ID)
	}
}

func TestBarePublishBySeveralNodesIsStoredOnce(t *testing.T) {
	engA, engB := newFakeEngine(), newFakeEngine()
	a := startNode(t, testConfig(t, "a"), engA)
	cfg := testConfig(t, "b")
	cfg.NATS = a.URL()
	startNode(t, cfg, engB)
	if err := rawConn(t, a.URL()).Publish("pgedge.kill.database.app", []byte(`{"id":"one"}`)); err != nil {
		t.Fatal(err)
	}
	settled := func(o revoke.Order) bool { return o.Fact.Scope.Name == "app" && o.Fact.Seq > 0 }
	oa, ob := engA.wait(t, "on a", settled), engB.wait(t, "on b", settled)
	if oa.Fact.Seq != ob.Fact.Seq {
		t.Errorf("the nodes settled it at %d and %d", oa.Fact.Seq, ob.Fact.Seq)
	}
}

func TestReplayComesBeforeReady(t *testing.T) {
	cfg, eng := testConfig(t, "a"), newFakeEngine()
	n := startNode(t, cfg, eng)
	nc := rawConn(t, n.URL())
	const facts = 500
	for i := range facts {
		if err := nc.Publish(revoke.Subject(revoke.VerbRevoke, scopeOf(userName(i))), nil); err != nil {
			t.Fatal(err)
		}
	}
	eng.wait(t, "for the last one", settledOrder(userName(facts-1)))
	crash(n)

	ctx := testContext(t)
	n, err := Start(ctx, cfg, newFakeEngine())
	if err != nil {
		t.Fatal(err)
	}
	defer closeNode(t, n)
	for ready := false; !ready; {
		select {
		case <-n.ReadyC():
			ready = true
		case <-ctx.Done():
			t.Fatal("never ready")
		default:
			// Ready is asked first: it may turn true in between, and then the table has to be complete already.
			if ok, why := n.Ready(); ok {
				ready = true
			} else if why == "" {
				t.Fatal("not ready, and no reason why")
			}
		}
	}
	for i := range facts {
		if !denied(n.Table(), userName(i)) {
			t.Fatalf("the node is ready and admits %s", userName(i))
		}
	}
}

func TestNothingIsReadyBeforeTheFirstHeartbeatHasComeBack(t *testing.T) {
	n := &Node{clock: newLeaseClock(), proto: revoke.NewNode(revoke.NodeConfig{ID: "a", Boot: "b"})}
	n.setState(revoke.StateStarting)
	n.readyC, n.fatalC = make(chan struct{}), make(chan struct{})
	n.beatNow = make(chan struct{}, 1)
	n.replayed = true
	if ok, why := n.Ready(); ok || !strings.Contains(why, "heartbeat") {
		t.Fatalf("ready %v, because %q", ok, why)
	}
	n.carryOutLease(revoke.RenewCommand{Until: n.clock.read().Add(time.Minute)})
	if ok, why := n.Ready(); !ok {
		t.Fatalf("not ready, because %q", why)
	}
	n.carryOutLease(revoke.RenewCommand{Until: n.clock.read().Add(-time.Second)})
	if ok, _ := n.Ready(); !ok {
		t.Fatal("an older renewal has ended the lease")
	}
}

func TestABareBlockIsListedWithTheTimeOfItsStorage(t *testing.T) {
	cfg, eng := testConfig(t, "a"), newFakeEngine()
	n := startNode(t, cfg, eng)
	if err := rawConn(t, n.URL()).Publish("pgedge.revoke.principal.alice", nil); err != nil {
		t.Fatal(err)
	}
	settled := eng.wait(t, "settled, for alice", settledOrder("alice"))
	if !settled.Fact.At.IsZero() {
		t.Errorf("the node has been told a time: %s", settled.Fact.At)
	}
	stream, err := n.js.Stream(testContext(t), journalStream)
	if err != nil {
		t.Fatal(err)
	}
	msg, err := stream.GetMsg(testContext(t), settled.Fact.Seq)
	if err != nil {
		t.Fatal(err)
	}
	c := dial(t, DialOptions{StateDir: cfg.StateDir})
	table, _, _, err := c.State(testContext(t))
	if err != nil {
		t.Fatal(err)
	}
	blocks := table.Blocks(time.Now())
	if len(blocks) != 1 || !blocks[0].Fact.At.Equal(msg.Time) {
		t.Errorf("the blocks are %+v, stored at %s", blocks, msg.Time)
	}
}

func userName(i int) string { return "user" + strconv.Itoa(i) }
