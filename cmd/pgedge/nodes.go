package main

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/spf13/cobra"

	"pgedge/cluster"
)

func (a *app) nodesCommand() *cobra.Command {
	var connect connectFlags
	cmd := &cobra.Command{
		Use:   "nodes",
		Short: "List the nodes: version, state, journal position, sessions",
		Long: `List every node that the journal knows of. A node is live while its heartbeats arrive within its lease, silent
after that, gone when it has been silent for ten leases, and left when it has said goodbye. A node that was started
again has one line per boot, the live one first.`,
		Example: "  pgedge nodes\n  pgedge nodes -o json",
		GroupID: groupLook,
		Args:    noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return connect.query(cmd.Context(), func(ctx context.Context, client *cluster.Client) error {
				nodes, err := client.Nodes(ctx)
				if err != nil {
					return err
				}
				return a.printNodes(nodes)
			})
		},
	}
	connect.register(cmd)
	for _, name := range []string{"drain", "forget"} {
		cmd.AddCommand(laterCommand(name))
	}
	return cmd
}

// statusRank puts the boot that counts before what its node was earlier.
var statusRank = map[string]int{"live": 0, "silent": 1, "gone": 2, "left": 3}

func (a *app) printNodes(nodes []cluster.NodeInfo) error {
	slices.SortStableFunc(nodes, func(x, y cluster.NodeInfo) int {
		return cmp.Or(cmp.Compare(x.Presence.Node, y.Presence.Node), cmp.Compare(statusRank[x.Status], statusRank[y.Status]), cmp.Compare(x.HeardMS, y.HeardMS))
	})
	if a.json() {
		for _, n := range nodes {
			if err := a.printJSON(n); err != nil {
				return err
			}
		}
		return nil
	}
	t := newTable(a.io.out, "NODE", "STATUS", "STATE", "VERSION", "HEARD", "SEQ", "LAG", "SESSIONS", "UNSETTLED", "REJECTED", "NOTE")
	for _, n := range nodes {
		p := n.Presence
		state, sessions, applied, lag, note := p.State, p.Sessions, p.Applied, "", ""
		if r := n.Report; r != nil {
			state, sessions, applied, lag = r.State, r.Sessions, r.Applied, fmt.Sprint(r.JournalLag)
			switch {
			case r.Unwritable:
				note = "cannot write the journal"
			case r.NotReady != "":
				note = r.NotReady
			}
		} else if n.Status == "live" {
			note = "did not answer"
		}
		t.row(p.Node, n.Status, state, p.Version, age(time.Duration(n.HeardMS)*time.Millisecond), fmt.Sprint(applied), lag,
			fmt.Sprint(sessions), fmt.Sprint(p.Unsettled), fmt.Sprint(p.Rejected), note)
	}
	return t.flush()
}
