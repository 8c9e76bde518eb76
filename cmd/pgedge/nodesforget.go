package main

import (
	"bufio"
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"pgedge/cluster"
	"pgedge/revoke"
)

type forgottenJSON struct {
	Node    string `json:"node"`
	Boot    string `json:"boot"`
	Was     string `json:"was"` // silent | gone
	HeardMS int64  `json:"heard_ms"`
	By      string `json:"forgotten_by"`
	Seq     uint64 `json:"seq"`
}

func (a *app) nodesForgetCommand() *cobra.Command {
	var connect connectFlags
	var boot string
	var yes bool
	cmd := &cobra.Command{
		Use:   "forget NODE",
		Short: "Declare that a silent node does not run any more, so that nothing waits for it",
		Long: `Declare that the process of a silent or gone node does not run any more: its machine is off, or its process was
killed. From then on no verdict waits for it; for a day every receipt's verdict names it as forgotten, and by whom.

You assert what pgedge cannot see. If the process does run, cut off from NATS, it may go on serving as long as its
lease and on_stale let it, and a verdict that says "complete" does not speak of it. A process that comes back
announces itself again and counts as before.

A node that is live is refused: stop it, and it says goodbye by itself. Starting a killed node again with the same
state directory does the same without any assertion. Revocations that are being waited for at this moment are not
affected. It needs the operator's rights on NATS.

Asks on a terminal, else needs --yes.`,
		Example: "  pgedge nodes forget edge-c\n  pgedge nodes forget edge-c --boot 01JD2Z8QH4Y6K3T9V5B7N1M0XA --yes",
		Args:    oneArg("NODE"),
		RunE: func(cmd *cobra.Command, args []string) error {
			if !revoke.ValidNodeID(args[0]) {
				return usageErrorf("%q is no node id", args[0])
			}
			if boot != "" && !revoke.ValidID(boot) {
				return usageErrorf("--boot %q is no boot id", boot)
			}
			if !yes && !isTerminal(a.io.in) {
				return usageErrorf("nodes forget needs --yes where nobody can be asked: you assert that the process does not run")
			}
			client, err := connect.dial(cmd.Context())
			if err != nil {
				return err
			}
			defer client.Close()
			return a.forgetNode(cmd.Context(), client, args[0], boot, yes)
		},
	}
	connect.register(cmd)
	complete := completer{&connect}
	cmd.ValidArgsFunction = complete.silentNodes
	cmd.Flags().StringVar(&boot, "boot", "", "which boot, where several are silent")
	cmd.Flags().BoolVar(&yes, "yes", false, "do not ask")
	must(cmd.RegisterFlagCompletionFunc("boot", complete.silentBoots))
	return cmd
}

func (a *app) forgetNode(ctx context.Context, client *cluster.Client, node, boot string, yes bool) error {
	info, err := client.FindForgettable(ctx, node, boot)
	if err != nil {
		return err
	}
	p := info.Presence
	heard := age(time.Duration(info.HeardMS) * time.Millisecond)
	if !yes {
		fmt.Fprintf(a.io.err, "%s (boot %s) was heard %s ago with %s. You assert that its process does not run any more.\n",
			p.Node, p.Boot, heard, count(p.Sessions, "session", "sessions"))
		if !p.Fences() {
			fmt.Fprintf(a.io.err, "It announced that it serves on without NATS: if it runs, nothing ends its sessions.\n")
		}
		fmt.Fprintf(a.io.err, "Type %s to go on: ", p.Node)
		line, err := bufio.NewReader(a.io.in).ReadString('\n')
		if err != nil || strings.TrimSpace(line) != p.Node {
			return fmt.Errorf("nothing was done")
		}
	}
	by := actor()
	seq, err := client.Forget(ctx, info, by)
	if err != nil {
		return err
	}
	if a.json() {
		return a.printJSON(forgottenJSON{p.Node, p.Boot, info.Status, info.HeardMS, by, seq})
	}
	fmt.Fprintf(a.io.out, "forgotten  %s  boot %s  seq %d  (%s, heard %s ago)\n", p.Node, p.Boot, seq, info.Status, heard)
	return nil
}
