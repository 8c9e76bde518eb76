// Package fleet runs a fleet of pgedge as it is run in earnest: real node processes, real NATS server processes, a load
// balancer in front, network namespaces whose links can be cut. Tests, the soak and the benchmarks use it. It knows
// pgedge from outside only, by its binary, its configuration and its command line.
package fleet

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"pgedge/internal/pgserver"
)

// Options says what a fleet consists of. Zero durations leave a node its default.
type Options struct {
	Nodes int // node processes, named edge-1, edge-2 ...
	NATS  int // NATS server processes; the streams have as many copies, at most 3

	// Namespaces puts each of the first so many nodes into a network namespace of its own, whose link to the NATS
	// servers can be cut without touching its clients. It takes root.
	Namespaces int
	// Balancer starts HAProxy in front of the nodes that have no namespace.
	Balancer bool

	Postgres *pgserver.Server // started by the caller; it has to listen on all addresses for nodes in namespaces
	// Upstreams, if there are any, are used in place of Postgres, round robin over the nodes: host:port of servers that
	// let the control role in with its usual password.
	Upstreams []string
	// Binaries that are not named are built.
	Binaries Binaries

	Heartbeat, Lease, Freeze, FreezeInTransaction, VerifyTimeout, Drain time.Duration
	OnStale                                                             string
	// Extra is appended to every node's configuration file.
	Extra string
}

// Fleet is a running fleet.
type Fleet struct {
	Options
	Dir       string
	NATS      *NATS
	Nodes     []*Node
	Front     *Balancer // nil without Options.Balancer
	namespace []*namespace
}

// Start starts the NATS servers, creates the streams, and starts the nodes. It returns when every node serves. After
// an error nothing is left.
func Start(ctx context.Context, o Options) (_ *Fleet, err error) {
	dir, err := os.MkdirTemp("", "pgedge-fleet-")
	if err != nil {
		return nil, err
	}
	f := &Fleet{Options: o, Dir: dir}
	defer func() {
		if err != nil {
			err = errors.Join(err, f.Stop())
		}
	}()
	if f.Binaries, err = f.Binaries.complete(ctx, dir); err != nil {
		return nil, err
	}
	host := "127.0.0.1"
	if o.Namespaces > 0 {
		host = "0.0.0.0"
	}
	if f.NATS, err = startNATS(ctx, f.Binaries.NATS, dir, host, o.NATS); err != nil {
		return nil, err
	}
	if err := f.createStreams(ctx); err != nil {
		return nil, err
	}
	for i := range o.Nodes {
		n, err := f.newNode(i)
		if err != nil {
			return nil, err
		}
		f.Nodes = append(f.Nodes, n)
		if err := n.Launch(); err != nil {
			return nil, err
		}
	}
	for _, n := range f.Nodes {
		if err := n.AwaitReady(ctx); err != nil {
			return nil, err
		}
	}
	if o.Balancer {
		if f.Front, err = f.startBalancer(ctx); err != nil {
			return nil, err
		}
	}
	return f, nil
}

// createStreams runs `pgedge cluster init` as an operator would. The servers may still be electing a leader.
func (f *Fleet) createStreams(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 60*time.Second)
	defer cancel()
	var last Result
	err := poll(ctx, "pgedge cluster init to succeed", func() (bool, error) {
		last = f.CLI(ctx, "cluster", "init", "--replicas", fmt.Sprint(min(f.Options.NATS, 3)))
		return last.Code == 0, nil
	})
	if err != nil {
		return fmt.Errorf("%w\n%s", err, last)
	}
	return f.NATS.AwaitStreams(ctx)
}

// Stop ends everything and removes what it has left on disk.
func (f *Fleet) Stop() error {
	var errs []error
	var stopping []*Node
	if f.Front != nil {
		_ = f.Front.Stop() // HAProxy ends with a status of its own on SIGTERM
	}
	for _, n := range f.Nodes {
		if n.Process != nil && n.Running() {
			n.Continue()
			n.Terminate() // all at the same time: each may drain for a while
			stopping = append(stopping, n)
		}
	}
	for _, n := range stopping {
		errs = append(errs, n.Stop())
	}
	if f.NATS != nil {
		f.NATS.stop()
	}
	for _, ns := range f.namespace {
		errs = append(errs, ns.remove())
	}
	return errors.Join(append(errs, os.RemoveAll(f.Dir))...)
}

// Logs is the newest part of what every process has said, for a failure's report.
func (f *Fleet) Logs() string {
	var b strings.Builder
	for _, n := range f.Nodes {
		if n.Process != nil {
			fmt.Fprintf(&b, "--- %s\n%s\n", n.Name, tail(n.Log(), 30))
		}
	}
	if f.NATS != nil {
		for _, s := range f.NATS.Servers {
			if s.Process != nil {
				fmt.Fprintf(&b, "--- %s\n%s\n", s.Process.Name, tail(s.Log(), 25))
			}
		}
	}
	return b.String()
}

func tail(text string, lines int) string {
	all := strings.Split(text, "\n")
	return strings.Join(all[max(0, len(all)-lines):], "\n")
}

func (f *Fleet) path(name string) string { return filepath.Join(f.Dir, name) }
