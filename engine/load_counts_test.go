package engine

import (
	"bytes"
	"os"
	"runtime"
	"strings"
	"testing"
	"time"

	"pgedge/internal/pgtest"
)

// loadCounts is everything a session takes and must give back.
type loadCounts struct {
	goroutines, descriptors                   int
	index, names, admitted, loops, onLoops    int
	cancelKeys, slots, loginSlots, cancelling int
	orders, pausedSides, timers               int
}

func (n *node) counts() loadCounts {
	e := n.Engine
	c := loadCounts{
		goroutines: len(loadGoroutines()), descriptors: loadDescriptors(),
		index: e.index.len(), admitted: int(e.admitted.Load()),
		slots: len(e.slots), loginSlots: len(e.loginSlots), cancelling: len(e.cancelling),
		pausedSides: int(e.metrics.pausedSides.Load()),
	}
	e.index.mu.RLock()
	c.names = e.index.principals.len() + e.index.roles.len() + e.index.databases.len()
	e.index.mu.RUnlock()
	e.cancels.mu.Lock()
	c.cancelKeys = len(e.cancels.sessions)
	e.cancels.mu.Unlock()
	e.drains.mu.Lock()
	c.timers += len(e.drains.sides)
	e.drains.mu.Unlock()
	e.orders.mu.Lock()
	c.orders = len(e.orders.open)
	e.orders.mu.Unlock()
	for _, l := range e.loops {
		c.loops += int(l.count.Load())
		n.onLoop(l, func() {
			c.onLoops += len(l.sessions)
			c.timers += len(l.timers)
		})
	}
	return c
}

// baseline waits until the engine is ready to accept and returns what it holds without a session.
func (n *node) baseline() loadCounts {
	n.t.Helper()
	pgtest.Wait(n.t, "the acceptors to wait", func() bool { return len(n.slots) == len(n.listeners) })
	// What an earlier test has left is still closing: the counts are taken once they stand still.
	var last loadCounts
	same := 0
	pgtest.Wait(n.t, "the counts to stand still", func() bool {
		now := n.counts()
		if now != last {
			last, same = now, 0
		}
		same++
		return same > 10
	})
	return last
}

// onLoop runs f on a loop and waits for it.
func (n *node) onLoop(l *loop, f func()) {
	ran := make(chan struct{})
	l.post(func() {
		defer close(ran)
		f()
	})
	<-ran
}

// settledAt waits until everything is as it was. The process may hold less than before: its own runtime closes things.
func (n *node) settledAt(want loadCounts) {
	n.t.Helper()
	var got loadCounts
	deadline := time.After(patience)
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for over := false; !over; {
		got = n.counts()
		rest := got
		rest.goroutines, rest.descriptors = max(got.goroutines, want.goroutines), max(got.descriptors, want.descriptors)
		if rest == want {
			return
		}
		select {
		case <-tick.C:
		case <-deadline:
			over = true
		}
	}
	if got.goroutines != want.goroutines {
		n.t.Logf("goroutines:\n%s", strings.Join(loadGoroutines(), "\n\n"))
	}
	n.t.Fatalf("not everything was given back:\n got %+v\nwant %+v", got, want)
}

// loadGoroutines are the stacks of all goroutines but the idle workers of gnet's pool, which go after ten seconds.
func loadGoroutines() []string {
	buf := make([]byte, 1<<20)
	for {
		n := runtime.Stack(buf, true)
		if n < len(buf) {
			buf = buf[:n]
			break
		}
		buf = make([]byte, 2*len(buf))
	}
	var out []string
	for _, g := range bytes.Split(buf, []byte("\n\n")) {
		if !bytes.Contains(g, []byte("panjf2000/ants")) {
			out = append(out, string(g))
		}
	}
	return out
}

func loadDescriptors() int {
	names, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		return -1
	}
	return len(names) - 1 // the directory itself
}

// loadHeapLimit is what the issue allows a whole process to hold, whatever is on its way.
const loadHeapLimit = 64 << 20

// loadHeap is what the process holds after a collection.
func loadHeap() uint64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapInuse
}

func loadCheckHeap(t testing.TB, when string) {
	t.Helper()
	if heap := loadHeap(); heap > loadHeapLimit {
		t.Fatalf("%s: the heap is %d MiB, more than %d", when, heap>>20, loadHeapLimit>>20)
	}
}

// noBugs checks the counters that must never move.
func (n *node) noBugs() {
	n.t.Helper()
	if bugs, after := n.metrics.bugs.Get(), n.metrics.bytesAfterCut.Get(); bugs != 0 || after != 0 {
		n.t.Errorf("%d bugs were counted and %d bytes after a cut", bugs, after)
	}
}
