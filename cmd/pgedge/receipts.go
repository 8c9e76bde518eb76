package main

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"pgedge/revoke"
)

func (a *app) receiptsCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:     "receipts",
		Short:   "Show the evidence of a revocation",
		Long:    "Receipts are what each node has recorded about each revocation: which sessions it cut, when, and what became of their backends and transactions.",
		Example: "  pgedge receipts show 01JD2Z8QH4Y6K3T9V5B7N1M0XA",
		GroupID: groupLook,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) > 0 {
				return usageErrorf("unknown command %q for %q", args[0], cmd.CommandPath())
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, _ []string) error {
			return usageErrorf("say what to do with receipts: show ID")
		},
	}
	cmd.AddCommand(a.receiptsShowCommand(), laterCommand("export"), laterCommand("verify"))
	return cmd
}

func (a *app) receiptsShowCommand() *cobra.Command {
	var connect connectFlags
	cmd := &cobra.Command{
		Use:   "show ID",
		Short: "Show the receipts of one revocation, of all nodes",
		Long: `Show what every node has recorded about one revocation. ID is what revoke, suspend and kill print as "stored".
With -o json, one receipt per line and node, in the form pgedge.receipt/v1.`,
		Example: "  pgedge receipts show 01JD2Z8QH4Y6K3T9V5B7N1M0XA\n  pgedge receipts show seq-48213 -o json | jq .sessions",
		Args:    oneArg("ID"),
		RunE: func(cmd *cobra.Command, args []string) error {
			if !revoke.ValidID(args[0]) {
				return usageErrorf("%q is not a revocation id", args[0])
			}
			client, err := connect.dial(cmd.Context())
			if err != nil {
				return err
			}
			defer client.Close()
			ctx, cancel := context.WithTimeout(cmd.Context(), queryTimeout)
			defer cancel()
			receipts, err := client.Receipts(ctx, args[0])
			if err != nil {
				return err
			}
			if len(receipts) == 0 {
				return fmt.Errorf("no receipt of %s: the id is unknown, no node has answered yet, or it is older than 13 months", args[0])
			}
			return a.printReceipts(receipts)
		},
	}
	connect.register(cmd)
	cmd.ValidArgsFunction = completer{&connect}.revocations
	return cmd
}

func (a *app) printReceipts(receipts []revoke.Receipt) error {
	slices.SortFunc(receipts, func(x, y revoke.Receipt) int {
		return cmp.Or(cmp.Compare(x.Node, y.Node), cmp.Compare(x.Boot, y.Boot))
	})
	if a.json() {
		for _, r := range receipts {
			if err := a.printJSON(r); err != nil {
				return err
			}
		}
		return nil
	}
	r := receipts[0]
	w := a.io.out
	fmt.Fprintf(w, "revocation  %s  seq %d\n", r.Revocation, r.Seq)
	fmt.Fprintf(w, "fact        %s %s\n", r.Verb, printable(r.Scope))
	for _, line := range [][2]string{{"reason", r.Reason}, {"by", r.Actor}, {"source", r.Source}} {
		if line[1] != "" {
			fmt.Fprintf(w, "%-10s  %s\n", line[0], printable(line[1]))
		}
	}
	if !r.PublishedAt.IsZero() {
		fmt.Fprintf(w, "published   %s\n", stamp(r.PublishedAt))
	}
	for _, r := range receipts {
		if err := printReceipt(w, r); err != nil {
			return err
		}
	}
	return nil
}

func printReceipt(w io.Writer, r revoke.Receipt) error {
	fmt.Fprintf(w, "\nnode %s  (boot %s, version %s)\n", r.Node, r.Boot, printable(r.Version))
	if r.SupersededBy > 0 {
		fmt.Fprintf(w, "  answered by the newer fact of the same scope, seq %d\n", r.SupersededBy)
	}
	fmt.Fprintf(w, "  %s, received by %s path at %s, %s matched", r.Stage, r.ReceivedVia, stamp(r.ReceivedAt), count(r.Matched, "session", "sessions"))
	if r.Unverified > 0 {
		fmt.Fprintf(w, ", %d not seen gone", r.Unverified)
	}
	fmt.Fprintf(w, "\n  %s\n", pace(r))
	if res := residue([]revoke.Receipt{r}); res != "" {
		fmt.Fprintf(w, "  left behind: %s\n", res)
	}
	if len(r.Sessions) == 0 {
		if r.Matched > 0 {
			fmt.Fprintln(w, "  the sessions' pages are not stored yet")
		}
		return nil
	}
	t := newTable(w, "  SESSION", "PRINCIPAL", "DATABASE", "CLIENT", "APPLICATION", "WAS", "CUT", "BACKEND", "PID", "TRANSACTION", "VERIFIED", "BYTES AFTER")
	for _, s := range r.Sessions {
		xact := s.Xact
		if s.MorePossible {
			xact += " (more possible)"
		}
		verified := "yes"
		if !s.Verified {
			verified = "no"
			if s.Why != "" {
				verified += ": " + s.Why
			}
		}
		t.row("  "+s.ID, s.Principal, s.Database, s.Client, s.Application, s.State, s.Cut, s.Backend, fmt.Sprint(s.BackendPID), xact, verified, fmt.Sprint(s.BytesAfter))
	}
	return t.flush()
}

// pace says how long each stage took on the node, from the moment it received the fact.
func pace(r revoke.Receipt) string {
	s := "cut after " + microseconds(r.CutUS)
	if r.Stage != revoke.StageCut {
		s += ", closed after " + microseconds(r.ClosedUS)
	}
	if r.Stage == revoke.StageVerified && r.Unverified == 0 {
		s += ", verified after " + microseconds(r.VerifiedUS)
	}
	return s
}

// whys lists the different reasons for which sessions were not verified, each with its count.
func whys(receipts []revoke.Receipt) []string {
	counts := map[string]int{}
	for _, r := range receipts {
		for _, s := range r.Sessions {
			if !s.Verified && s.Why != "" {
				counts[s.Why]++
			}
		}
	}
	out := make([]string, 0, len(counts))
	for why, n := range counts {
		out = append(out, fmt.Sprintf("%s (%s)", why, count(n, "session", "sessions")))
	}
	slices.Sort(out)
	return out
}

// residue says what a kill could not undo. Several nodes count the same database, so the largest count stands.
func residue(receipts []revoke.Receipt) string {
	var most revoke.Residue
	for _, r := range receipts {
		if r.Residue == nil {
			continue
		}
		most.PreparedXacts = max(most.PreparedXacts, r.Residue.PreparedXacts)
		most.ReplicationSlots = max(most.ReplicationSlots, r.Residue.ReplicationSlots)
		most.DirectSessions = max(most.DirectSessions, r.Residue.DirectSessions)
	}
	var parts []string
	for _, p := range []struct {
		n         int
		one, many string
	}{
		{most.PreparedXacts, "prepared transaction", "prepared transactions"},
		{most.ReplicationSlots, "replication slot", "replication slots"},
		{most.DirectSessions, "session that bypasses pgedge", "sessions that bypass pgedge"},
	} {
		if p.n > 0 {
			parts = append(parts, count(p.n, p.one, p.many))
		}
	}
	return strings.Join(parts, ", ")
}
