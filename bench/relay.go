package main

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"time"

	"pgedge/internal/pgserver"
)

func relayFlags(fs *flag.FlagSet) func(context.Context, *run) error {
	clients := fs.String("clients", "8,64", "numbers of clients")
	mode := fs.String("mode", "simple", "pgbench's query mode: simple, extended or prepared")
	return func(ctx context.Context, r *run) error { return runRelay(ctx, r, *clients, *mode) }
}

func runRelay(ctx context.Context, r *run, clientList, mode string) error {
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
	for field := range strings.SplitSeq(clientList, ",") {
		clients, err := strconv.Atoi(field)
		if err != nil {
			return fmt.Errorf("clients: %w", err)
		}
		if err := measureRelay(ctx, r, pgbench, targets, clients, mode); err != nil {
			return err
		}
	}
	r.bars("relay", "cpu")
	return nil
}

func measureRelay(ctx context.Context, r *run, pgbench string, targets []*target, clients int, mode string) error {
	kase := fmt.Sprintf("%d clients", clients)
	for round := range r.rounds {
		for i := range targets {
			t := targets[(i+round)%len(targets)]
			s, err := measure(ctx, pgbench, t, clients, r.seconds, mode)
			if err != nil {
				return fmt.Errorf("%s: %w", t.name, err)
			}
			r.sample("relay", kase, t.name, "tps", "1/s", s.tps)
			if t.proc != nil {
				r.sample("relay", kase, t.name, "cpu", "us/transaction", s.cpuMicros)
			}
			r.say("round %d/%d  %2d clients  %-10s %8.0f tps  %6.2f us cpu", round+1, r.rounds, clients, t.name, s.tps, s.cpuMicros)
		}
	}
	for _, peer := range []string{"pgbouncer", "haproxy"} {
		r.goal("P1", fmt.Sprintf("CPU per transaction, %s, pgedge/%s", kase, peer), 1, "<=", r.ratio("relay", kase, peer, "cpu"), "")
	}
	return nil
}

// pgbenchSample is one run of pgbench through one target.
type pgbenchSample struct {
	tps, cpuMicros float64
}

var (
	tpsLine    = regexp.MustCompile(`tps = ([0-9.]+) \(without initial`)
	countLine  = regexp.MustCompile(`number of transactions actually processed: ([0-9]+)`)
	failedLine = regexp.MustCompile(`number of failed transactions: ([0-9]+)`)
)

// measure runs pgbench once. The proxy's CPU time is read before and after, so that it covers logins too; at
// thousands of transactions per login that does not show.
func measure(ctx context.Context, pgbench string, t *target, clients, seconds int, mode string) (pgbenchSample, error) {
	before, err := cpuTime(t.proc)
	if err != nil {
		return pgbenchSample{}, err
	}
	out, err := pgbenchCommand(ctx, pgbench, t, "-S", "-n", "-M", mode, "-c", strconv.Itoa(clients), "-j", "2", "-T", strconv.Itoa(seconds)).CombinedOutput()
	if err != nil {
		return pgbenchSample{}, fmt.Errorf("pgbench failed: %w\n%s", err, out)
	}
	after, err := cpuTime(t.proc)
	if err != nil {
		return pgbenchSample{}, err
	}
	if m := failedLine.FindSubmatch(out); m != nil && string(m[1]) != "0" {
		return pgbenchSample{}, fmt.Errorf("%s transactions failed", m[1])
	}
	number := func(re *regexp.Regexp) float64 {
		if m := re.FindSubmatch(out); m != nil {
			v, _ := strconv.ParseFloat(string(m[1]), 64)
			return v
		}
		return 0
	}
	s := pgbenchSample{tps: number(tpsLine)}
	if s.tps == 0 || number(countLine) == 0 {
		return s, fmt.Errorf("pgbench printed no result:\n%s", out)
	}
	s.cpuMicros = float64((after - before).Microseconds()) / number(countLine)
	return s, nil
}

func pgbenchCommand(ctx context.Context, pgbench string, t *target, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, pgbench, append([]string{"-h", t.host, "-p", strconv.Itoa(t.port), "-U", "trustuser"}, append(args, pgserver.Database)...)...)
	cmd.Env = append(os.Environ(), "PGSSLMODE=disable")
	return cmd
}

// cpuTime is user and system time of a process; the kernel counts it in ticks of 10 ms.
func cpuTime(p *process) (time.Duration, error) {
	if p == nil {
		return 0, nil
	}
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", p.pid()))
	if err != nil {
		return 0, err
	}
	fields := bytes.Fields(data[bytes.LastIndexByte(data, ')')+1:])
	if len(fields) < 13 {
		return 0, errors.New("cannot read the CPU time of the proxy")
	}
	user, err1 := strconv.ParseInt(string(fields[11]), 10, 64)
	system, err2 := strconv.ParseInt(string(fields[12]), 10, 64)
	return time.Duration(user+system) * 10 * time.Millisecond, errors.Join(err1, err2)
}
