package cluster

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/url"
	"regexp"
	"strings"
	"time"

	"github.com/VictoriaMetrics/metrics"
	"github.com/oklog/ulid/v2"

	"pgedge/revoke"
)

// Embedded is the value of Config.NATS that runs the NATS server inside the process.
const Embedded = "embedded"

// Config is what a node has to know about its cluster. Start applies the defaults named here to zero fields.
type Config struct {
	// Node is the node id, [A-Za-z0-9_-]{1,63}. Required.
	Node string
	// Boot is the ULID of this run of the process. Default: a new one, younger than the one recorded in StateDir.
	Boot string
	// Version is what heartbeats and receipts say about the program.
	Version string
	// StateDir holds the lock, the boot record, nats-url and the embedded journal. Required; created with mode 0700.
	StateDir string

	// NATS is "embedded" or a comma-separated list of NATS URLs, which may carry a token. Default: embedded.
	NATS string
	// Credentials are for external URLs.
	Credentials
	// Listen is the client listener of the embedded server. It has to be a loopback address, because the token
	// crosses it in clear. Default: 127.0.0.1:0.
	Listen string
	// Routes make the embedded servers of several nodes one NATS cluster. Default: none, a journal of this node's own.
	Routes Routes
	// Replicas is the least number of copies the journal has to have, 1 to 5. Default and, for an embedded server
	// without routes, only value: 1.
	Replicas int

	// Heartbeat is the time between two presences, 100ms to 1m. Default: 1s.
	Heartbeat time.Duration
	// Lease is how long a node may serve without proof that it is fresh, as announced in presences; at least three
	// heartbeats, at most revoke.MaxLease. Default: 20s.
	Lease time.Duration
	// Freeze is how long frozen sessions wait for the lease to come back before they are dropped. Default: 30s.
	Freeze time.Duration
	// OnStale is what the node does when its lease has ended: freeze, drop or serve. Default: serve for an embedded
	// server without routes, whose journal cannot be partitioned from it; freeze otherwise.
	OnStale string

	// OnWaiting is told why a start does not get on: NATS cannot be reached, or nobody has created the streams yet. It
	// is called on Start's goroutine, once per reason. Default: nothing.
	OnWaiting func(why string)
	// Canary carries out drills. Default: the node says that it has no canary.
	Canary Canary
	// Cancel carries out a cancel request that another node has forwarded, a packet as it came from its client, and
	// reports whether its key is one of this node's. It is called from several goroutines and may take seconds.
	// Default: this node takes none.
	Cancel func(request []byte) (known bool)

	// Drain makes the node drain and end, as a signal would, and says how long that may take. A second call changes
	// nothing. Default: the node refuses.
	Drain func() (DrainPlan, error)

	// OnSuperseded is called once, on its own goroutine, when a younger boot of the same node id has announced
	// itself. FatalC is closed as well. Default: nothing.
	OnSuperseded func(boot string)
	// Logger receives what the operator should know. Default: slog.Default().
	Logger *slog.Logger
	// Metrics is where the node's metrics are registered. Default: a set of its own, which Node.Metrics returns.
	Metrics *metrics.Set
}

// Engine is what a node tells about revocations and asks about sessions. It is implemented by the engine, through
// cmd/pgedge.
type Engine interface {
	// Cut carries out an order. Orders arrive one after the other, on the goroutine that received the message:
	// Cut sets gates and posts the rest, and must not block.
	Cut(revoke.Order)
	// Sessions lists the live sessions that match the filter. It is called from several goroutines.
	Sessions(SessionFilter) []revoke.SessionInfo
	// SessionCount is the number of live sessions, logins included.
	SessionCount() int
	// Impact says what a revocation of the scopes would stop now, and changes nothing. It may take until ctx ends, and
	// is called from several goroutines.
	Impact(ctx context.Context, scopes []revoke.Scope) []revoke.SessionImpact
	// Freeze, Thaw and Drop follow the lease: it has ended, it has come back with every fact applied, it has not come
	// back in time. They are called as Cut is, and must not block either.
	Freeze()
	Thaw()
	Drop()
	// Upstreams says which servers the node reaches with a usable control role, by revoke.ServerKey. Like the following,
	// it is called from several goroutines.
	Upstreams() map[string]revoke.UpstreamPresence
	// Claims lists the backends that the node holds for some roles.
	Claims(roles []string) []revoke.Claim
	// Sweep makes one pass at one of the Upstreams and returns an outcome per task. It may take seconds.
	Sweep(ctx context.Context, server string, pass revoke.SweepPass) ([]revoke.SweepOutcome, error)
	// RestoreLogins gives LOGIN back to the roles whose marks at a server may says are undone, and returns them.
	RestoreLogins(ctx context.Context, server string, may func(role string, m revoke.LoginMark) bool) ([]string, error)
}

// SessionFilter narrows a list of sessions; empty fields match everything. Names are compared in canonical form.
type SessionFilter struct {
	Principal string `json:"principal,omitempty"`
	Role      string `json:"role,omitempty"`
	Database  string `json:"database,omitempty"`
	Node      string `json:"node,omitempty"`
}

// Match reports whether the session passes the filter.
func (f SessionFilter) Match(s revoke.SessionInfo) bool {
	return (f.Principal == "" || f.Principal == s.Principal) &&
		(f.Role == "" || f.Role == s.Role) &&
		(f.Database == "" || f.Database == s.Database) &&
		(f.Node == "" || f.Node == s.Node)
}

const (
	defaultHeartbeat = time.Second
	minHeartbeat     = 100 * time.Millisecond
	maxHeartbeat     = time.Minute
	defaultLease     = 20 * time.Second
	defaultFreeze    = 30 * time.Second
	defaultListen    = "127.0.0.1:0"
)

// nodeIDPattern also keeps ids out of subject syntax: no dot, no wildcard, no space.
var nodeIDPattern = regexp.MustCompile(`^[A-Za-z0-9_-]{1,63}$`)

func (c Config) withDefaults() Config {
	if c.NATS == "" {
		c.NATS = Embedded
	}
	if c.Listen == "" {
		c.Listen = defaultListen
	}
	if c.Replicas == 0 {
		c.Replicas = 1
	}
	if c.Heartbeat == 0 {
		c.Heartbeat = defaultHeartbeat
	}
	if c.Lease == 0 {
		c.Lease = defaultLease
	}
	if c.Freeze == 0 {
		c.Freeze = defaultFreeze
	}
	if c.OnStale == "" {
		c.OnStale = revoke.OnStaleFreeze
		if c.alone() {
			c.OnStale = revoke.OnStaleServe
		}
	}
	if c.Canary == nil {
		c.Canary = noCanary{}
	}
	if c.Logger == nil {
		c.Logger = slog.Default()
	}
	if c.Metrics == nil {
		c.Metrics = metrics.NewSet()
	}
	return c
}

// Validate reports every problem of the configuration at once. Zero fields count as their defaults.
func (c Config) Validate() error {
	c = c.withDefaults()
	var problems []error
	bad := func(format string, args ...any) { problems = append(problems, fmt.Errorf(format, args...)) }

	if !nodeIDPattern.MatchString(c.Node) {
		bad("node: %q is not a node id: use 1 to 63 of A-Z a-z 0-9 _ -", c.Node)
	}
	if c.Boot != "" {
		if _, err := ulid.ParseStrict(c.Boot); err != nil {
			bad("boot: %q is not a ULID", c.Boot)
		}
	}
	if c.StateDir == "" {
		bad("state_dir: is missing")
	}
	if c.Heartbeat < minHeartbeat || c.Heartbeat > maxHeartbeat {
		bad("cluster.heartbeat: %s is not between %s and %s", c.Heartbeat, minHeartbeat, maxHeartbeat)
	}
	if c.Lease < 3*c.Heartbeat {
		bad("cluster.lease: %s is less than three heartbeats of %s", c.Lease, c.Heartbeat)
	}
	if c.Lease > revoke.MaxLease {
		bad("cluster.lease: %s is more than %s: no verdict could ever wait for it", c.Lease, revoke.MaxLease)
	}
	if c.Freeze < 0 {
		bad("cluster.freeze: %s is negative", c.Freeze)
	}
	switch c.OnStale {
	case revoke.OnStaleFreeze, revoke.OnStaleDrop, revoke.OnStaleServe:
	default:
		bad("cluster.on_stale: %q is not one of freeze, drop, serve", c.OnStale)
	}
	if c.Replicas < 1 || c.Replicas > 5 {
		bad("cluster.replicas: %d is not between 1 and 5", c.Replicas)
	}
	if c.NATS == Embedded {
		if c.Replicas > 1 && !c.Routes.enabled() {
			bad("cluster.replicas: %d is more than the one copy an embedded server without routes can hold", c.Replicas)
		}
		if c.Credentials != (Credentials{}) {
			bad("cluster.creds_file and cluster.tls: have no meaning with an embedded server")
		}
		if err := validateListen(c.Listen); err != nil {
			bad("cluster.listen: %w", err)
		}
		problems = append(problems, c.Routes.validate()...)
	} else {
		if err := validateURLs(c.NATS); err != nil {
			bad("cluster.nats: %w", err)
		}
		if c.Routes.enabled() {
			bad("cluster.routes: have no meaning with an external NATS")
		}
	}
	return errors.Join(problems...)
}

// alone reports whether the journal lives in this process and nowhere else, so that it cannot be partitioned from the
// node.
func (c Config) alone() bool { return c.NATS == Embedded && !c.Routes.enabled() }

// initCommand is what creates the streams that this node needs.
func (c Config) initCommand() string {
	where := "--nats " + natsHosts(c.NATS)
	if c.NATS == Embedded {
		where = "--state-dir " + c.StateDir
	}
	return fmt.Sprintf("pgedge cluster init %s --replicas %d", where, c.Replicas)
}

func validateListen(addr string) error {
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		return fmt.Errorf("%q is not host:port", addr)
	}
	if _, err := net.LookupPort("tcp", port); err != nil {
		return fmt.Errorf("%q is not a port", port)
	}
	if ip := net.ParseIP(host); host != "localhost" && (ip == nil || !ip.IsLoopback()) {
		return fmt.Errorf("%q is not a loopback address, and the embedded server's token would cross the network in clear", host)
	}
	return nil
}

// validateURLs never repeats a URL in its error, because a URL may carry a token.
func validateURLs(list string) error {
	for i, s := range strings.Split(list, ",") {
		u, err := url.Parse(strings.TrimSpace(s))
		if err != nil || u.Host == "" {
			return fmt.Errorf("entry %d is not a URL like nats://TOKEN@host:4222", i+1)
		}
		switch u.Scheme {
		case "nats", "tls", "ws", "wss":
		default:
			return fmt.Errorf("entry %d: scheme %q is not one of nats, tls, ws, wss", i+1, u.Scheme)
		}
	}
	return nil
}
