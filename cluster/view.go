package cluster

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"pgedge/revoke"
)

// journalView is a client's copy of the journal: the table, the presences, and the newest message of every subject
// that somebody waits for. After a doubt it is loaded anew beside the old state.
type journalView struct {
	// onPresence is called for each presence, without the lock. Immutable once followed.
	onPresence func(revoke.Presence)

	mu       sync.Mutex
	current  *journalState
	loading  *journalState // nil once complete
	complete chan struct{} // closed when current has been complete for the first time
	waiters  map[string]map[*subjectWaiter]struct{}
	moved    chan struct{} // closed, and replaced, whenever the end of the journal has been reached
}

// journalState is what one pass through the journal has found.
type journalState struct {
	table     *revoke.Table
	presences map[string]revoke.Presence // by subject
	subjects  map[string]uint64          // last position of each fact's subject
	lastSeq   uint64
	lastFact  uint64 // position of the last message that is no presence
	// ended is the last position at which nothing was waiting behind it.
	ended uint64
	// began is when this pass began, by both clocks: from their difference and a message's time of storage follows
	// how old it is, whatever the two clocks say.
	beganHere, beganServer time.Time
}

// subjectWaiter is told about each message of one subject.
type subjectWaiter struct {
	wake chan struct{}

	// Guarded by the view's mu.
	newest uint64 // position of the newest message of the subject
	mine   uint64 // position of the message with msgID, 0 while not delivered
	msgID  string
	stored time.Time // of mine, by the server's clock
	seen   time.Time // when mine was delivered here; carries the monotonic clock
}

func newJournalView() *journalView {
	return &journalView{
		complete: make(chan struct{}),
		waiters:  make(map[string]map[*subjectWaiter]struct{}),
		moved:    make(chan struct{}),
	}
}

func (v *journalView) begin(serverNow time.Time, pending uint64) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.loading = &journalState{
		table:       revoke.NewTable(),
		presences:   make(map[string]revoke.Presence),
		subjects:    make(map[string]uint64),
		beganHere:   time.Now(),
		beganServer: serverNow,
	}
	if pending == 0 {
		v.finishLoading()
	}
}

// finishLoading is called with mu held.
func (v *journalView) finishLoading() {
	first := v.current == nil
	v.current, v.loading = v.loading, nil
	if first {
		close(v.complete)
	}
}

func (v *journalView) wait(ctx context.Context) error {
	select {
	case <-v.complete:
		return nil
	case <-ctx.Done():
		err := context.Cause(ctx)
		if errors.Is(err, context.DeadlineExceeded) {
			return fmt.Errorf("no answer in time: its servers are electing a leader, or too few of them can reach each other: %w", err)
		}
		return err
	}
}

func (v *journalView) isComplete() bool {
	select {
	case <-v.complete:
		return true
	default:
		return false
	}
}

func (v *journalView) onMessage(d delivery) {
	now := time.Now()
	presence, isPresence := v.apply(d, now)
	if isPresence {
		v.onPresence(presence)
	}
}

func (v *journalView) apply(d delivery, now time.Time) (p revoke.Presence, isPresence bool) {
	v.mu.Lock()
	defer v.mu.Unlock()
	s := v.loading
	if s == nil {
		s = v.current
	}
	s.lastSeq = d.Seq
	if strings.HasPrefix(d.Subject, nodePrefix) {
		p, isPresence = s.applyPresence(d, now)
	} else if f, err := revoke.DecodeFact(d.Subject, d.MsgID, d.Payload); err == nil {
		f.Seq = d.Seq
		if f.At.IsZero() {
			// A bare message does not say when it was sent, and a person who lists blocks wants to know. Nodes leave
			// it empty: nothing they decide depends on a time.
			f.At = d.Stored.UTC()
		}
		if f.ID == "" { // a bare message; nodes name it in the same way
			f.ID = fmt.Sprintf("seq-%d", f.Seq)
		}
		s.table.Merge(f)
		s.subjects[d.Subject] = d.Seq
	} else {
		s.subjects[d.Subject] = d.Seq
	}
	if !isPresence && !strings.HasPrefix(d.Subject, nodePrefix) {
		s.lastFact = d.Seq
	}
	s.table.Advance(d.Seq)
	for w := range v.waiters[d.Subject] {
		w.deliver(d, now)
	}
	if d.Pending == 0 {
		s.ended = d.Seq
		if v.loading != nil {
			v.finishLoading()
		}
		close(v.moved)
		v.moved = make(chan struct{})
	}
	return p, isPresence
}

func (s *journalState) applyPresence(d delivery, now time.Time) (revoke.Presence, bool) {
	p, err := revoke.DecodePresence(d.Subject, d.Payload)
	if err != nil {
		// Who may ask the server anything can have its answer put in the place of a heartbeat. The boot is there all the
		// same, and what nothing is known of it has to prove: it must not drop out of a verdict.
		node, boot, err := revoke.ParseNodeSubject(d.Subject)
		if _, known := s.presences[d.Subject]; err != nil || known {
			return revoke.Presence{}, false
		}
		p = revoke.Presence{Node: node, Boot: boot, State: revoke.StateServing}
	}
	// A heartbeat that is replayed was heard as long ago as it was stored before this pass began.
	p.Seq, p.Heard = d.Seq, now
	if age := s.beganServer.Sub(d.Stored); age > 0 {
		p.Heard = s.beganHere.Add(-age)
	}
	s.presences[d.Subject] = p
	return p, true
}

// membersAt waits until the journal has been read to its end at or behind a position, and returns the presences of that
// moment. Before its end the only heartbeat of a boot may be one still to come: with one message per subject the
// earlier ones are gone. When ctx ends first, complete is false.
func (v *journalView) membersAt(ctx context.Context, seq uint64) (members []revoke.Presence, complete bool) {
	for {
		v.mu.Lock()
		reached, moved := v.current != nil && v.loading == nil && v.current.ended >= seq, v.moved
		v.mu.Unlock()
		if reached {
			_, members, _ = v.state()
			return members, true
		}
		select {
		case <-moved:
		case <-ctx.Done():
			_, members, _ = v.state()
			return members, false
		}
	}
}

// deliver is called with the view's mu held.
func (w *subjectWaiter) deliver(d delivery, now time.Time) {
	w.newest = max(w.newest, d.Seq)
	if d.MsgID == w.msgID && w.mine == 0 {
		w.mine, w.stored, w.seen = d.Seq, d.Stored, now
	}
	select {
	case w.wake <- struct{}{}:
	default:
	}
}

// watch tells a waiter about the subject's messages from here on. base is the last position of the subject so far.
func (v *journalView) watch(subject, msgID string) (w *subjectWaiter, base uint64) {
	v.mu.Lock()
	defer v.mu.Unlock()
	w = &subjectWaiter{wake: make(chan struct{}, 1), msgID: msgID}
	if v.waiters[subject] == nil {
		v.waiters[subject] = make(map[*subjectWaiter]struct{})
	}
	v.waiters[subject][w] = struct{}{}
	if v.current != nil {
		base = v.current.subjects[subject]
	}
	return w, base
}

func (v *journalView) unwatch(subject string, w *subjectWaiter) {
	v.mu.Lock()
	defer v.mu.Unlock()
	delete(v.waiters[subject], w)
	if len(v.waiters[subject]) == 0 {
		delete(v.waiters, subject)
	}
}

// look reads a waiter's findings.
func (v *journalView) look(w *subjectWaiter) subjectWaiter {
	v.mu.Lock()
	defer v.mu.Unlock()
	return *w
}

// newest is the position of the last fact of a verb and scope, 0 when there is none.
func (v *journalView) newest(verb revoke.Verb, scope revoke.Scope) uint64 {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.current == nil {
		return 0
	}
	return v.current.table.Last(verb, scope)
}

// contradicts says that a node which has applied the journal up to a position holds another table than this view. It
// claims so only where both have read the same facts.
func (v *journalView) contradicts(applied uint64, hash string) bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	s := v.current
	return hash != "" && applied >= s.lastFact && applied <= s.lastSeq && hash != s.table.Hash()
}

// state returns the table, the presences by node and boot, and the last position: nothing while the view has never been
// complete.
func (v *journalView) state() (*revoke.Table, []revoke.Presence, uint64) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.current == nil {
		return revoke.NewTable(), nil, 0
	}
	presences := make([]revoke.Presence, 0, len(v.current.presences))
	for _, p := range v.current.presences {
		presences = append(presences, p)
	}
	slices.SortFunc(presences, func(a, b revoke.Presence) int { return compareNodeBoot(a.Node, a.Boot, b.Node, b.Boot) })
	return v.current.table, presences, v.current.lastSeq
}
