package cluster

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"pgedge/revoke"
)

func TestKillNineInTheMiddleOfAThousandRevocationsLosesNoneReportedAsStored(t *testing.T) {
	cfg := testConfig(t, "child")
	cmd, url := startChild(t, cfg.StateDir)
	c := dial(t, DialOptions{URL: url})
	ctx, cancel := context.WithCancel(testContext(t))
	defer cancel()

	const revocations, publishers, killAt = 1000, 8, 400
	var (
		mu     sync.Mutex
		stored []string
		work   sync.WaitGroup
		next   = make(chan int, revocations)
	)
	for i := range revocations {
		next <- i
	}
	close(next)
	for range publishers {
		work.Go(func() {
			for i := range next {
				name := fmt.Sprintf("user%d@corp.com", i)
				pub, err := c.Publish(ctx, revoke.VerbRevoke, scopeOf(name), PublishOptions{})
				if err != nil {
					return
				}
				c.Release(pub)
				mu.Lock()
				stored = append(stored, name)
				if len(stored) == killAt {
					cmd.Process.Kill()
					cmd.Wait()
					cancel()
				}
				mu.Unlock()
			}
		})
	}
	work.Wait()
	if len(stored) < killAt {
		t.Fatalf("only %d revocations were stored before something failed", len(stored))
	}
	t.Logf("%d of %d revocations were reported as stored when the process was killed", len(stored), revocations)

	n := startNode(t, cfg, newFakeEngine())
	for _, name := range stored {
		if !denied(n.Table(), name) {
			t.Errorf("the revocation of %s was reported as stored and is lost", name)
		}
	}
	// The restarted node holds the directory's lock and so knows that the killed one is gone.
	_, presences, _, err := dial(t, DialOptions{StateDir: cfg.StateDir}).State(testContext(t))
	if err != nil {
		t.Fatal(err)
	}
	left := 0
	for _, p := range presences {
		if p.Node == "child" && p.Boot != n.Boot() {
			if p.State != revoke.StateLeft {
				t.Errorf("the killed boot %s is %s, want left", p.Boot, p.State)
			}
			left++
		}
	}
	if left != 1 {
		t.Errorf("%d earlier boots are known, want 1", left)
	}
}

func TestPublishIsNotReportedAsStoredWhileTheServerIsGone(t *testing.T) {
	cfg := testConfig(t, "child")
	cmd, url := startChild(t, cfg.StateDir)
	c := dial(t, DialOptions{URL: url})
	cmd.Process.Kill()
	cmd.Wait()
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	if pub, err := c.Publish(ctx, revoke.VerbRevoke, scopeOf("alice"), PublishOptions{}); err == nil {
		t.Fatalf("reported as stored at %d", pub.Seq)
	}
}

func TestJournalThatRefusesWritesIsOpenedAgainAndNothingIsLost(t *testing.T) {
	cfg, eng := testConfig(t, "a"), newFakeEngine()
	cfg.Heartbeat = minHeartbeat
	n := startNode(t, cfg, eng)
	c := dial(t, DialOptions{StateDir: cfg.StateDir})
	pub, err := c.Publish(testContext(t), revoke.VerbRevoke, scopeOf("alice"), PublishOptions{})
	if err != nil {
		t.Fatal(err)
	}
	c.Release(pub)
	if err := n.srv.srv.ShutdownJetStream(); err != nil {
		t.Fatal(err)
	}
	// The fast path needs no journal.
	if err := rawConn(t, n.URL()).Publish("pgedge.revoke.principal.carol", nil); err != nil {
		t.Fatal(err)
	}
	if o := eng.wait(t, "for carol", principalOrder("carol")); o.Fact.Seq != 0 || !o.Fast || !denied(n.Table(), "carol") {
		t.Errorf("the order for carol is %+v", o)
	}
	// The publication is proven only once the journal takes it again.
	pub, err = c.Publish(testContext(t), revoke.VerbRevoke, scopeOf("bob"), PublishOptions{})
	if err != nil {
		t.Fatal(err)
	}
	c.Release(pub)
	eng.wait(t, "settled, for bob", func(o revoke.Order) bool { return o.Fact.Scope == scopeOf("bob") && o.Fact.Seq == pub.Seq })
	if n.m.heartbeatFailures.Get() == 0 {
		t.Error("no failure of a heartbeat was counted")
	}
	// What nobody has stored the node stores itself.
	eng.wait(t, "settled, for carol", settledOrder("carol"))
	crash(n)
	n = startNode(t, cfg, newFakeEngine())
	for _, name := range []string{"alice", "bob", "carol"} {
		if !denied(n.Table(), name) {
			t.Errorf("the revocation of %s is lost", name)
		}
	}
}

func TestForgedAcknowledgementDoesNotMakeAPublicationStored(t *testing.T) {
	cfg := testConfig(t, "a")
	n := startNode(t, cfg, newFakeEngine())
	c := dial(t, DialOptions{StateDir: cfg.StateDir})
	forger := rawConn(t, n.URL())
	forged := make(chan struct{}, 100)
	if _, err := forger.Subscribe("pgedge.revoke.>", func(m *nats.Msg) {
		m.Respond([]byte(`{"stream":"PGEDGE","seq":1000000}`))
		forged <- struct{}{}
	}); err != nil {
		t.Fatal(err)
	}
	if err := forger.FlushTimeout(patience); err != nil {
		t.Fatal(err)
	}
	if err := n.srv.srv.ShutdownJetStream(); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	_, err := c.Publish(ctx, revoke.VerbRevoke, scopeOf("alice"), PublishOptions{})
	if !errors.Is(err, ErrNotStored) {
		t.Errorf("the error is %v, want ErrNotStored", err)
	}
	if len(forged) == 0 {
		t.Error("the forger never answered")
	}
	crash(n)
}

func TestDroppedMessagesMakeTheNodeReadTheJournalAgain(t *testing.T) {
	cfg := testConfig(t, "a")
	n := startNode(t, cfg, newFakeEngine())
	n.onAsyncError(n.subs[0], nats.ErrSlowConsumer)
	ctx := testContext(t)
	for n.m.reloads.Get() == 0 {
		select {
		case <-ctx.Done():
			t.Fatal("never reloaded")
		case <-time.After(time.Millisecond):
		}
	}
	if ok, why := n.Ready(); !ok {
		t.Errorf("a reload makes the node not ready: %s", why)
	}
}

func TestAFloodOfQuestionsDoesNotMakeTheNodeReadTheJournalAgain(t *testing.T) {
	n := startNode(t, testConfig(t, "a"), newFakeEngine())
	for _, subject := range []string{sessionsSubject, claimsSubject, cancelSubject("a"), "$SRV.PING"} {
		n.onAsyncError(&nats.Subscription{Subject: subject}, nats.ErrSlowConsumer)
		select {
		case why := <-n.doubt:
			t.Errorf("%s: %s", subject, why)
		default:
		}
	}
}

// TestPublishToCutLatency asserts order only; the times are for the log.
func TestPublishToCutLatency(t *testing.T) {
	cfg, eng := testConfig(t, "a"), newFakeEngine()
	n := startNode(t, cfg, eng)
	nc := rawConn(t, n.URL())
	var took []time.Duration
	for i := range 200 {
		name := fmt.Sprintf("user%d", i)
		start := time.Now()
		if err := nc.Publish(revoke.Subject(revoke.VerbKill, scopeOf(name)), nil); err != nil {
			t.Fatal(err)
		}
		if err := nc.FlushTimeout(patience); err != nil {
			t.Fatal(err)
		}
		eng.wait(t, name, principalOrder(name))
		eng.mu.Lock()
		for j, o := range eng.orders {
			if o.Fact.Scope.Name == name {
				took = append(took, eng.cutAt[j].Sub(start))
				break
			}
		}
		eng.mu.Unlock()
	}
	logQuantiles(t, "bare publish over TCP to Cut", took)
}

func BenchmarkPublishToCut(b *testing.B) {
	cut := make(chan time.Time, 16)
	eng := newFakeEngine()
	eng.onCut = func(o revoke.Order) {
		if o.Fact.Seq == 0 {
			cut <- time.Now()
		}
	}
	n := startNode(b, testConfig(b, "a"), eng)
	nc := rawConn(b, n.URL())
	var took []time.Duration
	for i := range b.N {
		start := time.Now()
		if err := nc.Publish(revoke.Subject(revoke.VerbKill, scopeOf(fmt.Sprint("u", i))), nil); err != nil {
			b.Fatal(err)
		}
		took = append(took, (<-cut).Sub(start))
	}
	logQuantiles(b, "bare publish over TCP to Cut", took)
}
