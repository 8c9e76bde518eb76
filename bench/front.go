package main

import (
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"time"

	"pgedge/internal/pgserver"
)

// loginTime is how long a login may take. A storm of logins before a Postgres on the same cores can last longer than
// the proxies' defaults.
const loginTime = 10 * time.Minute

// front is what the proxies of one case stand in front of, and for how many they have to be set up. All of them relay
// whole sessions.
type front struct {
	name    string // distinguishes the cases of one run; it becomes part of file names
	addr    string // host:port of the server
	clients int    // at most at a time
	servers int    // connections to the server at most at a time; 0: as many as clients
	// secrets are the users that PgBouncer knows, with the passwords or verifiers that it checks itself. All users are
	// trusted when there are none.
	secrets map[string]string
	// hba says whom PgBouncer trusts and whom it asks when there are secrets, in the words of pg_hba.conf.
	hba string
}

// startAll returns every way to the server: direct, and through each proxy that is installed. What is missing is noted.
func (f front) startAll(ctx context.Context, r *run) ([]*target, error) {
	if f.servers == 0 {
		f.servers = f.clients
	}
	host, port, err := splitAddr(f.addr)
	if err != nil {
		return nil, err
	}
	targets := []*target{{name: "direct", host: host, port: port}}
	for _, peer := range []struct {
		name  string
		start func(front, context.Context, *run) (*target, error)
	}{{subject, front.startPgedge}, {"pgbouncer", front.startPgBouncer}, {"haproxy", front.startHAProxy}} {
		t, err := peer.start(f, ctx, r)
		if err != nil {
			return nil, err
		}
		if t == nil {
			r.note("%s is not installed: not measured (make bench-deps installs it)", peer.name)
			continue
		}
		r.version(t.name, t.version)
		targets = append(targets, t)
	}
	return targets, nil
}

func splitAddr(addr string) (string, int, error) {
	a, err := net.ResolveTCPAddr("tcp4", addr)
	if err != nil {
		return "", 0, fmt.Errorf("cannot read the address of the server: %w", err)
	}
	return a.IP.String(), a.Port, nil
}

// file is the path of a file of this case.
func (f front) file(r *run, name string) string { return filepath.Join(r.dir, f.name+name) }

func (f front) startPgedge(ctx context.Context, r *run) (*target, error) {
	ports, err := pgserver.FreePorts("127.0.0.1", 2)
	if err != nil {
		return nil, err
	}
	port, admin := ports[0], ports[1]
	binary, err := r.pgedge(ctx)
	if err != nil {
		return nil, err
	}
	conf := f.file(r, "pgedge.yaml")
	if err := os.WriteFile(conf, fmt.Appendf(nil, "limits: {login_timeout: %v}\n", loginTime), 0o644); err != nil {
		return nil, err
	}
	t := &target{name: subject, host: "127.0.0.1", port: port, admin: fmt.Sprintf("127.0.0.1:%d", admin)}
	t.proc, err = r.start(f.name+"pgedge", "", binary, "serve", "-c", conf, "--node", "bench", "--admin", t.admin, "--state-dir", f.file(r, "state"),
		"--listen", t.addr(), "--upstream",
		fmt.Sprintf("postgres://pgedge_control:%s@%s/%s?sslmode=disable", pgserver.Password("pgedge_control"), f.addr, pgserver.Database))
	if err != nil {
		return nil, err
	}
	return t, waitListening(ctx, t.proc, port)
}

func (f front) startPgBouncer(ctx context.Context, r *run) (*target, error) {
	path := peerBinary("pgbouncer")
	if path == "" {
		return nil, nil
	}
	port, err := pgserver.FreePort("127.0.0.1")
	if err != nil {
		return nil, err
	}
	host, serverPort, err := splitAddr(f.addr)
	if err != nil {
		return nil, err
	}
	// Trust with a list of users is what compares with a trust login that is passed through.
	auth, users := "trust", "\"trustuser\" \"\"\n"
	if len(f.secrets) > 0 {
		auth, users = "hba\nauth_hba_file="+f.file(r, "pgbouncer-hba.conf"), ""
		for name, secret := range f.secrets {
			users += fmt.Sprintf("\"%s\" \"%s\"\n", name, strings.ReplaceAll(secret, `"`, `""`))
		}
	}
	// The default backlog of 128 would make some clients of a storm wait for seconds, for a lost SYN.
	conf := fmt.Sprintf("[databases]\n* = host=%s port=%d\n[pgbouncer]\nlisten_addr=127.0.0.1\nlisten_port=%d\nlisten_backlog=4096\nunix_socket_dir=\nauth_type=%s\nauth_file=%s\n"+
		"pool_mode=session\nclient_login_timeout=%d\nquery_wait_timeout=%d\nmax_client_conn=%d\ndefault_pool_size=%d\nignore_startup_parameters=extra_float_digits\n",
		host, serverPort, port, auth, f.file(r, "users.txt"), int(loginTime.Seconds()), int(loginTime.Seconds()), f.clients, f.servers)
	for name, text := range map[string]string{"users.txt": users, "pgbouncer-hba.conf": f.hba, "pgbouncer.ini": conf} {
		if err := os.WriteFile(f.file(r, name), []byte(text), 0o644); err != nil {
			return nil, err
		}
	}
	p, err := r.start(f.name+"pgbouncer", "postgres", path, f.file(r, "pgbouncer.ini"))
	if err != nil {
		return nil, err
	}
	return &target{name: "pgbouncer", version: firstLine(path, "--version"), host: "127.0.0.1", port: port, proc: p}, waitListening(ctx, p, port)
}

func (f front) startHAProxy(ctx context.Context, r *run) (*target, error) {
	path := peerBinary("haproxy")
	if path == "" {
		return nil, nil
	}
	port, err := pgserver.FreePort("127.0.0.1")
	if err != nil {
		return nil, err
	}
	conf := fmt.Sprintf("global\n  maxconn %d\ndefaults\n  mode tcp\n  timeout connect 5s\n  timeout client 1h\n  timeout server 1h\n  timeout queue 1h\n"+
		"listen pg\n  bind 127.0.0.1:%d\n  server s %s maxconn %d\n", f.clients+100, port, f.addr, f.servers)
	cfg := f.file(r, "haproxy.cfg")
	if err := os.WriteFile(cfg, []byte(conf), 0o644); err != nil {
		return nil, err
	}
	p, err := r.start(f.name+"haproxy", "", path, "-db", "-f", cfg)
	if err != nil {
		return nil, err
	}
	return &target{name: "haproxy", version: firstLine(path, "-v"), host: "127.0.0.1", port: port, proc: p}, waitListening(ctx, p, port)
}
