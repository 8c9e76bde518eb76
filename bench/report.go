package main

import (
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"
	"golang.org/x/sys/unix"
)

// subject is the target that the others are compared with.
const subject = "pgedge"

// report is everything one run has to tell. It is the form of the JSON file.
type report struct {
	Scenario   string            `json:"scenario"`
	Goal       string            `json:"goal,omitempty"`
	Date       time.Time         `json:"date"`
	Commit     string            `json:"commit"`
	Go         string            `json:"go"`
	Kernel     string            `json:"kernel"`
	CPU        string            `json:"cpu"`
	Cores      int               `json:"cores"`
	BusyBefore float64           `json:"busy_before"` // share of the machine's CPU time that others used just before
	LoadBefore string            `json:"load_average_before"`
	LoadAfter  string            `json:"load_average_after"`
	Seconds    float64           `json:"seconds_taken"`
	Versions   map[string]string `json:"versions"`
	Settings   map[string]string `json:"settings"` // every flag
	Samples    []*series         `json:"samples,omitempty"`
	Latencies  []distribution    `json:"latencies,omitempty"`
	Curves     []curve           `json:"curves,omitempty"`
	Goals      []goalResult      `json:"goals,omitempty"`
	Notes      []string          `json:"notes,omitempty"`

	bars [][2]string // table, metric
}

// series are the samples of one metric of one target.
type series struct {
	Table  string    `json:"table"`
	Case   string    `json:"case"`
	Target string    `json:"target"`
	Metric string    `json:"metric"`
	Unit   string    `json:"unit,omitempty"`
	Values []float64 `json:"values"`
	Median number    `json:"median"`
	Min    number    `json:"min"`
	Max    number    `json:"max"`
	// Ratio is pgedge's median over this one's; absent for pgedge itself and where there is nothing to divide by.
	Ratio number `json:"pgedge_ratio,omitempty"`
}

// number is a float that JSON can hold: what was not measured is null.
type number float64

func (n number) MarshalJSON() ([]byte, error) {
	if math.IsNaN(float64(n)) || math.IsInf(float64(n), 0) {
		return []byte("null"), nil
	}
	return json.Marshal(float64(n))
}

// distribution is a latency by percentile, in milliseconds.
type distribution struct {
	Case   string  `json:"case"`
	Target string  `json:"target"`
	Count  int64   `json:"count"`
	P50    float64 `json:"p50_ms"`
	P90    float64 `json:"p90_ms"`
	P99    float64 `json:"p99_ms"`
	P999   float64 `json:"p999_ms"`
	Max    float64 `json:"max_ms"`
	Mean   float64 `json:"mean_ms"`
	// Curve has a point per step of the histogram: percentile (0 to 100) and milliseconds.
	Curve [][2]float64 `json:"curve"`
}

func newDistribution(kase, target string, h *hdrhistogram.Histogram, unitsPerMS float64) distribution {
	at := func(p float64) float64 { return float64(h.ValueAtQuantile(p)) / unitsPerMS }
	d := distribution{Case: kase, Target: target, Count: h.TotalCount(), P50: at(50), P90: at(90), P99: at(99), P999: at(99.9),
		Max: float64(h.Max()) / unitsPerMS, Mean: h.Mean() / unitsPerMS}
	for _, b := range h.CumulativeDistributionWithTicks(4) {
		d.Curve = append(d.Curve, [2]float64{b.Quantile, float64(b.ValueAt) / unitsPerMS})
	}
	return d
}

// latencyCases are the cases with a distribution, in the order of their first appearance.
func (p *report) latencyCases() []string {
	var cases []string
	for _, d := range p.Latencies {
		if !slices.Contains(cases, d.Case) {
			cases = append(cases, d.Case)
		}
	}
	return cases
}

type curve struct {
	Plot   string    `json:"plot"`
	Series string    `json:"series"`
	X      []float64 `json:"x"`
	Y      []float64 `json:"y"`
	XLabel string    `json:"x_label"`
	YLabel string    `json:"y_label"`
}

type goalResult struct {
	Row  string  `json:"row"`
	What string  `json:"what"`
	Want float64 `json:"want"`
	Cmp  string  `json:"cmp"`
	Got  number  `json:"got"`
	Unit string  `json:"unit,omitempty"`
	Met  bool    `json:"met"`
}

func (p *report) begin(r *run, fs *flag.FlagSet) {
	p.Scenario, p.Goal, p.Date = r.name, scenarios[r.name].goal, time.Now().UTC()
	p.Commit, p.Go, p.Kernel, p.CPU, p.Cores = commit(), runtime.Version(), kernel(), cpuModel(), runtime.NumCPU()
	p.LoadBefore = loadAverage()
	p.Versions, p.Settings = make(map[string]string), make(map[string]string)
	fs.VisitAll(func(f *flag.Flag) { p.Settings[f.Name] = f.Value.String() })
	p.Settings["rounds"], p.Settings["seconds"] = strconv.Itoa(r.rounds), strconv.Itoa(r.seconds)
	if congestion, err := os.ReadFile("/proc/sys/net/ipv4/tcp_congestion_control"); err == nil {
		p.Versions["TCP congestion control"] = strings.TrimSpace(string(congestion)) // one that paces slows the loopback too
	}
	delete(p.Settings, "out") // says where, not what
	delete(p.Settings, "pgedge")
}

func (p *report) end() {
	p.Seconds = math.Round(time.Since(p.Date).Seconds())
	p.LoadAfter = loadAverage()
	if p.BusyBefore > busyShare {
		p.Notes = append(p.Notes, fmt.Sprintf("%.0f%% of the machine's CPU time went elsewhere before this began: nothing here is fit to be quoted", 100*p.BusyBefore))
	}
	for _, s := range p.Samples {
		s.Median, s.Min, s.Max = number(median(s.Values)), number(slices.Min(s.Values)), number(slices.Max(s.Values))
	}
	for _, s := range p.Samples {
		if of := p.find(s.Table, s.Case, subject, s.Metric); of != nil && s.Target != subject && s.Median != 0 {
			s.Ratio = of.Median / s.Median
		}
	}
}

func (p *report) find(table, kase, target, metric string) *series {
	for _, s := range p.Samples {
		if s.Table == table && s.Case == kase && s.Target == target && s.Metric == metric {
			return s
		}
	}
	return nil
}

// series returns the series of that name, which it adds when there is none.
func (p *report) series(table, kase, target, metric string) *series {
	if s := p.find(table, kase, target, metric); s != nil {
		return s
	}
	s := &series{Table: table, Case: kase, Target: target, Metric: metric}
	p.Samples = append(p.Samples, s)
	return s
}

// names returns the distinct values of one field in the order of their first appearance.
func names(samples []*series, field func(*series) string) []string {
	var out []string
	for _, s := range samples {
		if name := field(s); !slices.Contains(out, name) {
			out = append(out, name)
		}
	}
	return out
}

func (p *report) print(w io.Writer) {
	fmt.Fprintf(w, "\n%s, commit %s, %s, %d cores (%s), Linux %s, %.0f%% busy before, load %s before and %s after, %.0f s\n", p.Scenario, p.Commit, p.Go,
		p.Cores, p.CPU, p.Kernel, 100*p.BusyBefore, p.LoadBefore, p.LoadAfter, p.Seconds)
	for _, table := range names(p.Samples, func(s *series) string { return s.Table }) {
		p.printTable(w, table)
	}
	if cases := p.latencyCases(); len(cases) > 0 {
		t := tabwriter.NewWriter(w, 0, 0, 2, ' ', tabwriter.AlignRight)
		fmt.Fprint(t, "\nlatency (ms)\ttarget\tsamples\tp50\tp90\tp99\tp99.9\tmax\t\n")
		inOrder := slices.Clone(p.Latencies)
		slices.SortStableFunc(inOrder, func(a, b distribution) int { return slices.Index(cases, a.Case) - slices.Index(cases, b.Case) })
		for _, d := range inOrder {
			fmt.Fprintf(t, "%s\t%s\t%d\t%s\t%s\t%s\t%s\t%s\t\n", d.Case, d.Target, d.Count, short(d.P50), short(d.P90), short(d.P99), short(d.P999), short(d.Max))
		}
		t.Flush()
	}
	for i, note := range p.Notes {
		if i == 0 {
			fmt.Fprintln(w)
		}
		fmt.Fprintln(w, "note:", note)
	}
}

// printTable has a line per case and metric and a column per target: median, spread, and pgedge's ratio to it.
func (p *report) printTable(w io.Writer, table string) {
	var of []*series
	for _, s := range p.Samples {
		if s.Table == table {
			of = append(of, s)
		}
	}
	targets := names(of, func(s *series) string { return s.Target })
	fmt.Fprintf(w, "\n%s: median (min..max)\n", table)
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintf(t, "\tmetric\t%s\t", strings.Join(targets, "\t"))
	var peers []string
	if slices.Contains(targets, subject) {
		peers = slices.DeleteFunc(slices.Clone(targets), func(s string) bool { return s == subject })
	}
	for _, peer := range peers {
		fmt.Fprintf(t, "%s/%s\t", subject, peer)
	}
	fmt.Fprintln(t)
	for _, kase := range names(of, func(s *series) string { return s.Case }) {
		for _, metric := range names(of, func(s *series) string { return s.Metric }) {
			p.printLine(t, table, kase, metric, targets, peers)
		}
	}
	t.Flush()
}

func (p *report) printLine(t io.Writer, table, kase, metric string, targets, peers []string) {
	line, unit, any := "", "", false
	for _, target := range targets {
		s := p.find(table, kase, target, metric)
		switch {
		case s == nil:
			line += "-\t"
			continue
		case len(s.Values) == 1:
			line += short(s.Values[0]) + "\t"
		default:
			line += fmt.Sprintf("%s (%s..%s)\t", short(float64(s.Median)), short(float64(s.Min)), short(float64(s.Max)))
		}
		unit, any = s.Unit, true
	}
	if !any {
		return
	}
	for _, peer := range peers {
		if s := p.find(table, kase, peer, metric); s != nil && s.Ratio != 0 {
			line += fmt.Sprintf("%.2f\t", s.Ratio)
		} else {
			line += "-\t"
		}
	}
	if unit != "" {
		metric += ", " + unit
	}
	fmt.Fprintf(t, "%s\t%s\t%s\n", kase, metric, line)
}

func printGoals(w io.Writer, goals []goalResult) {
	if len(goals) == 0 {
		return
	}
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprint(t, "\nrow\twhat\tgoal\tgot\t\n")
	for _, g := range goals {
		met := "met"
		if !g.Met {
			met = "NOT met"
		}
		unit := g.Unit
		if unit != "" {
			unit = " " + unit
		}
		got := short(float64(g.Got)) + unit
		if math.IsNaN(float64(g.Got)) {
			got, met = "-", "not measured"
		}
		fmt.Fprintf(t, "%s\t%s\t%s %s%s\t%s\t%s\n", g.Row, g.What, g.Cmp, short(g.Want), unit, got, met)
	}
	t.Flush()
}

// short prints a number with three digits that matter.
func short(v float64) string {
	switch a := math.Abs(v); {
	case math.IsNaN(v):
		return "-"
	case a >= 100 || v == math.Trunc(v):
		return strconv.FormatFloat(v, 'f', 0, 64)
	case a >= 10:
		return strconv.FormatFloat(v, 'f', 1, 64)
	case a >= 1:
		return strconv.FormatFloat(v, 'f', 2, 64)
	default:
		return strconv.FormatFloat(v, 'g', 3, 64)
	}
}

// write puts the report, its plots and the profiles where they are kept.
func (r *run) write() error {
	if err := os.MkdirAll(r.out, 0o755); err != nil {
		return err
	}
	data, err := json.MarshalIndent(&r.report, "", "  ")
	if err != nil {
		return fmt.Errorf("cannot write the report: %w", err)
	}
	if err := r.report.writePlots(r.out); err != nil {
		return err
	}
	if r.profile != "" {
		if err := copyFiles(r.out, r.profile); err != nil {
			return fmt.Errorf("cannot keep the profiles: %w", err)
		}
	}
	path := filepath.Join(r.out, r.name+".json")
	if err := os.WriteFile(path, append(data, '\n'), 0o644); err != nil {
		return err
	}
	r.say("written: %s", path)
	return nil
}

func copyFiles(to, from string) error {
	entries, err := os.ReadDir(from)
	if err != nil {
		return err
	}
	for _, entry := range entries {
		data, err := os.ReadFile(filepath.Join(from, entry.Name()))
		if err == nil {
			err = os.WriteFile(filepath.Join(to, entry.Name()), data, 0o644)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func median(v []float64) float64 { return quantile(v, 0.5) }

// quantile is the value below which so many of the samples lie, between two of them where it falls there; NaN without samples.
func quantile(samples []float64, q float64) float64 {
	if len(samples) == 0 {
		return math.NaN()
	}
	s := slices.Sorted(slices.Values(samples))
	at := q * float64(len(s)-1)
	low := int(at)
	high := min(low+1, len(s)-1)
	return s[low] + (s[high]-s[low])*(at-float64(low))
}

func commit() string { return firstLine("git", "describe", "--always", "--dirty", "--abbrev=12") }

func kernel() string {
	var u unix.Utsname
	if unix.Uname(&u) != nil {
		return "unknown"
	}
	return unix.ByteSliceToString(u.Release[:])
}

func cpuModel() string {
	data, _ := os.ReadFile("/proc/cpuinfo")
	for line := range strings.Lines(string(data)) {
		if name, model, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(name) == "model name" {
			return strings.TrimSpace(model)
		}
	}
	return runtime.GOARCH
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
