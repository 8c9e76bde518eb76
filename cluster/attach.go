package cluster

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/nats-io/nats.go/jetstream"
)

const (
	// attachRequestTimeout bounds one look at a stream: a request to a stream without a leader is never answered, not even
	// once there is one, and so has to be sent again.
	attachRequestTimeout = time.Second
	attachRetry          = 100 * time.Millisecond
	// publishFirstWait is how long a client that is there to revoke waits for the streams before it begins.
	publishFirstWait = 500 * time.Millisecond
	// lateReceipts is how far back a client reads receipts when the stream could not be read before it published: more
	// than a fleet stores during an election.
	lateReceipts = 20_000
)

// follow looks at both streams and starts to follow them.
func (c *Client) follow(ctx context.Context) error {
	followCtx, cancel := context.WithCancel(context.Background())
	c.cancel = cancel
	if !c.opts.PublishFirst {
		if err := c.attach(ctx, followCtx, 0); err != nil {
			return err
		}
		if err := c.view.wait(ctx); err != nil {
			return fmt.Errorf("cannot read the journal: %w", err)
		}
		return nil
	}
	quick, stop := context.WithTimeout(ctx, publishFirstWait)
	defer stop()
	err := c.attach(quick, followCtx, 0)
	switch {
	case err == nil:
		// A view that is not complete yet is no reason to wait any longer.
		_ = c.view.wait(quick)
		return nil
	case ctx.Err() != nil || quick.Err() == nil:
		return err
	}
	c.log.Warn("the journal cannot be read yet", "error", err)
	c.work.Go(func() {
		if err := c.attach(followCtx, followCtx, lateReceipts); err != nil && followCtx.Err() == nil {
			c.log.Warn("cannot follow the streams", "error", err)
		}
	})
	return nil
}

// attach finds both streams, for as long as ctx allows, and begins to follow them until followCtx ends: the receipts
// from back positions before their present end.
func (c *Client) attach(ctx, followCtx context.Context, back uint64) error {
	journal, err := c.findStream(ctx, journalStream)
	if err != nil {
		return err
	}
	receipts, err := c.findStream(ctx, receiptStream)
	if err != nil {
		return err
	}
	c.streamID = streamIdentity(journal, "")
	// Receipts of what this client publishes come later than this.
	c.inboxes.begin(receipts.State.LastSeq + 1 - min(back, receipts.State.LastSeq))
	c.work.Go(func() { c.journal.run(followCtx) })
	c.work.Go(func() { c.evidence.run(followCtx) })
	return nil
}

// findStream asks for a stream until it is answered. Only a stream without a leader is asked for again.
func (c *Client) findStream(ctx context.Context, name string) (*jetstream.StreamInfo, error) {
	for {
		info, err := func() (*jetstream.StreamInfo, error) {
			ctx, cancel := context.WithTimeout(ctx, attachRequestTimeout)
			defer cancel()
			s, err := c.js.Stream(ctx, name)
			if err != nil {
				return nil, err
			}
			return s.CachedInfo(), nil
		}()
		switch {
		case err == nil:
			return info, nil
		case errors.Is(err, jetstream.ErrStreamNotFound):
			return nil, fmt.Errorf("this NATS carries no pgedge cluster: stream %s does not exist on %s; pgedge cluster init creates it", name, c.nc.ConnectedAddr())
		case ctx.Err() != nil || !mayPass(err, peersTimeout):
			return nil, explainJetStream(fmt.Sprintf("cannot read stream %s on %s", name, c.nc.ConnectedAddr()), err)
		}
		select {
		case <-ctx.Done():
		case <-time.After(attachRetry):
		}
	}
}
