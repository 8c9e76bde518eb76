package cluster

import (
	"slices"
	"testing"
	"time"
)

// logQuantiles prints times; nothing is asserted about them.
func logQuantiles(t testing.TB, what string, took []time.Duration) {
	t.Helper()
	slices.Sort(took)
	at := func(q float64) time.Duration { return took[int(q*float64(len(took)-1))] }
	t.Logf("%s: n=%d p50=%s p99=%s max=%s", what, len(took), at(0.5), at(0.99), at(1))
}

// until waits for a state that nobody announces.
func until(t testing.TB, what string, holds func() bool) {
	t.Helper()
	ctx := testContext(t)
	ticker := time.NewTicker(10 * time.Millisecond)
	defer ticker.Stop()
	for !holds() {
		select {
		case <-ctx.Done():
			t.Fatalf("has not happened: %s", what)
		case <-ticker.C:
		}
	}
}
