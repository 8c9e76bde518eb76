package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"

	"pgedge/internal/fleet"
	"pgedge/internal/pgserver"
)

// bench is one process of the harness, which runs one scenario or all of them.
type bench struct {
	dir    string // temporary, "" until something is put there
	binary string // the pgedge under test, "" until it is built
	nats   string // the NATS server, "" until it is built

	told func(line string) // hears what runs say, when it is not nil
}

func (b *bench) close() {
	if b.dir != "" {
		os.RemoveAll(b.dir)
	}
}

// folder returns the bench's temporary directory. Its mode is 0755, because peers that refuse to be root read it.
func (b *bench) folder() (string, error) {
	if b.dir != "" {
		return b.dir, nil
	}
	dir, err := os.MkdirTemp("", "pgedge-bench-")
	if err != nil {
		return "", err
	}
	b.dir = dir
	return dir, os.Chmod(dir, 0o755)
}

// run is one run of one scenario: its flags, its temporary directory, what it has measured.
type run struct {
	name            string
	quick           bool
	rounds, seconds int    // at least 1
	profile         string // where profiles go, "" when none are wanted; what is there at the end of a good run is kept
	dir             string // temporary, mode 0755, removed at the end

	bench    *bench
	flags    *flag.FlagSet
	do       func(context.Context, *run) error
	out      string
	asked    string // -pgedge
	profiled bool   // -profile
	onEnd    []func() error
	report   report
}

// errUsage is wrong usage, which has been explained already.
var errUsage = errors.New("wrong usage")

// parse reads the command line of a scenario and does nothing else. The error is errUsage or flag.ErrHelp.
func (b *bench) parse(name string, args []string) (*run, error) {
	r := &run{name: name, bench: b}
	fs := flag.NewFlagSet(name, flag.ContinueOnError)
	fs.BoolVar(&r.quick, "quick", false, "the shortest run that measures something, to see that everything works")
	fs.IntVar(&r.rounds, "rounds", 0, "rounds; the targets alternate within each (default 5, with -quick 2)")
	fs.IntVar(&r.seconds, "seconds", 0, "length of one sample in seconds (default 5, with -quick 2)")
	fs.StringVar(&r.out, "out", "", "directory for results (default bench/results, with -quick bench/results/quick)")
	fs.BoolVar(&r.profiled, "profile", false, "afterwards, profile the processes and count their system calls, in runs that are not timed")
	fs.StringVar(&r.asked, "pgedge", "", "binary to measure (default: built from this checkout)")
	r.flags, r.do = fs, scenarios[name].flags(fs)
	if err := fs.Parse(args); errors.Is(err, flag.ErrHelp) {
		return nil, err
	} else if err != nil {
		return nil, errUsage // flag has said what is wrong
	}
	if fs.NArg() > 0 {
		fmt.Fprintf(fs.Output(), "what is %q?\n", fs.Arg(0))
		return nil, errUsage
	}
	if r.rounds <= 0 {
		r.rounds = r.pick(2, 5)
	}
	if r.seconds <= 0 {
		r.seconds = r.pick(2, 5)
	}
	if r.out == "" {
		r.out = filepath.Join("bench", "results")
		if r.quick {
			r.out = filepath.Join(r.out, "quick")
		}
	}
	return r, nil
}

// run runs a scenario and prints and writes its report. After an error there is nothing to print and no file.
func (b *bench) run(ctx context.Context, name string, args []string) (_ *run, err error) {
	r, err := b.parse(name, args)
	if err != nil {
		return nil, err
	}
	parent, err := b.folder()
	if err != nil {
		return nil, err
	}
	if r.dir, err = os.MkdirTemp(parent, name+"-"); err != nil {
		return nil, err
	}
	defer os.RemoveAll(r.dir)
	if err := os.Chmod(r.dir, 0o755); err != nil {
		return nil, err
	}
	if r.profiled {
		r.profile = filepath.Join(r.dir, "profile")
		if err := os.Mkdir(r.profile, 0o755); err != nil {
			return nil, err
		}
	}
	if err = r.settle(ctx); err != nil {
		return nil, err
	}
	r.report.begin(r, r.flags)
	err = r.do(ctx, r)
	for _, end := range slices.Backward(r.onEnd) {
		err = errors.Join(err, end())
	}
	if err == nil {
		err = ctx.Err() // a scenario that has not noticed has measured an interruption
	}
	if err != nil {
		return nil, err
	}
	r.report.end()
	r.report.print(os.Stdout)
	return r, r.write()
}

// pick returns what fits -quick, and what fits a run for the record.
func (r *run) pick(quick, full int) int {
	if r.quick {
		return quick
	}
	return full
}

// say tells on standard error what is going on.
func (r *run) say(format string, args ...any) {
	line := fmt.Sprintf(format, args...)
	fmt.Fprintf(os.Stderr, "%s: %s\n", r.name, line)
	if r.bench != nil && r.bench.told != nil {
		r.bench.told(line)
	}
}

// cleanup registers what has to be ended after the scenario, also after a failed one. The last comes first.
func (r *run) cleanup(end func() error) { r.onEnd = append(r.onEnd, end) }

// sleep waits, unless the run is interrupted.
func (r *run) sleep(ctx context.Context, d time.Duration) error {
	select {
	case <-time.After(d):
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// pgedge returns the binary to measure. It is built once per process, the way `make build` does it: a profile in the
// folder of the command is used by the compiler there too.
func (r *run) pgedge(ctx context.Context) (string, error) {
	b := r.bench
	if b.binary != "" {
		return b.binary, nil
	}
	if r.asked != "" {
		path, err := filepath.Abs(r.asked)
		if err == nil {
			_, err = os.Stat(path)
		}
		b.binary = path
		return path, err
	}
	var err error
	b.binary, err = b.build(ctx, r, "pgedge", "pgedge/cmd/pgedge")
	return b.binary, err
}

// binaries returns what a fleet consists of.
func (r *run) binaries(ctx context.Context) (fleet.Binaries, error) {
	pgedge, err := r.pgedge(ctx)
	if err == nil && r.bench.nats == "" {
		r.bench.nats, err = r.bench.build(ctx, r, "natsd", "pgedge/internal/natsd")
	}
	return fleet.Binaries{Pgedge: pgedge, NATS: r.bench.nats}, err
}

func (b *bench) build(ctx context.Context, r *run, name, pkg string) (string, error) {
	dir, err := b.folder()
	if err != nil {
		return "", err
	}
	r.say("building %s ...", name)
	path := filepath.Join(dir, name)
	cmd := exec.CommandContext(ctx, "go", "build", "-trimpath", "-buildvcs=false", "-o", path, pkg)
	if msg, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("cannot build %s: %w\n%s", name, err, strings.TrimSpace(string(msg)))
	}
	return path, nil
}

// postgres starts a Postgres that ends with the run.
func (r *run) postgres(ctx context.Context, o pgserver.Options) (*pgserver.Server, error) {
	r.say("starting Postgres ...")
	pg, err := pgserver.New(ctx, o)
	if err != nil {
		return nil, err
	}
	r.cleanup(pg.Stop)
	r.version("postgres", firstLine(filepath.Join(pg.BinDir, "postgres"), "--version"))
	return pg, nil
}

// sample adds samples of one metric. Samples of targets that alternated are added in the same order, once per round.
func (r *run) sample(table, kase, target, metric, unit string, values ...float64) {
	s := r.report.series(table, kase, target, metric)
	s.Unit, s.Values = unit, append(s.Values, values...)
}

// median is the median of what has been sampled, NaN when that is nothing.
func (r *run) median(table, kase, target, metric string) float64 {
	return median(r.report.series(table, kase, target, metric).Values)
}

// ratio is pgedge's median over a peer's, NaN when one of them was not measured.
func (r *run) ratio(table, kase, peer, metric string) float64 {
	of := r.median(table, kase, peer, metric)
	if of == 0 {
		return math.NaN()
	}
	return r.median(table, kase, subject, metric) / of
}

// measured reports whether there is a sample of a target in a table.
func (r *run) measured(table, target string) bool {
	return slices.ContainsFunc(r.report.Samples, func(s *series) bool {
		return s.Table == table && s.Target == target && len(s.Values) > 0
	})
}

// latency adds a distribution; unitsPerMS is how many of its units are a millisecond.
func (r *run) latency(kase, target string, h *hdrhistogram.Histogram, unitsPerMS float64) {
	r.report.Latencies = append(r.report.Latencies, newDistribution(kase, target, h, unitsPerMS))
}

// goal states what was wanted and what was measured; cmp is "<=" or ">=".
func (r *run) goal(row, what string, want float64, cmp string, got float64, unit string) {
	met := got <= want
	if cmp == ">=" {
		met = got >= want
	}
	r.report.Goals = append(r.report.Goals, goalResult{Row: row, What: what, Want: want, Cmp: cmp, Got: number(got), Unit: unit, Met: met})
}

// note says what could not be measured, and what a number does not mean.
func (r *run) note(format string, args ...any) {
	if text := fmt.Sprintf(format, args...); !slices.Contains(r.report.Notes, text) {
		r.report.Notes = append(r.report.Notes, text)
	}
}

// version names the version of something that was measured or measured with.
func (r *run) version(name, version string) {
	if version != "" {
		r.report.Versions[name] = version
	}
}

// curve adds a line of an x/y plot; all lines of one plot are drawn together.
func (r *run) curve(plot, series string, x, y []float64, xlabel, ylabel string) {
	r.report.Curves = append(r.report.Curves, curve{Plot: plot, Series: series, X: x, Y: y, XLabel: xlabel, YLabel: ylabel})
}

// bars asks for a plot of one metric of a table: a group of bars per case, a bar per target.
func (r *run) bars(table, metric string) {
	r.report.bars = append(r.report.bars, [2]string{table, metric})
}
