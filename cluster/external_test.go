package cluster

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"pgedge/internal/pgserver"
	"pgedge/revoke"
)

// natsServer runs a NATS server that is nobody's but the test's, configured as its operator would: by a file.
func natsServer(t testing.TB, text string) *server.Server {
	t.Helper()
	path := filepath.Join(t.TempDir(), "nats.conf")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	opts, err := server.ProcessConfigFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return runServer(t, opts)
}

func runServer(t testing.TB, opts *server.Options) *server.Server {
	t.Helper()
	opts.NoSigs, opts.NoLog = true, true
	srv, err := server.NewServer(opts)
	if err != nil {
		t.Fatal(err)
	}
	srv.Start()
	t.Cleanup(func() { srv.Shutdown(); srv.WaitForShutdown() })
	if !srv.ReadyForConnections(patience) {
		t.Fatal("the NATS server does not start")
	}
	return srv
}

// jetStreamConf is a server with JetStream as docs/fleet.md asks for it.
func jetStreamConf(t testing.TB) string {
	return fmt.Sprintf("listen: 127.0.0.1:-1\njetstream { store_dir: %q, sync_interval: always, max_file_store: 1TB }\n", t.TempDir())
}

// natsCluster runs several servers that form a cluster, and returns the URLs of all.
func natsCluster(t testing.TB, n int) string {
	t.Helper()
	_, confs := natsClusterServers(t, n)
	var urls []string
	for _, c := range confs {
		urls = append(urls, c.url)
	}
	return strings.Join(urls, ",")
}

// serverConf is a server that can be started again.
type serverConf struct{ text, url string }

func natsClusterServers(t testing.TB, n int) (servers []*server.Server, confs []serverConf) {
	t.Helper()
	clients := freePorts(t, n)
	ports := freePorts(t, n)
	var routes []string
	for _, p := range ports {
		routes = append(routes, fmt.Sprintf("nats-route://127.0.0.1:%d", p))
	}
	for i, p := range ports {
		text := strings.Replace(jetStreamConf(t), "127.0.0.1:-1", fmt.Sprintf("127.0.0.1:%d", clients[i]), 1) +
			fmt.Sprintf("server_name: n%d\ncluster { name: test, listen: 127.0.0.1:%d, routes: [%s] }\n", i+1, p, strings.Join(routes, ", "))
		s := natsServer(t, text)
		servers, confs = append(servers, s), append(confs, serverConf{text, s.ClientURL()})
	}
	return servers, confs
}

func freePorts(t testing.TB, n int) []int {
	t.Helper()
	ports, err := pgserver.FreePorts("127.0.0.1", n)
	if err != nil {
		t.Fatal(err)
	}
	return ports
}

// initStreams creates the streams as soon as the servers have found each other.
func initStreams(t testing.TB, opts DialOptions, replicas int) []StreamReport {
	t.Helper()
	ctx := testContext(t)
	for {
		reports, err := InitStreams(ctx, opts, replicas)
		if err == nil {
			return reports
		}
		if ctx.Err() != nil {
			t.Fatalf("cannot create the streams: %v", err)
		}
	}
}

func outsideConfig(t testing.TB, node, urls string, replicas int) Config {
	cfg := testConfig(t, node)
	cfg.NATS, cfg.Replicas = urls, replicas
	return cfg
}

func TestANodeRefusesANATSWithoutStreamsAndSaysWhatToRun(t *testing.T) {
	s := natsServer(t, jetStreamConf(t))
	url := strings.Replace(s.ClientURL(), "nats://", "nats://somebody:secret@", 1)
	_, err := Start(testContext(t), outsideConfig(t, "a", url, 1), newFakeEngine())
	var wrong *StreamsError
	if !errors.As(err, &wrong) || !wrong.Missing {
		t.Fatalf("got %v", err)
	}
	if want := "pgedge cluster init --nats " + s.ClientURL() + " --replicas 1"; !strings.HasSuffix(err.Error(), want) {
		t.Errorf("got %q, want it to end in %q", err, want)
	}
}

func TestClusterInitCreatesWhatNodesNeedAndIsDoneOnce(t *testing.T) {
	s := natsServer(t, jetStreamConf(t)+"server_name: one\n")
	opts := DialOptions{URL: s.ClientURL(), Timeout: patience}
	if _, err := InitStreams(testContext(t), opts, 3); err == nil || !strings.Contains(err.Error(), "single server") {
		t.Errorf("three copies on one server: %v", err)
	}
	first := initStreams(t, opts, 1)
	for i, name := range []string{journalStream, receiptStream} {
		if r := first[i]; r.Stream != name || r.Result != StreamCreated || r.Replicas != 1 || time.Since(r.Created) > time.Minute {
			t.Errorf("got %+v", r)
		}
	}
	second := initStreams(t, opts, 1)
	for i := range second {
		if second[i].Result != StreamExists || !second[i].Created.Equal(first[i].Created) {
			t.Errorf("the second time got %+v after %+v", second[i], first[i])
		}
	}
	eng := newFakeEngine()
	startNode(t, outsideConfig(t, "a", s.ClientURL(), 1), eng)
	c := dial(t, DialOptions{URL: s.ClientURL()})
	if _, err := c.Publish(testContext(t), revoke.VerbRevoke, scopeOf("alice"), PublishOptions{}); err != nil {
		t.Fatal(err)
	}
	eng.wait(t, "alice", settledOrder("alice"))
}

func TestStreamsThatWouldLoseRevocationsAreRefusedByInitAndByNodes(t *testing.T) {
	s := natsServer(t, jetStreamConf(t))
	opts := DialOptions{URL: s.ClientURL(), Timeout: patience}
	initStreams(t, opts, 1)
	js, err := jetstream.New(rawConn(t, s.ClientURL()))
	if err != nil {
		t.Fatal(err)
	}
	wrong := journalConfig(1)
	wrong.MaxAge = time.Hour
	if _, err := js.UpdateStream(testContext(t), wrong); err != nil {
		t.Fatal(err)
	}
	const want = "stream PGEDGE is not set up as pgedge needs it: max_age is 1h0m0s, must be unlimited; set it back with nats stream edit PGEDGE"
	if _, err := InitStreams(testContext(t), opts, 1); err == nil || err.Error() != want {
		t.Errorf("init: %v", err)
	}
	if _, err := Start(testContext(t), outsideConfig(t, "a", s.ClientURL(), 1), newFakeEngine()); err == nil || err.Error() != want {
		t.Errorf("start: %v", err)
	}
}

func TestANodeServesNobodyWhileTheStreamsSettingsAreWrong(t *testing.T) {
	s := natsServer(t, jetStreamConf(t))
	initStreams(t, DialOptions{URL: s.ClientURL(), Timeout: patience}, 1)
	n := startNode(t, outsideConfig(t, "a", s.ClientURL(), 1), newFakeEngine())
	js, err := jetstream.New(rawConn(t, s.ClientURL()))
	if err != nil {
		t.Fatal(err)
	}
	wrong := journalConfig(1)
	wrong.MaxMsgs = 10
	for _, tc := range []struct {
		config jetstream.StreamConfig
		ready  bool
	}{{wrong, false}, {journalConfig(1), true}} {
		if _, err := js.UpdateStream(testContext(t), tc.config); err != nil {
			t.Fatal(err)
		}
		n.checkSettings()
		if ready, why := n.Ready(); ready != tc.ready || !ready && !strings.Contains(why, "max_msgs is 10") {
			t.Errorf("ready %v: %s", ready, why)
		}
	}
}

func TestWithoutJetStreamInitSaysSo(t *testing.T) {
	s := natsServer(t, "listen: 127.0.0.1:-1\n")
	_, err := InitStreams(testContext(t), DialOptions{URL: s.ClientURL()}, 1)
	if err == nil || !strings.Contains(err.Error(), "JetStream is off on this NATS server") {
		t.Errorf("got %v", err)
	}
	_, err = Dial(testContext(t), DialOptions{URL: s.ClientURL()})
	if err == nil || !strings.Contains(err.Error(), "JetStream is off on this NATS server") {
		t.Errorf("got %v", err)
	}
}

func TestANodeThatIsStartedBeforeItsNATSWaitsAndSaysWhy(t *testing.T) {
	conf := strings.Replace(jetStreamConf(t), "127.0.0.1:-1", fmt.Sprintf("127.0.0.1:%d", freePorts(t, 1)[0]), 1)
	s := natsServer(t, conf)
	initStreams(t, DialOptions{URL: s.ClientURL()}, 1)
	s.Shutdown()
	s.WaitForShutdown()

	cfg := outsideConfig(t, "a", s.ClientURL(), 1)
	waiting := make(chan string, 10)
	cfg.OnWaiting = func(why string) { waiting <- why }
	started := make(chan error, 1)
	ctx := testContext(t)
	go func() {
		n, err := Start(ctx, cfg, newFakeEngine())
		if err == nil {
			<-n.ReadyC()
			crash(n)
		}
		started <- err
	}()
	if why := <-waiting; !strings.Contains(why, "cannot connect to NATS at 127.0.0.1") {
		t.Errorf("waits for %q", why)
	}
	natsServer(t, conf)
	if err := <-started; err != nil {
		t.Error(err)
	}
}

func TestAJournalOfThreeServersCarriesAFleet(t *testing.T) {
	urls := natsCluster(t, 3)
	reports := initStreams(t, DialOptions{URL: urls}, 3)
	if reports[0].Replicas != 3 || reports[0].Cluster != "test" {
		t.Errorf("got %+v", reports[0])
	}
	a, b := newFakeEngine(), newFakeEngine()
	startNode(t, outsideConfig(t, "a", urls, 3), a)
	startNode(t, outsideConfig(t, "b", urls, 2), b)
	c := dial(t, DialOptions{URL: urls})
	pub, err := c.Publish(testContext(t), revoke.VerbRevoke, scopeOf("alice"), PublishOptions{})
	if err != nil {
		t.Fatal(err)
	}
	a.wait(t, "alice on a", settledOrder("alice"))
	b.wait(t, "alice on b", settledOrder("alice"))
	if _, err := c.Publish(testContext(t), revoke.VerbReinstate, scopeOf("alice"), PublishOptions{Upto: pub.Seq}); err != nil {
		t.Fatal(err)
	}
	// A replicated stream has an error code of its own for a position that is not the last one.
	msg := nats.NewMsg(revoke.Subject(revoke.VerbReinstate, scopeOf("alice")))
	msg.Header.Set(jetstream.ExpectedLastSubjSeqHeader, "1")
	if _, err := c.js.PublishMsg(testContext(t), msg); !isWrongLastSequence(err) {
		t.Errorf("a stale publish to a replicated stream gets %v", err)
	}
	if _, err := Start(testContext(t), outsideConfig(t, "c", urls, 5), newFakeEngine()); err == nil || !strings.Contains(err.Error(), "nats stream edit PGEDGE --replicas 5") {
		t.Errorf("five copies asked for, three there: %v", err)
	}
}

func TestARevocationCutsAtOnceWhileTheJournalHasNoLeader(t *testing.T) {
	servers, confs := natsClusterServers(t, 3)
	initStreams(t, DialOptions{URL: confs[2].url}, 3)
	eng := newFakeEngine()
	n := startNode(t, outsideConfig(t, "a", confs[2].url, 3), eng)
	answering(eng, n, 1, 0)
	for _, s := range servers[:2] {
		s.Shutdown()
		s.WaitForShutdown()
	}
	c, err := Dial(testContext(t), DialOptions{URL: confs[2].url, PublishFirst: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	type result struct {
		pub *Publication
		err error
	}
	published := make(chan result, 1)
	ctx := testContext(t)
	go func() {
		pub, err := c.Publish(ctx, revoke.VerbRevoke, scopeOf("alice"), PublishOptions{})
		published <- result{pub, err}
	}()
	if o := eng.wait(t, "alice, before there is a leader", principalOrder("alice")); o.Fact.Seq != 0 {
		t.Errorf("the fact has a position already: %+v", o.Fact)
	}
	select {
	case r := <-published:
		t.Fatalf("stored without a majority: %+v, %v", r.pub, r.err)
	default:
	}
	natsServer(t, confs[0].text)
	r := <-published
	if r.err != nil {
		t.Fatal(r.err)
	}
	verdict, _, err := c.Await(testContext(t), r.pub, nil)
	if err != nil || verdict.Verdict != revoke.Complete || len(verdict.Nodes) != 1 {
		t.Errorf("the verdict is %+v, %v", verdict, err)
	}
	c.Close()
	crash(n) // The servers are stopped before the node here.
}
