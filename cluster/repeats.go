package cluster

import (
	"sync"
	"time"
)

// repeatEvery is how often a log may say the same thing; a full disk or a stale token makes it say so many times a
// second.
const repeatEvery = 10 * time.Second

// maxRepeats bounds the texts that are remembered.
const maxRepeats = 64

// repeatLimit keeps a log from saying the same thing over and over. The zero value is ready for use.
type repeatLimit struct {
	mu   sync.Mutex
	said map[string]time.Time
}

// allow reports whether the text has not been said within the last while, and remembers that it is said now.
func (l *repeatLimit) allow(text string, now time.Time, every time.Duration) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if at, known := l.said[text]; known && now.Sub(at) < every {
		return false
	}
	if l.said == nil || len(l.said) >= maxRepeats {
		l.said = make(map[string]time.Time)
	}
	l.said[text] = now
	return true
}
