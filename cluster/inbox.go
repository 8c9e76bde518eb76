package cluster

import (
	"encoding/json"
	"sync"

	"pgedge/revoke"
)

const (
	// maxInboxReceipts bounds what is kept for one publication: three stages of a thousand nodes, or many pages.
	maxInboxReceipts = 16384
)

// inboxes hand receipts and presences to the publications that wait for them.
type inboxes struct {
	mu      sync.Mutex
	next    uint64                         // first position of the receipt stream that has not been seen
	open    map[string]map[*inbox]struct{} // by revocation id, and by the subject of the fact
	waiting map[*inbox]struct{}            // those that also want presences
}

// inbox collects what may concern one publication: receipts under its id, and those of other facts of its verb and
// scope, since a node answers an id that was used before under another one, and a fact it never saw with the receipt
// of a newer one.
type inbox struct {
	id, subject string
	wake        chan struct{}

	// Guarded by the mu of inboxes.
	receipts  []revoke.Receipt // summaries, not read yet
	presences []revoke.Presence
	latest    map[string]revoke.Receipt         // last summary by revocation, node and boot
	pages     map[string]map[int]revoke.Receipt // by revocation, node and boot
	count     int
}

func newInboxes() *inboxes {
	return &inboxes{open: make(map[string]map[*inbox]struct{}), waiting: make(map[*inbox]struct{})}
}

func (b *inboxes) begin(seq uint64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.next = seq
}

// from is where the follower goes on: with one message per subject nothing that matters before it is lost.
func (b *inboxes) from() uint64 {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.next
}

func (b *inboxes) add(id, subject string) *inbox {
	in := &inbox{
		id: id, subject: subject, wake: make(chan struct{}, 1),
		latest: make(map[string]revoke.Receipt), pages: make(map[string]map[int]revoke.Receipt),
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, key := range []string{id, subject} {
		if b.open[key] == nil {
			b.open[key] = make(map[*inbox]struct{})
		}
		b.open[key][in] = struct{}{}
	}
	return in
}

func (b *inboxes) remove(in *inbox) {
	b.mu.Lock()
	defer b.mu.Unlock()
	delete(b.waiting, in)
	for _, key := range []string{in.id, in.subject} {
		delete(b.open[key], in)
		if len(b.open[key]) == 0 {
			delete(b.open, key)
		}
	}
}

// wantPresences begins to collect heartbeats, for a publication that is being awaited.
func (b *inboxes) wantPresences(in *inbox) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.waiting[in] = struct{}{}
}

// take returns what has come since the last call.
func (b *inboxes) take(in *inbox) ([]revoke.Receipt, []revoke.Presence) {
	b.mu.Lock()
	defer b.mu.Unlock()
	receipts, presences := in.receipts, in.presences
	in.receipts, in.presences = nil, nil
	return receipts, presences
}

// joined returns for every node the receipt of the fact at seq, with its pages where they are all there; for a node
// that only knows a newer fact of the same verb and scope, the receipt of that one.
func (b *inboxes) joined(in *inbox, seq uint64) []revoke.Receipt {
	b.mu.Lock()
	defer b.mu.Unlock()
	best := make(map[string]string) // node and boot -> key of latest
	for key, r := range in.latest {
		own := r.Revocation == in.id || r.Revocation == revoke.SeqID(in.id, seq)
		if r.Seq < seq && r.SupersededBy < seq || !own && r.Seq == seq {
			continue
		}
		boot := r.Node + "." + r.Boot
		other, taken := best[boot]
		if !taken || own && in.latest[other].Revocation != in.id {
			best[boot] = key
		}
	}
	chosen := make(map[string]revoke.Receipt, len(best))
	for _, key := range best {
		chosen[key] = in.latest[key]
	}
	return joinReceipts(chosen, in.pages)
}

func (b *inboxes) onMessage(d delivery) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.next = max(b.next, d.Seq+1)
	if len(b.open) == 0 {
		return
	}
	r, err := decodeReceipt(d)
	if err != nil {
		return
	}
	concerned := b.open[r.Revocation]
	for in := range concerned {
		in.file(r)
	}
	for in := range b.open["pgedge."+r.Verb+"."+r.Scope] {
		if _, done := concerned[in]; !done {
			in.file(r)
		}
	}
}

// file is called with mu held.
func (in *inbox) file(r revoke.Receipt) {
	if in.count >= maxInboxReceipts {
		return
	}
	in.count++
	fileReceipt(in.latest, in.pages, r)
	if r.Page == 0 {
		in.receipts = append(in.receipts, r)
		in.signal()
	}
}

func (in *inbox) signal() {
	select {
	case in.wake <- struct{}{}:
	default:
	}
}

func (b *inboxes) onPresence(p revoke.Presence) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for in := range b.waiting {
		in.presences = append(in.presences, p)
		in.signal()
	}
}

// fileReceipt puts a summary or page where joinReceipts finds it.
func fileReceipt(latest map[string]revoke.Receipt, pages map[string]map[int]revoke.Receipt, r revoke.Receipt) {
	key := r.Revocation + "." + r.Node + "." + r.Boot
	if r.Page == 0 {
		latest[key] = r
		return
	}
	if pages[key] == nil {
		pages[key] = make(map[int]revoke.Receipt)
	}
	pages[key][r.Page] = r
}

// decodeReceipt reads a receipt and holds it to its subject, which is what NATS permissions vouch for.
func decodeReceipt(d delivery) (revoke.Receipt, error) {
	id, node, boot, page, err := revoke.ParseReceiptSubject(d.Subject)
	if err != nil {
		return revoke.Receipt{}, err
	}
	var r revoke.Receipt
	if err := json.Unmarshal(d.Payload, &r); err != nil {
		return revoke.Receipt{}, err
	}
	r.Revocation, r.Node, r.Boot, r.Page = id, node, boot, page
	return r, nil
}
