package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"sync"
	"time"

	"pgedge/bench/backend"
)

// childBackend is a process that plays a Postgres server until it is told to end.
const childBackend = "child-backend"

// backendLine is what such a process prints, one JSON object per line: first its address, then what it did not know.
type backendLine struct {
	Addr    string `json:"addr,omitempty"`
	Unknown string `json:"unknown,omitempty"`
}

func runBackend(ctx context.Context, _ []string) error {
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		return err
	}
	var mu sync.Mutex
	out := json.NewEncoder(os.Stdout)
	say := func(line backendLine) error {
		mu.Lock()
		defer mu.Unlock()
		return out.Encode(line)
	}
	if err := say(backendLine{Addr: l.Addr().String()}); err != nil {
		return err
	}
	s := backend.New(func(sql string) {
		if say(backendLine{Unknown: sql}) != nil {
			os.Exit(1) // nobody would learn that the run is void
		}
	})
	return s.Serve(ctx, l)
}

// playedBackend is such a process, seen from the one that measures.
type playedBackend struct {
	addr string
	proc *process

	mu      sync.Mutex
	unknown []string
}

// playBackend starts a server that is only played, until the run ends.
func (r *run) playBackend(ctx context.Context, name string) (*playedBackend, error) {
	p := &playedBackend{}
	var out io.ReadCloser
	var err error
	p.proc, err = r.startSelf(name, func(cmd *exec.Cmd) (err error) {
		out, err = cmd.StdoutPipe()
		return err
	}, childBackend)
	if err != nil {
		return nil, err
	}
	first := make(chan string, 1)
	go p.listen(out, first)
	select {
	case p.addr = <-first:
	case <-time.After(10 * time.Second):
	case <-ctx.Done():
	}
	if p.addr == "" {
		return nil, errors.Join(fmt.Errorf("%s did not start", name), ctx.Err())
	}
	r.version("backend", backend.Version)
	return p, nil
}

func (p *playedBackend) listen(out io.Reader, first chan<- string) {
	lines := bufio.NewScanner(out)
	for lines.Scan() {
		var line backendLine
		if json.Unmarshal(lines.Bytes(), &line) != nil {
			continue
		}
		if line.Addr != "" {
			first <- line.Addr
		}
		if line.Unknown != "" {
			p.mu.Lock()
			p.unknown = append(p.unknown, line.Unknown)
			p.mu.Unlock()
		}
	}
}

// check is an error when the server was asked something that it does not know: what was measured is void then.
func (p *playedBackend) check() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.unknown) > 0 {
		return fmt.Errorf("the bench backend was sent %d statements that it does not know; the first: %s", len(p.unknown), p.unknown[0])
	}
	select {
	case <-p.proc.done:
		return fmt.Errorf("the bench backend has ended: %w", p.proc.err)
	default:
		return nil
	}
}
