package engine

import (
	"fmt"
	"slices"
	"sync"
	"testing"
	"unsafe"

	"pgregory.net/rapid"

	"pgedge/revoke"
)

func (n *nameSet) len() int { return len(n.one) + len(n.many) }

// indexModel is the index as plainly as it can be said: all sessions, looked through one by one.
type indexModel struct {
	sessions map[*session]bool // whether it is counted among its principal's
}

func (m *indexModel) match(scope revoke.Scope) (out []*session) {
	for s := range m.sessions {
		name := ""
		switch scope.Kind {
		case revoke.ScopePrincipal:
			name = s.identity.Principal
		case revoke.ScopeRole:
			name = s.identity.Role
		case revoke.ScopeDatabase:
			name = s.identity.Database
		case revoke.ScopeSession:
			name = s.id
		case revoke.ScopeAll, revoke.ScopeInvalid:
		}
		if name == scope.Name {
			out = append(out, s)
		}
	}
	return out
}

func (m *indexModel) names(of func(*session) string) map[string]int {
	names := make(map[string]int)
	for s := range m.sessions {
		names[of(s)]++
	}
	return names
}

// sameSessions compares what has no order.
func sameSessions(a, b []*session) bool {
	if len(a) != len(b) {
		return false
	}
	in := make(map[*session]int)
	for _, s := range a {
		in[s]++
	}
	for _, s := range b {
		in[s]--
	}
	for _, n := range in {
		if n != 0 {
			return false
		}
	}
	return true
}

func TestTheIndexFindsWhatALookThroughAllSessionsFinds(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		x, m := newIndex(), indexModel{sessions: make(map[*session]bool)}
		made := 0
		var gone []*session
		add := func(t *rapid.T, n int, names *rapid.Generator[string]) {
			for range n {
				made++
				s := &session{id: fmt.Sprintf("n-%d", made)}
				s.identity = revoke.Identity{Principal: names.Draw(t, "principal"), Role: names.Draw(t, "role"), Database: names.Draw(t, "database"), Session: s.id}
				x.add(s)
				m.sessions[s] = false
			}
		}
		few := rapid.SampledFrom([]string{"", "ann", "ben", "cid"})
		one := func(t *rapid.T) *session {
			all := m.match(revoke.Scope{Kind: revoke.ScopeAll})
			if len(all) == 0 {
				t.Skip("there is no session")
			}
			slices.SortFunc(all, func(a, b *session) int {
				return len(a.id)*1000 + int(a.id[len(a.id)-1]) - len(b.id)*1000 - int(b.id[len(b.id)-1])
			})
			return rapid.SampledFrom(all).Draw(t, "session")
		}
		remove := func(s *session) {
			x.remove(s)
			delete(m.sessions, s)
			gone = append(gone, s)
		}
		t.Repeat(map[string]func(*rapid.T){
			"add":         func(t *rapid.T) { add(t, 1, few) },
			"add a crowd": func(t *rapid.T) { add(t, 100, rapid.Just(few.Draw(t, "name"))) },
			"remove":      func(t *rapid.T) { remove(one(t)) },
			"remove most": func(t *rapid.T) {
				left := one(t)
				for _, s := range m.match(revoke.Scope{Kind: revoke.ScopePrincipal, Name: left.identity.Principal}) {
					if s != left {
						remove(s)
					}
				}
			},
			"remove what is gone": func(t *rapid.T) {
				if len(gone) > 0 {
					x.remove(rapid.SampledFrom(gone).Draw(t, "session"))
				}
			},
			"count": func(t *rapid.T) {
				s, limit, n := one(t), rapid.IntRange(1, 4).Draw(t, "limit"), 0
				for other, counted := range m.sessions {
					if other != s && counted && other.identity.Principal == s.identity.Principal {
						n++
					}
				}
				want := m.sessions[s] || n < limit
				if got := x.count(s, limit); got != want {
					t.Fatalf("%d others count, the limit is %d: got %v, want %v", n, limit, got, want)
				}
				m.sessions[s] = want
			},
			"": func(t *rapid.T) { checkIndex(t, x, &m) },
		})
	})
}

func checkIndex(t *rapid.T, x *index, m *indexModel) {
	if x.len() != len(m.sessions) || !sameSessions(x.all(), m.match(revoke.Scope{Kind: revoke.ScopeAll})) {
		t.Fatalf("the index holds %d sessions, want %d", x.len(), len(m.sessions))
	}
	sets := []struct {
		kind revoke.ScopeKind
		set  *nameSet
		of   func(*session) string
	}{
		{revoke.ScopePrincipal, &x.principals, func(s *session) string { return s.identity.Principal }},
		{revoke.ScopeRole, &x.roles, func(s *session) string { return s.identity.Role }},
		{revoke.ScopeDatabase, &x.databases, func(s *session) string { return s.identity.Database }},
	}
	for _, set := range sets {
		names := m.names(set.of)
		if set.set.len() != len(names) {
			t.Fatalf("%d names of %s are kept, %d have sessions", set.set.len(), set.kind, len(names))
		}
		for _, name := range []string{"", "ann", "ben", "cid", "nobody"} {
			scope := revoke.Scope{Kind: set.kind, Name: name}
			if got, want := x.match(scope), m.match(scope); !sameSessions(got, want) {
				t.Fatalf("%s matches %d sessions, want %d", scope, len(got), len(want))
			}
		}
		for name, of := range set.set.many {
			if set.set.one[name] != nil {
				t.Fatalf("%s has both one session and many", name)
			}
			if c := cap(*of); len(*of) == 0 || c > manyShrinkCap && c > 4*len(*of)+4 {
				t.Fatalf("%d sessions of %s take room for %d", len(*of), name, c)
			}
			for i, s := range *of {
				if int(s.indexed.place[set.set.which]) != i {
					t.Fatalf("session %s does not know its place", s.id)
				}
			}
		}
	}
	counted := make(map[string]int)
	for s, c := range m.sessions {
		if c {
			counted[s.identity.Principal]++
		}
	}
	if len(counted) != len(x.counted) {
		t.Fatalf("counts of %d principals are kept, want %d", len(x.counted), len(counted))
	}
	for name, n := range counted {
		if x.counted[name] != n {
			t.Fatalf("%d sessions of %s count, want %d", x.counted[name], name, n)
		}
	}
}

// What match returns stays what it was while others come and go.
func TestTheIndexIsAskedWhileSessionsComeAndGo(t *testing.T) {
	x := newIndex()
	var wg sync.WaitGroup
	for g := range 4 {
		wg.Go(func() {
			for i := range 2000 {
				s := &session{id: fmt.Sprintf("n-%d-%d", g, i), identity: revoke.Identity{Principal: "ann", Role: "ann", Database: "db"}}
				x.add(s)
				x.count(s, 3)
				found := x.match(revoke.Scope{Kind: revoke.ScopePrincipal, Name: "ann"})
				if !slices.Contains(found, s) || len(found) > 4 {
					t.Errorf("%d sessions were found, not this one among them", len(found))
				}
				x.remove(s)
				if slices.Contains(x.match(revoke.Scope{Kind: revoke.ScopeDatabase, Name: "db"}), s) {
					t.Error("a session is found that has been removed")
				}
			}
		})
	}
	wg.Wait()
	if x.len()+x.principals.len()+x.roles.len()+x.databases.len()+len(x.counted) != 0 {
		t.Error("something is left")
	}
}

// Where a session lies is the allocator's choice: behind a word of its own, in steps of the size class.
func TestARevocationTouchesOneCacheLineOfASession(t *testing.T) {
	const line = 64
	var crossing *session
	for range 100 {
		s := new(session)
		first := uintptr(unsafe.Pointer(&s.gate))
		last := uintptr(unsafe.Pointer(&s.stage)) + unsafe.Sizeof(s.stage) - 1
		if first/line != last/line {
			crossing = s
		}
	}
	if s := crossing; s != nil {
		t.Errorf("gate to stage are bytes %d to %d of %d, of a session at %p: move fields so that they share one line of %d",
			unsafe.Offsetof(s.gate), unsafe.Offsetof(s.stage)+unsafe.Sizeof(s.stage), unsafe.Sizeof(*s), s, line)
	}
}
