package main

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"pgedge/cluster"
	"pgedge/internal/pgserver"
	"pgedge/internal/pgtest"
	"pgedge/revoke"
)

// The whole way on two real nodes, through TCP and a unix socket.
func TestADrillHoldsThroughEveryListenerAndLeavesNothingBehind(t *testing.T) {
	pg := pgtest.Start(t, pgtest.Options{})
	// A socket's path is shorter than what t.TempDir gives.
	dir, err := os.MkdirTemp("/tmp", "pgedge-t")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	writeFile(t, filepath.Join(dir, "canary"), pgserver.Password("carol")+"\n")
	writeFile(t, filepath.Join(dir, "pgedge.yaml"), fmt.Sprintf("admin: off\ndrill: {user: carol, password_file: canary, database: app}\ndatabases: {'*': {upstream: '%s'}}\n",
		pg.URL("pgedge_control", pgserver.Password("pgedge_control"), pgserver.Database)))
	state := filepath.Join(dir, "a")
	args := []string{"-c", filepath.Join(dir, "pgedge.yaml"), "--listen", "127.0.0.1:0"}
	a := startServe(t, append(args, "--node", "edge-a", "--state-dir", state, "--listen", "unix:"+dir)...)
	addr := a.await(logAccepting)["address"].(string)
	a.await(logReady)
	b := startServe(t, append(args, "--node", "edge-b", "--state-dir", filepath.Join(dir, "b"), "--nats", natsURL(t, state).String())...)
	b.await(logReady)

	bystander, err := login(addr, "alice")
	if err != nil {
		t.Fatal(err)
	}
	defer bystander.Close(context.Background())
	out := pgedge(t, 0, "drill", "--state-dir", state)
	for text, n := range map[string]int{"edge-a": 2, "edge-b": 1, "held": 4, "refused 28000": 3, "everything held on 3 listeners": 1, dir + "/.s.PGSQL.5432": 1, "complete: ": 1} {
		if strings.Count(out, text) != n {
			t.Errorf("%q is not printed %d times:\n%s", text, n, out)
		}
	}
	// Nothing is left over: no block, no session, and the next drill finds everything as the first one did.
	if out := pgedge(t, 0, "revocations", "--state-dir", state); !strings.Contains(out, "nothing is revoked") {
		t.Errorf("left behind: %s", out)
	}
	lines := decodeLines(t, pgedge(t, 0, "drill", "-o", "json", "--state-dir", state))
	if last := lines[len(lines)-1]; len(lines) != 4 || last["ok"] != true || last["verdict"] != "complete" || last["canary"] != "carol" {
		t.Errorf("got %v", lines)
	}
	for _, l := range lines[:3] {
		if l["cut_ms"] == nil || l["verified_ms"] == nil || l["client_ms"] == nil || l["saw_sqlstate"] != "28000" || l["refused_sqlstate"] != "28000" || l["back_ms"] == 0.0 {
			t.Errorf("got %v", l)
		}
	}
	if err := bystander.Ping(context.Background()); err != nil {
		t.Errorf("the bystander: %v", err)
	}

	// Somebody else's session is not touched.
	carol, err := login(addr, "carol")
	if err != nil {
		t.Fatal(err)
	}
	defer carol.Close(context.Background())
	if out := pgedge(t, 1, "drill", "--state-dir", state); !strings.Contains(out, "1 session that no drill made") {
		t.Error(out)
	}
	if err := carol.Ping(context.Background()); err != nil {
		t.Errorf("a session that is not the drill's: %v", err)
	}
	carol.Close(context.Background())

	// A canary that cannot log in fails the drill, and nothing is revoked for it.
	pg.Exec(t, "ALTER ROLE carol NOLOGIN")
	pgtest.Wait(t, "the drill to fail for that", func() bool {
		return strings.Contains(pgedge(t, 1, "drill", "--state-dir", state), "cannot log in: 28000 role \"carol\" is not permitted to log in")
	})
	if out := pgedge(t, 0, "receipts", "--state-dir", state); strings.Count(out, "revoke principal.carol") != 4 {
		t.Errorf("two drills of two nodes make four receipts:\n%s", out)
	}
	for _, s := range []*served{b, a} {
		s.cmd.Process.Signal(syscall.SIGTERM)
		if code := s.exitCode(); code != 0 {
			t.Errorf("exit code %d", code)
		}
	}
}

// fakeCanary answers every step as told.
type fakeCanary struct {
	answers map[string][]cluster.CanaryLogin
}

func (c *fakeCanary) Drill(_ context.Context, req cluster.DrillRequest) cluster.DrillAnswer {
	return cluster.DrillAnswer{Canary: "canary", Logins: c.answers[req.Step]}
}

func ended(code string) []cluster.CanaryLogin {
	now := time.Now()
	return []cluster.CanaryLogin{{Listener: "l1", In: true, SQLState: code, Ended: &now}}
}

var (
	wentIn  = []cluster.CanaryLogin{{Listener: "l1", In: true, TookMS: 2}}
	refused = []cluster.CanaryLogin{{Listener: "l1", SQLState: "28000", Message: "access was revoked"}}
)

func TestADrillThatFailsSaysWhereAndStillReinstatesTheCanary(t *testing.T) {
	for want, answers := range map[string]map[string][]cluster.CanaryLogin{
		"saw no end of the session":         {"begin": wentIn, "seen": wentIn, "again": refused},
		`saw "57P01 " instead of 28000`:     {"begin": wentIn, "seen": ended("57P01"), "again": refused},
		"was let in while":                  {"begin": wentIn, "seen": ended("28000"), "again": wentIn},
		"cannot log in after the reinstate": {"begin": wentIn, "seen": ended("28000"), "again": refused},
		"cannot log in: 28000":              {"begin": refused},
		`the listener is gone`:              {"begin": wentIn, "seen": nil},
	} {
		f := startFleetWith(t, nil, &fakeCanary{answers})
		f.expect(1, []string{"FAILED", want}, "drill")
		f.expect(0, []string{"nothing is revoked"}, "revocations")
	}
}

func TestADrillWithoutACanaryOrOnOneThatIsBlockedRevokesNothing(t *testing.T) {
	startFleet(t, nil).expect(1, []string{"no node has a canary", "drill: {user:"}, "drill")
	f := startFleetWith(t, nil, &fakeCanary{map[string][]cluster.CanaryLogin{"begin": wentIn, "seen": ended("28000"), "again": refused}})
	f.expect(0, nil, "revoke", "canary", "--reason", "HR-1")
	f.expect(1, []string{"not by a drill", "HR-1", "pgedge reinstate canary"}, "drill")
	f.expect(0, []string{"HR-1"}, "revocations")
	f.expect(0, nil, "reinstate", "canary")
	// What an interrupted drill has left is undone by the next one.
	natsPublish(t, f.dir, "pgedge.revoke.principal.canary", `{"source":"drill","reason":"drill X"}`)
	pgtest.Wait(t, "the revocation to be listed", func() bool {
		_, out, _ := f.run("revocations")
		return strings.Contains(out, "canary")
	})
	f.expect(1, []string{"an earlier drill was interrupted", "cannot log in after the reinstate"}, "drill")
	f.expect(0, []string{"nothing is revoked"}, "revocations")
}

func TestTheExitCodeOfADrillSaysWhatWasProven(t *testing.T) {
	held, failed := &drillLine{Node: "a", Listener: "l"}, &drillLine{Node: "a", Listener: "l", Failed: []string{"why"}}
	for _, tt := range []struct {
		line     *drillLine
		unproven []string
		verdict  revoke.Verdict
		want     int
	}{
		{held, nil, revoke.Complete, 0},
		{held, nil, revoke.CompleteUnverified, 3},
		{held, nil, revoke.Incomplete, 4},
		{held, []string{"b did not answer"}, revoke.Complete, 4},
		{failed, []string{"b did not answer"}, revoke.Complete, 1},
	} {
		var out bytes.Buffer
		d := &drill{app: &app{io: stdio{out: &out}}, lines: []*drillLine{tt.line}, unproven: tt.unproven, verdict: tt.verdict}
		if got := d.app.exitCode(nil, d.report()); got != tt.want {
			t.Errorf("exit code %d, want %d:\n%s", got, tt.want, out.String())
		}
		if strings.Contains(out.String(), "everything held") != (tt.want == 0) {
			t.Error(out.String())
		}
	}
}
