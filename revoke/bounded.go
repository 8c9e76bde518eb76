package revoke

import "time"

// expiring is a map that forgets: an entry after a time, and the oldest entries beyond a number. Putting a key
// again renews it.
type expiring[V any] struct {
	keep  time.Duration
	limit int
	byKey map[string]expiringEntry[V]
	queue []queuedKey // oldest first; entries that were renewed or removed are stale
	next  uint64
}

type expiringEntry[V any] struct {
	value  V
	expiry time.Time
	serial uint64
}

type queuedKey struct {
	key    string
	expiry time.Time
	serial uint64
}

func newExpiring[V any](keep time.Duration, limit int) *expiring[V] {
	return &expiring[V]{keep: keep, limit: limit, byKey: make(map[string]expiringEntry[V])}
}

func (e *expiring[V]) put(now time.Time, key string, v V) {
	e.next++
	en := expiringEntry[V]{v, now.Add(e.keep), e.next}
	e.byKey[key] = en
	e.queue = append(e.queue, queuedKey{key, en.expiry, en.serial})
	e.trim(now)
}

func (e *expiring[V]) get(now time.Time, key string) (V, bool) {
	e.trim(now)
	en, ok := e.byKey[key]
	return en.value, ok
}

func (e *expiring[V]) remove(key string) { delete(e.byKey, key) }

func (e *expiring[V]) trim(now time.Time) {
	drop := 0
	for _, q := range e.queue {
		// Twice the limit bounds the stale entries of the queue as well.
		if now.Before(q.expiry) && len(e.byKey) <= e.limit && len(e.queue)-drop <= 2*e.limit {
			break
		}
		if e.byKey[q.key].serial == q.serial {
			delete(e.byKey, q.key)
		}
		drop++
	}
	e.queue = e.queue[drop:]
}
