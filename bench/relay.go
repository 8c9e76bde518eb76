package main

import (
	"context"
	"flag"
	"fmt"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"

	"pgedge/internal/pgserver"
)

func relayFlags(fs *flag.FlagSet) func(context.Context, *run) error {
	clients := fs.String("clients", "8,64", "numbers of clients")
	mode := fs.String("mode", "simple", "pgbench's query mode: simple, extended or prepared")
	rate := fs.Int("rate", 4000, "transactions per second of the last case, whose latency counts from when they were due; 0: no such case")
	return func(ctx context.Context, r *run) error {
		var loads []workload
		for field := range strings.SplitSeq(*clients, ",") {
			n, err := strconv.Atoi(field)
			if err != nil {
				return fmt.Errorf("clients: %w", err)
			}
			loads = append(loads, workload{name: fmt.Sprintf("%d clients", n), clients: n, mode: *mode})
		}
		if *rate > 0 {
			n := loads[len(loads)-1].clients
			loads = append(loads, workload{name: fmt.Sprintf("%d clients, %d/s", n, *rate), clients: n, mode: *mode, rate: *rate})
		}
		return runRelay(ctx, r, "P1", loads)
	}
}

// runRelay measures what it costs to pass transactions on, for every load and every target. Without a row there are no goals.
func runRelay(ctx context.Context, r *run, row string, loads []workload) error {
	pg, err := r.postgres(ctx, pgserver.Options{MaxConnections: 400})
	if err != nil {
		return err
	}
	pgbench := filepath.Join(pg.BinDir, "pgbench")
	targets, err := startTargets(ctx, r, pg)
	if err != nil {
		return err
	}
	if msg, err := pgbenchCommand(ctx, pgbench, targets[0], "-i", "-q", "-s", "10").CombinedOutput(); err != nil {
		return fmt.Errorf("cannot fill the pgbench tables: %w\n%s", err, msg)
	}
	for _, l := range loads {
		if err := relayLoad(ctx, r, pgbench, targets, l); err != nil {
			return err
		}
		if row != "" {
			relayGoals(r, row, l)
		}
		if r.profile != "" {
			if err := profileLoad(ctx, r, pgbench, targets, l); err != nil {
				return err
			}
		}
	}
	r.bars(r.name, "cpu")
	r.note("CPU, transactions and context switches are those of an interval in which all clients were connected: no login is in them")
	r.note("latency by percentile and \"p99 corrected\" are corrected for coordinated omission, at the average pace of a client; \"p99\" is of the transactions alone, so a client that is starved hardly shows in it; with a rate both count from when a transaction was due")
	return nil
}

// relayLoad runs one load through all targets, once per round, beginning with another one each time.
func relayLoad(ctx context.Context, r *run, pgbench string, targets []*target, l workload) error {
	rounds := r.rounds
	if r.quick && l.rate > 0 {
		rounds = 1
	}
	warm := time.Duration(r.pick(400, 1000)) * time.Millisecond
	all := make(map[string]*hdrhistogram.Histogram)
	for round := range rounds {
		for i := range targets {
			t := targets[(i+round)%len(targets)]
			m, err := measure(ctx, r, pgbench, t, l, warm, time.Duration(r.seconds)*time.Second, nil)
			if err != nil {
				return fmt.Errorf("%s, %s: %w", l.name, t.name, err)
			}
			n := float64(m.transactions)
			cpu := float64((m.after.cpu - m.before.cpu).Nanoseconds()) / 1000 / n
			r.sample(r.name, l.name, t.name, "tps", "1/s", n/m.seconds)
			if t.proc != nil {
				r.sample(r.name, l.name, t.name, "cpu", "us/transaction", cpu)
				if switches, ok := m.after.switchesSince(m.before); ok {
					r.sample(r.name, l.name, t.name, "switches", "1/transaction", float64(switches)/n)
				}
			}
			r.sample(r.name, l.name, t.name, "p50", "ms", float64(m.latency.ValueAtQuantile(50))/1000)
			r.sample(r.name, l.name, t.name, "p99", "ms", float64(m.latency.ValueAtQuantile(99))/1000)
			r.sample(r.name, l.name, t.name, "p99 corrected", "ms", float64(m.corrected.ValueAtQuantile(99))/1000)
			r.sample(r.name, l.name, t.name, "slowest client", "of its share", m.slowest)
			if all[t.name] == nil {
				all[t.name] = newLatency()
			}
			all[t.name].Merge(m.corrected)
			r.say("round %d/%d  %s  %-10s %8.0f/s  %6.2f us cpu  p99 %.2f ms, corrected %.2f ms", round+1, rounds, l.name, t.name, n/m.seconds, cpu,
				float64(m.latency.ValueAtQuantile(99))/1000, float64(m.corrected.ValueAtQuantile(99))/1000)
		}
	}
	for _, t := range targets {
		r.latency(l.name, t.name, all[t.name], 1000)
	}
	return nil
}

func relayGoals(r *run, row string, l workload) {
	for _, peer := range []string{"pgbouncer", "haproxy"} {
		if l.rate == 0 {
			r.goal(row, fmt.Sprintf("CPU per transaction, %s, pgedge/%s", l.name, peer), 1, "<=", r.ratio(r.name, l.name, peer, "cpu"), "")
		}
		r.goal(row, fmt.Sprintf("p99 latency, %s, pgedge/%s", l.name, peer), 1, "<=", r.ratio(r.name, l.name, peer, "p99 corrected"), "")
	}
}
