package engine

import (
	"context"
	"sync"
	"time"

	"golang.org/x/time/rate"
)

// limiter is a token bucket that holds its rate when many goroutines draw on it at once. rate.Limiter reads the clock
// before it takes its lock and lets its own time run backwards to the latest caller's, so each caller that was overtaken
// makes the next one earn the same interval again: 8,000 at once have all been let through a limit of 1,000 per second.
// Here the time is read under the lock. It may be used from any goroutine.
type limiter struct {
	mu     sync.Mutex
	bucket *rate.Limiter
	clock  func() time.Time // called under mu
}

func newLimiter(perSecond rate.Limit, burst int) *limiter {
	return &limiter{bucket: rate.NewLimiter(perSecond, burst), clock: time.Now}
}

// allow takes a token if there is one.
func (l *limiter) allow() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.bucket.AllowN(l.clock(), 1)
}

// empty reports that allow would fail.
func (l *limiter) empty() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.bucket.TokensAt(l.clock()) < 1
}

// wait takes a token when its turn comes. If that is not within most, or ctx ends first, it takes none and returns
// false.
func (l *limiter) wait(ctx context.Context, most time.Duration) bool {
	l.mu.Lock()
	now := l.clock()
	r := l.bucket.ReserveN(now, 1)
	delay := r.DelayFrom(now)
	if delay > most {
		r.CancelAt(now)
	}
	l.mu.Unlock()
	if delay > most {
		return false
	}
	if delay == 0 {
		return true
	}
	turn := time.NewTimer(delay)
	defer turn.Stop()
	select {
	case <-turn.C:
		return true
	case <-ctx.Done():
		l.mu.Lock()
		defer l.mu.Unlock()
		r.CancelAt(l.clock())
		return false
	}
}
