package cluster

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go/jetstream"

	"pgedge/revoke"
)

// outsideNATS is a NATS server that a test stops and starts.
type outsideNATS struct {
	t    testing.TB
	conf string
	dir  string
	srv  *server.Server
}

func newOutsideNATS(t testing.TB) *outsideNATS {
	t.Helper()
	o := &outsideNATS{t: t, dir: t.TempDir()}
	o.conf = fmt.Sprintf("listen: 127.0.0.1:%d\njetstream { store_dir: %q, sync_interval: always, max_file_store: 1TB }\n", freePorts(t, 1)[0], o.dir)
	o.start()
	initStreams(t, DialOptions{URL: o.url(), Timeout: patience}, 1)
	return o
}

func (o *outsideNATS) start() { o.srv = natsServer(o.t, o.conf) }

func (o *outsideNATS) stop() {
	o.srv.Shutdown()
	o.srv.WaitForShutdown()
}

func (o *outsideNATS) url() string { return o.srv.ClientURL() }

func (o *outsideNATS) jetStream() jetstream.JetStream {
	o.t.Helper()
	js, err := jetstream.New(rawConn(o.t, o.url()))
	if err != nil {
		o.t.Fatal(err)
	}
	return js
}

// startLeased starts a node whose lease is short.
func (o *outsideNATS) startLeased(node string, eng Engine) *Node {
	cfg := outsideConfig(o.t, node, o.url(), 1)
	cfg.Heartbeat, cfg.Lease = 100*time.Millisecond, time.Second
	return startNode(o.t, cfg, eng)
}

func (o *outsideNATS) publish(verb revoke.Verb, principal string, opts PublishOptions) *Publication {
	o.t.Helper()
	c := dial(o.t, DialOptions{URL: o.url()})
	defer c.Close()
	pub, err := c.Publish(testContext(o.t), verb, scopeOf(principal), opts)
	if err != nil {
		o.t.Fatal(err)
	}
	c.Release(pub)
	return pub
}

// waitFor polls what no event tells.
func waitFor(t testing.TB, what string, ok func() bool) {
	t.Helper()
	ctx := testContext(t)
	for !ok() {
		select {
		case <-ctx.Done():
			t.Fatalf("%s never came true", what)
		case <-time.After(5 * time.Millisecond):
		}
	}
}

func TestTheLeaseEndsWithoutNATSAndComesBackWithIt(t *testing.T) {
	nats, eng := newOutsideNATS(t), newFakeEngine()
	n := nats.startLeased("a", eng)
	if !n.Fresh() || n.LeaseRemaining() > time.Second {
		t.Fatalf("remaining %s", n.LeaseRemaining())
	}
	nats.stop()
	eng.waitLease(t, "freeze")
	ok, why := n.Ready()
	if ok || n.Fresh() || !strings.Contains(why, "the lease ended") || !strings.Contains(why, "since") {
		t.Errorf("ready %v, fresh %v: %s", ok, n.Fresh(), why)
	}
	nats.start()
	eng.waitLease(t, "freeze", "thaw")
	waitFor(t, "ready", func() bool { ok, _ := n.Ready(); return ok })
	if e := n.stats().Epoch; e != 1 {
		t.Errorf("epoch %d after a restart of the server", e)
	}
	crash(n) // The server is stopped before the node here, so that nobody is left to say goodbye to.
}

func TestALostJournalKeepsWhatWasBlockedAndIsHealedOnceItExistsAgain(t *testing.T) {
	nats, eng := newOutsideNATS(t), newFakeEngine()
	a := nats.startLeased("a", eng)
	nats.publish(revoke.VerbRevoke, "alice", PublishOptions{ID: "HR-1"})
	nats.publish(revoke.VerbSuspend, "bob", PublishOptions{Until: time.Now().Add(time.Hour)})
	waitFor(t, "both applied", func() bool { return denied(a.Table(), "alice") && denied(a.Table(), "bob") })
	js := nats.jetStream()
	for _, stream := range []string{journalStream, receiptStream} {
		if err := js.DeleteStream(testContext(t), stream); err != nil {
			t.Fatal(err)
		}
	}
	eng.waitLease(t, "freeze")
	waitFor(t, "the command to run", func() bool { _, why := a.Ready(); return strings.Contains(why, "pgedge cluster init") })
	if !denied(a.Table(), "alice") {
		t.Fatal("alice is let in when the journal is gone")
	}

	initStreams(t, DialOptions{URL: nats.url(), Timeout: patience}, 1)
	eng.waitLease(t, "freeze", "thaw")
	if !denied(a.Table(), "alice") || !denied(a.Table(), "bob") || a.stats().Epoch != 2 {
		t.Fatalf("another journal has let somebody in; epoch %d", a.stats().Epoch)
	}
	// A node that starts now knows as well.
	waitFor(t, "both blocks are stored", func() bool { return a.stats().Rescued >= 2 && a.Table().Blocks(time.Now())[0].Seq > 0 })
	b := nats.startLeased("b", newFakeEngine())
	waitFor(t, "b denies both", func() bool { return denied(b.Table(), "alice") && denied(b.Table(), "bob") })
	for _, block := range b.Table().Blocks(time.Now()) {
		if want := map[string]revoke.Verb{"alice": revoke.VerbRevoke, "bob": revoke.VerbSuspend}[block.Scope.Name]; block.Fact.Verb != want {
			t.Errorf("%s is blocked by %s", block.Scope.Name, block.Fact.Verb)
		}
	}
	nats.publish(revoke.VerbReinstate, "alice", PublishOptions{Upto: b.Table().Newest(scopeOf("alice"))})
	waitFor(t, "alice is back", func() bool { return !denied(a.Table(), "alice") && !denied(b.Table(), "alice") })
	if !denied(a.Table(), "bob") {
		t.Error("bob came back with her")
	}
}

// Another node may be fresh by the new journal, which does not hold the fact.
func TestNobodyIsFencedByAJournalThatIsGone(t *testing.T) {
	nats, eng := newOutsideNATS(t), newFakeEngine()
	a := nats.startLeased("a", eng)
	answering(eng, a, 1, 0)
	announceSilent(t, a, "b", nil)
	c := dial(t, DialOptions{URL: nats.url()})
	pub, err := c.Publish(testContext(t), revoke.VerbRevoke, scopeOf("alice"), PublishOptions{})
	if err != nil {
		t.Fatal(err)
	}
	js := nats.jetStream()
	for _, stream := range []string{journalStream, receiptStream} {
		if err := js.DeleteStream(testContext(t), stream); err != nil {
			t.Fatal(err)
		}
	}
	initStreams(t, DialOptions{URL: nats.url(), Timeout: patience}, 1)
	ctx, cancel := context.WithTimeout(testContext(t), 3*time.Second) // b's lease is two
	defer cancel()
	verdict, _, err := c.Await(ctx, pub, nil)
	if err != nil || verdict.Verdict != revoke.Incomplete {
		t.Errorf("the verdict is %+v, error %v", verdict, err)
	}
	// Its author has seen nothing of what the new one holds.
	if _, err := c.Publish(testContext(t), revoke.VerbReinstate, scopeOf("alice"), PublishOptions{Upto: pub.Seq}); !errors.Is(err, ErrJournalReplaced) {
		t.Errorf("error %v", err)
	}
}

func TestAJournalRestoredFromAnOldCopyIsAnotherOne(t *testing.T) {
	nats, eng := newOutsideNATS(t), newFakeEngine()
	a := nats.startLeased("a", eng)
	nats.publish(revoke.VerbRevoke, "alice", PublishOptions{})
	waitFor(t, "alice is denied", func() bool { return denied(a.Table(), "alice") })
	nats.stop()
	backup := filepath.Join(t.TempDir(), "backup")
	if err := os.CopyFS(backup, os.DirFS(nats.dir)); err != nil {
		t.Fatal(err)
	}
	nats.start()
	nats.publish(revoke.VerbRevoke, "bob", PublishOptions{})
	waitFor(t, "bob is denied", func() bool { return denied(a.Table(), "bob") })
	identity := a.stream()
	nats.stop()
	if err := os.RemoveAll(nats.dir); err != nil {
		t.Fatal(err)
	}
	if err := os.CopyFS(nats.dir, os.DirFS(backup)); err != nil {
		t.Fatal(err)
	}
	nats.start()
	waitFor(t, "a second epoch", func() bool { return a.stats().Epoch == 2 })
	if a.stream() != identity {
		t.Errorf("the copy has another identity: this test shows nothing; was %s, is %s", identity, a.stream())
	}
	if !denied(a.Table(), "bob") || !denied(a.Table(), "alice") {
		t.Fatal("an old copy of the journal has let somebody in")
	}
	b := nats.startLeased("b", newFakeEngine())
	waitFor(t, "b denies bob, whom the copy did not know", func() bool { return denied(b.Table(), "bob") && denied(b.Table(), "alice") })
	waitFor(t, "a serves again", func() bool { ok, _ := a.Ready(); return ok })
	crash(a) // The server is stopped before the node here, so that nobody is left to say goodbye to.
}

func TestANodeThatIsContradictedReloadsAndThenRefusesToServe(t *testing.T) {
	nats, eng := newOutsideNATS(t), newFakeEngine()
	a := nats.startLeased("a", eng)
	const boot = "01M8AEDW9J2CF458A1682E0HTT"
	number := uint64(0)
	// say publishes what another node would: the hash that it has at the seq that a is at.
	say := func(alter string) {
		t.Helper()
		number++
		a.mu.Lock()
		p := revoke.Presence{V: 1, Node: "other", Boot: boot, N: number, LeaseMS: 1000, OnStale: "freeze", State: revoke.StateServing,
			Applied: a.proto.Table().Applied(), TableHash: a.proto.Table().Hash() + alter, Stream: a.proto.Stream()}
		a.mu.Unlock()
		if err := a.publishPresence(testContext(t), p); err != nil {
			t.Fatal(err)
		}
	}
	say("")
	resets := a.stats().Resets
	waitFor(t, "a serves nobody", func() bool {
		say("x")
		ok, why := a.Ready()
		return !ok && strings.Contains(why, "not that of node other")
	})
	eng.waitLease(t, "freeze")
	if a.stats().Resets == resets {
		t.Error("it has not read the journal again")
	}
	waitFor(t, "a serves again", func() bool {
		say("")
		ok, _ := a.Ready()
		return ok
	})
	eng.waitLease(t, "freeze", "thaw")
}
