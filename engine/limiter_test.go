package engine

import (
	"context"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// Callers that read the clock and were then overtaken made rate.Limiter grant the same interval again and again.
func TestALimiterHoldsItsRateAmongManyCallers(t *testing.T) {
	const rate, burst, callers, each = 100, 10, 64, 500
	l := newLimiter(rate, burst)
	began := time.Now()
	var passed, granted atomic.Int64
	l.clock = func() time.Time {
		at := began.Add(time.Duration(passed.Add(int64(time.Millisecond))))
		runtime.Gosched() // others come first
		return at
	}
	var wg sync.WaitGroup
	for range callers {
		wg.Go(func() {
			for range each {
				if l.allow() {
					granted.Add(1)
				}
			}
		})
	}
	wg.Wait()
	if most := burst + rate*time.Duration(passed.Load()).Seconds() + 1; float64(granted.Load()) > most {
		t.Errorf("%d calls were granted, want at most %.0f", granted.Load(), most)
	}
}

func TestALimiterRefusesAWaitThatIsTooLongAtOnce(t *testing.T) {
	l := newLimiter(1, 1)
	if !l.wait(t.Context(), 0) {
		t.Fatal("the first is not let through")
	}
	if l.wait(t.Context(), 500*time.Millisecond) {
		t.Error("somebody waited for longer than he may")
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if l.wait(ctx, time.Minute) {
		t.Error("a wait that was given up was granted")
	}
	// What was not taken is not owed either.
	if !l.wait(t.Context(), 2*time.Second) {
		t.Error("the next one pays for those who gave up")
	}
}
