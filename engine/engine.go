// Package engine carries sessions between clients and Postgres: it accepts, logs in on plain connections, enrolls
// both sockets of a session into one gnet event loop, relays, and ends sessions, backends included, when told.
package engine

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"runtime/debug"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/panjf2000/gnet/v2"

	"pgedge/revoke"
)

// Engine is one node's data plane. Create it with New, then Start, Drain and Stop in that order.
type Engine struct {
	cfg       Config
	log       *slog.Logger
	sessions  *sessionLog
	epoch     time.Time // start of the engine's own monotonic clock
	index     *index
	orders    *orderBook
	cancels   *cancelTable
	databases map[string]*database
	controls  *controlRegistry
	capacity  capacity
	metrics   *engineMetrics
	settings  atomic.Pointer[settings]

	client    *gnet.Client
	loops     []*loop
	looping   atomic.Bool // loops is complete
	clock     *clock
	drains    *drainWatch
	listeners []net.Listener

	slots      chan struct{} // one per accepted socket, refusals and cancel requests included
	loginSlots chan struct{} // logins that talk to a backend
	cancelling chan struct{} // cancel requests under way
	guesses    *guessLimits
	forwards   *limiter // cancel requests for other nodes
	admitted   atomic.Int64
	nextID     atomic.Uint64
	draining   atomic.Bool
	lease      atomic.Uint32 // leaseHeld, leaseFrozen or leaseDropped; see freeze.go
	logins     loginSet
	background sync.WaitGroup
	fallbacks  sync.WaitGroup // cancel requests of kills under way
	done       chan struct{}  // closed when the engine stops taking clients
	stopping   chan struct{}  // closed when no session is left and the loops stop
	stopOnce   sync.Once
}

// settings are what Reload can change.
type settings struct {
	limits   Limits
	timeouts Timeouts
	contact  string
}

// database is an entry of Config.Databases at work.
type database struct {
	name     string
	upstream Upstream
	max      int
	sweep    bool
	sessions atomic.Int64
}

// New checks cfg and prepares an engine that does nothing yet.
func New(cfg Config) (*Engine, error) {
	cfg.setDefaults()
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	capacity, err := deriveCapacity(cfg.Limits.MaxSessions)
	if err != nil {
		return nil, err
	}
	e := &Engine{
		cfg: cfg, log: cfg.Logger, sessions: newSessionLog(cfg.Logger), epoch: time.Now(),
		index: newIndex(), cancels: newCancelTable(cfg.Node),
		databases: make(map[string]*database, len(cfg.Databases)),
		capacity:  capacity, metrics: newEngineMetrics(cfg.Metrics),
		slots:      make(chan struct{}, capacity.sessions+capacity.refusals),
		loginSlots: make(chan struct{}, cfg.Limits.MaxLogins),
		cancelling: make(chan struct{}, maxCancelling),
		guesses:    newGuessLimits(),
		forwards:   newLimiter(forwardRate, forwardBurst),
		done:       make(chan struct{}),
		stopping:   make(chan struct{}),
	}
	e.logins.sessions = make(map[*session]struct{})
	e.orders = newOrderBook(e)
	e.controls = newControlRegistry(e)
	e.applySettings(cfg.Limits, cfg.Timeouts, cfg.Contact)
	for name, d := range cfg.Databases {
		u := d.Upstream
		if err := u.load(); err != nil {
			return nil, fmt.Errorf("databases.%s: %w", name, err)
		}
		if u.Control != nil {
			control := *u.Control
			if control.Database == "" {
				control.Database = u.Database
			}
			u.Control = &control
		}
		if name == "*" {
			// The fallback passes the client's own name on; a name in its URL is where the control role connects.
			u.Database = ""
		}
		e.databases[name] = &database{name: name, upstream: u, max: d.MaxBackends, sweep: d.Sweep}
	}
	e.metrics.registerGauges(cfg.Metrics, e)
	return e, nil
}

// Start opens the listeners and begins to serve. Control roles are tried in the background and reported in the log.
func (e *Engine) Start(ctx context.Context) error {
	if err := e.startLoops(); err != nil {
		return err
	}
	e.background.Go(func() { e.orders.run(e.stopping) })
	e.controls.warm(ctx)
	for _, addr := range e.cfg.Listen {
		ln, err := listen(ctx, addr)
		if err != nil {
			return errors.Join(err, e.Stop(ctx))
		}
		e.listeners = append(e.listeners, ln)
	}
	e.listeners = append(e.listeners, e.cfg.Listeners...)
	for _, ln := range e.listeners {
		e.background.Go(func() { e.accept(ln) })
	}
	return nil
}

// Addrs returns where the engine listens, in the order of Config.Listen, then of Config.Listeners.
func (e *Engine) Addrs() []net.Addr {
	var addrs []net.Addr
	for _, ln := range e.listeners {
		addrs = append(addrs, ln.Addr())
	}
	return addrs
}

// Cut carries out one order: the gates of all matching sessions are closed when it returns; everything else follows
// on other goroutines. Receipts come through Config.OnReceipt. Called from one goroutine at a time.
func (e *Engine) Cut(of revoke.Order) {
	o := e.orders.get(of)
	o.walk(1)
	defer o.walk(-1)
	settled := of.Fact.Seq > 0 || of.SupersededBy > 0
	if settled {
		o.settle(of)
	}
	if of.SupersededBy > 0 {
		return
	}
	e.auditOrder(of, settled)
	batches := make(map[*loop][]*session)
	var logins []*session
	found := e.index.match(of.Fact.Scope)
	if !settled {
		o.expect(len(found)) // the journal's order mostly finds what the fast path has found
	}
	for i, s := range found {
		if i%fetchAhead == 0 {
			fetchGates(found[i:min(i+fetchAhead, len(found))])
		}
		if settled && !s.diesBy(of.Fact) || o.has(s) {
			continue
		}
		switch s.cut(reasonOf(of.Fact.Verb), &of.Fact, o) {
		case stLogin:
			logins = append(logins, s)
		case stLive, stEnding:
			batches[s.loop] = append(batches[s.loop], s)
		case stEnrolling: // the loop looks at the gate before it reads anything
		case stEnded: // nothing can pass; what is left of it reports by itself
			s.advance(prCut)
		}
	}
	o.stamp()
	for l, batch := range batches {
		l.cut(batch)
	}
	if len(logins) > 0 {
		go func() {
			for _, s := range logins {
				s.awaitWrite()
				s.advance(prCut)
			}
		}()
	}
}

// fetchAhead is how many sessions a revocation has brought into the cache before it locks the first of them. Sessions of one
// person lie anywhere in memory. Loads alone wait for memory side by side; behind a lock each would wait for the one
// before, and 100 sessions among 100,000 take three times as long.
const fetchAhead = 128

func fetchGates(sessions []*session) {
	for _, s := range sessions {
		s.gate.Load()
	}
}

// diesBy tells whether a settled fact ends the session: it began before the fact's place in the journal.
func (s *session) diesBy(f revoke.Fact) bool { return s.authSeq.Before(f.Position()) }

func reasonOf(v revoke.Verb) Reason {
	switch v {
	case revoke.VerbRevoke:
		return ReasonRevoked
	case revoke.VerbSuspend:
		return ReasonSuspended
	case revoke.VerbKill, revoke.VerbReinstate, revoke.VerbInvalid:
	}
	return ReasonKilled
}

// SessionCount is the number of sessions that clients hold now.
func (e *Engine) SessionCount() int { return int(e.admitted.Load()) }

// Sessions lists what the index holds; keep decides, nil keeps all.
func (e *Engine) Sessions(keep func(revoke.SessionInfo) bool) []revoke.SessionInfo {
	var out []revoke.SessionInfo
	for _, s := range e.index.all() {
		if info, _ := s.info(); keep == nil || keep(info) {
			out = append(out, info)
		}
	}
	return out
}

// info is what session lists show; live says that the session has a backend.
func (s *session) info() (info revoke.SessionInfo, live bool) {
	info = revoke.SessionInfo{
		ID: s.id, Node: s.eng.cfg.Node, Principal: s.identity.Principal, Role: s.identity.Role,
		Database: s.identity.Database, Client: s.clientString(), Application: s.application,
		Since: s.began.UTC(), State: s.stateName(),
	}
	s.mu.Lock()
	live = s.state == stLive
	s.mu.Unlock()
	if live {
		info.BackendPID = s.key.PID
		info.Upstream = s.link.remote.String()
		if at := s.lastActive.Load(); at > 0 && info.State != "active" {
			info.IdleSeconds = time.Duration(s.now() - at).Seconds()
		}
	}
	return info, live
}

// Reload replaces limits, timeouts and contact. MaxSessions and MaxLogins are taken at the next start only.
func (e *Engine) Reload(l Limits, t Timeouts, contact string) {
	c := Config{Limits: l, Timeouts: t}
	c.setDefaults()
	e.applySettings(c.Limits, c.Timeouts, contact)
	for _, l := range e.running() {
		l.post(func() { l.rearmAll() })
	}
}

func (e *Engine) applySettings(l Limits, t Timeouts, contact string) {
	e.settings.Store(&settings{limits: l, timeouts: t, contact: contact})
}

func (e *Engine) limits() *Limits     { return &e.settings.Load().limits }
func (e *Engine) timeouts() *Timeouts { return &e.settings.Load().timeouts }

// Stop closes the listeners and every session and waits until all is gone, at the latest when ctx ends.
func (e *Engine) Stop(ctx context.Context) error {
	var err error
	e.stopOnce.Do(func() {
		e.draining.Store(true)
		for _, ln := range e.listeners {
			ln.Close()
		}
		close(e.done)
		e.logins.stop()
		// An enroll while gnet stops would wait for ever: all logins end first.
		waitFor(ctx, &e.logins.running)
		e.drainLoops(true)
		for e.admitted.Load() > 0 && ctx.Err() == nil {
			time.Sleep(time.Millisecond)
		}
		e.controls.close()
		// What the control connections have just given up on, and what cancel requests come to, is still written into receipts.
		e.awaitLoops()
		waitFor(ctx, &e.fallbacks)
		e.awaitLoops()
		close(e.stopping)
		e.clock.stop()
		e.drains.close()
		if e.client != nil {
			err = e.client.Stop()
		}
		waitFor(ctx, &e.background)
	})
	return err
}

// awaitLoops returns when every loop has done what had been posted to it. A stop that is out of time waits all the
// same: it is a matter of microseconds.
func (e *Engine) awaitLoops() {
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	var posted sync.WaitGroup
	for _, l := range e.loops {
		posted.Add(1)
		l.post(posted.Done)
	}
	waitFor(ctx, &posted)
}

func waitFor(ctx context.Context, wg *sync.WaitGroup) {
	gone := make(chan struct{})
	go func() { wg.Wait(); close(gone) }()
	select {
	case <-gone:
	case <-ctx.Done():
	}
}

// newSessionID numbers sessions of this boot; the boot's own time makes the number differ between boots.
func (e *Engine) newSessionID() string {
	n := uint64(e.epoch.UnixMilli())<<20 + e.nextID.Add(1)
	return e.cfg.Node + "-" + strconv.FormatUint(n, 36)
}

// forget removes what is left of a session from the index.
func (e *Engine) forget(s *session) { e.index.remove(s) }

func (e *Engine) publishReceipt(o *order, stage progress) {
	r := o.receipt(stage)
	e.metrics.stage(stage, &r)
	if r.Revocation != "" {
		e.cfg.OnReceipt(r)
	}
}

func (e *Engine) auditOrder(of revoke.Order, settled bool) {
	if !settled {
		return
	}
	f := of.Fact
	e.cfg.OnAudit(AuditEvent{Time: time.Now(), Kind: "revocation", Revocation: f.ID, Reason: f.Verb.String(),
		Detail: fmt.Sprintf("%s seq %d %s", f.Scope.Token(), f.Seq, f.Reason)})
}

// bugf reports that pgedge's own state is wrong. Tests set bugPanics.
func (e *Engine) bugf(format string, args ...any) {
	e.metrics.bugs.Inc()
	e.log.Error("bug: "+fmt.Sprintf(format, args...), "stack", string(debug.Stack()))
	if bugPanics {
		panic(fmt.Sprintf(format, args...))
	}
}

var bugPanics bool
