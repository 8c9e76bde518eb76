package main

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"pgedge/cluster"
	"pgedge/revoke"
)

// dryRunJSON ends the list of a dry run.
type dryRunJSON struct {
	DryRun       bool           `json:"dry_run"`
	Sessions     int            `json:"sessions"`
	Transactions int            `json:"transactions"` // open ones, running statements included
	Writing      int            `json:"writing"`      // of these, those that have changed something
	Locks        int            `json:"locks"`
	Blocks       int            `json:"blocks"`
	NotLooked    int            `json:"not_looked"` // sessions about which the database could not be asked
	Nodes        map[string]int `json:"nodes"`      // sessions per node
	Missing      []string       `json:"missing"`    // nodes that did not answer
}

// dryRun shows what a fact about these scopes would stop at this moment. It publishes nothing. Without an answer from
// every node the exit code is that of an incomplete list.
func (a *app) dryRun(ctx context.Context, client *cluster.Client, scopes []revoke.Scope) error {
	ctx, cancel := context.WithTimeout(ctx, queryTimeout)
	defer cancel()
	sessions, missing, err := client.Impact(ctx, scopes)
	if err != nil {
		return err
	}
	slices.SortFunc(sessions, func(x, y revoke.SessionImpact) int {
		return cmp.Or(cmp.Compare(x.Node, y.Node), cmp.Compare(x.Principal, y.Principal), x.Since.Compare(y.Since), cmp.Compare(x.ID, y.ID))
	})
	sum := dryRunJSON{DryRun: true, Sessions: len(sessions), Nodes: map[string]int{}, Missing: append([]string{}, missing...)}
	for _, s := range sessions {
		sum.add(s)
	}
	if a.json() {
		err = a.printImpactJSON(sessions, sum)
	} else {
		err = a.printImpact(sessions, sum)
	}
	if err == nil && len(missing) > 0 {
		fmt.Fprintf(a.io.err, "warning: no complete answer from %s; their sessions are not in this list\n", strings.Join(missing, ", "))
		err = exitSilently(exitUnproven)
	}
	return err
}

func (d *dryRunJSON) add(s revoke.SessionImpact) {
	d.Nodes[s.Node]++
	if openTransaction(s) {
		d.Transactions++
	}
	if s.Written {
		d.Writing++
	}
	d.Locks += s.Locks
	d.Blocks += s.Blocks
	if !s.Looked {
		d.NotLooked++
	}
}

func openTransaction(s revoke.SessionImpact) bool {
	return s.InTransaction || s.TransactionSeconds > 0 || s.StatementSeconds > 0
}

func (a *app) printImpactJSON(sessions []revoke.SessionImpact, sum dryRunJSON) error {
	for _, s := range sessions {
		if err := a.printJSON(s); err != nil {
			return err
		}
	}
	return a.printJSON(sum)
}

func (a *app) printImpact(sessions []revoke.SessionImpact, sum dryRunJSON) error {
	t := newTable(a.io.out, "SESSION", "NODE", "PRINCIPAL", "DATABASE", "STATE", "TRANSACTION", "STATEMENT", "LOCKS", "BLOCKS", "CLIENT", "APPLICATION", "BACKEND")
	whys := map[string]int{}
	for _, s := range sessions {
		transaction, statement, locks, blocks, backend := "", "", "?", "?", ""
		switch {
		case s.TransactionSeconds > 0:
			transaction = age(time.Duration(s.TransactionSeconds * float64(time.Second)))
		case s.InTransaction:
			transaction = "open"
		}
		if s.Written {
			transaction += ", writing"
		}
		if s.StatementSeconds > 0 {
			statement = age(time.Duration(s.StatementSeconds * float64(time.Second)))
		}
		if s.Looked {
			locks, blocks = fmt.Sprint(s.Locks), fmt.Sprint(s.Blocks)
		} else {
			whys[s.Why]++
		}
		if s.BackendPID != 0 {
			backend = fmt.Sprintf("%d@%s", s.BackendPID, s.Upstream)
		}
		t.row(s.ID, s.Node, s.Principal, s.Database, s.State, transaction, statement, locks, blocks, s.Client, s.Application, backend)
	}
	if err := t.flush(); err != nil {
		return err
	}
	for why, n := range whys {
		fmt.Fprintf(a.io.out, "not known for %s: %s\n", count(n, "session", "sessions"), printable(why))
	}
	w := a.io.out
	fmt.Fprintf(w, "dry run: %s would end", count(sum.Sessions, "session", "sessions"))
	if len(sum.Nodes) > 0 {
		var nodes []string
		for _, node := range slices.Sorted(maps.Keys(sum.Nodes)) {
			nodes = append(nodes, fmt.Sprintf("%s %d", node, sum.Nodes[node]))
		}
		fmt.Fprintf(w, " (%s)", strings.Join(nodes, ", "))
	}
	_, err := fmt.Fprintf(w, "; %s, %d of them writing; %s held, %s waiting for them; nothing was done\n",
		count(sum.Transactions, "open transaction", "open transactions"), sum.Writing, count(sum.Locks, "lock", "locks"), count(sum.Blocks, "backend", "backends"))
	return err
}
