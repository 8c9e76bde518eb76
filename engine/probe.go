package engine

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net"
	"strconv"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
)

// maxListedBackends bounds the backends that a probe lists; more are counted only.
const maxListedBackends = 1000

// Probe is what one server of an upstream has shown to the control role.
type Probe struct {
	Host string
	// Unreachable says why no connection could be made; everything below is then empty.
	Unreachable error
	// NoLogin says why the control role could not log in; nil where there is no control role to try.
	NoLogin error

	// Certificates is what the server showed, its own first; empty without TLS.
	Certificates []*x509.Certificate

	Version    int    // server_version_num
	ControlAs  string // the control role; "" where there is none
	Superuser  bool
	Usable     bool   // it has found and ended a session of its own
	Missing    string // why it is not usable
	ByPort     bool   // backends are found by our own port; else by backend_start
	MayNoLogin bool   // it may take LOGIN from roles, as sweep: true does
	ChecksDead bool   // the server takes client_connection_check_interval
	// ClockAhead is how far the server's clock is ahead of ours, known to within RoundTrip.
	ClockAhead time.Duration
	RoundTrip  time.Duration

	// Backends are the client backends of others than the control role, at most maxListedBackends of Total.
	Backends []Backend
	Total    int
	// OpenHBA are the lines of pg_hba.conf that let any address in; HBAHidden says why they could not be read.
	OpenHBA   []string
	HBAHidden string
}

// Backend is a session as the server sees it.
type Backend struct {
	PID         uint32
	Role        string
	Database    string
	Client      string // host:port, "" for a unix socket
	Application string
}

// ProbeUpstream looks at every server of an upstream as the control role. It ends a session of its own to prove that
// it can, and changes nothing else.
func ProbeUpstream(ctx context.Context, u Upstream) ([]Probe, error) {
	if err := u.load(); err != nil {
		return nil, err
	}
	if u.Control != nil {
		control := *u.Control
		control.Database = orString(control.Database, u.Database)
		u.Control = &control
	}
	probes := make([]Probe, len(u.Hosts))
	for i, host := range u.Hosts {
		probes[i] = probeHost(ctx, &u, host)
	}
	return probes, nil
}

func probeHost(ctx context.Context, u *Upstream, host HostPort) Probe {
	p := Probe{Host: host.String()}
	network, address := host.dialArgs()
	dialCtx, cancel := context.WithTimeout(ctx, controlConnectTimeout)
	defer cancel()
	raw, err := (&net.Dialer{}).DialContext(dialCtx, network, address)
	if err != nil {
		p.Unreachable = err
		return p
	}
	at := raw.RemoteAddr()
	raw.Close()
	p.Certificates = shownCertificates(ctx, u, host, at)
	if u.Control == nil {
		return p
	}
	p.ControlAs = u.Control.User
	c := &controller{upstream: u, host: host, network: at.Network(), address: at.String()}
	conn, err := c.dial(ctx, nil)
	if err != nil {
		p.NoLogin = err
		return p
	}
	defer conn.Close(ctx)
	proven, err := c.prove(ctx, conn)
	if err != nil {
		p.NoLogin = err
		return p
	}
	p.Superuser, p.Usable, p.Missing, p.ByPort, p.ChecksDead = proven.superuser, proven.usable, proven.missing, proven.byPort, proven.checksClients
	p.MayNoLogin = proven.mayNoLogin
	if err := p.look(ctx, conn); err != nil {
		p.NoLogin = err
	}
	return p
}

// shownCertificates asks for TLS and believes nothing: an expired certificate is what is looked for here. None is no
// error, since a login says what is wrong.
func shownCertificates(ctx context.Context, u *Upstream, host HostPort, at net.Addr) []*x509.Certificate {
	if u.tlsConfig(host) == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, controlConnectTimeout)
	defer cancel()
	raw, err := (&net.Dialer{}).DialContext(ctx, at.Network(), at.String())
	if err != nil {
		return nil
	}
	defer raw.Close()
	if deadline, ok := ctx.Deadline(); ok {
		raw.SetDeadline(deadline)
	}
	blind := Upstream{SSLMode: "prefer"}
	tc, err := blind.negotiateTLS(ctx, raw, host)
	if err != nil || tc == nil {
		return nil
	}
	return peerCertificates(tc)
}

func peerCertificates(tc *tls.Conn) []*x509.Certificate { return tc.ConnectionState().PeerCertificates }

// look reads what the server says about itself and about others.
func (p *Probe) look(ctx context.Context, conn *pgconn.PgConn) error {
	before := time.Now()
	out, err := rows(ctx, conn, "SELECT current_setting('server_version_num'), extract(epoch from clock_timestamp())::text")
	after := time.Now()
	if err != nil || len(out) != 1 {
		return fmt.Errorf("cannot read version and clock: %w", err)
	}
	p.Version, _ = strconv.Atoi(out[0][0]) // a server whose version is no number has version 0
	p.RoundTrip = after.Sub(before)
	if seconds, err := strconv.ParseFloat(out[0][1], 64); err == nil {
		theirs := time.UnixMicro(int64(seconds * 1e6))
		p.ClockAhead = theirs.Sub(before.Add(p.RoundTrip / 2))
	}
	out, err = rows(ctx, conn, `SELECT pid, coalesce(usename, ''), coalesce(datname, ''),
       CASE WHEN client_addr IS NULL THEN '' ELSE host(client_addr) || ':' || client_port END, coalesce(application_name, ''), count(*) OVER ()
FROM pg_stat_activity WHERE backend_type = 'client backend' AND usename IS DISTINCT FROM current_user AND pid <> pg_backend_pid()
ORDER BY backend_start LIMIT `+strconv.Itoa(maxListedBackends))
	if err != nil {
		return fmt.Errorf("cannot read pg_stat_activity: %w", err)
	}
	for _, row := range out {
		pid, err := strconv.ParseUint(row[0], 10, 32)
		if err != nil {
			continue
		}
		p.Backends = append(p.Backends, Backend{PID: uint32(pid), Role: row[1], Database: row[2], Client: row[3], Application: row[4]})
		p.Total, _ = strconv.Atoi(row[5])
	}
	out, err = rows(ctx, conn, `SELECT line_number::text, type, array_to_string(database, ','), array_to_string(user_name, ','), address, auth_method
FROM pg_hba_file_rules WHERE error IS NULL AND type LIKE 'host%' AND auth_method <> 'reject' AND (address IN ('all', '0.0.0.0', '::'))
 AND (address = 'all' OR netmask IN ('0.0.0.0', '::')) ORDER BY line_number`)
	if err != nil {
		p.HBAHidden = err.Error()
		return nil
	}
	for _, row := range out {
		p.OpenHBA = append(p.OpenHBA, fmt.Sprintf("line %s: %s %s %s %s %s", row[0], row[1], row[2], row[3], row[4], row[5]))
	}
	return nil
}

// SessionCapacity is how many sessions a process with this many descriptors can hold, at most wanted if that is not 0.
// It is an error when wanted is more than it can, or when there is no room at all.
func SessionCapacity(descriptors, wanted int) (int, error) {
	c, err := divide(min(descriptors, 1<<22), wanted)
	return c.sessions, err
}
