package revoke

import (
	"strings"
	"testing"
	"time"
)

var sweepNow = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

func swept(node, boot, state string, heard time.Duration, change ...func(*Presence)) Presence {
	p := Presence{Node: node, Boot: boot, State: state, HeartbeatMS: 1000, LeaseMS: 20_000, OnStale: "freeze", Heard: sweepNow.Add(-heard),
		Upstreams: map[string]UpstreamPresence{"7-1": {Addresses: []string{"10.0.0." + strings.TrimPrefix(node, "n")}}}}
	for _, c := range change {
		c(&p)
	}
	return p
}

func crashedBoot(p *Presence) { p.Crashed = true }

func silentNames(boots []SilentBoot) string {
	var names []string
	for _, b := range boots {
		names = append(names, b.Node+"/"+b.Boot)
	}
	return strings.Join(names, " ")
}

func TestTheLowestLiveNodeThatReachesTheServerIsResponsible(t *testing.T) {
	elsewhere := func(p *Presence) { p.Upstreams = map[string]UpstreamPresence{"9-1": {}} }
	sweeping := func(p *Presence) { p.Upstreams = map[string]UpstreamPresence{"7-1": {Sweep: true}} }
	for _, c := range []struct {
		name    string
		members []Presence
		who     string // responsible; of n1 to n4
		sweep   string // with sweep
	}{
		{"all live", []Presence{swept("n2", "b", StateServing, 0), swept("n1", "b", StateServing, 0)}, "n1", ""},
		{"the lowest is silent", []Presence{swept("n1", "b", StateServing, 4*time.Second), swept("n2", "b", StateServing, 0), swept("n3", "b", StateServing, 0)}, "n2", ""},
		{"the lowest is not quite silent", []Presence{swept("n1", "b", StateServing, 3*time.Second), swept("n2", "b", StateServing, 0)}, "n1", ""},
		{"the lowest starts", []Presence{swept("n1", "b", StateStarting, 0), swept("n2", "b", StateServing, 0)}, "n2", ""},
		{"the lowest drains", []Presence{swept("n1", "b", StateDraining, 0), swept("n2", "b", StateServing, 0)}, "n1", ""},
		{"the lowest has left", []Presence{swept("n1", "b", StateLeft, 0), swept("n2", "b", StateServing, 0)}, "n2", ""},
		{"the lowest is elsewhere", []Presence{swept("n1", "b", StateServing, 0, elsewhere), swept("n2", "b", StateServing, 0)}, "n2", ""},
		{"only one may sweep", []Presence{swept("n1", "b", StateServing, 0), swept("n2", "b", StateServing, 0, sweeping)}, "n1", "n2"},
	} {
		for _, self := range c.members {
			f := NewFleet(c.members, self.Node, self.Boot)
			if self.Heard.Equal(sweepNow) { // the others cannot know how they stand
				if got := f.Responsible("7-1", false); got != (self.Node == c.who) {
					t.Errorf("%s: %s thinks %v", c.name, self.Node, got)
				}
				if got := f.Responsible("7-1", true); got != (self.Node == c.sweep) {
					t.Errorf("%s: %s thinks %v of the sweep", c.name, self.Node, got)
				}
			}
		}
	}
}

func TestOfTwoBootsOfANodeTheYoungerIsResponsible(t *testing.T) {
	members := []Presence{swept("n1", "b1", StateServing, time.Second), swept("n1", "b2", StateServing, 0)}
	if NewFleet(members, "n1", "b1").Responsible("7-1", false) || !NewFleet(members, "n1", "b2").Responsible("7-1", false) {
		t.Error("the older boot is responsible")
	}
}

// While the stream has no leader no heartbeat comes back to anybody: that must not make everybody silent.
func TestNobodyIsSilentWhileTheOwnHeartbeatDoesNotComeBackEither(t *testing.T) {
	members := []Presence{swept("n1", "b", StateServing, 12*time.Second), swept("n2", "b", StateServing, 13*time.Second), swept("n3", "b", StateServing, 30*time.Second)}
	if got := silentNames(NewFleet(members, "n1", "b").Silent("7-1")); got != "n3/b" {
		t.Errorf("silent: %s", got)
	}
	if NewFleet(members, "n1", "b").Current(sweepNow) {
		t.Error("a node whose heartbeats do not come back takes itself for current")
	}
	if got := silentNames(NewFleet(members[1:], "n1", "b").Silent("7-1")); got != "" {
		t.Errorf("silent before the first own heartbeat: %s", got)
	}
}

func TestCrashedAndSilentBootsAreActedForAndThoseThatSaidGoodbyeAreNot(t *testing.T) {
	restarted := func(p *Presence) { p.Upstreams["7-2"] = p.Upstreams["7-1"]; delete(p.Upstreams, "7-1") }
	other := func(p *Presence) { p.Upstreams["77-1"] = p.Upstreams["7-1"]; delete(p.Upstreams, "7-1") }
	members := []Presence{
		swept("n1", "b", StateServing, 0),
		swept("n2", "gone", StateServing, 5*time.Hour),
		swept("n3", "left", StateLeft, time.Minute),
		swept("n4", "crashed", StateLeft, time.Minute, crashedBoot),
		swept("n5", "silent", StateServing, 10*time.Second, restarted),
		swept("n6", "elsewhere", StateServing, 10*time.Second, other),
	}
	boots := NewFleet(members, "n1", "b").Silent("7-1")
	if got := silentNames(boots); got != "n2/gone n5/silent n4/crashed" {
		t.Fatalf("silent: %s", got)
	}
	if b := boots[2]; !b.Before.Equal(sweepNow.Add(-time.Minute)) || b.Until != 0 || boots[1].Before != (time.Time{}) {
		t.Errorf("boots: %+v", boots)
	}
}

func TestASilentBootIsActedForUntilItIsFencedAndOnceAfter(t *testing.T) {
	serve := func(p *Presence) { p.OnStale = "serve" }
	for _, c := range []struct {
		name  string
		boot  Presence
		until time.Duration
	}{
		{"freeze", swept("n2", "b", StateServing, 10*time.Second), 20*time.Second + 200*time.Millisecond},
		{"crashed", swept("n2", "b", StateLeft, 10*time.Second, crashedBoot), 0},
		{"serve", swept("n2", "b", StateServing, 10*time.Second, serve), 200 * time.Second},
	} {
		boots := NewFleet([]Presence{swept("n1", "b", StateServing, 0), c.boot}, "n1", "b").Silent("7-1")
		f := Follow{Received: sweepNow}
		last := time.Duration(0)
		passes := 0
		for at := time.Duration(0); ; at += 100 * time.Millisecond {
			due := f.Due("7-1", boots)
			if len(due) == 0 {
				break
			}
			last = at
			passes++
			f.Done("7-1", due, sweepNow.Add(at))
			if len(f.Due("7-2", boots)) != 1 {
				t.Fatalf("%s: another server was thought to be done", c.name)
			}
			if passes > 10_000 {
				t.Fatalf("%s: no end", c.name)
			}
		}
		if last <= c.until || last > c.until+200*time.Millisecond {
			t.Errorf("%s: the last pass began %s after the fact, fenced after %s", c.name, last, c.until)
		}
	}
}

func TestClassify(t *testing.T) {
	silent := SilentBoot{Node: "n2", Boot: "b", Addresses: []string{"10.0.0.2"}}
	crashed := SilentBoot{Node: "n3", Boot: "c", Addresses: []string{"10.0.0.3"}, Before: sweepNow}
	claims := []Claim{{Server: "7-1", PID: 11, Port: 1111}, {Port: 2222}, {Server: "8-1", PID: 44}}
	for _, c := range []struct {
		name string
		b    Backend
		kill bool
		kind BackendKind
		boot int
	}{
		{"claimed by pid", Backend{PID: 11, Port: 9, Address: "10.0.0.2"}, false, BackendClaimed, 0},
		{"another pid on a claimed port", Backend{PID: 12, Port: 1111, Address: "10.0.0.9"}, false, BackendDirect, 0},
		{"claimed by port while it logs in", Backend{PID: 13, Port: 2222, Address: "10.0.0.2"}, false, BackendClaimed, 0},
		{"claimed on another server", Backend{PID: 44, Address: "10.0.0.9"}, false, BackendDirect, 0},
		{"of the silent boot", Backend{PID: 1, Address: "10.0.0.2"}, false, BackendLeftOver, 0},
		{"of the crashed boot", Backend{PID: 1, Address: "10.0.0.3", Began: sweepNow.Add(-1)}, false, BackendLeftOver, 1},
		{"from its host, after the crash", Backend{PID: 1, Address: "10.0.0.3", Began: sweepNow}, false, BackendDirect, 0},
		{"from elsewhere", Backend{PID: 1, Address: "10.0.0.9"}, false, BackendDirect, 0},
		{"of a node that does not answer", Backend{PID: 1, Address: "10.0.0.4"}, false, BackendDoubtful, 0},
		{"begun after a kill", Backend{PID: 1, Address: "10.0.0.2", Began: sweepNow}, true, BackendYounger, 0},
		{"begun before a kill", Backend{PID: 1, Address: "10.0.0.2", Began: sweepNow.Add(-1)}, true, BackendLeftOver, 0},
	} {
		task := SweepTask{Silent: []SilentBoot{silent, crashed}}
		if c.kill {
			task.Before = sweepNow
		}
		if kind, boot := task.Classify(c.b, "7-1", claims, []string{"10.0.0.4"}); kind != c.kind || boot != c.boot {
			t.Errorf("%s: kind %d boot %d", c.name, kind, boot)
		}
	}
}

func TestAMarkLeavesTheCommentAsItWas(t *testing.T) {
	mark := LoginMark{Verb: "suspend", Scope: "principal.a%5D", Revocation: "HR-1", Seq: 7, Until: sweepNow}
	for _, comment := range []string{"", "payroll", "ends with a space ", "[x]", LoginMarkBegin + "broken"} {
		with := mark.AppendTo(comment)
		rest, got, ok := SplitLoginMark(with)
		if !ok || rest != comment || got != mark {
			t.Errorf("%q became %q, and then %q, %+v, %v", comment, with, rest, got, ok)
		}
		if rest, _, ok := SplitLoginMark(with + " by hand"); !ok || rest != comment+" by hand" {
			t.Errorf("%q with an addition became %q", comment, rest)
		}
	}
	for _, comment := range []string{"", "payroll", LoginMarkBegin, LoginMarkBegin + "{}", LoginMarkBegin + "5]"} {
		if rest, _, ok := SplitLoginMark(comment); ok || rest != comment {
			t.Errorf("%q was taken for a mark", comment)
		}
	}
}

func TestLoginComesBackOnlyWhenTheMarksFactIsUndone(t *testing.T) {
	principal, role := Scope{ScopePrincipal, "alice"}, Scope{ScopeRole, "alice"}
	revoked := Fact{Verb: VerbRevoke, Scope: principal, ID: "HR-1", Seq: 7}
	suspended := Fact{Verb: VerbSuspend, Scope: principal, Seq: 7, Until: sweepNow.Add(time.Hour)}
	reinstated := func(s Scope, seq, upto uint64) Fact {
		return Fact{Verb: VerbReinstate, Scope: s, Seq: seq, Upto: upto}
	}
	for _, c := range []struct {
		name  string
		mark  Fact
		facts []Fact
		after time.Duration
		want  bool
	}{
		{"in force", revoked, []Fact{revoked}, 0, false},
		{"reinstated", revoked, []Fact{revoked, reinstated(principal, 8, 7)}, 0, true},
		{"revoked again", revoked, []Fact{revoked, reinstated(principal, 8, 7), {Verb: VerbRevoke, Scope: principal, Seq: 9}}, 0, false},
		{"still revoked as a role", revoked, []Fact{revoked, reinstated(principal, 8, 7), {Verb: VerbRevoke, Scope: role, Seq: 6}}, 0, false},
		{"another scope reinstated", revoked, []Fact{reinstated(role, 8, 7)}, 0, false},
		{"an empty journal", revoked, nil, 0, false},
		{"a journal restored from before the revoke", revoked, []Fact{reinstated(principal, 6, 5)}, 0, false},
		{"suspended", suspended, []Fact{suspended}, 0, false},
		{"the suspend has ended", suspended, []Fact{suspended}, time.Hour, true},
		{"revoked beside the suspend", suspended, []Fact{suspended, {Verb: VerbRevoke, Scope: principal, Seq: 6}}, time.Hour, false},
	} {
		table := NewTable()
		for _, f := range c.facts {
			table.Merge(f)
		}
		if got := table.MayLoginAgain("alice", *NewLoginMark(c.mark), sweepNow.Add(c.after)); got != c.want {
			t.Errorf("%s: %v", c.name, got)
		}
	}
}

func TestResidueOfSeveralServersAndPasses(t *testing.T) {
	n := func(i int) *int { return &i }
	yes, no := true, false
	var first Residue
	first.Update(Residue{DirectSessions: n(1), RoleCanLogin: &no, StoppedFor: []StoppedFor{{"n2", "b", 1, 1}}, Why: "x"})
	first.Update(Residue{StoppedFor: []StoppedFor{{"n2", "b", 1, 0}}})
	first.Update(Residue{DirectSessions: n(0), PreparedXacts: n(2)})
	var sum Residue
	sum.Add(first)
	sum.Add(Residue{DirectSessions: n(3), RoleCanLogin: &yes, StoppedFor: []StoppedFor{{"n2", "b", 1, 0}, {"n3", "b", 1, 0}}})
	if *sum.DirectSessions != 3 || *sum.PreparedXacts != 2 || sum.ReplicationSlots != nil || !*sum.RoleCanLogin || sum.Why != "" {
		t.Errorf("sum: %+v", sum)
	}
	if len(sum.StoppedFor) != 2 || sum.StoppedFor[0] != (StoppedFor{"n2", "b", 3, 0}) || len(first.StoppedFor) != 1 || first.StoppedFor[0].Backends != 2 {
		t.Errorf("stopped: %+v of %+v", sum.StoppedFor, first.StoppedFor)
	}
	if (&Residue{}).Empty() != true || sum.Empty() {
		t.Error("emptiness")
	}
}
