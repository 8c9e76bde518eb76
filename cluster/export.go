package cluster

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"pgedge/revoke"
)

// pagesBefore is by how much earlier than its summary the pages of a receipt may have been stored.
const pagesBefore = time.Minute

// EachReceipt reads the receipts that were stored since an instant (zero: all), oldest first, and calls fn for each with
// its pages joined. whole is false when pages are missing. fn is called from one goroutine; its error ends the reading.
// What a node stores meanwhile in place of a receipt that was read already may come as well.
func (c *Client) EachReceipt(ctx context.Context, since time.Time, fn func(r revoke.Receipt, whole bool) error) error {
	ctx, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	pages := make(map[string]map[int]revoke.Receipt)
	var from *time.Time
	if !since.IsZero() {
		early := since.Add(-pagesBefore)
		from = &early
	}
	var done uint64 // position of the last receipt given out: a consumer that starts over repeats the earlier ones
	err := c.collect(ctx, receiptPrefix+">", from, func() { clear(pages) }, func(r revoke.Receipt, d delivery) {
		key := r.Revocation + "." + r.Node + "." + r.Boot
		if r.Page > 0 {
			if pages[key] == nil {
				pages[key] = make(map[int]revoke.Receipt)
			}
			pages[key][r.Page] = r
			return
		}
		mine := pages[key]
		delete(pages, key)
		if d.Seq <= done || d.Stored.Before(since) || ctx.Err() != nil {
			return
		}
		done = d.Seq
		list := make([]revoke.Receipt, 0, len(mine))
		for _, p := range mine {
			list = append(list, p)
		}
		joined, err := revoke.JoinPages(r, list)
		if err != nil {
			joined = r
		}
		if err := fn(joined, err == nil); err != nil {
			stop(err)
		}
	})
	if cause := context.Cause(ctx); cause != nil && !errors.Is(cause, context.Canceled) {
		err = cause
	}
	if err != nil {
		return fmt.Errorf("cannot read the receipts: %w", err)
	}
	return nil
}

// FindRevocations lists the ids of revocations that have receipts and begin with a text, sorted.
func (c *Client) FindRevocations(ctx context.Context, beginning string) ([]string, error) {
	stream, err := c.js.Stream(ctx, receiptStream)
	if err != nil {
		return nil, fmt.Errorf("cannot read stream %s: %w", receiptStream, err)
	}
	info, err := stream.Info(ctx, jetstream.WithSubjectFilter(receiptPrefix+"*.*.*"))
	if err != nil {
		return nil, fmt.Errorf("cannot list the receipts: %w", err)
	}
	found := make(map[string]bool)
	for subject := range info.State.Subjects {
		id, _, _, _, err := revoke.ParseReceiptSubject(subject)
		if err == nil && strings.HasPrefix(id, beginning) {
			found[id] = true
		}
	}
	ids := make([]string, 0, len(found))
	for id := range found {
		ids = append(ids, id)
	}
	slices.Sort(ids)
	return ids, nil
}

// FactPositions returns the newest position in the journal of each verb and scope, under the keys of FactKey, and the
// journal's last position.
func (c *Client) FactPositions(ctx context.Context) (newest map[string]uint64, last uint64, err error) {
	if err := c.view.wait(ctx); err != nil {
		return nil, 0, fmt.Errorf("cannot read the journal: %w", err)
	}
	c.view.mu.Lock()
	defer c.view.mu.Unlock()
	newest = make(map[string]uint64)
	for subject, seq := range c.view.current.subjects {
		// Names can be escaped in more than one way: what counts is what the subject means.
		if v, s, err := revoke.ParseSubject(subject); err == nil {
			key := FactKey(v.String(), s.Token())
			newest[key] = max(newest[key], seq)
		}
	}
	return newest, c.view.current.lastSeq, nil
}

// FactKey names a verb and a scope as receipts spell them.
func FactKey(verb, scope string) string { return verb + " " + scope }
