package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"pgedge/cluster"
	"pgedge/cmd/pgedge/config"
)

// doctorTimeout bounds everything that is asked; each question has a bound of its own.
const doctorTimeout = 60 * time.Second

// Levels of a finding. Only a fail changes the exit code.
const (
	levelOK   = "ok"
	levelWarn = "warn"
	levelFail = "fail"
	levelSkip = "skip" // not looked at, with the reason
)

// finding is one line of the doctor's.
type finding struct {
	Level string `json:"level"`
	Check string `json:"check"`
	Text  string `json:"text"`
	// Do is what to do about it; empty where nothing has to be done.
	Do string `json:"do,omitempty"`
}

type doctorJSON struct {
	OK       bool `json:"ok"`
	Checks   int  `json:"checks"`
	Failed   int  `json:"failed"`
	Warnings int  `json:"warnings"`
	Skipped  int  `json:"skipped"`
}

func (a *app) doctorCommand() *cobra.Command {
	var f serveFlags
	var connect connectFlags
	cmd := &cobra.Command{
		Use:   "doctor [-c pgedge.yaml] [--upstream URL]",
		Short: "Check upstream rights, NATS, certificates, clocks and bypass routes, live",
		Long: `Look at everything a node depends on, one line per finding: ok, warn, fail, or skip for what could not be looked at,
with what to do about it. It works before the first start and beside a running node, takes no lock, and changes
nothing: the control role's rights are proven by ending a session of its own, NATS rights by messages that JetStream
refuses to store.

It takes the configuration as serve does: -c, --upstream, --node, --nats, --state-dir and PGEDGE_* variables. The
fleet's nodes and sessions are asked with the credentials of the command line (--nats-creds, --context, or a URL with
user and password in PGEDGE_NATS), since a node's own may not ask others; --nats is the node's NATS, as for serve. Without -c and --upstream the Postgres servers are not looked at.

The exit code is 0 when nothing failed, and 1 otherwise. Warnings do not change it.`,
		Example: "  pgedge doctor -c /etc/pgedge/pgedge.yaml\n  pgedge doctor --upstream postgres://pgedge_control:secret@db:5432\n  pgedge doctor -c pgedge.yaml -o json | jq -c 'select(.level == \"fail\")'",
		GroupID: groupNode,
		Args:    noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			f.nats, f.stateDir = connect.nats, connect.stateDir
			ctx, cancel := context.WithTimeout(cmd.Context(), doctorTimeout)
			defer cancel()
			d := &doctor{app: a, connect: &connect, clocks: readClocks(), deadline: ctx}
			if err := d.run(f.sources(cmd)); err != nil {
				return err
			}
			if cmd.Context().Err() != nil {
				return cmd.Context().Err()
			}
			return d.finish()
		},
	}
	connect.register(cmd)
	fs := cmd.Flags()
	fs.StringVarP(&f.file, "config", "c", "", "configuration file")
	fs.StringVar(&f.upstream, "upstream", "", "postgres:// URL for every database the file does not name; its user is the control role")
	fs.StringVar(&f.node, "node", "", "node id (default: the hostname up to its first dot)")
	must(cmd.MarkFlagFilename("config", "yaml", "yml"))
	return cmd
}

// doctor collects findings and prints each as it comes.
type doctor struct {
	app      *app
	connect  *connectFlags
	deadline context.Context
	clocks   clocks // at the beginning
	cfg      *config.Config
	client   *cluster.Client // nil where the fleet cannot be asked
	fleet    *fleetView
	total    doctorJSON
	printErr error
}

func (d *doctor) note(level, check, do, format string, args ...any) {
	f := finding{Level: level, Check: check, Text: strings.ReplaceAll(fmt.Sprintf(format, args...), "\n", "; "), Do: do}
	d.total.Checks++
	switch level {
	case levelFail:
		d.total.Failed++
	case levelWarn:
		d.total.Warnings++
	case levelSkip:
		d.total.Skipped++
	}
	if d.app.json() {
		d.printErr = errors.Join(d.printErr, d.app.printJSON(f))
		return
	}
	line := fmt.Sprintf("%-5s %-14s %s", f.Level, f.Check, printable(f.Text))
	if f.Do != "" {
		line += " -> " + printable(f.Do)
	}
	_, err := fmt.Fprintln(d.app.io.out, line)
	d.printErr = errors.Join(d.printErr, err)
}

func (d *doctor) run(sources config.Sources) error {
	hasUpstream := sources.File != "" || sources.Upstream != "" || os.Getenv("PGEDGE_UPSTREAM") != ""
	if !d.configuration(sources, hasUpstream) {
		return nil // what is wrong here would make everything below say something else than the node
	}
	d.stateDir()
	d.descriptors()
	d.certificateFiles()
	d.canary()
	clusterCfg := cluster.Config{Node: d.cfg.Node, StateDir: d.cfg.StateDir, NATS: natsAddress(d.cfg.Cluster),
		Credentials: natsCredentials(d.cfg.Cluster), Routes: natsRoutes(d.cfg.Cluster.Routes), Replicas: d.cfg.Cluster.Replicas}
	running := d.nats(clusterCfg)
	d.lookAtFleet(running)
	if d.client != nil {
		defer d.client.Close()
	}
	if hasUpstream {
		d.upstreams()
	} else {
		d.note(levelSkip, "upstream", "", "not looked at: neither -c nor --upstream is given")
	}
	d.clockDrift()
	return nil
}

func (d *doctor) finish() error {
	d.total.OK = d.total.Failed == 0
	if d.app.json() {
		d.printErr = errors.Join(d.printErr, d.app.printJSON(d.total))
	} else {
		_, err := fmt.Fprintf(d.app.io.out, "\n%d failed, %s, %d skipped, of %d\n", d.total.Failed, count(d.total.Warnings, "warning", "warnings"), d.total.Skipped, d.total.Checks)
		d.printErr = errors.Join(d.printErr, err)
	}
	if d.printErr != nil {
		return d.printErr
	}
	if !d.total.OK {
		return exitSilently(exitFailed)
	}
	return nil
}
