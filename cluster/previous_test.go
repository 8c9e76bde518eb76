package cluster

import (
	"bytes"
	"errors"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"pgedge/revoke"
)

func TestNodeIDInUseIsRefusedAndItsOwnerGoesOn(t *testing.T) {
	a := startNode(t, testConfig(t, "a"), newFakeEngine())
	cfg := testConfig(t, "a")
	cfg.NATS = a.URL()
	_, err := Start(testContext(t), cfg, newFakeEngine())
	if !errors.Is(err, ErrNodeIDInUse) {
		t.Fatalf("the error is %v", err)
	}
	for _, want := range []string{"node id a is in use", a.Boot(), "--node"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("the error does not say %q: %v", want, err)
		}
	}
	select {
	case <-a.FatalC():
		t.Errorf("the owner has to stop: %v", a.FatalErr())
	default:
	}
	// An id that is free again is free for anybody.
	b := startSecond(t, a, "b", newFakeEngine())
	closeNode(t, b)
	startSecond(t, a, "b", newFakeEngine())
}

func TestNodeThatWasKilledStartsAgainAtOnceAndKeepsItsSessionsInItsGoodbye(t *testing.T) {
	owner := testConfig(t, "a")
	a := startNode(t, owner, newFakeEngine())
	eng := newFakeEngine()
	eng.sessions = fakeSessions("b", 3)
	cfg := testConfig(t, "b")
	cfg.NATS = a.URL()
	old := startNode(t, cfg, eng)
	crash(old)
	startNode(t, cfg, newFakeEngine())
	c := dial(t, DialOptions{StateDir: owner.StateDir})
	_, presences, _, err := c.State(testContext(t))
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range presences {
		if p.Boot == old.Boot() && (p.State != revoke.StateLeft || !p.Crashed || p.Sessions != 3 || p.LeaseMS == 0) {
			t.Errorf("the goodbye is %+v", p)
		}
	}
}

func TestNodeThatIsKilledInTheMiddleIsNeverComplete(t *testing.T) {
	for onStale, want := range map[string]revoke.Verdict{revoke.OnStaleServe: revoke.Incomplete, revoke.OnStaleFreeze: revoke.CompleteFenced} {
		t.Run(onStale, func(t *testing.T) {
			t.Parallel()
			owner, engA := testConfig(t, "a"), newFakeEngine()
			a := startNode(t, owner, engA)
			answering(engA, a, 1, 0)
			eng := newFakeEngine() // It never answers.
			eng.sessions = fakeSessions("b", 1)
			cfg := testConfig(t, "b")
			cfg.NATS, cfg.OnStale, cfg.Lease = a.URL(), onStale, 3*time.Second
			b := startNode(t, cfg, eng)
			c := dial(t, DialOptions{StateDir: owner.StateDir})
			pub, err := c.Publish(testContext(t), revoke.VerbKill, scopeOf("alice"), PublishOptions{})
			if err != nil {
				t.Fatal(err)
			}
			crash(b)
			startNode(t, cfg, newFakeEngine())
			ctx := testContext(t)
			verdict, _, err := c.Await(ctx, pub, nil)
			if err != nil || ctx.Err() != nil || verdict.Verdict != want {
				t.Fatalf("the verdict is %+v, error %v, context %v", verdict, err, ctx.Err())
			}
			if len(verdict.Nodes) != 2 || verdict.Nodes[1].Boot != b.Boot() || verdict.Nodes[1].Why == "" {
				t.Errorf("the nodes are %+v", verdict.Nodes)
			}
		})
	}
}

func TestAGoodbyeThatCouldNotBeSaidIsOwed(t *testing.T) {
	cfg := testConfig(t, "a")
	n := startNode(t, cfg, newFakeEngine())
	ghost := bootID{"a", "ghost"}
	if err := n.publishPresence(testContext(t), revoke.Presence{V: 1, Node: "a", Boot: "ghost", State: revoke.StateServing}); err != nil {
		t.Fatal(err)
	}
	n.owed = []bootID{ghost}
	if err := n.dir.recordBoot(bootRecord{bootID{"a", n.Boot()}, n.owed, n.dir.place()}); err != nil {
		t.Fatal(err)
	}
	closeNode(t, n)
	startNode(t, cfg, newFakeEngine())
	_, presences, _, err := dial(t, DialOptions{StateDir: cfg.StateDir}).State(testContext(t))
	if err != nil {
		t.Fatal(err)
	}
	left := map[string]revoke.Presence{}
	for _, p := range presences {
		if p.State == revoke.StateLeft {
			left[p.Boot] = p
		}
	}
	if _, said := left["ghost"]; !said {
		t.Errorf("nobody said goodbye for the ghost: %+v", presences)
	}
	if p, said := left[n.Boot()]; !said || p.Crashed {
		t.Errorf("the node's own goodbye is %+v", p)
	}
}

func TestEvidenceThatIsLostStaysInTheGoodbye(t *testing.T) {
	cfg, eng := testConfig(t, "a"), newFakeEngine()
	n := startNode(t, cfg, eng)
	if err := n.js.DeleteStream(testContext(t), receiptStream); err != nil {
		t.Fatal(err)
	}
	o := revoke.Order{Fact: revoke.Fact{Verb: revoke.VerbKill, Scope: scopeOf("alice"), ID: "one", Seq: 7}}
	n.PublishReceipt(receiptFor(n, o, revoke.StageVerified, 2, 0))
	if err := n.leave(testContext(t)); err != nil {
		t.Fatal(err)
	}
	stream, err := n.js.Stream(testContext(t), journalStream)
	if err != nil {
		t.Fatal(err)
	}
	msg, err := stream.GetLastMsgForSubject(testContext(t), revoke.NodeSubject(n.cfg.Node, n.cfg.Boot))
	if err != nil {
		t.Fatal(err)
	}
	if p, err := revoke.DecodePresence(revoke.NodeSubject(n.cfg.Node, n.cfg.Boot), msg.Data); err != nil || p.State != revoke.StateLeft || p.Sessions == 0 {
		t.Errorf("the goodbye is %+v, error %v", p, err)
	}
	crash(n)
}

func TestJoinedNodeComesBackAfterTheOwnerHasRestarted(t *testing.T) {
	cfg := testConfig(t, "a")
	a := startNode(t, cfg, newFakeEngine())
	eng := newFakeEngine()
	b := startSecond(t, a, "b", eng)
	closeNode(t, a)
	again := startNode(t, cfg, newFakeEngine())
	if again.URL() != a.URL() {
		t.Fatal("the owner has another port or token after its restart")
	}
	c := dial(t, DialOptions{StateDir: cfg.StateDir})
	pub, err := c.Publish(testContext(t), revoke.VerbRevoke, scopeOf("alice"), PublishOptions{})
	if err != nil {
		t.Fatal(err)
	}
	c.Release(pub)
	eng.wait(t, "for alice, after the restart", settledOrder("alice"))
	if !denied(b.Table(), "alice") {
		t.Error("the joined node admits alice")
	}
	closeNode(t, b)
}

func TestOwnerWhosePortIsTakenKeepsItsToken(t *testing.T) {
	cfg := testConfig(t, "a")
	a := startNode(t, cfg, newFakeEngine())
	closeNode(t, a)
	port := a.srv.port
	taken, err := net.ListenTCP("tcp", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: port})
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	again := startNode(t, cfg, newFakeEngine())
	if again.srv.port == port || again.srv.token != a.srv.token {
		t.Errorf("port %d was taken, the port is %d; the token is the same: %v", port, again.srv.port, again.srv.token == a.srv.token)
	}
}

func TestAListenerFileThatCannotBeTrustedIsRefused(t *testing.T) {
	good := `{"token":"` + newToken() + `","port":1}`
	for what, tt := range map[string]struct {
		content string
		mode    os.FileMode
		want    string
	}{
		"damaged":    {"{", 0o600, "is damaged"},
		"no token":   {`{"token":"x","port":1}`, 0o600, "is damaged"},
		"impossible": {strings.Replace(good, ":1}", ":70000}", 1), 0o600, "is damaged"},
		"open":       {good, 0o644, "open to other users"},
		"fine":       {good, 0o600, ""},
	} {
		d := &stateDir{path: t.TempDir()}
		path := filepath.Join(d.path, listenerFile)
		if err := os.WriteFile(path, []byte(tt.content), tt.mode); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(path, tt.mode); err != nil {
			t.Fatal(err)
		}
		rec, err := d.listener()
		if tt.want == "" && (err != nil || rec.Port != 1) || tt.want != "" && (err == nil || !strings.Contains(err.Error(), tt.want)) {
			t.Errorf("%s: %+v, %v", what, rec, err)
		}
	}
}

func TestAStaleTokenIsCountedAndLoggedNowAndThen(t *testing.T) {
	var log bytes.Buffer
	cfg := testConfig(t, "a").withDefaults()
	n := &Node{cfg: cfg, log: slog.New(slog.NewTextHandler(&log, nil))}
	server := serverLogger{log: n.log}
	for i := range 50 {
		n.onAsyncError(nil, nats.ErrAuthorization)
		server.Errorf("127.0.0.1:%d - cid:%d - \"v1.55.0:go:pgedge node b\" - authentication error", 4000+i, i)
	}
	if lines := strings.Count(log.String(), "\n"); lines != 2 {
		t.Errorf("%d lines were logged:\n%s", lines, log.String())
	}
	if cfg.Metrics.GetOrCreateCounter(`pgedge_nats_auth_failures_total`).Get() != 50 {
		t.Error("the failures are not counted")
	}
}

func TestARepeatedTextIsSaidAgainAfterAWhile(t *testing.T) {
	var l repeatLimit
	now := time.Now()
	for i, tt := range []struct {
		text  string
		after time.Duration
		want  bool
	}{{"a", 0, true}, {"a", 1, false}, {"b", 1, true}, {"a", time.Second - 1, false}, {"a", time.Second, true}} {
		if got := l.allow(tt.text, now.Add(tt.after), time.Second); got != tt.want {
			t.Errorf("%d: %q after %s: %v", i, tt.text, tt.after, got)
		}
	}
	for i := range 3 * maxRepeats {
		l.allow(userName(i), now, time.Second)
	}
	if len(l.said) > maxRepeats {
		t.Errorf("%d texts are remembered", len(l.said))
	}
}
