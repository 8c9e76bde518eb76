package engine

import (
	"testing"

	"pgedge/internal/pgtest"
	"pgedge/revoke"
)

// checkRaceSessions compares what clients saw with when orders were carried out.
func checkRaceSessions(t *testing.T, sessions []raceSession, cuts []raceCut, blocks []raceBlock) {
	t.Helper()
	for _, s := range sessions {
		for _, b := range blocks {
			if b.who == s.who && s.began.After(b.from) && (b.to.IsZero() || s.ready.Before(b.to)) {
				t.Errorf("%v was admitted although it was blocked from %v before its login on", s.who, s.began.Sub(b.from))
			}
		}
		for _, c := range cuts {
			if c.fact.Scope.Kind != revoke.ScopeSession && matches(c.fact.Scope, s.who) && s.ready.Before(c.before) && s.lastGood.After(c.done) {
				t.Errorf("%v was answered a query sent %v after %s of %s had been carried out", s.who, s.lastGood.Sub(c.done), c.fact.Verb, c.fact.Scope.Token())
			}
		}
	}
}

func matches(s revoke.Scope, who raceIdentity) bool {
	switch s.Kind {
	case revoke.ScopeAll:
		return true
	case revoke.ScopePrincipal, revoke.ScopeRole:
		return s.Name == who.user
	case revoke.ScopeDatabase:
		return s.Name == who.db
	case revoke.ScopeSession, revoke.ScopeInvalid:
	}
	return false
}

// checkRaceReceipts waits until every revocation has come to the stage verified, and compares receipts with the
// audit trail.
func checkRaceReceipts(n *node, want map[string]bool, sessions []raceSession) {
	t := n.t
	t.Helper()
	stages := make(map[string][]revoke.Receipt)
	pgtest.Wait(t, "all receipts", func() bool {
		clear(stages)
		verified := 0
		n.mu.Lock()
		defer n.mu.Unlock()
		for _, r := range n.receipts {
			stages[r.Revocation] = append(stages[r.Revocation], r)
			if r.Final() {
				verified++
			}
		}
		return verified >= len(want)
	})
	principals := make(map[string]string)
	for _, kind := range []string{"login", "end", "refusal"} {
		for _, ev := range n.audited(kind) {
			principals[ev.Session] = ev.Principal
		}
	}
	receipted := make(map[string]bool)
	matched, unverified := 0, 0
	for id, rs := range stages {
		if !want[id] {
			t.Errorf("a receipt came for %q, which was never ordered", id)
		}
		last := 0
		for _, r := range rs {
			if receiptRank(r) <= last {
				t.Errorf("%s: stage %s came after stage %d", id, r.Stage, last)
			}
			last = receiptRank(r)
		}
		if last != 3 {
			t.Errorf("%s came to stage %d only", id, last)
			continue
		}
		final := rs[len(rs)-1]
		matched += final.Matched
		unverified += final.Unverified
		if final.Matched != len(final.Sessions) {
			t.Errorf("%s matched %d and lists %d sessions", id, final.Matched, len(final.Sessions))
		}
		if !(final.CutUS <= final.ClosedUS && final.ClosedUS <= final.VerifiedUS) {
			t.Errorf("%s: cut %d, closed %d, verified %d us", id, final.CutUS, final.ClosedUS, final.VerifiedUS)
		}
		for _, s := range final.Sessions {
			receipted[s.ID] = true
			if !s.Verified {
				unverified--
				if s.Why == "" {
					t.Errorf("%s: session %s is unverified for no reason", id, s.ID)
				}
			}
			if p, known := principals[s.ID]; !known || p != s.Principal || s.BytesAfter != 0 {
				t.Errorf("%s: session line %+v; the audit trail knows principal %q", id, s, p)
			}
			if s.SQLState != "28000" && s.SQLState != "57P01" {
				t.Errorf("%s: session %s was told %q", id, s.ID, s.SQLState)
			}
		}
	}
	for id := range want {
		if stages[id] == nil {
			t.Errorf("no receipt came for %s", id)
		}
	}
	if unverified != 0 {
		t.Errorf("the counts of unverified sessions differ from the lines by %d", unverified)
	}
	stayed := make(map[string]bool)
	for _, s := range sessions {
		_, reused := stayed[s.address] // ports come again
		stayed[s.address] = s.stayed && !reused
	}
	for _, ev := range n.audited("end") {
		if ev.Revocation != "" && stayed[ev.Client] && !receipted[ev.Session] {
			t.Errorf("session %s ended for %s, and no receipt lists it", ev.Session, ev.Revocation)
		}
	}
	t.Logf("%d receipts with %d sessions", len(stages), matched)
}
