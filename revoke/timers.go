package revoke

import (
	"container/heap"
	"time"
)

// timer is the place of its owner in the heap of due times. At most one is set per owner.
type timer struct {
	due   time.Time
	index int // place in the heap plus one; 0 when not set
	owner any // *pending, *heal or *rescue
}

type timerHeap []*timer

func (h timerHeap) Len() int           { return len(h) }
func (h timerHeap) Less(i, j int) bool { return h[i].due.Before(h[j].due) }
func (h timerHeap) Swap(i, j int) {
	h[i], h[j] = h[j], h[i]
	h[i].index, h[j].index = i+1, j+1
}

// Push and Pop are heap.Interface's.
func (h *timerHeap) Push(x any) {
	t := x.(*timer)
	*h = append(*h, t)
	t.index = len(*h)
}

func (h *timerHeap) Pop() any {
	old := *h
	t := old[len(old)-1]
	old[len(old)-1] = nil
	*h = old[:len(old)-1]
	t.index = 0
	return t
}

func (h *timerHeap) set(t *timer, owner any, due time.Time) {
	t.due, t.owner = due, owner
	if t.index == 0 {
		heap.Push(h, t)
	} else {
		heap.Fix(h, t.index-1)
	}
}

func (h *timerHeap) stop(t *timer) {
	if t.index != 0 {
		heap.Remove(h, t.index-1)
	}
}
