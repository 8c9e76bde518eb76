package main

import (
	"fmt"
	"os"
	"slices"

	"github.com/spf13/cobra"

	"pgedge/cmd/pgedge/config"
)

// ownSignals marks a command that handles SIGINT and SIGTERM itself.
const ownSignals = "own-signals"

type serveFlags struct {
	file      string
	upstream  string
	listen    []string
	admin     string
	node      string
	stateDir  string
	nats      string
	logFormat string
}

func (a *app) serveCommand() *cobra.Command {
	var f serveFlags
	cmd := &cobra.Command{
		Use:   "serve [-c pgedge.yaml] [--upstream URL]",
		Short: "Run a node",
		Long: `Run one node: accept Postgres clients, pass their logins on to Postgres, and end their sessions when told.

Without a file, Postgres checks every password itself (passthrough), NATS runs inside the process, and the state is
kept in the state directory. User and password in --upstream are the control role, which must be a member of
pg_signal_backend and pg_read_all_stats: with it a kill is verified, without it the receipt says what was not seen.

Flags win over PGEDGE_* variables (PGEDGE_LIMITS_MAX_SESSIONS sets limits.max_sessions, PGEDGE_UPSTREAM is --upstream),
these over the file. SIGHUP reloads timeouts, contact, limits.login_timeout and limits.per_principal, and reopens the
audit file; limits.max_sessions and limits.max_logins need a restart, like everything else. SIGTERM or SIGINT drains:
/readyz says 503, for timeouts.drain_delay nothing else changes, then new logins are refused (57P03) and sessions end at
their next sync point (57P01), at the latest after timeouts.drain; a second one ends the process at once.`,
		Example: `  pgedge serve --upstream postgres://pgedge_control:secret@db:5432
  pgedge serve -c /etc/pgedge/pgedge.yaml
  pgedge serve --upstream postgres://db --node edge-b --listen 127.0.0.1:6433 --admin off --nats "$(cat /var/lib/pgedge/nats-url)"`,
		GroupID:     groupNode,
		Args:        noArgs,
		Annotations: map[string]string{ownSignals: "true"},
		RunE: func(cmd *cobra.Command, _ []string) error {
			if f.file == "" && f.upstream == "" && os.Getenv("PGEDGE_UPSTREAM") == "" {
				return usageErrorf("no upstream: say where Postgres is with --upstream, $PGEDGE_UPSTREAM or a file (-c)")
			}
			log, err := newLogger(a.io.err, f.logFormat)
			if err != nil {
				return err
			}
			sources := f.sources(cmd)
			cfg, report := config.Load(sources)
			if err := report.Err(); err != nil {
				fmt.Fprintln(a.io.err, err)
				return fmt.Errorf("cannot start: %s in the configuration", count(len(report.Errors), "error", "errors"))
			}
			clearPGVariables(givenToUpstreams...)
			return serve(cmd.Context(), serveParams{
				cfg:      cfg,
				warnings: report.Warnings,
				reload:   func() (*config.Config, *config.Report) { return config.Load(sources) },
				log:      log,
			})
		},
	}
	fs := cmd.Flags()
	fs.StringVarP(&f.file, "config", "c", "", "configuration file")
	fs.StringVar(&f.upstream, "upstream", "", "postgres:// URL for every database the file does not name; its user is the control role")
	fs.StringArrayVar(&f.listen, "listen", nil, "address for clients, host:port or unix:DIRECTORY; may be repeated (default 127.0.0.1:6432)")
	fs.StringVar(&f.admin, "admin", "", "address of health and metrics over HTTP, or off (default 127.0.0.1:8432)")
	fs.StringVar(&f.node, "node", "", "node id (default: the hostname up to its first dot)")
	fs.StringVar(&f.stateDir, "state-dir", "", "directory of the journal and the lock (default: $PGEDGE_STATE_DIR, else /var/lib/pgedge or ~/.local/state/pgedge)")
	fs.StringVar(&f.nats, "nats", "", "embedded, or the URL of the NATS to join (default embedded)")
	fs.StringVar(&f.logFormat, "log-format", "auto", "auto, text or json; auto is text on a terminal and json elsewhere")
	must(cmd.RegisterFlagCompletionFunc("log-format", cobra.FixedCompletions([]string{"auto", "text", "json"}, cobra.ShellCompDirectiveNoFileComp)))
	must(cmd.MarkFlagFilename("config", "yaml", "yml"))
	must(cmd.MarkFlagDirname("state-dir"))
	return cmd
}

func (f serveFlags) sources(cmd *cobra.Command) config.Sources {
	src := config.Sources{File: f.file, Environ: os.Environ(), Upstream: f.upstream, CheckUpstream: checkUpstream}
	for _, fl := range []struct {
		name, path string
		values     []string
	}{
		{"listen", "listen", f.listen},
		{"admin", "admin", []string{f.admin}},
		{"node", "node", []string{f.node}},
		{"state-dir", "state_dir", []string{f.stateDir}},
		{"nats", "cluster.nats", []string{f.nats}},
	} {
		if cmd.Flags().Changed(fl.name) {
			src.Flags = append(src.Flags, config.Flag{Name: "--" + fl.name, Path: fl.path, Values: slices.Clone(fl.values)})
		}
	}
	return src
}
