package main

import (
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"pgedge/cluster"
)

const defaultReplicas = 3

func (a *app) clusterCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:     "cluster",
		Short:   "Prepare the NATS that carries the journal",
		GroupID: groupNode,
		Args:    noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return usageErrorf("%s: say what to do: init", cmd.CommandPath())
		},
		Long:    "Prepare the NATS cluster that carries the journal of a fleet.",
		Example: "  pgedge cluster init --nats nats://n1:4222 --replicas 3",
	}
	cmd.AddCommand(a.clusterInitCommand())
	return cmd
}

func (a *app) clusterInitCommand() *cobra.Command {
	var connect connectFlags
	var replicas int
	cmd := &cobra.Command{
		Use:   "init [--nats URL] [--replicas N]",
		Short: "Create the journal and the receipts on a NATS cluster, once",
		Long: `Create the two streams that a fleet lives on: PGEDGE, the journal of revocations and presence, and
PGEDGE_RECEIPTS, the evidence of thirteen months. Nodes never create them, because a node that does not find the
journal could end up with one of its own. Give it the rights of an operator (deploy/nats/operator.conf).

Nothing is ever changed: a stream that is there is checked, and refused with what differs. So the command can be given
again. With --state-dir it goes to a node with cluster.routes, which waits for it.

The servers must run with sync_interval: always (nodes that carry the journal themselves do): without it a server
acknowledges what a power cut can still take away.`,
		Example: `  pgedge cluster init --nats nats://n1:4222,nats://n2:4222 --nats-creds operator.creds
  pgedge cluster init --context production
  pgedge cluster init --state-dir /var/lib/pgedge --replicas 3
  pgedge cluster init --nats nats://127.0.0.1:4222 --replicas 1 -o json`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if replicas < 1 || replicas > 5 {
				return usageErrorf("--replicas %d: not between 1 and 5", replicas)
			}
			o, err := connect.options()
			if err != nil {
				return err
			}
			reports, err := cluster.InitStreams(cmd.Context(), o, replicas)
			for _, r := range reports {
				if printErr := a.printStream(r); printErr != nil {
					return errors.Join(err, printErr)
				}
			}
			return err
		},
	}
	cmd.Flags().IntVar(&replicas, "replicas", defaultReplicas, "copies of each stream, 1 to 5; as many servers have to be up")
	connect.register(cmd)
	return cmd
}

func (a *app) printStream(r cluster.StreamReport) error {
	if a.json() {
		return a.printJSON(r)
	}
	result := "created"
	if r.Result == cluster.StreamExists {
		result = "exists, as needed"
	}
	domain, where := "no domain", "single server"
	if r.Domain != "" {
		domain = "domain " + r.Domain
	}
	if r.Cluster != "" {
		where = "cluster " + r.Cluster
	}
	_, err := fmt.Fprintf(a.io.out, "%s: %s (%s, %s, %s, created %s)\n", r.Stream, result, where, printable(domain), count(r.Replicas, "copy", "copies"), stamp(r.Created))
	return err
}
