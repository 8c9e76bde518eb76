package main

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5/pgconn"

	"pgedge/cluster"
	"pgedge/internal/pgserver"
	"pgedge/internal/pgtest"
)

// routePorts are below the ports that the system gives to outgoing connections.
func routePorts(t *testing.T, n int) []string {
	t.Helper()
	var out []string
	for tries := 0; len(out) < n && tries < 1000; tries++ {
		addr := fmt.Sprintf("127.0.0.1:%d", 10000+rand.IntN(20000))
		if l, err := net.Listen("tcp", addr); err == nil {
			defer l.Close()
			out = append(out, addr)
		}
	}
	return out
}

// The steps of docs/fleet.md: three nodes, no other server.
func TestThreeNodesBecomeAFleetByOneCommand(t *testing.T) {
	pg := pgtest.Start(t, pgtest.Options{})
	dir := t.TempDir()
	secret := filepath.Join(dir, "route-secret")
	writeFile(t, secret, "0123456789abcdef0123456789abcdef\n")
	peers := routePorts(t, 3)
	var nodes []*served
	var states, admins []string
	for i, listen := range peers {
		name := fmt.Sprintf("edge-%c", 'a'+i)
		file, state := filepath.Join(dir, name+".yaml"), filepath.Join(dir, name)
		writeFile(t, file, fmt.Sprintf("node: %s\nlisten: ['127.0.0.1:0']\nadmin: 127.0.0.1:0\nstate_dir: %s\ndatabases: {'*': {upstream: '%s'}}\ncluster: {replicas: 3, routes: {listen: '%s', peers: [%s], secret_file: %s}}\n",
			name, state, pg.URL("pgedge_control", pgserver.Password("pgedge_control"), pgserver.Database), listen, "'"+strings.Join(peers, "', '")+"'", secret))
		node := startServe(t, "-c", file)
		admins = append(admins, node.await("serving health and metrics")["address"].(string))
		nodes, states = append(nodes, node), append(states, state)
	}
	for i, node := range nodes {
		want := "pgedge cluster init --state-dir " + states[i] + " --replicas 3"
		for !strings.Contains(fmt.Sprint(node.await("waiting")["for"]), want) {
		}
		// While the servers elect a leader it is that which the node waits for, and says.
		pgtest.Wait(t, "/readyz to name the command", func() bool {
			code, body := get(t, "http://"+admins[i]+"/readyz")
			return code == 503 && strings.Contains(body, want)
		})
	}
	pgedge(t, 1, "nodes", "--state-dir", states[0])
	if out := pgedge(t, 0, "cluster", "init", "--state-dir", states[2]); !strings.Contains(out, "PGEDGE: created (cluster pgedge, no domain, 3 copies, created 20") ||
		!strings.Contains(out, "PGEDGE_RECEIPTS: created") {
		t.Errorf("cluster init says %s", out)
	}
	if out := pgedge(t, 0, "cluster", "init", "--state-dir", states[0], "-o", "json"); strings.Count(out, `"result":"exists"`) != 2 {
		t.Errorf("cluster init says %s", out)
	}
	var addrs []string
	for _, node := range nodes {
		addrs = append(addrs, node.await(logAccepting)["address"].(string))
		node.await(logReady)
	}
	if out := pgedge(t, 0, "revoke", "alice", "--reason", "HR-1234", "--state-dir", states[1]); !strings.Contains(out, "3 nodes") {
		t.Errorf("revoke says %s", out)
	}
	for _, addr := range addrs {
		_, err := login(addr, "alice")
		var pgErr *pgconn.PgError
		if !errors.As(err, &pgErr) || pgErr.Code != "28000" {
			t.Errorf("%s lets alice in: %v", addr, err)
		}
	}
}

func TestAContextOfTheNATSToolSaysHowToConnect(t *testing.T) {
	home := t.TempDir()
	t.Setenv("HOME", home)
	t.Setenv("XDG_CONFIG_HOME", "")
	t.Setenv("PGEDGE_NATS", "nats://elsewhere")
	t.Setenv("PGEDGE_NATS_CREDS", "/elsewhere.creds")
	dir := filepath.Join(home, ".config", "nats", "context")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{
		"creds":   `{"description":"x","url":"tls://a:4222,tls://b:4222","creds":"~/op.creds","ca":"/ca.pem","cert":"/c.pem","key":"/k.pem","inbox_prefix":"_I","jetstream_domain":"hub","tls_first":true,"color_scheme":"red"}`,
		"user":    `{"url":"nats://a:4222","user":"op","password":"pw"}`,
		"token":   `{"token":"tok"}`,
		"nkey":    `{"url":"nats://a:4222","nkey":"/op.nk"}`,
		"nsc":     `{"nsc":"nsc://o/a/u"}`,
		"damaged": `{"url":`,
	} {
		writeFile(t, filepath.Join(dir, name+".json"), text)
	}
	for name, want := range map[string]cluster.DialOptions{
		"creds": {URL: "tls://a:4222,tls://b:4222", Domain: "hub", InboxPrefix: "_I", Credentials: cluster.Credentials{
			CredsFile: home + "/op.creds", CAFile: "/ca.pem", CertFile: "/c.pem", KeyFile: "/k.pem", TLSFirst: true}},
		"user":  {URL: "nats://a:4222", Credentials: cluster.Credentials{User: "op", Password: "pw"}},
		"token": {URL: "nats://127.0.0.1:4222", Credentials: cluster.Credentials{Token: "tok"}},
		"nkey":  {URL: "nats://a:4222", Credentials: cluster.Credentials{CredsFile: "/op.nk"}},
	} {
		got, err := (&connectFlags{context: name}).options()
		want.Timeout = connectTimeout
		if diff := cmp.Diff(want, got); err != nil || diff != "" {
			t.Errorf("%s: %v %s", name, err, diff)
		}
	}
	for name, want := range map[string]string{"nsc": "its nsc is not supported", "damaged": "is not a context", "none": "does not exist"} {
		if _, err := (&connectFlags{context: name}).options(); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if o, err := (&connectFlags{context: "user", creds: "/flag.creds"}).options(); err != nil || o.CredsFile != "/flag.creds" {
		t.Errorf("a flag does not win over the context: %+v, %v", o, err)
	}
}
