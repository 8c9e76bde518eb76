package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"pgedge/engine"
	"pgedge/revoke"
)

func (d *demo) proveRevocation(r revoked) {
	d.heading("what was promised")
	d.prove(r.exitCode == exitDone && r.verdict.Verdict == revoke.Complete, "the verdict is %s (exit code %d)", r.verdict.Verdict, r.exitCode)
	ended, told := 0, 0
	for _, role := range r.cast {
		select {
		case <-role.ended:
			ended++
			var pgErr *pgconn.PgError
			if errors.As(role.err, &pgErr) && pgErr.Code == engine.ReasonRevoked.SQLState() {
				told++
			}
		default:
		}
	}
	d.prove(ended == len(r.cast), "%d of alice's %d sessions ended, %d were told why", ended, len(r.cast), told)
}

func (d *demo) proveReceipts(ctx context.Context, r revoked) error {
	cmd, err := d.command(ctx, "receipts", "show", r.id)
	if err != nil {
		return err
	}
	out, err := cmd.Output()
	if err != nil {
		return fmt.Errorf("cannot show the receipts: %w", err)
	}
	matched, verified, gone := 0, 0, 0
	aborted := map[string]bool{}
	var after int64
	nodes := 0
	var times []string
	for line := range bytes.Lines(out) {
		var receipt revoke.Receipt
		if err := json.Unmarshal(line, &receipt); err != nil {
			return fmt.Errorf("cannot read a receipt: %w", err)
		}
		nodes++
		times = append(times, fmt.Sprintf("%s: %s", receipt.Node, pace(receipt)))
		matched += receipt.Matched
		for _, s := range receipt.Sessions {
			after += s.BytesAfter
			if s.Verified {
				verified++
			}
			if s.Backend == "gone" {
				gone++
			}
			aborted[s.Application] = s.Xact == "aborted"
		}
	}
	d.prove(nodes == len(d.nodes) && matched == len(r.cast) && verified == matched && gone == matched,
		"the receipts of %d nodes say: %d sessions cut, %d verified, %d backends seen gone", nodes, matched, verified, gone)
	for _, t := range times {
		d.note("%s", t)
	}
	d.prove(after == 0, "they say: %d bytes passed after the cut", after)
	d.prove(aborted[updating], "they say: the transaction of the UPDATE was aborted")
	return nil
}

// proveInDatabase asks Postgres itself, not pgedge.
func (d *demo) proveInDatabase(ctx context.Context, admin *pgx.Conn, r revoked, updateBegan time.Time) error {
	var backends int
	if err := admin.QueryRow(ctx, "SELECT count(*) FROM pg_stat_activity WHERE usename = 'alice'").Scan(&backends); err != nil {
		return fmt.Errorf("cannot count alice's backends: %w", err)
	}
	d.prove(backends == 0, "Postgres has %d backends of alice", backends)
	var balance int
	err := admin.QueryRow(ctx, demoLock+" NOWAIT").Scan(&balance)
	d.prove(err == nil, "the row that alice had locked is free%s", because(err))
	for _, n := range d.nodes {
		conn, err := d.connect(ctx, n, "alice", "again")
		if err == nil {
			conn.Close(ctx)
		}
		var pgErr *pgconn.PgError
		refused := errors.As(err, &pgErr) && pgErr.Code == engine.ReasonRevoked.SQLState()
		said := fmt.Sprint(err)
		if pgErr != nil {
			said = fmt.Sprintf("%s %s: %s", pgErr.Severity, pgErr.Code, pgErr.Message)
			if pgErr.Hint != "" {
				said += " (HINT: " + pgErr.Hint + ")"
			}
		}
		d.prove(refused, "alice is refused on %s: %s", n.name, said)
	}
	wouldEnd := updateBegan.Add(demoUpdateTakes + demoPatience)
	if err := until(ctx, wouldEnd); err != nil {
		return err
	}
	var amount int
	if err := admin.QueryRow(ctx, "SELECT amount FROM salaries WHERE name = 'alice'").Scan(&amount); err != nil {
		return fmt.Errorf("cannot read the salary: %w", err)
	}
	d.prove(amount == 1000, "the UPDATE would have ended %s ago, and the value is still %d", demoPatience, amount)
	return nil
}

func because(err error) string {
	if err == nil {
		return ""
	}
	return fmt.Sprintf(": %v", err)
}

func errorsSeen(err error) string {
	if err != nil {
		return fmt.Sprintf("an error (%v)", err)
	}
	return "no error"
}
