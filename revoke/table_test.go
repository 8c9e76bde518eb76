package revoke

import (
	"fmt"
	"reflect"
	"slices"
	"sync"
	"testing"
	"time"

	"pgregory.net/rapid"
)

var (
	t0    = time.Date(2030, 1, 1, 12, 0, 0, 0, time.UTC)
	alice = Scope{ScopePrincipal, "alice"}
	asID  = NewIdentity("alice", "app", "db", "n-1")
)

func fact(v Verb, s Scope, seq uint64) Fact {
	f := Fact{Verb: v, Scope: s, Seq: seq, Epoch: 1, ID: fmt.Sprintf("seq-%d", seq)}
	switch v {
	case VerbSuspend:
		f.Until = t0.Add(time.Hour)
	case VerbReinstate:
		f.Upto = seq - 1
	case VerbKill, VerbRevoke, VerbInvalid:
	}
	return f
}

func denied(t *testing.T, tab *Table, authSeq uint64, now time.Time, want Verb) {
	t.Helper()
	d, ok := tab.Check(asID, Position{1, authSeq}, now)
	if ok != (want != VerbInvalid) || d.Fact.Verb != want {
		t.Fatalf("authSeq %d at %s: denied %v by %s, want %s", authSeq, now.Format(time.TimeOnly), ok, d.Fact.Verb, want)
	}
}

func TestARevokeBlocksUntilAReinstateThatHasSeenIt(t *testing.T) {
	tab := NewTable()
	tab.Merge(fact(VerbRevoke, alice, 5))
	denied(t, tab, 5, t0, VerbRevoke)
	tab.Merge(fact(VerbRevoke, alice, 8))
	stale := fact(VerbReinstate, alice, 9)
	stale.Upto = 5
	tab.Merge(stale)
	denied(t, tab, 9, t0, VerbRevoke)
	tab.Merge(fact(VerbReinstate, alice, 10))
	denied(t, tab, 10, t0, VerbInvalid)
	denied(t, tab, 7, t0, VerbRevoke) // a session from before stays dead
	if got := tab.Newest(alice); got != 8 {
		t.Fatalf("newest %d", got)
	}
}

func TestAKillEndsWhatBeganBeforeItAndBlocksNothing(t *testing.T) {
	tab := NewTable()
	tab.Merge(fact(VerbKill, Scope{Kind: ScopeAll}, 5))
	denied(t, tab, 4, t0, VerbKill)
	denied(t, tab, 5, t0, VerbInvalid)
	if tab.Newest(Scope{Kind: ScopeAll}) != 0 || len(tab.Blocks(t0)) != 0 {
		t.Fatal("a kill counts as a block")
	}
}

func TestASuspendEndsAtItsInstant(t *testing.T) {
	tab := NewTable()
	tab.Merge(fact(VerbSuspend, alice, 5))
	denied(t, tab, 5, t0.Add(time.Hour-1), VerbSuspend)
	denied(t, tab, 5, t0.Add(time.Hour), VerbInvalid)
	denied(t, tab, 4, t0.Add(time.Hour), VerbSuspend)
	if len(tab.Blocks(t0)) != 1 || len(tab.Blocks(t0.Add(time.Hour))) != 0 {
		t.Fatal("blocks do not follow the clock")
	}
}

// A reinstate with a huge upto would undo every revoke still to come.
func TestAReinstateCannotUndoTheFuture(t *testing.T) {
	tab := NewTable()
	f := fact(VerbReinstate, alice, 3)
	f.Upto = 1 << 60
	tab.Merge(f)
	tab.Merge(fact(VerbRevoke, alice, 4))
	denied(t, tab, 4, t0, VerbRevoke)
}

func TestEveryScopeOfASessionIsChecked(t *testing.T) {
	for _, s := range []Scope{{Kind: ScopeAll}, alice, {ScopeRole, "app"}, {ScopeDatabase, "db"}, {ScopeSession, "n-1"}} {
		tab := NewTable()
		tab.Merge(fact(VerbRevoke, s, 1))
		denied(t, tab, 1, t0, VerbRevoke)
		if _, ok := tab.Check(NewIdentity("bob", "x", "y", "n-2"), Position{1, 1}, t0); ok != (s.Kind == ScopeAll) {
			t.Errorf("%s denies somebody else: %v", s, ok)
		}
	}
}

func TestABlockIsNamedBeforeAKill(t *testing.T) {
	tab := NewTable()
	tab.Merge(fact(VerbRevoke, alice, 3))
	tab.Merge(fact(VerbKill, alice, 9))
	denied(t, tab, 0, t0, VerbRevoke)
}

func TestAProvisionalFactDeniesUntilItIsDropped(t *testing.T) {
	tab := NewTable()
	f := fact(VerbRevoke, alice, 0)
	tab.AddProvisional("a", f, time.Time{})
	tab.AddProvisional("b", f, time.Time{})
	tab.AddProvisional("b", f, time.Time{})
	if d, ok := tab.Check(asID, Position{1, 99}, t0.Add(1000*time.Hour)); !ok || !d.Provisional {
		t.Fatal("time dropped a provisional revoke")
	}
	if b := tab.Blocks(t0); len(b) != 2 || !b[0].Provisional {
		t.Fatalf("%+v", b)
	}
	tab.DropProvisional("a")
	tab.DropProvisional("a")
	denied(t, tab, 99, t0, VerbRevoke)
	tab.DropProvisional("b")
	denied(t, tab, 99, t0, VerbInvalid)

	tab.AddProvisional("k", fact(VerbKill, alice, 0), t0.Add(time.Second))
	denied(t, tab, 99, t0.Add(time.Second-1), VerbKill)
	denied(t, tab, 99, t0.Add(time.Second), VerbInvalid)
}

func TestLastSeqKnowsEverySpellingAndRefusedMessages(t *testing.T) {
	tab := NewTable()
	other := fact(VerbRevoke, alice, 4)
	other.Alias = "pgedge.revoke.principal.%61lice"
	plain := fact(VerbRevoke, alice, 7)
	want := func(subject string, seq uint64) {
		t.Helper()
		if got := tab.LastSeq(subject); got != seq {
			t.Fatalf("last seq of %s is %d, want %d", subject, got, seq)
		}
	}
	tab.Merge(other)
	want(aliceRevoke, 0)
	want(other.Alias, 4)
	tab.Merge(plain)
	want(aliceRevoke, 7)
	want(other.Alias, 4)
	other.Seq = 9
	tab.Merge(other)
	want(aliceRevoke, 7)
	want(other.Alias, 9)
	plain.Seq = 8
	if tab.Merge(plain) {
		t.Fatal("an older seq changed the table")
	}
	want(aliceRevoke, 8)

	sub := "pgedge.suspend.principal.alice"
	tab.noteRefused(sub, 11)
	want(sub, 11)
	tab.Merge(fact(VerbSuspend, alice, 10))
	want(sub, 11)
	tab.Merge(fact(VerbSuspend, alice, 12))
	want(sub, 12)
	if len(tab.state.odd) != 1 {
		t.Fatalf("leftovers: %v", tab.state.odd)
	}
	want("pgedge.node.a.b", 0)
}

func drawFacts(t *rapid.T) []Fact {
	n := rapid.IntRange(1, 25).Draw(t, "facts")
	var facts []Fact
	for i := range n {
		f := fact(rapid.SampledFrom([]Verb{VerbKill, VerbRevoke, VerbSuspend, VerbReinstate}).Draw(t, "verb"),
			rapid.SampledFrom([]Scope{alice, {ScopeRole, "app"}, {Kind: ScopeAll}}).Draw(t, "scope"), uint64(i+2))
		switch {
		case f.Verb == VerbReinstate:
			f.Upto = rapid.Uint64Range(1, uint64(n+5)).Draw(t, "upto")
		case f.Verb == VerbSuspend:
			f.Until = t0.Add(time.Duration(rapid.IntRange(-3, 3).Draw(t, "until")) * time.Hour)
		}
		if f.Scope == alice && rapid.IntRange(0, 3).Draw(t, "alias") == 0 {
			f.Alias = "pgedge." + f.Verb.String() + ".principal.%61lice"
		}
		facts = append(facts, f)
	}
	return facts
}

// view is everything a table decides.
func view(tab *Table) any {
	type answer struct {
		Denial Denial
		OK     bool
	}
	var out []answer
	for authSeq := range uint64(30) {
		for h := -4; h <= 4; h++ {
			d, ok := tab.Check(asID, Position{1, authSeq}, t0.Add(time.Duration(h)*time.Hour))
			out = append(out, answer{d, ok})
		}
	}
	return []any{out, tab.Hash(), tab.Blocks(t0), tab.Newest(alice), tab.Applied(), tab.LastSeq(aliceRevoke), tab.LastSeq("pgedge.revoke.principal.%61lice")}
}

func TestMergingInAnyOrderWithDuplicatesGivesTheSameTable(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		facts := drawFacts(t)
		a, b := NewTable(), NewTable()
		for _, f := range facts {
			a.Merge(f)
		}
		shuffled := slices.Concat(facts, rapid.SliceOfN(rapid.SampledFrom(facts), 0, 10).Draw(t, "again"))
		for _, f := range rapid.Permutation(shuffled).Draw(t, "order") {
			b.Merge(f)
		}
		if !reflect.DeepEqual(view(a), view(b)) {
			t.Fatalf("%+v\n%+v", view(a), view(b))
		}
	})
}

func TestACompactedJournalGivesTheSameTable(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		facts := drawFacts(t)
		live, replayed := NewTable(), NewTable()
		last := map[string]Fact{}
		for _, f := range facts {
			live.Merge(f)
			last[f.Subject()] = f
		}
		for _, f := range last {
			replayed.Merge(f)
		}
		if !reflect.DeepEqual(view(live), view(replayed)) {
			t.Fatalf("%+v\n%+v", view(live), view(replayed))
		}
	})
}

func TestMergingNeverWidensAccess(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		tab := NewTable()
		for _, f := range drawFacts(t) {
			var before [30]bool
			for i := range before {
				_, before[i] = tab.Check(asID, Position{1, uint64(i)}, t0)
			}
			tab.Merge(f)
			for i := range before {
				if _, now := tab.Check(asID, Position{1, uint64(i)}, t0); before[i] && !now && f.Verb != VerbReinstate && f.Verb != VerbSuspend {
					t.Fatalf("%s at %d lets authSeq %d in", f.Verb, f.Seq, i)
				}
			}
		}
	})
}

func TestDifferentTablesHaveDifferentHashes(t *testing.T) {
	seen := map[string]string{}
	add := func(what string, facts ...Fact) {
		tab := NewTable()
		for _, f := range facts {
			tab.Merge(f)
		}
		if other, ok := seen[tab.Hash()]; ok {
			t.Errorf("%s hashes like %s", what, other)
		}
		seen[tab.Hash()] = what
	}
	until, upto := fact(VerbSuspend, alice, 5), fact(VerbReinstate, alice, 5)
	until.Until = until.Until.Add(time.Second)
	upto.Upto--
	add("nothing")
	add("revoke", fact(VerbRevoke, alice, 5))
	add("later revoke", fact(VerbRevoke, alice, 6))
	add("kill", fact(VerbKill, alice, 5))
	add("other", fact(VerbRevoke, Scope{ScopePrincipal, "bob"}, 5))
	add("role", fact(VerbRevoke, Scope{ScopeRole, "alice"}, 5))
	add("suspend", fact(VerbSuspend, alice, 5))
	add("longer suspend", until)
	add("reinstate", fact(VerbReinstate, alice, 5))
	add("reinstate of less", upto)
	add("two", fact(VerbRevoke, alice, 5), fact(VerbKill, alice, 6))
}

func TestCheckRunsBesideMerge(t *testing.T) {
	tab := NewTable()
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for range 500 {
				seq := tab.Applied()
				if _, ok := tab.Check(asID, Position{1, seq}, t0); !ok && seq > 0 {
					t.Error("the position was published before the fact")
					return
				}
			}
		})
	}
	for i := range uint64(500) {
		tab.Merge(fact(VerbRevoke, alice, i+1))
		tab.AddProvisional("k", fact(VerbKill, alice, 0), t0)
		tab.DropProvisional("k")
	}
	wg.Wait()
}
