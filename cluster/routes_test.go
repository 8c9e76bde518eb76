package cluster

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"pgedge/revoke"
)

const routeSecret = "a-secret-of-some-length"

// fleetConfigs are nodes whose embedded servers form a cluster of their own.
func fleetConfigs(t testing.TB, n int) []Config {
	t.Helper()
	var peers []string
	for _, p := range freePorts(t, n) {
		peers = append(peers, fmt.Sprintf("127.0.0.1:%d", p))
	}
	var list []Config
	for i, p := range peers {
		cfg := testConfig(t, fmt.Sprintf("edge-%c", 'a'+i))
		cfg.Replicas = n
		cfg.Routes = Routes{Listen: p, Peers: peers, Secret: routeSecret}
		list = append(list, cfg)
	}
	return list
}

type starting struct {
	waiting chan string
	done    chan *Node
}

// begin starts a node without waiting for it.
func begin(t testing.TB, cfg Config, eng Engine) starting {
	t.Helper()
	s := starting{make(chan string, 100), make(chan *Node, 1)}
	cfg.OnWaiting = func(why string) { s.waiting <- why }
	ctx := testContext(t)
	go func() {
		n, err := Start(ctx, cfg, eng)
		if err != nil {
			t.Errorf("cannot start %s: %v", cfg.Node, err)
		}
		s.done <- n
	}()
	return s
}

func (s starting) waitsFor(t testing.TB, what string) {
	t.Helper()
	for why := range s.waiting {
		if strings.Contains(why, what) {
			return
		}
	}
}

func TestThreeNodesWithoutAnyOtherServerAreAFleet(t *testing.T) {
	configs := fleetConfigs(t, 3)
	engines := []*fakeEngine{newFakeEngine(), newFakeEngine(), newFakeEngine()}
	var starts []starting
	for i, cfg := range configs {
		starts = append(starts, begin(t, cfg, engines[i]))
	}
	for i, s := range starts {
		s.waitsFor(t, "pgedge cluster init --state-dir "+configs[i].StateDir+" --replicas 3")
	}
	// Any of them will do, while none of them is ready.
	opts := DialOptions{StateDir: configs[1].StateDir}
	if reports := initStreams(t, opts, 3); reports[0].Replicas != 3 || reports[0].Cluster != routeCluster || reports[0].Result != StreamCreated {
		t.Errorf("got %+v", reports[0])
	}
	var nodes []*Node
	for i, s := range starts {
		n := <-s.done
		if n == nil {
			t.FailNow()
		}
		<-n.ReadyC()
		answering(engines[i], n, 1, 0)
		nodes = append(nodes, n)
	}
	c := dial(t, DialOptions{StateDir: configs[0].StateDir})
	pub, err := c.Publish(testContext(t), revoke.VerbRevoke, scopeOf("alice"), PublishOptions{})
	if err != nil {
		t.Fatal(err)
	}
	verdict, _, err := c.Await(testContext(t), pub, nil)
	if err != nil || verdict.Verdict != revoke.Complete || len(verdict.Nodes) != 3 {
		t.Errorf("the verdict is %+v, %v", verdict, err)
	}

	// One node is lost; the other two go on, and a third that comes back knows what it missed.
	c.Close()
	crash(nodes[0])
	c = dial(t, DialOptions{StateDir: configs[1].StateDir})
	deadline := testContext(t)
	if _, err := c.Publish(deadline, revoke.VerbRevoke, scopeOf("bob"), PublishOptions{}); err != nil {
		t.Fatal(err)
	}
	again := startNode(t, configs[0], newFakeEngine())
	if !denied(again.Table(), "bob") || !denied(again.Table(), "alice") {
		t.Error("the node that came back serves somebody who is revoked")
	}
	c.Close()
	for _, n := range append(nodes[1:], again) {
		crash(n)
	}
}

func TestAServerWithoutTheSecretDoesNotJoin(t *testing.T) {
	configs := fleetConfigs(t, 2)
	configs[0].Replicas, configs[1].Replicas = 1, 1
	stranger := configs[1]
	stranger.Routes.Secret = "another-secret-of-some-length"
	a, err := startEmbeddedWithToken(configs[0].withDefaults(), t.TempDir(), newToken())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(a.stop)
	b, err := startEmbeddedWithToken(stranger.withDefaults(), t.TempDir(), newToken())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(b.stop)
	good, err := startEmbeddedWithToken(func() Config {
		cfg := configs[1].withDefaults()
		cfg.Node = "good"
		cfg.Routes.Listen = fmt.Sprintf("127.0.0.1:%d", freePorts(t, 1)[0])
		return cfg
	}(), t.TempDir(), newToken())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(good.stop)
	until(t, "the server with the secret joins", func() bool { return good.srv.NumRoutes() > 0 && a.srv.NumRoutes() > 0 })
	if n := b.srv.NumRoutes(); n != 0 {
		t.Errorf("the stranger has %d routes", n)
	}
}

func TestRoutesWithoutProtectionAreRefused(t *testing.T) {
	for name, tc := range map[string]struct {
		routes Routes
		want   string
	}{
		"an open listener":   {Routes{Listen: "0.0.0.0:6222", Peers: []string{"127.0.0.1:6223"}}, "secret_file: is missing"},
		"a peer elsewhere":   {Routes{Listen: "127.0.0.1:6222", Peers: []string{"b:6222"}}, "secret_file: is missing"},
		"a short secret":     {Routes{Listen: "127.0.0.1:6222", Peers: []string{"b:6222"}, Secret: "short"}, "shorter than 16 bytes"},
		"nobody to talk to":  {Routes{Listen: "127.0.0.1:6222"}, "peers: is empty"},
		"nowhere to be met":  {Routes{Peers: []string{"127.0.0.1:6222"}}, "listen: is missing"},
		"a certificate only": {Routes{Listen: "127.0.0.1:6222", Peers: []string{"127.0.0.1:6223"}, CertFile: "x"}, "come together"},
	} {
		t.Run(name, func(t *testing.T) {
			cfg := testConfig(t, "a")
			cfg.Routes = tc.routes
			if err := cfg.Validate(); err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("got %v", err)
			}
		})
	}
}

// A server that joins a cluster takes the streams of a server alone for orphans, and deletes them.
func TestAJournalIsNotLeftBehindWhenRoutesComeOrGo(t *testing.T) {
	alone := testConfig(t, "a")
	n := startNode(t, alone, newFakeEngine())
	closeNode(t, n)
	fleet := fleetConfigs(t, 2)[0]
	fleet.StateDir = alone.StateDir
	if _, err := Start(testContext(t), fleet, newFakeEngine()); err == nil || !strings.Contains(err.Error(), "holds the journal of a node without cluster.routes") {
		t.Errorf("routes came: %v", err)
	}
	again := startNode(t, alone, newFakeEngine())
	closeNode(t, again)

	other := testConfig(t, "b")
	if err := os.MkdirAll(filepath.Join(other.StateDir, fleetDir, journalDir, "$G", "streams", journalStream), 0o700); err != nil {
		t.Fatal(err)
	}
	if _, err := Start(testContext(t), other, newFakeEngine()); err == nil || !strings.Contains(err.Error(), "holds the journal of a node with cluster.routes") {
		t.Errorf("routes went: %v", err)
	}
}
