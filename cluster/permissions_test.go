package cluster

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"pgedge/revoke"
)

// permittedServer runs a NATS server with the shipped permission sets, put into files as deploy/nats/README.md says.
func permittedServer(t testing.TB) *server.Server {
	t.Helper()
	dir := t.TempDir()
	for _, set := range []string{setNode, setOperator, setObserver, "connector", "routes"} {
		text, err := os.ReadFile(filepath.Join("../deploy/nats", set+".conf"))
		if err != nil {
			t.Fatal(err)
		}
		write(t, filepath.Join(dir, set+".conf"), string(text))
		if set == setNode {
			for _, id := range []string{"edge-a", "edge-b", "edge-c"} {
				write(t, filepath.Join(dir, "node-"+id+".conf"), strings.ReplaceAll(string(text), "NODE_ID", id))
			}
		}
	}
	example, err := os.ReadFile("../deploy/nats/nats-server.conf")
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "nats-server.conf")
	write(t, path, string(example))
	for _, name := range []string{"EDGE_A", "EDGE_B", "EDGE_C", "OPERATOR", "OBSERVER", "CONNECTOR"} {
		t.Setenv("PGEDGE_"+name+"_PASSWORD", "secret")
	}
	t.Setenv("NATS_STORE", t.TempDir())
	t.Setenv("NATS_NAME", "n1")
	t.Setenv("NATS_ROUTE_PASSWORD", "secret")
	opts, err := server.ProcessConfigFile(path)
	if err != nil {
		t.Fatal(err)
	}
	// The example is one server of three, at a fixed address; this test has one.
	opts.Host, opts.Port, opts.Cluster, opts.Routes = "127.0.0.1", -1, server.ClusterOpts{}, nil
	return runServer(t, opts)
}

func write(t testing.TB, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

func urlAs(s *server.Server, user string) string {
	return strings.Replace(s.ClientURL(), "nats://", "nats://"+user+":secret@", 1)
}

// userConn is a connection of one user of permittedServer; refused returns what the server has refused it so far.
type userConn struct {
	*nats.Conn
	refused chan string
}

func connectAs(t testing.TB, s *server.Server, user, inbox string) *userConn {
	t.Helper()
	c := &userConn{refused: make(chan string, 100)}
	nc, err := nats.Connect(urlAs(s, user), nats.Timeout(patience), nats.CustomInboxPrefix(inbox),
		nats.ErrorHandler(func(_ *nats.Conn, _ *nats.Subscription, err error) { c.refused <- err.Error() }))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(nc.Close)
	c.Conn = nc
	return c
}

// forbidden fails the test unless the server refuses the publish.
func (c *userConn) forbidden(t testing.TB, subject string) {
	t.Helper()
	if err := c.PublishRequest(subject, c.NewInbox(), []byte("{}")); err != nil {
		t.Fatal(err)
	}
	if err := c.FlushTimeout(patience); err != nil {
		t.Fatal(err)
	}
	for {
		select {
		case text := <-c.refused:
			if strings.Contains(text, fmt.Sprintf("%q", subject)) {
				return
			}
		case <-time.After(2 * time.Second):
			t.Errorf("may publish on %s", subject)
			return
		}
	}
}

// permitted fails the test if the server refuses the publish.
func (c *userConn) permitted(t testing.TB, subject string) {
	t.Helper()
	if err := c.PublishRequest(subject, c.NewInbox(), nil); err != nil {
		t.Fatal(err)
	}
	if err := c.FlushTimeout(patience); err != nil {
		t.Fatal(err)
	}
	if err := c.LastError(); err != nil {
		t.Errorf("%s: %v", subject, err)
	}
}

func (c *userConn) deaf(t testing.TB, subject string) {
	t.Helper()
	sub, err := c.SubscribeSync(subject)
	if err != nil {
		t.Fatal(err)
	}
	if err := c.FlushTimeout(patience); err != nil {
		t.Fatal(err)
	}
	if err := c.LastError(); !errors.Is(err, nats.ErrPermissionViolation) || !strings.Contains(err.Error(), subject) {
		t.Errorf("may subscribe to %s", subject)
	}
	sub.Unsubscribe()
}

var mayNotChangeStreams = []string{
	"$JS.API.STREAM.UPDATE.PGEDGE", "$JS.API.STREAM.PURGE.PGEDGE", "$JS.API.STREAM.DELETE.PGEDGE",
	"$JS.API.STREAM.MSG.DELETE.PGEDGE", "$JS.API.STREAM.SNAPSHOT.PGEDGE", "$JS.API.STREAM.RESTORE.PGEDGE",
	"$JS.API.STREAM.UPDATE.PGEDGE_RECEIPTS", "$JS.API.STREAM.PURGE.PGEDGE_RECEIPTS", "$JS.API.STREAM.DELETE.PGEDGE_RECEIPTS",
	"$JS.API.CONSUMER.DELETE.PGEDGE.x", "$JS.API.STREAM.CREATE.OTHER", "$JS.API.DIRECT.GET.PGEDGE",
}

func TestEachPermissionSetAllowsNoMoreThanItsWork(t *testing.T) {
	s := permittedServer(t)
	initStreams(t, DialOptions{URL: urlAs(s, "operator")}, 1)
	noCreate := append([]string{"$JS.API.STREAM.CREATE.PGEDGE", "$JS.API.STREAM.CREATE.PGEDGE_RECEIPTS"}, mayNotChangeStreams...)
	for _, tc := range []struct {
		user, inbox        string
		forbidden, allowed []string
		deaf               []string
	}{
		{"connector", "_INBOX_pgedge_connector",
			append([]string{"pgedge.revoke.role.app", "pgedge.revoke.database.app", "pgedge.revoke.session.x", "pgedge.revoke.all", "pgedge.kill.principal.alice",
				"pgedge.suspend.principal.alice", "pgedge.reinstate.principal.alice", "pgedge.node.edge-a.x", "pgedge.receipt.x.edge-a.y", "pgedge.cancel.edge-a",
				"pgedge.query.sessions", "pgedge.rejected", "$JS.API.INFO", "$JS.API.STREAM.INFO.PGEDGE", "$JS.API.CONSUMER.CREATE.PGEDGE.x", "$SRV.PING"}, noCreate...),
			[]string{"pgedge.revoke.principal.alice", "pgedge.revoke.principal.alice@corp.com"},
			[]string{"pgedge.>", "pgedge.revoke.>", "_INBOX.>", "_INBOX_pgedge_operator.>", "$SRV.>", ">"}},
		{"edge-a", inboxOfNode("edge-a"),
			append([]string{"pgedge.reinstate.principal.alice", "pgedge.node.edge-b.x", "pgedge.receipt.x.edge-b.y", "pgedge.receipt.x.edge-b.y.1",
				"pgedge.query.sessions", "$JS.API.CONSUMER.CREATE.PGEDGE_RECEIPTS.x", "$SRV.PING"}, noCreate...),
			[]string{"pgedge.revoke.principal.x1", "pgedge.kill.role.x2", "pgedge.suspend.all", "pgedge.node.edge-a.x", "pgedge.receipt.x.edge-a.y", "pgedge.receipt.x.edge-a.y.1",
				"pgedge.cancel.edge-b", "pgedge.rejected", "$JS.API.STREAM.INFO.PGEDGE"},
			[]string{"pgedge.cancel.edge-b", "pgedge.cancel.*", "pgedge.>", "pgedge.receipt.>", inboxOfNode("edge-b") + ".>", "_INBOX_pgedge_operator.>", "_INBOX.>", ">"}},
		{"observer", "_INBOX_pgedge_observer",
			append([]string{"pgedge.revoke.principal.alice", "pgedge.kill.principal.alice", "pgedge.suspend.principal.alice", "pgedge.reinstate.principal.alice",
				"pgedge.node.edge-a.x", "pgedge.receipt.x.edge-a.y", "pgedge.cancel.edge-a", "pgedge.query.drain", "pgedge.query.forget", "pgedge.query.drill"}, noCreate...),
			[]string{"pgedge.query.sessions", "pgedge.query.nodes", "$SRV.PING", "$JS.API.STREAM.INFO.PGEDGE_RECEIPTS"},
			[]string{"pgedge.>", "pgedge.revoke.>", "_INBOX_pgedge_operator.>", inboxOfNode("edge-a") + ".>", "_INBOX.>", ">"}},
		{"operator", "_INBOX_pgedge_operator",
			append([]string{"pgedge.receipt.x.edge-a.y", "pgedge.cancel.edge-a"}, mayNotChangeStreams...),
			[]string{"pgedge.revoke.all", "pgedge.kill.database.app", "pgedge.suspend.role.app", "pgedge.reinstate.principal.alice", "pgedge.query.drain", "pgedge.query.sessions",
				"$JS.API.STREAM.CREATE.PGEDGE"},
			[]string{"pgedge.>", "_INBOX_pgedge_observer.>", inboxOfNode("edge-a") + ".>", "_INBOX.>", ">"}},
	} {
		t.Run(tc.user, func(t *testing.T) {
			c := connectAs(t, s, tc.user, tc.inbox)
			for _, subject := range tc.allowed {
				c.permitted(t, subject)
			}
			for _, subject := range tc.forbidden {
				c.forbidden(t, subject)
			}
			for _, subject := range tc.deaf {
				c.deaf(t, subject)
			}
		})
	}
}

func TestAFleetRunsWithTheShippedPermissions(t *testing.T) {
	s := permittedServer(t)
	if _, err := InitStreams(testContext(t), DialOptions{URL: urlAs(s, "edge-a"), InboxPrefix: inboxOfNode("edge-a")}, 1); err == nil || !strings.Contains(err.Error(), `publish on "$JS.API.STREAM.CREATE.PGEDGE": give it the permission set operator`) {
		t.Errorf("a node's user creates streams: %v", err)
	}
	initStreams(t, DialOptions{URL: urlAs(s, "operator")}, 1)
	engines := map[string]*fakeEngine{}
	nodes := map[string]*Node{}
	for _, id := range []string{"edge-a", "edge-b"} {
		eng := newFakeEngine()
		cfg := outsideConfig(t, id, urlAs(s, id), 1)
		n := startNode(t, cfg, eng)
		answering(eng, n, 1, 0)
		engines[id], nodes[id] = eng, n
	}

	connector := connectAs(t, s, "connector", "_INBOX_pgedge_connector")
	ack, err := connector.Request("pgedge.revoke.principal.bob", nil, patience)
	var stored struct {
		Stream string `json:"stream"`
		Seq    uint64 `json:"seq"`
	}
	if err != nil || json.Unmarshal(ack.Data, &stored) != nil || stored.Stream != journalStream || stored.Seq == 0 {
		t.Errorf("a connector's revoke is answered with %v, %v", ack, err)
	}
	for _, eng := range engines {
		eng.wait(t, "bob", settledOrder("bob"))
	}

	op := dial(t, DialOptions{URL: urlAs(s, "operator")})
	pub, err := op.Publish(testContext(t), revoke.VerbRevoke, scopeOf("alice"), PublishOptions{})
	if err != nil {
		t.Fatal(err)
	}
	verdict, receipts, err := op.Await(testContext(t), pub, nil)
	if err != nil || verdict.Verdict != revoke.Complete || len(receipts) != 2 {
		t.Errorf("verdict %+v, %d receipts, %v", verdict, len(receipts), err)
	}
	if _, err := op.Publish(testContext(t), revoke.VerbReinstate, scopeOf("alice"), PublishOptions{Upto: pub.Seq}); err != nil {
		t.Error(err)
	}
	for _, user := range []string{"operator", "observer"} {
		c := dial(t, DialOptions{URL: urlAs(s, user), QueryTimeout: patience})
		if list, err := c.Nodes(testContext(t)); err != nil || len(list) != 2 || list[0].Report == nil || list[1].Report == nil {
			t.Errorf("%s: nodes %+v, %v", user, list, err)
		}
		if _, missing, err := c.Sessions(testContext(t), SessionFilter{}); err != nil || len(missing) > 0 {
			t.Errorf("%s: sessions missing %v, %v", user, missing, err)
		}
		if got, err := c.Receipts(testContext(t), pub.ID); err != nil || len(got) != 2 {
			t.Errorf("%s: %d receipts, %v", user, len(got), err)
		}
	}
	for id, n := range nodes {
		if err := n.nc.LastError(); err != nil {
			t.Errorf("%s was refused something: %v", id, err)
		}
		closeNode(t, n)
	}
}

func TestAMissingRightIsNamedInPlaceOfATimeout(t *testing.T) {
	s := permittedServer(t)
	initStreams(t, DialOptions{URL: urlAs(s, "operator")}, 1)
	startNode(t, outsideConfig(t, "edge-a", urlAs(s, "edge-a"), 1), newFakeEngine())

	var missing *MissingRightError
	observer := dial(t, DialOptions{URL: urlAs(s, "observer")})
	_, err := observer.Publish(testContext(t), revoke.VerbRevoke, scopeOf("alice"), PublishOptions{})
	if !errors.As(err, &missing) || missing.Subject != "pgedge.revoke.principal.alice" || !strings.Contains(err.Error(), "the permission set operator") {
		t.Errorf("an observer that revokes is told: %v", err)
	}
	_, err = Dial(testContext(t), DialOptions{URL: urlAs(s, "connector")})
	if !errors.As(err, &missing) || missing.Action != "subscribe to" {
		t.Errorf("a connector that dials is told: %v", err)
	}
	_, err = Dial(testContext(t), DialOptions{URL: urlAs(s, "connector"), InboxPrefix: "_INBOX_pgedge_connector"})
	if !errors.As(err, &missing) || missing.Subject != "$JS.API.STREAM.INFO.PGEDGE" {
		t.Errorf("a connector that dials is told: %v", err)
	}
	// A node under the credentials of another one, and with those of an operator.
	_, err = Start(testContext(t), outsideConfig(t, "edge-b", urlAs(s, "edge-a"), 1), newFakeEngine())
	if !errors.As(err, &missing) || !strings.Contains(missing.Subject, "edge-b") || !strings.Contains(err.Error(), "deploy/nats/node.conf with edge-b for NODE_ID") {
		t.Errorf("a node with another node's credentials is told: %v", err)
	}
	_, err = Start(testContext(t), outsideConfig(t, "edge-b", urlAs(s, "operator"), 1), newFakeEngine())
	if !errors.As(err, &missing) || missing.Action != "subscribe to" {
		t.Errorf("a node with an operator's credentials is told: %v", err)
	}
}

// barrier returns once a node has applied everything that was published before.
func barrier(t testing.TB, op *Client, eng *fakeEngine, name string) {
	t.Helper()
	pub, err := op.Publish(testContext(t), revoke.VerbRevoke, scopeOf(name), PublishOptions{})
	if err != nil {
		t.Fatal(err)
	}
	op.Release(pub)
	eng.wait(t, name, settledOrder(name))
}

// subjects lists what a stream holds, without the heartbeats.
func subjects(t testing.TB, op *Client, stream string) []string {
	t.Helper()
	s, err := op.js.Stream(testContext(t), stream)
	if err != nil {
		t.Fatal(err)
	}
	info, err := s.Info(testContext(t), jetstream.WithSubjectFilter(">"))
	if err != nil {
		t.Fatal(err)
	}
	var list []string
	for subject := range info.State.Subjects {
		if !strings.HasPrefix(subject, nodePrefix) {
			list = append(list, subject)
		}
	}
	slices.Sort(list)
	return list
}

// A reader chooses where the server delivers to. That must not let it say what it may not say itself.
func TestAConsumerCannotBeUsedToSpeakForItsMaker(t *testing.T) {
	s := permittedServer(t)
	initStreams(t, DialOptions{URL: urlAs(s, "operator")}, 1)
	eng := newFakeEngine()
	n := startNode(t, outsideConfig(t, "edge-a", urlAs(s, "edge-a"), 1), eng)
	answering(eng, n, 0, 0)
	op := dial(t, DialOptions{URL: urlAs(s, "operator")})
	pub, err := op.Publish(testContext(t), revoke.VerbRevoke, scopeOf("alice"), PublishOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := op.Await(testContext(t), pub, nil); err != nil {
		t.Fatal(err)
	}
	receipts := subjects(t, op, receiptStream)
	observer := connectAs(t, s, "observer", inboxObserver)
	for stream, deliver := range map[string]string{receiptStream: "pgedge.revoke.principal.carol", journalStream: "pgedge.receipt.forged.edge-b.boot"} {
		req := fmt.Sprintf(`{"stream_name":%q,"config":{"name":"x","deliver_subject":%q,"deliver_policy":"all","ack_policy":"none"}}`, stream, deliver)
		if _, err := observer.Request("$JS.API.CONSUMER.CREATE."+stream+".x", []byte(req), patience); err != nil {
			t.Fatal(err)
		}
	}
	barrier(t, op, eng, "bob")
	if got := subjects(t, op, journalStream); len(got) != 2 {
		t.Errorf("the journal holds %v", got)
	}
	for _, subject := range subjects(t, op, receiptStream) {
		if strings.Contains(subject, "forged") || strings.HasPrefix(subject, "pgedge.revoke") {
			t.Errorf("the receipts hold %s, beside %v", subject, receipts)
		}
	}
	if denied(n.Table(), "carol") {
		t.Error("carol was revoked by an observer")
	}
}

// Whoever sends a request chooses the subject of its answer, which is the server's and passes every permission.
func TestAConnectorCannotHaveAnAnswerPublishedAsAWiderRevocation(t *testing.T) {
	s := permittedServer(t)
	initStreams(t, DialOptions{URL: urlAs(s, "operator")}, 1)
	eng := newFakeEngine()
	startNode(t, outsideConfig(t, "edge-a", urlAs(s, "edge-a"), 1), eng)
	op := dial(t, DialOptions{URL: urlAs(s, "operator")})
	connector := connectAs(t, s, "connector", "_INBOX_pgedge_connector")
	if err := connector.PublishRequest("pgedge.revoke.principal.alice", "pgedge.kill.all", nil); err != nil {
		t.Fatal(err)
	}
	eng.wait(t, "alice", settledOrder("alice"))
	barrier(t, op, eng, "bob")
	want := []string{"pgedge.revoke.principal.alice", "pgedge.revoke.principal.bob"}
	if got := subjects(t, op, journalStream); !slices.Equal(got, want) {
		t.Errorf("the journal holds %v", got)
	}
}

// The answer to a request lies where another node's last heartbeat was, which cannot say that it is there any more.
func TestANodeCannotHideAnotherOneFromAVerdict(t *testing.T) {
	s := permittedServer(t)
	initStreams(t, DialOptions{URL: urlAs(s, "operator")}, 1)
	eng := newFakeEngine()
	a := startNode(t, outsideConfig(t, "edge-a", urlAs(s, "edge-a"), 1), eng)
	answering(eng, a, 0, 0)
	silent := revoke.NodeSubject("edge-c", "B1")
	heartbeat := fmt.Sprintf(`{"node":"edge-c","boot":"B1","n":9,"lease_ms":20000,"on_stale":"freeze","stream":%q,"state":"serving"}`, a.stream())
	if _, err := connectAs(t, s, "edge-c", inboxOfNode("edge-c")).Request(silent, []byte(heartbeat), patience); err != nil {
		t.Fatal(err)
	}
	evil := connectAs(t, s, "edge-b", inboxOfNode("edge-b"))
	if err := evil.PublishRequest("$JS.API.INFO", silent, nil); err != nil {
		t.Fatal(err)
	}
	waitFor(t, "the heartbeat is overwritten", func() bool {
		stream, err := a.js.Stream(testContext(t), journalStream)
		if err != nil {
			t.Fatal(err)
		}
		m, err := stream.GetLastMsgForSubject(testContext(t), silent)
		if err != nil {
			t.Fatal(err)
		}
		return string(m.Data) != heartbeat
	})
	op := dial(t, DialOptions{URL: urlAs(s, "operator")})
	pub, err := op.Publish(testContext(t), revoke.VerbRevoke, scopeOf("alice"), PublishOptions{})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(testContext(t), time.Second)
	defer cancel()
	verdict, _, err := op.Await(ctx, pub, nil)
	if err != nil || verdict.Verdict != revoke.Incomplete || len(verdict.Nodes) != 2 || verdict.Nodes[1].Node != "edge-c" {
		t.Errorf("the verdict is %+v, error %v", verdict, err)
	}
}

func TestANodeCannotAnswerItsWayToAReinstate(t *testing.T) {
	s := permittedServer(t)
	initStreams(t, DialOptions{URL: urlAs(s, "operator")}, 1)
	node := connectAs(t, s, "edge-a", inboxOfNode("edge-a"))
	sub, err := node.SubscribeSync("pgedge.revoke.>")
	if err != nil {
		t.Fatal(err)
	}
	if err := node.PublishRequest("pgedge.revoke.principal.x", "pgedge.reinstate.principal.alice", nil); err != nil {
		t.Fatal(err)
	}
	m, err := sub.NextMsg(patience)
	if err != nil {
		t.Fatal(err)
	}
	node.forbidden(t, m.Reply)
}
