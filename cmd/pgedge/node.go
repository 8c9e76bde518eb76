package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/signal"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/VictoriaMetrics/metrics"

	"pgedge/admin"
	"pgedge/audit"
	"pgedge/cluster"
	"pgedge/cmd/pgedge/config"
	"pgedge/engine"
	"pgedge/revoke"
)

const (
	// leaveTimeout bounds the goodbye: pending receipts and the last presence.
	leaveTimeout = 10 * time.Second
	// stopTimeout bounds what is left after the drain, and everything after a second signal.
	stopTimeout = 3 * time.Second
)

// Messages that the demo reads in the log of its nodes.
const (
	logAccepting = "accepting Postgres clients"
	logReady     = "ready"
)

type serveParams struct {
	cfg      *config.Config
	warnings []config.Problem
	// reload reads the configuration again, from the same sources.
	reload func() (*config.Config, *config.Report)
	log    *slog.Logger
	// ready, when set, is called once the node serves; tests use it.
	ready func(*runningNode)
}

// runningNode is a node and its parts, in the order in which they start. They stop in the reverse order, but for
// admin: a load balancer must be able to read that the node drains.
type runningNode struct {
	serveParams
	metrics *metrics.Set
	stage   atomic.Pointer[string] // why the start is not finished; "" once it is

	admin *admin.Server
	trail *audit.Trail
	late  lateEngine
	node  atomic.Pointer[cluster.Node]
	eng   *engine.Engine
	drain drainOrders
	tell  notifier
}

// serve runs a node until a signal, the end of ctx, or an error that only a restart can cure.
func serve(ctx context.Context, p serveParams) error {
	signals := make(chan os.Signal, 4)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	defer signal.Stop(signals)
	n := &runningNode{serveParams: p, metrics: metrics.NewSet(), drain: drainOrders{given: make(chan struct{})}, tell: notifier{p.log}}
	for _, w := range p.warnings {
		n.log.Warn("configuration", "problem", w.String())
	}

	startCtx, cancelStart := context.WithCancel(ctx)
	defer cancelStart()
	started := make(chan error, 1)
	go func() { started <- n.start(startCtx) }()
	for running := false; ; {
		var fatal <-chan struct{}
		if node := n.node.Load(); running && node != nil {
			fatal = node.FatalC()
		}
		select {
		case err := <-started:
			if err != nil {
				n.stop(false, nil)
				return err
			}
			running = true
			n.planDrain()
			n.tell.ready("serving")
			go n.tell.watchdog(startCtx, n.eng.Responds)
			if n.ready != nil {
				n.ready(n)
			}
		case s := <-signals:
			switch {
			case s == syscall.SIGHUP && running:
				n.reloadConfig(ctx)
			case s == syscall.SIGHUP:
				n.log.Warn("SIGHUP is ignored while the node starts")
			case !running:
				cancelStart()
				<-started
				n.stop(false, signals)
				return errors.New("stopped by a signal while starting")
			default:
				n.log.Info("stopping", "signal", s.String(), "delay", n.cfg.Timeouts.DrainDelay.String(), "drain", n.cfg.Timeouts.Drain.String())
				n.stop(true, signals)
				return nil
			}
		case <-n.drain.given:
			n.log.Info("draining, as pgedge nodes drain has asked", "delay", n.cfg.Timeouts.DrainDelay.String(), "drain", n.cfg.Timeouts.Drain.String())
			n.stop(true, signals)
			return nil
		case <-fatal:
			err := n.node.Load().FatalErr()
			n.stop(false, signals)
			return fmt.Errorf("cannot go on: %w", err)
		case <-ctx.Done():
			if !running {
				<-started
			}
			n.stop(running, signals)
			return nil
		}
	}
}

func (n *runningNode) setStage(s string) {
	n.stage.Store(&s)
	if s != "" {
		n.tell.status(s)
	}
}

// readiness is what /readyz says. The node's own reason is more exact than the stage of the start, and the stage
// covers the time between a ready node and open listeners.
func (n *runningNode) readiness() error {
	stage := *n.stage.Load()
	if node := n.node.Load(); node != nil {
		if ok, why := node.Ready(); !ok {
			return errors.New(why)
		}
	}
	if stage != "" {
		return errors.New(stage)
	}
	return nil
}

// start brings everything up in order. Clients are accepted only once the journal has been replayed.
func (n *runningNode) start(ctx context.Context) error {
	began := time.Now()
	cfg := n.cfg
	if _, _, err := n.listeners(); err != nil {
		return err
	}
	n.tell.status("starting")
	n.log.Info("starting", "node", cfg.Node, "version", programVersion(), "state_dir", cfg.StateDir)
	n.setStage("connecting to the journal")
	if cfg.Admin != "" {
		srv := admin.New(admin.Config{Listen: cfg.Admin, Ready: n.readiness, Sets: []*metrics.Set{n.metrics}, Logger: n.log})
		if err := srv.Start(); err != nil {
			return err
		}
		n.admin = srv
		n.log.Info("serving health and metrics", "address", srv.Addr().String())
	}
	node, err := cluster.Start(ctx, cluster.Config{
		Node: cfg.Node, Version: programVersion(), StateDir: cfg.StateDir,
		NATS: natsAddress(cfg.Cluster), Credentials: natsCredentials(cfg.Cluster), Listen: cfg.Cluster.Listen,
		Routes: natsRoutes(cfg.Cluster.Routes), Replicas: cfg.Cluster.Replicas, OnWaiting: n.setStage,
		Heartbeat: cfg.Cluster.Heartbeat, Lease: cfg.Cluster.Lease, Freeze: cfg.Cluster.Freeze, OnStale: cfg.Cluster.OnStale,
		Canary: n.newCanary(),
		Cancel: n.late.Cancel,
		Drain:  n.takeDrainOrder,
		Logger: n.log, Metrics: n.metrics,
	}, &n.late)
	if err != nil {
		return err
	}
	n.node.Store(node)
	if err := n.startAudit(node.Boot()); err != nil {
		return err
	}
	if err := n.makeEngine(node); err != nil {
		return err
	}
	n.setStage("the listeners are not open yet")
	select {
	case <-node.ReadyC():
	case <-node.FatalC():
		return fmt.Errorf("cannot go on: %w", node.FatalErr())
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	// Before the listeners open: a heartbeat that still says starting proves that nobody has been served.
	node.SetState(revoke.StateServing)
	if err := n.eng.Start(context.WithoutCancel(ctx)); err != nil {
		return err
	}
	// The servers and the addresses towards them are known now: others need them to act for this node.
	node.Announce()
	n.setStage("")
	for _, a := range n.eng.Addrs() {
		n.log.Info(logAccepting, "address", a.String())
	}
	n.log.Info(logReady, "took", time.Since(began).Round(time.Millisecond).String(), "revoke", n.howToRevoke())
	return nil
}

func natsAddress(c config.Cluster) string {
	if c.Embedded() {
		return cluster.Embedded
	}
	urls := make([]string, len(c.URLs))
	for i, u := range c.URLs {
		urls[i] = u.Reveal()
	}
	return strings.Join(urls, ",")
}

func natsCredentials(c config.Cluster) cluster.Credentials {
	return cluster.Credentials{CredsFile: c.CredsFile, CAFile: c.TLS.CAFile, CertFile: c.TLS.CertFile, KeyFile: c.TLS.KeyFile}
}

func natsRoutes(r config.Routes) cluster.Routes {
	return cluster.Routes{Listen: r.Listen, Peers: r.Peers, Secret: r.Secret.Reveal(),
		CAFile: r.TLS.CAFile, CertFile: r.TLS.CertFile, KeyFile: r.TLS.KeyFile}
}

func (n *runningNode) startAudit(boot string) error {
	if n.cfg.Audit.File == "" {
		return nil
	}
	trail, err := audit.Open(audit.Config{Path: n.cfg.Audit.File, Node: n.cfg.Node, Boot: boot, Logger: n.log, Metrics: n.metrics})
	if err != nil {
		return err
	}
	n.trail = trail
	return nil
}

func (n *runningNode) makeEngine(node *cluster.Node) error {
	cfg, err := engineConfig(n.cfg)
	if err != nil {
		return err
	}
	cfg.Boot = node.Boot()
	cfg.Version = programVersion()
	cfg.Table = node.Table()
	cfg.Serving = func() error {
		if ok, why := node.Admits(); !ok {
			return errors.New(why)
		}
		return nil
	}
	cfg.ForwardCancel = node.ForwardCancel
	cfg.Fresh = node.Fresh
	cfg.OnReceipt = node.PublishReceipt
	if n.trail != nil {
		cfg.OnAudit = func(e engine.AuditEvent) { n.trail.Record(auditRecord(e)) }
	}
	cfg.Logger = n.log
	cfg.Metrics = n.metrics
	if cfg.Listen, cfg.Listeners, err = n.listeners(); err != nil {
		return err
	}
	eng, err := engine.New(cfg)
	if err != nil {
		return err
	}
	n.eng = eng
	if !n.late.attach(eng) {
		return errors.New("cannot start: more revocations arrived than a starting node can hold; start it again")
	}
	return nil
}

// newCanary is nil without a canary in the configuration.
func (n *runningNode) newCanary() cluster.Canary {
	if n.cfg.Drill.User == "" {
		return nil
	}
	return &canary{cfg: n.cfg.Drill,
		listens: func() []net.Addr {
			if *n.stage.Load() != "" {
				return nil // the engine is not there yet, or its listeners are not
			}
			return n.eng.Addrs()
		},
		applied: func() uint64 { return n.node.Load().Table().Applied() },
	}
}

// engineConfig translates the part of the configuration that the engine knows.
func engineConfig(c *config.Config) (engine.Config, error) {
	databases := make(map[string]engine.Database, len(c.Databases))
	for name, d := range c.Databases {
		up, err := engine.ParseUpstream(d.Upstream.Reveal())
		if err != nil {
			return engine.Config{}, fmt.Errorf("databases.%s: %w", name, err)
		}
		if d.ControlUser != "" {
			up.Control = &engine.Credential{User: d.ControlUser, Password: d.ControlPassword.Reveal()}
		}
		databases[name] = engine.Database{Upstream: up, MaxBackends: d.MaxBackends, Sweep: d.Sweep}
	}
	return engine.Config{
		Node: c.Node, Listen: c.Listen, Databases: databases,
		Limits: engineLimits(c), Timeouts: engineTimeouts(c),
		VerifyTimeout: c.Cluster.VerifyTimeout, FreezeInTransaction: c.Cluster.FreezeInTransaction, Contact: c.Contact,
		Loops: c.Loops,
	}, nil
}

func engineLimits(c *config.Config) engine.Limits {
	return engine.Limits{MaxSessions: c.Limits.MaxSessions, MaxLogins: c.Limits.MaxLogins,
		LoginTimeout: c.Limits.LoginTimeout, PerPrincipal: c.Limits.PerPrincipal}
}

func engineTimeouts(c *config.Config) engine.Timeouts {
	return engine.Timeouts{IdleSession: c.Timeouts.IdleSession, IdleInTransaction: c.Timeouts.IdleInTransaction,
		SessionMax: c.Timeouts.SessionMax, Drain: c.Timeouts.Drain}
}

// howToRevoke is the command that reaches this node from this machine.
func (n *runningNode) howToRevoke() string {
	if !n.cfg.Cluster.Embedded() {
		return "pgedge revoke NAME --nats URL"
	}
	if d, err := config.DefaultStateDir(); err == nil && d == n.cfg.StateDir {
		return "pgedge revoke NAME"
	}
	return "pgedge revoke NAME --state-dir " + n.cfg.StateDir
}
