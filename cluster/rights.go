package cluster

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"strings"
	"sync"

	"github.com/nats-io/nats.go"
)

// The permission sets that pgedge ships in deploy/nats.
const (
	setNode     = "node"
	setOperator = "operator"
	setObserver = "observer"
)

// MissingRightError says that NATS does not let this process do something that it has to do.
type MissingRightError struct {
	// Action is "publish on" or "subscribe to".
	Action  string
	Subject string
	// Sets are the shipped permission sets that hold the right.
	Sets []string
	// Node is the id of the node that lacks it, "" for the command line.
	Node string
}

func (e *MissingRightError) Error() string {
	files := make([]string, len(e.Sets))
	for i, s := range e.Sets {
		files[i] = "deploy/nats/" + s + ".conf"
	}
	where := strings.Join(files, ", ")
	if e.Node != "" {
		where += " with " + e.Node + " for NODE_ID"
	}
	return fmt.Sprintf("NATS does not let this user %s %q: give it the permission set %s (%s)",
		e.Action, e.Subject, strings.Join(e.Sets, " or "), where)
}

// violationPattern reads the server's words: Permissions Violation for Publish to "pgedge.revoke.all".
var violationPattern = regexp.MustCompile(`(?i)permissions violation for (publish|subscription) to "([^"]*)"`)

// rights turns what NATS says about missing permissions into errors. NATS says it beside the request, which then gets
// no answer: without this the reader would see a timeout.
type rights struct {
	node string // the id of the node whose connection this is, "" for the command line's

	mu    sync.Mutex
	first *MissingRightError
	lost  chan struct{} // closed with the first one
}

func newRights(node string) *rights { return &rights{node: node, lost: make(chan struct{})} }

// note takes an error of the connection. It returns nil when that is about something else.
func (r *rights) note(err error) *MissingRightError {
	if !errors.Is(err, nats.ErrPermissionViolation) {
		return nil
	}
	m := violationPattern.FindStringSubmatch(err.Error())
	if m == nil {
		m = []string{"", "publish", err.Error()}
	}
	missing := &MissingRightError{Action: "publish on", Subject: m[2], Node: r.node}
	if strings.EqualFold(m[1], "subscription") {
		missing.Action = "subscribe to"
	}
	missing.Sets = r.setsWith(missing.Subject)
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.first == nil {
		r.first = missing
		close(r.lost)
	}
	return missing
}

// setsWith names the sets that this process could be given for a subject.
func (r *rights) setsWith(subject string) []string {
	if r.node != "" {
		return []string{setNode}
	}
	for _, prefix := range []string{
		"pgedge.revoke.", "pgedge.kill.", "pgedge.suspend.", "pgedge.reinstate.", nodePrefix, receiptPrefix,
		"pgedge.query.drain", "pgedge.query.drill", "pgedge.query.forget", "$JS.API.STREAM.CREATE.",
	} {
		if strings.HasPrefix(subject, prefix) {
			return []string{setOperator}
		}
	}
	return []string{setOperator, setObserver}
}

// err is the first right that was found missing, nil when none was. A nil r lacks nothing.
func (r *rights) err() error {
	if r == nil {
		return nil
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.first == nil {
		return nil
	}
	return r.first
}

// explain puts a missing right in place of the error that it caused, a timeout as a rule.
func (r *rights) explain(err error) error {
	if missing := r.err(); err != nil && missing != nil {
		return missing
	}
	return err
}

// bind returns a context that ends as soon as a right is found missing, so that nobody waits for an answer that cannot
// come.
func (r *rights) bind(ctx context.Context) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancelCause(ctx)
	r.mu.Lock()
	lost := r.lost
	r.mu.Unlock()
	go func() {
		select {
		case <-lost:
			cancel(r.err())
		case <-ctx.Done():
		}
	}()
	return ctx, func() { cancel(nil) }
}

// forget begins again after a reconnect: the server may have been told to allow more.
func (r *rights) forget() {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.first != nil {
		r.first, r.lost = nil, make(chan struct{})
	}
}
