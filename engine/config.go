package engine

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"time"

	"github.com/VictoriaMetrics/metrics"

	"pgedge/revoke"
)

// Config is what an engine needs to know. It is read once by New; Reload changes limits, timeouts and contact.
type Config struct {
	Node    string // node id, [A-Za-z0-9_-]{1,63}: first part of every session id
	Boot    string // ULID of this start of the process
	Version string

	Listen    []string            // "host:port", or "unix:DIR" for DIR/.s.PGSQL.5432
	Listeners []net.Listener      // opened by somebody else, served like those of Listen; the engine closes them
	Databases map[string]Database // by the name a client asks for; "*" is the fallback
	Limits    Limits
	Timeouts  Timeouts

	VerifyTimeout time.Duration // longest wait for a killed backend to be seen gone; default 10 s
	Contact       string        // HINT shown to a revoked user; empty: none
	Loops         int           // gnet event loops; 0: one for each two processors

	Table   *revoke.Table // who may not log in; merged by the cluster
	Serving func() error  // nil error: logins may be admitted; nil func: always
	// Fresh says whether the node may let bytes pass: its lease holds by both clocks. It is called on the loops,
	// after a read and before each write, and must neither block nor allocate; nil func: always.
	Fresh func() bool
	// FreezeInTransaction is how long a frozen session inside a transaction is kept: it may hold locks that others
	// wait for; default 5 s.
	FreezeInTransaction time.Duration

	// ForwardCancel hands a cancel request, a packet as it came from the client, to the other nodes whose ids owner
	// accepts and returns when one of them has carried it out, none knows its key, or ctx has ended. err says that a
	// node could not be asked. nil func: there are no other nodes.
	ForwardCancel func(ctx context.Context, owner func(node string) bool, request []byte) (known bool, err error)

	OnReceipt func(revoke.Receipt) // called from the engine's own goroutines, never from a loop; must not block
	OnAudit   func(AuditEvent)     // called from any goroutine, loops included; must not block
	Logger    *slog.Logger
	Metrics   *metrics.Set
}

// Database maps a name a client asks for to a server.
type Database struct {
	Upstream    Upstream
	MaxBackends int // most sessions of this entry at a time; 0: no limit of its own
	// Sweep announces the entry's servers as ones where revoked roles are set NOLOGIN and their direct sessions ended.
	Sweep bool
}

// Limits bound what clients can take.
type Limits struct {
	MaxSessions  int           // admitted at a time; 0: derived from the descriptor limit
	MaxLogins    int           // logins that talk to a backend at a time; the others wait within LoginTimeout; 0: 500
	LoginTimeout time.Duration // from accept to ReadyForQuery; 0: 15 s
	PerPrincipal int           // sessions of one principal at a time; 0: no limit
}

// Timeouts end sessions; zero means never, but for Drain.
type Timeouts struct {
	IdleSession       time.Duration // no transaction open and nothing asked
	IdleInTransaction time.Duration // transaction open and nothing asked
	SessionMax        time.Duration // whatever it does; ends at the next sync point
	Drain             time.Duration // longest wait for sessions to reach a sync point at shutdown; 0: 30 s
}

// AuditEvent is one thing that happened, for the audit trail.
type AuditEvent struct {
	Time        time.Time
	Kind        string // login | refusal | end | revocation
	Session     string
	Principal   string
	Role        string
	Database    string
	Client      string
	Application string
	Reason      string
	SQLState    string
	Revocation  string
	Detail      string
	Duration    time.Duration
	BytesIn     int64 // from the client
	BytesOut    int64 // to the client
}

const (
	defaultMaxLogins     = 500
	defaultLoginTimeout  = 15 * time.Second
	defaultDrain         = 30 * time.Second
	defaultVerifyTimeout = 10 * time.Second
	defaultFreezeInTx    = 5 * time.Second
)

func (c *Config) setDefaults() {
	if c.Limits.MaxLogins == 0 {
		c.Limits.MaxLogins = defaultMaxLogins
	}
	if c.Limits.LoginTimeout == 0 {
		c.Limits.LoginTimeout = defaultLoginTimeout
	}
	if c.Timeouts.Drain == 0 {
		c.Timeouts.Drain = defaultDrain
	}
	if c.VerifyTimeout == 0 {
		c.VerifyTimeout = defaultVerifyTimeout
	}
	if c.FreezeInTransaction == 0 {
		c.FreezeInTransaction = defaultFreezeInTx
	}
	if c.Fresh == nil {
		c.Fresh = func() bool { return true }
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	if c.Metrics == nil {
		c.Metrics = metrics.NewSet()
	}
	if c.Serving == nil {
		c.Serving = func() error { return nil }
	}
	if c.OnReceipt == nil {
		c.OnReceipt = func(revoke.Receipt) {}
	}
	if c.OnAudit == nil {
		c.OnAudit = func(AuditEvent) {}
	}
}

// Validate reports all problems at once.
func (c *Config) Validate() error {
	var errs []error
	bad := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	if c.Node == "" {
		bad("node: missing")
	}
	if len(c.Listen)+len(c.Listeners) == 0 {
		bad("listen: at least one address is needed")
	}
	if len(c.Databases) == 0 {
		bad("databases: at least one entry is needed")
	}
	if c.Table == nil {
		bad("table: missing")
	}
	for name, d := range c.Databases {
		if err := d.Upstream.Validate(); err != nil {
			bad("databases.%s: %w", name, err)
		}
		if d.MaxBackends < 0 {
			bad("databases.%s.pool.max_backends: cannot be negative", name)
		}
	}
	for name, n := range map[string]int{"max_sessions": c.Limits.MaxSessions, "max_logins": c.Limits.MaxLogins, "per_principal": c.Limits.PerPrincipal} {
		if n < 0 {
			bad("limits.%s: cannot be negative", name)
		}
	}
	if c.Loops < 0 {
		bad("loops: cannot be negative")
	}
	return errors.Join(errs...)
}
