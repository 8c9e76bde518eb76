package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/oklog/ulid/v2"
	"github.com/spf13/cobra"

	"pgedge/cluster"
	"pgedge/revoke"
)

type blockJSON struct {
	Scope       string     `json:"scope"`
	Verb        string     `json:"verb"`
	Revocation  string     `json:"revocation"`
	Seq         uint64     `json:"seq"`
	Since       *time.Time `json:"since,omitempty"`
	Until       *time.Time `json:"until,omitempty"`
	Reason      string     `json:"reason,omitempty"`
	Actor       string     `json:"actor,omitempty"`
	Source      string     `json:"source,omitempty"`
	Provisional bool       `json:"provisional,omitempty"`
	Carried     bool       `json:"carried,omitempty"`
}

func newBlockJSON(b revoke.Block) blockJSON {
	return blockJSON{
		Scope: b.Scope.Token(), Verb: b.Fact.Verb.String(), Revocation: b.Fact.ID, Seq: b.Seq,
		Since: timeOrNil(b.Fact.At), Until: timeOrNil(b.Fact.Until), Reason: b.Fact.Reason, Actor: b.Fact.Actor, Source: b.Fact.Source,
		Provisional: b.Provisional, Carried: b.Carried,
	}
}

func timeOrNil(t time.Time) *time.Time {
	if t.IsZero() {
		return nil
	}
	return &t
}

// describe is a block in one line, for people.
func describe(b revoke.Block) string {
	s := fmt.Sprintf("%s of %s, seq %d", b.Fact.Verb, b.Scope, b.Seq)
	if b.Fact.ID != "" {
		s += ", " + b.Fact.ID
	}
	if !b.Fact.At.IsZero() {
		s += ", " + stamp(b.Fact.At)
	}
	if !b.Fact.Until.IsZero() {
		s += ", until " + stamp(b.Fact.Until)
	}
	if b.Fact.Actor != "" {
		s += ", by " + printable(b.Fact.Actor)
	}
	if b.Fact.Reason != "" {
		s += ", " + printable(b.Fact.Reason)
	}
	return s
}

func (a *app) reinstateCommand() *cobra.Command {
	var connect connectFlags
	var sel selectors
	var reason string
	var dryRun bool
	cmd := &cobra.Command{
		Use:   "reinstate PRINCIPAL...",
		Short: "Allow logins again; shows what it undoes",
		Long: `Undo what is in force for the principals now: the newest revoke and suspend that this command has seen. A
revocation published in the same moment by somebody else is not undone. Sessions that were ended stay ended.

Each selector is reinstated by itself: a principal whose role or database is revoked stays locked out by that.
` + selectorsAddUp,
		Example: "  pgedge reinstate alice --reason 'HR-1234 was a mistake'\n  pgedge reinstate --database payroll\n  pgedge reinstate alice --dry-run",
		GroupID: groupVerbs,
		RunE: func(cmd *cobra.Command, args []string) error {
			scopes, err := sel.scopes(cmd, args)
			if err != nil {
				return err
			}
			if len(reason) > maxReasonBytes {
				return usageErrorf("--reason: is longer than %d bytes", maxReasonBytes)
			}
			if !dryRun {
				if err := a.confirmAll(cmd, &sel); err != nil {
					return err
				}
			}
			client, err := connect.dial(cmd.Context())
			if err != nil {
				return err
			}
			defer client.Close()
			return a.reinstate(cmd.Context(), client, scopes, reason, dryRun)
		},
	}
	connect.register(cmd)
	complete := completer{&connect}
	sel.register(cmd, complete)
	cmd.ValidArgsFunction = complete.blocked
	cmd.Flags().StringVar(&reason, "reason", "", "why, for the record")
	cmd.Flags().BoolVar(&dryRun, "dry-run", false, "show what would be undone, and do nothing")
	return cmd
}

func (a *app) reinstate(ctx context.Context, client *cluster.Client, scopes []revoke.Scope, reason string, dryRun bool) error {
	tbl, _, _, err := client.State(ctx)
	if err != nil {
		return err
	}
	inForce := make(map[revoke.Scope][]revoke.Block)
	for _, b := range tbl.Blocks(time.Now()) {
		inForce[b.Scope] = append(inForce[b.Scope], b)
	}
	var failed []error
	opts := cluster.PublishOptions{Reason: reason, Actor: actor(), Source: "cli"}
	if len(scopes) > 1 {
		opts.Batch = ulid.Make().String()
	}
	var undo []revoke.Scope
	var upto []uint64
	for _, scope := range scopes {
		blocks := inForce[scope]
		if len(blocks) == 0 {
			failed = append(failed, fmt.Errorf("%s is neither revoked nor suspended%s", scope, alsoBlocking(scope, inForce)))
			continue
		}
		newest := uint64(0)
		for _, b := range blocks {
			newest = max(newest, b.Seq)
			if err := a.printUndone(b); err != nil {
				return err
			}
		}
		undo, upto = append(undo, scope), append(upto, newest)
	}
	if !dryRun {
		pubs, notPublished, err := a.publishAll(undo, func(i int) cluster.PublishOptions {
			o := opts
			o.Upto = upto[i]
			return o
		}, func(scope revoke.Scope, opts cluster.PublishOptions) (*cluster.Publication, error) {
			return client.Publish(ctx, revoke.VerbReinstate, scope, opts)
		})
		for _, pub := range pubs {
			client.Release(pub)
		}
		if err != nil {
			return err
		}
		failed = append(failed, notPublished...)
	}
	if len(failed) > 0 {
		return notStored(failed, len(scopes))
	}
	return nil
}

// alsoBlocking hints at the role of the same name, which in passthrough is the same person to the operator.
func alsoBlocking(scope revoke.Scope, inForce map[revoke.Scope][]revoke.Block) string {
	for _, other := range []revoke.ScopeKind{revoke.ScopePrincipal, revoke.ScopeRole, revoke.ScopeDatabase} {
		s := revoke.Scope{Kind: other, Name: scope.Name}
		if s != scope && len(inForce[s]) > 0 {
			flag := "--" + other.String() + " "
			if other == revoke.ScopePrincipal {
				flag = ""
			}
			return fmt.Sprintf(" (but %s is: pgedge reinstate %s%s)", s, flag, s.Name)
		}
	}
	if len(inForce[revoke.Scope{Kind: revoke.ScopeAll}]) > 0 {
		return " (but everybody is: pgedge reinstate --all)"
	}
	return ""
}

func (a *app) printUndone(b revoke.Block) error {
	if a.json() {
		return a.printJSON(struct {
			Undoes blockJSON `json:"undoes"`
		}{newBlockJSON(b)})
	}
	_, err := fmt.Fprintf(a.io.out, "undoes  %s\n", describe(b))
	return err
}

func (a *app) revocationsCommand() *cobra.Command {
	var connect connectFlags
	cmd := &cobra.Command{
		Use:     "revocations",
		Short:   "List what is revoked or suspended now",
		Long:    "List the revokes and suspends in force, oldest first, as the journal has them.",
		Example: "  pgedge revocations\n  pgedge revocations -o json | jq -r .scope",
		GroupID: groupLook,
		Args:    noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return connect.query(cmd.Context(), func(ctx context.Context, client *cluster.Client) error {
				tbl, _, seq, err := client.State(ctx)
				if err != nil {
					return err
				}
				return a.printBlocks(tbl.Blocks(time.Now()), seq)
			})
		},
	}
	connect.register(cmd)
	return cmd
}

func (a *app) printBlocks(blocks []revoke.Block, seq uint64) error {
	if a.json() {
		var err error
		for _, b := range blocks {
			err = errors.Join(err, a.printJSON(newBlockJSON(b)))
		}
		return err
	}
	if len(blocks) == 0 {
		fmt.Fprintf(a.io.out, "nothing is revoked or suspended (journal seq %d)\n", seq)
		return nil
	}
	t := newTable(a.io.out, "SCOPE", "VERB", "SEQ", "SINCE", "UNTIL", "BY", "REASON", "REVOCATION")
	for _, b := range blocks {
		since := ""
		if !b.Fact.At.IsZero() {
			since = stamp(b.Fact.At)
		}
		until := ""
		if !b.Fact.Until.IsZero() {
			until = stamp(b.Fact.Until)
		}
		t.row(b.Scope.String(), b.Fact.Verb.String(), fmt.Sprint(b.Seq), since, until, b.Fact.Actor, b.Fact.Reason, b.Fact.ID)
	}
	return t.flush()
}
