package cluster

import (
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"pgedge/revoke"
)

// Fresh says whether the node may let bytes pass: its lease holds by both clocks. It takes no lock and allocates
// nothing, and may be called before each write.
func (n *Node) Fresh() bool { return n.lease.Fresh(n.clock.quick()) }

// LeaseRemaining is the time until the lease ends; negative when it has ended. A node that serves whatever happens to
// its journal has the longest duration there is.
func (n *Node) LeaseRemaining() time.Duration { return n.lease.Remaining(n.clock.quick()) }

// carryOutLease is called with mu held.
func (n *Node) carryOutLease(c revoke.Command) {
	switch c := c.(type) {
	case revoke.RenewCommand:
		if c.Never {
			n.lease.Never()
		} else {
			n.lease.Renew(c.Until)
		}
		n.becomeReady()
	case revoke.RevokeLeaseCommand:
		n.lease.Revoke()
		n.log.Error("nobody is served until this is over", "because", c.Why)
	case revoke.FreezeCommand:
		n.log.Error("the lease has ended: sessions are frozen and logins refused", "on_stale", n.cfg.OnStale, "freeze", n.cfg.Freeze.String(), "because", n.staleReason())
		n.eng.Freeze()
	case revoke.ThawCommand:
		n.log.Info("the lease is back: what was missed has been applied, and frozen sessions go on", "seq", n.proto.Table().Applied())
		n.eng.Thaw()
	case revoke.DropCommand:
		n.log.Error("the lease has not come back: the frozen sessions end")
		n.eng.Drop()
	}
}

// becomeReady is called with mu held, at each renewal.
func (n *Node) becomeReady() {
	if !n.isReady.CompareAndSwap(false, true) {
		return
	}
	if n.State() == revoke.StateStarting {
		n.SetState(revoke.StateServing)
	}
	close(n.readyC)
}

// staleReason says why the node is not fresh. It is called with mu held.
func (n *Node) staleReason() string {
	status := n.proto.LeaseStatus()
	trouble := ""
	if p := n.trouble.Load(); p != nil {
		trouble = ": " + *p
	}
	switch {
	case !n.replayed:
		return "the journal has not been replayed yet" + trouble
	case status.Why != "":
		return status.Why + trouble
	case status.State == revoke.LeaseStarting:
		return "the first heartbeat has not come back from the journal yet" + trouble
	}
	ended := max(0, -n.lease.Remaining(n.clock.quick()))
	return fmt.Sprintf("the lease ended %s ago: nothing has come back from the journal since %s%s",
		ended.Round(100*time.Millisecond), status.Proven.Wall.UTC().Format("15:04:05.000Z"), trouble)
}

// setTrouble notes why the journal cannot be followed; nil when it can.
func (n *Node) setTrouble(err error) {
	if err == nil {
		n.trouble.Store(nil)
		return
	}
	text := err.Error()
	if errors.Is(err, jetstream.ErrStreamNotFound) {
		text = streamMissing(journalStream, n.cfg.initCommand()).Error()
	}
	n.trouble.Store(&text)
}

// lastSequenceIn reads the last seq of the subject that a refusal names.
func lastSequenceIn(err error) (seq uint64, ok bool) {
	var apiErr *jetstream.APIError
	if !errors.As(err, &apiErr) {
		return 0, false
	}
	_, number, found := strings.Cut(apiErr.Description, "wrong last sequence: ")
	if !found {
		return 0, false
	}
	if _, err := fmt.Sscan(number, &seq); err != nil {
		return 0, false
	}
	return seq, true
}
