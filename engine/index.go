package engine

import (
	"sync"

	"pgedge/revoke"
)

// index finds sessions by what a fact can name, so that a revocation costs its matches and not all sessions.
// A session is in it from before its first check of the table until nothing of it is left: for a session that
// was cut, until its backend has been seen gone or given up on.
type index struct {
	mu         sync.RWMutex
	sessions   map[string]*session
	principals nameSet
	roles      nameSet
	databases  nameSet
	counted    map[string]int // sessions by principal that count has let in; empty without such a limit
}

// indexEntry is the index's part of a session, guarded by its mutex.
type indexEntry struct {
	place   [setCount]int32 // among the many of each nameSet
	counted bool            // among its principal's
}

const (
	setPrincipals = iota
	setRoles
	setDatabases
	setCount
)

func newIndex() *index {
	return &index{
		sessions:   make(map[string]*session),
		principals: newNameSet(setPrincipals),
		roles:      newNameSet(setRoles),
		databases:  newNameSet(setDatabases),
		counted:    make(map[string]int),
	}
}

// add takes s in, once.
func (x *index) add(s *session) {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.sessions[s.id] = s
	x.principals.add(s.identity.Principal, s)
	x.roles.add(s.identity.Role, s)
	x.databases.add(s.identity.Database, s)
}

// count makes s one of the sessions of its principal, unless there are limit of them already. Only sessions that have
// proved who they are count: a name alone must not lock its owner out.
func (x *index) count(s *session, limit int) bool {
	x.mu.Lock()
	defer x.mu.Unlock()
	switch {
	case s.indexed.counted:
		return true
	case x.counted[s.identity.Principal] >= limit:
		return false
	case x.sessions[s.id] == s: // else nobody would take it back
		s.indexed.counted = true
		x.counted[s.identity.Principal]++
	}
	return true
}

// remove does nothing for a session that is not in the index.
func (x *index) remove(s *session) {
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.sessions[s.id] != s {
		return
	}
	delete(x.sessions, s.id)
	x.principals.remove(s.identity.Principal, s)
	x.roles.remove(s.identity.Role, s)
	x.databases.remove(s.identity.Database, s)
	if s.indexed.counted {
		s.indexed.counted = false
		if x.counted[s.identity.Principal]--; x.counted[s.identity.Principal] == 0 {
			delete(x.counted, s.identity.Principal)
		}
	}
}

// match returns the sessions that scope applies to now, in no order.
func (x *index) match(scope revoke.Scope) []*session {
	x.mu.RLock()
	defer x.mu.RUnlock()
	switch scope.Kind {
	case revoke.ScopeAll:
		return x.allLocked()
	case revoke.ScopePrincipal:
		return x.principals.members(scope.Name)
	case revoke.ScopeRole:
		return x.roles.members(scope.Name)
	case revoke.ScopeDatabase:
		return x.databases.members(scope.Name)
	case revoke.ScopeSession:
		if s := x.sessions[scope.Name]; s != nil {
			return []*session{s}
		}
	case revoke.ScopeInvalid:
	}
	return nil
}

func (x *index) all() []*session {
	x.mu.RLock()
	defer x.mu.RUnlock()
	return x.allLocked()
}

func (x *index) len() int {
	x.mu.RLock()
	defer x.mu.RUnlock()
	return len(x.sessions)
}

func (x *index) allLocked() []*session {
	out := make([]*session, 0, len(x.sessions))
	for _, s := range x.sessions {
		out = append(out, s)
	}
	return out
}

// nameSet keeps sessions by one of their names. Most people have one session, and for them a set of its own would weigh
// more than all the rest: so a name leads to its only session in one, and from the second on to a slice of them in many.
// Names with nobody behind them are deleted: what is keyed by what clients send must not grow with every name ever tried.
type nameSet struct {
	which int // place in indexEntry.place
	one   map[string]*session
	many  map[string]*[]*session // a name that is here is not in one
}

// manyShrinkCap is the capacity up to which a slice of sessions is kept whatever is left in it.
const manyShrinkCap = 64

func newNameSet(which int) nameSet {
	return nameSet{which: which, one: make(map[string]*session), many: make(map[string]*[]*session)}
}

func (n *nameSet) add(name string, s *session) {
	if set := n.many[name]; set != nil {
		s.indexed.place[n.which] = int32(len(*set))
		*set = append(*set, s)
		return
	}
	other := n.one[name]
	if other == nil {
		n.one[name] = s
		return
	}
	delete(n.one, name)
	other.indexed.place[n.which], s.indexed.place[n.which] = 0, 1
	n.many[name] = &[]*session{other, s}
}

// remove puts the last one of a slice in the place that becomes free.
func (n *nameSet) remove(name string, s *session) {
	set := n.many[name]
	if set == nil {
		delete(n.one, name)
		return
	}
	members := *set
	last := len(members) - 1
	place := s.indexed.place[n.which]
	members[place] = members[last]
	members[place].indexed.place[n.which] = place
	members[last] = nil
	if last == 0 {
		delete(n.many, name)
		return
	}
	members = members[:last]
	if c := cap(members); c > manyShrinkCap && last < c/4 { // a crowd has gone
		members = append(make([]*session, 0, c/2), members...)
	}
	*set = members
}

// members returns a copy.
func (n *nameSet) members(name string) []*session {
	if set := n.many[name]; set != nil {
		return append(make([]*session, 0, len(*set)), *set...)
	}
	if s := n.one[name]; s != nil {
		return []*session{s}
	}
	return nil
}
