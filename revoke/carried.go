package revoke

import (
	"slices"
	"strings"
	"time"
)

// carry keeps a block of a journal that is gone. Of one scope the table carries one revoke and one suspend, the one that
// lasts longest: the others say nothing more.
func (t *Table) carry(f Fact) {
	have := t.carried[f.Scope]
	for i, g := range have {
		if g.Verb != f.Verb {
			continue
		}
		if f.Verb == VerbRevoke || f.Until.After(g.Until) {
			have[i] = f
		}
		return
	}
	t.carried[f.Scope] = append(have, f)
}

// carriedBlocks lists the blocks of journals that are gone, in an order of their own.
func (t *Table) carriedBlocks() []Fact {
	t.mu.RLock()
	defer t.mu.RUnlock()
	var out []Fact
	for _, facts := range t.carried {
		out = append(out, facts...)
	}
	slices.SortFunc(out, func(a, b Fact) int { return strings.Compare(a.Subject(), b.Subject()) })
	return out
}

// carries says whether the block with a rescue's id is still carried.
func (t *Table) carries(s Scope, id string) bool {
	t.mu.RLock()
	defer t.mu.RUnlock()
	return slices.ContainsFunc(t.carried[s], func(f Fact) bool { return rescueMsgID(f) == id })
}

// dropCarried gives up the block with a rescue's id, as the journal has it as f. Anybody who may store facts can give a
// message that id: one that denies less than the block does not take its place.
func (t *Table) dropCarried(f Fact, id string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	left := slices.DeleteFunc(t.carried[f.Scope], func(g Fact) bool {
		return rescueMsgID(g) == id && g.Verb == f.Verb && !f.Until.Before(g.Until)
	})
	if len(left) == 0 {
		delete(t.carried, f.Scope)
		return
	}
	t.carried[f.Scope] = left
}

// deniesCarried is the carried block of a scope that denies most.
func (t *Table) deniesCarried(s Scope, now time.Time) *Fact {
	var found *Fact
	for i := range t.carried[s] {
		f := &t.carried[s][i]
		if f.Verb == VerbRevoke || found == nil && now.Before(f.Until) {
			found = f
		}
	}
	return found
}
