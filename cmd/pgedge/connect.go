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
	context  string
	ca       string
	cert     string
	key      string
	inbox    string
	stateDir string
	// patience is how long the caller waits for evidence, when that is longer than the nodes' default verify_timeout.
	patience time.Duration
	// publishFirst is set by commands that revoke: they do not wait for a journal that elects a leader.
	publishFirst bool
}

func (f *connectFlags) register(cmd *cobra.Command) {
	fs := cmd.Flags()
	fs.StringVar(&f.nats, "nats", "", "NATS URL of the cluster, several separated by commas (default: $PGEDGE_NATS, else the node on this machine)")
	fs.StringVar(&f.creds, "nats-creds", "", "NATS credentials file, or a file with an nkey seed (default: $PGEDGE_NATS_CREDS)")
	fs.StringVar(&f.context, "context", "", "take address and credentials from this context of the nats tool")
	fs.StringVar(&f.ca, "nats-ca", "", "certificate authority of the NATS servers (default: $PGEDGE_NATS_CA, else the system's)")
	fs.StringVar(&f.cert, "nats-cert", "", "certificate to show to NATS (default: $PGEDGE_NATS_CERT)")
	fs.StringVar(&f.key, "nats-key", "", "key of --nats-cert (default: $PGEDGE_NATS_KEY)")
	fs.StringVar(&f.inbox, "nats-inbox-prefix", "", "where answers arrive (default: the inbox of the shipped permission set that the user has)")
	fs.StringVar(&f.stateDir, "state-dir", "", "state directory of the node on this machine (default: $PGEDGE_STATE_DIR, else /var/lib/pgedge or ~/.local/state/pgedge)")
	must(cmd.MarkFlagFilename("nats-creds", "creds"))
	must(cmd.MarkFlagDirname("state-dir"))
	must(cmd.RegisterFlagCompletionFunc("context", func(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
		return natsContexts(), cobra.ShellCompDirectiveNoFileComp
	}))
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
// PGEDGE_NATS. Credentials from the environment are for the address from the environment or a --nats without its own,
// never for a context or a node on this machine.
func (f *connectFlags) options() (cluster.DialOptions, error) {
	o := cluster.DialOptions{Timeout: connectTimeout, PublishFirst: f.publishFirst}
	if f.patience > config.Default().Cluster.VerifyTimeout {
		o.VerifyTimeout = f.patience
	}
	switch {
	case f.context != "" && (f.nats != "" || f.stateDir != ""):
		return o, usageErrorf("--context says where the cluster is: it excludes --nats and --state-dir")
	case f.context != "":
		if err := loadNATSContext(f.context, &o); err != nil {
			return o, err
		}
	case f.nats != "":
		o.URL = f.nats
	case f.stateDir != "":
		o.StateDir = f.stateDir
	case os.Getenv("PGEDGE_NATS") != "":
		o.URL = os.Getenv("PGEDGE_NATS")
	default:
		dir, err := config.DefaultStateDir()
		if err != nil {
			return o, err
		}
		o.StateDir = dir
	}
	// $(cat nats-url) ends in a line break where a shell does not strip it.
	o.URL = strings.TrimSpace(o.URL)
	for _, v := range []struct {
		to             *string
		flag, variable string
	}{
		{&o.CredsFile, f.creds, "PGEDGE_NATS_CREDS"},
		{&o.CAFile, f.ca, "PGEDGE_NATS_CA"},
		{&o.CertFile, f.cert, "PGEDGE_NATS_CERT"},
		{&o.KeyFile, f.key, "PGEDGE_NATS_KEY"},
		{&o.InboxPrefix, f.inbox, ""},
	} {
		switch {
		case v.flag != "":
			*v.to = v.flag
		case v.variable != "" && f.context == "" && o.StateDir == "":
			*v.to = os.Getenv(v.variable)
		}
	}
	return o, nil
}

func (f *connectFlags) dial(ctx context.Context) (*cluster.Client, error) {
	o, err := f.options()
	if err != nil {
		return nil, err
	}
	return cluster.Dial(ctx, o)
}
