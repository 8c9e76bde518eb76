package cluster

import (
	"context"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/time/rate"

	"pgedge/internal/pgtest"
	"pgedge/revoke"
)

// canceller is the part of a node that knows keys: one of them.
type canceller struct {
	key   string
	asked atomic.Int64
}

func (c *canceller) carryOut(request []byte) bool {
	c.asked.Add(1)
	return string(request) == c.key
}

func startCanceller(t *testing.T, first *Node, node string) (*Node, *canceller) {
	t.Helper()
	c := &canceller{key: "key of " + node}
	cfg := testConfig(t, node)
	cfg.Cancel = c.carryOut
	if first != nil {
		cfg.NATS = first.URL()
	}
	return startNode(t, cfg, newFakeEngine()), c
}

func anyNode(string) bool { return true }

func named(names ...string) func(string) bool {
	return func(node string) bool { return strings.Contains(" "+strings.Join(names, " ")+" ", " "+node+" ") }
}

// waitKnown returns when n has heard of the node in the state.
func waitKnown(t *testing.T, n *Node, node, state string) {
	t.Helper()
	pgtest.Wait(t, node+" is known to be "+state, func() bool {
		n.mu.Lock()
		defer n.mu.Unlock()
		for _, p := range n.proto.Members(n.lastNow) {
			if p.Node == node && p.State == state {
				return true
			}
		}
		return false
	})
}

func TestACancelRequestGoesToItsOwnerOnly(t *testing.T) {
	a, ca := startCanceller(t, nil, "a")
	b, cb := startCanceller(t, a, "b")
	c, cc := startCanceller(t, a, "c")
	for _, n := range []*Node{a, b, c} {
		for _, other := range []string{"a", "b", "c"} {
			waitKnown(t, n, other, revoke.StateServing)
		}
	}
	forward := func(n *Node, owner func(string) bool, request string, want bool) {
		t.Helper()
		known, err := n.ForwardCancel(testContext(t), owner, []byte(request))
		if known != want || err != nil {
			t.Errorf("%s at node %s: %t, %v", request, n.cfg.Node, known, err)
		}
	}
	forward(b, named("c"), "key of c", true)
	forward(a, named("b", "c"), "key of c", true) // nodes that share a tag
	forward(a, named("c"), "guess", false)
	forward(a, named("nobody"), "key of c", false)
	forward(a, named("a"), "key of a", false) // never itself
	if ca.asked.Load() != 0 || cb.asked.Load() > 1 || cc.asked.Load() != 3 {
		t.Errorf("asked %d, %d and %d times", ca.asked.Load(), cb.asked.Load(), cc.asked.Load())
	}

	c.SetState(revoke.StateDraining)
	waitKnown(t, a, "c", revoke.StateDraining)
	forward(a, named("c"), "key of c", true)
	closeNode(t, c)
	waitKnown(t, a, "c", revoke.StateLeft)
	before := cc.asked.Load()
	forward(a, named("c"), "key of c", false)
	if cc.asked.Load() != before {
		t.Error("a node that has left was asked")
	}
}

func TestACancelRequestForADeadNodeFails(t *testing.T) {
	a, _ := startCanceller(t, nil, "a")
	b, _ := startCanceller(t, a, "b")
	waitKnown(t, a, "b", revoke.StateServing)
	crash(b)
	if known, err := a.ForwardCancel(context.Background(), named("b"), []byte("key of b")); known || err == nil || !strings.Contains(err.Error(), "node b") {
		t.Errorf("%t, %v", known, err)
	}
}

// The answer of a node that knows the key ends the wait for one that does not answer.
func TestANodeThatHangsDoesNotHoldUpACancelRequestThatAnotherKnows(t *testing.T) {
	a, _ := startCanceller(t, nil, "a")
	startCanceller(t, a, "c")
	cfg := testConfig(t, "b")
	cfg.NATS = a.URL()
	hang := make(chan struct{})
	cfg.Cancel = func([]byte) bool { <-hang; return false }
	startNode(t, cfg, newFakeEngine())
	defer close(hang)
	waitKnown(t, a, "b", revoke.StateServing)
	waitKnown(t, a, "c", revoke.StateServing)
	if known, err := a.ForwardCancel(testContext(t), anyNode, []byte("key of c")); !known || err != nil {
		t.Errorf("%t, %v", known, err)
	}
	ctx, cancel := context.WithCancel(testContext(t))
	ended := make(chan error, 1)
	go func() {
		_, err := a.ForwardCancel(ctx, named("b"), []byte("key of b"))
		ended <- err
	}()
	cancel()
	if err := <-ended; err == nil {
		t.Error("a node that did not answer is no error")
	}
}

func TestAFloodOfForwardedCancelRequestsIsBounded(t *testing.T) {
	a, ca := startCanceller(t, nil, "a")
	nc := rawConn(t, a.URL())
	// As if no time passed: how much of it does depends on the machine.
	a.cancels.limit.SetLimit(rate.Every(time.Hour))
	count := make(map[string]int)
	for range 2 * cancelBurst { // one after the other, so that it is the rate that holds them back
		m, err := nc.Request(cancelSubject("a"), []byte("guess"), patience)
		if err != nil {
			t.Fatal(err)
		}
		count[string(m.Data)]++
	}
	if count[cancelUnknown] != cancelBurst || count[cancelBusy] != cancelBurst {
		t.Errorf("%v of %d requests", count, 2*cancelBurst)
	}
	if int64(count[cancelUnknown]) != ca.asked.Load() {
		t.Errorf("%v, asked %d times", count, ca.asked.Load())
	}
	// What is no request at all is not even answered, and what cannot be answered is carried out all the same.
	nc.PublishRequest(cancelSubject("a"), nc.NewInbox(), make([]byte, maxCancelBytes+1))
	a.cancels.limit.SetLimit(cancelRate)
	pgtest.Wait(t, "a request without a reply is carried out", func() bool {
		before := ca.asked.Load()
		nc.Publish(cancelSubject("a"), []byte("guess"))
		nc.Flush()
		return ca.asked.Load() > before
	})
}
