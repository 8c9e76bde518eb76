package engine

import (
	"fmt"
	"net"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"

	"pgedge/revoke"
)

// bookSession is a session without sockets, moved through its kill by hand.
type bookSession struct {
	*session
	concluded bool
	blank     bool // it had ended by itself: no line of evidence
}

// bookOrder is what is known about an order without looking at its bookkeeping.
type bookOrder struct {
	of      revoke.Order
	settled bool
	members map[*bookSession]bool
}

// book drives the index, the sessions' stages and the orders of an engine that was never started, and predicts every
// receipt.
type book struct {
	e        *Engine
	table    *revoke.Table
	seq      uint64
	sessions []*bookSession
	orders   []*bookOrder
	receipts []revoke.Receipt
}

var (
	bookNames  = []string{"ann", "ben", "cid"}
	bookScopes = []revoke.Scope{{Kind: revoke.ScopeAll}, {Kind: revoke.ScopePrincipal, Name: "ann"}, {Kind: revoke.ScopePrincipal, Name: "ben"},
		{Kind: revoke.ScopeRole, Name: "cid"}, {Kind: revoke.ScopeDatabase, Name: "one"}, {Kind: revoke.ScopeDatabase, Name: "two"}}
)

func newBook(t *rapid.T) *book {
	b := &book{table: revoke.NewTable()}
	e, err := New(Config{Node: "n", Boot: "b", Listen: []string{"127.0.0.1:0"}, Table: b.table,
		Databases: map[string]Database{"*": {Upstream: Upstream{Hosts: []HostPort{{"127.0.0.1", 1}}}}},
		OnReceipt: func(r revoke.Receipt) { b.receipts = append(b.receipts, r) }})
	if err != nil {
		t.Fatal(err)
	}
	b.e = e
	return b
}

// login registers a session and looks at the table once more, as a login does.
func (b *book) login(t *rapid.T) {
	conn, peer := net.Pipe()
	conn.Close()
	peer.Close()
	s := b.e.newSession(conn)
	s.id = b.e.newSessionID()
	user := rapid.SampledFrom(bookNames).Draw(t, "user")
	s.identity = revoke.NewIdentity(user, user, rapid.SampledFrom([]string{"one", "two"}).Draw(t, "database"), s.id)
	s.authSeq = b.table.Position()
	b.e.index.add(s)
	bs := &bookSession{session: s}
	b.sessions = append(b.sessions, bs)
	if b.e.checkAccess(s) != nil {
		s.moveLocked(stEnded)
		b.conclude(bs, true)
		return
	}
	s.moveLocked(stEnrolling) // nobody but this test moves it on
}

// order carries out an order and predicts its members.
func (b *book) order(o *bookOrder) {
	f := o.of.Fact
	settled := f.Seq > 0
	o.settled = settled || o.of.SupersededBy > 0
	if o.of.SupersededBy == 0 {
		for _, s := range b.sessions {
			if !s.concluded && bookMatches(f.Scope, s.identity) && (!settled || s.authSeq.Before(f.Position())) {
				o.members[s] = true
			}
		}
	}
	b.e.Cut(o.of)
}

func bookMatches(s revoke.Scope, id revoke.Identity) bool {
	switch s.Kind {
	case revoke.ScopeAll:
		return true
	case revoke.ScopePrincipal:
		return s.Name == id.Principal
	case revoke.ScopeRole:
		return s.Name == id.Role
	case revoke.ScopeDatabase:
		return s.Name == id.Database
	case revoke.ScopeSession:
		return s.Name == id.Session
	case revoke.ScopeInvalid:
	}
	return false
}

// newOrder draws an order: one of the fast path waits for its seq, one of the journal has it.
func (b *book) newOrder(t *rapid.T) {
	scope := rapid.SampledFrom(bookScopes).Draw(t, "scope")
	if len(b.sessions) > 0 && rapid.IntRange(0, 4).Draw(t, "one session") == 0 {
		scope = revoke.Scope{Kind: revoke.ScopeSession, Name: rapid.SampledFrom(b.sessions).Draw(t, "session").id}
	}
	verb := rapid.SampledFrom([]revoke.Verb{revoke.VerbKill, revoke.VerbRevoke}).Draw(t, "verb")
	name := fmt.Sprintf("o%d", len(b.orders))
	o := &bookOrder{members: make(map[*bookSession]bool),
		of: revoke.Order{Key: "key-" + name, Fact: revoke.Fact{Verb: verb, Scope: scope, ID: name}, ReceivedAt: time.Now()}}
	b.orders = append(b.orders, o)
	if rapid.Bool().Draw(t, "fast") {
		o.of.Fast = true
		b.table.AddProvisional(o.of.Key, o.of.Fact, time.Time{})
	} else {
		b.number(o)
	}
	b.order(o)
}

// number gives the order's fact its place in the journal.
func (b *book) number(o *bookOrder) {
	b.seq++
	o.of.Fact.Seq = b.seq
	b.table.Merge(o.of.Fact)
	b.table.DropProvisional(o.of.Key)
}

// settle ends a provisional order: it gets its seq, or a newer fact stands for it.
func (b *book) settle(t *rapid.T) {
	i := slices.IndexFunc(b.orders, func(o *bookOrder) bool { return !o.settled })
	if i < 0 {
		return // nothing to settle: this step of the model does nothing
	}
	o := b.orders[i]
	if rapid.IntRange(0, 3).Draw(t, "superseded") == 0 {
		b.seq++
		o.of.SupersededBy = b.seq
		b.table.Advance(b.seq)
		b.table.DropProvisional(o.of.Key)
	} else {
		b.number(o)
	}
	b.order(o)
}

// undo lets the blocked log in again.
func (b *book) undo(t *rapid.T) {
	scope := rapid.SampledFrom(bookScopes).Draw(t, "scope")
	b.seq++
	b.table.Merge(revoke.Fact{Verb: revoke.VerbReinstate, Scope: scope, Seq: b.seq, Upto: b.seq - 1})
}

// advance moves a session one stage on; one that is not cut ends by itself.
func (b *book) advance(t *rapid.T) {
	alive := slices.DeleteFunc(slices.Clone(b.sessions), func(s *bookSession) bool { return s.concluded })
	if len(alive) == 0 {
		return // nobody to move: this step of the model does nothing
	}
	b.advanceOne(t, rapid.SampledFrom(alive).Draw(t, "session"))
}

func (b *book) advanceOne(t *rapid.T, s *bookSession) {
	switch {
	case !s.cutNow():
		s.mu.Lock()
		s.moveLocked(stEnded)
		s.mu.Unlock()
		b.conclude(s, true)
	case s.stage < prClosed:
		s.mu.Lock()
		s.describeLocked("idle")
		s.mu.Unlock()
		s.advance(s.stage + 1)
	default:
		b.conclude(s, rapid.IntRange(0, 4).Draw(t, "blank") == 0)
	}
}

func (b *book) conclude(s *bookSession, blank bool) {
	s.concluded, s.blank = true, blank
	s.conclude(func(r *revoke.SessionReceipt) {
		if blank {
			*r = revoke.SessionReceipt{}
		}
		r.Verified = !blank
	})
}

// check compares everything that was published and kept with the prediction.
func (b *book) check(t *rapid.T) {
	b.e.orders.publishQueue()
	published := make(map[string][]revoke.Receipt)
	for _, r := range b.receipts {
		published[r.Revocation] = append(published[r.Revocation], r)
	}
	open := 0
	for _, o := range b.orders {
		reached, matched := prVerified, 0
		for s := range o.members {
			reached = min(reached, s.stage)
			if !s.blank {
				matched++
			}
			if !s.cutNow() {
				t.Fatalf("%s: session %s can still pass", o.of.Fact.ID, s.id)
			}
		}
		if !o.settled {
			reached = prNone
		}
		rs := published[o.of.Fact.ID]
		if reached == prNone {
			if len(rs) > 0 {
				t.Fatalf("%s: receipts %v came too early", o.of.Fact.ID, rs)
			}
			open++
			continue
		}
		for i, r := range rs {
			if i > 0 && receiptRank(rs[i-1]) >= receiptRank(r) {
				t.Fatalf("%s: stage %s after %s", r.Revocation, r.Stage, rs[i-1].Stage)
			}
		}
		if len(rs) == 0 || receiptRank(rs[len(rs)-1]) != int(reached) {
			t.Fatalf("%s: all %d sessions have come to stage %d, and the receipts are %+v", o.of.Fact.ID, len(o.members), reached, rs)
		}
		if reached < prVerified {
			open++
			continue
		}
		if last := rs[len(rs)-1]; last.Matched != matched || len(last.Sessions) != matched || last.SupersededBy != o.of.SupersededBy || last.Seq != o.of.Fact.Seq {
			t.Fatalf("%s: want %d sessions, seq %d, superseded by %d: %+v", o.of.Fact.ID, matched, o.of.Fact.Seq, o.of.SupersededBy, last)
		}
	}
	if got := len(b.e.orders.open); got != open {
		t.Fatalf("%d orders are kept, %d are not finished", got, open)
	}
	b.checkIndex(t)
}

// checkIndex compares the index with the sessions that are not over.
func (b *book) checkIndex(t *rapid.T) {
	principals, roles, databases, total := map[string]int{}, map[string]int{}, map[string]int{}, 0
	for _, s := range b.sessions {
		if s.concluded {
			continue
		}
		total++
		principals[s.identity.Principal]++
		roles[s.identity.Role]++
		databases[s.identity.Database]++
		// A settled fact of the journal denies nobody who is in the index with an open gate.
		if d, denied := b.table.Check(s.identity, s.authSeq, time.Now()); denied && !s.cutNow() {
			t.Fatalf("session %s lives in spite of %+v", s.id, d.Fact)
		}
	}
	x := b.e.index
	if x.len() != total || x.principals.len() != len(principals) || x.roles.len() != len(roles) || x.databases.len() != len(databases) {
		t.Fatalf("the index holds %d sessions of %d principals, want %d of %d", x.len(), x.principals.len(), total, len(principals))
	}
	for name, n := range principals {
		if got := len(x.match(revoke.Scope{Kind: revoke.ScopePrincipal, Name: name})); got != n {
			t.Fatalf("principal %s matches %d sessions, want %d", name, got, n)
		}
	}
}

func TestOrdersSessionsAndIndexAgreeWhateverHappensInWhichOrder(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		b := newBook(t)
		t.Repeat(map[string]func(*rapid.T){
			"login": b.login, "another login": b.login, "order": b.newOrder, "settle": b.settle, "undo": b.undo,
			"advance": b.advance, "advance again": b.advance, "": b.check,
		})
		// Everything comes to its end, and then nothing is kept.
		for _, o := range b.orders {
			if !o.settled {
				b.number(o)
				b.order(o)
			}
		}
		for _, s := range b.sessions {
			for !s.concluded {
				b.advanceOne(t, s)
			}
		}
		b.check(t)
		if len(b.e.orders.open) != 0 || b.e.index.len() != 0 {
			t.Fatalf("%d orders and %d sessions are left", len(b.e.orders.open), b.e.index.len())
		}
	})
}
