package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// logged is a measurement of the second that begins at 1000 s, and the folder with pgbench's log.
func logged(t *testing.T, lines ...string) (*measurement, string) {
	t.Helper()
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "log.1"), []byte(strings.Join(lines, "\n")+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	from := time.Unix(1000, 0)
	return &measurement{latency: newLatency(), corrected: newLatency(), before: usage{at: from}, after: usage{at: from.Add(time.Second)}}, dir
}

func line(client int, tookMicros, endedMicros int64) string {
	return fmt.Sprintf("%d 1 %d 0 %d %d", client, tookMicros, 1000+endedMicros/1e6, endedMicros%1e6)
}

func said(n int) []byte {
	return fmt.Appendf(nil, "number of transactions actually processed: %d\nnumber of failed transactions: 0 (0.000%%)\n", n)
}

func TestTransactionsOfTheIntervalAreCountedAndOthersAreNot(t *testing.T) {
	m, dir := logged(t, "0 1 1000 0 999 999995", line(0, 1000, 100), line(1, 1000, 999_999), line(0, 1000, 500_000), line(1, 1000, 1_000_000))
	if err := m.count(workload{clients: 2}, dir, said(5), true); err != nil {
		t.Fatal(err)
	}
	if m.transactions != 3 {
		t.Errorf("%d transactions, want 3", m.transactions)
	}
	if want := 2.0 / 3; m.slowest < want-0.01 || m.slowest > want+0.01 {
		t.Errorf("the slowest client got %.2f of its share, want %.2f", m.slowest, want)
	}
}

func TestAMeasurementThatDoesNotAddUpHasNoNumber(t *testing.T) {
	good := []string{line(0, 1000, 100), line(1, 1000, 2_000_000)}
	for name, c := range map[string]struct {
		lines []string
		said  string
		want  string
	}{
		"counts differ":            {good, string(said(3)), "says something else"},
		"pgbench says nothing":     {good, "", "says something else"},
		"failed transactions":      {good, strings.Replace(string(said(2)), "failed transactions: 0", "failed transactions: 7", 1), "7 transactions failed"},
		"a failed transaction":     {append(good, "0 1 failed 0 1000 5"), string(said(3)), "failed"},
		"a short line":             {append(good, "0 1"), string(said(3)), "cannot read"},
		"over before the interval": {good[:1], string(said(1)), "too busy"},
		"nothing in the interval":  {good[1:], string(said(1)), "too busy"},
	} {
		m, dir := logged(t, c.lines...)
		if err := m.count(workload{clients: 2}, dir, []byte(c.said), true); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", name, err, c.want)
		}
	}
}

func TestAStarvedClientShowsInTheCorrectedPercentile(t *testing.T) {
	// One client has an answer every ms, the other waits for all of the second.
	lines := []string{line(1, 1_000_000, 999_999), line(0, 1000, 1_000_500)}
	for ms := range int64(999) {
		lines = append(lines, line(0, 1000, ms*1000))
	}
	m, dir := logged(t, lines...)
	if err := m.count(workload{clients: 2}, dir, said(len(lines)), true); err != nil {
		t.Fatal(err)
	}
	if plain := m.latency.ValueAtQuantile(99); plain > 1100 {
		t.Errorf("p99 of the transactions alone is %d us, want about 1000", plain)
	}
	if corrected := m.corrected.ValueAtQuantile(99); corrected < 900_000 {
		t.Errorf("the corrected p99 is %d us, want nearly a second", corrected)
	}
	m, dir = logged(t, lines...)
	if err := m.count(workload{clients: 2, rate: 1000}, dir, said(len(lines)), true); err != nil {
		t.Fatal(err)
	}
	if corrected := m.corrected.ValueAtQuantile(99); corrected > 1100 {
		t.Errorf("with a rate pgbench has corrected already, but p99 is %d us", corrected)
	}
}
