package main

import (
	"bytes"
	"encoding/json"
	"encoding/xml"
	"errors"
	"flag"
	"io"
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// sampled is a run that has measured a little of everything.
func sampled(t *testing.T) *run {
	t.Helper()
	r := &run{name: "relay", rounds: 3, seconds: 1, out: t.TempDir()}
	r.report.begin(r, flag.NewFlagSet("relay", flag.ContinueOnError))
	for i, target := range []string{"direct", subject, "pgbouncer"} {
		for _, kase := range []string{"8 clients", "64 clients"} {
			base := 20 + 10*float64(i)
			r.sample("relay", kase, target, "cpu", "us", base, base+2, base+1)
			h := newLatency()
			for n := range int64(5000) {
				h.RecordValue(100 + n*n/1000*int64(i+1))
			}
			r.latency(kase, target, h, 1000)
		}
	}
	for _, series := range []string{subject, "pgbouncer"} {
		r.curve("memory", series, []float64{100, 1000, 10000}, []float64{20, 22, 30}, "sessions", "MiB")
	}
	r.bars("relay", "cpu")
	return r
}

func TestAReportHasMediansSpreadsAndRatiosToEveryPeer(t *testing.T) {
	r := sampled(t)
	r.report.end()
	s := r.report.find("relay", "8 clients", "pgbouncer", "cpu")
	if s.Median != 41 || s.Min != 40 || s.Max != 42 {
		t.Errorf("median %v, smallest %v, largest %v, want 41, 40, 42", s.Median, s.Min, s.Max)
	}
	if want := 31.0 / 41; math.Abs(float64(s.Ratio)-want) > 1e-9 || s.Ratio != number(r.ratio("relay", "8 clients", "pgbouncer", "cpu")) {
		t.Errorf("ratio %v, want %v", s.Ratio, want)
	}
	if own := r.report.find("relay", "8 clients", subject, "cpu"); own.Ratio != 0 {
		t.Errorf("pgedge is compared with itself: %v", own.Ratio)
	}
	var b strings.Builder
	r.report.print(&b)
	for _, want := range []string{"41 (40..42)", "pgedge/pgbouncer", "0.76", "p99.9"} {
		if !strings.Contains(b.String(), want) {
			t.Errorf("the table has no %q:\n%s", want, b.String())
		}
	}
}

func TestAGoalWithoutAMeasurementIsNotMet(t *testing.T) {
	r := sampled(t)
	r.goal("P1", "CPU", 1, "<=", r.ratio("relay", "8 clients", "haproxy", "cpu"), "")
	r.goal("P1", "CPU", 1, "<=", r.ratio("relay", "8 clients", "pgbouncer", "cpu"), "")
	r.goal("P3", "throughput", 1.5, ">=", 1.4, "")
	var met []bool
	for _, g := range r.report.Goals {
		met = append(met, g.Met)
	}
	if len(met) != 3 || met[0] || !met[1] || met[2] {
		t.Errorf("met: %v, want false, true, false", met)
	}
	var b strings.Builder
	printGoals(&b, r.report.Goals)
	for _, want := range []string{"not measured", "NOT met", "<= 1 ", ">= 1.5"} {
		if !strings.Contains(b.String(), want) {
			t.Errorf("the table has no %q:\n%s", want, b.String())
		}
	}
	if data, err := json.Marshal(&r.report); err != nil || !bytes.Contains(data, []byte(`"got":null`)) {
		t.Errorf("what was not measured is not null in JSON (%v)", err)
	}
}

func TestEveryPlotIsDrawn(t *testing.T) {
	r := sampled(t)
	r.report.end()
	if err := r.write(); err != nil {
		t.Fatal(err)
	}
	for name, words := range map[string][]string{
		"relay-latency-8-clients.svg":  {"pgbouncer", "99.9", "ms"},
		"relay-latency-64-clients.svg": {"pgbouncer", "percentile"},
		"relay-cpu.svg":                {"8 clients", "64 clients", "pgedge", "us"},
		"relay-memory.svg":             {"sessions", "MiB", "pgedge"},
		"relay.json":                   {`"pgedge_ratio"`, `"p99_ms"`},
	} {
		data, err := os.ReadFile(filepath.Join(r.out, name))
		if err != nil {
			t.Error(err)
			continue
		}
		for _, word := range words {
			if !bytes.Contains(data, []byte(word)) {
				t.Errorf("%s does not say %q", name, word)
			}
		}
		if filepath.Ext(name) == ".svg" {
			wellFormed(t, name, data)
		}
	}
}

func wellFormed(t *testing.T, name string, data []byte) {
	t.Helper()
	d := xml.NewDecoder(bytes.NewReader(data))
	for {
		if _, err := d.Token(); errors.Is(err, io.EOF) {
			return
		} else if err != nil {
			t.Errorf("%s: %v", name, err)
			return
		}
	}
}

func TestAPlotThatCannotBeDrawnLeavesNoFile(t *testing.T) {
	r := sampled(t)
	r.bars("relay", "no such metric")
	r.report.end()
	if err := r.write(); err == nil {
		t.Error("a plot of nothing was drawn")
	}
	if files, _ := filepath.Glob(filepath.Join(r.out, "*")); len(files) > 0 {
		t.Errorf("left behind: %v", files)
	}
}
