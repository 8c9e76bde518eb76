package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"

	"pgedge/internal/pgserver"
	"pgedge/revoke"
)

const demoReason = "demo: laptop stolen"

// play is the story: everybody is in place, alice is revoked, and what was promised is looked at.
func (d *demo) play(ctx context.Context) error {
	admin, err := d.pg.Connect(ctx, pgserver.Database)
	if err != nil {
		return err
	}
	defer admin.Close(context.WithoutCancel(ctx))
	bob, err := d.startBystander(ctx, d.nodes[1])
	if err != nil {
		return err
	}
	defer bob.finish()
	var copied atomic.Int64
	cast := d.cast(&copied)
	for _, r := range cast {
		if err := d.enter(ctx, r); err != nil {
			return err
		}
		defer r.conn.PgConn().Conn().Close()
	}
	updateBegan := time.Now()
	if err := d.waitInPlace(ctx, admin, &copied, cast); err != nil {
		return err
	}
	for _, r := range cast {
		d.step("alice on %s: %s", r.node.name, r.what)
	}
	d.step("bob on %s: a query every 2 ms", d.nodes[1].name)
	if err := until(ctx, updateBegan.Add(demoHeadStart)); err != nil {
		return err
	}
	bob.reset()
	result, err := d.revokeAlice(ctx, cast)
	if err != nil {
		return err
	}
	d.proveRevocation(result)
	if err := d.proveReceipts(ctx, result); err != nil {
		return err
	}
	if err := d.proveInDatabase(ctx, admin, result, updateBegan); err != nil {
		return err
	}
	queries, slowest, bobErr := bob.finish()
	d.prove(bobErr == nil && queries > 0, "bob saw %s in %d queries, the slowest took %s", errorsSeen(bobErr), queries, milliseconds(float64(slowest.Microseconds())/1000))
	return nil
}

func (d *demo) waitInPlace(ctx context.Context, admin *pgx.Conn, copied *atomic.Int64, cast []*role) error {
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		missing, err := d.inPlace(ctx, admin, copied)
		if err != nil {
			return err
		}
		if missing == "" {
			return nil
		}
		for _, r := range cast {
			select {
			case <-r.ended:
				return fmt.Errorf("while waiting for %s: alice's session on %s (%s) ended too early: %s", missing, r.node.name, r.what, r.lastWords())
			default:
			}
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return fmt.Errorf("%s did not get going: %w", missing, ctx.Err())
		}
	}
}

func until(ctx context.Context, t time.Time) error {
	timer := time.NewTimer(time.Until(t))
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// revoked is what the revocation said.
type revoked struct {
	id       string
	exitCode int
	verdict  verdictJSON
	cast     []*role
}

// revokeAlice runs the command that a person would run, in a process of its own, and prints what happens in the
// order of time.
func (d *demo) revokeAlice(ctx context.Context, cast []*role) (revoked, error) {
	out := revoked{cast: cast}
	d.heading("pgedge revoke alice --reason '" + demoReason + "'")
	cmd, err := d.command(ctx, "revoke", "alice", "--reason", demoReason)
	if err != nil {
		return out, err
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		return out, fmt.Errorf("cannot run pgedge revoke: %w", err)
	}
	var complaints bytes.Buffer
	cmd.Stderr = &complaints
	typed := time.Now()
	if err := cmd.Start(); err != nil {
		return out, fmt.Errorf("cannot run pgedge revoke: %w", err)
	}
	type event struct {
		at   time.Time
		text string
	}
	var events []event
	lines := bufio.NewScanner(stdout)
	for lines.Scan() {
		now := time.Now()
		var line struct {
			storedJSON
			Node    string         `json:"node"`
			AfterMS float64        `json:"after_ms"`
			Verdict revoke.Verdict `json:"verdict"`
		}
		if err := json.Unmarshal(lines.Bytes(), &line); err != nil {
			return out, fmt.Errorf("cannot read what pgedge revoke prints: %w", err)
		}
		switch {
		case line.Verdict != "":
			if err := json.Unmarshal(lines.Bytes(), &out.verdict); err != nil {
				return out, fmt.Errorf("cannot read the verdict: %w", err)
			}
			events = append(events, event{now, fmt.Sprintf("verdict: %s, %s", line.Verdict, count(out.verdict.Matched, "session", "sessions"))})
		case line.Node != "":
			events = append(events, event{now, fmt.Sprintf("node %s: %s, %s after it was stored", line.Node, line.Status, milliseconds(line.AfterMS))})
		default:
			out.id = line.Revocation
			events = append(events, event{now, fmt.Sprintf("stored as %s, seq %d", line.Revocation, line.Seq)})
		}
	}
	if err := cmd.Wait(); err != nil {
		var exit *exec.ExitError
		if !errors.As(err, &exit) {
			return out, fmt.Errorf("cannot run pgedge revoke: %w", err)
		}
		out.exitCode = exit.ExitCode()
	}
	if complaints.Len() > 0 {
		fmt.Fprint(d.app.io.err, complaints.String())
	}
	for _, r := range cast {
		select {
		case <-r.ended:
			events = append(events, event{r.at, fmt.Sprintf("alice on %s, %s: %s", r.node.name, r.what, r.lastWords())})
		case <-time.After(2 * time.Second):
			// proveRevocation says that it did not end.
		}
	}
	slices.SortStableFunc(events, func(a, b event) int { return a.at.Compare(b.at) })
	for _, e := range events {
		d.print("revoke", e.at.Sub(typed), e.text)
	}
	return out, nil
}

// command is this program, talking to the first node.
func (d *demo) command(ctx context.Context, args ...string) (*exec.Cmd, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, fmt.Errorf("cannot find this program: %w", err)
	}
	cmd := exec.CommandContext(ctx, self, append(args, "--state-dir", d.nodes[0].stateDir, "-o", "json")...)
	cmd.Env = cleanEnviron()
	return cmd, nil
}
