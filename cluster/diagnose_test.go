package cluster

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

func TestADiagnosisOfAHealthyJournalFindsNothingAndStoresNothing(t *testing.T) {
	s := natsServer(t, jetStreamConf(t))
	initStreams(t, DialOptions{URL: s.ClientURL(), Timeout: patience}, 1)
	cfg := outsideConfig(t, "a", s.ClientURL(), 1)
	js, err := jetstream.New(rawConn(t, s.ClientURL()))
	if err != nil {
		t.Fatal(err)
	}
	for _, what := range []string{"before the first start", "beside the running node"} {
		d, err := Diagnose(testContext(t), cfg)
		if err != nil {
			t.Fatal(err)
		}
		if d.Streams != nil || d.Read != nil || len(d.Missing) > 0 || len(d.Behind) > 0 || d.Copies != 1 || d.Version == "" || d.RoundTrip <= 0 || d.ClockAhead.Abs() > time.Minute {
			t.Errorf("%s: %+v", what, d)
		}
		for _, name := range []string{journalStream, receiptStream} {
			stream, err := js.Stream(testContext(t), name)
			if err != nil {
				t.Fatal(err)
			}
			if subjects := stream.CachedInfo().State.NumSubjects; what == "before the first start" && subjects > 0 || subjects > 1 {
				t.Errorf("%s: %s holds %d subjects", what, name, subjects)
			}
		}
		if what == "before the first start" {
			startNode(t, cfg, newFakeEngine())
		}
	}
}

func TestADiagnosisNamesStreamsThatAreMissingOrWrong(t *testing.T) {
	s := natsServer(t, jetStreamConf(t))
	cfg := outsideConfig(t, "a", s.ClientURL(), 1)
	var wrong *StreamsError
	d, err := Diagnose(testContext(t), cfg)
	if err != nil || !errors.As(d.Streams, &wrong) || !wrong.Missing || !strings.Contains(wrong.Fix, "cluster init") {
		t.Fatalf("got %+v, %v", d, err)
	}
	initStreams(t, DialOptions{URL: s.ClientURL(), Timeout: patience}, 1)
	js, err := jetstream.New(rawConn(t, s.ClientURL()))
	if err != nil {
		t.Fatal(err)
	}
	aged := journalConfig(1)
	aged.MaxAge = time.Hour
	if _, err := js.UpdateStream(testContext(t), aged); err != nil {
		t.Fatal(err)
	}
	if d, err = Diagnose(testContext(t), cfg); err != nil || d.Streams == nil || !strings.Contains(d.Streams.Error(), "max_age") {
		t.Errorf("got %+v, %v", d, err)
	}
}

func TestADiagnosisNamesTheRightsThatANodeWouldMiss(t *testing.T) {
	s := natsServer(t, jetStreamConf(t)+`authorization { users: [
	 { user: op, password: op }
	 { user: a, password: a, permissions: {
	   publish: { allow: ["pgedge.receipt.*.a.>", "$JS.API.>"] }
	   subscribe: { allow: ["`+inboxOfNode("a")+`.>", "pgedge.revoke.>", "pgedge.suspend.>", "pgedge.query.>"] } } }
	] }`)
	as := func(user string) string {
		return strings.Replace(s.ClientURL(), "nats://", fmt.Sprintf("nats://%s:%s@", user, user), 1)
	}
	initStreams(t, DialOptions{URL: as("op"), Timeout: patience}, 1)
	d, err := Diagnose(testContext(t), outsideConfig(t, "a", as("a"), 1))
	if err != nil {
		t.Fatal(err)
	}
	missing := map[string]bool{}
	for _, m := range d.Missing {
		subject := m.Subject
		if strings.HasPrefix(subject, nodePrefix) {
			subject = nodePrefix
		}
		missing[m.Action+" "+subject] = true
	}
	if len(missing) != 2 || !missing["publish on "+nodePrefix] || !missing["subscribe to pgedge.kill.>"] {
		t.Errorf("missing are %v", missing)
	}
	if d.Streams != nil || d.Read != nil {
		t.Errorf("got %+v", d)
	}

	_, err = Diagnose(testContext(t), outsideConfig(t, "b", as("a"), 1))
	var right *MissingRightError
	if !errors.As(err, &right) {
		t.Errorf("a node without an inbox: %v", err)
	}
	if _, err = Diagnose(testContext(t), outsideConfig(t, "a", strings.Replace(as("a"), "a:a@", "a:b@", 1), 1)); !errors.Is(err, nats.ErrAuthorization) {
		t.Errorf("a wrong password: %v", err)
	}
}

func TestADiagnosisOfAnEmbeddedServerKnowsWhetherItRuns(t *testing.T) {
	cfg := testConfig(t, "a")
	if _, err := Diagnose(testContext(t), cfg); !errors.Is(err, ErrNotStarted) {
		t.Errorf("before the first start: %v", err)
	}
	n := startNode(t, cfg, newFakeEngine())
	if d, err := Diagnose(testContext(t), cfg); err != nil || d.Streams != nil || len(d.Missing) > 0 {
		t.Errorf("while it runs: %+v, %v", d, err)
	}
	crash(n)
	if _, err := Diagnose(testContext(t), cfg); !errors.Is(err, ErrNotStarted) {
		t.Errorf("after a crash: %v", err)
	}
}

func TestAStateDirectoryThatOthersCanWriteOrReadIsReported(t *testing.T) {
	cfg := testConfig(t, "a")
	if r := InspectStateDir(cfg.StateDir); r.Exists || len(r.Problems) > 0 {
		t.Errorf("before the first start: %+v", r)
	}
	startNode(t, cfg, newFakeEngine())
	if r := InspectStateDir(cfg.StateDir); !r.Held || r.Holder != os.Getpid() || len(r.Problems) > 0 {
		t.Errorf("while it runs: %+v", r)
	}
	for _, path := range []string{cfg.StateDir, filepath.Join(cfg.StateDir, natsURLFile)} {
		if err := os.Chmod(path, 0o777); err != nil {
			t.Fatal(err)
		}
	}
	if r := InspectStateDir(cfg.StateDir); len(r.Problems) != 2 {
		t.Errorf("got %q", r.Problems)
	}
}
