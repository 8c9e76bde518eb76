package main

import (
	"context"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"pgedge/cluster"
	"pgedge/cmd/pgedge/config"
)

const (
	connectTimeout = 5 * time.Second
	queryTimeout   = 10 * time.Second
	// completionTimeout bounds what a shell waits for after a press of TAB.
	completionTimeout = 700 * time.Millisecond
)

// connectFlags say where the cluster is.
type connectFlags struct {
	nats     string
	creds    string
	stateDir string
	// patience is how long the caller waits for evidence, when that is longer than the nodes' default verify_timeout.
	patience time.Duration
}

func (f *connectFlags) register(cmd *cobra.Command) {
	fs := cmd.Flags()
	fs.StringVar(&f.nats, "nats", "", "NATS URL of the cluster (default: $PGEDGE_NATS, else the node on this machine)")
	fs.StringVar(&f.creds, "nats-creds", "", "NATS credentials file (default: $PGEDGE_NATS_CREDS)")
	fs.StringVar(&f.stateDir, "state-dir", "", "state directory of the node on this machine (default: $PGEDGE_STATE_DIR, else /var/lib/pgedge or ~/.local/state/pgedge)")
	must(cmd.MarkFlagFilename("nats-creds", "creds"))
	must(cmd.MarkFlagDirname("state-dir"))
}

// query runs one look-up at the cluster, within queryTimeout.
func (f *connectFlags) query(ctx context.Context, look func(context.Context, *cluster.Client) error) error {
	client, err := f.dial(ctx)
	if err != nil {
		return err
	}
	defer client.Close()
	ctx, cancel := context.WithTimeout(ctx, queryTimeout)
	defer cancel()
	return look(ctx, client)
}

// options resolves flags and environment. A flag wins over every variable: --state-dir is not overruled by
// PGEDGE_NATS.
func (f *connectFlags) options() (cluster.DialOptions, error) {
	o := cluster.DialOptions{URL: f.nats, CredsFile: f.creds, StateDir: f.stateDir, Timeout: connectTimeout}
	if o.CredsFile == "" {
		o.CredsFile = os.Getenv("PGEDGE_NATS_CREDS")
	}
	if f.patience > config.Default().Cluster.VerifyTimeout {
		o.VerifyTimeout = f.patience
	}
	if o.URL == "" && o.StateDir == "" {
		o.URL = os.Getenv("PGEDGE_NATS")
	}
	if o.URL == "" && o.StateDir == "" {
		dir, err := config.DefaultStateDir()
		if err != nil {
			return o, err
		}
		o.StateDir = dir
	}
	// $(cat nats-url) ends in a line break where a shell does not strip it.
	o.URL = strings.TrimSpace(o.URL)
	return o, nil
}

func (f *connectFlags) dial(ctx context.Context) (*cluster.Client, error) {
	o, err := f.options()
	if err != nil {
		return nil, err
	}
	return cluster.Dial(ctx, o)
}
