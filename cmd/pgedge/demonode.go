package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"time"

	"pgedge/internal/pgserver"
)

// demoStopLimit is how long a node may take to stop before it is killed.
const demoStopLimit = 8 * time.Second

// demoLogLines is how much of a node's log is kept for the case that something goes wrong.
const demoLogLines = 40

// demoNode is a real `pgedge serve`, in a process of its own.
type demoNode struct {
	name, stateDir string
	addr           string // where it accepts clients

	process *os.Process
	exited  chan struct{}
	mu      sync.Mutex
	log     []string
}

// startNode runs a node and returns once it is ready. Its secrets go through the environment, where ps does not show
// them to everybody.
func (d *demo) startNode(ctx context.Context, name, natsURL string) (*demoNode, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, fmt.Errorf("cannot find this program: %w", err)
	}
	n := &demoNode{name: name, stateDir: filepath.Join(d.dir, name), exited: make(chan struct{})}
	cmd := exec.Command(self, "serve", "--node", name, "--listen", "127.0.0.1:0", "--admin", "off", "--state-dir", n.stateDir, "--log-format", "json")
	cmd.Env = append(cleanEnviron(),
		"PGEDGE_UPSTREAM="+d.pg.URL("pgedge_control", pgserver.Password("pgedge_control"), pgserver.Database),
		"PGEDGE_CONTACT=security@example.com")
	if natsURL != "" {
		cmd.Env = append(cmd.Env, "PGEDGE_CLUSTER_NATS="+natsURL)
	}
	// A process group of its own: Ctrl-C is for the demo, which stops its nodes in order. Should the demo be killed,
	// the kernel stops them.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGTERM}
	logs, err := cmd.StderrPipe()
	if err != nil {
		return nil, fmt.Errorf("cannot start node %s: %w", name, err)
	}
	started := make(chan error, 1)
	ready := make(chan string, 1)
	go n.run(cmd, logs, started, ready)
	if err := <-started; err != nil {
		return nil, fmt.Errorf("cannot start node %s: %w", name, err)
	}
	d.nodes = append(d.nodes, n)
	select {
	case n.addr = <-ready:
		return n, nil
	case <-n.exited:
		return nil, fmt.Errorf("node %s ended before it was ready", name)
	case <-ctx.Done():
		return nil, fmt.Errorf("node %s did not become ready: %w", name, ctx.Err())
	}
}

// cleanEnviron is the environment without what would change a node's configuration.
func cleanEnviron() []string {
	var out []string
	for _, kv := range os.Environ() {
		if !strings.HasPrefix(kv, "PGEDGE_") {
			out = append(out, kv)
		}
	}
	return out
}

// run owns the process from start to end. It keeps its thread: the kernel sends Pdeathsig when the thread that
// started the process ends, not the program.
func (n *demoNode) run(cmd *exec.Cmd, logs io.Reader, started chan<- error, ready chan<- string) {
	runtime.LockOSThread()
	if err := cmd.Start(); err != nil {
		started <- err
		return
	}
	n.process = cmd.Process
	started <- nil
	lines := bufio.NewScanner(logs)
	lines.Buffer(nil, 1<<20)
	addr := ""
	for lines.Scan() {
		n.keep(lines.Text())
		var line struct {
			Msg     string `json:"msg"`
			Address string `json:"address"`
		}
		if json.Unmarshal(lines.Bytes(), &line) != nil {
			continue
		}
		switch line.Msg {
		case logAccepting:
			addr = line.Address
		case logReady:
			select {
			case ready <- addr:
			default:
			}
		}
	}
	// What is left, after a line that was too long, is read so that the node does not block on its log.
	_, _ = io.Copy(io.Discard, logs)
	_ = cmd.Wait()
	close(n.exited)
}

func (n *demoNode) keep(line string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.log = append(n.log, line)
	if len(n.log) > demoLogLines {
		n.log = n.log[1:]
	}
}

func (n *demoNode) logTail() string {
	n.mu.Lock()
	defer n.mu.Unlock()
	return strings.Join(n.log, "\n")
}

// stop asks, then insists: the second SIGTERM ends a drain, SIGKILL ends everything.
func (n *demoNode) stop() {
	for _, s := range []os.Signal{syscall.SIGTERM, syscall.SIGTERM, os.Kill} {
		if err := n.process.Signal(s); errors.Is(err, os.ErrProcessDone) {
			break
		}
		select {
		case <-n.exited:
			return
		case <-time.After(demoStopLimit / 2):
		}
	}
	<-n.exited
}
