package main

import (
	"fmt"
	"maps"
	"net"
	"slices"
	"strings"
	"time"

	"pgedge/cmd/pgedge/config"
	"pgedge/engine"
)

const (
	oldestPostgres = 14
	newestPostgres = 18
	// maxDirectShown bounds the sessions past pgedge that are spelled out.
	maxDirectShown = 3
)

func databaseNames(c *config.Config) []string { return slices.Sorted(maps.Keys(c.Databases)) }

// upstreamOf is what the engine makes of a database's configuration.
func upstreamOf(d config.Database) (engine.Upstream, error) {
	up, err := engine.ParseUpstream(d.Upstream.Reveal())
	if err == nil && d.ControlUser != "" {
		up.Control = &engine.Credential{User: d.ControlUser, Password: d.ControlPassword.Reveal()}
	}
	return up, err
}

func (d *doctor) upstreams() {
	for _, name := range databaseNames(d.cfg) {
		up, err := upstreamOf(d.cfg.Databases[name])
		if err != nil {
			d.note(levelFail, "upstream", "", "databases.%s: %v", name, err)
			continue
		}
		probes, err := engine.ProbeUpstream(d.deadline, up)
		if err != nil {
			d.note(levelFail, "upstream", "", "databases.%s: %v", name, err)
			continue
		}
		for _, p := range probes {
			d.server(name, up, p)
			if d.cfg.Databases[name].Sweep && p.Usable && !p.MayNoLogin {
				d.note(levelFail, "control role", "ALTER ROLE "+p.ControlAs+" CREATEROLE; from PostgreSQL 16 on it needs ADMIN OPTION on the roles as well",
					"%s at %s: %s may not set roles NOLOGIN, which sweep: true asks for", name, p.Host, p.ControlAs)
			}
		}
	}
}

// server tells what one server has shown.
func (d *doctor) server(name string, up engine.Upstream, p engine.Probe) {
	what := name + " at " + p.Host
	if p.Unreachable != nil {
		d.note(levelFail, "upstream", "check the address, the network and listen_addresses", "%s cannot be reached: %v", what, p.Unreachable)
		return
	}
	if p.Version > 0 {
		major := p.Version / 10000
		level, do := levelOK, ""
		if major < oldestPostgres || major > newestPostgres {
			level, do = levelWarn, fmt.Sprintf("pgedge is made for PostgreSQL %d to %d", oldestPostgres, newestPostgres)
		}
		d.note(level, "upstream", do, "%s: PostgreSQL %d.%d, round trip %s", what, major, p.Version%10000, milliseconds(float64(p.RoundTrip.Microseconds())/1000))
	} else {
		d.note(levelOK, "upstream", "", "%s can be reached", what)
	}
	d.serverTLS(what, up, p)
	d.control(what, up, p)
	if p.Version == 0 {
		return
	}
	if !p.ChecksDead {
		d.note(levelWarn, "upstream", "use PostgreSQL 14 or newer on Linux", "%s does not take client_connection_check_interval: should a node die, its statements run on", what)
	}
	d.clockOf(what, p.ClockAhead, p.RoundTrip)
	d.bypass(what, p)
}

func (d *doctor) serverTLS(what string, up engine.Upstream, p engine.Probe) {
	mode := orWord(up.SSLMode, "prefer")
	if len(p.Certificates) > 0 {
		level := levelFail
		if mode == "prefer" || mode == "require" && up.SSLRootCert == "" {
			level = levelWarn // nobody looks at it
		}
		d.expiry("certificates", what, p.Certificates, level)
	}
	host, _, err := net.SplitHostPort(p.Host)
	if ip := net.ParseIP(host); err != nil || host == "localhost" || ip != nil && ip.IsLoopback() {
		return // this machine, or a unix socket
	}
	if mode != "verify-full" && mode != "verify-ca" {
		d.note(levelWarn, "upstream", "use sslmode=verify-full and sslrootcert", "%s: with sslmode=%s nothing proves that it is this server", what, mode)
	}
}

func (d *doctor) control(what string, up engine.Upstream, p engine.Probe) {
	const verified = "without it kills are not seen to be done (exit code 3)"
	switch {
	case up.Control == nil:
		d.note(levelWarn, "control role", "create one: docs/configuration.md, The control role", "%s has none: %s", what, verified)
	case p.NoLogin != nil:
		d.note(levelFail, "control role", "check control.user, control.password_file and pg_hba.conf", "%s: %s cannot be used: %v", what, p.ControlAs, p.NoLogin)
	case !p.Usable:
		do := ""
		if strings.Contains(p.Missing, "not a member of") {
			var missing []string
			for _, role := range []string{"pg_signal_backend", "pg_read_all_stats"} {
				if strings.Contains(p.Missing, role) {
					missing = append(missing, role)
				}
			}
			do = "GRANT " + strings.Join(missing, ", ") + " TO " + p.ControlAs
		}
		d.note(levelFail, "control role", do, "%s: %s: %s", what, p.Missing, verified)
	case p.Superuser:
		d.note(levelWarn, "control role", "use a role that is a member of pg_signal_backend and pg_read_all_stats, and no more", "%s: %s works, and is a superuser", what, p.ControlAs)
	default:
		by := "port"
		if !p.ByPort {
			by = "start time, since something in between hides ports"
		}
		d.note(levelOK, "control role", "", "%s: %s has found a session of its own by its %s, and ended it", what, p.ControlAs, by)
	}
}

// bypass tells of ways to Postgres that do not lead through pgedge.
func (d *doctor) bypass(what string, p engine.Probe) {
	for _, line := range p.OpenHBA {
		d.note(levelWarn, "bypass", "let in the nodes' addresses only", "%s: pg_hba.conf lets every address in: %s", what, line)
	}
	switch {
	case !p.Usable:
		d.note(levelSkip, "bypass", "", "%s: sessions past pgedge are hidden from a control role without its rights", what)
		return
	case d.fleet == nil:
		d.note(levelSkip, "bypass", "", "%s: sessions past pgedge are not told apart, since the fleet could not be asked", what)
		return
	case len(d.fleet.missing) > 0:
		d.note(levelSkip, "bypass", "", "%s: sessions past pgedge are not told apart, since %s did not answer", what, strings.Join(d.fleet.missing, ", "))
		return
	}
	// Once before the server was asked and once now: a session that began in between is known to the second list only.
	if err := d.fleet.addSessions(d.deadline); err != nil {
		d.note(levelSkip, "bypass", "", "%s: sessions past pgedge are not told apart: %v", what, err)
		return
	}
	var direct []string
	for _, b := range p.Backends {
		if !d.fleet.knows(b.PID, b.Role) {
			direct = append(direct, fmt.Sprintf("%s from %s (%s)", b.Role, orWord(b.Client, "a unix socket"), orWord(b.Application, "no application name")))
		}
	}
	if len(direct) == 0 {
		text := "no session reaches it past pgedge now"
		if len(p.OpenHBA) == 0 && p.HBAHidden != "" {
			text += "; pg_hba.conf is for superusers to read"
		}
		d.note(levelOK, "bypass", "", "%s: %s", what, text)
		return
	}
	shown := direct[:min(len(direct), maxDirectShown)]
	more := ""
	if n := len(direct) - len(shown); n > 0 {
		more = fmt.Sprintf(" and %d more", n)
	}
	d.note(levelWarn, "bypass", "a revocation does not reach them: close pg_hba.conf to all but the nodes", "%s: %s past pgedge: %s%s",
		what, count(len(direct), "session", "sessions"), strings.Join(shown, ", "), more)
}

// heard is how long ago a node was heard.
func heard(ms int64) string { return age(time.Duration(ms) * time.Millisecond) }
