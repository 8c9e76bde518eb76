package fleet

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"pgedge/internal/pgserver"
)

// outageOptions freeze soon after the servers are gone, and wait long for them.
func outageOptions() Options {
	return Options{Nodes: 2, Heartbeat: 300 * time.Millisecond, Lease: 3 * time.Second, Freeze: 5 * time.Minute}
}

func stopServers(f *Fleet) {
	for _, s := range f.NATS.Servers {
		s.Kill()
	}
}

func startServers(t *testing.T, f *Fleet) {
	t.Helper()
	for i := range f.NATS.Servers {
		if err := f.NATS.Start(within(t, time.Minute), i); err != nil {
			t.Fatal(err)
		}
	}
}

func awaitReadyz(t *testing.T, status int, nodes ...*Node) {
	t.Helper()
	for _, n := range nodes {
		if err := n.AwaitReadyz(within(t, 60*time.Second), status); err != nil {
			_, why, _ := n.Readyz(within(t, time.Second))
			t.Fatalf("%v; it says %q\n%s", err, why, tail(n.Log(), 20))
		}
	}
}

// refused checks that nobody who was revoked gets in anywhere.
func refused(t *testing.T, nodes []*Node, names ...string) {
	t.Helper()
	for _, n := range nodes {
		for _, name := range names {
			conn, err := Connect(within(t, time.Minute), n.Addr, name)
			if err == nil {
				conn.Close(within(t, time.Second))
			}
			if code := SQLState(err); code != "28000" && code != "57P03" {
				t.Errorf("a login of %s at %s: %v, want it refused", name, n.Name, err)
			}
		}
	}
}

func admitted(t *testing.T, nodes []*Node, name string) {
	t.Helper()
	for _, n := range nodes {
		conn, err := Connect(within(t, time.Minute), n.Addr, name)
		if err != nil {
			t.Errorf("a login of %s at %s: %v", name, n.Name, err)
			continue
		}
		conn.Close(within(t, time.Second))
	}
}

// TestAllServersDownAndUpAgain loses every NATS server for longer than the lease.
func TestAllServersDownAndUpAgain(t *testing.T) {
	f := start(t, outageOptions())
	names := people(t, f, 3)
	if _, r := verdict(t, f, "revoke", names[0]); r.Code != 0 {
		t.Fatal(r)
	}
	ws := NewWriters()
	t.Cleanup(ws.Stop)
	w, err := ws.Add(within(t, time.Minute), f.Nodes[0].Addr, names[1], 10*time.Millisecond)
	if err != nil {
		t.Fatal(err)
	}
	stopServers(f)
	awaitReadyz(t, 503, f.Nodes...)
	refused(t, f.Nodes, names[0], names[1])
	if r := f.CLI(within(t, time.Minute), "revoke", names[2], "--wait", "5s"); r.Code == 0 || r.Code == 3 {
		t.Errorf("a revocation without any server claims to have been carried out\n%s", r)
	}
	frozen := w.Acked.Load()

	// A node that starts now serves nobody, says why, and serves when the servers are back.
	late := f.Nodes[1]
	late.Kill()
	if err := late.Launch(); err != nil {
		t.Fatal(err)
	}
	err = poll(within(t, 30*time.Second), "the starting node to say why it does not serve", func() (bool, error) {
		code, why, err := late.Readyz(within(t, time.Second))
		return err == nil && code == 503 && why != "", nil
	})
	if err != nil {
		t.Error(err)
	}

	startServers(t, f)
	awaitReadyz(t, 200, f.Nodes...)
	awaitProgress(t, w, frozen+20)
	refused(t, f.Nodes, names[0])
	admitted(t, f.Nodes, names[1])
}

// TestServersThatComeBackEmptyReviveNobody loses the journal itself.
func TestServersThatComeBackEmptyReviveNobody(t *testing.T) {
	f := start(t, outageOptions())
	names := people(t, f, 3)
	for _, name := range names[:2] {
		if _, r := verdict(t, f, "revoke", name); r.Code != 0 {
			t.Fatal(r)
		}
	}
	if r := f.CLI(within(t, time.Minute), "reinstate", names[1]); r.Code != 0 {
		t.Fatal(r)
	}
	for _, n := range f.Nodes {
		awaitAdmitted(t, n, names[1]) // a node that has not heard of the reinstate yet rightly goes on refusing
	}
	stopServers(f)
	awaitReadyz(t, 503, f.Nodes...)
	for i := range f.NATS.Servers {
		if err := f.NATS.Wipe(i); err != nil {
			t.Fatal(err)
		}
	}
	startServers(t, f)
	// Without the streams nobody is served: a node never makes them.
	err := poll(within(t, 60*time.Second), "a node to name the command that makes the streams", func() (bool, error) {
		code, why, err := f.Nodes[0].Readyz(within(t, time.Second))
		return err == nil && code == 503 && strings.Contains(why, "cluster init"), nil
	})
	if err != nil {
		_, why, _ := f.Nodes[0].Readyz(within(t, time.Second))
		t.Errorf("%v; it says %q", err, why)
	}
	refused(t, f.Nodes, names[0])
	if err := f.createStreams(within(t, time.Minute)); err != nil {
		t.Fatal(err)
	}
	awaitReadyz(t, 200, f.Nodes...)
	refused(t, f.Nodes, names[0])
	admitted(t, f.Nodes, names[1])
	admitted(t, f.Nodes, names[2])
	// The nodes have healed the journal: one that starts later knows the block too.
	awaitStored(t, f, names[0])
	f.Nodes[0].Kill()
	if err := f.Nodes[0].Restart(within(t, time.Minute)); err != nil {
		t.Fatal(err)
	}
	refused(t, f.Nodes, names[0])
	admitted(t, f.Nodes, names[2])
	if r := f.CLI(within(t, time.Minute), "reinstate", names[0]); r.Code != 0 {
		t.Fatal(r)
	}
	awaitAdmitted(t, f.Nodes[1], names[0])
}

func awaitAdmitted(t *testing.T, n *Node, name string) {
	t.Helper()
	err := poll(within(t, 30*time.Second), name+" to be let in at "+n.Name, func() (bool, error) {
		conn, err := Connect(within(t, time.Minute), n.Addr, name)
		if err == nil {
			conn.Close(within(t, time.Second))
		}
		return err == nil, nil
	})
	if err != nil {
		t.Error(err)
	}
}

// TestAJournalRestoredFromABackupRevivesNobody sets the journal back to before a revocation.
func TestAJournalRestoredFromABackupRevivesNobody(t *testing.T) {
	f := start(t, outageOptions())
	names := people(t, f, 3)
	if _, r := verdict(t, f, "revoke", names[0]); r.Code != 0 {
		t.Fatal(r)
	}
	stopServers(f)
	for i := range f.NATS.Servers {
		if err := f.NATS.Backup(i); err != nil {
			t.Fatal(err)
		}
	}
	startServers(t, f)
	awaitReadyz(t, 200, f.Nodes...)
	ws := NewWriters()
	t.Cleanup(ws.Stop)
	w, err := ws.Add(within(t, time.Minute), f.Nodes[0].Addr, names[2], 10*time.Millisecond)
	if err != nil {
		t.Fatal(err)
	}
	if v, r := verdict(t, f, "revoke", names[1]); r.Code != 0 || v.Verdict != "complete" {
		t.Fatal(r)
	}
	stopServers(f)
	awaitReadyz(t, 503, f.Nodes...)
	for i := range f.NATS.Servers {
		if err := f.NATS.Restore(i); err != nil {
			t.Fatal(err)
		}
	}
	frozen := w.Acked.Load()
	startServers(t, f)
	awaitReadyz(t, 200, f.Nodes...)
	refused(t, f.Nodes, names[0], names[1])
	admitted(t, f.Nodes, names[2])
	awaitProgress(t, w, frozen+20)
	awaitStored(t, f, names[1])
	for _, n := range f.Nodes {
		n.Kill()
		if err := n.Restart(within(t, time.Minute)); err != nil {
			t.Fatal(err)
		}
	}
	refused(t, f.Nodes, names[0], names[1])
}

// TestANodeThatWasAwayForAThousandRevocationsKnowsThemAllBeforeItServes stops a node, revokes a thousand people, and
// starts it again.
func TestANodeThatWasAwayForAThousandRevocationsKnowsThemAllBeforeItServes(t *testing.T) {
	f := start(t, Options{Nodes: 2, NATS: 1})
	names := people(t, f, 2)
	away := f.Nodes[1]
	away.Kill()
	nc, err := f.NATS.Connect()
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	for i := range 1000 {
		name := fmt.Sprintf("gone%04d", i)
		if i == 500 {
			name = names[0]
		}
		if _, err := nc.RequestWithContext(within(t, 10*time.Second), "pgedge.revoke.principal."+name, nil); err != nil {
			t.Fatal(err)
		}
	}
	if err := away.Launch(); err != nil {
		t.Fatal(err)
	}
	// Clients that try all the while get in only when they may.
	stop := make(chan struct{})
	tried := make(chan error, 1)
	go func() {
		for {
			select {
			case <-stop:
				tried <- nil
				return
			default:
			}
			ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
			conn, err := Connect(ctx, away.Addr, names[0])
			if err == nil {
				conn.Close(ctx)
				cancel()
				tried <- fmt.Errorf("%s was let in", names[0])
				return
			}
			cancel()
		}
	}()
	if err := away.AwaitReady(within(t, time.Minute)); err != nil {
		t.Fatal(err)
	}
	refused(t, f.Nodes, names[0])
	admitted(t, f.Nodes, names[1])
	close(stop)
	if err := <-tried; err != nil {
		t.Error(err)
	}
}

// TestALeafNodeWithADomainOfItsOwnIsRefused connects a node to a server that has a JetStream domain of its own: the
// streams it would make there nobody else knows.
func TestALeafNodeWithADomainOfItsOwnIsRefused(t *testing.T) {
	f := start(t, Options{Nodes: 1, NATS: 1, Heartbeat: 300 * time.Millisecond, Lease: 3 * time.Second})
	name := people(t, f, 1)[0]
	ports, err := pgserver.FreePorts("127.0.0.1", 3)
	if err != nil {
		t.Fatal(err)
	}
	// The fleet's server takes leaf connections after a restart.
	hub := f.NATS.Servers[0]
	conf, err := os.ReadFile(hub.conf)
	if err != nil {
		t.Fatal(err)
	}
	conf = append(conf, fmt.Sprintf("leafnodes { listen: 127.0.0.1:%d }\n", ports[0])...)
	if err := os.WriteFile(hub.conf, conf, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := hub.Stop(); err != nil {
		t.Fatal(err)
	}
	startServers(t, f)
	leafConf := filepath.Join(f.Dir, "leaf.conf")
	text := fmt.Sprintf("server_name: leaf\nhost: 127.0.0.1\nport: %d\njetstream { store_dir: %q, sync_interval: always, domain: leaf }\nleafnodes { remotes: [{ url: nats://127.0.0.1:%d }] }\n",
		ports[1], filepath.Join(f.Dir, "leaf"), ports[0])
	if err := os.WriteFile(leafConf, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	leafAddr := fmt.Sprintf("127.0.0.1:%d", ports[1])
	leaf, err := startProcess("leaf", "", nil, f.Binaries.NATS, "-c", leafConf)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(leaf.Kill)
	if err := waitListening(within(t, time.Minute), leaf, leafAddr); err != nil {
		t.Fatal(err)
	}
	n, err := f.newNode(1)
	if err != nil {
		t.Fatal(err)
	}
	text = strings.Replace(f.nodeConfig(n, f.Postgres.Host, "127.0.0.1"), f.NATS.URL("127.0.0.1"), "nats://"+leafAddr, 1)
	if err := os.WriteFile(n.conf, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	f.Nodes = append(f.Nodes, n)
	if err := n.Launch(); err != nil {
		t.Fatal(err)
	}
	// It either ends with an error or says why it does not serve; it never lets anybody in.
	err = poll(within(t, 60*time.Second), "the node at the leaf to refuse", func() (bool, error) {
		if !n.Running() {
			return true, nil
		}
		code, why, err := n.Readyz(within(t, time.Second))
		return err == nil && code == 503 && strings.Contains(why, "cluster init"), nil
	})
	if err != nil {
		t.Error(err)
	}
	if conn, err := Connect(within(t, time.Minute), n.Addr, name); err == nil {
		conn.Close(within(t, time.Second))
		t.Error("the node at the leaf lets people in")
	}
	if v, r := verdict(t, f, "revoke", name); r.Code != 0 || v.Verdict != "complete" {
		t.Errorf("the fleet itself: want complete\n%s", r)
	}
}
