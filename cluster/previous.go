package cluster

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"pgedge/revoke"
)

const (
	// goodbyeTimeout bounds what is published on behalf of a run that has ended.
	goodbyeTimeout = 2 * time.Second
	// claimTimeout bounds the look at who else uses the node id.
	claimTimeout = 10 * time.Second
)

// errMayRun says that nothing proves the end of a run.
var errMayRun = errors.New("this state directory is not where it ran, or the machine was started again since, and it may run elsewhere")

// runs are the runs that ended with the state directory in their hands and without a goodbye. Holding its lock proves
// that they are gone.
func (r *bootRecord) runs() []bootID {
	if r == nil {
		return nil
	}
	return append([]bootID{r.bootID}, r.Owed...)
}

// endedHere says that the runs of the record held this very directory, so that holding its lock proves their end.
func (r *bootRecord) endedHere(d *stateDir) bool {
	return r != nil && r.Place != "" && r.Place == d.place()
}

// claimID refuses to start under an id that somebody else is using. Two processes with one id would answer for each
// other, and the older one, which may carry the journal itself, would give way to a typing mistake. The runs of this
// state directory are no obstacle, so that a node that was killed can be started again at once; those in a record that
// was copied from elsewhere, or survived a restart of the machine, are like any other's.
func (n *Node) claimID(ctx context.Context, previous *bootRecord) error {
	ctx, cancel := context.WithTimeout(ctx, claimTimeout)
	defer cancel()
	own := map[string]bool{revoke.NodeSubject(n.cfg.Node, n.cfg.Boot): true}
	ended := previous.runs()
	if !previous.endedHere(n.dir) {
		ended = nil
	}
	for _, run := range ended {
		own[revoke.NodeSubject(run.Node, run.Boot)] = true
	}
	stream, err := n.js.Stream(ctx, journalStream)
	if err != nil {
		return fmt.Errorf("cannot read stream %s: %w", journalStream, err)
	}
	info, err := stream.Info(ctx, jetstream.WithSubjectFilter(revoke.NodeSubject(n.cfg.Node, "*")))
	if err != nil {
		return fmt.Errorf("cannot list the boots of node %s: %w", n.cfg.Node, err)
	}
	for subject := range info.State.Subjects {
		if own[subject] {
			continue
		}
		msg, err := stream.GetLastMsgForSubject(ctx, subject)
		if err != nil {
			return fmt.Errorf("cannot read the presence of another boot of node %s: %w", n.cfg.Node, err)
		}
		p, err := revoke.DecodePresence(subject, msg.Data)
		if err != nil || p.State == revoke.StateLeft {
			continue
		}
		// Both times are the server's. Answers that overtake each other make a heartbeat look younger, no more.
		if silent := info.TimeStamp.Sub(msg.Time); silent <= p.Lease() {
			return fmt.Errorf("%w: node id %s is in use by boot %s, heard %s ago from another state directory: choose another with --node; if it was killed, it is forgotten %s after its last heartbeat",
				ErrNodeIDInUse, p.Node, p.Boot, max(0, silent).Round(time.Second), p.Lease())
		}
	}
	return nil
}

// sayGoodbyes publishes `left` for the runs that held the state directory before and were killed, so that nobody has
// to wait for them. Where that fails the next start tries again: until then they count as silent.
//
// Without proof that they have ended, a goodbye is said only for a run that is certainly stale, since a verdict takes
// it as a proof: a run of a directory that was copied may be serving still, cut off from the journal.
func (n *Node) sayGoodbyes(ctx context.Context, previous *bootRecord, proven bool) {
	ctx, cancel := context.WithTimeout(ctx, goodbyeTimeout)
	defer cancel()
	for _, run := range previous.runs() {
		if run.Boot == n.cfg.Boot {
			continue
		}
		said, err := n.sayGoodbyeFor(ctx, run, proven)
		switch {
		case err != nil:
			n.log.Warn("cannot announce that a previous run has ended", "boot", run.Boot, "error", err)
			// What could not be proven now will not be by the next start, whose own record hides where this one came from.
			if len(n.owed) < maxOwed && !errors.Is(err, errMayRun) {
				n.owed = append(n.owed, run)
			}
		case said:
			n.log.Info("announced that the previous run has ended", "boot", run.Boot)
		}
	}
}

// sayGoodbyeFor repeats the last heartbeat of a run as its goodbye: the sessions that it had are what a verdict has to
// know. It says nothing for a run that has done so itself.
func (n *Node) sayGoodbyeFor(ctx context.Context, run bootID, proven bool) (said bool, err error) {
	p := revoke.Presence{V: 1, Node: run.Node, Boot: run.Boot}
	subject := revoke.NodeSubject(run.Node, run.Boot)
	stream, err := n.js.Stream(ctx, journalStream)
	if err != nil {
		return false, fmt.Errorf("cannot read stream %s: %w", journalStream, err)
	}
	msg, err := stream.GetLastMsgForSubject(ctx, subject)
	switch {
	case errors.Is(err, jetstream.ErrMsgNotFound):
		// It was killed before its first heartbeat, and so before it served anybody.
	case err != nil:
		return false, fmt.Errorf("cannot read its last heartbeat: %w", err)
	default:
		if p, err = revoke.DecodePresence(subject, msg.Data); err != nil {
			return false, err
		}
	}
	if p.State == revoke.StateLeft {
		return false, nil
	}
	if !proven && msg != nil {
		info, err := stream.Info(ctx)
		if err != nil {
			return false, fmt.Errorf("cannot read the journal's clock: %w", err)
		}
		silent := info.TimeStamp.Sub(msg.Time)
		lease := max(p.Lease(), time.Duration(p.LeaseMS)*time.Millisecond)
		if !p.Fences() || silent <= lease+lease/100 {
			return false, fmt.Errorf("%w: it was last heard %s ago, and says on_stale %s", errMayRun, max(0, silent).Round(time.Second), p.OnStale)
		}
	}
	p.State, p.Crashed, p.At = revoke.StateLeft, true, time.Now().UTC()
	p.N++
	return true, n.publishPresence(ctx, p)
}
