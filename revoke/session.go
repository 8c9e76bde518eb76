package revoke

import "time"

// Identity is what a session is, in canonical form: see NewIdentity.
type Identity struct {
	Principal string
	Role      string
	Database  string
	Session   string
}

// SessionInfo is one live session as fleet queries show it.
type SessionInfo struct {
	ID          string    `json:"id"`
	Node        string    `json:"node"`
	Principal   string    `json:"principal"`
	Role        string    `json:"role"`
	Database    string    `json:"database"`
	Client      string    `json:"client"`
	Application string    `json:"application"`
	Since       time.Time `json:"since"`
	State       string    `json:"state"` // idle|active|idle_in_transaction|login
	BackendPID  uint32    `json:"backend_pid"`
	Upstream    string    `json:"upstream"`
	IdleSeconds float64   `json:"idle_seconds"`
}

// NewIdentity brings the names of a session into canonical form, so that they compare with those of scopes.
func NewIdentity(principal, role, database, session string) Identity {
	return Identity{
		Principal: CanonicalName(ScopePrincipal, principal),
		Role:      CanonicalName(ScopeRole, role),
		Database:  CanonicalName(ScopeDatabase, database),
		Session:   CanonicalName(ScopeSession, session),
	}
}
