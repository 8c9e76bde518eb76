package main

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"pgedge/cluster"
	"pgedge/revoke"
)

func (a *app) sessionsCommand() *cobra.Command {
	var connect connectFlags
	var filter cluster.SessionFilter
	var watch bool
	cmd := &cobra.Command{
		Use:   "sessions",
		Short: "List the live sessions of the whole fleet",
		Long: `List the live sessions, as every node reports them at this moment. Nodes that did not answer are named, and then
the exit code is 4: the list is incomplete.

With --watch the list is drawn anew every second, until interrupted; the exit code is then 0. With -o json as well
every round lists all sessions, each with its round and, when it was not in the round before, "new":true. A line ends
the round: {"round":2,"at":"...","sessions":2,"ended":["edge-a-1f3k2"],"missing":[]}. Sessions of a node that is
missing are neither listed nor ended. A round that could not be asked has "error" instead.`,
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
			return a.listSessions(cmd.Context(), client, filter)
		},
	}
	connect.register(cmd)
	complete := completer{&connect}
	fs := cmd.Flags()
	fs.StringVar(&filter.Principal, "principal", "", "only this principal")
	fs.StringVar(&filter.Role, "role", "", "only this Postgres role")
	fs.StringVar(&filter.Database, "database", "", "only this database")
	fs.StringVar(&filter.Node, "node", "", "only this node")
	fs.BoolVarP(&watch, "watch", "w", false, "draw the list anew every second, until interrupted")
	for name, f := range map[string]completion{"principal": complete.principals, "role": complete.roles, "database": complete.databases, "node": complete.nodes} {
		must(cmd.RegisterFlagCompletionFunc(name, f))
	}
	return cmd
}

// listSessions prints the list once.
func (a *app) listSessions(ctx context.Context, client *cluster.Client, filter cluster.SessionFilter) error {
	ctx, cancel := context.WithTimeout(ctx, queryTimeout)
	defer cancel()
	sessions, missing, err := client.Sessions(ctx, filter)
	if err != nil {
		return err
	}
	if err := a.printSessions(sessions, missing); err != nil {
		return err
	}
	if len(missing) > 0 {
		return exitSilently(exitUnproven)
	}
	return nil
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
	return writeSessions(a.io.out, sessions)
}

// writeSessions writes the list for a person.
func writeSessions(w io.Writer, sessions []revoke.SessionInfo) error {
	t := newTable(w, "SESSION", "PRINCIPAL", "ROLE", "DATABASE", "STATE", "AGE", "IDLE", "CLIENT", "APPLICATION", "BACKEND")
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
	_, err := fmt.Fprintf(w, "%s\n", count(len(sessions), "session", "sessions"))
	return err
}
