package fleet

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"time"
)

const (
	// stopPatience is how long a process may take to obey a signal before it is killed.
	stopPatience = 15 * time.Second
	// logLines is how much of a process's output is kept for the case that something goes wrong.
	logLines = 400
)

// Process is one program that the fleet runs. Its methods may be called from several goroutines.
type Process struct {
	Name string

	cmd    *exec.Cmd
	exited chan struct{} // closed after Wait
	err    error         // written before exited is closed

	mu      sync.Mutex
	lines   []string
	onLine  func(string)
	stopped bool // by SIGSTOP
}

// startProcess runs a program, in a network namespace if one is given, until it is stopped or this process dies.
// onLine, if not nil, sees each line of its output.
func startProcess(name, netns string, onLine func(string), path string, args ...string) (*Process, error) {
	if netns != "" {
		// ip replaces itself by the program, so the process id is the program's.
		ip, err := program("ip")
		if err != nil {
			return nil, err
		}
		path, args = ip, append([]string{"netns", "exec", netns, path}, args...)
	}
	p := &Process{Name: name, exited: make(chan struct{}), onLine: onLine}
	p.cmd = exec.Command(path, args...)
	for _, kv := range os.Environ() {
		if !strings.HasPrefix(kv, "PGEDGE_") && !strings.HasPrefix(kv, "PG") {
			p.cmd.Env = append(p.cmd.Env, kv)
		}
	}
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	r, w, err := os.Pipe()
	if err != nil {
		return nil, fmt.Errorf("cannot start %s: %w", name, err)
	}
	p.cmd.Stdout, p.cmd.Stderr = w, w
	started := make(chan error, 1)
	go p.run(started, w)
	if err := <-started; err != nil {
		r.Close()
		return nil, fmt.Errorf("cannot start %s: %w", name, err)
	}
	go p.read(r)
	return p, nil
}

// run keeps its thread: the kernel sends Pdeathsig when the thread that started the process ends.
func (p *Process) run(started chan<- error, w *os.File) {
	runtime.LockOSThread()
	err := p.cmd.Start()
	w.Close()
	started <- err
	if err != nil {
		return
	}
	p.err = p.cmd.Wait()
	close(p.exited)
}

func (p *Process) read(r io.ReadCloser) {
	defer r.Close()
	lines := bufio.NewScanner(r)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		p.mu.Lock()
		p.lines = append(p.lines, lines.Text())
		if len(p.lines) > logLines {
			p.lines = p.lines[1:]
		}
		p.mu.Unlock()
		if p.onLine != nil {
			p.onLine(lines.Text())
		}
	}
	// A line that was too long ends the scanner; the process must not block on its log all the same.
	_, _ = io.Copy(io.Discard, r)
}

// Log is the newest part of the output.
func (p *Process) Log() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return strings.Join(p.lines, "\n")
}

// PID is the process id.
func (p *Process) PID() int { return p.cmd.Process.Pid }

// Exited is closed when the process has ended.
func (p *Process) Exited() <-chan struct{} { return p.exited }

// Running says that the process has not ended.
func (p *Process) Running() bool {
	select {
	case <-p.exited:
		return false
	default:
		return true
	}
}

// Kill ends the process as a crash would, and waits until it is gone.
func (p *Process) Kill() {
	p.signal(syscall.SIGKILL)
	<-p.exited
}

// Pause stops the process where it stands; Continue lets it go on.
func (p *Process) Pause() {
	p.mu.Lock()
	p.stopped = true
	p.mu.Unlock()
	p.signal(syscall.SIGSTOP)
}

// Continue undoes Pause.
func (p *Process) Continue() {
	p.mu.Lock()
	p.stopped = false
	p.mu.Unlock()
	p.signal(syscall.SIGCONT)
}

// Terminate asks the process to stop and returns at once.
func (p *Process) Terminate() { p.signal(syscall.SIGTERM) }

// Stop asks the process to stop, and kills it if it does not. The error says how it ended.
func (p *Process) Stop() error {
	p.mu.Lock()
	stopped := p.stopped
	p.mu.Unlock()
	if stopped {
		p.Continue()
	}
	p.signal(syscall.SIGTERM)
	timer := time.NewTimer(stopPatience)
	defer timer.Stop()
	select {
	case <-p.exited:
		return p.err
	case <-timer.C:
		p.Kill()
		return fmt.Errorf("%s ignored SIGTERM for %s and was killed; its log:\n%s", p.Name, stopPatience, p.Log())
	}
}

func (p *Process) signal(s syscall.Signal) {
	if err := p.cmd.Process.Signal(s); err != nil && !errors.Is(err, os.ErrProcessDone) {
		panic(fmt.Sprintf("cannot signal %s: %v", p.Name, err)) // it is this process's own child
	}
}
