package engine

import (
	"container/heap"
	"time"
)

// timerHeap orders the sessions of a loop by the time something is due for them. A session is in it at most once.
type timerHeap []*session

func (h timerHeap) Len() int           { return len(h) }
func (h timerHeap) Less(i, j int) bool { return h[i].due < h[j].due }
func (h timerHeap) Swap(i, j int) {
	h[i], h[j] = h[j], h[i]
	h[i].timerIndex, h[j].timerIndex = int32(i), int32(j)
}

func (h *timerHeap) Push(x any) {
	s := x.(*session)
	s.timerIndex = int32(len(*h))
	*h = append(*h, s)
}

func (h *timerHeap) Pop() any {
	old := *h
	s := old[len(old)-1]
	old[len(old)-1] = nil
	*h = old[:len(old)-1]
	s.timerIndex = -1
	return s
}

// rearm plans the next look at the session; it is cheap to look too early, so activity does not move the plan.
func (s *session) rearm() {
	due := s.nextDue()
	switch {
	case due == 0 && s.timerIndex >= 0:
		heap.Remove(&s.loop.timers, int(s.timerIndex))
	case due == 0:
	case s.timerIndex < 0:
		s.due = due
		heap.Push(&s.loop.timers, s)
	case due != s.due:
		s.due = due
		heap.Fix(&s.loop.timers, int(s.timerIndex))
	}
	if due > 0 {
		s.loop.wakeAt(due)
	}
}

// nextDue is when the earliest of the session's limits could strike, 0 for never.
func (s *session) nextDue() int64 {
	if s.reason != reasonNone {
		return earliest(s.front.closesAt(), s.back.closesAt(), s.awaitUntil, s.lookAgainAt())
	}
	if s.frozen {
		return s.frozenDue()
	}
	t := s.eng.timeouts()
	due := int64(0)
	consider := func(at int64) {
		if due == 0 || at < due {
			due = at
		}
	}
	last := s.lastActive.Load()
	if t.IdleSession > 0 {
		consider(last + int64(t.IdleSession))
	}
	if t.IdleInTransaction > 0 {
		consider(last + int64(t.IdleInTransaction))
	}
	if t.SessionMax > 0 {
		consider(s.tooOldAt(t))
	}
	if due > 0 && due <= s.now() {
		// Due but not idle: look again within a second.
		due = s.now() + int64(time.Second)
	}
	return due
}

func (s *session) onTimer(now int64) {
	if s.reason != reasonNone {
		if s.frozen && s.eng.fresh() {
			s.thaw()
		}
		if s.awaitUntil > 0 && now >= s.awaitUntil {
			s.awaitUntil = 0
			s.back.drop()
		}
		for _, sd := range []*side{&s.front, &s.back} {
			if at := sd.closesAt(); at > 0 && now >= at {
				sd.expire()
			}
		}
		if !s.done {
			s.rearm()
		}
		return
	}
	if s.frozen {
		s.onFrozenTimer(now)
		return
	}
	t := s.eng.timeouts()
	idle := now - s.lastActive.Load()
	switch s.stateName() {
	case "idle":
		if t.IdleSession > 0 && idle >= int64(t.IdleSession) {
			s.end(ReasonIdle, "")
			return
		}
	case "idle_in_transaction":
		if t.IdleInTransaction > 0 && idle >= int64(t.IdleInTransaction) {
			s.end(ReasonIdleInTransaction, "")
			return
		}
	}
	if t.SessionMax > 0 && now >= s.tooOldAt(t) {
		if s.closing == ReasonSessionMax {
			s.end(ReasonSessionMax, "no sync point in time")
		} else {
			s.endAtSyncPoint(ReasonSessionMax)
		}
		if s.reason != reasonNone {
			return
		}
	}
	s.rearm()
}

// tooOldAt is when the session has reached its longest lifetime, and once it waits for its next sync point, when it has
// waited for as long as a draining node would: a pipeline that never empties has none.
func (s *session) tooOldAt(t *Timeouts) int64 {
	at := int64(s.began.Sub(s.eng.epoch)) + int64(t.SessionMax)
	if s.closing == ReasonSessionMax {
		at += int64(t.Drain)
	}
	return at
}

// earliest is the smallest of the times that are set, 0 for none.
func earliest(times ...int64) int64 {
	first := int64(0)
	for _, at := range times {
		if at > 0 && (first == 0 || at < first) {
			first = at
		}
	}
	return first
}

// rearmAll plans anew after a change of timeouts.
func (l *loop) rearmAll() {
	for s := range l.sessions {
		s.rearm()
	}
}
