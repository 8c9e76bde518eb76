package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"pgedge/cluster"
	"pgedge/revoke"
)

const watchInterval = 2 * time.Second

func (a *app) sessionsCommand() *cobra.Command {
	var connect connectFlags
	var filter cluster.SessionFilter
	var watch bool
	cmd := &cobra.Command{
		Use:   "sessions",
		Short: "List the live sessions of the whole fleet",
		Long: `List the live sessions, as every node reports them at this moment. Nodes that did not answer are named, and then
the exit code is 4: the list is incomplete.

With --watch and -o json every session carries the number of its round, and a line with the count ends the round:
{"round":1,"at":"...","sessions":2,"missing":[]}.`,
		Example: "  pgedge sessions\n  pgedge sessions --principal alice --watch\n  pgedge sessions -o json | jq -r .id",
		GroupID: groupLook,
		Args:    noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			client, err := connect.dial(cmd.Context())
			if err != nil {
				return err
			}
			defer client.Close()
			filter.Principal = revoke.CanonicalName(revoke.ScopePrincipal, filter.Principal)
			filter.Role = revoke.CanonicalName(revoke.ScopeRole, filter.Role)
			filter.Database = revoke.CanonicalName(revoke.ScopeDatabase, filter.Database)
			if watch {
				return a.watchSessions(cmd.Context(), client, filter)
			}
			return a.listSessions(cmd.Context(), client, filter, 0)
		},
	}
	connect.register(cmd)
	complete := completer{&connect}
	fs := cmd.Flags()
	fs.StringVar(&filter.Principal, "principal", "", "only this principal")
	fs.StringVar(&filter.Role, "role", "", "only this Postgres role")
	fs.StringVar(&filter.Database, "database", "", "only this database")
	fs.StringVar(&filter.Node, "node", "", "only this node")
	fs.BoolVarP(&watch, "watch", "w", false, "print again every two seconds, until interrupted")
	for name, f := range map[string]completion{"principal": complete.principals, "role": complete.roles, "database": complete.databases, "node": complete.nodes} {
		must(cmd.RegisterFlagCompletionFunc(name, f))
	}
	return cmd
}

// listSessions prints the list once. A round other than 0 is told in JSON, where one list follows another.
func (a *app) listSessions(ctx context.Context, client *cluster.Client, filter cluster.SessionFilter, round int) error {
	ctx, cancel := context.WithTimeout(ctx, queryTimeout)
	defer cancel()
	sessions, missing, err := client.Sessions(ctx, filter)
	if err != nil {
		return err
	}
	if round > 0 && a.json() {
		err = a.printRound(round, sessions, missing)
	} else {
		err = a.printSessions(sessions, missing)
	}
	if err != nil {
		return err
	}
	if len(missing) > 0 {
		return exitSilently(exitUnproven)
	}
	return nil
}

func (a *app) watchSessions(ctx context.Context, client *cluster.Client, filter cluster.SessionFilter) error {
	tick := time.NewTicker(watchInterval)
	defer tick.Stop()
	for round := 1; ; round++ {
		if !a.json() && isTerminal(a.io.out) {
			fmt.Fprint(a.io.out, "\x1b[H\x1b[2J")
		}
		var incomplete *codeError
		if err := a.listSessions(ctx, client, filter, round); err != nil && !errors.As(err, &incomplete) {
			if ctx.Err() != nil {
				return nil
			}
			return err
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil
		}
	}
}

// roundSessionJSON is a session of a round of --watch, roundJSON the line that ends the round.
type roundSessionJSON struct {
	Round int `json:"round"`
	revoke.SessionInfo
}

type roundJSON struct {
	Round    int       `json:"round"`
	At       time.Time `json:"at"`
	Sessions int       `json:"sessions"`
	Missing  []string  `json:"missing"` // nodes without a complete answer
}

func (a *app) printRound(round int, sessions []revoke.SessionInfo, missing []string) error {
	sortSessions(sessions)
	for _, s := range sessions {
		if err := a.printJSON(roundSessionJSON{round, s}); err != nil {
			return err
		}
	}
	return a.printJSON(roundJSON{round, time.Now().UTC(), len(sessions), append([]string{}, missing...)})
}

func sortSessions(sessions []revoke.SessionInfo) {
	slices.SortFunc(sessions, func(x, y revoke.SessionInfo) int {
		return cmp.Or(cmp.Compare(x.Principal, y.Principal), x.Since.Compare(y.Since), cmp.Compare(x.ID, y.ID))
	})
}

func (a *app) printSessions(sessions []revoke.SessionInfo, missing []string) error {
	sortSessions(sessions)
	if len(missing) > 0 {
		fmt.Fprintf(a.io.err, "warning: no complete answer from %s; their sessions are not in this list\n", strings.Join(missing, ", "))
	}
	if a.json() {
		for _, s := range sessions {
			if err := a.printJSON(s); err != nil {
				return err
			}
		}
		return nil
	}
	t := newTable(a.io.out, "SESSION", "PRINCIPAL", "ROLE", "DATABASE", "STATE", "AGE", "IDLE", "CLIENT", "APPLICATION", "BACKEND")
	for _, s := range sessions {
		backend, idle := "", ""
		if s.BackendPID != 0 {
			backend = fmt.Sprintf("%d@%s", s.BackendPID, s.Upstream)
		}
		if s.IdleSeconds > 0 {
			idle = age(time.Duration(s.IdleSeconds * float64(time.Second)))
		}
		t.row(s.ID, s.Principal, s.Role, s.Database, s.State, ageSince(s.Since), idle, s.Client, s.Application, backend)
	}
	if err := t.flush(); err != nil {
		return err
	}
	fmt.Fprintf(a.io.out, "%s\n", count(len(sessions), "session", "sessions"))
	return nil
}
