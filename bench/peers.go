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
	"runtime"
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
	admin   string // address of pgedge's metrics; "" for the others
}

func (t *target) addr() string { return net.JoinHostPort(t.host, strconv.Itoa(t.port)) }

// process is a program that the bench started.
type process struct {
	cmd  *exec.Cmd
	done chan struct{} // closed once it is gone
	// err is how it ended; it is written before done is closed.
	err error
}

func (p *process) pid() int { return p.cmd.Process.Pid }

// stop ends a process politely, and after some seconds without its consent.
func (p *process) stop() error {
	if p == nil {
		return nil
	}
	p.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-p.done:
	case <-time.After(5 * time.Second):
		p.cmd.Process.Kill()
		<-p.done
	}
	return nil
}

// startChild runs a program until stop, at the latest until this process ends. Its output goes to logFile unless the
// command says otherwise. asUser is for programs that refuse to run as root.
func startChild(cmd *exec.Cmd, logFile, asUser string) (*process, error) {
	if logFile != "" {
		out, err := os.Create(logFile)
		if err != nil {
			return nil, err
		}
		defer out.Close()
		if cmd.Stdout == nil {
			cmd.Stdout = out
		}
		if cmd.Stderr == nil {
			cmd.Stderr = out
		}
	}
	// A group of its own: the terminal's interrupt reaches the bench alone, which ends its children in order.
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setpgid: true}
	if asUser != "" && os.Getuid() == 0 {
		cred, err := credential(asUser)
		if err != nil {
			return nil, err
		}
		cmd.SysProcAttr.Credential = cred
	}
	p := &process{cmd: cmd, done: make(chan struct{})}
	started := make(chan error)
	go func() {
		// The death that Pdeathsig speaks of is that of the thread which started the child.
		runtime.LockOSThread()
		err := cmd.Start()
		started <- err
		if err == nil {
			p.err = cmd.Wait()
			close(p.done)
		}
	}()
	if err := <-started; err != nil {
		return nil, fmt.Errorf("cannot start %s: %w", cmd.Path, err)
	}
	return p, nil
}

// start runs a program whose log is kept beside its configuration until the run ends.
func (r *run) start(asUser, path string, args ...string) (*process, error) {
	p, err := startChild(exec.Command(path, args...), filepath.Join(r.dir, filepath.Base(path)+".log"), asUser)
	if err == nil {
		r.cleanup(p.stop)
	}
	return p, err
}

// startSelf runs a part of the bench, one of children, in a process of its own. The caller may set up the command's
// pipes in prepare; name makes its log file distinct.
func (r *run) startSelf(name string, prepare func(*exec.Cmd) error, child string, args ...string) (*process, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	cmd := exec.Command(self, append([]string{child}, args...)...)
	if prepare != nil {
		if err := prepare(cmd); err != nil {
			return nil, err
		}
	}
	p, err := startChild(cmd, filepath.Join(r.dir, name+".log"), "")
	if err == nil {
		r.cleanup(p.stop)
	}
	return p, err
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
		case <-p.done:
			return fmt.Errorf("%s ended: %w", p.cmd.Path, p.err)
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(20 * time.Millisecond):
		}
	}
}

func startPgedge(ctx context.Context, r *run, pg *pgserver.Server) (*target, error) {
	port, err := freePort()
	if err != nil {
		return nil, err
	}
	binary, err := r.pgedge(ctx)
	if err != nil {
		return nil, err
	}
	p, err := r.start("", binary, "serve", "--node", "bench", "--admin", "off", "--state-dir", filepath.Join(r.dir, "state"),
		"--listen", fmt.Sprintf("127.0.0.1:%d", port), "--upstream",
		fmt.Sprintf("postgres://pgedge_control:%s@%s/%s?sslmode=disable", pgserver.Password("pgedge_control"), pg.Addr(), pgserver.Database))
	if err != nil {
		return nil, err
	}
	return &target{name: "pgedge", host: "127.0.0.1", port: port, proc: p}, waitListening(ctx, p, port)
}

func startPgBouncer(ctx context.Context, r *run, pg *pgserver.Server) (*target, error) {
	path := peerBinary("pgbouncer")
	if path == "" {
		return nil, nil
	}
	port, err := freePort()
	if err != nil {
		return nil, err
	}
	// Trust with a list of users is what compares with a trust login that is passed through.
	conf := fmt.Sprintf("[databases]\n* = host=%s port=%d\n[pgbouncer]\nlisten_addr=127.0.0.1\nlisten_port=%d\nunix_socket_dir=\nauth_type=trust\nauth_file=%s\npool_mode=session\n"+
		"max_client_conn=1000\ndefault_pool_size=200\nignore_startup_parameters=extra_float_digits\n", pg.Host, pg.Port, port, filepath.Join(r.dir, "users.txt"))
	if err := os.WriteFile(filepath.Join(r.dir, "users.txt"), []byte("\"trustuser\" \"\"\n"), 0o644); err != nil {
		return nil, err
	}
	ini := filepath.Join(r.dir, "pgbouncer.ini")
	if err := os.WriteFile(ini, []byte(conf), 0o644); err != nil {
		return nil, err
	}
	p, err := r.start("postgres", path, ini)
	if err != nil {
		return nil, err
	}
	return &target{name: "pgbouncer", version: firstLine(path, "--version"), host: "127.0.0.1", port: port, proc: p}, waitListening(ctx, p, port)
}

func startHAProxy(ctx context.Context, r *run, pg *pgserver.Server) (*target, error) {
	path := peerBinary("haproxy")
	if path == "" {
		return nil, nil
	}
	port, err := freePort()
	if err != nil {
		return nil, err
	}
	conf := fmt.Sprintf("global\n  maxconn 2000\ndefaults\n  mode tcp\n  timeout connect 5s\n  timeout client 1h\n  timeout server 1h\n"+
		"listen pg\n  bind 127.0.0.1:%d\n  server s %s\n", port, pg.Addr())
	cfg := filepath.Join(r.dir, "haproxy.cfg")
	if err := os.WriteFile(cfg, []byte(conf), 0o644); err != nil {
		return nil, err
	}
	p, err := r.start("", path, "-db", "-f", cfg)
	if err != nil {
		return nil, err
	}
	return &target{name: "haproxy", version: firstLine(path, "-v"), host: "127.0.0.1", port: port, proc: p}, waitListening(ctx, p, port)
}

// startTargets starts every way to the server that is installed; what is missing is noted.
func startTargets(ctx context.Context, r *run, pg *pgserver.Server) ([]*target, error) {
	targets := []*target{{name: "direct", host: pg.Host, port: pg.Port}}
	for _, peer := range []struct {
		name  string
		start func(context.Context, *run, *pgserver.Server) (*target, error)
	}{{subject, startPgedge}, {"pgbouncer", startPgBouncer}, {"haproxy", startHAProxy}} {
		t, err := peer.start(ctx, r, pg)
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
