package main

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"slices"
	"time"

	"github.com/spf13/cobra"

	"pgedge/cluster"
	"pgedge/revoke"
)

// defaultSince is how far back receipts are listed, maxSince how long they are kept.
const (
	defaultSince = 24 * time.Hour
	maxSince     = 400 * 24 * time.Hour
)

func (a *app) receiptsCommand() *cobra.Command {
	var connect connectFlags
	var since time.Duration
	cmd := &cobra.Command{
		Use:   "receipts",
		Short: "List and show the evidence of revocations",
		Long: `Receipts are what each node has recorded about each revocation: which sessions it cut, when, and what became of their
backends and transactions. Without a subcommand, list those of the last day, oldest first, one line per revocation and node;
receipts show ID has the sessions.`,
		Example: "  pgedge receipts\n  pgedge receipts --since 72h -o json\n  pgedge receipts show 01JD2Z8QH4Y6K3T9V5B7N1M0XA",
		GroupID: groupLook,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) > 0 {
				return usageErrorf("unknown command %q for %q", args[0], cmd.CommandPath())
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, _ []string) error {
			if since <= 0 || since > maxSince {
				return usageErrorf("--since %s: is out of range: more than 0, up to %s", since, maxSince)
			}
			return connect.query(cmd.Context(), func(ctx context.Context, client *cluster.Client) error {
				list, truncated, err := client.ListReceipts(ctx, time.Now().Add(-since))
				if err != nil {
					return err
				}
				if truncated {
					fmt.Fprintf(a.io.err, "warning: only the newest %d receipts are listed\n", len(list))
				}
				return a.listReceipts(list)
			})
		},
	}
	connect.register(cmd)
	cmd.Flags().DurationVar(&since, "since", defaultSince, "how far back, for example 72h")
	cmd.AddCommand(a.receiptsShowCommand(), laterCommand("export"), laterCommand("verify"))
	return cmd
}

func (a *app) listReceipts(list []revoke.Receipt) error {
	if a.json() {
		for _, r := range list {
			r.Sessions = []revoke.SessionReceipt{} // receipts show ID has them
			if err := a.printJSON(r); err != nil {
				return err
			}
		}
		return nil
	}
	t := newTable(a.io.out, "RECEIVED", "FACT", "NODE", "STAGE", "SESSIONS", "NOT SEEN GONE", "BY", "REASON", "REVOCATION")
	for _, r := range list {
		stage := string(r.Stage)
		if !r.Final() {
			stage += ", not final"
		}
		t.row(stamp(r.ReceivedAt), r.Verb+" "+r.Scope, r.Node, stage, fmt.Sprint(r.Matched), fmt.Sprint(r.Unverified), r.Actor, r.Reason, r.Revocation)
	}
	if err := t.flush(); err != nil {
		return err
	}
	_, err := fmt.Fprintln(a.io.out, count(len(list), "receipt", "receipts"))
	return err
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
			return connect.query(cmd.Context(), func(ctx context.Context, client *cluster.Client) error {
				receipts, err := client.Receipts(ctx, args[0])
				if err != nil {
					return err
				}
				if len(receipts) == 0 {
					return fmt.Errorf("no receipt of %s: the id is unknown, no node has answered yet, or it is older than 13 months", args[0])
				}
				return a.printReceipts(receipts)
			})
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
	if len(r.Sessions) == 0 {
		if r.Matched > 0 && !r.Final() {
			fmt.Fprintln(w, "  the sessions come with the final receipt")
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
