package config

import (
	"fmt"
	"io"
	"net"
	"strings"
	"time"
)

// check looks at what no single key can know: keys against each other, and the consequences worth a warning.
func (l *loader) check() {
	c := l.cfg
	// What could not be read, or is wrong in itself, says nothing about databases being missing.
	if len(c.Databases) == 0 && !l.fileIsBroken && !l.report.names("databases") {
		l.errorf(place{source: l.file, line: boolToLine(l.file)}, "databases", "no database: add databases: {'*': {upstream: postgres://host:5432}} or give --upstream")
	}
	if c.Cluster.Lease > 0 && c.Cluster.Lease < 3*c.Cluster.Heartbeat {
		at, ok := l.placed["cluster.lease"]
		if !ok {
			at = l.placed["cluster.heartbeat"]
		}
		l.errorf(at, "cluster.lease", "%s is less than three heartbeats of %s", shortDuration(c.Cluster.Lease), shortDuration(c.Cluster.Heartbeat))
	}
	if c.Timeouts.SessionMax > 0 && c.Timeouts.IdleSession > c.Timeouts.SessionMax {
		l.warnf(l.placed["timeouts.idle_session"], "timeouts.idle_session", "is longer than session_max and so never ends a session")
	}
	if c.Limits.MaxSessions > 0 && c.Limits.PerPrincipal > c.Limits.MaxSessions {
		l.warnf(l.placed["limits.per_principal"], "limits.per_principal", "is more than max_sessions and so never refuses a session")
	}
	for _, name := range sortedNames(c.Databases) {
		l.checkDatabase(name, c.Databases[name])
	}
	l.checkDrill()
	l.checkExposure()
	l.checkCluster()
}

func (l *loader) checkDatabase(name string, d Database) {
	full := "databases." + name
	if d.Upstream == "" {
		if _, tried := d.placed["upstream"]; !tried {
			l.errorf(d.placed[""], full, "has no upstream")
		}
		return
	}
	if l.src.CheckUpstream != nil {
		if err := l.src.CheckUpstream(d.Upstream.Reveal()); err != nil {
			l.upstreamProblem(d, full+".upstream", err)
		}
	}
	if d.passwordFile != "" && d.ControlUser == "" {
		l.errorf(d.placed["control.password_file"], full+".control", "has a password_file but no user")
	}
	if d.Sweep && !d.HasControl() {
		l.errorf(d.placed["sweep"], full+".sweep", "needs a control role, with CREATEROLE beside its other rights (PostgreSQL 16 and later: and ADMIN OPTION on the roles)")
	}
	if !d.HasControl() {
		l.warnf(d.placed["upstream"], full+".control", "no control role: sessions are cut and closed, but their backends are not seen gone, so no kill is verified (exit code 3)")
	}
}

// checkDrill wants the canary whole or not at all.
func (l *loader) checkDrill() {
	d := l.cfg.Drill
	switch {
	case d.User == "" && d.Database == "" && d.passwordFile == "":
		return
	case d.User == "":
		at, ok := l.placed["drill.password_file"]
		if !ok {
			at = l.placed["drill.database"]
		}
		l.errorf(at, "drill", "has no user")
	case d.Database == "":
		l.errorf(l.placed["drill.user"], "drill", "has a user but no database to log in to")
	}
	if _, ok := l.cfg.Databases[d.Database]; !ok && d.Database != "" && len(l.cfg.Databases) > 0 {
		if _, any := l.cfg.Databases["*"]; !any {
			l.errorf(l.placed["drill.database"], "drill.database", "%s is not one of databases", d.Database)
		}
	}
	for _, name := range sortedNames(l.cfg.Databases) {
		if db := l.cfg.Databases[name]; d.User != "" && db.controlUser() == d.User {
			l.errorf(l.placed["drill.user"], "drill.user", "%s is the control role of databases.%s: the canary is revoked in every drill, and must be nobody else", d.User, name)
			return
		}
	}
}

// upstreamProblem reports each error of a joined one by itself, in the place of the upstream and without its secrets.
func (l *loader) upstreamProblem(d Database, key string, err error) {
	if joined, ok := err.(interface{ Unwrap() []error }); ok {
		for _, e := range joined.Unwrap() {
			l.upstreamProblem(d, key, e)
		}
		return
	}
	text := strings.ReplaceAll(err.Error(), d.Upstream.Reveal(), RedactURL(d.Upstream.Reveal()))
	l.errorf(d.placed["upstream"], key, "%s", strings.TrimPrefix(text, "upstream: "))
}

// HasControl reports whether a control role is configured.
func (d Database) HasControl() bool { return d.controlUser() != "" }

func (d Database) controlUser() string {
	if d.ControlUser != "" {
		return d.ControlUser
	}
	user, _, _, _ := splitUserinfo(d.Upstream.Reveal())
	return user
}

// checkExposure warns of listeners that others can reach while this version speaks no TLS to clients.
func (l *loader) checkExposure() {
	for _, a := range l.cfg.Listen {
		if !strings.HasPrefix(a, "unix:") && !loopback(a) {
			l.warnf(l.placed["listen"], "listen", "%s: clients connect without TLS: passwords of pg_hba methods other than SCRAM and all data cross the network in clear (TLS towards clients is not supported in this version)", a)
			break
		}
	}
	if l.cfg.Admin != "" && !loopback(l.cfg.Admin) {
		l.warnf(l.placed["admin"], "admin", "%s: health and metrics can be read by everybody who reaches this address", l.cfg.Admin)
	}
}

func loopback(hostport string) bool {
	host, _, err := net.SplitHostPort(hostport)
	if err != nil {
		return false
	}
	if host == "localhost" {
		return true
	}
	ip := net.ParseIP(host)
	return ip != nil && ip.IsLoopback()
}

// boolToLine points at the first line of a file when there is one.
func boolToLine(file string) int {
	if file == "" {
		return 0
	}
	return 1
}

// Summary writes what the configuration amounts to, without secrets.
func (c *Config) Summary(w io.Writer) {
	row := func(name, format string, args ...any) {
		fmt.Fprintf(w, "%-16s %s\n", name, fmt.Sprintf(format, args...))
	}
	row("node", "%s", c.Node)
	row("listen", "%s", strings.Join(c.Listen, ", "))
	row("admin", "%s", orOff(c.Admin))
	row("state_dir", "%s", c.StateDir)
	if c.Cluster.Embedded() {
		row("nats", "embedded, listening on %s", c.Cluster.Listen)
		if r := c.Cluster.Routes; r.Enabled() {
			row("routes", "%s with %s (%s)", r.Listen, strings.Join(r.Peers, ", "), r.protection())
		}
	} else {
		for _, u := range c.Cluster.URLs {
			row("nats", "%s", RedactURL(u.Reveal()))
		}
	}
	row("lease", "%s, then %s", shortDuration(c.Cluster.Lease), c.Cluster.whenStale())
	for _, name := range sortedNames(c.Databases) {
		d := c.Databases[name]
		control := "no control role"
		if d.ControlUser != "" {
			control = "control role " + d.ControlUser
		} else if user, _, _, ok := splitUserinfo(d.Upstream.Reveal()); ok && user != "" {
			control = "control role " + user
		}
		row("database", "%s -> %s (%s)", name, RedactURL(d.Upstream.Reveal()), control)
	}
	row("login", "passthrough, %s at most, %d at a time", shortDuration(c.Limits.LoginTimeout), c.Limits.MaxLogins)
	row("channel binding", "not offered (SCRAM-SHA-256-PLUS is removed): clients need channel_binding=prefer, the default, or disable")
	row("sessions", "%s, per principal %s", orWord(c.Limits.MaxSessions, "as many as descriptors allow"), orWord(c.Limits.PerPrincipal, "no limit"))
	row("timeouts", "idle %s, idle in transaction %s, session %s, drain %s", orNever(c.Timeouts.IdleSession),
		orNever(c.Timeouts.IdleInTransaction), orNever(c.Timeouts.SessionMax), shortDuration(c.Timeouts.Drain))
	if c.Drill.User != "" {
		row("drill", "canary %s in database %s", c.Drill.User, c.Drill.Database)
	}
	row("audit", "%s", orOff(c.Audit.File))
}

// whenStale says what becomes of sessions when the lease has ended. With on_stale left out it is what the node does then.
func (c Cluster) whenStale() string {
	switch {
	case c.OnStale == "serve", c.OnStale == "" && c.Embedded() && !c.Routes.Enabled():
		return "sessions go on, and no verdict counts on this node"
	case c.OnStale == "drop":
		return "sessions end and logins are refused"
	}
	return fmt.Sprintf("sessions are frozen for %s at most (%s in a transaction) and logins are refused", shortDuration(c.Freeze), shortDuration(c.FreezeInTransaction))
}

func orOff(s string) string {
	if s == "" {
		return "off"
	}
	return s
}

func orNever(d time.Duration) string {
	if d == 0 {
		return "never"
	}
	return shortDuration(d)
}

func orWord(n int, word string) string {
	if n == 0 {
		return word
	}
	return fmt.Sprint(n)
}
