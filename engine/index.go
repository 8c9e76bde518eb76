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
	principals map[string]map[*session]struct{}
	roles      map[string]map[*session]struct{}
	databases  map[string]map[*session]struct{}
}

func newIndex() *index {
	return &index{
		sessions:   make(map[string]*session),
		principals: make(map[string]map[*session]struct{}),
		roles:      make(map[string]map[*session]struct{}),
		databases:  make(map[string]map[*session]struct{}),
	}
}

func (x *index) add(s *session) {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.sessions[s.id] = s
	insert(x.principals, s.identity.Principal, s)
	insert(x.roles, s.identity.Role, s)
	insert(x.databases, s.identity.Database, s)
}

// count makes s one of the sessions of its principal, unless there are limit of them already. Only sessions that have
// proved who they are count: a name alone must not lock its owner out.
func (x *index) count(s *session, limit int) bool {
	x.mu.Lock()
	defer x.mu.Unlock()
	n := 0
	for other := range x.principals[s.identity.Principal] {
		if other.counted {
			n++
		}
	}
	s.counted = n < limit
	return s.counted
}

func (x *index) remove(s *session) {
	x.mu.Lock()
	defer x.mu.Unlock()
	delete(x.sessions, s.id)
	drop(x.principals, s.identity.Principal, s)
	drop(x.roles, s.identity.Role, s)
	drop(x.databases, s.identity.Database, s)
}

// match returns the sessions that scope applies to now.
func (x *index) match(scope revoke.Scope) []*session {
	x.mu.RLock()
	defer x.mu.RUnlock()
	switch scope.Kind {
	case revoke.ScopeAll:
		return x.allLocked()
	case revoke.ScopePrincipal:
		return members(x.principals[scope.Name])
	case revoke.ScopeRole:
		return members(x.roles[scope.Name])
	case revoke.ScopeDatabase:
		return members(x.databases[scope.Name])
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

func members(set map[*session]struct{}) []*session {
	if len(set) == 0 {
		return nil
	}
	out := make([]*session, 0, len(set))
	for s := range set {
		out = append(out, s)
	}
	return out
}

func insert(m map[string]map[*session]struct{}, key string, s *session) {
	set := m[key]
	if set == nil {
		set = make(map[*session]struct{}, 1)
		m[key] = set
	}
	set[s] = struct{}{}
}

// drop deletes emptied sets too: a map keyed by what clients send must not grow with every name ever tried.
func drop(m map[string]map[*session]struct{}, key string, s *session) {
	set := m[key]
	delete(set, s)
	if len(set) == 0 {
		delete(m, key)
	}
}
