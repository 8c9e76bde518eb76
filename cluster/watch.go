package cluster

import (
	"context"
	"errors"
	"time"
)

const (
	// streamsCheckEvery is how often a node looks whether the streams are still what it needs.
	streamsCheckEvery = time.Minute
	// awaitStreamsEvery is how often a starting node looks whether they are there.
	awaitStreamsEvery = 500 * time.Millisecond
)

func never(error) bool { return false }

// waitFor tells the operator what keeps a start from getting on.
func (n *Node) waitFor(why error) {
	n.log.Warn("waiting", "for", why)
	if n.cfg.OnWaiting != nil {
		n.cfg.OnWaiting(why.Error())
	}
}

// awaitStreams looks at the streams until they can be seen. Servers that have just started have no leader yet; that
// passes. Streams that are missing or wrong are for a person: with an external NATS the start fails and says so, while
// nodes that carry the journal themselves have to be up for the command that creates it.
func (n *Node) awaitStreams(ctx context.Context) error {
	hopeless := func(err error) bool {
		var wrong *StreamsError
		return n.rights.err() != nil || errors.As(err, &wrong) && !(wrong.Missing && n.srv != nil)
	}
	return patiently(ctx, awaitStreamsEvery, n.waitFor, hopeless, func() (err error) {
		ctx, cancel := context.WithTimeout(ctx, followRequestTimeout)
		defer cancel()
		_, err = checkStreams(ctx, n.js, n.cfg.Replicas, n.cfg.initCommand())
		return err
	})
}

// awaitID claims the node id once the journal can be read.
func (n *Node) awaitID(ctx context.Context, previous *bootRecord) error {
	hopeless := func(err error) bool { return n.rights.err() != nil || errors.Is(err, ErrNodeIDInUse) }
	return patiently(ctx, awaitStreamsEvery, n.waitFor, hopeless, func() error { return n.claimID(ctx, previous) })
}

// watchStreams takes the node out of service while the streams are not what it needs: somebody who gave the journal an
// age limit would otherwise let revocations expire without a word. A look that fails proves nothing either way: the
// lease is there for a NATS that does not answer.
func (n *Node) watchStreams() {
	ticker := time.NewTicker(streamsCheckEvery)
	defer ticker.Stop()
	for {
		select {
		case <-n.ctx.Done():
			return
		case <-ticker.C:
			n.checkSettings()
		}
	}
}

func (n *Node) checkSettings() {
	ctx, cancel := context.WithTimeout(n.ctx, followRequestTimeout)
	defer cancel()
	id, err := checkStreams(ctx, n.js, n.cfg.Replicas, n.cfg.initCommand())
	var wrong *StreamsError
	switch {
	case errors.As(err, &wrong):
		text := wrong.Error()
		n.log.Error("this node serves nobody until the streams are set right", "error", text)
		n.streamsFault.Store(&text)
	case err == nil:
		if n.streamsFault.Swap(nil) != nil {
			n.log.Info("the streams are as they should be again")
		}
		if id != n.stream() {
			// An ordered consumer alone never notices: asked for a position beyond the end it just waits.
			n.reload("the stream is another one")
		}
	}
}
