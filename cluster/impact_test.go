package cluster

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"pgedge/revoke"
)

func TestImpactAsksEveryNodePublishesNothingAndNamesWhoDidNotAnswer(t *testing.T) {
	cfg, engA, engB := testConfig(t, "a"), newFakeEngine(), newFakeEngine()
	engA.sessions, engB.sessions = fakeSessions("a", 4900), fakeSessions("b", 7)
	a := startNode(t, cfg, engA)
	startSecond(t, a, "b", engB)
	c := dial(t, DialOptions{StateDir: cfg.StateDir, QueryTimeout: patience})
	facts := func() uint64 {
		stream, err := a.js.Stream(testContext(t), journalStream)
		if err != nil {
			t.Fatal(err)
		}
		var n uint64
		for _, verb := range []string{"revoke", "kill", "suspend", "reinstate"} {
			info, err := stream.Info(testContext(t), jetstream.WithSubjectFilter("pgedge."+verb+".>"))
			if err != nil {
				t.Fatal(err)
			}
			n += uint64(len(info.State.Subjects))
		}
		return n
	}
	got, missing, err := c.Impact(testContext(t), []revoke.Scope{scopeOf("user1@corp.com"), {Kind: revoke.ScopeSession, Name: "b-0"}})
	if err != nil || len(missing) > 0 || len(got) != 700+2 {
		t.Errorf("%d sessions, missing %v, error %v", len(got), missing, err)
	}
	if facts() != 0 || len(engA.matching(func(revoke.Order) bool { return true })) > 0 {
		t.Error("the question has changed something")
	}

	announceSilent(t, a, "z", nil)
	_, missing, err = dial(t, DialOptions{StateDir: cfg.StateDir}).Impact(testContext(t), []revoke.Scope{scopeOf("user1@corp.com")})
	if err != nil || len(missing) != 1 || missing[0] != "z" {
		t.Errorf("missing %v, error %v", missing, err)
	}
}

func TestAQuestionThatCannotBeReadIsRefused(t *testing.T) {
	for _, data := range []string{"", "{}", `{"scopes":["planet.mars"]}`, `{"scopes":[]}`, `{"scopes":["` + strings.Repeat("x", maxImpactBytes) + `"]}`} {
		if scopes, err := decodeImpact([]byte(data)); err == nil {
			t.Errorf("%.40q: %v", data, scopes)
		}
	}
	cfg := testConfig(t, "a")
	startNode(t, cfg, newFakeEngine())
	c := dial(t, DialOptions{StateDir: cfg.StateDir})
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	if _, _, err := c.Impact(ctx, nil); err == nil || !strings.Contains(err.Error(), "0 scopes") {
		t.Errorf("the error is %v", err)
	}
	if _, _, err := c.Impact(ctx, make([]revoke.Scope, MaxImpactScopes+1)); err == nil {
		t.Error("accepted")
	}
}
