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

	"pgedge/internal/fleet"
)

// stages are the moments of one revocation, in ms from just before it was published to the last node's. Nodes and
// publisher share a machine, so their wall clocks are one.
type stages struct {
	Cut      []float64 // one per node: the last gate was shut
	Closed   []float64 // one per node: the last socket was closed
	Verified []float64 // one per node: the last backend was seen gone
	Complete []float64 // one per revocation: the last node's final receipt had arrived here
	Sessions int
}

// receipt is the part of a receipt's summary that is measured.
type receipt struct {
	Revocation string    `json:"revocation"`
	Stage      string    `json:"stage"`
	Node       string    `json:"node"`
	Matched    int       `json:"matched"`
	Unverified int       `json:"unverified"`
	ReceivedAt time.Time `json:"received_at"`
	CutUS      int64     `json:"cut_us"`
	ClosedUS   int64     `json:"closed_us"`
	VerifiedUS int64     `json:"verified_us"`
}

// witness hears the receipts of a fleet as they are published.
type witness struct {
	nc    *nats.Conn
	nodes int

	mu    sync.Mutex
	final map[string][]receipt // by revocation
	last  map[string]time.Time
	news  chan struct{}
}

func newWitness(f *fleet.Fleet) (*witness, error) {
	nc, err := f.NATS.Connect()
	if err != nil {
		return nil, err
	}
	w := &witness{nc: nc, nodes: len(f.Nodes), final: make(map[string][]receipt), last: make(map[string]time.Time), news: make(chan struct{}, 1)}
	_, err = nc.Subscribe("pgedge.receipt.>", w.hear)
	if err == nil {
		err = nc.FlushTimeout(5 * time.Second)
	}
	return w, err
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
	if slices.ContainsFunc(w.final[r.Revocation], func(o receipt) bool { return o.Node == r.Node }) {
		return // the same summary once more, with the residue for instance
	}
	w.final[r.Revocation] = append(w.final[r.Revocation], r)
	w.last[r.Revocation] = arrived
	select {
	case w.news <- struct{}{}:
	default:
	}
}

// revoke publishes one fact as a connector would and waits until every node has said its last word.
func (w *witness) revoke(ctx context.Context, verb, principal, id string, into *stages, sessions int) error {
	subject := fmt.Sprintf("pgedge.%s.principal.%s", verb, principal)
	began := time.Now()
	payload := fmt.Sprintf(`{"v":1,"id":%q,"source":"bench","at":%q}`, id, began.UTC().Format(time.RFC3339Nano))
	if err := w.nc.Publish(subject, []byte(payload)); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	for {
		w.mu.Lock()
		final, last := w.final[id], w.last[id]
		w.mu.Unlock()
		if len(final) == w.nodes {
			return into.add(began, last, final, sessions)
		}
		select {
		case <-w.news:
		case <-ctx.Done():
			return fmt.Errorf("%d of %d nodes have answered %s: %w", len(final), w.nodes, id, ctx.Err())
		}
	}
}

// add takes a revocation's receipts; a result that is not correct is no result.
func (s *stages) add(began, last time.Time, final []receipt, sessions int) error {
	matched := 0
	for _, r := range final {
		matched += r.Matched
		if r.Unverified > 0 {
			return fmt.Errorf("%d backends of %s were not seen gone at %s", r.Unverified, r.Revocation, r.Node)
		}
		heard := float64(r.ReceivedAt.Sub(began).Microseconds())
		s.Cut = append(s.Cut, (heard+float64(r.CutUS))/1000)
		if r.Matched > 0 {
			s.Closed = append(s.Closed, (heard+float64(r.ClosedUS))/1000)
			s.Verified = append(s.Verified, (heard+float64(r.VerifiedUS))/1000)
		}
	}
	if matched != sessions {
		return fmt.Errorf("the receipts of %s name %d sessions, there were %d", final[0].Revocation, matched, sessions)
	}
	s.Sessions += matched
	s.Complete = append(s.Complete, float64(last.Sub(began).Microseconds())/1000)
	return nil
}

// report adds what was measured to a run.
func (s *stages) report(r *run, kase string) {
	for _, stage := range []struct {
		name    string
		samples []float64
	}{{"cut, each node", s.Cut}, {"closed, each node", s.Closed}, {"verified, each node", s.Verified}, {"all receipts here", s.Complete}} {
		h := hdrhistogram.New(1, time.Minute.Microseconds(), 3)
		for _, ms := range stage.samples {
			h.RecordValue(int64(ms * 1000))
		}
		r.latency(kase, stage.name, h, 1000)
	}
}
