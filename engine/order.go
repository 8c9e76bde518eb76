package engine

import (
	"slices"
	"sync"
	"time"

	"pgedge/revoke"
)

// order is one revocation being carried out on this node. Sessions are added while the index is walked; each
// reports its progress; when all have come to a stage, the receipt of that stage is published. Nothing is
// published before the journal has delivered the fact, since only then its seq and id are certain.
type order struct {
	eng   *Engine
	alone [1]*order // this order; immutable, see session.cut

	mu       sync.Mutex
	of       revoke.Order
	sessions []*session
	behind   [prVerified + 1]int       // sessions that have not come to the stage yet
	at       [prVerified + 1]time.Time // of the last session that came to it
	walking  int                       // index walks under way
	found    progress                  // newest stage to which a session had come when it was added, since the last stamp
	settled  bool
	told     progress // newest stage handed to the publisher
}

// add is called under the session's lock. stage is where the session stands already.
func (o *order) add(s *session, stage progress) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.sessions = append(o.sessions, s)
	o.found = max(o.found, stage)
	for p := stage + 1; p <= prVerified; p++ {
		o.behind[p]++
	}
}

// expect makes room for as many sessions as a walk has found.
func (o *order) expect(n int) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.sessions = slices.Grow(o.sessions, n)
}

// has tells whether the session is part of the order already. A session carries few orders.
func (o *order) has(s *session) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Contains(s.orders, o)
}

// progressed is called under the session's lock.
func (o *order) progressed(from, to progress) {
	o.mu.Lock()
	defer o.mu.Unlock()
	now := time.Now()
	for p := from + 1; p <= to; p++ {
		o.behind[p]--
		o.at[p] = now
	}
	o.tellLocked()
}

// walk brackets a walk of the index: no stage is complete while sessions may still be added.
func (o *order) walk(delta int) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.walking += delta
	o.tellLocked()
}

// stamp takes the time for all sessions that had come to a stage when they were added: asking for it costs as much as
// closing a gate.
func (o *order) stamp() {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.found == prNone {
		return
	}
	now := time.Now()
	for p := prCut; p <= o.found; p++ {
		o.at[p] = now
	}
	o.found = prNone
}

// settle takes over the fact as the journal has it.
func (o *order) settle(of revoke.Order) {
	o.mu.Lock()
	defer o.mu.Unlock()
	received := o.of.ReceivedAt
	fast := o.of.Fast
	o.of = of
	if !received.IsZero() {
		o.of.ReceivedAt, o.of.Fast = received, fast
	}
	o.settled = true
}

func (o *order) tellLocked() {
	if !o.settled || o.walking > 0 {
		return
	}
	reached := prNone
	for p := prCut; p <= prVerified && o.behind[p] == 0; p++ {
		reached = p
	}
	if reached > o.told {
		o.told = reached
		o.eng.orders.publish(o, reached)
	}
}

// receipt builds the evidence of a stage. Sessions are listed only once the result is final.
func (o *order) receipt(stage progress) revoke.Receipt {
	o.mu.Lock()
	of, sessions, at := o.of, o.sessions, o.at
	o.mu.Unlock()
	for p := prClosed; p >= prCut; p-- { // a stamp may come a little late
		if p < stage && at[p].After(at[p+1]) {
			at[p] = at[p+1]
		}
	}
	micros := func(p progress) int64 {
		if stage < p || at[p].IsZero() {
			return 0
		}
		return max(at[p].Sub(of.ReceivedAt).Microseconds(), 1)
	}
	f := of.Fact
	r := revoke.Receipt{
		Schema: receiptSchema, Revocation: f.ID, Seq: f.Seq, Epoch: f.Epoch,
		SupersededBy: of.SupersededBy, Verb: f.Verb.String(), Scope: f.Scope.Token(),
		Reason: f.Reason, Actor: f.Actor, Source: f.Source,
		Node: o.eng.cfg.Node, Boot: o.eng.cfg.Boot, Version: o.eng.cfg.Version,
		ReceivedVia: "journal", PublishedAt: f.At, ReceivedAt: of.ReceivedAt.UTC(),
		CutUS: micros(prCut), ClosedUS: micros(prClosed), VerifiedUS: micros(prVerified),
		Sessions: []revoke.SessionReceipt{},
	}
	if of.Fast {
		r.ReceivedVia = "fast"
	}
	switch stage {
	case prCut:
		r.Stage = revoke.StageCut
	case prClosed:
		r.Stage = revoke.StageClosed
	case prVerified, prNone:
		r.Stage = revoke.StageVerified
	}
	if stage == prVerified {
		r.Sessions = make([]revoke.SessionReceipt, 0, len(sessions))
	}
	for _, s := range sessions {
		line := s.receipt()
		if line.ID == "" && stage == prVerified {
			continue // it had ended by itself, and nothing of it was found
		}
		r.Matched++
		if stage == prVerified {
			r.Sessions = append(r.Sessions, line)
			if !line.Verified {
				r.Unverified++
			}
		}
	}
	if r.Unverified > 0 {
		r.Stage = revoke.StageClosed // final, but not every backend was seen gone
	}
	return r
}

// orderBook holds the orders that are not finished, and publishes receipts from a goroutine of its own, so that
// neither a loop nor the journal ever waits for evidence.
type orderBook struct {
	eng    *Engine
	mu     sync.Mutex
	open   map[string]*order
	queue  []published
	signal chan struct{}
}

type published struct {
	o     *order
	stage progress
}

func newOrderBook(e *Engine) *orderBook {
	return &orderBook{eng: e, open: make(map[string]*order), signal: make(chan struct{}, 1)}
}

func (b *orderBook) get(of revoke.Order) *order {
	b.mu.Lock()
	defer b.mu.Unlock()
	o := b.open[of.Key]
	if o == nil {
		o = &order{eng: b.eng, of: of}
		o.alone[0] = o
		b.open[of.Key] = o
	}
	return o
}

// publish is called under the order's lock.
func (b *orderBook) publish(o *order, stage progress) {
	b.mu.Lock()
	b.queue = append(b.queue, published{o, stage})
	if stage == prVerified {
		delete(b.open, o.of.Key)
	}
	b.mu.Unlock()
	select {
	case b.signal <- struct{}{}:
	default:
	}
}

// run publishes until done is closed, and then what is left.
func (b *orderBook) run(done <-chan struct{}) {
	for {
		select {
		case <-b.signal:
			b.publishQueue()
		case <-done:
			b.publishQueue()
			return
		}
	}
}

func (b *orderBook) publishQueue() {
	b.mu.Lock()
	batch := b.queue
	b.queue = nil
	b.mu.Unlock()
	for _, p := range batch {
		b.eng.publishReceipt(p.o, p.stage)
	}
}

// receiptSchema names the form of receipts, so that a reader knows what it has before it.
const receiptSchema = "pgedge.receipt/v1"
