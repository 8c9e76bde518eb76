package cluster

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

const (
	followRequestTimeout = 2 * time.Second
	// followHeartbeat is what the server promises while a stream is quiet; two missed ones mean a new consumer.
	followHeartbeat = time.Second
	followExpiry    = 10 * time.Second
	// followInactive is when the server forgets a consumer that nobody pulls from any more.
	followInactive = 30 * time.Second
	// followMinLife is the floor between two starts, so that a fault that is there to stay does not become a flood
	// of consumers. The first restart is immediate.
	followMinLife = 100 * time.Millisecond
)

// delivery is one message of a followed stream. Payload belongs to the receiver.
type delivery struct {
	Subject string
	MsgID   string // the Nats-Msg-Id header
	Payload []byte
	Seq     uint64
	Stored  time.Time // by the server's clock
	Pending uint64    // messages that were still to come when this one was sent
}

// followStart says where an incarnation of the consumer begins.
type followStart struct {
	Stream  *jetstream.StreamInfo
	Pending uint64 // messages to come; 0 means that the state is complete already
}

// follower is an ordered consumer that starts over at any doubt: a gap, a missed heartbeat, a reconnect, a dropped
// message. The library's own ordered consumer resumes in the middle and backs off up to ten seconds; a node that may
// have missed a revocation wants neither.
//
// The callbacks run one at a time, and none of an older incarnation runs after reset of a newer one.
type follower struct {
	js      jetstream.JetStream
	stream  string
	filters []string
	since   *time.Time // begin with what was stored at this time; nil for no such limit
	log     *slog.Logger

	// from is the first position of the next incarnation; 0 is the whole stream.
	from func() uint64
	// reset begins an incarnation. An error refuses it, and the follower tries again.
	reset   func(followStart) error
	message func(delivery)
	// trouble, when set, is told why the stream cannot be followed, and nil once it can.
	trouble func(error)

	doubt chan string // one is enough: whatever it says, the answer is to start over

	mu      sync.Mutex
	gen     uint64 // changes whenever the messages of the consumer at hand are no longer wanted
	nextSeq uint64 // consumer sequence expected next
	lastSeq uint64 // stream sequence delivered last
}

// restart makes the follower start over. It never blocks.
func (f *follower) restart(reason string) {
	select {
	case f.doubt <- reason:
	default:
	}
}

// run follows until ctx ends.
func (f *follower) run(ctx context.Context) {
	var lastComplaint string
	for {
		began := time.Now()
		consuming, err := f.start(ctx)
		if f.trouble != nil && ctx.Err() == nil {
			f.trouble(err)
		}
		if err == nil {
			lastComplaint = ""
			select {
			case <-ctx.Done():
			case reason := <-f.doubt:
				f.log.Info("following the stream from the start", "stream", f.stream, "because", reason)
			}
			f.abandon()
			consuming.Stop()
		} else if ctx.Err() == nil && err.Error() != lastComplaint {
			lastComplaint = err.Error()
			f.log.Warn("cannot follow the stream, trying on", "stream", f.stream, "error", err)
		}
		if ctx.Err() != nil {
			return
		}
		if wait := followMinLife - time.Since(began); wait > 0 {
			select {
			case <-ctx.Done():
				return
			case <-time.After(wait):
			}
		}
	}
}

// start creates a consumer and begins to consume.
func (f *follower) start(ctx context.Context) (jetstream.ConsumeContext, error) {
	ctx, cancel := context.WithTimeout(ctx, followRequestTimeout)
	defer cancel()
	// Doubts raised until here are answered by this start.
	select {
	case <-f.doubt:
	default:
	}
	stream, err := f.js.Stream(ctx, f.stream)
	if err != nil {
		return nil, fmt.Errorf("cannot read stream: %w", err)
	}
	cfg := jetstream.ConsumerConfig{
		AckPolicy:         jetstream.AckNonePolicy,
		DeliverPolicy:     jetstream.DeliverAllPolicy,
		ReplayPolicy:      jetstream.ReplayInstantPolicy,
		FilterSubjects:    f.filters,
		MaxDeliver:        1,
		MemoryStorage:     true,
		Replicas:          1,
		InactiveThreshold: followInactive,
	}
	if from := f.from(); from > 0 {
		cfg.DeliverPolicy, cfg.OptStartSeq = jetstream.DeliverByStartSequencePolicy, from
	}
	if f.since != nil {
		cfg.DeliverPolicy, cfg.OptStartTime = jetstream.DeliverByStartTimePolicy, f.since
	}
	consumer, err := stream.CreateConsumer(ctx, cfg)
	if err != nil {
		return nil, fmt.Errorf("cannot create consumer: %w", err)
	}
	f.mu.Lock()
	f.gen++
	gen := f.gen
	f.nextSeq, f.lastSeq = 1, 0
	err = f.reset(followStart{Stream: stream.CachedInfo(), Pending: consumer.CachedInfo().NumPending})
	f.mu.Unlock()
	if err != nil {
		return nil, err
	}
	consuming, err := consumer.Consume(
		func(m jetstream.Msg) { f.deliver(gen, m) },
		jetstream.PullHeartbeat(followHeartbeat),
		jetstream.PullExpiry(followExpiry),
		jetstream.ConsumeErrHandler(func(_ jetstream.ConsumeContext, err error) { f.fail(gen, err) }),
	)
	if err != nil {
		return nil, fmt.Errorf("cannot consume: %w", err)
	}
	return consuming, nil
}

// abandon makes every message still on its way from the consumer at hand unwanted.
func (f *follower) abandon() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.gen++
}

func (f *follower) fail(gen uint64, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if gen != f.gen || errors.Is(err, nats.ErrConnectionClosed) {
		return
	}
	f.restart(err.Error())
}

func (f *follower) deliver(gen uint64, m jetstream.Msg) {
	meta, err := m.Metadata()
	f.mu.Lock()
	defer f.mu.Unlock()
	if gen != f.gen {
		return
	}
	switch {
	case err != nil:
		f.gen++
		f.restart("a message without metadata: " + err.Error())
		return
	case meta.Sequence.Consumer != f.nextSeq:
		f.gen++
		f.restart(fmt.Sprintf("a gap: message %d of the consumer came in place of %d", meta.Sequence.Consumer, f.nextSeq))
		return
	case meta.Sequence.Stream <= f.lastSeq:
		f.gen++
		f.restart(fmt.Sprintf("the stream went back from %d to %d", f.lastSeq, meta.Sequence.Stream))
		return
	}
	f.nextSeq++
	f.lastSeq = meta.Sequence.Stream
	f.message(delivery{
		Subject: m.Subject(),
		MsgID:   m.Headers().Get(nats.MsgIdHdr),
		Payload: m.Data(),
		Seq:     meta.Sequence.Stream,
		Stored:  meta.Timestamp,
		Pending: meta.NumPending,
	})
}
