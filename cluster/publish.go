package cluster

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/oklog/ulid/v2"

	"pgedge/revoke"
)

const (
	// publishRetry is how long one attempt may take: without a stream leader a publish gets no error, it hangs, because
	// the fast path's subscribers take it.
	publishRetry = 250 * time.Millisecond
	// publishLimit bounds a publication whose context has no deadline.
	publishLimit = time.Minute
	// countLimit is how long a stored fact is held back for the list of members; Await goes on with it.
	countLimit = time.Second
)

// ErrStaleReinstate says that the journal has a newer reinstate of the same scope than the author of this one saw.
var ErrStaleReinstate = errors.New("somebody else has reinstated this scope in the meantime: look again")

// ErrNotStored says that a fact was not seen in the journal in time. It may have cut sessions all the same, and may be
// stored later.
var ErrNotStored = errors.New("not proven to be stored")

// PublishOptions are what a fact says besides its verb and scope.
type PublishOptions struct {
	// ID is the revocation id, [A-Za-z0-9_-]{1,64}. Default: the ULID of the publication.
	ID     string
	Batch  string
	Reason string
	Actor  string
	Source string
	// Until is when a suspend ends. Required for it, meaningless for other verbs.
	Until time.Time
	// Upto is the position of the newest revoke or suspend that the author of a reinstate has seen. Required for it.
	Upto uint64
}

// Publication is a fact that is stored.
type Publication struct {
	ID      string
	Verb    revoke.Verb
	Scope   revoke.Scope
	Subject string
	// Seq is the fact's position in the journal.
	Seq uint64
	// SupersededBy is the position of a newer fact of the same subject that took this one's place in the journal before
	// it was delivered here; 0 when there was none.
	SupersededBy uint64
	// Stored is when the fact was stored, by the server's clock; zero when only a newer one was delivered.
	Stored time.Time
	// SeenAt is when this client saw the fact stored, with the monotonic clock: fences are reckoned from it.
	SeenAt time.Time
	// Took is the time from the first attempt to store until SeenAt.
	Took time.Duration

	// members are the boots that had announced themselves when the journal had been read to its end behind the fact;
	// counted is false while it has not been.
	members []revoke.Presence
	counted bool
	inbox   *inbox
}

// Publish stores a fact and returns once it is proven to be stored: its own message, or a newer one that has replaced
// it, has come back through this client's ordered consumer. An acknowledgement alone proves nothing, since every
// subscriber of the fast path could send one. Until ctx ends (a minute if it has no deadline) the same message is sent
// again and again; then the error is ErrNotStored.
//
// Receipts are collected from before the first attempt on: give the result to Await, or to Release when nobody waits.
func (c *Client) Publish(ctx context.Context, verb revoke.Verb, scope revoke.Scope, opts PublishOptions) (*Publication, error) {
	fact, err := makeFact(verb, scope, opts)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, publishLimit)
	defer cancel()
	ctx, unbind := c.rights.bind(ctx)
	defer unbind()
	attempt := ulid.Make().String()
	if fact.ID == "" {
		fact.ID = attempt
	}
	subject := revoke.Subject(verb, scope)
	msg := nats.NewMsg(subject)
	msg.Data = fact.Payload()
	msg.Header.Set(nats.MsgIdHdr, subject+"|"+attempt)

	if verb == revoke.VerbReinstate {
		// Its expected position is one of the journal; a reinstate is in no hurry.
		if err := c.view.wait(ctx); err != nil {
			return nil, c.rights.explain(fmt.Errorf("cannot read the journal: %w", err))
		}
		if c.replaced.Load() {
			return nil, ErrJournalReplaced // its author has seen nothing of the new one
		}
	}
	pub := &Publication{ID: fact.ID, Verb: verb, Scope: scope, Subject: subject}
	pub.inbox = c.inboxes.add(fact.ID, subject)
	began := time.Now()
	if err := c.store(ctx, msg, pub); err != nil {
		c.Release(pub)
		return nil, fmt.Errorf("cannot publish %s of %s: %w", verb, scope, err)
	}
	pub.Took = max(0, pub.SeenAt.Sub(began))
	counting, stop := context.WithTimeout(ctx, countLimit)
	defer stop()
	pub.members, pub.counted = c.view.membersAt(counting, pub.Seq)
	return pub, nil
}

// Release ends the collection of receipts for a publication that is not awaited. Await does it by itself.
func (c *Client) Release(pub *Publication) { c.inboxes.remove(pub.inbox) }

func makeFact(verb revoke.Verb, scope revoke.Scope, opts PublishOptions) (revoke.Fact, error) {
	if opts.ID != "" && !revoke.ValidID(opts.ID) {
		return revoke.Fact{}, fmt.Errorf("id %q is not 1 to 64 of A-Z a-z 0-9 _ -", opts.ID)
	}
	f := revoke.Fact{
		Verb: verb, Scope: scope,
		ID: opts.ID, Batch: opts.Batch, Reason: opts.Reason, Actor: opts.Actor, Source: opts.Source,
		At: time.Now().UTC(),
	}
	switch verb {
	case revoke.VerbRevoke, revoke.VerbKill:
	case revoke.VerbSuspend:
		if opts.Until.IsZero() {
			return revoke.Fact{}, errors.New("a suspend needs to say until when")
		}
		f.Until = opts.Until.UTC()
	case revoke.VerbReinstate:
		if opts.Upto == 0 {
			return revoke.Fact{}, errors.New("a reinstate needs the position of the newest revoke or suspend that its author has seen")
		}
		f.Upto = opts.Upto
	case revoke.VerbInvalid:
		return revoke.Fact{}, errors.New("no verb")
	}
	// What the nodes would refuse is refused here, before it replaces anything in the journal.
	if _, err := revoke.DecodeFact(revoke.Subject(verb, scope), "", f.Payload()); err != nil {
		return revoke.Fact{}, err
	}
	return f, nil
}

// store sends the message until it is proven to be stored.
func (c *Client) store(ctx context.Context, msg *nats.Msg, pub *Publication) error {
	// Without the journal nobody knows which acknowledgements are newer than what it holds: then only the message counts.
	trustAcks := c.view.isComplete()
	w, base := c.view.watch(msg.Subject, msg.Header.Get(nats.MsgIdHdr))
	defer c.view.unwatch(msg.Subject, w)
	if pub.Verb == revoke.VerbReinstate {
		msg.Header.Set(jetstream.ExpectedLastSubjSeqHeader, fmt.Sprint(base))
	}
	answers := make(chan answer, 1)
	next := time.NewTimer(0)
	defer next.Stop()
	var acked, refused uint64
	acknowledged := false
	var last error
	for sending := false; ; {
		select {
		case <-next.C:
			if !sending && (!acknowledged || c.view.isComplete()) {
				sending = true
				go func() { answers <- c.attempt(ctx, msg) }()
			}
			next.Reset(publishRetry)
		case a := <-answers:
			sending = false
			switch {
			case a.err == nil && !trustAcks:
				// Sending on would store it again, once the duplicate window is over. The journal will tell.
				acknowledged = true
			case a.err == nil && a.seq > base:
				acked = a.seq
			case isWrongLastSequence(a.err):
				refused, last = base+1, ErrStaleReinstate
			case a.err != nil:
				last = a.err
			}
		case <-w.wake:
		case <-ctx.Done():
			if c.replaced.Load() {
				last = ErrJournalReplaced
			}
			if last == nil {
				last = context.Cause(ctx)
			}
			return c.rights.explain(fmt.Errorf("%w: %w", ErrNotStored, last))
		}
		found := c.view.look(w)
		switch {
		case found.mine > 0:
			pub.Seq, pub.Stored, pub.SeenAt = found.mine, found.stored, found.seen
			if found.newest > found.mine {
				pub.SupersededBy = found.newest
			}
			return nil
		case acked > 0 && found.newest > acked:
			pub.Seq, pub.SupersededBy, pub.SeenAt = acked, found.newest, time.Now()
			return nil
		case refused > 0 && found.newest >= refused:
			return ErrStaleReinstate
		}
	}
}

type answer struct {
	seq uint64
	err error
}

// attempt sends the message once. Attempts of one publication never overlap, so that they may share the message.
func (c *Client) attempt(ctx context.Context, msg *nats.Msg) answer {
	ctx, cancel := context.WithTimeout(ctx, publishRetry)
	defer cancel()
	ack, err := c.js.PublishMsg(ctx, msg, jetstream.WithExpectStream(journalStream), jetstream.WithRetryAttempts(0))
	if err != nil {
		return answer{err: err}
	}
	return answer{seq: ack.Sequence}
}
