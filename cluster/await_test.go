package cluster

import (
	"context"
	"fmt"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	"pgedge/internal/pgtest"
	"pgedge/revoke"
)

// announceSilent stores the heartbeat of a boot that says no more.
func announceSilent(t *testing.T, n *Node, node string, change func(*revoke.Presence)) {
	t.Helper()
	p := revoke.Presence{V: 1, Node: node, Boot: newBoot(nil), N: 9, LeaseMS: 2000, OnStale: "freeze", Stream: n.stream(), State: revoke.StateServing, Sessions: 4}
	if change != nil {
		change(&p)
	}
	if err := n.publishPresence(testContext(t), p); err != nil {
		t.Fatal(err)
	}
}

func TestASilentNodeIsFencedByItsLeaseAndTheWaitSaysWhen(t *testing.T) {
	cfg, eng := testConfig(t, "a"), newFakeEngine()
	a := startNode(t, cfg, eng)
	answering(eng, a, 2, 0)
	announceSilent(t, a, "b", nil)
	c := dial(t, DialOptions{StateDir: cfg.StateDir})
	pub, err := c.Publish(testContext(t), revoke.VerbRevoke, scopeOf("alice"), PublishOptions{})
	if err != nil {
		t.Fatal(err)
	}
	var lines []revoke.NodeStatus
	verdict, _, err := c.Await(testContext(t), pub, func(s revoke.NodeStatus) { lines = append(lines, s) })
	took := time.Since(pub.SeenAt)
	if err != nil || verdict.Verdict != revoke.CompleteFenced || len(verdict.Nodes) != 2 {
		t.Fatalf("the verdict is %+v, error %v", verdict, err)
	}
	if b := verdict.Nodes[1]; b.Status != revoke.StatusFenced || b.AfterMS != 2020 || !strings.Contains(b.Why, "(4, of all") {
		t.Errorf("b is %+v", b)
	}
	if took < 2020*time.Millisecond {
		t.Errorf("fenced after %s, before its lease had ended", took)
	}
	announced, fenced := 0, 0
	for _, l := range lines {
		switch {
		case l.Node != "b":
		case l.Status == revoke.StatusFenced:
			fenced++
		case l.FencedInMS > 0 && l.FencedInMS <= 1020 && l.Status == revoke.StatusSilent:
			announced++
		}
	}
	if announced != 1 || fenced != 1 {
		t.Errorf("the lines were %+v", lines)
	}
}

func TestASilentNodeThatServesOnOrFollowsAnotherJournalIsNeverFenced(t *testing.T) {
	for what, change := range map[string]func(*revoke.Presence){
		"serves on":       func(p *revoke.Presence) { p.OnStale = "serve" },
		"another journal": func(p *revoke.Presence) { p.Stream = "PGEDGE@leaf/1" },
	} {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			cfg, eng := testConfig(t, "a"), newFakeEngine()
			a := startNode(t, cfg, eng)
			answering(eng, a, 2, 0)
			announceSilent(t, a, "b", func(p *revoke.Presence) { p.LeaseMS = 100; change(p) })
			c := dial(t, DialOptions{StateDir: cfg.StateDir})
			pub, err := c.Publish(testContext(t), revoke.VerbRevoke, scopeOf("alice"), PublishOptions{})
			if err != nil {
				t.Fatal(err)
			}
			ctx, cancel := context.WithTimeout(testContext(t), 700*time.Millisecond)
			defer cancel()
			verdict, _, err := c.Await(ctx, pub, nil)
			if err != nil || verdict.Verdict != revoke.Incomplete || verdict.Nodes[1].Status != revoke.StatusSilent || verdict.Nodes[1].Why == "" {
				t.Errorf("the verdict is %+v, error %v", verdict, err)
			}
		})
	}
}

// Two connectors revoke the same user, and a node that is away meets only the newer fact: both verdicts arrive.
func TestBothPublishersOfAFactAreAnsweredByANodeThatSawOnlyTheNewerOne(t *testing.T) {
	cfg, engA, engB := testConfig(t, "a"), newFakeEngine(), newFakeEngine()
	a := startNode(t, cfg, engA)
	u, err := url.Parse(a.URL())
	if err != nil {
		t.Fatal(err)
	}
	relay := pgtest.NewRelay(t, u.Host)
	u.Host = relay.Addr()
	second := testConfig(t, "b")
	second.NATS = u.String()
	b := startNode(t, second, engB)
	answering(engA, a, 1, 0)
	answering(engB, b, 1, 0)
	one, two := dial(t, DialOptions{StateDir: cfg.StateDir}), dial(t, DialOptions{StateDir: cfg.StateDir})
	relay.Cut()
	publish := func(c *Client, id string) *Publication {
		pub, err := c.Publish(testContext(t), revoke.VerbRevoke, scopeOf("alice"), PublishOptions{ID: id})
		if err != nil {
			t.Fatal(err)
		}
		return pub
	}
	first := publish(one, "first")
	newer := publish(two, "newer")
	if first.Seq >= newer.Seq {
		t.Fatalf("seq %d, then %d", first.Seq, newer.Seq)
	}
	relay.Mend(t)
	for _, w := range []struct {
		c   *Client
		pub *Publication
	}{{one, first}, {two, newer}} {
		verdict, receipts, err := w.c.Await(testContext(t), w.pub, nil)
		if err != nil || verdict.Verdict != revoke.Complete || len(verdict.Nodes) != 2 || len(receipts) != 2 {
			t.Errorf("%s: the verdict is %+v with %d receipts, error %v", w.pub.ID, verdict, len(receipts), err)
		}
	}
	if orders := engB.matching(func(o revoke.Order) bool { return o.Fact.ID == "first" }); len(orders) > 0 {
		t.Errorf("b has seen the first fact, so that this test shows nothing: %+v", orders)
	}
}

func TestRacingPublishersOfTheSameFactsAllGetTheirVerdict(t *testing.T) {
	cfg, eng := testConfig(t, "a"), newFakeEngine()
	a := startNode(t, cfg, eng)
	answering(eng, a, 1, 0)
	for _, name := range []string{"b", "c"} {
		eng := newFakeEngine()
		answering(eng, startSecond(t, a, name, eng), 1, 0)
	}
	const publishers, rounds = 4, 15
	clients := make([]*Client, publishers)
	for i := range clients {
		clients[i] = dial(t, DialOptions{StateDir: cfg.StateDir})
	}
	for round := range rounds {
		var work sync.WaitGroup
		for i, c := range clients {
			work.Go(func() {
				verb := revoke.VerbRevoke
				if round%3 == 2 {
					verb = revoke.VerbKill
				}
				pub, err := c.Publish(testContext(t), verb, scopeOf(fmt.Sprint("user", round%5)), PublishOptions{Source: fmt.Sprint("connector", i)})
				if err != nil {
					t.Error(err)
					return
				}
				verdict, _, err := c.Await(testContext(t), pub, nil)
				if err != nil || verdict.Verdict != revoke.Complete || len(verdict.Nodes) != 3 {
					t.Errorf("round %d, publisher %d (superseded by %d): the verdict is %+v, error %v", round, i, pub.SupersededBy, verdict, err)
				}
			})
		}
		work.Wait()
	}
}

// A journal that is gone had greater seqs, and its receipts are there still.
func TestAReceiptOfAFactThatTheJournalDoesNotHoldProvesNothing(t *testing.T) {
	cfg, eng := testConfig(t, "a"), newFakeEngine()
	a := startNode(t, cfg, eng)
	c := dial(t, DialOptions{StateDir: cfg.StateDir})
	for what, id := range map[string]string{"of the same scope": "earlier", "under the same id": "ticket"} {
		pub, err := c.Publish(testContext(t), revoke.VerbRevoke, scopeOf(what), PublishOptions{ID: "ticket"})
		if err != nil {
			t.Fatal(err)
		}
		scope := pub.Scope
		if id == "ticket" {
			scope = scopeOf("somebody-else")
		}
		old := revoke.Order{Fact: revoke.Fact{Verb: revoke.VerbRevoke, Scope: scope, ID: id, Seq: 40_000}}
		a.PublishReceipt(receiptFor(a, old, revoke.StageVerified, 0, 0))
		ctx, cancel := context.WithTimeout(testContext(t), 300*time.Millisecond)
		verdict, _, err := c.Await(ctx, pub, nil)
		cancel()
		if err != nil || verdict.Verdict != revoke.Incomplete {
			t.Errorf("%s: the verdict is %+v, error %v", what, verdict, err)
		}
	}
}

// A boot that is gone is not heard again by reading the journal again.
func TestReadingTheJournalAgainRevivesNobody(t *testing.T) {
	cfg, eng := testConfig(t, "a"), newFakeEngine()
	a := startNode(t, cfg, eng)
	announceSilent(t, a, "b", func(p *revoke.Presence) { p.LeaseMS = 50 })
	c := dial(t, DialOptions{StateDir: cfg.StateDir})
	waitNodes(t, c, "b is gone", func(nodes []NodeInfo) bool { return len(nodes) == 2 && nodes[1].Status == "gone" })
	pub, err := c.Publish(testContext(t), revoke.VerbRevoke, scopeOf("alice"), PublishOptions{ID: "R"})
	if err != nil {
		t.Fatal(err)
	}
	before := c.view.begun()
	verdicts := make(chan revoke.FleetVerdict, 1)
	go func() {
		verdict, _, _ := c.Await(testContext(t), pub, nil)
		verdicts <- verdict
	}()
	c.startOver("a test")
	waitFor(t, "the journal is read again", func() bool { return c.view.begun().After(before) })
	a.PublishReceipt(receiptFor(a, revoke.Order{Fact: revoke.Fact{Verb: revoke.VerbRevoke, Scope: pub.Scope, ID: "R", Seq: pub.Seq}}, revoke.StageVerified, 0, 0))
	verdict := <-verdicts
	if verdict.Verdict != revoke.Complete || len(verdict.Nodes) != 2 || verdict.Nodes[1].Status != revoke.StatusGone {
		t.Errorf("the verdict is %+v", verdict)
	}
}

// begun is when the pass began that the present state is of.
func (v *journalView) begun() time.Time {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.current.beganHere
}

// A boot's only heartbeat can be one that is still to come: the list of members is taken at the journal's end.
func TestMembersAreTakenAtTheEndOfTheJournal(t *testing.T) {
	v := newJournalView()
	v.onPresence = func(revoke.Presence) {}
	v.begin(time.Now(), 0)
	message := func(subject, payload string, seq, pending uint64) {
		v.onMessage(delivery{Subject: subject, Payload: []byte(payload), Seq: seq, Pending: pending, Stored: time.Now()})
	}
	heartbeat := `{"node":"b","boot":"B1","n":2,"state":"serving"}`
	message("pgedge.revoke.principal.alice", "", 7, 1)
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Millisecond)
	defer cancel()
	if members, complete := v.membersAt(ctx, 7); complete || len(members) != 0 {
		t.Fatalf("complete %v, %+v", complete, members)
	}
	// A reload in between does not make the old list a complete one.
	v.begin(time.Now(), 2)
	found := make(chan int, 1)
	go func() {
		members, complete := v.membersAt(testContext(t), 7)
		if !complete {
			members = nil
		}
		found <- len(members)
	}()
	message("pgedge.revoke.principal.alice", "", 7, 1)
	message(revoke.NodeSubject("b", "B1"), heartbeat, 9, 0)
	if n := <-found; n != 1 {
		t.Errorf("%d members", n)
	}
}
