package revoke

import (
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// Denial says why a login is refused or a session is dead.
type Denial struct {
	Fact        Fact
	Provisional bool
}

// Block is one revoke or suspend that is in force.
type Block struct {
	Scope       Scope
	Fact        Fact
	Seq         uint64 // 0 while provisional
	Provisional bool
	// Carried is set when the journal that held the fact is gone and the block stays until a reinstate.
	Carried bool
}

// Table is what is revoked, as a merge of maxima: for every scope and verb it keeps the fact with the greatest
// seq, which is what the journal keeps too. Check may be called on any goroutine; everything that changes the
// table is called by one goroutine at a time.
type Table struct {
	applied atomic.Uint64

	mu    sync.RWMutex
	epoch uint64
	state tableState
	// Provisional facts are kept by scope for Check and by key for dropping.
	provisional map[Scope][]heldFact
	heldScope   map[string]Scope
	// carried are the blocks of journals that no longer exist.
	carried map[Scope][]Fact
}

// heldFact is a fact that refuses logins before it has a seq. A zero until means until it is dropped.
type heldFact struct {
	key   string
	fact  Fact
	until time.Time
}

// NewTable returns an empty table.
func NewTable() *Table {
	return &Table{
		state:       newTableState(),
		provisional: make(map[Scope][]heldFact),
		heldScope:   make(map[string]Scope),
		carried:     make(map[Scope][]Fact),
	}
}

// Merge applies a fact that has a seq and reports whether the table changed. The order of merging and repetitions
// do not matter.
func (t *Table) Merge(f Fact) (changed bool) {
	if f.Seq == 0 || f.Verb == VerbInvalid || f.Verb > VerbReinstate {
		return false
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	changed = t.state.merge(f)
	if changed && f.Verb == VerbReinstate {
		delete(t.carried, f.Scope)
	}
	// Applied moves after the fact is in the table, so that whoever reads it as authSeq also meets the fact.
	t.advance(f.Seq)
	return changed
}

// Applied is the greatest seq applied, of facts and of other messages.
func (t *Table) Applied() uint64 { return t.applied.Load() }

// Position is where the node is in its journals: what a login begins with.
func (t *Table) Position() Position {
	t.mu.RLock()
	defer t.mu.RUnlock()
	return Position{t.epoch, t.applied.Load()}
}

// Advance says that everything up to seq has been applied.
func (t *Table) Advance(seq uint64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.advance(seq)
}

func (t *Table) advance(seq uint64) {
	if seq > t.applied.Load() {
		t.applied.Store(seq)
	}
}

// Check says whether a session may live: a login that began when authSeq was the table's Position is denied when one of
// its scopes is blocked, when a cut came after authSeq, or while a provisional fact matches. Of several reasons a block
// wins over a cut, since only a kill lets the user come back, and then the newest.
func (t *Table) Check(id Identity, authSeq Position, now time.Time) (Denial, bool) {
	scopes := [...]Scope{
		{ScopeAll, ""}, {ScopePrincipal, id.Principal}, {ScopeRole, id.Role}, {ScopeDatabase, id.Database}, {ScopeSession, id.Session},
	}
	var best *Fact
	rank, provisional := 0, false
	offer := func(r int, f *Fact, prov bool) {
		if r > rank || r == rank && f.Seq > best.Seq {
			rank, best, provisional = r, f, prov
		}
	}
	t.mu.RLock()
	defer t.mu.RUnlock()
	for _, s := range scopes {
		if r := t.state.rows[s]; r != nil {
			if f := r.block(now); f != nil {
				offer(4, f, false)
			}
			if f := r.cut(); f != nil && authSeq.Before(f.Position()) {
				offer(2, f, false)
			}
		}
		if len(t.carried) > 0 {
			if f := t.deniesCarried(s, now); f != nil {
				offer(4, f, false)
			}
		}
		if len(t.provisional) > 0 {
			for i := range t.provisional[s] {
				h := &t.provisional[s][i]
				if !h.until.IsZero() && !now.Before(h.until) {
					continue
				}
				if h.fact.Verb == VerbKill {
					offer(1, &h.fact, true)
				} else {
					offer(3, &h.fact, true)
				}
			}
		}
	}
	if best == nil {
		return Denial{}, false
	}
	return Denial{Fact: *best, Provisional: provisional}, true
}

// AddProvisional refuses logins that match a fact without a seq, until holdUntil or, when that is zero, until
// DropProvisional is called with the same key.
func (t *Table) AddProvisional(key string, f Fact, holdUntil time.Time) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.dropProvisional(key)
	t.heldScope[key] = f.Scope
	t.provisional[f.Scope] = append(t.provisional[f.Scope], heldFact{key, f, holdUntil})
}

// DropProvisional ends what AddProvisional began. An unknown key does nothing.
func (t *Table) DropProvisional(key string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.dropProvisional(key)
}

func (t *Table) dropProvisional(key string) {
	s, ok := t.heldScope[key]
	if !ok {
		return
	}
	delete(t.heldScope, key)
	left := slices.DeleteFunc(t.provisional[s], func(h heldFact) bool { return h.key == key })
	if len(left) == 0 {
		delete(t.provisional, s)
		return
	}
	t.provisional[s] = left
}

// Blocks lists the revokes and suspends in force, oldest first, provisional ones last.
func (t *Table) Blocks(now time.Time) []Block {
	t.mu.RLock()
	defer t.mu.RUnlock()
	var out []Block
	for s, r := range t.state.rows {
		for _, f := range [...]*Fact{r.revokeInForce(), r.suspendInForce(now)} {
			if f != nil {
				out = append(out, Block{Scope: s, Fact: *f, Seq: f.Seq})
			}
		}
	}
	for s, facts := range t.carried {
		for _, f := range facts {
			if f.Verb != VerbSuspend || now.Before(f.Until) {
				out = append(out, Block{Scope: s, Fact: f, Seq: f.Seq, Carried: true})
			}
		}
	}
	for s, held := range t.provisional {
		for _, h := range held {
			if h.fact.Verb != VerbKill && (h.until.IsZero() || now.Before(h.until)) {
				out = append(out, Block{Scope: s, Fact: h.fact, Provisional: true})
			}
		}
	}
	slices.SortFunc(out, compareBlocks)
	return out
}

// Newest is the seq of the newest revoke or suspend of a scope, which is the upto of a reinstate that undoes them
// all; 0 when there is none. A carried block, whose seq belongs to another journal, counts as 1: any reinstate
// ends it.
func (t *Table) Newest(s Scope) uint64 {
	t.mu.RLock()
	defer t.mu.RUnlock()
	var seq uint64
	if len(t.carried[s]) > 0 {
		seq = 1
	}
	if r := t.state.rows[s]; r != nil {
		seq = max(seq, r.seq(VerbRevoke), r.seq(VerbSuspend))
	}
	return seq
}

// Last is the seq of the last fact of a verb and scope; 0 when there is none.
func (t *Table) Last(v Verb, s Scope) uint64 {
	f, _ := t.fact(v, s)
	return f.Seq
}

// Hash is the same for tables with the same facts, whatever the order they came in. It covers what decides about
// access (verb, scope, seq, until, upto), not what is only told to people.
func (t *Table) Hash() string {
	t.mu.RLock()
	defer t.mu.RUnlock()
	return t.state.sum.String()
}

func (t *Table) sum() factSum {
	t.mu.RLock()
	defer t.mu.RUnlock()
	return t.state.sum
}

// pure says that the table holds nothing that the journal has lost.
func (t *Table) pure() bool {
	t.mu.RLock()
	defer t.mu.RUnlock()
	return len(t.state.kept) == 0
}

// LastSeq is the seq of the last message applied on exactly this subject, refused ones included; 0 when there is
// none.
func (t *Table) LastSeq(subject string) uint64 {
	t.mu.RLock()
	defer t.mu.RUnlock()
	return t.state.lastSeq(subject)
}

// fact is the fact in the table for a verb and scope.
func (t *Table) fact(v Verb, s Scope) (Fact, bool) {
	t.mu.RLock()
	defer t.mu.RUnlock()
	r := t.state.rows[s]
	if r == nil || r.facts[v] == nil {
		return Fact{}, false
	}
	return *r.facts[v], true
}

// inForce is the revoke or suspend of a scope that no reinstate has undone; a suspend also has to be running.
func (t *Table) inForce(v Verb, s Scope, now time.Time) (Fact, bool) {
	t.mu.RLock()
	defer t.mu.RUnlock()
	r := t.state.rows[s]
	if r == nil {
		return Fact{}, false
	}
	var f *Fact
	switch v {
	case VerbRevoke:
		f = r.revokeInForce()
	case VerbSuspend:
		f = r.suspendInForce(now)
	case VerbInvalid, VerbKill, VerbReinstate:
	}
	if f == nil {
		return Fact{}, false
	}
	return *f, true
}

// notUndone is the last revoke or suspend of a scope, be it over or not, if no reinstate has undone it.
func (t *Table) notUndone(v Verb, s Scope) (Fact, bool) {
	t.mu.RLock()
	defer t.mu.RUnlock()
	r := t.state.rows[s]
	if r == nil || r.facts[v] == nil || r.facts[v].Seq <= r.upto() {
		return Fact{}, false
	}
	return *r.facts[v], true
}

// noteRefused remembers that a refused message is the last one on its subject.
func (t *Table) noteRefused(subject string, seq uint64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.state.noteRefused(subject, seq)
}

// replace puts a freshly loaded state in the place of the present one; provisional facts stay. When the journal
// is another one than before, what is blocked now stays blocked until a reinstate that comes after this moment:
// a reinstate found in the new journal may be a copy of one that the old journal had already outlived. foreign says
// that the two have no message in common. A message that was known keeps its epoch, the others get the one given.
// Facts of the load that the present table holds already are the new journal's; what they displaced is blocked as well.
//
// It returns the facts that have to be carried out again, since sessions may have begun in between: the blocks that are
// in force now and were not before, and with another journal its other cuts as well.
func (t *Table) replace(l *loading, recreated, foreign bool, epoch uint64, now time.Time) (news []Fact) {
	t.mu.Lock()
	defer t.mu.Unlock()
	old, loaded := t.state, l.table
	t.state = loaded.state
	t.epoch = epoch
	for s, r := range t.state.rows {
		was := old.rows[s]
		r.keepEpochs(was, foreign, epoch)
		news = append(news, r.news(was, recreated, epoch, now)...)
	}
	if !recreated {
		for s := range t.carried {
			if was, is := old.rows[s], t.state.rows[s]; is != nil && is.seq(VerbReinstate) > was.seq(VerbReinstate) {
				delete(t.carried, s)
			}
		}
		t.applied.Store(max(t.applied.Load(), loaded.applied.Load()))
		return news
	}
	for _, r := range old.rows {
		for _, f := range [...]*Fact{r.revokeInForce(), r.suspendInForce(now)} {
			if f == nil {
				continue
			}
			if _, own := l.own[verbScope{f.Verb, f.Scope}]; !own && (foreign || !t.state.has(f)) {
				t.carry(*f)
			}
		}
	}
	for _, f := range l.displaced {
		if (f.Verb == VerbRevoke || now.Before(f.Until)) && (foreign || !t.state.has(&f)) {
			t.carry(f)
		}
	}
	t.applied.Store(loaded.applied.Load())
	return news
}

// provisionalKeys lists the keys of provisional facts, for assertions.
func (t *Table) provisionalKeys() []string {
	t.mu.RLock()
	defer t.mu.RUnlock()
	return slices.Sorted(maps.Keys(t.heldScope))
}
