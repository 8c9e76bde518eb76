package main

import (
	"os"
	"os/user"
	"time"

	"github.com/oklog/ulid/v2"
	"github.com/spf13/cobra"

	"pgedge/cluster"
	"pgedge/revoke"
)

const (
	minSuspend = time.Second
	maxSuspend = 10 * 365 * 24 * time.Hour
	maxWait    = 24 * time.Hour
	// maxReasonBytes keeps a reason whole: the payload of a fact holds 4 KiB, escapes included.
	maxReasonBytes = 1000
)

// verbFlags belong to revoke, suspend and kill.
type verbFlags struct {
	connect connectFlags
	sel     selectors
	reason  string
	wait    time.Duration
	noWait  bool
	dryRun  bool
	until   time.Duration
}

func (a *app) revokeCommand() *cobra.Command {
	return a.verbCommand(revoke.VerbRevoke, &cobra.Command{
		Use:   "revoke PRINCIPAL...",
		Short: "End all sessions of a principal and refuse new ones",
		Long: `Offboard: end every live session of the principals, on every node, and refuse their logins until they are
reinstated. Prints a line per node while the proof comes in, and a verdict at the end:

  complete             every live node has seen every backend gone                        exit code 0
  complete_fenced      some node is proven to accept nothing new, only by its lease       exit code 3
  complete_unverified  cut and closed everywhere, but some backend was not seen gone      exit code 3
  incomplete           anything else within the time; the revocation is stored all the same  exit code 4

Roles, databases, single sessions or everybody can be revoked the same way. With passthrough login the principal is
the user name that the client logs in with.

` + selectorsAddUp,
		Example: `  pgedge revoke alice --reason HR-1234
  pgedge revoke alice bob --wait 5s
  pgedge revoke --database payroll --dry-run
  pgedge revoke alice -o json | jq -r 'select(.verdict) | .verdict'`,
	})
}

func (a *app) suspendCommand() *cobra.Command {
	return a.verbCommand(revoke.VerbSuspend, &cobra.Command{
		Use:   "suspend PRINCIPAL... --for DURATION",
		Short: "End all sessions of a principal and refuse new ones for a while",
		Long: `The same as revoke, but logins are allowed again by themselves when the time is over. Verdict and exit codes are
those of revoke.

` + selectorsAddUp,
		Example: "  pgedge suspend alice --for 2h --reason 'laptop lost'\n  pgedge suspend --role app_rw --for 15m",
	})
}

func (a *app) killCommand() *cobra.Command {
	return a.verbCommand(revoke.VerbKill, &cobra.Command{
		Use:   "kill PRINCIPAL...",
		Short: "End the sessions of a principal that exist now",
		Long: `End the live sessions, and nothing more: the principal may log in again at once. Verdict and exit codes are those
of revoke.

` + selectorsAddUp,
		Example: "  pgedge kill alice\n  pgedge kill --session edge-a-1f3k2\n  pgedge kill --all --yes",
	})
}

func (a *app) verbCommand(verb revoke.Verb, cmd *cobra.Command) *cobra.Command {
	var f verbFlags
	cmd.GroupID = groupVerbs
	f.connect.register(cmd)
	f.sel.register(cmd, completer{&f.connect})
	fs := cmd.Flags()
	fs.StringVar(&f.reason, "reason", "", "why, for the receipt; not shown to the user")
	fs.DurationVar(&f.wait, "wait", 0, "at most this long, from the first attempt to store to the verdict (default: until the verdict is certain)")
	fs.BoolVar(&f.noWait, "no-wait", false, "do not wait for any node: stored, not proven")
	fs.BoolVar(&f.dryRun, "dry-run", false, "show what would be stopped (sessions, open transactions, locks held), and do nothing")
	if verb == revoke.VerbSuspend {
		fs.DurationVar(&f.until, "for", 0, "how long, for example 2h (required)")
	}
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		scopes, err := f.check(cmd, verb, args)
		if err != nil {
			return err
		}
		if !f.dryRun {
			if err := a.confirmAll(cmd, &f.sel); err != nil {
				return err
			}
		}
		f.connect.patience = f.wait
		f.connect.publishFirst = !f.dryRun
		client, err := f.connect.dial(cmd.Context())
		if err != nil {
			return err
		}
		defer client.Close()
		if f.dryRun {
			return a.dryRun(cmd.Context(), client, scopes)
		}
		opts := cluster.PublishOptions{Reason: f.reason, Actor: actor(), Source: "cli"}
		if len(scopes) > 1 {
			opts.Batch = ulid.Make().String()
		}
		if verb == revoke.VerbSuspend {
			opts.Until = time.Now().Add(f.until)
		}
		return a.carryOut(cmd.Context(), client, verb, scopes, opts, f.wait, f.noWait)
	}
	return cmd
}

func (f *verbFlags) check(cmd *cobra.Command, verb revoke.Verb, args []string) ([]revoke.Scope, error) {
	scopes, err := f.sel.scopes(cmd, args)
	if err != nil {
		return nil, err
	}
	waits := cmd.Flags().Changed("wait")
	switch {
	case verb == revoke.VerbSuspend && !cmd.Flags().Changed("for"):
		return nil, usageErrorf("say how long with --for, or use revoke")
	case verb == revoke.VerbSuspend && (f.until < minSuspend || f.until > maxSuspend):
		return nil, usageErrorf("--for %s: is out of range: 1s to ten years", f.until)
	case waits && f.noWait:
		return nil, usageErrorf("--wait and --no-wait exclude each other")
	case waits && (f.wait <= 0 || f.wait > maxWait):
		return nil, usageErrorf("--wait %s: is out of range: more than 0, up to 24h", f.wait)
	case len(f.reason) > maxReasonBytes:
		return nil, usageErrorf("--reason: is longer than %d bytes", maxReasonBytes)
	}
	return scopes, nil
}

// actor is who runs the command, as well as this machine knows: user@host.
func actor() string {
	name := os.Getenv("SUDO_USER")
	if name == "" {
		if u, err := user.Current(); err == nil {
			name = u.Username
		}
	}
	if host, err := os.Hostname(); err == nil {
		name += "@" + host
	}
	return name
}
