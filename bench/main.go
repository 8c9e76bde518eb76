// Command bench measures pgedge beside its peers: one scenario per file, all targets in one run, alternating.
//
//	go run ./bench list
//	go run ./bench relay -rounds 5 -seconds 5
//	go run ./bench all -quick
//
// It starts its own Postgres, nodes, peers and load, and ends them. A run whose results are not correct prints no number.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"maps"
	"os"
	"os/signal"
	"runtime"
	"slices"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"pgedge/bench/load"
)

// scenario is one thing that is measured.
type scenario struct {
	goal  string // the rows of the goals it answers, "P1"; "" when it answers none
	about string
	// flags registers the scenario's own flags and returns what runs it once they are parsed.
	flags func(fs *flag.FlagSet) func(ctx context.Context, r *run) error
}

var scenarios = map[string]scenario{
	"relay":    {"P1", "CPU per transaction, throughput and latency of pgbench -S in session mode, beside PgBouncer and HAProxy", relayFlags},
	"prepared": {"P2", "the same with prepared statements; session mode, since there are no pools yet", preparedFlags},
	"copy":     {"P3", "COPY out and in of 1.5 GB, CPU per GB and memory of the proxy, and a client that falls asleep while it reads", copyFlags},
	"logins":   {"P4", "logins per second and CPU of each, eight clients that come and go and a storm, and what established sessions notice", loginsFlags},
	"memory":   {"P5", "resident memory of one more idle session, beside PgBouncer and HAProxy, and what the Go runtime says of it", memoryFlags},
	"cut":      {"P6", "one person after the other revoked among many: published to gate closed, and every step of the way", cutFlags},
	"mass":     {"P7", "a person with many sessions in one process: all gates, all sockets, and what bystanders notice", massFlags},
	"fleet":    {"P8", "people with a session on each node of a large fleet: published to gates closed, and to all receipts", fleetFlags},
	"growth":   {"P10", "what a revocation costs among 1,000 to 1,000,000 sessions in memory, and what a session weighs there", growthFlags},
	"verified": {"P9", "a running statement of a person who is revoked, in front of a real Postgres: published to backend seen gone", verifiedFlags},
}

// order is the order of `all`: what disturbs the machine least comes first. A scenario that is not named comes last.
var order = []string{"relay", "prepared", "copy", "logins", "memory", "cut", "verified", "mass", "fleet"}

// children are the parts that run in processes of their own, because one process holds too few descriptors or would
// measure itself. The bench starts itself with such a name as first argument: see run.startSelf.
var children = map[string]func(ctx context.Context, args []string) error{
	childBackend:  runBackend,
	load.ChildArg: func(context.Context, []string) error { return load.Child(os.Stdin, os.Stdout) },
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	endWithGoRun()
	os.Exit(command(ctx, os.Args[1:]))
}

// command returns the exit code: 0, 1 when something could not be measured, 2 for wrong usage. A goal that is not met
// is a result, not a failure.
func command(ctx context.Context, args []string) int {
	if len(args) == 0 || slices.Contains([]string{"list", "help", "-h", "-help", "--help"}, args[0]) {
		list()
		return 0
	}
	name, args := args[0], args[1:]
	if child, ok := children[name]; ok {
		if err := child(ctx, args); err != nil {
			fmt.Fprintf(os.Stderr, "bench %s: %v\n", name, err)
			return 1
		}
		return 0
	}
	if _, ok := scenarios[name]; !ok && name != "all" {
		fmt.Fprintf(os.Stderr, "bench: no scenario %q\n", name)
		list()
		return 2
	}
	b := &bench{}
	defer b.close()
	if name == "all" {
		return b.all(ctx, args)
	}
	r, err := b.run(ctx, name, args)
	switch {
	case errors.Is(err, flag.ErrHelp):
		return 0
	case errors.Is(err, errUsage):
		return 2
	case err != nil:
		tell(ctx, name, err)
		return 1
	}
	printGoals(os.Stdout, r.report.Goals)
	return 0
}

// all runs every scenario with the same common flags and goes on after one that fails.
func (b *bench) all(ctx context.Context, args []string) int {
	var goals []goalResult
	var failed []string
	names := runOrder()
	for _, name := range names { // before the first begins: a flag may be one of a single scenario
		switch _, err := b.parse(name, args); {
		case errors.Is(err, flag.ErrHelp):
			return 0
		case err != nil:
			return 2
		}
	}
	for i, name := range names {
		if ctx.Err() != nil {
			failed = append(failed, names[i:]...)
			break
		}
		fmt.Fprintf(os.Stderr, "\n== %s (%d of %d): %s\n", name, i+1, len(names), scenarios[name].about)
		r, err := b.run(ctx, name, args)
		if err != nil {
			tell(ctx, name, err)
			failed = append(failed, name)
			continue
		}
		goals = append(goals, r.report.Goals...)
	}
	printGoals(os.Stdout, goals)
	if len(failed) > 0 {
		fmt.Printf("\nno result: %s\n", strings.Join(failed, ", "))
		return 1
	}
	return 0
}

// tell says why a scenario has no result. What breaks because of an interrupt is no news.
func tell(ctx context.Context, name string, err error) {
	if ctx.Err() != nil {
		err = errors.New("interrupted")
	}
	fmt.Fprintf(os.Stderr, "bench %s: %v\n", name, err)
}

func runOrder() []string {
	var names []string
	for _, name := range append(slices.Clone(order), slices.Sorted(maps.Keys(scenarios))...) {
		if _, ok := scenarios[name]; ok && !slices.Contains(names, name) {
			names = append(names, name)
		}
	}
	return names
}

func list() {
	fmt.Println("usage: go run ./bench SCENARIO|all|list [flags]    (-h after a scenario lists its flags)")
	for _, name := range runOrder() {
		fmt.Printf("  %-9s %-4s %s\n", name, scenarios[name].goal, scenarios[name].about)
	}
}

// init keeps main on the first thread, which lives as long as the process, until endWithGoRun has used it: the kernel keeps
// the wish by thread.
func init() { runtime.LockOSThread() }

// endWithGoRun asks for a SIGTERM when `go run`, which hands on no signal but the terminal's, is ended itself.
func endWithGoRun() {
	parent, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", os.Getppid()))
	if err == nil && strings.TrimSpace(string(parent)) == "go" {
		unix.Prctl(unix.PR_SET_PDEATHSIG, uintptr(syscall.SIGTERM), 0, 0, 0)
	}
	runtime.UnlockOSThread()
}
