package main

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"
	"github.com/nats-io/nats.go"
)

// receipt is the part of a receipt's summary that is measured.
type receipt struct {
	Revocation  string    `json:"revocation"`
	Stage       string    `json:"stage"`
	Scope       string    `json:"scope"`
	Node        string    `json:"node"`
	Matched     int       `json:"matched"`
	Unverified  int       `json:"unverified"`
	ReceivedAt  time.Time `json:"received_at"`
	ReceivedVia string    `json:"received_via"`
	CutUS       int64     `json:"cut_us"`
	ClosedUS    int64     `json:"closed_us"`
	VerifiedUS  int64     `json:"verified_us"`
}

// witness publishes revocations and hears the receipts of a fleet as they are published. A scope is revoked once in its
// life, since a bare fact has no id that its publisher knows.
type witness struct {
	nc    *nats.Conn
	nodes int

	mu    sync.Mutex
	final map[string][]receipt // by scope, one per node
	last  map[string]time.Time // when the newest of them arrived
	news  chan struct{}
}

// newWitness connects to a fleet of so many nodes.
func newWitness(nc *nats.Conn, nodes int) (*witness, error) {
	w := &witness{nc: nc, nodes: nodes, final: make(map[string][]receipt), last: make(map[string]time.Time), news: make(chan struct{}, 1)}
	if _, err := nc.Subscribe("pgedge.receipt.>", w.hear); err != nil {
		return nil, err
	}
	return w, nc.FlushTimeout(5 * time.Second)
}

func (w *witness) hear(m *nats.Msg) {
	arrived := time.Now()
	// pgedge.receipt.<revocation>.<node>.<boot>, and one token more for a page of sessions.
	if strings.Count(m.Subject, ".") != 4 {
		return
	}
	var r receipt
	if json.Unmarshal(m.Data, &r) != nil || r.Stage != "verified" && (r.Stage != "closed" || r.Unverified == 0) {
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if slices.ContainsFunc(w.final[r.Scope], func(o receipt) bool { return o.Node == r.Node }) {
		return // the same summary once more, with the residue for instance
	}
	w.final[r.Scope] = append(w.final[r.Scope], r)
	w.last[r.Scope] = arrived
	select {
	case w.news <- struct{}{}:
	default:
	}
}

// revocation is one fact and what every node has said of it.
type revocation struct {
	scope    string
	began    time.Time // just before it was published
	receipts []receipt // one per node
	complete time.Time // when the last of them had arrived here
}

// receiptsTime bounds the wait for the receipts of one revocation.
const receiptsTime = 30 * time.Second

// revoke publishes the barest fact there is, a subject without a payload, and waits until every node has said its last
// word on it. A result that is not correct is an error: backends that were not seen gone, and another number of sessions
// than there were.
func (w *witness) revoke(ctx context.Context, principal string, sessions int) (*revocation, error) {
	v := &revocation{scope: "principal." + principal, began: time.Now()}
	if err := w.nc.Publish("pgedge.revoke."+v.scope, nil); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, receiptsTime)
	defer cancel()
	for {
		w.mu.Lock()
		v.receipts, v.complete = w.final[v.scope], w.last[v.scope]
		w.mu.Unlock()
		if len(v.receipts) == w.nodes {
			return v, v.check(sessions)
		}
		select {
		case <-w.news:
		case <-ctx.Done():
			return nil, fmt.Errorf("%d of %d nodes have answered the revocation of %s: %w", len(v.receipts), w.nodes, v.scope, ctx.Err())
		}
	}
}

func (v *revocation) check(sessions int) error {
	matched := 0
	for _, r := range v.receipts {
		matched += r.Matched
		if r.Unverified > 0 {
			return fmt.Errorf("%d backends of %s were not seen gone at %s", r.Unverified, v.scope, r.Node)
		}
	}
	if matched != sessions {
		return fmt.Errorf("the receipts of %s name %d sessions, there were %d", v.scope, matched, sessions)
	}
	return nil
}

// stages are the moments of revocations, in ms. Nodes and publisher share a machine, so their wall clocks are one. What a
// node without sessions says counts for the first two only.
type stages struct {
	heard     []float64 // per node: published to received by the node
	gates     []float64 // per node: received to the last gate closed
	cut       []float64 // per node: published to the last gate closed
	closed    []float64 // per node: published to the last session closed
	verified  []float64 // per node: published to the last backend seen gone
	worst     []float64 // per revocation: published to the last gate closed on the last node
	complete  []float64 // per revocation: published to the last node's final receipt here
	toClosed  []float64 // per node: received to closed
	toVerify  []float64 // per node: received to verified
	byJournal int       // nodes that heard it from the journal first
}

func (s *stages) add(v *revocation) {
	worst := 0.0
	for _, r := range v.receipts {
		heard := float64(r.ReceivedAt.Sub(v.began).Nanoseconds()) / 1e6
		since := func(us int64) float64 { return float64(us) / 1000 }
		s.heard = append(s.heard, heard)
		if r.ReceivedVia != "fast" {
			s.byJournal++
		}
		if r.Matched == 0 {
			continue
		}
		s.gates = append(s.gates, since(r.CutUS))
		s.cut = append(s.cut, heard+since(r.CutUS))
		s.closed = append(s.closed, heard+since(r.ClosedUS))
		s.verified = append(s.verified, heard+since(r.VerifiedUS))
		s.toClosed = append(s.toClosed, since(r.ClosedUS))
		s.toVerify = append(s.toVerify, since(r.VerifiedUS))
		worst = max(worst, heard+since(r.CutUS))
	}
	s.worst = append(s.worst, worst)
	s.complete = append(s.complete, float64(v.complete.Sub(v.began).Nanoseconds())/1e6)
}

// report adds the distributions to a run.
func (s *stages) report(r *run, kase string) {
	for _, stage := range []struct {
		name    string
		samples []float64
	}{
		{"published to received", s.heard}, {"received to gates closed", s.gates}, {"received to closed", s.toClosed}, {"received to verified", s.toVerify},
		{"published to gates closed", s.cut}, {"published to closed", s.closed}, {"published to verified", s.verified},
		{"published to gates closed everywhere", s.worst}, {"published to all receipts here", s.complete},
	} {
		if strings.HasSuffix(stage.name, "everywhere") && len(s.worst) == len(s.heard) {
			continue // one node: said already
		}
		r.distribution(kase, stage.name, stage.samples)
	}
	if s.byJournal > 0 {
		r.note("%s: %d of %d receipts were of facts that the journal delivered before the fast path", kase, s.byJournal, len(s.heard))
	}
}

// distribution adds samples in ms as percentiles. The receipts count in microseconds, and so does this.
func (r *run) distribution(kase, target string, ms []float64) {
	h := hdrhistogram.New(1, time.Minute.Microseconds(), 3)
	for _, v := range ms {
		// What is above the range is its end: far beyond any result that counts.
		_ = h.RecordValue(min(max(int64(v*1000), 1), time.Minute.Microseconds()))
	}
	r.latency(kase, target, h, 1000)
}
