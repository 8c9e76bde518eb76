package main

import (
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"
)

// app is one run of the command line.
type app struct {
	io     stdio
	output string // text or json
	// ran is set once a command's own code has begun: errors from before are about usage.
	ran         bool
	stopSignals func()
}

func (a *app) json() bool { return a.output == "json" }

func (a *app) rootCommand() *cobra.Command {
	// The order of the help is that of the code below, by importance.
	cobra.EnableCommandSorting = false
	root := &cobra.Command{
		Use:   "pgedge",
		Short: "Postgres proxy that ends every session of a revoked user at once, and proves it",
		Long: `pgedge is a Postgres wire-protocol proxy. When a person's access is revoked, every live Postgres
session of that person, on every node, stops at once, and the receipt proves it.

  pgedge serve --upstream postgres://control:secret@db:5432    run a node; clients connect to 127.0.0.1:6432
  pgedge revoke alice --reason HR-1234                         end alice's sessions and refuse new ones
  pgedge demo                                                  see it happen on a throwaway Postgres`,
		SilenceErrors: true,
		SilenceUsage:  true,
		PersistentPreRunE: func(cmd *cobra.Command, _ []string) error {
			if a.output != "text" && a.output != "json" {
				return usageErrorf("--output %s: is neither text nor json", a.output)
			}
			a.ran = true
			if cmd.Annotations[ownSignals] == "" {
				ctx, stop := signal.NotifyContext(cmd.Context(), os.Interrupt, syscall.SIGTERM)
				cmd.SetContext(ctx)
				a.stopSignals = stop
			}
			return nil
		},
	}
	root.PersistentFlags().StringVarP(&a.output, "output", "o", "text", "text or json (one object per line where it streams)")
	must(root.RegisterFlagCompletionFunc("output", cobra.FixedCompletions([]string{"text", "json"}, cobra.ShellCompDirectiveNoFileComp)))
	root.SetFlagErrorFunc(func(_ *cobra.Command, err error) error {
		return &codeError{code: exitUsage, err: err}
	})

	root.AddGroup(
		&cobra.Group{ID: groupNode, Title: "Run:"},
		&cobra.Group{ID: groupVerbs, Title: "Act:"},
		&cobra.Group{ID: groupLook, Title: "Look:"},
	)
	root.SetHelpCommandGroupID(groupLook)
	root.SetCompletionCommandGroupID(groupLook)
	for _, c := range []*cobra.Command{
		a.serveCommand(), a.demoCommand(), a.checkConfigCommand(), a.doctorCommand(), a.clusterCommand(),
		a.revokeCommand(), a.suspendCommand(), a.killCommand(), a.reinstateCommand(),
		a.sessionsCommand(), a.nodesCommand(), a.revocationsCommand(), a.receiptsCommand(), a.drillCommand(), a.versionCommand(),
	} {
		root.AddCommand(c)
	}
	for _, c := range laterCommands() {
		root.AddCommand(c)
	}
	return root
}

const (
	groupNode  = "node"
	groupVerbs = "verbs"
	groupLook  = "look"
)

// laterCommands are the commands that the design knows and this version does not have. They are refused by name, so
// that nobody searches for the typing mistake.
func laterCommands() []*cobra.Command {
	var out []*cobra.Command
	for _, name := range []string{"why", "user", "login", "connect", "top"} {
		out = append(out, laterCommand(name))
	}
	return out
}

func laterCommand(name string) *cobra.Command {
	return &cobra.Command{
		Use:                name,
		Hidden:             true,
		DisableFlagParsing: true,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return usageErrorf("%s: not supported in this version", cmd.CommandPath())
		},
	}
}

// must is for errors that only a mistake in this package can cause.
func must(err error) {
	if err != nil {
		panic(err)
	}
}
