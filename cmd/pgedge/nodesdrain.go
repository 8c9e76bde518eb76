package main

import (
	"context"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"pgedge/cluster"
	"pgedge/revoke"
)

const (
	// drainSlack is what nodes drain allows for beyond what the node has announced: the goodbye, with its receipts,
	// and its way here.
	drainSlack = leaveTimeout + 5*time.Second
	// drainLook is how often what has been heard of the node is looked at.
	drainLook = 50 * time.Millisecond
)

// drainJSON is one line of nodes drain -o json. The last one says left, or how it ended otherwise.
type drainJSON struct {
	Node     string `json:"node"`
	Boot     string `json:"boot"`
	State    string `json:"state"` // serving | draining | left | ended
	Sessions int    `json:"sessions"`
	AfterMS  int64  `json:"after_ms"`
}

func (a *app) nodesDrainCommand() *cobra.Command {
	var connect connectFlags
	var wait time.Duration
	var noWait bool
	cmd := &cobra.Command{
		Use:   "drain NODE [--wait D | --no-wait]",
		Short: "Make a node end, as SIGTERM would, and watch it leave",
		Long: `Make a node drain and end, from anywhere, as SIGTERM would on its machine. Its /readyz says 503 at once. For
timeouts.drain_delay it goes on as before, so that load balancers notice; then new logins are refused (57P03), every
session ends at its next sync point (57P01), at the latest after timeouts.drain, and the node says goodbye. Cancel
requests work until the end.

The process then ends with exit code 0. Whether it is started again is up to what started it: systemd does not with
Restart=on-failure, Kubernetes does.

Waits until the node has left and prints its sessions as they become fewer. Exit code 0: it has left; 4: not yet, it
goes on draining. It needs the operator's rights on NATS.`,
		Example: "  pgedge nodes drain edge-b\n  pgedge nodes drain edge-b --wait 10m\n  pgedge nodes drain edge-b --no-wait",
		Args:    oneArg("NODE"),
		RunE: func(cmd *cobra.Command, args []string) error {
			waits := cmd.Flags().Changed("wait")
			switch {
			case !revoke.ValidNodeID(args[0]):
				return usageErrorf("%q is no node id", args[0])
			case waits && noWait:
				return usageErrorf("--wait and --no-wait exclude each other")
			case waits && (wait <= 0 || wait > maxWait):
				return usageErrorf("--wait %s: is out of range: more than 0, up to 24h", wait)
			}
			client, err := connect.dial(cmd.Context())
			if err != nil {
				return err
			}
			defer client.Close()
			began := time.Now()
			plan, err := client.Drain(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			if !waits {
				wait = plan.Limit() + drainSlack
			}
			if err := a.printDrain(drainJSON{plan.Node, plan.Boot, revoke.StateDraining, plan.Sessions, time.Since(began).Milliseconds()}); err != nil || noWait {
				return err
			}
			return a.watchDrain(cmd.Context(), client, plan, began, wait)
		},
	}
	connect.register(cmd)
	complete := completer{&connect}
	cmd.ValidArgsFunction = func(cmd *cobra.Command, args []string, prefix string) ([]string, cobra.ShellCompDirective) {
		if len(args) > 0 {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		return complete.nodes(cmd, args, prefix)
	}
	cmd.Flags().DurationVar(&wait, "wait", 0, "at most this long (default: what the node's timeouts allow, and some seconds)")
	cmd.Flags().BoolVar(&noWait, "no-wait", false, "return when the node has agreed")
	return cmd
}

// watchDrain prints a line whenever the node has announced something new, until it has left.
func (a *app) watchDrain(ctx context.Context, client *cluster.Client, plan cluster.DrainPlan, began time.Time, wait time.Duration) error {
	ctx, cancel := context.WithDeadline(ctx, began.Add(wait))
	defer cancel()
	look := time.NewTicker(drainLook)
	defer look.Stop()
	last := drainJSON{Node: plan.Node, Boot: plan.Boot, State: revoke.StateDraining, Sessions: plan.Sessions}
	for {
		select {
		case <-look.C:
		case <-ctx.Done():
			if ctx.Err() == context.Canceled {
				return context.Canceled
			}
			return &codeError{exitUnproven, fmt.Errorf("node %s has not left within %s; it was last heard with %s and goes on draining",
				plan.Node, wait, count(last.Sessions, "session", "sessions"))}
		}
		now := last
		if p, ok := client.Presence(plan.Node, plan.Boot); ok && (p.State == revoke.StateLeft || p.State == revoke.StateDraining && p.At.After(plan.At)) {
			now.State, now.Sessions = p.State, p.Sessions
		}
		if now.State != revoke.StateLeft && plan.Embeds && !client.Connected() {
			// The goodbye was stored before the server ended; this client may have been too far away to hear it.
			now.State = drainEnded
		}
		if now == last {
			continue
		}
		last = now
		now.AfterMS = time.Since(began).Milliseconds()
		if err := a.printDrain(now); err != nil || now.State == revoke.StateLeft || now.State == drainEnded {
			return err
		}
	}
}

// drainEnded stands for the end of a node that took its NATS server, and so its goodbye, with it.
const drainEnded = "ended"

func (a *app) printDrain(d drainJSON) error {
	if a.json() {
		return a.printJSON(d)
	}
	after := (time.Duration(d.AfterMS) * time.Millisecond).Round(time.Millisecond)
	var err error
	switch d.State {
	case revoke.StateLeft:
		_, err = fmt.Fprintf(a.io.out, "%s  left after %s\n", d.Node, after)
	case drainEnded:
		_, err = fmt.Fprintf(a.io.out, "%s  ended after %s, and with it the NATS server that it ran\n", d.Node, after)
	default:
		_, err = fmt.Fprintf(a.io.out, "%s  %s, %s\n", d.Node, d.State, count(d.Sessions, "session", "sessions"))
	}
	return err
}
