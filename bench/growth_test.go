package main

import (
	"bytes"
	"strings"
	"testing"
)

const growthOutput = `goos: linux
pkg: pgedge/engine
BenchmarkIndex/sessions=10/revoke/matches=1-2    100   1500 ns/op   1200 median-ns   864 B/op   7 allocs/op
BenchmarkIndex/sessions=10/match/matches=1-2     100    350 ns/op      8 B/op   1 allocs/op
BenchmarkIndexMemory/sessions=10-2               100    168.5 index-bytes/session   832 own-bytes/session
PASS
`

func TestAGrowthRoundIsReadWholeOrNotAtAll(t *testing.T) {
	for _, c := range []struct {
		name, out string
		good      bool
	}{
		{"whole", growthOutput, true},
		{"without a revocation", strings.Replace(growthOutput, "revoke", "evoke", 1), false},
		{"without a median", strings.Replace(growthOutput, "median-ns", "mean-ns", 1), false},
		{"without memory", strings.Replace(growthOutput, "Memory", "Memo", 1), false},
	} {
		t.Run(c.name, func(t *testing.T) {
			lines, err := readBenchmarks(bytes.NewBufferString(c.out))
			if err != nil {
				t.Fatal(err)
			}
			r := &run{}
			if err := growthSamples(r, lines, []int{10}); (err == nil) != c.good {
				t.Fatalf("got %v", err)
			}
			if c.good && (r.growth(10, 1) != 1.2 || r.growth(10, 100) != 0) {
				t.Errorf("a revocation takes %v µs", r.growth(10, 1))
			}
		})
	}
	for _, out := range []string{"", "FAIL\n", "BenchmarkIndex/sessions=10-2 100 x ns/op\n"} {
		if lines, err := readBenchmarks(bytes.NewBufferString(out)); err == nil {
			t.Errorf("%q was read as %v", out, lines)
		}
	}
}
