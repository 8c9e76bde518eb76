package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

const growthTable = "a revocation in memory, from the fact to the last gate shut"

// growthSizes are sessions in the index, growthMatches how many of them are revoked; the engine's benchmark of the index
// has the same numbers.
var (
	growthSizes   = []int{1000, 10_000, 100_000, 1_000_000}
	growthMatches = []int{1, 100, 500, 5000}
)

func growthFlags(fs *flag.FlagSet) func(context.Context, *run) error {
	times := fs.Int("times", 0, "revocations per sample (default 500, with -quick 100)")
	return func(ctx context.Context, r *run) error {
		if *times <= 0 {
			*times = r.pick(100, 500)
		}
		sizes := growthSizes
		if r.quick {
			sizes = []int{1000, 100_000}
		}
		return runGrowth(ctx, r, sizes, *times)
	}
}

// runGrowth has the engine's own benchmark of its index run, in a process of its own per round: the bench knows pgedge
// from outside only, and a million sessions with sockets need a hundred processes.
func runGrowth(ctx context.Context, r *run, sizes []int, times int) error {
	r.say("building the engine's benchmarks ...")
	binary := filepath.Join(r.dir, "engine.test")
	build := exec.CommandContext(ctx, "go", "test", "-c", "-trimpath", "-buildvcs=false", "-o", binary, "pgedge/engine")
	if msg, err := build.CombinedOutput(); err != nil {
		return fmt.Errorf("cannot build the engine's benchmarks: %w\n%s", err, bytes.TrimSpace(msg))
	}
	for round := range r.rounds {
		r.say("round %d of %d", round+1, r.rounds)
		if err := growthRound(ctx, r, binary, sizes, times); err != nil {
			return err
		}
	}
	growthGoals(r, sizes)
	growthCurves(r, sizes)
	r.note("sessions have no sockets: what loops do once the gates are shut is in the other scenarios, and so is the way of the fact over NATS")
	r.note("everybody of a size is revoked in turn, so among many sessions nothing of the next one is in a cache: what grows with the number of sessions is the memory's time, once per session and once per table that is asked")
	r.note("one sample is the median of %d revocations; one of a single session is so short that what the benchmark does in between, which empties caches, is part of it", times)
	return nil
}

func growthRound(ctx context.Context, r *run, binary string, sizes []int, times int) error {
	asked := make([]string, len(sizes))
	for i, n := range sizes {
		asked[i] = strconv.Itoa(n)
	}
	var out bytes.Buffer
	cmd := exec.Command(binary, "-test.run", "^$", "-test.bench", "^BenchmarkIndex$/./^(revoke|match)$|^BenchmarkIndexMemory$", "-test.benchtime", fmt.Sprintf("%dx", times),
		"-test.timeout", "10m", "-sessions", strings.Join(asked, ","))
	cmd.Stdout, cmd.Stderr = &out, &out
	p, err := startChild(cmd, "", "")
	if err != nil {
		return err
	}
	select {
	case <-p.done:
	case <-ctx.Done():
		return errors.Join(ctx.Err(), p.stop())
	}
	if p.err != nil {
		return fmt.Errorf("the engine's benchmarks failed: %w\n%s", p.err, bytes.TrimSpace(out.Bytes()))
	}
	lines, err := readBenchmarks(&out)
	if err != nil {
		return err
	}
	return growthSamples(r, lines, sizes)
}

// growthSamples takes one round; what is missing makes it no result.
func growthSamples(r *run, lines map[string]map[string]float64, sizes []int) error {
	for _, n := range sizes {
		for _, m := range growthMatches {
			for _, what := range []string{"revoke", "match"} {
				name := fmt.Sprintf("BenchmarkIndex/sessions=%d/%s/matches=%d", n, what, m)
				line, ok := lines[name]
				if !ok {
					if m >= n {
						continue // there are not so many
					}
					return fmt.Errorf("%s has not been measured", name)
				}
				if what == "match" {
					r.sample(growthTable, growthCase(n, m), subject, "index asked", "µs", line["ns/op"]/1000)
					continue
				}
				if line["median-ns"] <= 0 {
					return fmt.Errorf("%s has no median", name)
				}
				r.sample(growthTable, growthCase(n, m), subject, "all gates shut", "µs", line["median-ns"]/1000)
				r.sample(growthTable, growthCase(n, m), subject, "allocations", "", line["allocs/op"])
			}
		}
		name := fmt.Sprintf("BenchmarkIndexMemory/sessions=%d", n)
		line, ok := lines[name]
		if !ok || line["index-bytes/session"] <= 0 {
			return fmt.Errorf("%s has not been measured", name)
		}
		r.sample("heap per session, one session per person", thousands(n)+" sessions", subject, "in the index", "bytes", line["index-bytes/session"])
		r.sample("heap per session, one session per person", thousands(n)+" sessions", subject, "the session and its names", "bytes", line["own-bytes/session"])
	}
	return nil
}

func growthCase(sessions, matches int) string {
	return thousands(matches) + " of " + thousands(sessions) + " sessions"
}

// growthGoals judges flatness by the fewest and the most sessions that have so many matches, and linearity by the most
// sessions, from 100 matches on: below, a revocation is mostly its own order.
func growthGoals(r *run, sizes []int) {
	most := sizes[len(sizes)-1]
	for _, m := range growthMatches {
		at := slices.IndexFunc(sizes, func(n int) bool { return r.growth(n, m) > 0 })
		if at < 0 || sizes[at] == most {
			continue
		}
		r.goal("P10", fmt.Sprintf("flat in sessions: %s revoked among %s, against among %s", thousands(m), thousands(most), thousands(sizes[at])), 2, "<=",
			r.growth(most, m)/r.growth(sizes[at], m), "times")
	}
	few, many := growthMatches[1], growthMatches[len(growthMatches)-1]
	r.goal("P10", fmt.Sprintf("linear in matches: each of %s among %s, against each of %s", thousands(many), thousands(most), thousands(few)), 2, "<=",
		r.growth(most, many)/float64(many)/(r.growth(most, few)/float64(few)), "times")
}

// growth is the median cost of a revocation in µs, 0 when there is none.
func (r *run) growth(sessions, matches int) float64 {
	s := r.report.find(growthTable, growthCase(sessions, matches), subject, "all gates shut")
	if s == nil {
		return 0
	}
	return median(s.Values)
}

func growthCurves(r *run, sizes []int) {
	for _, m := range growthMatches {
		var x, y []float64
		for _, n := range sizes {
			if cost := r.growth(n, m); cost > 0 {
				x, y = append(x, float64(n)), append(y, cost)
			}
		}
		r.curve("Revocation by sessions in the index", thousands(m)+" matches", x, y, "sessions", "µs until all gates are shut")
	}
	for _, n := range sizes {
		var x, y []float64
		for _, m := range growthMatches {
			if cost := r.growth(n, m); cost > 0 {
				x, y = append(x, float64(m)), append(y, cost)
			}
		}
		r.curve("Revocation by matches", thousands(n)+" sessions", x, y, "sessions that match", "µs until all gates are shut")
	}
}

// readBenchmarks reads what `go test -bench` prints: metrics by unit, by name without the number of processors.
func readBenchmarks(out *bytes.Buffer) (map[string]map[string]float64, error) {
	lines := make(map[string]map[string]float64)
	for s := bufio.NewScanner(out); s.Scan(); {
		fields := strings.Fields(s.Text())
		if len(fields) < 4 || !strings.HasPrefix(fields[0], "Benchmark") {
			continue
		}
		name := fields[0]
		if at := strings.LastIndexByte(name, '-'); at > 0 {
			name = name[:at]
		}
		metrics := make(map[string]float64)
		for i := 2; i+1 < len(fields); i += 2 {
			v, err := strconv.ParseFloat(fields[i], 64)
			if err != nil {
				return nil, fmt.Errorf("cannot read %q: %w", s.Text(), err)
			}
			metrics[fields[i+1]] = v
		}
		lines[name] = metrics
	}
	if len(lines) == 0 {
		return nil, errors.New("the engine's benchmarks printed nothing")
	}
	return lines, nil
}

// thousands writes 1000000 as 1,000,000.
func thousands(n int) string {
	s := strconv.Itoa(n)
	for i := len(s) - 3; i > 0; i -= 3 {
		s = s[:i] + "," + s[i:]
	}
	return s
}
