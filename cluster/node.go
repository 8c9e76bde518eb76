package cluster

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/VictoriaMetrics/metrics"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/nats-io/nats.go/micro"

	"pgedge/revoke"
)

// ErrSuperseded is in the error of Fatal when another process has taken over the node's id.
var ErrSuperseded = errors.New("a younger process has announced itself under this node's id")

// ErrJournalReplaced says that the journal has been replaced by another stream since the Client began to read it. It
// neither undoes nor proves anything there. A node goes on with the new one.
var ErrJournalReplaced = errors.New("the journal has been replaced by another stream")

// ErrNodeIDInUse is in the error of Start when a live boot of the same node id runs from another state directory.
var ErrNodeIDInUse = errors.New("this node may not start")

// Node is one member of the cluster.
type Node struct {
	// Immutable after Start.
	cfg      Config
	eng      Engine
	log      *slog.Logger
	m        *nodeMetrics
	dir      *stateDir
	srv      *embeddedServer // nil with an external NATS
	nc       *nats.Conn
	js       jetstream.JetStream
	clock    *leaseClock
	started  time.Time
	owed     []bootID // earlier runs that nobody has said goodbye for yet
	rights   *rights
	follower *follower
	receipts *receiptQueue
	sweeper  *sweeper
	doubt    chan string // the follower's
	repeats  repeatLimit // of what the connection complains about
	stores   chan revoke.StoreCommand
	rejects  chan rejection
	impacts  chan struct{} // a token per question that is looked into
	service  micro.Service
	subs     []*nats.Subscription
	cancels  cancelIntake

	ctx       context.Context // ends when the node stops
	cancel    context.CancelFunc
	work      sync.WaitGroup
	consuming chan struct{} // closed when the journal's consumer is attached for the first time
	readyC    chan struct{}
	fatalC    chan struct{}
	closeOnce sync.Once
	closeErr  error

	// Guarded by mu, which is held while one event is handled and its commands are carried out. Whoever holds it is
	// the one actor that owns the state machine.
	mu       sync.Mutex
	proto    *revoke.Node
	dueBeat  revoke.HeartbeatCommand // the answer to the last HeartbeatDue
	lastNow  time.Time
	tick     *time.Timer
	replayed bool
	stopped  bool
	deaf     bool // facts are not applied any more: the goodbye says how far they were

	// Any goroutine.
	table   atomic.Pointer[revoke.Table]
	pending atomic.Uint64 // messages of the journal still to come, as of the last one delivered
	lease   revoke.Lease
	trouble atomic.Pointer[string] // why the journal cannot be followed; nil when it can
	beat    heartbeat
	state   atomic.Pointer[string]
	beatNow chan struct{}
	isReady atomic.Bool
	// streamsFault says what is wrong with the streams' settings; nil while they are as they should be.
	streamsFault atomic.Pointer[string]
	fatalOnce    sync.Once
	fatalErr     atomic.Pointer[error]
}

// Table is the table logins are checked against. A reload may put another one in its place: ask each time.
func (n *Node) Table() *revoke.Table { return n.table.Load() }

// Ready reports whether the node wants new clients, and if not, why.
func (n *Node) Ready() (bool, string) {
	if n.FatalErr() == nil && n.State() == revoke.StateDraining {
		return false, "the node is draining"
	}
	return n.Admits()
}

// Admits reports whether logins may be admitted, and if not, why. A node that has begun to drain admits them until its
// engine refuses: load balancers take a moment to notice that it is not ready.
func (n *Node) Admits() (bool, string) {
	switch {
	case n.FatalErr() != nil:
		return false, n.FatalErr().Error()
	case n.State() == revoke.StateLeft:
		return false, "the node has stopped"
	case n.streamsFault.Load() != nil:
		return false, *n.streamsFault.Load()
	case n.isReady.Load() && n.Fresh():
		return true, ""
	case n.rights.err() != nil:
		return false, n.rights.err().Error()
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	return false, n.staleReason()
}

// ReadyC is closed when the node has become ready for the first time.
func (n *Node) ReadyC() <-chan struct{} { return n.readyC }

// FatalC is closed when the process has to end; FatalErr says why.
func (n *Node) FatalC() <-chan struct{} { return n.fatalC }

// FatalErr is nil until FatalC is closed.
func (n *Node) FatalErr() error {
	if p := n.fatalErr.Load(); p != nil {
		return *p
	}
	return nil
}

// Boot is the ULID of this run.
func (n *Node) Boot() string { return n.cfg.Boot }

// URL is where clients reach the cluster: the embedded server with its token, or what was configured.
func (n *Node) URL() string {
	if n.srv != nil {
		return n.srv.url
	}
	return n.cfg.NATS
}

// Metrics is the set that holds the node's metrics.
func (n *Node) Metrics() *metrics.Set { return n.cfg.Metrics }

// State is what the node announces at present.
func (n *Node) State() string { return *n.state.Load() }

func (n *Node) setState(state string) { n.state.Store(&state) }

// SetState announces serving or draining, at once.
func (n *Node) SetState(state string) {
	n.setState(state)
	n.beatSoon()
}

// Announce makes the next heartbeat come at once, for news of the engine's.
func (n *Node) Announce() { n.beatSoon() }

// PublishReceipt stores a receipt, pages before the summary. It never blocks: receipts wait in a bounded queue where
// a later stage of the same revocation replaces an earlier one, and are retried until they are stored.
func (n *Node) PublishReceipt(r revoke.Receipt) { n.receipts.put(n.sweeper.amend(r)) }

// Close says goodbye: pending receipts are stored and `left` is published as far as ctx allows, then everything
// stops. The error says what could not be done; everything has stopped in any case.
func (n *Node) Close(ctx context.Context) error {
	n.closeOnce.Do(func() { n.closeErr = n.close(ctx) })
	return n.closeErr
}

func (n *Node) close(ctx context.Context) error {
	var problems []error
	problems = append(problems, n.dir.removeNATSURL())
	if err := n.service.Stop(); err != nil {
		problems = append(problems, fmt.Errorf("cannot stop the query service: %w", err))
	}
	if err := n.quiesce(ctx); err != nil {
		problems = append(problems, err)
	}
	if err := n.leave(ctx); err != nil {
		problems = append(problems, err)
	} else if len(n.owed) == 0 {
		problems = append(problems, n.dir.forgetBoot())
	}
	n.release()
	return errors.Join(problems...)
}

// release stops whatever has been started, in the reverse order.
func (n *Node) release() {
	n.cancel()
	n.mu.Lock()
	n.stopped = true
	if n.tick != nil {
		n.tick.Stop()
	}
	n.mu.Unlock()
	n.work.Wait()
	if n.service != nil {
		n.service.Stop()
	}
	if n.nc != nil {
		n.nc.Close()
	}
	if n.srv != nil {
		n.srv.stop()
	}
	if n.dir != nil {
		n.dir.close()
	}
}

// reload makes the follower start over. It never blocks and may be called before there is a follower.
func (n *Node) reload(reason string) {
	select {
	case n.doubt <- reason:
	default:
	}
}

// die makes the process end. The first reason wins.
func (n *Node) die(err error) {
	n.fatalOnce.Do(func() {
		n.log.Error("this node has to stop", "error", err)
		n.fatalErr.Store(&err)
		close(n.fatalC)
	})
}

func (n *Node) onDisconnect(err error) {
	if n.ctx.Err() == nil {
		n.log.Warn("lost the connection to NATS", "error", err)
	}
}

func (n *Node) onReconnect() {
	n.log.Info("connected to NATS again", "server", n.nc.ConnectedAddr())
	n.rights.forget()
	n.reload("the connection was lost")
}

// onAsyncError also hears every attempt to connect again that NATS refuses, several times a second.
func (n *Node) onAsyncError(sub *nats.Subscription, err error) {
	now := time.Now()
	if isAuthError(err) {
		n.cfg.Metrics.GetOrCreateCounter(`pgedge_nats_auth_failures_total`).Inc()
		if n.repeats.allow(err.Error(), now, alarmRepeat) {
			n.log.Error("NATS refuses this node's credentials, trying on; no revocation reaches the node until they are accepted", "error", err)
		}
		return
	}
	if missing := n.rights.note(err); missing != nil {
		if n.repeats.allow(missing.Error(), now, alarmRepeat) {
			n.log.Error(missing.Error())
		}
		return
	}
	subject := ""
	if sub != nil {
		subject = sub.Subject
	}
	if n.repeats.allow(subject+" "+err.Error(), now, repeatEvery) {
		n.log.Warn("NATS reports an error", "subject", subject, "error", err)
	}
	if errors.Is(err, nats.ErrSlowConsumer) && mayCarryFacts(subject) {
		n.reload("messages were dropped")
	}
}

// mayCarryFacts tells the fast path and the journal's consumer from what others may ask of a node. Whoever floods it
// with questions must not make it read the journal again and again: it is not proven fresh before it has.
func mayCarryFacts(subject string) bool {
	for _, prefix := range []string{"pgedge.query.", "pgedge.cancel.", micro.APIPrefix + "."} {
		if strings.HasPrefix(subject, prefix) {
			return false
		}
	}
	return true
}

func isAuthError(err error) bool {
	return errors.Is(err, nats.ErrAuthorization) || errors.Is(err, nats.ErrAuthExpired) || errors.Is(err, nats.ErrAuthRevoked) ||
		errors.Is(err, nats.ErrAccountAuthExpired)
}
