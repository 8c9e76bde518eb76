package main

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"pgedge/cluster"
)

func (a *app) nodesCommand() *cobra.Command {
	var connect connectFlags
	var all bool
	cmd := &cobra.Command{
		Use:   "nodes",
		Short: "List the nodes: version, lease, journal position, sessions, state",
		Long: `List the nodes that the journal knows of. A node is live while its heartbeats arrive within its lease, silent
after that, gone when it has been silent for ten leases, and left when it has said goodbye. A node that was started
again has one line per boot, the live one first. LEASE is how long a node may go on without another heartbeat, as
seen from here.

Boots that were forgotten, by pgedge nodes forget or after a day of silence, are listed with --all only. A boot that
announced that it serves on without its lease is never forgotten by time alone.

NOTE says what is odd: that a node did not answer this question, that it cannot write the journal, that its table is
not the one that the journal gives, or that it follows another journal.`,
		Example: "  pgedge nodes\n  pgedge nodes --all\n  pgedge nodes -o json | jq -r 'select(.status == \"silent\") | .presence.node'",
		GroupID: groupLook,
		Args:    noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return connect.query(cmd.Context(), func(ctx context.Context, client *cluster.Client) error {
				nodes, err := client.Nodes(ctx)
				if err != nil {
					return err
				}
				if !all {
					now := time.Now()
					nodes = slices.DeleteFunc(nodes, func(n cluster.NodeInfo) bool { return !n.Presence.Listed(now) })
				}
				return a.printNodes(nodes)
			})
		},
	}
	connect.register(cmd)
	cmd.Flags().BoolVar(&all, "all", false, "forgotten boots too")
	cmd.AddCommand(a.nodesDrainCommand(), a.nodesForgetCommand())
	return cmd
}

// statusRank puts the boot that counts before what its node was earlier.
var statusRank = map[string]int{"live": 0, "silent": 1, "gone": 2, "left": 3, "forgotten": 4}

func (a *app) printNodes(nodes []cluster.NodeInfo) error {
	slices.SortStableFunc(nodes, func(x, y cluster.NodeInfo) int {
		return cmp.Or(cmp.Compare(x.Presence.Node, y.Presence.Node), cmp.Compare(statusRank[x.Status], statusRank[y.Status]), cmp.Compare(x.HeardMS, y.HeardMS))
	})
	var unanswered []string
	for _, n := range nodes {
		if n.Report == nil && (n.Status == "live" || n.Status == "silent") {
			unanswered = append(unanswered, n.Presence.Node)
		}
	}
	if len(unanswered) > 0 {
		fmt.Fprintf(a.io.err, "warning: no answer from %s; what is shown of them is their last heartbeat\n", strings.Join(slices.Compact(unanswered), ", "))
	}
	if a.json() {
		for _, n := range nodes {
			if err := a.printJSON(n); err != nil {
				return err
			}
		}
		return nil
	}
	t := newTable(a.io.out, "NODE", "STATUS", "STATE", "VERSION", "HEARD", "LEASE", "SEQ", "LAG", "SESSIONS", "UNSETTLED", "REJECTED", "NOTE")
	for _, n := range nodes {
		p := n.Presence
		state, sessions, unsettled, applied, lag := p.State, p.Sessions, p.Unsettled, p.Applied, ""
		if r := n.Report; r != nil {
			state, sessions, unsettled, applied, lag = r.State, r.Sessions, r.Unsettled, r.Applied, fmt.Sprint(r.JournalLag)
			if r.Stale {
				state = "stale"
			}
		}
		lease := ""
		switch {
		case n.LeaseLeftMS > 0:
			lease = age(time.Duration(n.LeaseLeftMS) * time.Millisecond)
		case n.Status == "silent" || n.Status == "gone":
			lease = "ended"
		}
		t.row(p.Node, n.Status, state, p.Version, age(time.Duration(n.HeardMS)*time.Millisecond), lease, fmt.Sprint(applied), lag,
			fmt.Sprint(sessions), fmt.Sprint(unsettled), fmt.Sprint(p.Rejected), strings.Join(nodeNotes(n), "; "))
	}
	return t.flush()
}

// nodeNotes are what an operator should know of a node, the worst first.
func nodeNotes(n cluster.NodeInfo) (notes []string) {
	p := n.Presence
	note := func(holds bool, text string) {
		if holds {
			notes = append(notes, text)
		}
	}
	silent := n.Status == "silent" || n.Status == "gone"
	note(n.OtherJournal, "follows another journal")
	note(n.TableDiffers, "its table differs from the journal's")
	note(p.Forgotten != "", "forgotten by "+p.Forgotten)
	note(silent && !p.Fences(), "serves on without NATS: boot "+p.Boot)
	note(silent && p.Fences(), "boot "+p.Boot)
	note(n.Report == nil && n.Status == "live", "did not answer")
	if r := n.Report; r != nil {
		note(r.Unwritable, "cannot write the journal")
		note(!r.Unwritable && r.NotReady != "", r.NotReady)
		note(r.ReceiptsPending > 0, count(r.ReceiptsPending, "receipt", "receipts")+" not stored yet")
	}
	return notes
}
