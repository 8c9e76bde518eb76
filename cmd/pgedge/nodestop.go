package main

import (
	"context"
	"errors"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"pgedge/cluster"
	"pgedge/cmd/pgedge/config"
	"pgedge/revoke"
)

// reloadConfig applies what can be applied to a running node. A configuration with an error changes nothing.
func (n *runningNode) reloadConfig(ctx context.Context) {
	n.tell.reloading()
	defer n.tell.ready("serving")
	if n.trail != nil {
		reopenCtx, cancel := context.WithTimeout(ctx, stopTimeout)
		if err := n.trail.Reopen(reopenCtx); err != nil {
			n.log.Error("SIGHUP: audit file stays as it is", "error", err)
		}
		cancel()
	}
	cfg, report := n.reload()
	for _, p := range report.Errors {
		n.log.Error("SIGHUP: configuration", "problem", p.String())
	}
	if len(report.Errors) > 0 {
		n.log.Error("SIGHUP: nothing was changed", "errors", len(report.Errors))
		return
	}
	for _, w := range report.Warnings {
		n.log.Warn("SIGHUP: configuration", "problem", w.String())
	}
	n.eng.Reload(engineLimits(cfg), engineTimeouts(cfg), cfg.Contact)
	if keys := config.NeedsRestart(n.cfg, cfg); len(keys) > 0 {
		n.log.Warn("SIGHUP: some changes need a restart", "keys", strings.Join(keys, ", "))
	}
	// The rest of n.cfg stays what the process runs with, so that the next reload names the same keys again.
	n.cfg.Limits.LoginTimeout, n.cfg.Limits.PerPrincipal = cfg.Limits.LoginTimeout, cfg.Limits.PerPrincipal
	n.cfg.Timeouts, n.cfg.Contact = cfg.Timeouts, cfg.Contact
	n.planDrain()
	n.log.Info("SIGHUP: limits.login_timeout, limits.per_principal, timeouts and contact reloaded")
}

// drainOrders is how pgedge nodes drain reaches the loop of serve.
type drainOrders struct {
	plan  atomic.Pointer[cluster.DrainPlan] // what a drain would take; nil until the start is over
	once  sync.Once
	given chan struct{} // closed by the first order
}

// planDrain takes over the timeouts that are in force now.
func (n *runningNode) planDrain() {
	t := n.cfg.Timeouts
	n.drain.plan.Store(&cluster.DrainPlan{DelayMS: t.DrainDelay.Milliseconds(), DrainMS: t.Drain.Milliseconds()})
}

// takeDrainOrder implements the Drain of cluster.Config.
func (n *runningNode) takeDrainOrder() (cluster.DrainPlan, error) {
	plan := n.drain.plan.Load()
	if plan == nil {
		return cluster.DrainPlan{}, errors.New("it has not finished its start")
	}
	n.drain.once.Do(func() { close(n.drain.given) })
	return *plan, nil
}

// stop takes everything down. With drain, sessions may finish what they are doing; a second signal cuts that short.
func (n *runningNode) stop(drain bool, signals <-chan os.Signal) {
	n.tell.stopping(n.cfg.Timeouts.DrainDelay + n.cfg.Timeouts.Drain + leaveTimeout + 5*stopTimeout)
	ctx, hurry := context.WithCancel(context.Background())
	defer hurry()
	go func() {
		for {
			select {
			case s := <-signals:
				if s != syscall.SIGHUP {
					n.log.Warn("stopping at once", "signal", s.String())
					hurry()
					return
				}
			case <-ctx.Done():
				return
			}
		}
	}()
	bounded := func(limit time.Duration, f func(context.Context)) {
		c, cancel := context.WithTimeout(ctx, limit)
		defer cancel()
		f(c)
	}
	node := n.node.Load()
	if n.eng != nil {
		if drain {
			// From here on /readyz says 503; for the delay everything else goes on, since load balancers have to notice.
			node.SetState(revoke.StateDraining)
			if d := n.cfg.Timeouts.DrainDelay; d > 0 {
				bounded(d, func(c context.Context) { <-c.Done() })
			}
			bounded(n.cfg.Timeouts.Drain, n.eng.Drain)
		}
		// Not cut short by a hurry: without it the sockets would be left to the kernel and clients to guess.
		stopCtx, cancel := context.WithTimeout(context.Background(), stopTimeout)
		if err := n.eng.Stop(stopCtx); err != nil {
			n.log.Error("cannot stop the engine", "error", err)
		}
		cancel()
	}
	if node != nil {
		bounded(leaveTimeout, func(c context.Context) {
			if err := node.Close(c); err != nil {
				n.log.Error("cannot leave the cluster cleanly", "error", err)
			}
		})
	}
	if n.trail != nil {
		bounded(stopTimeout, func(c context.Context) {
			if err := n.trail.Close(c); err != nil {
				n.log.Error("cannot close the audit file", "error", err)
			}
		})
	}
	if n.admin != nil {
		bounded(stopTimeout, func(c context.Context) {
			if err := n.admin.Close(c); err != nil {
				n.log.Error("cannot stop HTTP", "error", err)
			}
		})
	}
	n.log.Info("stopped")
}
