// Command bench measures pgedge beside its peers: one scenario per file, all targets in one run, alternating.
//
//	go run ./bench list
//	go run ./bench relay -rounds 5 -seconds 5
//
// It starts its own Postgres, nodes and peers, and ends them. A run whose results are not correct prints no number.
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"sort"
	"syscall"
)

// scenario is one thing that is measured. run parses its own flags.
type scenario struct {
	about string
	run   func(ctx context.Context, args []string) error
}

var scenarios = map[string]scenario{
	"fleet":  {"a person with many sessions on six nodes: published to cut, closed, verified; bystanders' latency", runFleet},
	"revoke": {"200 revocations one by one, a running statement on each of six nodes: published to cut, closed, verified", runRevoke},
	"relay":  {"CPU per transaction and throughput of pgbench -S in session mode, beside PgBouncer and HAProxy", runRelay},
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if len(os.Args) < 2 || os.Args[1] == "list" || os.Args[1] == "-h" || os.Args[1] == "--help" {
		list()
		return
	}
	s, ok := scenarios[os.Args[1]]
	if !ok {
		fmt.Fprintf(os.Stderr, "bench: no scenario %q\n", os.Args[1])
		list()
		os.Exit(2)
	}
	if err := s.run(ctx, os.Args[2:]); err != nil {
		fmt.Fprintf(os.Stderr, "bench %s: %v\n", os.Args[1], err)
		os.Exit(1)
	}
}

func list() {
	fmt.Println("usage: go run ./bench SCENARIO [flags]    (-h after a scenario lists its flags)")
	names := make([]string, 0, len(scenarios))
	for name := range scenarios {
		names = append(names, name)
	}
	sort.Strings(names)
	for _, name := range names {
		fmt.Printf("  %-8s %s\n", name, scenarios[name].about)
	}
}
