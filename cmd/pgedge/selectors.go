package main

import (
	"bufio"
	"fmt"
	"regexp"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"pgedge/revoke"
)

// maxScopes bounds one command; each scope is a message of its own.
const maxScopes = 1000

// selectorsAddUp belongs into the help of every verb: whoever takes selectors for filters ends more than was meant.
const selectorsAddUp = `Selectors add up, they do not narrow each other: "alice --database app" is alice in every database, and everybody in app.`

// sessionID is what a session can be called: the node's id and a number in base 36.
var sessionID = regexp.MustCompile(`^[A-Za-z0-9_-]{1,63}-[0-9a-z]{1,13}$`)

// selectors choose what a verb applies to.
type selectors struct {
	roles, databases, sessions []string
	all, yes                   bool
}

func (s *selectors) register(cmd *cobra.Command, complete completer) {
	fs := cmd.Flags()
	fs.StringArrayVar(&s.roles, "role", nil, "a Postgres role, whoever uses it; may be repeated")
	fs.StringArrayVar(&s.databases, "database", nil, "a database name, as clients ask for it; may be repeated")
	fs.StringArrayVar(&s.sessions, "session", nil, "a session id, as pgedge sessions prints it; may be repeated")
	fs.BoolVar(&s.all, "all", false, "everybody, on every node; asks on a terminal, else needs --yes")
	fs.BoolVar(&s.yes, "yes", false, "do not ask")
	must(cmd.RegisterFlagCompletionFunc("role", complete.roles))
	must(cmd.RegisterFlagCompletionFunc("database", complete.databases))
	must(cmd.RegisterFlagCompletionFunc("session", complete.sessions))
	cmd.ValidArgsFunction = complete.principals
}

// scopes turns arguments and flags into scopes, without duplicates, in the order given.
func (s *selectors) scopes(cmd *cobra.Command, principals []string) ([]revoke.Scope, error) {
	var out []revoke.Scope
	add := func(kind revoke.ScopeKind, names []string) error {
		for _, name := range names {
			if kind == revoke.ScopeSession && !sessionID.MatchString(name) {
				return usageErrorf("--session %q: is no session id: <node>-<number in base 36>, as pgedge sessions prints it", name)
			}
			scope, err := revoke.NewScope(kind, name)
			if err != nil {
				return usageErrorf("%v", err)
			}
			if !slices.Contains(out, scope) {
				out = append(out, scope)
			}
		}
		return nil
	}
	for _, g := range []struct {
		kind  revoke.ScopeKind
		names []string
	}{
		{revoke.ScopePrincipal, principals}, {revoke.ScopeRole, s.roles}, {revoke.ScopeDatabase, s.databases}, {revoke.ScopeSession, s.sessions},
	} {
		if err := add(g.kind, g.names); err != nil {
			return nil, err
		}
	}
	switch {
	case s.all && len(out) > 0:
		return nil, usageErrorf("--all stands alone: it already covers every principal, role, database and session")
	case s.all:
		return []revoke.Scope{{Kind: revoke.ScopeAll}}, nil
	case len(out) == 0:
		return nil, usageErrorf("nothing to %s: name a principal, or use --role, --database, --session or --all", cmd.Name())
	case len(out) > maxScopes:
		return nil, usageErrorf("%d selectors are more than %d", len(out), maxScopes)
	}
	return out, nil
}

// confirmAll asks before everybody is concerned.
func (a *app) confirmAll(cmd *cobra.Command, s *selectors) error {
	if !s.all || s.yes {
		return nil
	}
	if !isTerminal(a.io.in) {
		return usageErrorf("--all needs --yes where nobody can be asked")
	}
	fmt.Fprintf(a.io.err, "This will %s everybody, on every node. Type all to go on: ", cmd.Name())
	line, err := bufio.NewReader(a.io.in).ReadString('\n')
	if err != nil || strings.TrimSpace(line) != "all" {
		return fmt.Errorf("nothing was done")
	}
	return nil
}
