package cluster

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/nats-io/nats.go"
	"golang.org/x/time/rate"

	"pgedge/revoke"
)

const (
	// maxCancelOwners bounds how many nodes one cancel request is sent to. More than one node is asked only where
	// several share a tag, and forged presences must not turn one request into thousands of messages.
	maxCancelOwners = 8
	// maxCancelBytes is more than the longest cancel request packet has.
	maxCancelBytes = 512
	// cancelRate and cancelBurst bound the cancel requests taken from other nodes; maxCancels how many of them are
	// carried out at a time.
	cancelRate, cancelBurst = 1000, 1000
	maxCancels              = 64
	// cancelAnswerLimit is how long another node may take, which waits for its database.
	cancelAnswerLimit = 5 * time.Second
)

// Answers to a forwarded cancel request.
const (
	cancelKnown   = "known"   // carried out
	cancelUnknown = "unknown" // not a key of this node
	cancelBusy    = "busy"    // not looked at
)

var errCancelBusy = errors.New("it is busy")

// cancelSubject is where a node takes cancel requests that belong to it. The id has been checked: no part of it can
// be taken for another subject.
func cancelSubject(node string) string { return "pgedge.cancel." + node }

// ForwardCancel sends a cancel request to the other live nodes whose ids owner accepts, draining ones included, and
// returns when one of them has carried it out, all have answered, or ctx or cancelAnswerLimit has ended. err says that somebody could not
// be asked, and is nil when the request is known.
func (n *Node) ForwardCancel(ctx context.Context, owner func(node string) bool, request []byte) (known bool, err error) {
	// A server that has not noticed yet that a node is dead takes the request and nobody answers.
	ctx, cancel := context.WithTimeout(ctx, cancelAnswerLimit)
	defer cancel()
	nodes := n.othersLike(owner)
	type answer struct {
		known bool
		err   error
	}
	answers := make(chan answer, len(nodes)) // room for all: nobody waits for who is late
	for _, node := range nodes {
		go func() {
			known, err := n.askToCancel(ctx, node, request)
			answers <- answer{known, err}
		}()
	}
	var problems []error
	for range nodes {
		a := <-answers
		if a.known {
			return true, nil
		}
		problems = append(problems, a.err)
	}
	return false, errors.Join(problems...)
}

// othersLike lists the live nodes but this one that owner accepts. An id that no presence has announced is never
// asked, whatever a client's key says.
func (n *Node) othersLike(owner func(node string) bool) []string {
	n.mu.Lock()
	members := n.proto.Members(time.Now())
	n.mu.Unlock()
	var nodes []string
	for _, p := range members {
		if p.Node != n.cfg.Node && p.State != revoke.StateLeft && p.Live(time.Now()) && owner(p.Node) {
			nodes = append(nodes, p.Node)
		}
	}
	nodes = slices.Compact(nodes) // they are sorted; a restarted node has several boots
	return nodes[:min(len(nodes), maxCancelOwners)]
}

func (n *Node) askToCancel(ctx context.Context, node string, request []byte) (known bool, err error) {
	m, err := n.nc.RequestWithContext(ctx, cancelSubject(node), request)
	if err != nil {
		return false, fmt.Errorf("node %s: %w", node, err)
	}
	switch string(m.Data) {
	case cancelKnown:
		return true, nil
	case cancelUnknown:
		return false, nil
	}
	return false, fmt.Errorf("node %s: %w", node, errCancelBusy)
}

// cancelIntake bounds what other nodes can make this one do.
type cancelIntake struct {
	limit *rate.Limiter
	slots chan struct{}
}

func newCancelIntake() cancelIntake {
	return cancelIntake{limit: rate.NewLimiter(cancelRate, cancelBurst), slots: make(chan struct{}, maxCancels)}
}

// takeCancels subscribes to the cancel requests that other nodes forward. The subscription lasts as long as the
// connection: a node that drains still has sessions.
func (n *Node) takeCancels() error {
	if n.cfg.Cancel == nil {
		return nil
	}
	if _, err := n.nc.Subscribe(cancelSubject(n.cfg.Node), n.onCancel); err != nil {
		return fmt.Errorf("cannot subscribe to %s: %w", cancelSubject(n.cfg.Node), err)
	}
	return nil
}

// onCancel only hands over: carrying a request out takes as long as the database takes.
func (n *Node) onCancel(m *nats.Msg) {
	n.m.cancelsReceived.Inc()
	if len(m.Data) > maxCancelBytes {
		return
	}
	answer := func(text string) {
		if m.Reply != "" {
			m.Respond([]byte(text)) // who asked waits no longer than it would have anyway
		}
	}
	if !n.cancels.limit.Allow() || !n.whileRunning(func() { answer(n.carryOutCancel(m.Data)) }) {
		answer(cancelBusy)
	}
}

// whileRunning runs f on a goroutine that the end of the node waits for. It returns false when the node ends or has
// enough of them.
func (n *Node) whileRunning(f func()) bool {
	select {
	case n.cancels.slots <- struct{}{}:
	default:
		return false
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.stopped {
		<-n.cancels.slots
		return false
	}
	n.work.Go(func() {
		defer func() { <-n.cancels.slots }()
		f()
	})
	return true
}

func (n *Node) carryOutCancel(request []byte) string {
	if n.cfg.Cancel(request) {
		return cancelKnown
	}
	return cancelUnknown
}
