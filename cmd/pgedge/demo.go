package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"pgedge/internal/pgserver"
)

const (
	// demoLimit is when the demo gives up; it takes about a quarter of it.
	demoLimit = 55 * time.Second
	// demoUpdateTakes is how long the trigger slows the update, and demoHeadStart how long it runs before the
	// revocation: late enough to be well inside, early enough to have much left to prove.
	demoUpdateTakes = 5 * time.Second
	demoHeadStart   = time.Second
	// demoPatience is how long after the update's would-be end its value is looked at again.
	demoPatience = 2 * time.Second
)

func (a *app) demoCommand() *cobra.Command {
	var keep bool
	cmd := &cobra.Command{
		Use:   "demo",
		Short: "See it in one minute, on a throwaway Postgres",
		Long: `Start a throwaway Postgres (from the binaries found on this machine) and two pgedge nodes. Open four sessions as
alice, over both nodes: one idle, one idle in a transaction that holds a lock, one in the middle of an UPDATE that takes
five seconds, one streaming a COPY; and one session of bob that queries all the time. Then revoke alice, and check what
pgedge promises: all four ended, every backend seen gone, the UPDATE not committed, the lock free, alice refused on both
nodes, and bob undisturbed.

The exit code is 0 only if all of this held. Everything is removed at the end.`,
		Example: "  pgedge demo\n  pgedge demo --keep      # leave it running, to play with",
		GroupID: groupNode,
		Args:    noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.demo(cmd.Context(), keep)
		},
	}
	cmd.Flags().BoolVar(&keep, "keep", false, "leave everything running until Ctrl-C, and print how to connect")
	return cmd
}

// demo is one performance. Its fields are set while the stage is built.
type demo struct {
	app    *app
	began  time.Time
	dir    string
	pg     *pgserver.Server
	nodes  []*demoNode
	failed []string
}

func (a *app) demo(ctx context.Context, keep bool) (err error) {
	clearPGVariables()
	// Without this, `pgedge demo | head` would end at its second line with everything left behind: the Go runtime
	// dies of SIGPIPE when nobody reads its output. The signal itself says nothing, since every socket that a peer has
	// closed sends it too; the failed write does.
	pipes := make(chan os.Signal, 1)
	signal.Notify(pipes, syscall.SIGPIPE)
	defer signal.Stop(pipes)
	ctx, cancelPlay := context.WithCancelCause(ctx)
	defer cancelPlay(nil)
	performer := *a
	performer.io.out = cancellingWriter{a.io.out, cancelPlay}
	d := &demo{app: &performer, began: time.Now()}
	defer d.cleanUp()
	playCtx, cancel := context.WithTimeout(ctx, demoLimit)
	defer cancel()
	if err := d.build(playCtx); err != nil {
		return d.explain(ctx, err)
	}
	if err := d.play(playCtx); err != nil {
		return d.explain(ctx, err)
	}
	if err := d.conclude(); err != nil || !keep {
		return err
	}
	d.printHowToPlay()
	<-ctx.Done()
	return nil
}

// cancellingWriter ends the demo when nobody can see it any more.
type cancellingWriter struct {
	w      io.Writer
	cancel context.CancelCauseFunc
}

func (w cancellingWriter) Write(b []byte) (int, error) {
	n, err := w.w.Write(b)
	if err != nil {
		w.cancel(fmt.Errorf("stopped, since the output cannot be written: %w", err))
	}
	return n, err
}

// explain adds where the nodes' logs were going, since they are removed with everything else.
func (d *demo) explain(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		if cause := context.Cause(ctx); !errors.Is(cause, context.Canceled) {
			return cause
		}
		return errors.New("interrupted")
	}
	for _, n := range d.nodes {
		if tail := n.logTail(); tail != "" {
			fmt.Fprintf(d.app.io.err, "--- end of the log of %s ---\n%s\n", n.name, tail)
		}
	}
	return err
}

// build starts Postgres and the two nodes.
func (d *demo) build(ctx context.Context) (err error) {
	if d.dir, err = os.MkdirTemp("", "pgedge-demo-"); err != nil {
		return fmt.Errorf("cannot make a directory: %w", err)
	}
	if d.pg, err = pgserver.New(ctx, pgserver.Options{}); err != nil {
		return fmt.Errorf("cannot start a throwaway Postgres: %w", err)
	}
	conn, err := d.pg.Connect(ctx, pgserver.Database)
	if err != nil {
		return err
	}
	defer conn.Close(context.WithoutCancel(ctx))
	var serverVersion string
	if err := conn.QueryRow(ctx, "SHOW server_version").Scan(&serverVersion); err != nil {
		return fmt.Errorf("cannot ask Postgres for its version: %w", err)
	}
	d.step("Postgres %s on %s, for this demo only", serverVersion, d.pg.Addr())
	if err := d.pg.Exec(ctx, demoSchema...); err != nil {
		return fmt.Errorf("cannot make the demo's tables: %w", err)
	}
	first, err := d.startNode(ctx, "demo-a", "")
	if err != nil {
		return err
	}
	d.step("node demo-a on %s, with NATS inside", first.addr)
	natsURL, err := os.ReadFile(filepath.Join(first.stateDir, "nats-url"))
	if err != nil {
		return fmt.Errorf("cannot read the address of the first node's NATS: %w", err)
	}
	second, err := d.startNode(ctx, "demo-b", strings.TrimSpace(string(natsURL)))
	if err != nil {
		return err
	}
	d.step("node demo-b on %s, connected to it", second.addr)
	return nil
}

// demoSchema has one table for the lock and one whose updates are slowed by a trigger.
var demoSchema = []string{
	`CREATE TABLE accounts (id int PRIMARY KEY, balance int NOT NULL)`,
	`INSERT INTO accounts VALUES (1, 100)`,
	`CREATE TABLE salaries (name text PRIMARY KEY, amount int NOT NULL)`,
	`INSERT INTO salaries VALUES ('alice', 1000)`,
	fmt.Sprintf(`CREATE FUNCTION slowly() RETURNS trigger LANGUAGE plpgsql AS $$
	BEGIN PERFORM pg_sleep(%g); RETURN NEW; END $$`, demoUpdateTakes.Seconds()),
	`CREATE TRIGGER slowly BEFORE UPDATE ON salaries FOR EACH ROW EXECUTE FUNCTION slowly()`,
	`GRANT ALL ON accounts, salaries TO PUBLIC`,
}

// step prints one line of the preparation, with the time since the start.
func (d *demo) step(format string, args ...any) {
	d.print("prepare", time.Since(d.began), fmt.Sprintf(format, args...))
}

// demoLineJSON is one line of the story.
type demoLineJSON struct {
	Phase string  `json:"phase"` // prepare | revoke | proof
	MS    float64 `json:"ms"`    // since the start, or since the revocation was typed
	Text  string  `json:"text"`
	OK    *bool   `json:"ok,omitempty"` // of a proof
}

func (d *demo) print(phase string, at time.Duration, text string) {
	ms := float64(at.Microseconds()) / 1000
	if d.app.json() {
		_ = d.app.printJSON(demoLineJSON{Phase: phase, MS: ms, Text: text})
		return
	}
	fmt.Fprintf(d.app.io.out, "%10s  %s\n", milliseconds(ms), text)
}

func (d *demo) heading(text string) {
	if !d.app.json() {
		fmt.Fprintf(d.app.io.out, "\n%s\n", text)
	}
}

// prove prints one promise and whether it held.
func (d *demo) prove(ok bool, format string, args ...any) {
	text := fmt.Sprintf(format, args...)
	if !ok {
		d.failed = append(d.failed, text)
	}
	if d.app.json() {
		_ = d.app.printJSON(demoLineJSON{Phase: "proof", MS: float64(time.Since(d.began).Milliseconds()), Text: text, OK: &ok})
		return
	}
	mark := "ok    "
	if !ok {
		mark = "FAILED"
	}
	fmt.Fprintf(d.app.io.out, "    %s  %s\n", mark, text)
}

// note prints a detail of the proof before it.
func (d *demo) note(format string, args ...any) {
	if d.app.json() {
		d.print("proof", time.Since(d.began), fmt.Sprintf(format, args...))
		return
	}
	fmt.Fprintf(d.app.io.out, "            %s\n", fmt.Sprintf(format, args...))
}

func (d *demo) conclude() error {
	took := time.Since(d.began)
	if d.app.json() {
		if err := d.app.printJSON(map[string]any{"ok": len(d.failed) == 0, "failed": len(d.failed), "took_ms": took.Milliseconds()}); err != nil {
			return err
		}
	}
	if n := len(d.failed); n > 0 {
		return fmt.Errorf("%s did not hold: %s", count(n, "promise", "promises"), strings.Join(d.failed, "; "))
	}
	if !d.app.json() {
		fmt.Fprintf(d.app.io.out, "\nEverything held, in %s.\n", took.Round(100*time.Millisecond))
	}
	return nil
}

func (d *demo) printHowToPlay() {
	self, err := os.Executable()
	if err != nil {
		self = "pgedge"
	}
	w := d.app.io.err
	fmt.Fprintf(w, "\nLeft running until Ctrl-C. In another terminal:\n\n")
	for _, n := range d.nodes {
		fmt.Fprintf(w, "  psql %s    # %s\n", pgserver.URL(n.addr, "bob", pgserver.Password("bob"), pgserver.Database), n.name)
	}
	state := d.nodes[0].stateDir
	for _, line := range []string{"sessions", "revoke bob --reason playing", "reinstate bob", "reinstate alice", "nodes"} {
		fmt.Fprintf(w, "  %s %s --state-dir %s\n", self, line, state)
	}
}

// cleanUp also runs after Ctrl-C, so it has a time of its own.
func (d *demo) cleanUp() {
	for i := len(d.nodes) - 1; i >= 0; i-- {
		d.nodes[i].stop()
	}
	if d.pg != nil {
		if err := d.pg.Stop(); err != nil {
			fmt.Fprintf(d.app.io.err, "pgedge: cannot remove the throwaway Postgres: %v\n", err)
		}
	}
	if d.dir != "" {
		if err := os.RemoveAll(d.dir); err != nil {
			fmt.Fprintf(d.app.io.err, "pgedge: cannot clean up: %v\n", err)
		}
	}
}
