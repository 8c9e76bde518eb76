package engine

import "time"

// clock posts a tick to each loop that asked for one, when it asked for it. While no loop has anything planned, it
// sleeps.
type clock struct {
	eng  *Engine
	wake chan struct{}
	quit chan struct{}
	done chan struct{}
}

func newClock(e *Engine) *clock {
	return &clock{eng: e, wake: make(chan struct{}, 1), quit: make(chan struct{}), done: make(chan struct{})}
}

func (c *clock) poke() {
	select {
	case c.wake <- struct{}{}:
	default:
	}
}

func (c *clock) stop() {
	if c != nil {
		close(c.quit)
		<-c.done
	}
}

func (c *clock) run() {
	defer close(c.done)
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	for {
		now := int64(time.Since(c.eng.epoch))
		next := int64(0)
		for _, l := range c.eng.loops {
			at := l.next.Load()
			// Cleared before the tick runs: what the tick plans is later than this.
			if at > 0 && at <= now && l.next.CompareAndSwap(at, 0) {
				l.post(l.tick)
			}
			if at = l.next.Load(); at > 0 && (next == 0 || at < next) {
				next = at
			}
		}
		wait := time.Hour
		if next > 0 {
			wait = max(time.Duration(next-int64(time.Since(c.eng.epoch))), 0)
		}
		timer.Reset(wait)
		select {
		case <-timer.C:
		case <-c.wake:
		case <-c.quit:
			return
		}
	}
}
