package main

import (
	"context"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"pgedge/cluster"
	"pgedge/revoke"
)

// completer offers live names to the shell. Whatever goes wrong, it offers nothing: an error in a completion would
// only garble the prompt.
type completer struct{ connect *connectFlags }

type completion = func(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective)

func (c completer) principals(cmd *cobra.Command, args []string, prefix string) ([]string, cobra.ShellCompDirective) {
	return c.offer(cmd, args, prefix, fromSessions(func(s revoke.SessionInfo) string { return s.Principal }))
}

func (c completer) roles(cmd *cobra.Command, args []string, prefix string) ([]string, cobra.ShellCompDirective) {
	return c.offer(cmd, nil, prefix, fromSessions(func(s revoke.SessionInfo) string { return s.Role }))
}

func (c completer) databases(cmd *cobra.Command, args []string, prefix string) ([]string, cobra.ShellCompDirective) {
	return c.offer(cmd, nil, prefix, fromSessions(func(s revoke.SessionInfo) string { return s.Database }))
}

func (c completer) sessions(cmd *cobra.Command, args []string, prefix string) ([]string, cobra.ShellCompDirective) {
	return c.offer(cmd, nil, prefix, fromSessions(func(s revoke.SessionInfo) string { return s.ID + "\t" + s.Principal + " " + s.Application }))
}

func (c completer) nodes(cmd *cobra.Command, args []string, prefix string) ([]string, cobra.ShellCompDirective) {
	return c.offer(cmd, nil, prefix, func(ctx context.Context, cl *cluster.Client) []string {
		_, presences, _, err := cl.State(ctx)
		if err != nil {
			return nil
		}
		var names []string
		for _, p := range presences {
			if p.State != revoke.StateLeft {
				names = append(names, p.Node)
			}
		}
		return names
	})
}

// silentNodes and silentBoots offer what nodes forget takes.
func (c completer) silentNodes(cmd *cobra.Command, args []string, prefix string) ([]string, cobra.ShellCompDirective) {
	if len(args) > 0 {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	return c.offerSilent(cmd, prefix, func(p revoke.Presence) string { return p.Node })
}

func (c completer) silentBoots(cmd *cobra.Command, args []string, prefix string) ([]string, cobra.ShellCompDirective) {
	return c.offerSilent(cmd, prefix, func(p revoke.Presence) string {
		if len(args) > 0 && args[0] != p.Node {
			return ""
		}
		return p.Boot + "\t" + p.Node
	})
}

func (c completer) offerSilent(cmd *cobra.Command, prefix string, name func(revoke.Presence) string) ([]string, cobra.ShellCompDirective) {
	return c.offer(cmd, nil, prefix, func(ctx context.Context, cl *cluster.Client) []string {
		_, presences, _, err := cl.State(ctx)
		if err != nil {
			return nil
		}
		var names []string
		for _, p := range presences {
			if p.State != revoke.StateLeft && time.Since(p.Heard) > p.Lease() {
				names = append(names, name(p))
			}
		}
		return names
	})
}

// blocked offers the principals that are revoked or suspended.
func (c completer) blocked(cmd *cobra.Command, args []string, prefix string) ([]string, cobra.ShellCompDirective) {
	return c.offer(cmd, args, prefix, func(ctx context.Context, cl *cluster.Client) []string {
		table, _, _, err := cl.State(ctx)
		if err != nil {
			return nil
		}
		var names []string
		for _, b := range table.Blocks(time.Now()) {
			if b.Scope.Kind == revoke.ScopePrincipal {
				names = append(names, b.Scope.Name)
			}
		}
		return names
	})
}

// revocations offers the ids of the newest receipts.
func (c completer) revocations(cmd *cobra.Command, args []string, prefix string) ([]string, cobra.ShellCompDirective) {
	if len(args) > 0 {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	return c.offer(cmd, args, prefix, func(ctx context.Context, cl *cluster.Client) []string {
		list, _, err := cl.ListReceipts(ctx, time.Now().Add(-24*time.Hour))
		if err != nil {
			return nil
		}
		var ids []string
		for _, r := range list {
			ids = append(ids, r.Revocation+"\t"+r.Verb+" "+r.Scope)
		}
		return ids
	})
}

func fromSessions(name func(revoke.SessionInfo) string) func(context.Context, *cluster.Client) []string {
	return func(ctx context.Context, cl *cluster.Client) []string {
		sessions, _, err := cl.Sessions(ctx, cluster.SessionFilter{})
		if err != nil {
			return nil
		}
		names := make([]string, len(sessions))
		for i, s := range sessions {
			names[i] = name(s)
		}
		return names
	}
}

// offer connects, asks and filters. Names that are among the arguments already are left out.
func (c completer) offer(cmd *cobra.Command, args []string, prefix string, ask func(context.Context, *cluster.Client) []string) ([]string, cobra.ShellCompDirective) {
	parent := cmd.Context()
	if parent == nil {
		parent = context.Background()
	}
	ctx, cancel := context.WithTimeout(parent, completionTimeout)
	defer cancel()
	o, err := c.connect.options()
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	o.Timeout = completionTimeout
	client, err := cluster.Dial(ctx, o)
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	defer client.Close()
	names := ask(ctx, client)
	slices.Sort(names)
	names = slices.DeleteFunc(slices.Compact(names), func(n string) bool {
		word, _, _ := strings.Cut(n, "\t")
		return word == "" || !strings.HasPrefix(word, prefix) || slices.Contains(args, word)
	})
	return names, cobra.ShellCompDirectiveNoFileComp
}
