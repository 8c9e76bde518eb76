package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"syscall"
	"time"

	"pgedge/internal/pgserver"
)

// target is one way to the server under test. A direct one has no process of its own.
type target struct {
	name    string
	version string
	host    string
	port    int
	proc    *process
}

// process is a proxy that the bench started.
type process struct {
	cmd  *exec.Cmd
	done chan error
}

func (p *process) pid() int { return p.cmd.Process.Pid }

func (p *process) stop() {
	if p == nil {
		return
	}
	p.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-p.done:
	case <-time.After(5 * time.Second):
		p.cmd.Process.Kill()
		<-p.done
	}
}

// start runs a program until stop; its output goes to a file beside its configuration. asUser is for programs that
// refuse to run as root.
func start(dir, asUser, path string, args ...string) (*process, error) {
	out, err := os.Create(filepath.Join(dir, filepath.Base(path)+".log"))
	if err != nil {
		return nil, err
	}
	defer out.Close()
	cmd := exec.Command(path, args...)
	cmd.Stdout, cmd.Stderr = out, out
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if asUser != "" && os.Getuid() == 0 {
		cred, err := credential(asUser)
		if err != nil {
			return nil, err
		}
		cmd.SysProcAttr.Credential = cred
	}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("cannot start %s: %w", path, err)
	}
	p := &process{cmd: cmd, done: make(chan error, 1)}
	go func() { p.done <- cmd.Wait() }()
	return p, nil
}

func credential(name string) (*syscall.Credential, error) {
	u, err := user.Lookup(name)
	if err != nil {
		return nil, fmt.Errorf("cannot run as %s: %w", name, err)
	}
	uid, err1 := strconv.ParseUint(u.Uid, 10, 32)
	gid, err2 := strconv.ParseUint(u.Gid, 10, 32)
	return &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}, errors.Join(err1, err2)
}

func freePort() (int, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return 0, err
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port, nil
}

// waitListening returns when port accepts, or the process is gone.
func waitListening(ctx context.Context, p *process, port int) error {
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	for {
		c, err := net.Dial("tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(port)))
		if err == nil {
			return c.Close()
		}
		select {
		case err := <-p.done:
			p.done <- err
			return fmt.Errorf("%s ended: %w", p.cmd.Path, err)
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(20 * time.Millisecond):
		}
	}
}

func startPgedge(ctx context.Context, dir string, pg *pgserver.Server, binary string) (*target, error) {
	port, err := freePort()
	if err != nil {
		return nil, err
	}
	p, err := start(dir, "", binary, "serve", "--node", "bench", "--admin", "off", "--state-dir", filepath.Join(dir, "state"),
		"--listen", fmt.Sprintf("127.0.0.1:%d", port), "--upstream",
		fmt.Sprintf("postgres://pgedge_control:%s@%s/%s?sslmode=disable", pgserver.Password("pgedge_control"), pg.Addr(), pgserver.Database))
	if err != nil {
		return nil, err
	}
	return &target{name: "pgedge", host: "127.0.0.1", port: port, proc: p}, waitListening(ctx, p, port)
}

func startPgBouncer(ctx context.Context, dir string, pg *pgserver.Server) (*target, error) {
	path, err := exec.LookPath("pgbouncer")
	if err != nil {
		if path, err = exec.LookPath("/usr/sbin/pgbouncer"); err != nil {
			return nil, nil
		}
	}
	port, err := freePort()
	if err != nil {
		return nil, err
	}
	// Trust with a list of users is what compares with a trust login that is passed through.
	conf := fmt.Sprintf("[databases]\n* = host=%s port=%d\n[pgbouncer]\nlisten_addr=127.0.0.1\nlisten_port=%d\nunix_socket_dir=\nauth_type=trust\nauth_file=%s\npool_mode=session\n"+
		"max_client_conn=1000\ndefault_pool_size=200\nignore_startup_parameters=extra_float_digits\n", pg.Host, pg.Port, port, filepath.Join(dir, "users.txt"))
	if err := os.WriteFile(filepath.Join(dir, "users.txt"), []byte("\"trustuser\" \"\"\n"), 0o644); err != nil {
		return nil, err
	}
	ini := filepath.Join(dir, "pgbouncer.ini")
	if err := os.WriteFile(ini, []byte(conf), 0o644); err != nil {
		return nil, err
	}
	p, err := start(dir, "postgres", path, ini)
	if err != nil {
		return nil, err
	}
	return &target{name: "pgbouncer", version: firstLine(path, "--version"), host: "127.0.0.1", port: port, proc: p}, waitListening(ctx, p, port)
}

func startHAProxy(ctx context.Context, dir string, pg *pgserver.Server) (*target, error) {
	path, err := exec.LookPath("haproxy")
	if err != nil {
		if path, err = exec.LookPath("/usr/sbin/haproxy"); err != nil {
			return nil, nil
		}
	}
	port, err := freePort()
	if err != nil {
		return nil, err
	}
	conf := fmt.Sprintf("global\n  maxconn 2000\ndefaults\n  mode tcp\n  timeout connect 5s\n  timeout client 1h\n  timeout server 1h\n"+
		"listen pg\n  bind 127.0.0.1:%d\n  server s %s\n", port, pg.Addr())
	cfg := filepath.Join(dir, "haproxy.cfg")
	if err := os.WriteFile(cfg, []byte(conf), 0o644); err != nil {
		return nil, err
	}
	p, err := start(dir, "", path, "-db", "-f", cfg)
	if err != nil {
		return nil, err
	}
	return &target{name: "haproxy", version: firstLine(path, "-v"), host: "127.0.0.1", port: port, proc: p}, waitListening(ctx, p, port)
}
