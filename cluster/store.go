package cluster

import (
	"context"
	"encoding/json"
	"errors"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"pgedge/revoke"
)

const (
	storeTimeout = time.Second
	storeWorkers = 8
	// maxQueuedStores and maxQueuedRejections bound what waits while NATS is slow. A store beyond it has failed, and
	// the state machine asks again later; a rejection beyond it is counted and logged only.
	maxQueuedStores     = 4096
	maxQueuedRejections = 1024
)

// queueStore never blocks: its caller holds the lock that every cut needs.
func (n *Node) queueStore(c revoke.StoreCommand) {
	select {
	case n.stores <- c:
	default:
		n.m.factsStoreError.Inc()
		go n.handle(time.Now(), revoke.StoreResult{Key: c.Key, Outcome: revoke.StoreFailed})
	}
}

func (n *Node) storeLoop() {
	for {
		select {
		case <-n.ctx.Done():
			return
		case c := <-n.stores:
			n.handle(time.Now(), n.store(c))
		}
	}
}

// store writes a fact that somebody published without any guarantee into the journal.
func (n *Node) store(c revoke.StoreCommand) revoke.StoreResult {
	ctx, cancel := context.WithTimeout(n.ctx, storeTimeout)
	defer cancel()
	msg := nats.NewMsg(c.Subject)
	msg.Data = c.Payload
	if c.MsgID != "" {
		msg.Header.Set(nats.MsgIdHdr, c.MsgID)
	}
	ack, err := n.js.PublishMsg(ctx, msg,
		jetstream.WithExpectStream(journalStream),
		jetstream.WithExpectLastSequencePerSubject(c.ExpectLastSubjectSeq),
		jetstream.WithRetryAttempts(0))
	switch {
	case err == nil:
		n.m.factsStored.Inc()
		return revoke.StoreResult{Key: c.Key, Outcome: revoke.StoreOK, Seq: ack.Sequence}
	case isWrongLastSequence(err):
		return revoke.StoreResult{Key: c.Key, Outcome: revoke.StoreWrongLastSequence}
	}
	n.m.factsStoreError.Inc()
	// While the journal as a whole cannot be written the alarm says so; thousands of facts may wait for it.
	if n.ctx.Err() == nil && !n.m.journalAlarm.Load() {
		n.log.Warn("cannot store a fact in the journal yet, trying on", "subject", c.Subject, "error", err)
	}
	return revoke.StoreResult{Key: c.Key, Outcome: revoke.StoreFailed}
}

func isWrongLastSequence(err error) bool {
	var apiErr *jetstream.APIError
	if !errors.As(err, &apiErr) {
		return false
	}
	// A replicated stream says the same with a code of its own.
	return apiErr.ErrorCode == jetstream.JSErrCodeStreamWrongLastSequence || apiErr.ErrorCode == jetstream.JSErrCodeStreamWrongLastSequenceConstant
}

// rejection is what a node publishes on pgedge.rejected about a message that it refused.
type rejection struct {
	Node    string    `json:"node"`
	Boot    string    `json:"boot"`
	At      time.Time `json:"at"`
	Subject string    `json:"subject"`
	Payload []byte    `json:"payload"` // base64
	Why     string    `json:"why"`
}

// queueRejection never blocks: its caller holds the lock that every cut needs.
func (n *Node) queueRejection(c revoke.RejectCommand) {
	r := rejection{Node: n.cfg.Node, Boot: n.cfg.Boot, At: time.Now().UTC(), Subject: c.Subject, Payload: c.Payload, Why: c.Why}
	select {
	case n.rejects <- r:
	default:
		n.m.rejectedUnsent.Inc()
	}
}

func (n *Node) rejectLoop() {
	for {
		select {
		case <-n.ctx.Done():
			return
		case r := <-n.rejects:
			n.log.Warn("refused a message", "subject", r.Subject, "why", r.Why)
			b, err := json.Marshal(r)
			if err == nil {
				err = n.nc.Publish(rejectedSubject, b)
			}
			if err != nil {
				n.m.rejectedUnsent.Inc()
				n.log.Warn("cannot publish a rejection", "subject", r.Subject, "error", err)
			}
		}
	}
}
