package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"pgedge/cluster"
	"pgedge/revoke"
)

// fakeEngine answers every settled order with a receipt of its choice.
type fakeEngine struct {
	mu       sync.Mutex
	node     *cluster.Node
	sessions []revoke.SessionInfo
	// answer changes the receipt before it is published; false publishes none.
	answer func(*revoke.Receipt) bool
}

func (e *fakeEngine) Cut(o revoke.Order) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if o.Fact.Seq == 0 || e.node == nil {
		return
	}
	r := revoke.Receipt{
		Schema: revoke.ReceiptSchema, Revocation: o.Fact.ID, Seq: o.Fact.Seq, Epoch: o.Fact.Epoch, Stage: revoke.StageVerified,
		Verb: o.Fact.Verb.String(), Scope: o.Fact.Scope.Token(), Reason: o.Fact.Reason, Actor: o.Fact.Actor, Source: o.Fact.Source,
		Node: "edge-a", Boot: e.node.Boot(), Version: "test", ReceivedVia: "fast", ReceivedAt: time.Now(), CutUS: 180, ClosedUS: 950, VerifiedUS: 4200,
	}
	for _, s := range e.sessions {
		if o.Fact.Scope.Matches(revoke.NewIdentity(s.Principal, s.Role, s.Database, s.ID)) {
			r.Sessions = append(r.Sessions, revoke.SessionReceipt{ID: s.ID, Principal: s.Principal, Role: s.Role, Database: s.Database,
				Application: s.Application, State: s.State, Cut: "gate", Backend: "gone", Verified: true, Xact: "aborted", BackendPID: s.BackendPID})
		}
	}
	r.Matched = len(r.Sessions)
	if e.answer == nil || e.answer(&r) {
		e.node.PublishReceipt(r)
	}
}

func (e *fakeEngine) Sessions(f cluster.SessionFilter) []revoke.SessionInfo {
	e.mu.Lock()
	defer e.mu.Unlock()
	var out []revoke.SessionInfo
	for _, s := range e.sessions {
		if f.Match(s) {
			out = append(out, s)
		}
	}
	return out
}

func (e *fakeEngine) Impact(_ context.Context, scopes []revoke.Scope) []revoke.SessionImpact {
	var out []revoke.SessionImpact
	for _, s := range e.sessions {
		for _, scope := range scopes {
			if scope.Matches(revoke.NewIdentity(s.Principal, s.Role, s.Database, s.ID)) {
				out = append(out, revoke.SessionImpact{SessionInfo: s, Looked: true, InTransaction: s.State == "active", TransactionSeconds: 75, StatementSeconds: 74, Written: true, Locks: 3, Blocks: 2})
				break
			}
		}
	}
	return out
}

func (e *fakeEngine) Freeze() {}
func (e *fakeEngine) Thaw()   {}
func (e *fakeEngine) Drop()   {}

func (e *fakeEngine) SessionCount() int {
	e.mu.Lock()
	defer e.mu.Unlock()
	return len(e.sessions)
}
func (e *fakeEngine) Upstreams() map[string]revoke.UpstreamPresence { return nil }
func (e *fakeEngine) Claims([]string) []revoke.Claim                { return nil }

func (e *fakeEngine) Sweep(context.Context, string, revoke.SweepPass) ([]revoke.SweepOutcome, error) {
	return nil, errors.New("no server")
}

func (e *fakeEngine) RestoreLogins(context.Context, string, func(string, revoke.LoginMark) bool) ([]string, error) {
	return nil, errors.New("no server")
}

// testFleet is one real node of a cluster, with a fake engine.
type testFleet struct {
	t   *testing.T
	dir string
	eng *fakeEngine
}

func startFleet(t *testing.T, answer func(*revoke.Receipt) bool) *testFleet {
	t.Helper()
	return startFleetWith(t, answer, nil)
}

func startFleetWith(t *testing.T, answer func(*revoke.Receipt) bool, canary cluster.Canary) *testFleet {
	t.Helper()
	f := &testFleet{t: t, dir: t.TempDir(), eng: &fakeEngine{answer: answer, sessions: []revoke.SessionInfo{
		{ID: "edge-a-1", Node: "edge-a", Principal: "alice", Role: "alice", Database: "app", Client: "10.0.0.1:5000", Application: "psql", State: "active", BackendPID: 7, Upstream: "db:5432", Since: time.Now()},
		{ID: "edge-a-2", Node: "edge-a", Principal: "alice", Role: "alice", Database: "app", Client: "10.0.0.1:5001", Application: "evil\x1b[2J", State: "idle", Since: time.Now()},
		{ID: "edge-a-3", Node: "edge-a", Principal: "bob", Role: "bob", Database: "app", Client: "10.0.0.2:5000", Application: "psql", State: "idle", Since: time.Now()},
	}}}
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	node, err := cluster.Start(ctx, cluster.Config{Node: "edge-a", Version: "test", StateDir: f.dir, Canary: canary}, f.eng)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		if err := node.Close(ctx); err != nil {
			t.Error(err)
		}
	})
	f.eng.mu.Lock()
	f.eng.node = node
	f.eng.mu.Unlock()
	select {
	case <-node.ReadyC():
	case <-ctx.Done():
		t.Fatal("the node did not become ready")
	}
	node.SetState(revoke.StateServing)
	return f
}

// run executes a command line against the fleet.
func (f *testFleet) run(args ...string) (code int, stdout, stderr string) {
	f.t.Helper()
	var out, errs bytes.Buffer
	ctx, cancel := context.WithTimeout(context.Background(), 60*time.Second)
	defer cancel()
	code = run(ctx, append(args, "--state-dir", f.dir), stdio{in: strings.NewReader(""), out: &out, err: &errs})
	return code, out.String(), errs.String()
}

// expect runs a command line and checks the code and that every text is printed somewhere.
func (f *testFleet) expect(code int, texts []string, args ...string) (stdout string) {
	f.t.Helper()
	got, out, errs := f.run(args...)
	if got != code {
		f.t.Errorf("pgedge %s: exit code %d, want %d\n%s%s", strings.Join(args, " "), got, code, out, errs)
	}
	for _, text := range texts {
		if !strings.Contains(out+errs, text) {
			f.t.Errorf("pgedge %s does not print %q:\n%s%s", strings.Join(args, " "), text, out, errs)
		}
	}
	return out
}

func decodeLines(t *testing.T, out string) []map[string]any {
	t.Helper()
	var lines []map[string]any
	for line := range strings.Lines(out) {
		var m map[string]any
		if err := json.Unmarshal([]byte(line), &m); err != nil {
			t.Fatalf("%v in %q", err, line)
		}
		lines = append(lines, m)
	}
	return lines
}

func TestRevokeThatIsVerifiedExitsWithZero(t *testing.T) {
	f := startFleet(t, nil)
	f.expect(0, []string{"stored  ", "revoke principal alice", "edge-a", "verified", "complete: every backend was seen gone, 2 sessions on 1 node", "receipts show"}, "revoke", "alice", "--reason", "HR-1234")
	f.expect(0, []string{"principal alice", "HR-1234", "1"}, "revocations")
}

func TestRevokeInJSONEndsWithTheVerdict(t *testing.T) {
	f := startFleet(t, nil)
	lines := decodeLines(t, f.expect(0, nil, "revoke", "alice", "-o", "json"))
	first, last := lines[0], lines[len(lines)-1]
	if first["status"] != "stored" || first["scope"] != "principal.alice" || first["seq"] == float64(0) {
		t.Errorf("first line %v", first)
	}
	if last["verdict"] != "complete" || last["revocation"] != first["revocation"] || last["matched"] != float64(2) {
		t.Errorf("last line %v", last)
	}
	nodes, _ := last["nodes"].([]any)
	if len(nodes) != 1 || nodes[0].(map[string]any)["status"] != "verified" {
		t.Errorf("nodes %v", nodes)
	}
	node := lines[1]
	if node["node"] != "edge-a" || node["status"] != "verified" || node["after_ms"] == nil {
		t.Errorf("node line %v", node)
	}
}

func TestAKillThatIsNotVerifiedExitsWithThreeAndSaysWhy(t *testing.T) {
	f := startFleet(t, func(r *revoke.Receipt) bool {
		r.Stage, r.Unverified = revoke.StageClosed, len(r.Sessions)
		for i := range r.Sessions {
			r.Sessions[i].Verified, r.Sessions[i].Backend, r.Sessions[i].Why = false, "cancelled", "no control role"
		}
		return true
	})
	f.expect(3, []string{"complete_unverified", "2 not seen gone", "not verified: no control role (2 sessions)"}, "kill", "alice")
}

func TestANodeThatDoesNotAnswerIsExitCodeFour(t *testing.T) {
	f := startFleet(t, func(*revoke.Receipt) bool { return false })
	f.expect(4, []string{"incomplete: stored, but not proven in time"}, "revoke", "alice", "--wait", "300ms")
	f.expect(0, []string{"stored, not proven"}, "revoke", "alice", "--no-wait")
	f.expect(0, []string{"principal alice"}, "revocations")
}

func TestTheWorstVerdictOfSeveralPrincipalsCounts(t *testing.T) {
	f := startFleet(t, func(r *revoke.Receipt) bool { return r.Scope != "principal.carol" })
	lines := decodeLines(t, f.expect(4, nil, "revoke", "alice", "bob", "carol", "--wait", "2s", "-o", "json"))
	verdicts := map[string]any{}
	for _, l := range lines {
		if l["verdict"] != nil {
			verdicts[l["scope"].(string)] = l["verdict"]
		}
	}
	if verdicts["principal.alice"] != "complete" || verdicts["principal.bob"] != "complete" || verdicts["principal.carol"] != "incomplete" {
		t.Errorf("got %v", verdicts)
	}
	for i, l := range lines[:3] {
		if l["status"] != "stored" {
			t.Errorf("line %d is %v: all are stored before the first is waited for", i, l)
		}
	}
}

func TestARevocationThatMatchesNothingWarns(t *testing.T) {
	f := startFleet(t, nil)
	out := f.expect(0, []string{"warning: principal alcie matched no session", "complete: no session matched on 1 node"}, "revoke", "alcie")
	if strings.Contains(out, "seen gone") {
		t.Errorf("there was no backend to see gone:\n%s", out)
	}
}

func TestSuspendSaysUntilWhen(t *testing.T) {
	f := startFleet(t, nil)
	f.expect(0, []string{"suspend role bob until 20", "complete"}, "suspend", "--role", "bob", "--for", "2h")
	f.expect(0, []string{"role bob", "suspend"}, "revocations")
}

func TestReinstateShowsWhatItUndoesAndNothingElse(t *testing.T) {
	f := startFleet(t, nil)
	f.expect(1, []string{"principal alice is neither revoked nor suspended"}, "reinstate", "alice")
	f.expect(0, nil, "revoke", "alice", "--reason", "HR-1234")
	f.expect(1, []string{"role alice is neither", "but principal alice is: pgedge reinstate alice)"}, "reinstate", "--role", "alice")
	f.expect(0, []string{"undoes  revoke of principal alice", "HR-1234"}, "reinstate", "alice", "--dry-run")
	f.expect(0, []string{"principal alice"}, "revocations")
	f.expect(0, []string{"undoes  revoke of principal alice", "stored  "}, "reinstate", "alice")
	f.expect(0, []string{"nothing is revoked or suspended"}, "revocations")
}

func TestDryRunPublishesNothing(t *testing.T) {
	f := startFleet(t, func(*revoke.Receipt) bool {
		t.Error("a fact was published")
		return false
	})
	out := f.expect(0, []string{"edge-a-1", "edge-a-2", "1m15s, writing", "dry run: 2 sessions would end (edge-a 2); 2 open transactions, 2 of them writing; 6 locks held, 4 backends waiting for them; nothing was done"},
		"revoke", "alice", "--dry-run")
	for _, verb := range [][]string{{"kill", "alice"}, {"suspend", "alice", "--for", "1h"}, {"revoke", "--all"}} {
		f.expect(0, []string{"dry run: ", "would end"}, append(verb, "--dry-run")...)
	}
	lines := decodeLines(t, f.expect(0, nil, "revoke", "alice", "--dry-run", "-o", "json"))
	if last := lines[len(lines)-1]; len(lines) != 3 || lines[0]["locks"] != 3.0 || last["dry_run"] != true || last["sessions"] != 2.0 || last["missing"] == nil {
		t.Errorf("got %v", lines)
	}
	if strings.Contains(out, "bob") {
		t.Errorf("bob does not match:\n%s", out)
	}
	f.expect(0, []string{"nothing is revoked"}, "revocations")
}

func TestEveryRoundOfAWatchInJSONHasItsNumberAndItsEnd(t *testing.T) {
	f := startFleet(t, nil)
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	r, w := io.Pipe()
	done := make(chan int, 1)
	go func() {
		done <- run(ctx, []string{"sessions", "--watch", "-o", "json", "--state-dir", f.dir}, stdio{in: strings.NewReader(""), out: w, err: io.Discard})
		w.Close()
	}()
	lines := bufio.NewScanner(r)
	inRound := 0
	for round := 1.0; round <= 2 && lines.Scan(); {
		m := decodeLines(t, lines.Text())[0]
		if m["round"] != round {
			t.Fatalf("in round %v: %v", round, m)
		}
		if m["id"] != nil {
			inRound++
			continue
		}
		if m["sessions"] != 3.0 || inRound != 3 || m["at"] == nil {
			t.Errorf("%d sessions, then %v", inRound, m)
		}
		round, inRound = round+1, 0
	}
	cancel()
	r.Close()
	if code := <-done; code != 0 {
		t.Errorf("exit code %d", code)
	}
}

func TestTheLiveBootOfANodeIsListedFirst(t *testing.T) {
	var out bytes.Buffer
	a := &app{io: stdio{out: &out, err: io.Discard}, output: "text"}
	boot := func(node, status, version string) cluster.NodeInfo {
		return cluster.NodeInfo{Status: status, Presence: revoke.Presence{Node: node, Version: version}}
	}
	err := a.printNodes([]cluster.NodeInfo{boot("b", "gone", "v1"), boot("a", "left", "v2"), boot("a", "gone", "v3"), boot("a", "live", "v4")})
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, line := range strings.Split(strings.TrimSpace(out.String()), "\n")[1:] {
		fields := strings.Fields(line)
		got = append(got, fields[0]+" "+fields[1])
	}
	if want := []string{"a live", "a gone", "a left", "b gone"}; !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}

func TestSessionsAreListedAndFiltered(t *testing.T) {
	f := startFleet(t, nil)
	out := f.expect(0, []string{"alice", "bob", "7@db:5432", "3 sessions"}, "sessions")
	if strings.Contains(out, "\x1b") {
		t.Error("an application name reaches the terminal as an escape sequence")
	}
	lines := decodeLines(t, f.expect(0, nil, "sessions", "--principal", "bob", "-o", "json"))
	if len(lines) != 1 || lines[0]["id"] != "edge-a-3" {
		t.Errorf("got %v", lines)
	}
	f.expect(4, []string{"no complete answer from edge-z"}, "sessions", "--node", "edge-z")
	f.expect(0, []string{"edge-a", "live", "serving", "test"}, "nodes")
}

func TestReceiptsShowWhatEveryNodeRecorded(t *testing.T) {
	f := startFleet(t, nil)
	id := decodeLines(t, f.expect(0, nil, "revoke", "alice", "-o", "json", "--reason", "HR-1234"))[0]["revocation"].(string)
	f.expect(0, []string{id, "revoke principal.alice", "HR-1234", "node edge-a", "cut after 0.18 ms", "edge-a-1", "aborted"}, "receipts", "show", id)
	lines := decodeLines(t, f.expect(0, nil, "receipts", "show", id, "-o", "json"))
	if len(lines) != 1 || lines[0]["schema"] != "pgedge.receipt/v1" || len(lines[0]["sessions"].([]any)) != 2 {
		t.Errorf("got %v", lines)
	}
	f.expect(1, []string{"no receipt of nope"}, "receipts", "show", "nope")
	f.expect(0, []string{id, "revoke principal.alice", "edge-a", "HR-1234", "1 receipt\n"}, "receipts")
	lines = decodeLines(t, f.expect(0, nil, "receipts", "-o", "json"))
	if len(lines) != 1 || lines[0]["revocation"] != id || lines[0]["matched"] != float64(2) {
		t.Errorf("got %v", lines)
	}
}

func TestCompletionOffersLiveNames(t *testing.T) {
	f := startFleet(t, nil)
	t.Setenv("PGEDGE_STATE_DIR", f.dir)
	for _, tc := range []struct {
		args, want string
	}{
		{"revoke a", "alice\n"},
		{"revoke alice ", "bob\n"},
		{"kill --session edge-a-3", "edge-a-3\tbob psql\n"},
		{"sessions --node ", "edge-a\n"},
	} {
		var out, errs bytes.Buffer
		run(context.Background(), append([]string{"__complete"}, strings.Split(tc.args, " ")...), stdio{in: strings.NewReader(""), out: &out, err: &errs})
		if got, _, _ := strings.Cut(out.String(), ":4\n"); got != tc.want {
			t.Errorf("%q: got %q, want %q", tc.args, got, tc.want)
		}
	}
}
