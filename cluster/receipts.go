package cluster

import (
	"container/list"
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"pgedge/revoke"
)

const (
	receiptWorkers    = 4
	receiptTimeout    = time.Second
	receiptRetryAfter = 250 * time.Millisecond
	// receiptGrace is how long a receipt that is not the last word waits for the next stage, which then is stored in its
	// place. Most revocations are verified by then: they cost the stream one receipt instead of three, and the last word
	// does not wait for the acknowledgements of the earlier ones.
	receiptGrace = 50 * time.Millisecond

	// What waits while the receipt stream cannot be written is bounded in receipts and in sessions, at about
	// 100 MiB together; the oldest receipts are dropped first, counted and logged.
	maxPendingReceipts        = 4096
	maxPendingReceiptSessions = 200_000
)

// receiptQueue holds the receipts that are not stored yet: for each revocation the latest stage only. A revocation is
// in the hands of one worker at a time, so that an earlier stage can never overwrite a later one.
type receiptQueue struct {
	js  jetstream.JetStream
	log *slog.Logger
	m   *nodeMetrics

	wake chan struct{} // a token for a worker that may sleep
	idle chan struct{} // a token whenever a worker has finished with a receipt

	mu       sync.Mutex
	waiting  map[string]*list.Element // by revocation; the elements are *queuedReceipt
	order    *list.List               // oldest first
	sessions int                      // in all waiting receipts
	working  map[string]int           // rank of what a worker is storing, by revocation
	paged    map[pagedReceipt]struct{}
	recent   []pagedReceipt // what paged holds, oldest first
}

// pagedReceipt names a last word whose pages are stored. When it is stored once more, for its residue, they are no news:
// the summary alone has it.
type pagedReceipt struct {
	revocation string
	seq, epoch uint64
	sessions   int
}

type queuedReceipt struct {
	receipt   revoke.Receipt
	notBefore time.Time // of the next attempt
	again     bool      // the last word once more; only its residue is news
}

func newReceiptQueue(js jetstream.JetStream, log *slog.Logger) *receiptQueue {
	return &receiptQueue{
		js: js, log: log,
		wake:    make(chan struct{}, receiptWorkers),
		idle:    make(chan struct{}, 1),
		waiting: make(map[string]*list.Element),
		order:   list.New(),
		working: make(map[string]int),
		paged:   make(map[pagedReceipt]struct{}),
	}
}

// receiptRank orders the receipts of one revocation; 0 is no receipt. A final one, whatever its stage, replaces
// anything and is replaced by nothing but another one.
func receiptRank(r revoke.Receipt) int {
	switch r.Stage {
	case revoke.StageCut:
		return 1
	case revoke.StageClosed, revoke.StageVerified:
		if r.Final() {
			return 3
		}
		return 2
	}
	return 0
}

// put queues a receipt and never blocks.
func (q *receiptQueue) put(r revoke.Receipt) { q.add(r, false) }

// putAgain queues a last word that has been put before, with what is known of its residue by now.
func (q *receiptQueue) putAgain(r revoke.Receipt) { q.add(r, true) }

func (q *receiptQueue) add(r revoke.Receipt, again bool) {
	if !revoke.ValidID(r.Revocation) || receiptRank(r) == 0 {
		q.m.receiptsDropped.Inc()
		q.log.Error("dropped a receipt that has no valid id or stage", "revocation", r.Revocation, "stage", r.Stage)
		return
	}
	e := &queuedReceipt{receipt: r, again: again}
	if !r.Final() {
		e.notBefore = time.Now().Add(receiptGrace)
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	q.insert(e)
	for q.order.Len() > 1 && (q.order.Len() > maxPendingReceipts || q.sessions > maxPendingReceiptSessions) {
		oldest := q.order.Front().Value.(*queuedReceipt)
		q.remove(oldest.receipt.Revocation)
		q.m.receiptsDropped.Inc()
		q.log.Error("dropped a receipt: too many wait to be stored", "revocation", oldest.receipt.Revocation, "stage", oldest.receipt.Stage)
	}
	q.signal(q.wake)
}

// insert is called with mu held. A receipt of an earlier stage than one that is known already is not news.
func (q *receiptQueue) insert(e *queuedReceipt) {
	id := e.receipt.Revocation
	if receiptRank(e.receipt) < q.working[id] {
		return
	}
	if old, ok := q.waiting[id]; ok {
		prev := old.Value.(*queuedReceipt)
		if receiptRank(e.receipt) < receiptRank(prev.receipt) {
			return
		}
		q.sessions += len(e.receipt.Sessions) - len(prev.receipt.Sessions)
		if prev.notBefore.Before(e.notBefore) {
			e.notBefore = prev.notBefore // a later stage does not begin the wait anew
		}
		old.Value = e
		return
	}
	q.waiting[id] = q.order.PushBack(e)
	q.sessions += len(e.receipt.Sessions)
}

// remove is called with mu held.
func (q *receiptQueue) remove(id string) {
	e, ok := q.waiting[id]
	if !ok {
		return
	}
	q.sessions -= len(e.Value.(*queuedReceipt).receipt.Sessions)
	q.order.Remove(e)
	delete(q.waiting, id)
}

func (q *receiptQueue) signal(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// take returns the oldest receipt that may be tried now, or how long to sleep: 0 means until there is something new.
func (q *receiptQueue) take(now time.Time) (*queuedReceipt, time.Duration) {
	q.mu.Lock()
	defer q.mu.Unlock()
	var sleep time.Duration
	for e := q.order.Front(); e != nil; e = e.Next() {
		r := e.Value.(*queuedReceipt)
		id := r.receipt.Revocation
		if _, busy := q.working[id]; busy {
			continue
		}
		if wait := r.notBefore.Sub(now); wait > 0 {
			if sleep == 0 || wait < sleep {
				sleep = wait
			}
			continue
		}
		q.remove(id)
		q.working[id] = receiptRank(r.receipt)
		return r, 0
	}
	return nil, sleep
}

// done ends the work on a receipt; one that could not be stored waits again, unless a later stage has come.
func (q *receiptQueue) done(r *queuedReceipt, stored bool, now time.Time) {
	q.mu.Lock()
	defer q.mu.Unlock()
	id := r.receipt.Revocation
	delete(q.working, id)
	if _, newer := q.waiting[id]; !stored && !newer {
		r.notBefore = now.Add(receiptRetryAfter)
		q.insert(r)
	}
	q.signal(q.wake)
	q.signal(q.idle)
}

// pending is the number of receipts that are not stored yet.
func (q *receiptQueue) pending() int {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.order.Len() + len(q.working)
}

// run starts the workers; they end with ctx.
func (q *receiptQueue) run(ctx context.Context, work *sync.WaitGroup) {
	for range receiptWorkers {
		work.Go(func() { q.loop(ctx) })
	}
}

func (q *receiptQueue) loop(ctx context.Context) {
	for ctx.Err() == nil {
		r, sleep := q.take(time.Now())
		if r != nil {
			err := q.store(ctx, r.receipt, r.again)
			if err == nil {
				q.m.receiptsStored.Inc()
			} else if ctx.Err() == nil {
				q.m.receiptsRetried.Inc()
				q.log.Warn("cannot store a receipt yet, trying on", "revocation", r.receipt.Revocation, "error", err)
			}
			q.done(r, err == nil, time.Now())
			continue
		}
		var alarm <-chan time.Time
		if sleep > 0 {
			alarm = time.After(sleep)
		}
		select {
		case <-ctx.Done():
		case <-q.wake:
		case <-alarm:
		}
	}
}

// store publishes a receipt: its pages first, so that a final summary never promises what is not there.
// At the stage `cut` nothing is known about the single sessions yet.
func (q *receiptQueue) store(ctx context.Context, r revoke.Receipt, again bool) error {
	if r.Stage == revoke.StageCut {
		r.Sessions = nil
	}
	summary, pages := revoke.Paginate(r, revoke.SessionsPerPage)
	known := pagedReceipt{r.Revocation, r.Seq, r.Epoch, len(r.Sessions)}
	if again && q.hasPages(known) {
		pages = nil
	}
	for _, p := range append(pages, summary) {
		if err := q.publish(ctx, p); err != nil {
			return err
		}
	}
	if r.Final() && len(pages) > 0 {
		q.notePages(known)
	}
	return nil
}

func (q *receiptQueue) hasPages(r pagedReceipt) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	_, ok := q.paged[r]
	return ok
}

// notePages remembers as many as are followed for their residue; of one that is forgotten the pages are stored again.
func (q *receiptQueue) notePages(r pagedReceipt) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.paged[r] = struct{}{}
	q.recent = append(q.recent, r)
	if len(q.recent) > maxFollows {
		delete(q.paged, q.recent[0])
		q.recent = q.recent[1:]
	}
}

func (q *receiptQueue) publish(ctx context.Context, r revoke.Receipt) error {
	b, err := json.Marshal(r)
	if err != nil {
		return fmt.Errorf("cannot encode receipt: %w", err)
	}
	ctx, cancel := context.WithTimeout(ctx, receiptTimeout)
	defer cancel()
	msg := &nats.Msg{Subject: revoke.ReceiptSubject(r.Revocation, r.Node, r.Boot, r.Page), Data: b}
	_, err = q.js.PublishMsg(ctx, msg, jetstream.WithExpectStream(receiptStream), jetstream.WithRetryAttempts(0))
	if err != nil {
		return fmt.Errorf("cannot publish receipt: %w", err)
	}
	return nil
}

// drain waits until everything is stored or ctx ends.
func (q *receiptQueue) drain(ctx context.Context) error {
	for {
		left := q.pending()
		if left == 0 {
			return nil
		}
		select {
		case <-q.idle:
		case <-ctx.Done():
			return fmt.Errorf("cannot store %d receipts: %w", left, context.Cause(ctx))
		}
	}
}
