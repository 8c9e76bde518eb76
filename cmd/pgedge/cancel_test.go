package main

import (
	"bytes"
	"fmt"
	"net"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"

	"pgedge/internal/pgserver"
	"pgedge/internal/pgtest"
)

// startTrio starts three nodes in processes of their own, of which the first embeds NATS, and returns where they
// accept clients and the state directory of the first.
func startTrio(t *testing.T, pg *pgtest.Server) (nodes []*served, addrs []string, state string) {
	t.Helper()
	state = filepath.Join(t.TempDir(), "state")
	for i, name := range []string{"edge-a", "edge-b", "edge-c"} {
		args := []string{"--node", name, "--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0", "--upstream",
			pg.URL("pgedge_control", pgserver.Password("pgedge_control"), pgserver.Database)}
		if i == 0 {
			args = append(args, "--state-dir", state)
		} else {
			args = append(args, "--state-dir", filepath.Join(t.TempDir(), "state"), "--nats", natsURL(t, state).String())
		}
		n := startServe(t, args...)
		n.admin = "http://" + n.await("serving health and metrics")["address"].(string)
		addrs = append(addrs, n.await(logAccepting)["address"].(string))
		n.await(logReady)
		nodes = append(nodes, n)
	}
	pgtest.Wait(t, "the nodes to know each other", func() bool {
		return strings.Count(pgedge(t, 0, "nodes", "-o", "json", "--state-dir", state), `"status":"live"`) == len(nodes)
	})
	return nodes, addrs, state
}

// psql's Ctrl-C opens a connection of its own, which the load balancer gives to another node than the session's.
func TestCtrlCInPsqlWorksAtAnyNodeEveryTime(t *testing.T) {
	pg := pgtest.Start(t, pgtest.Options{})
	nodes, addrs, _ := startTrio(t, pg)
	const workers, rounds = 4, 25
	var wg sync.WaitGroup
	var cancelled atomic.Int64
	for w := range workers {
		// A balancer each: two connections of one psql follow each other, so that they come to two nodes.
		host, port, err := net.SplitHostPort(pgtest.NewBalancer(t, addrs...))
		if err != nil {
			t.Fatal(err)
		}
		wg.Go(func() {
			for r := range rounds {
				sql := fmt.Sprintf("SELECT pg_sleep(300) /* %d-%d */", w, r)
				cmd := exec.Command("psql", "-X", "-h", host, "-p", port, "-U", "alice", "-d", pgserver.Database, "-c", sql)
				cmd.Env = append(cleanEnviron(), "PGPASSWORD="+pgserver.Password("alice"), "PGSSLMODE=disable", "PGGSSENCMODE=disable")
				var out bytes.Buffer
				cmd.Stdout, cmd.Stderr = &out, &out
				if err := cmd.Start(); err != nil {
					t.Error(err)
					return
				}
				pg.WaitInt(t, 1, "SELECT count(*) FROM pg_stat_activity WHERE state = 'active' AND query = $1", sql)
				cmd.Process.Signal(syscall.SIGINT)
				cmd.Wait()
				if strings.Contains(out.String(), "canceling statement due to user request") {
					cancelled.Add(1)
				} else {
					t.Errorf("%s: psql printed %s", sql, out.String())
				}
			}
		})
	}
	wg.Wait()
	if got := cancelled.Load(); got != workers*rounds {
		t.Errorf("%d of %d statements were cancelled", got, workers*rounds)
	}
	forwarded := 0
	for _, n := range nodes {
		_, body := get(t, n.admin+"/metrics")
		for line := range strings.Lines(body) {
			var k int
			if _, err := fmt.Sscanf(line, `pgedge_cancels_total{result="forwarded"} %d`, &k); err == nil {
				forwarded += k
			}
		}
	}
	if forwarded != workers*rounds {
		t.Errorf("%d cancel requests were forwarded, want all %d", forwarded, workers*rounds)
	}
}
