package cluster

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"time"

	"pgedge/revoke"
)

// maxListedReceipts bounds a list of summaries; the newest are kept.
const maxListedReceipts = 100_000

// Receipts returns the receipts of one revocation, one per node that has answered, with their pages joined. There are
// none when the id is unknown or older than thirteen months.
func (c *Client) Receipts(ctx context.Context, revocationID string) ([]revoke.Receipt, error) {
	if !revoke.ValidID(revocationID) {
		return nil, fmt.Errorf("%q is not a revocation id", revocationID)
	}
	latest, pages := make(map[string]revoke.Receipt), make(map[string]map[int]revoke.Receipt)
	err := c.collect(ctx, receiptPrefix+revocationID+".>", nil, func() {
		clear(latest)
		clear(pages)
	}, func(r revoke.Receipt, _ delivery) { fileReceipt(latest, pages, r) })
	if err != nil {
		return nil, fmt.Errorf("cannot read the receipts of %s: %w", revocationID, err)
	}
	return joinReceipts(latest, pages), nil
}

// ListReceipts returns the summaries that were stored since an instant, oldest first, without their sessions; a zero
// instant asks for all. Of more than 100,000 the newest are returned and truncated is true.
func (c *Client) ListReceipts(ctx context.Context, since time.Time) (list []revoke.Receipt, truncated bool, err error) {
	var from *time.Time
	if !since.IsZero() {
		from = &since
	}
	err = c.collect(ctx, receiptPrefix+"*.*.*", from, func() {
		list, truncated = nil, false
	}, func(r revoke.Receipt, _ delivery) {
		r.Sessions = nil
		list = append(list, r)
		if len(list) >= 2*maxListedReceipts {
			list, truncated = slices.Clone(list[len(list)-maxListedReceipts:]), true
		}
	})
	if err != nil {
		return nil, false, fmt.Errorf("cannot list receipts: %w", err)
	}
	if len(list) > maxListedReceipts {
		list, truncated = list[len(list)-maxListedReceipts:], true
	}
	return list, truncated, nil
}

// collect reads what the receipt stream holds at present under a subject. begin is called whenever it starts over.
func (c *Client) collect(ctx context.Context, filter string, since *time.Time, begin func(), add func(revoke.Receipt, delivery)) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	complete := make(chan struct{})
	finished := false
	finish := func() {
		if !finished {
			finished = true
			close(complete)
		}
	}
	f := &follower{
		js: c.js, stream: receiptStream, filters: []string{filter}, since: since, log: c.log,
		from: func() uint64 { return 0 },
		reset: func(start followStart) error {
			if !finished {
				begin()
				if start.Pending == 0 {
					finish()
				}
			}
			return nil
		},
		message: func(d delivery) {
			if finished {
				return
			}
			if r, err := decodeReceipt(d); err == nil {
				add(r, d)
			}
			if d.Pending == 0 {
				finish()
			}
		},
		doubt: make(chan string, 1),
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		f.run(ctx)
	}()
	var err error
	select {
	case <-complete:
	case <-ctx.Done():
		err = context.Cause(ctx)
	}
	cancel()
	<-done
	return err
}

// joinReceipts puts pages back into their summaries. A summary whose pages are not all there is returned as it is.
func joinReceipts(latest map[string]revoke.Receipt, pages map[string]map[int]revoke.Receipt) []revoke.Receipt {
	receipts := make([]revoke.Receipt, 0, len(latest))
	for key, summary := range latest {
		list := make([]revoke.Receipt, 0, len(pages[key]))
		for _, p := range pages[key] {
			list = append(list, p)
		}
		slices.SortFunc(list, func(a, b revoke.Receipt) int { return cmp.Compare(a.Page, b.Page) })
		if whole, err := revoke.JoinPages(summary, list); err == nil {
			summary = whole
		}
		receipts = append(receipts, summary)
	}
	slices.SortFunc(receipts, func(a, b revoke.Receipt) int { return compareNodeBoot(a.Node, a.Boot, b.Node, b.Boot) })
	return receipts
}

func compareNodeBoot(nodeA, bootA, nodeB, bootB string) int {
	return cmp.Or(cmp.Compare(nodeA, nodeB), cmp.Compare(bootA, bootB))
}
