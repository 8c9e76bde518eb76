package main

import (
	"bufio"
	"context"
	"io"
	"strings"
	"testing"

	"pgedge/internal/pgtest"
)

func TestASilentNodeIsForgottenAndALiveOneIsNot(t *testing.T) {
	f := startFleet(t, nil)
	ghost := func(node, boot string) {
		natsPublish(t, f.dir, "pgedge.node."+node+"."+boot,
			`{"v":1,"node":"`+node+`","boot":"`+boot+`","n":1,"version":"v0","state":"serving","lease_ms":1,"on_stale":"serve","sessions":2}`)
	}
	ghost("edge-z", "boot1")
	ghost("edge-y", "boot1")
	ghost("edge-y", "boot2")
	pgtest.Wait(t, "the nodes to be gone", func() bool {
		_, out, _ := f.run("nodes")
		return strings.Count(out, "gone") == 3
	})
	f.expect(0, []string{"LEASE", "ended", "serves on without NATS: boot boot1"}, "nodes")
	f.expect(4, nil, "kill", "alice")

	f.expect(2, []string{"needs --yes", "you assert"}, "nodes", "forget", "edge-z")
	f.expect(1, []string{"node edge-a is live"}, "nodes", "forget", "edge-a", "--yes")
	f.expect(1, []string{"knows no node edge-q"}, "nodes", "forget", "edge-q", "--yes")
	f.expect(1, []string{"several boots of node edge-y", "--boot", "boot1", "boot2"}, "nodes", "forget", "edge-y", "--yes")
	f.expect(0, []string{"forgotten  edge-y  boot boot2"}, "nodes", "forget", "edge-y", "--boot", "boot2", "--yes")
	f.expect(0, []string{"forgotten  edge-y  boot boot1"}, "nodes", "forget", "edge-y", "--yes")
	line := decodeLines(t, f.expect(0, nil, "nodes", "forget", "edge-z", "--yes", "-o", "json"))[0]
	if line["node"] != "edge-z" || line["was"] != "gone" || line["forgotten_by"] != actor() {
		t.Errorf("got %v", line)
	}
	f.expect(1, []string{"has been forgotten already"}, "nodes", "forget", "edge-z", "--yes")
	f.expect(0, []string{"complete"}, "kill", "alice")
	if out := f.expect(0, nil, "nodes"); strings.Contains(out, "edge-z") {
		t.Errorf("it is listed still:\n%s", out)
	}
	f.expect(0, []string{"edge-z", "forgotten by " + actor()}, "nodes", "--all")
	f.expect(0, []string{"edge-z                forgotten by " + actor() + ", who declared"}, "kill", "alice")
	if nodes := decodeLines(t, f.expect(0, nil, "kill", "alice", "-o", "json")); !strings.Contains(strings.Join(forgottenNodes(nodes), " "), "edge-z") {
		t.Errorf("the verdict does not name what was forgotten: %v", nodes)
	}
}

func forgottenNodes(lines []map[string]any) (names []string) {
	nodes, _ := lines[len(lines)-1]["nodes"].([]any)
	for _, n := range nodes {
		if m := n.(map[string]any); m["status"] == "forgotten" {
			names = append(names, m["node"].(string))
		}
	}
	return names
}

func TestANodeThatDoesNotAnswerIsNamed(t *testing.T) {
	f := startFleet(t, nil)
	natsPublish(t, f.dir, "pgedge.node.edge-z.boot1", `{"v":1,"node":"edge-z","boot":"boot1","n":1,"state":"serving","lease_ms":60000,"on_stale":"freeze"}`)
	pgtest.Wait(t, "the node to be listed", func() bool {
		_, out, errs := f.run("nodes")
		return strings.Contains(out, "did not answer") && strings.Contains(errs, "no answer from edge-z")
	})
	f.expect(4, []string{"no complete answer from edge-z"}, "sessions")
}

func TestAWatchTellsWhatIsNewAndWhatHasEnded(t *testing.T) {
	f := startFleet(t, nil)
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	r, w := io.Pipe()
	done := make(chan int, 1)
	go func() {
		done <- run(ctx, []string{"sessions", "-w", "--principal", "alice", "-o", "json", "--state-dir", f.dir}, stdio{in: strings.NewReader(""), out: w, err: io.Discard})
		w.Close()
	}()
	lines := bufio.NewScanner(r)
	round := func() (fresh []string, end map[string]any) {
		for lines.Scan() {
			m := decodeLines(t, lines.Text())[0]
			if m["id"] == nil {
				return fresh, m
			}
			if m["principal"] != "alice" {
				t.Errorf("not asked for: %v", m)
			}
			if m["new"] == true {
				fresh = append(fresh, m["id"].(string))
			}
		}
		t.Fatal("the watch ended")
		return nil, nil
	}
	if fresh, end := round(); len(fresh) != 2 || end["sessions"] != 2.0 || len(end["ended"].([]any)) != 0 {
		t.Errorf("first round: %v, %v", fresh, end)
	}
	f.eng.mu.Lock()
	first := f.eng.sessions[0]
	first.ID = "edge-a-9"
	f.eng.sessions = append(f.eng.sessions[1:], first)
	f.eng.mu.Unlock()
	if fresh, end := round(); len(fresh) != 1 || fresh[0] != "edge-a-9" || end["ended"].([]any)[0] != "edge-a-1" || end["round"] != 2.0 {
		t.Errorf("second round: %v, %v", fresh, end)
	}
	cancel()
	r.Close()
	if code := <-done; code != 0 {
		t.Errorf("exit code %d", code)
	}
}
