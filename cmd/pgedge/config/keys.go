package config

import (
	"fmt"
	"time"
)

// key declares one key of the file. The tables below are the only list of keys: the file, the environment and the
// flags all go through them.
type key[T any] struct {
	path string
	// set takes the value: one element for a scalar, any number for a list. nil together with only or later.
	set func(*T, []string) error
	// list allows a sequence (and, as a convenience, a scalar that means one element).
	list bool
	// expand replaces ${NAME} by environment variables.
	expand bool
	// values are the known values of a key that this version implements only for the values in only.
	values, only []string
	// later marks a key that this version does not implement at all.
	later bool
	// emptyMeansUnset lets a later key be written down empty, where empty is the documented default.
	emptyMeansUnset bool
	// each marks a map whose keys are names chosen by the user.
	each bool
}

func durationKey[T any](path string, field func(*T) *time.Duration, lowest, highest time.Duration, zeroOK bool) key[T] {
	return key[T]{path: path, set: func(t *T, vs []string) (err error) {
		*field(t), err = parseDuration(vs[0], lowest, highest, zeroOK)
		return err
	}}
}

func intKey[T any](path string, field func(*T) *int, lowest, highest int) key[T] {
	return key[T]{path: path, set: func(t *T, vs []string) (err error) {
		*field(t), err = parseInt(vs[0], lowest, highest)
		return err
	}}
}

func textKey[T any](path string, field func(*T) *string, parse func(string) (string, error)) key[T] {
	return key[T]{path: path, set: func(t *T, vs []string) (err error) {
		*field(t), err = parse(vs[0])
		return err
	}}
}

func boolKey[T any](path string, field func(*T) *bool) key[T] {
	return key[T]{path: path, set: func(t *T, vs []string) error {
		if vs[0] != "true" && vs[0] != "false" {
			return fmt.Errorf("%q is not true or false", vs[0])
		}
		*field(t) = vs[0] == "true"
		return nil
	}}
}

// onlyKey is a key whose values are known but not all implemented.
func onlyKey[T any](path string, values []string, only ...string) key[T] {
	return key[T]{path: path, values: values, only: only}
}

func laterKey[T any](path string) key[T] { return key[T]{path: path, later: true} }

func laterUnlessEmpty[T any](path string) key[T] {
	return key[T]{path: path, later: true, emptyMeansUnset: true}
}

var rootKeys = []key[Config]{
	textKey("node", func(c *Config) *string { return &c.Node }, parseNode),
	{path: "listen", list: true, set: func(c *Config, vs []string) (err error) {
		c.Listen, err = parseListen(vs)
		return err
	}},
	textKey("admin", func(c *Config) *string { return &c.Admin }, parseAdmin),
	textKey("state_dir", func(c *Config) *string { return &c.StateDir }, parsePath),
	intKey("loops", func(c *Config) *int { return &c.Loops }, 0, maxLoops),
	textKey("contact", func(c *Config) *string { return &c.Contact }, parseContact),

	laterUnlessEmpty[Config]("proxy_protocol.trusted"),

	onlyKey[Config]("tls.mode", []string{"disable", "allow", "require"}, "disable"),
	laterKey[Config]("tls.cert_file"),
	laterKey[Config]("tls.key_file"),
	laterKey[Config]("tls.client_ca_file"),

	intKey("limits.max_sessions", func(c *Config) *int { return &c.Limits.MaxSessions }, 0, maxSessionsLimit),
	intKey("limits.max_logins", func(c *Config) *int { return &c.Limits.MaxLogins }, 1, maxLoginsLimit),
	durationKey("limits.login_timeout", func(c *Config) *time.Duration { return &c.Limits.LoginTimeout }, 100*time.Millisecond, 10*time.Minute, false),
	intKey("limits.per_principal", func(c *Config) *int { return &c.Limits.PerPrincipal }, 0, maxSessionsLimit),
	onlyKey[Config]("limits.failed_logins_per_address_per_minute", nil, "0"),

	durationKey("timeouts.idle_session", func(c *Config) *time.Duration { return &c.Timeouts.IdleSession }, 100*time.Millisecond, maxTimeout, true),
	durationKey("timeouts.idle_in_transaction", func(c *Config) *time.Duration { return &c.Timeouts.IdleInTransaction }, 100*time.Millisecond, maxTimeout, true),
	durationKey("timeouts.session_max", func(c *Config) *time.Duration { return &c.Timeouts.SessionMax }, 100*time.Millisecond, maxTimeout, true),
	laterKey[Config]("timeouts.query_wait"),
	durationKey("timeouts.drain", func(c *Config) *time.Duration { return &c.Timeouts.Drain }, 100*time.Millisecond, 24*time.Hour, true),

	durationKey("timeouts.drain_delay", func(c *Config) *time.Duration { return &c.Timeouts.DrainDelay }, 100*time.Millisecond, time.Hour, true),

	{path: "databases", each: true},

	onlyKey[Config]("auth.method", []string{"passthrough", "scram", "auth_query", "jwt", "oauth", "cert", "trust"}, "passthrough"),
	laterUnlessEmpty[Config]("auth.rules"),
	laterKey[Config]("auth.users_file"),
	laterKey[Config]("auth.auth_query.user"),
	laterKey[Config]("auth.auth_query.password_file"),
	laterKey[Config]("auth.auth_query.query"),
	laterKey[Config]("auth.oidc.issuer"),
	laterKey[Config]("auth.oidc.client_id"),
	laterKey[Config]("auth.oidc.principal_claim"),
	laterKey[Config]("auth.oidc.groups_claim"),

	// An access section without entries would mean that everybody is refused, so not even an empty one is ignored.
	laterKey[Config]("access"),

	{path: "cluster.nats", list: true, expand: true, set: func(c *Config, vs []string) (err error) {
		c.Cluster.URLs, err = parseNATS(vs)
		return err
	}},
	textKey("cluster.listen", func(c *Config) *string { return &c.Cluster.Listen }, func(s string) (string, error) {
		if err := checkHostPort(s); err != nil {
			return "", err
		}
		if !loopback(s) {
			return "", fmt.Errorf("%s is not a loopback address: the token would cross the network in clear", s)
		}
		return s, nil
	}),
	textKey("cluster.routes.listen", func(c *Config) *string { return &c.Cluster.Routes.Listen }, parseRoute),
	{path: "cluster.routes.peers", list: true, set: func(c *Config, vs []string) (err error) {
		c.Cluster.Routes.Peers, err = parsePeers(vs)
		return err
	}},
	textKey("cluster.routes.secret_file", func(c *Config) *string { return &c.Cluster.Routes.secretFile }, parsePath),
	textKey("cluster.routes.ca_file", func(c *Config) *string { return &c.Cluster.Routes.TLS.CAFile }, parsePath),
	textKey("cluster.routes.cert_file", func(c *Config) *string { return &c.Cluster.Routes.TLS.CertFile }, parsePath),
	textKey("cluster.routes.key_file", func(c *Config) *string { return &c.Cluster.Routes.TLS.KeyFile }, parsePath),
	textKey("cluster.creds_file", func(c *Config) *string { return &c.Cluster.CredsFile }, parsePath),
	textKey("cluster.tls.ca_file", func(c *Config) *string { return &c.Cluster.TLS.CAFile }, parsePath),
	textKey("cluster.tls.cert_file", func(c *Config) *string { return &c.Cluster.TLS.CertFile }, parsePath),
	textKey("cluster.tls.key_file", func(c *Config) *string { return &c.Cluster.TLS.KeyFile }, parsePath),
	intKey("cluster.replicas", func(c *Config) *int { return &c.Cluster.Replicas }, 1, 5),
	durationKey("cluster.heartbeat", func(c *Config) *time.Duration { return &c.Cluster.Heartbeat }, 100*time.Millisecond, time.Minute, false),
	durationKey("cluster.lease", func(c *Config) *time.Duration { return &c.Cluster.Lease }, time.Second, 10*time.Minute, false),
	durationKey("cluster.freeze", func(c *Config) *time.Duration { return &c.Cluster.Freeze }, 100*time.Millisecond, time.Hour, false),
	durationKey("cluster.freeze_in_transaction", func(c *Config) *time.Duration { return &c.Cluster.FreezeInTransaction }, 100*time.Millisecond, time.Hour, false),
	textKey("cluster.on_stale", func(c *Config) *string { return &c.Cluster.OnStale }, func(s string) (string, error) {
		if s != "freeze" && s != "drop" && s != "serve" {
			return "", fmt.Errorf("%q is not one of freeze, drop or serve", s)
		}
		return s, nil
	}),
	durationKey("cluster.verify_timeout", func(c *Config) *time.Duration { return &c.Cluster.VerifyTimeout }, 100*time.Millisecond, 5*time.Minute, false),

	textKey("audit.file", func(c *Config) *string { return &c.Audit.File }, parsePath),
	onlyKey[Config]("audit.stream", []string{"true", "false"}, "false"),
	onlyKey[Config]("audit.queries", []string{"off", "fingerprint", "text"}, "off"),

	textKey("drill.user", func(c *Config) *string { return &c.Drill.User }, parseName),
	textKey("drill.password_file", func(c *Config) *string { return &c.Drill.passwordFile }, parsePath),
	textKey("drill.database", func(c *Config) *string { return &c.Drill.Database }, parseName),

	laterUnlessEmpty[Config]("identity.github"),
	laterUnlessEmpty[Config]("identity.scim"),
	laterUnlessEmpty[Config]("identity.signals"),
	laterUnlessEmpty[Config]("identity.okta"),
	laterUnlessEmpty[Config]("identity.oidc_logout"),
}

// databaseKeys are the keys below databases.<name>.
var databaseKeys = []key[Database]{
	{path: "upstream", expand: true, set: func(d *Database, vs []string) error {
		if vs[0] == "" {
			return fmt.Errorf("is empty: write postgres://host:5432/database")
		}
		d.Upstream = Secret(vs[0])
		return nil
	}},
	onlyKey[Database]("pool.mode", []string{"session", "transaction"}, "session"),
	laterKey[Database]("pool.size"),
	laterKey[Database]("pool.min_idle"),
	laterKey[Database]("pool.server_lifetime"),
	laterKey[Database]("pool.server_idle_timeout"),
	intKey("pool.max_backends", func(d *Database) *int { return &d.MaxBackends }, 0, maxSessionsLimit),
	{path: "control.user", expand: true, set: func(d *Database, vs []string) error {
		if vs[0] == "" || len(vs[0]) > maxNameBytes {
			return fmt.Errorf("must have 1 to %d bytes", maxNameBytes)
		}
		d.ControlUser = vs[0]
		return nil
	}},
	textKey("control.password_file", func(d *Database) *string { return &d.passwordFile }, parsePath),
	laterKey[Database]("login.user"),
	laterKey[Database]("login.password_file"),
	boolKey("sweep", func(d *Database) *bool { return &d.Sweep }),
}

// apply takes one value for one key, whatever its source.
func apply[T any](k *key[T], t *T, vs []string) error {
	switch {
	case k.later:
		return errUnsupported
	case k.set != nil:
		return k.set(t, vs)
	}
	for _, v := range k.only {
		if vs[0] == v {
			return nil
		}
	}
	if len(k.values) == 0 {
		return fmt.Errorf("%q: %w (only %s)", vs[0], errUnsupported, k.only[0])
	}
	for _, v := range k.values {
		if vs[0] == v {
			return fmt.Errorf("%s: %w (only %s)", v, errUnsupported, k.only[0])
		}
	}
	return fmt.Errorf("%q is not one of %s", vs[0], orList(k.values))
}

func orList(vs []string) string {
	out := ""
	for i, v := range vs {
		switch i {
		case 0:
		case len(vs) - 1:
			out += " or "
		default:
			out += ", "
		}
		out += v
	}
	return out
}
