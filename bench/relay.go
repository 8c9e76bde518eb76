package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"pgedge/internal/pgserver"
)

// sample is one run of pgbench through one target.
type sample struct {
	TPS          float64 `json:"tps"`
	Transactions int64   `json:"transactions"`
	LatencyMS    float64 `json:"latency_ms"`
	CPUMicros    float64 `json:"cpu_us_per_transaction"` // of the proxy process alone; 0 for a direct connection
}

// row is what the samples of one target and one number of clients come to.
type row struct {
	Target       string   `json:"target"`
	Version      string   `json:"version"`
	Clients      int      `json:"clients"`
	Samples      []sample `json:"samples"`
	MedianTPS    float64  `json:"median_tps"`
	MedianMicros float64  `json:"median_cpu_us"`
	SpreadMicros float64  `json:"spread_cpu_us"` // largest less smallest
}

type relayReport struct {
	Date     time.Time `json:"date"`
	Commit   string    `json:"commit"`
	Go       string    `json:"go"`
	Cores    int       `json:"cores"`
	Load     string    `json:"load_average"`
	Postgres string    `json:"postgres"`
	Seconds  int       `json:"seconds_per_sample"`
	Rounds   int       `json:"rounds"`
	Mode     string    `json:"pgbench_mode"`
	Rows     []*row    `json:"rows"`
}

func runRelay(ctx context.Context, args []string) (err error) {
	fs := flag.NewFlagSet("relay", flag.ExitOnError)
	rounds := fs.Int("rounds", 5, "rounds; the targets alternate within each")
	seconds := fs.Int("seconds", 5, "length of one sample")
	clientList := fs.String("clients", "8,64", "numbers of clients")
	mode := fs.String("mode", "simple", "pgbench's query mode: simple, extended or prepared")
	binary := fs.String("pgedge", "", "binary to measure; built from this tree when empty")
	out := fs.String("out", "bench/results/relay.json", "where the result is written; empty: nowhere")
	fs.Parse(args)

	dir, err := os.MkdirTemp("", "pgedge-bench-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	if err := os.Chmod(dir, 0o755); err != nil {
		return err
	}
	if *binary == "" {
		*binary = filepath.Join(dir, "pgedge")
		fmt.Println("building pgedge ...")
		if msg, err := exec.CommandContext(ctx, "go", "build", "-o", *binary, "./cmd/pgedge").CombinedOutput(); err != nil {
			return fmt.Errorf("cannot build pgedge: %w\n%s", err, msg)
		}
	}
	pg, err := pgserver.New(ctx, pgserver.Options{MaxConnections: 400})
	if err != nil {
		return err
	}
	defer pg.Stop()
	pgbench := filepath.Join(pg.BinDir, "pgbench")
	direct := &target{name: "direct", host: pg.Host, port: pg.Port}
	if msg, err := pgbenchCommand(ctx, pgbench, direct, "-i", "-q", "-s", "10").CombinedOutput(); err != nil {
		return fmt.Errorf("cannot fill the pgbench tables: %w\n%s", err, msg)
	}
	targets, err := startTargets(ctx, dir, pg, *binary, direct)
	defer func() {
		for _, t := range targets {
			t.proc.stop()
		}
	}()
	if err != nil {
		return err
	}
	report := relayReport{Date: time.Now().UTC(), Commit: firstLine("git", "describe", "--always", "--dirty"), Go: runtime.Version(),
		Cores: runtime.NumCPU(), Load: loadAverage(), Postgres: firstLine(filepath.Join(pg.BinDir, "postgres"), "--version"),
		Seconds: *seconds, Rounds: *rounds, Mode: *mode}
	for field := range strings.SplitSeq(*clientList, ",") {
		clients, err := strconv.Atoi(field)
		if err != nil {
			return fmt.Errorf("clients: %w", err)
		}
		rows, err := measureRelay(ctx, pgbench, targets, clients, *rounds, *seconds, *mode)
		if err != nil {
			return err
		}
		report.Rows = append(report.Rows, rows...)
	}
	printRelay(report)
	if *out == "" {
		return nil
	}
	data, err := json.MarshalIndent(report, "", "  ")
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(*out), 0o755); err != nil {
		return err
	}
	fmt.Println("written:", *out)
	return os.WriteFile(*out, append(data, '\n'), 0o644)
}

// startTargets starts what is installed; what is missing is said, not skipped in silence.
func startTargets(ctx context.Context, dir string, pg *pgserver.Server, binary string, direct *target) ([]*target, error) {
	edge, err := startPgedge(ctx, dir, pg, binary)
	targets := []*target{direct}
	if edge != nil {
		targets = append(targets, edge)
	}
	if err != nil {
		return targets, err
	}
	for name, f := range map[string]func(context.Context, string, *pgserver.Server) (*target, error){"pgbouncer": startPgBouncer, "haproxy": startHAProxy} {
		t, err := f(ctx, dir, pg)
		if t == nil && err == nil {
			fmt.Printf("%s is not installed: not measured (make bench-deps installs it)\n", name)
			continue
		}
		if t != nil {
			targets = append(targets, t)
		}
		if err != nil {
			return targets, err
		}
	}
	return targets, nil
}

func measureRelay(ctx context.Context, pgbench string, targets []*target, clients, rounds, seconds int, mode string) ([]*row, error) {
	rows := make([]*row, len(targets))
	for i, t := range targets {
		rows[i] = &row{Target: t.name, Version: t.version, Clients: clients}
		if _, err := measure(ctx, pgbench, t, clients, seconds, mode); err != nil { // warm up
			return nil, err
		}
	}
	for round := range rounds {
		for i, t := range targets {
			s, err := measure(ctx, pgbench, t, clients, seconds, mode)
			if err != nil {
				return nil, fmt.Errorf("%s: %w", t.name, err)
			}
			rows[i].Samples = append(rows[i].Samples, s)
			fmt.Printf("round %d/%d  %2d clients  %-10s %8.0f tps  %6.2f us cpu\n", round+1, rounds, clients, t.name, s.TPS, s.CPUMicros)
		}
	}
	for _, r := range rows {
		var tps, cpu []float64
		for _, s := range r.Samples {
			tps, cpu = append(tps, s.TPS), append(cpu, s.CPUMicros)
		}
		r.MedianTPS, r.MedianMicros = median(tps), median(cpu)
		r.SpreadMicros = slices.Max(cpu) - slices.Min(cpu)
	}
	return rows, nil
}

var (
	tpsLine     = regexp.MustCompile(`tps = ([0-9.]+) \(without initial`)
	countLine   = regexp.MustCompile(`number of transactions actually processed: ([0-9]+)`)
	failedLine  = regexp.MustCompile(`number of failed transactions: ([0-9]+)`)
	latencyLine = regexp.MustCompile(`latency average = ([0-9.]+) ms`)
)

// measure runs pgbench once. The proxy's CPU time is read before and after, so that it covers logins too; at
// thousands of transactions per login that does not show.
func measure(ctx context.Context, pgbench string, t *target, clients, seconds int, mode string) (sample, error) {
	before, err := cpuTime(t.proc)
	if err != nil {
		return sample{}, err
	}
	out, err := pgbenchCommand(ctx, pgbench, t, "-S", "-n", "-M", mode, "-c", strconv.Itoa(clients), "-j", "2", "-T", strconv.Itoa(seconds)).CombinedOutput()
	if err != nil {
		return sample{}, fmt.Errorf("pgbench failed: %w\n%s", err, out)
	}
	after, err := cpuTime(t.proc)
	if err != nil {
		return sample{}, err
	}
	if m := failedLine.FindSubmatch(out); m != nil && string(m[1]) != "0" {
		return sample{}, fmt.Errorf("%s transactions failed", m[1])
	}
	number := func(re *regexp.Regexp) float64 {
		if m := re.FindSubmatch(out); m != nil {
			v, _ := strconv.ParseFloat(string(m[1]), 64)
			return v
		}
		return 0
	}
	s := sample{TPS: number(tpsLine), Transactions: int64(number(countLine)), LatencyMS: number(latencyLine)}
	if s.TPS == 0 || s.Transactions == 0 {
		return s, fmt.Errorf("pgbench printed no result:\n%s", out)
	}
	s.CPUMicros = float64((after - before).Microseconds()) / float64(s.Transactions)
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

func printRelay(r relayReport) {
	w := tabwriter.NewWriter(os.Stdout, 0, 4, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintf(w, "\n%s, %d cores, load %s, %s mode, medians of %d x %d s\n", r.Postgres, r.Cores, r.Load, r.Mode, r.Rounds, r.Seconds)
	fmt.Fprintln(w, "clients\ttarget\ttps\tcpu us/tx\tspread\tcpu vs pgbouncer\tcpu vs haproxy\t")
	for _, row := range r.Rows {
		fmt.Fprintf(w, "%d\t%s\t%.0f\t%.2f\t%.2f\t%s\t%s\t\n", row.Clients, row.Target, row.MedianTPS, row.MedianMicros, row.SpreadMicros,
			ratio(r, row, "pgbouncer"), ratio(r, row, "haproxy"))
	}
	w.Flush()
}

func ratio(r relayReport, of *row, peer string) string {
	for _, p := range r.Rows {
		if p.Target == peer && p.Clients == of.Clients && p.MedianMicros > 0 && of.MedianMicros > 0 {
			return fmt.Sprintf("%.2f", of.MedianMicros/p.MedianMicros)
		}
	}
	return "-"
}

func median(v []float64) float64 {
	if len(v) == 0 {
		return math.NaN()
	}
	s := slices.Sorted(slices.Values(v))
	if n := len(s); n%2 == 0 {
		return (s[n/2-1] + s[n/2]) / 2
	}
	return s[len(s)/2]
}

func loadAverage() string {
	data, err := os.ReadFile("/proc/loadavg")
	if err != nil {
		return "unknown"
	}
	return strings.Join(strings.Fields(string(data))[:3], " ")
}

// firstLine is the first line a program prints, "" when it cannot be run.
func firstLine(path string, args ...string) string {
	out, err := exec.Command(path, args...).CombinedOutput()
	if err != nil {
		return ""
	}
	line, _, _ := strings.Cut(string(out), "\n")
	return strings.TrimSpace(line)
}
