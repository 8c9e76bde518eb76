// Package config reads pgedge.yaml, the PGEDGE_* environment and the flags of serve into one Config.
//
// Flags win over the environment, the environment over the file, the file over the defaults. Everything that is
// wrong is reported at once, each problem with its place, and a key or value that this version knows of but does
// not implement is an error: a setting that is silently ignored is a security hole with a delay.
package config

import (
	"time"
)

// Config is what serve runs with. It is complete: every default is filled in.
type Config struct {
	// Node is the id of this node in the fleet, [A-Za-z0-9_-]{1,63}. Default: the hostname up to its first dot.
	Node string
	// Listen holds host:port and unix:DIRECTORY addresses for Postgres clients. Default: 127.0.0.1:6432.
	Listen []string
	// Admin is the host:port of the HTTP listener, "" when it is off. Default: 127.0.0.1:8432.
	Admin string
	// StateDir holds the journal of an embedded NATS, nats-url and the lock. Default: DefaultStateDir.
	StateDir string
	// Loops is how many threads relay; 0 is one for each two processors.
	Loops int
	// Contact is the HINT a revoked user is shown; "" shows none.
	Contact string

	Limits    Limits
	Timeouts  Timeouts
	Databases map[string]Database
	Cluster   Cluster
	Audit     Audit
	Drill     Drill
}

// Limits bound what clients may use up.
type Limits struct {
	// MaxSessions is the most sessions at a time; 0 derives it from the descriptor limit.
	MaxSessions int
	// MaxLogins is the most logins in progress at a time. Default: 500.
	MaxLogins int
	// LoginTimeout is the time from accept to the first ReadyForQuery. Default: 15s.
	LoginTimeout time.Duration
	// PerPrincipal is the most sessions of one principal; 0 means no limit.
	PerPrincipal int
}

// Timeouts end sessions that last too long; 0 means never.
type Timeouts struct {
	IdleSession       time.Duration
	IdleInTransaction time.Duration
	SessionMax        time.Duration
	// Drain is how long a stopping node lets sessions finish what they are doing. Default: 30s.
	Drain time.Duration
	// DrainDelay is how long a stopping node goes on as before, logins included, while /readyz already says that it is
	// not ready: load balancers take a moment to notice. Default: 0.
	DrainDelay time.Duration
}

// Database says where the sessions of one database name go.
type Database struct {
	// Upstream is a postgres:// URL. Its userinfo, if it has one, is the control role.
	Upstream Secret
	// ControlUser and ControlPassword override the userinfo of Upstream; "" when they are not set.
	ControlUser     string
	ControlPassword Secret
	// MaxBackends is the most backends at a time; 0 means no limit.
	MaxBackends int
	// Sweep sets roles NOLOGIN when they are revoked, and ends their sessions that bypass pgedge. Default: false.
	Sweep bool

	passwordFile string
	// placed is where each key of this database was set, for problems found later.
	placed map[string]place
}

// Cluster says how this node is connected to the journal.
type Cluster struct {
	// URLs is empty for an embedded NATS server. They may hold a token.
	URLs []Secret
	// CredsFile is a NATS credentials file for URLs; "" uses none.
	CredsFile string
	// TLS is for URLs: whom to believe, and what to show.
	TLS KeyPair
	// Listen is the client listener of the embedded server. Default: 127.0.0.1:0.
	Listen string
	// Routes make the embedded servers of several nodes one cluster.
	Routes Routes
	// Replicas is the least number of copies of the journal. Default: 1.
	Replicas int
	// Heartbeat is the interval of presence messages. Default: 1s.
	Heartbeat time.Duration
	// Lease is for how long a heartbeat that has come back proves that this node is fresh. Default: 20s.
	Lease time.Duration
	// Freeze is how long sessions wait for a lease that has ended before they are dropped. Default: 30s.
	Freeze time.Duration
	// FreezeInTransaction is the same for a session inside a transaction, which may hold locks. Default: 5s.
	FreezeInTransaction time.Duration
	// OnStale is what happens to sessions when the lease has ended: freeze, drop or serve. "" leaves it to the node:
	// serve where the journal is its own process's, freeze otherwise.
	OnStale string
	// VerifyTimeout is how long a backend may take to be seen gone before its receipt says timeout. Default: 10s.
	VerifyTimeout time.Duration
}

// KeyPair names the files of one side of a TLS connection; "" where there is none.
type KeyPair struct {
	CAFile, CertFile, KeyFile string
}

// Routes are how embedded servers reach each other.
type Routes struct {
	// Listen is host:port; "" means that this node's server stands alone.
	Listen string
	// Peers are the host:port of all nodes; this one may be among them.
	Peers []string
	// Secret is what servers prove themselves with.
	Secret Secret
	TLS    KeyPair

	secretFile string
}

// Enabled reports whether this node's server is to be one of several.
func (r Routes) Enabled() bool { return r.Listen != "" || len(r.Peers) > 0 }

// Audit says where audit records go.
type Audit struct {
	// File is a path for JSON lines; "" writes none.
	File string
}

// Drill is the canary: a user that exists to be revoked by pgedge drill, as proof that the path works.
type Drill struct {
	// User is the role that the node logs in as, through its own listeners; "" means that there is no canary.
	User string
	// Password is read from drill.password_file.
	Password Secret
	// Database is what the canary asks for.
	Database string

	passwordFile string
}

// Embedded reports whether this node runs its own NATS server.
func (c Cluster) Embedded() bool { return len(c.URLs) == 0 }

// Default returns a Config with every default but Node and StateDir, which depend on the machine and are filled
// in by Load.
func Default() *Config {
	return &Config{
		Listen: []string{"127.0.0.1:6432"},
		Admin:  "127.0.0.1:8432",
		Limits: Limits{MaxLogins: 500, LoginTimeout: 15 * time.Second},
		Timeouts: Timeouts{
			Drain: 30 * time.Second,
		},
		Databases: map[string]Database{},
		Cluster: Cluster{
			Listen:    "127.0.0.1:0",
			Replicas:  1,
			Heartbeat: time.Second,
			Lease:     20 * time.Second,
			Freeze:    30 * time.Second,

			FreezeInTransaction: 5 * time.Second,

			VerifyTimeout: 10 * time.Second,
		},
	}
}
