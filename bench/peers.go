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

// start runs a program whose log is kept until the run ends, under the name of what it is started for.
func (r *run) start(name, asUser, path string, args ...string) (*process, error) {
	p, err := startChild(exec.Command(path, args...), filepath.Join(r.dir, name+".log"), asUser)
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

// startTargets starts every way to a server that trusts its users.
func startTargets(ctx context.Context, r *run, pg *pgserver.Server) ([]*target, error) {
	return front{addr: pg.Addr(), clients: 1000, servers: 200}.startAll(ctx, r)
}
