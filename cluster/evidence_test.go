package cluster

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"pgedge/revoke"
)

// answering makes a fake engine answer each settled order with the receipts of an engine.
func answering(eng *fakeEngine, n *Node, sessions int, unverified int) {
	eng.mu.Lock()
	defer eng.mu.Unlock()
	eng.onCut = func(o revoke.Order) {
		if o.Fact.Seq == 0 && o.SupersededBy == 0 {
			return
		}
		for _, stage := range []revoke.Stage{revoke.StageCut, revoke.StageClosed, revoke.StageVerified} {
			n.PublishReceipt(receiptFor(n, o, stage, sessions, unverified))
		}
	}
}

func receiptFor(n *Node, o revoke.Order, stage revoke.Stage, sessions, unverified int) revoke.Receipt {
	r := revoke.Receipt{
		Schema: "pgedge.receipt/v1", Revocation: o.Fact.ID, Seq: o.Fact.Seq, Epoch: o.Fact.Epoch, Stage: stage, Matched: sessions,
		SupersededBy: o.SupersededBy, Verb: o.Fact.Verb.String(), Scope: o.Fact.Scope.Token(), Reason: o.Fact.Reason,
		Node: n.cfg.Node, Boot: n.Boot(), ReceivedAt: o.ReceivedAt, Unverified: unverified,
	}
	for i := range sessions {
		r.Sessions = append(r.Sessions, revoke.SessionReceipt{ID: fmt.Sprintf("%s-%d", n.cfg.Node, i), Verified: stage == revoke.StageVerified})
	}
	return r
}

func TestRevokeOfTwelveHundredSessionsIsPagedJoinedAndComplete(t *testing.T) {
	cfg, engA, engB := testConfig(t, "a"), newFakeEngine(), newFakeEngine()
	a := startNode(t, cfg, engA)
	b := startSecond(t, a, "b", engB)
	answering(engA, a, 1200, 0)
	answering(engB, b, 0, 0)
	c := dial(t, DialOptions{StateDir: cfg.StateDir})
	pub, err := c.Publish(testContext(t), revoke.VerbRevoke, scopeOf("alice"), PublishOptions{})
	if err != nil {
		t.Fatal(err)
	}
	var lines []revoke.NodeStatus
	verdict, receipts, err := c.Await(testContext(t), pub, func(s revoke.NodeStatus) { lines = append(lines, s) })
	if err != nil {
		t.Fatal(err)
	}
	if verdict.Verdict != revoke.Complete || len(verdict.Nodes) != 2 {
		t.Fatalf("the verdict is %+v", verdict)
	}
	verified := map[string]bool{}
	for _, l := range lines {
		if l.Status == revoke.StatusVerified {
			verified[l.Node] = true
		}
	}
	if !verified["a"] || !verified["b"] {
		t.Errorf("the lines were %+v", lines)
	}
	stored, err := c.Receipts(testContext(t), pub.ID)
	if err != nil {
		t.Fatal(err)
	}
	for what, list := range map[string][]revoke.Receipt{"awaited": receipts, "stored": stored} {
		if len(list) != 2 || list[0].Node != "a" || list[1].Node != "b" {
			t.Fatalf("%s receipts: %d", what, len(list))
		}
		if r := list[0]; r.Stage != revoke.StageVerified || r.Pages != 3 || len(r.Sessions) != 1200 || r.Sessions[1199].ID != "a-1199" || r.Seq != pub.Seq {
			t.Errorf("%s: the receipt of a has stage %s, %d pages, %d sessions, seq %d", what, r.Stage, r.Pages, len(r.Sessions), r.Seq)
		}
	}
	summaries, truncated, err := c.ListReceipts(testContext(t), time.Time{})
	if err != nil || truncated || len(summaries) != 2 {
		t.Errorf("the list has %d summaries, truncated %v, error %v", len(summaries), truncated, err)
	}
	if none, err := c.Receipts(testContext(t), "unknown"); err != nil || len(none) != 0 {
		t.Errorf("an unknown id: %+v, %v", none, err)
	}
}

func TestBackendsNotSeenGoneMakeTheVerdictUnverified(t *testing.T) {
	cfg, eng := testConfig(t, "a"), newFakeEngine()
	n := startNode(t, cfg, eng)
	answering(eng, n, 3, 1)
	c := dial(t, DialOptions{StateDir: cfg.StateDir})
	pub, err := c.Publish(testContext(t), revoke.VerbKill, scopeOf("alice"), PublishOptions{})
	if err != nil {
		t.Fatal(err)
	}
	verdict, _, err := c.Await(testContext(t), pub, nil)
	if err != nil || verdict.Verdict != revoke.CompleteUnverified {
		t.Errorf("the verdict is %+v, error %v", verdict, err)
	}
}

func TestSilentNodeMakesTheVerdictIncomplete(t *testing.T) {
	cfg, engA := testConfig(t, "a"), newFakeEngine()
	a := startNode(t, cfg, engA)
	answering(engA, a, 1, 0)
	b := startSecond(t, a, "b", newFakeEngine()) // It never answers.
	c := dial(t, DialOptions{StateDir: cfg.StateDir})
	crash(b)
	pub, err := c.Publish(testContext(t), revoke.VerbKill, scopeOf("alice"), PublishOptions{})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(testContext(t))
	defer cancel()
	verdict, receipts, err := c.Await(ctx, pub, func(s revoke.NodeStatus) {
		if s.Node == "a" && s.Status == revoke.StatusVerified {
			cancel()
		}
	})
	if err != nil || verdict.Verdict != revoke.Incomplete || len(receipts) != 1 {
		t.Errorf("the verdict is %+v with %d receipts, error %v", verdict, len(receipts), err)
	}
}

func TestManyPublicationsAreAwaitedAtTheSameTimeUnderOneUsedID(t *testing.T) {
	cfg, eng := testConfig(t, "a"), newFakeEngine()
	n := startNode(t, cfg, eng)
	answering(eng, n, 1, 0)
	c := dial(t, DialOptions{StateDir: cfg.StateDir})
	var work sync.WaitGroup
	for i := range 50 {
		work.Go(func() {
			// One id for all of them: the node renames all but the first, and each publication finds its own.
			pub, err := c.Publish(testContext(t), revoke.VerbRevoke, scopeOf(fmt.Sprint("user", i)), PublishOptions{ID: "HR-1", Batch: "b"})
			if err != nil {
				t.Error(err)
				return
			}
			verdict, receipts, err := c.Await(testContext(t), pub, nil)
			if err != nil || verdict.Verdict != revoke.Complete {
				t.Errorf("user%d: the verdict is %+v, error %v", i, verdict, err)
				return
			}
			if len(receipts) != 1 || receipts[0].Seq != pub.Seq || len(receipts[0].Sessions) != 1 {
				t.Errorf("user%d: the receipts are %+v", i, receipts)
			}
		})
	}
	work.Wait()
	c.inboxes.mu.Lock()
	defer c.inboxes.mu.Unlock()
	if left := len(c.inboxes.open) + len(c.inboxes.waiting); left != 0 {
		t.Errorf("%d inboxes are left open", left)
	}
}

func TestReinstateOfWhatItsAuthorHasNotSeenIsRefused(t *testing.T) {
	cfg, eng := testConfig(t, "a"), newFakeEngine()
	n := startNode(t, cfg, eng)
	c := dial(t, DialOptions{StateDir: cfg.StateDir})
	ctx := testContext(t)
	scope := scopeOf("alice")
	if _, err := c.Publish(ctx, revoke.VerbReinstate, scope, PublishOptions{}); err == nil {
		t.Error("a reinstate without upto was accepted")
	}
	first, err := c.Publish(ctx, revoke.VerbRevoke, scope, PublishOptions{})
	if err != nil {
		t.Fatal(err)
	}
	second, err := c.Publish(ctx, revoke.VerbRevoke, scope, PublishOptions{})
	if err != nil {
		t.Fatal(err)
	}
	// An author who has seen the first one only undoes nothing.
	if _, err := c.Publish(ctx, revoke.VerbReinstate, scope, PublishOptions{Upto: first.Seq}); err != nil {
		t.Fatal(err)
	}
	table, _, _, err := c.State(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if !denied(table, "alice") {
		t.Error("a reinstate has undone a revoke that its author had not seen")
	}
	if upto := table.Newest(scope); upto != second.Seq {
		t.Errorf("the newest block is %d, want %d", upto, second.Seq)
	}
	last, err := c.Publish(ctx, revoke.VerbReinstate, scope, PublishOptions{Upto: second.Seq})
	if err != nil {
		t.Fatal(err)
	}
	if denied(table, "alice") {
		t.Error("alice is still refused")
	}
	// The node gets it through the journal as well.
	for n.Table().Applied() < last.Seq {
		select {
		case <-ctx.Done():
			t.Fatal("the node never applied the reinstate")
		case <-time.After(time.Millisecond):
		}
	}
	if denied(n.Table(), "alice") {
		t.Error("the node still refuses alice")
	}
}

func TestSuspendHoldsUntilItsEnd(t *testing.T) {
	cfg, eng := testConfig(t, "a"), newFakeEngine()
	n := startNode(t, cfg, eng)
	c := dial(t, DialOptions{StateDir: cfg.StateDir})
	if _, err := c.Publish(testContext(t), revoke.VerbSuspend, scopeOf("alice"), PublishOptions{}); err == nil {
		t.Error("a suspend without an end was accepted")
	}
	until := time.Now().Add(time.Hour)
	if _, err := c.Publish(testContext(t), revoke.VerbSuspend, scopeOf("alice"), PublishOptions{Until: until}); err != nil {
		t.Fatal(err)
	}
	eng.wait(t, "settled, for alice", settledOrder("alice"))
	id := revoke.NewIdentity("alice", "alice", "app", "s")
	if _, no := n.Table().Check(id, n.Table().Position(), until.Add(-time.Second)); !no {
		t.Error("admitted before the end")
	}
	if _, no := n.Table().Check(id, n.Table().Position(), until.Add(time.Second)); no {
		t.Error("refused after the end")
	}
}

func TestReceiptsKeepTheLatestStageAndWaitForTheStream(t *testing.T) {
	cfg, eng := testConfig(t, "a"), newFakeEngine()
	n := startNode(t, cfg, eng)
	js, err := jetstream.New(rawConn(t, n.URL()))
	if err != nil {
		t.Fatal(err)
	}
	stream, err := js.Stream(testContext(t), receiptStream)
	if err != nil {
		t.Fatal(err)
	}
	// Without the stream nothing can be stored.
	if err := js.DeleteStream(testContext(t), receiptStream); err != nil {
		t.Fatal(err)
	}
	o := revoke.Order{Fact: revoke.Fact{Verb: revoke.VerbKill, Scope: scopeOf("alice"), ID: "one", Seq: 7}}
	n.PublishReceipt(receiptFor(n, o, revoke.StageVerified, 2, 0))
	n.PublishReceipt(receiptFor(n, o, revoke.StageCut, 2, 0))
	if got := n.receipts.pending(); got == 0 {
		t.Fatal("nothing waits while the stream is gone")
	}
	ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
	defer cancel()
	if err := n.receipts.drain(ctx); err == nil {
		t.Fatal("drained into nothing")
	}
	if _, err := js.CreateStream(testContext(t), stream.CachedInfo().Config); err != nil {
		t.Fatal(err)
	}
	if err := n.receipts.drain(testContext(t)); err != nil {
		t.Fatal(err)
	}
	c := dial(t, DialOptions{StateDir: cfg.StateDir})
	receipts, err := c.Receipts(testContext(t), "one")
	if err != nil || len(receipts) != 1 || receipts[0].Stage != revoke.StageVerified || len(receipts[0].Sessions) != 2 {
		t.Errorf("the receipts are %+v, error %v", receipts, err)
	}
}

// The pages of a large receipt are megabytes; the residue, which comes later and perhaps once a second, is in the summary.
func TestTheResidueIsStoredWithoutThePages(t *testing.T) {
	cfg := testConfig(t, "a")
	n := startNode(t, cfg, newFakeEngine())
	stream, err := n.js.Stream(testContext(t), receiptStream)
	if err != nil {
		t.Fatal(err)
	}
	o := revoke.Order{Fact: revoke.Fact{Verb: revoke.VerbKill, Scope: scopeOf("alice"), ID: "one", Seq: 7}}
	r := receiptFor(n, o, revoke.StageVerified, revoke.SessionsPerPage+1, 0)
	stored := func(page int) uint64 {
		t.Helper()
		if err := n.receipts.drain(testContext(t)); err != nil {
			t.Fatal(err)
		}
		m, err := stream.GetLastMsgForSubject(testContext(t), revoke.ReceiptSubject("one", r.Node, r.Boot, page))
		if err != nil {
			t.Fatal(err)
		}
		return m.Sequence
	}
	n.receipts.put(r)
	summary, first, second := stored(0), stored(1), stored(2)
	why := "for the test"
	r.Residue = &revoke.Residue{Why: why}
	n.receipts.putAgain(r)
	if stored(0) <= summary || stored(1) != first || stored(2) != second {
		t.Errorf("summary and pages were stored at %d, %d, %d and then at %d, %d, %d", summary, first, second, stored(0), stored(1), stored(2))
	}
	receipts, err := dial(t, DialOptions{StateDir: cfg.StateDir}).Receipts(testContext(t), "one")
	if err != nil || len(receipts) != 1 || len(receipts[0].Sessions) != revoke.SessionsPerPage+1 || receipts[0].Residue == nil || receipts[0].Residue.Why != why {
		t.Errorf("%d receipts, error %v", len(receipts), err)
	}
	// Another last word of the same revocation is stored whole.
	n.receipts.put(r)
	if stored(1) <= first || stored(2) <= second {
		t.Error("the pages of a new receipt were left out")
	}
}

func TestReceiptQueueIsBounded(t *testing.T) {
	q := newReceiptQueue(nil, testConfig(t, "a").Logger)
	q.m = &nodeMetrics{}
	n := &Node{cfg: Config{Node: "a", Boot: "b"}}
	q.m.receiptsDropped = testConfig(t, "a").withDefaults().Metrics.NewCounter("dropped")
	for i := range maxPendingReceipts + 10 {
		o := revoke.Order{Fact: revoke.Fact{ID: fmt.Sprint("r", i), Seq: 1}}
		q.put(receiptFor(n, o, revoke.StageCut, 0, 0))
	}
	if got := q.pending(); got != maxPendingReceipts {
		t.Errorf("%d receipts wait, want %d", got, maxPendingReceipts)
	}
	big := revoke.Order{Fact: revoke.Fact{ID: "big", Seq: 1}}
	r := receiptFor(n, big, revoke.StageClosed, 0, 0)
	r.Sessions = make([]revoke.SessionReceipt, maxPendingReceiptSessions)
	q.put(r)
	q.put(receiptFor(n, revoke.Order{Fact: revoke.Fact{ID: "more", Seq: 1}}, revoke.StageClosed, 1, 0))
	if q.sessions > maxPendingReceiptSessions {
		t.Errorf("%d sessions wait, more than %d", q.sessions, maxPendingReceiptSessions)
	}
	if _, there := q.waiting["more"]; !there {
		t.Error("the newest receipt was dropped")
	}
}

func TestAFinalReceiptReplacesAnyOtherAndIsReplacedByNone(t *testing.T) {
	q := newReceiptQueue(nil, testConfig(t, "a").Logger)
	n := &Node{cfg: Config{Node: "a", Boot: "b"}}
	o := revoke.Order{Fact: revoke.Fact{ID: "one", Seq: 1}}
	for _, tt := range []struct {
		stage      revoke.Stage
		unverified int
		want       int
	}{
		{revoke.StageClosed, 0, 0}, {revoke.StageClosed, 2, 2}, {revoke.StageClosed, 0, 2}, {revoke.StageCut, 0, 2},
	} {
		q.put(receiptFor(n, o, tt.stage, 3, tt.unverified))
		if r := q.waiting["one"].Value.(*queuedReceipt).receipt; r.Unverified != tt.want {
			t.Fatalf("after %s with %d unverified a receipt with %d waits, want %d", tt.stage, tt.unverified, r.Unverified, tt.want)
		}
	}
	taken, _ := q.take(time.Now())
	if taken == nil {
		t.Fatal("nothing waits")
	}
	q.put(receiptFor(n, o, revoke.StageClosed, 3, 0))
	if len(q.waiting) != 0 {
		t.Error("an earlier receipt waits behind the final one")
	}
}

func TestANodeWithoutAControlRoleEndsTheWaitAtClosed(t *testing.T) {
	cfg, eng := testConfig(t, "a"), newFakeEngine()
	n := startNode(t, cfg, eng)
	eng.mu.Lock()
	eng.onCut = func(o revoke.Order) {
		if o.Fact.Seq > 0 {
			n.PublishReceipt(receiptFor(n, o, revoke.StageClosed, 3, 0))
			n.PublishReceipt(receiptFor(n, o, revoke.StageClosed, 3, 3))
		}
	}
	eng.mu.Unlock()
	c := dial(t, DialOptions{StateDir: cfg.StateDir, VerifyTimeout: time.Hour})
	pub, err := c.Publish(testContext(t), revoke.VerbKill, scopeOf("alice"), PublishOptions{})
	if err != nil {
		t.Fatal(err)
	}
	ctx := testContext(t)
	verdict, receipts, err := c.Await(ctx, pub, nil)
	if err != nil || ctx.Err() != nil || verdict.Verdict != revoke.CompleteUnverified {
		t.Fatalf("the verdict is %+v, error %v, context %v", verdict, err, ctx.Err())
	}
	if len(receipts) != 1 || !receipts[0].Final() || len(receipts[0].Sessions) != 3 {
		t.Errorf("the receipts are %+v", receipts)
	}
}
