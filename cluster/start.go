package cluster

import (
	"context"
	"fmt"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/oklog/ulid/v2"

	"pgedge/revoke"
)

// Start runs a node. It returns once the node is connected and consumes the journal; ReadyC tells when the journal has
// been replayed and the first heartbeat has come back. ctx bounds the start only: the node runs until Close.
//
// With an external NATS that cannot be reached Start tries until ctx ends, and so it does with routes while nobody has
// created the streams; OnWaiting hears why. It fails at once when the state directory is taken (*LockedError), the
// configuration is wrong, the streams are missing or set up differently (*StreamsError), a permission is missing
// (*MissingRightError), or another process uses the node id (ErrNodeIDInUse).
func Start(ctx context.Context, cfg Config, eng Engine) (_ *Node, err error) {
	cfg = cfg.withDefaults()
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	if cfg.OnStale == revoke.OnStaleServe && !cfg.alone() {
		cfg.Logger.Warn("cluster.on_stale is serve: cut off from NATS this node goes on serving whom the others have revoked, and no wait for a revocation can rely on its lease")
	}
	nodeCtx, cancel := context.WithCancel(context.Background())
	n := &Node{
		cfg:       cfg,
		eng:       eng,
		log:       cfg.Logger,
		started:   time.Now().UTC(),
		doubt:     make(chan string, 1),
		stores:    make(chan revoke.StoreCommand, maxQueuedStores),
		rejects:   make(chan rejection, maxQueuedRejections),
		impacts:   make(chan struct{}, maxImpacts),
		ctx:       nodeCtx,
		cancel:    cancel,
		consuming: make(chan struct{}),
		readyC:    make(chan struct{}),
		fatalC:    make(chan struct{}),
		beatNow:   make(chan struct{}, 1),
		rights:    newRights(cfg.Node),
		cancels:   newCancelIntake(),
		clock:     newLeaseClock(),
	}
	n.sweeper = newSweeper(n)
	n.setState(revoke.StateStarting)
	defer func() {
		if err != nil {
			n.release()
		}
	}()

	if n.dir, err = openStateDir(cfg.StateDir); err != nil {
		return nil, err
	}
	previous, err := n.dir.previousBoot()
	if err != nil {
		return nil, err
	}
	if n.cfg.Boot == "" {
		n.cfg.Boot = newBoot(previous)
	}
	if err := n.connect(ctx); err != nil {
		return nil, err
	}
	ctx, unbind := n.rights.bind(ctx)
	defer unbind()
	defer func() { err = n.rights.explain(err) }()
	if err := n.awaitStreams(ctx); err != nil {
		return nil, err
	}
	if !cfg.alone() {
		if err := n.awaitID(ctx, previous); err != nil {
			return nil, err
		}
	}
	// A journal of its own lies in the directory: whoever runs on a copy of it writes another one.
	n.sayGoodbyes(ctx, previous, cfg.alone() || previous.endedHere(n.dir))
	if err := n.dir.recordBoot(bootRecord{bootID{n.cfg.Node, n.cfg.Boot}, n.owed, n.dir.place()}); err != nil {
		return nil, err
	}
	if err := n.run(ctx); err != nil {
		return nil, err
	}
	if cfg.alone() {
		if err := n.dir.writeNATSURL(n.srv.url); err != nil {
			return nil, err
		}
	}
	return n, nil
}

// newBoot is a ULID that is younger than the previous run's even when the clock has been set back in between.
func newBoot(previous *bootRecord) string {
	id := ulid.Make()
	if previous == nil {
		return id.String()
	}
	old, err := ulid.ParseStrict(previous.Boot)
	if err == nil && id.Compare(old) <= 0 {
		// The entropy stays; only the time moves past the old one's.
		if err := id.SetTime(old.Time() + 1); err != nil {
			return ulid.Make().String()
		}
	}
	return id.String()
}

// connect starts the embedded server if there is one, and connects to it or to the external one.
func (n *Node) connect(ctx context.Context) error {
	opts := append(connOptions("pgedge node "+n.cfg.Node, connHooks{
		disconnected: n.onDisconnect,
		reconnected:  n.onReconnect,
		asyncError:   n.onAsyncError,
	}), nats.CustomInboxPrefix(inboxOfNode(n.cfg.Node)))
	var err error
	if n.cfg.NATS == Embedded {
		if n.srv, err = startEmbedded(n.cfg, n.dir); err != nil {
			return err
		}
		opts = append(opts, nats.InProcessServer(n.srv.srv), nats.Token(n.srv.token))
		if n.nc, err = nats.Connect("", opts...); err != nil {
			return fmt.Errorf("cannot connect to embedded NATS server: %w", err)
		}
	} else if err := n.connectOutside(ctx, opts); err != nil {
		return err
	}
	if n.js, err = jetstream.New(n.nc, jetstream.WithDefaultTimeout(followRequestTimeout)); err != nil {
		return fmt.Errorf("cannot use JetStream: %w", err)
	}
	switch {
	case n.cfg.alone():
		return createStreams(ctx, n.js)
	case n.srv != nil:
		// The command that creates the streams comes in this way while the node still waits for them.
		return n.dir.writeNATSURL(n.srv.url)
	}
	return nil
}

// connectOutside connects to an external NATS and proves that answers can arrive.
func (n *Node) connectOutside(ctx context.Context, opts []nats.Option) error {
	credentials, err := n.cfg.Credentials.options()
	if err != nil {
		return err
	}
	opts = append(opts, credentials...)
	err = patiently(ctx, reconnectWait, n.waitFor, never, func() (err error) {
		if n.nc, err = nats.Connect(n.cfg.NATS, opts...); err != nil {
			return fmt.Errorf("cannot connect to NATS at %s: %w", redactURLs(n.cfg.NATS), err)
		}
		return nil
	})
	if err != nil {
		return err
	}
	if err := mayReceive(n.nc); err != nil {
		if missing := n.rights.note(err); missing != nil {
			return missing
		}
		return err
	}
	return nil
}

// run subscribes and starts the node's goroutines.
func (n *Node) run(ctx context.Context) error {
	n.proto = revoke.NewNode(revoke.NodeConfig{
		ID: n.cfg.Node, Boot: n.cfg.Boot, Lease: n.cfg.Lease, Freeze: n.cfg.Freeze, OnStale: n.cfg.OnStale,
	})
	n.table.Store(n.proto.Table())
	n.tick = time.AfterFunc(time.Hour, n.onTick)
	n.tick.Stop()
	n.receipts = newReceiptQueue(n.js, n.log)
	n.follower = &follower{
		js: n.js, stream: journalStream, log: n.log,
		from:    func() uint64 { return 0 },
		reset:   n.onJournalStart,
		message: n.onJournalMessage,
		trouble: n.setTrouble,
		doubt:   n.doubt,
	}
	n.m = newNodeMetrics(n.cfg.Metrics, n)
	n.receipts.m = n.m

	// The fast path first: what is published from here on is seen by one of the two.
	for _, subject := range fastSubjects {
		sub, err := n.nc.Subscribe(subject, n.onFastMessage)
		if err != nil {
			return fmt.Errorf("cannot subscribe to %s: %w", subject, err)
		}
		n.subs = append(n.subs, sub)
	}
	if err := n.takeCancels(); err != nil {
		return err
	}
	if err := n.nc.FlushTimeout(followRequestTimeout); err != nil {
		return fmt.Errorf("cannot subscribe to the fast path: %w", err)
	}
	if missing := n.rights.note(n.nc.LastError()); missing != nil {
		return missing
	}
	for range storeWorkers {
		n.work.Go(n.storeLoop)
	}
	n.work.Go(n.rejectLoop)
	n.work.Go(func() { n.follower.run(n.ctx) })
	n.work.Go(n.heartbeatLoop)
	n.work.Go(n.watchStreams)
	n.work.Go(func() { n.sweeper.run(n.ctx) })
	n.receipts.run(n.ctx, &n.work)
	if err := n.serveQueries(); err != nil {
		return err
	}
	select {
	case <-n.consuming:
		return nil
	case <-n.fatalC:
		return n.FatalErr()
	case <-ctx.Done():
		return fmt.Errorf("cannot follow the journal: %w", context.Cause(ctx))
	}
}
