package main

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/oklog/ulid/v2"
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
	cmd.AddCommand(a.receiptsShowCommand(), a.receiptsExportCommand(), a.receiptsVerifyCommand())
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
The beginning of an id will do where it is the only one, at least four characters of it. Under an id that was used for several
facts the receipts of all of them are shown: those of the later ones bear the id with the fact's position behind it.

Live nodes without a receipt are named. With -o json, one receipt per line and node, in the form pgedge.receipt/v1.`,
		Example: "  pgedge receipts show 01JD2Z8QH4Y6K3T9V5B7N1M0XA\n  pgedge receipts show seq-48213 -o json | jq .sessions",
		Args:    oneArg("ID"),
		RunE: func(cmd *cobra.Command, args []string) error {
			if !revoke.ValidID(args[0]) {
				return usageErrorf("%q is not a revocation id", args[0])
			}
			return connect.query(cmd.Context(), func(ctx context.Context, client *cluster.Client) error {
				facts, err := findReceipts(ctx, client, args[0])
				if err != nil {
					return err
				}
				for i, receipts := range facts {
					if i > 0 && !a.json() {
						fmt.Fprintln(a.io.out)
					}
					if err := a.printReceipts(receipts); err != nil {
						return err
					}
				}
				return a.nameUnanswered(ctx, client, facts)
			})
		},
	}
	connect.register(cmd)
	cmd.ValidArgsFunction = completer{&connect}.revocations
	return cmd
}

// minPrefix keeps a slip of the finger from finding some revocation.
const minPrefix = 4

// findReceipts returns the receipts of each fact that an id, or the beginning of one, stands for, in the order of the
// journal.
func findReceipts(ctx context.Context, client *cluster.Client, id string) ([][]revoke.Receipt, error) {
	known, err := client.FindRevocations(ctx, id)
	if err != nil {
		return nil, err
	}
	matching := slices.DeleteFunc(slices.Clone(known), func(k string) bool { return !isFactOf(k, id) })
	if len(matching) == 0 && len(id) >= minPrefix {
		// Of one id that was used several times all facts are meant.
		matching = known
		for _, k := range known {
			if !isFactOf(k, known[0]) {
				return nil, fmt.Errorf("%s is the beginning of several revocations: %s", id, strings.Join(shorten(known, 10), ", "))
			}
		}
	}
	if len(matching) == 0 {
		return nil, fmt.Errorf("no receipt of %s: the id is unknown, no node has answered yet, or it is older than 13 months", id)
	}
	var facts [][]revoke.Receipt
	for _, k := range matching {
		receipts, err := client.Receipts(ctx, k)
		if err != nil {
			return nil, err
		}
		if len(receipts) > 0 {
			facts = append(facts, receipts)
		}
	}
	slices.SortStableFunc(facts, func(x, y []revoke.Receipt) int {
		return cmp.Compare(max(x[0].Seq, x[0].SupersededBy), max(y[0].Seq, y[0].SupersededBy))
	})
	return facts, nil
}

// isFactOf says whether receipts under k are about a fact with this id: the first one, or a later one of the same id.
func isFactOf(k, id string) bool {
	if k == id {
		return true
	}
	dash := strings.LastIndexByte(k, '-')
	if dash < 0 {
		return false
	}
	seq, err := strconv.ParseUint(k[dash+1:], 10, 64)
	return err == nil && k == revoke.SeqID(id, seq)
}

func shorten(list []string, most int) []string {
	if len(list) <= most {
		return list
	}
	return append(slices.Clone(list[:most]), fmt.Sprintf("and %d more", len(list)-most))
}

// nameUnanswered tells which live nodes have no receipt of a fact although they run for longer than it exists. Those
// that started later have replayed it before they served anybody, and owe none.
func (a *app) nameUnanswered(ctx context.Context, client *cluster.Client, facts [][]revoke.Receipt) error {
	_, presences, _, err := client.State(ctx)
	if err != nil {
		return err
	}
	for _, receipts := range facts {
		var first time.Time
		answered := map[string]bool{}
		for _, r := range receipts {
			answered[r.Boot] = true
			if first.IsZero() || r.ReceivedAt.Before(first) {
				first = r.ReceivedAt
			}
		}
		var missing []string
		for _, p := range presences {
			boot, err := ulid.ParseStrict(p.Boot)
			if err == nil && p.Live(time.Now()) && !answered[p.Boot] && ulid.Time(boot.Time()).Before(first) {
				missing = append(missing, p.Node)
			}
		}
		if len(missing) > 0 {
			slices.Sort(missing)
			fmt.Fprintf(a.io.err, "warning: no receipt of %s from %s\n", receipts[0].Revocation, strings.Join(slices.Compact(missing), ", "))
		}
	}
	return nil
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
	fmt.Fprintln(w)
	if r.Matched > 0 {
		fmt.Fprintf(w, "  %s\n", pace(r))
	}
	printResidue(w, r.Residue)
	if len(r.Sessions) == 0 {
		if r.Matched > 0 && !r.Final() {
			fmt.Fprintln(w, "  the sessions come with the final receipt")
		}
		return nil
	}
	t := newTable(w, "  SESSION", "PRINCIPAL", "DATABASE", "CLIENT", "APPLICATION", "WAS", "CUT", "BACKEND", "PID", "TRANSACTION", "BYTES AFTER", "VERIFIED")
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
		t.row("  "+s.ID, s.Principal, s.Database, s.Client, s.Application, s.State, s.Cut, s.Backend, fmt.Sprint(s.BackendPID), xact, fmt.Sprint(s.BytesAfter), verified)
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
