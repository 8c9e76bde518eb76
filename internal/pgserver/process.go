package pgserver

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"time"
)

const (
	maxLogBytes = 256 << 10
	// readyLine is what the postmaster logs when it accepts connections; lc_messages is C.
	readyLine = "database system is ready to accept connections"

	stopTimeout = 20 * time.Second // for Postgres to obey a shutdown signal, before SIGKILL
)

var errPortTaken = errors.New("the port is taken")

// process is one running postmaster.
type process struct {
	cmd    *exec.Cmd
	log    *serverLog
	exited chan struct{} // closed after Wait; waitErr may be read then
	// waitErr is written before exited is closed.
	waitErr error
}

// startPostgres runs the postmaster and returns when it says that it is ready and ping has succeeded. On error the
// process is gone.
func startPostgres(ctx context.Context, binDir string, who *owner, dataDir string, ping func(context.Context) error) (*process, error) {
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()

	p := &process{log: newServerLog(), exited: make(chan struct{})}
	p.cmd = exec.Command(filepath.Join(binDir, "postgres"), "-D", dataDir)
	p.cmd.Dir = dataDir
	p.cmd.Env = serverEnv()
	p.cmd.Stdout, p.cmd.Stderr = p.log, p.log
	p.cmd.WaitDelay = 5 * time.Second // A backend that outlives the postmaster keeps the log's pipe open.
	// SIGQUIT is Postgres's immediate shutdown, which takes the backends along. Setpgid keeps a ^C at the terminal
	// from reaching the postmaster before the program under it has finished its own clean-up.
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Credential: who.credential(), Pdeathsig: syscall.SIGQUIT, Setpgid: true}

	started := make(chan error, 1)
	go p.run(started)
	if err := <-started; err != nil {
		return nil, fmt.Errorf("cannot start postgres: %w", err)
	}
	select {
	case <-p.log.ready:
	case <-p.exited:
		if p.log.contains("could not bind") {
			return nil, fmt.Errorf("cannot start postgres: %w; its log:\n%s", errPortTaken, p.log)
		}
		return nil, fmt.Errorf("cannot start postgres: it exited (%v); its log:\n%s", p.waitErr, p.log)
	case <-ctx.Done():
		return nil, errors.Join(fmt.Errorf("cannot start postgres: %w; its log:\n%s", ctx.Err(), p.log), p.stop())
	}
	if err := ping(ctx); err != nil {
		return nil, errors.Join(fmt.Errorf("cannot use the new postgres: %w; its log:\n%s", err, p.log), p.stop())
	}
	return p, nil
}

// run starts the process and waits for it on one locked thread: the parent-death signal is tied to the thread
// that forked, and the Go runtime ends idle threads as it likes.
func (p *process) run(started chan<- error) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	err := p.cmd.Start()
	started <- err
	if err != nil {
		return
	}
	p.waitErr = p.cmd.Wait()
	close(p.exited)
}

// stop asks for an immediate shutdown, and kills what does not obey.
func (p *process) stop() error {
	if p.signal(syscall.SIGQUIT) {
		return nil
	}
	pid := p.cmd.Process.Pid
	// The whole process group: with the postmaster killed, its backends would not notice for a while.
	if err := syscall.Kill(-pid, syscall.SIGKILL); err != nil && !errors.Is(err, syscall.ESRCH) {
		return fmt.Errorf("cannot kill postgres (pid %d): %w", pid, err)
	}
	<-p.exited
	return fmt.Errorf("postgres (pid %d) ignored the shutdown for %v and was killed; its log:\n%s", pid, stopTimeout, p.log)
}

// signal sends a shutdown signal and reports whether the process ended in time.
func (p *process) signal(sig syscall.Signal) bool {
	// An error means that the process has already ended, which the select below sees.
	_ = p.cmd.Process.Signal(sig)
	timer := time.NewTimer(stopTimeout)
	defer timer.Stop()
	select {
	case <-p.exited:
		return true
	case <-timer.C:
		return false
	}
}

// serverEnv leaves out PG* and LC_* variables: the server's behaviour must not depend on who starts it.
func serverEnv() []string {
	env := []string{"PATH=" + os.Getenv("PATH"), "LC_ALL=C", "TZ=UTC"}
	if v, ok := os.LookupEnv("LD_LIBRARY_PATH"); ok {
		env = append(env, "LD_LIBRARY_PATH="+v)
	}
	return env
}

// runProgram runs one of Postgres's programs as the server's user and shows its output when it fails.
func runProgram(ctx context.Context, who *owner, dir, path string, args ...string) error {
	cmd := exec.CommandContext(ctx, path, args...)
	cmd.Dir, cmd.Env = dir, serverEnv()
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: who.credential()}
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("cannot run %s: %w\n%s", filepath.Base(path), err, bytes.TrimSpace(out))
	}
	return nil
}

// serverLog keeps the newest maxLogBytes and tells when the server is ready.
type serverLog struct {
	ready chan struct{} // closed once

	mu      sync.Mutex
	buf     []byte
	isReady bool
}

func newServerLog() *serverLog { return &serverLog{ready: make(chan struct{})} }

// Write never fails: the server must not be stopped by its log.
func (l *serverLog) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.buf = append(l.buf, b...)
	if !l.isReady && bytes.Contains(l.buf, []byte(readyLine)) {
		l.isReady = true
		close(l.ready)
	}
	if over := len(l.buf) - maxLogBytes; over > 0 {
		l.buf = append(l.buf[:0], l.buf[over:]...)
	}
	return len(b), nil
}

func (l *serverLog) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return string(l.buf)
}

func (l *serverLog) contains(s string) bool { return strings.Contains(l.String(), s) }
