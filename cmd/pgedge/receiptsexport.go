package main

import (
	"context"
	"encoding/csv"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"pgedge/revoke"
)

// exportTimeout bounds an export, which reads up to four gibibytes; defaultExport is a quarter, as auditors ask for.
const (
	exportTimeout = time.Hour
	defaultExport = 90 * 24 * time.Hour
)

// days is a duration that may also be given in days: 90d.
type days time.Duration

func (d *days) String() string {
	if v := time.Duration(*d); v >= 24*time.Hour && v%(24*time.Hour) == 0 {
		return fmt.Sprintf("%dd", v/(24*time.Hour))
	}
	return time.Duration(*d).String()
}

func (d *days) Set(s string) error {
	if n, ok := strings.CutSuffix(s, "d"); ok {
		whole, err := strconv.Atoi(n)
		if err != nil || whole < 0 || whole > 10_000 {
			return errors.New("is neither days, like 90d, nor a duration, like 72h")
		}
		*d = days(whole) * days(24*time.Hour)
		return nil
	}
	v, err := time.ParseDuration(s)
	if err != nil {
		return errors.New("is neither days, like 90d, nor a duration, like 72h")
	}
	*d = days(v)
	return nil
}

func (d *days) Type() string { return "duration" }

// receiptWriter writes receipts in one format. end is called after the last one.
type receiptWriter interface {
	write(r revoke.Receipt) error
	end() error
}

func (a *app) receiptsExportCommand() *cobra.Command {
	var connect connectFlags
	since, format := days(defaultExport), "csv"
	cmd := &cobra.Command{
		Use:   "export",
		Short: "Write the receipts as evidence for an auditor",
		Long: `Write the receipts that were stored since then to standard output, oldest first:

  csv   one row per session with all that is recorded about it and its revocation; a node that had no matching
        session has one row with the columns of the session empty
  ocsf  events of the Open Cybersecurity Schema Framework 1.3.0, one JSON object per line: Account Change (3001) per
        revocation or suspension of a principal or role and node, Authentication: Logoff (3002) per session
  json  the receipts as they are stored (pgedge.receipt/v1), one per line; receipts verify reads this form

A receipt whose pages are not all there is written without its sessions, and makes the exit code 3. In CSV a text
that a spreadsheet would take for a formula has an apostrophe in front.`,
		Example: "  pgedge receipts export --since 90d > revocations.csv\n  pgedge receipts export --format json > receipts.json && pgedge receipts verify receipts.json",
		Args:    noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if since <= 0 || time.Duration(since) > maxSince {
				return usageErrorf("--since %s: is out of range: more than 0, up to 400d", &since)
			}
			var w receiptWriter
			switch format {
			case "csv":
				w = newCSVWriter(a.io.out)
			case "ocsf":
				w = &ocsfWriter{a: a}
			case "json":
				w = jsonWriter{a}
			default:
				return usageErrorf("--format %s: is none of csv, ocsf, json", format)
			}
			client, err := connect.dial(cmd.Context())
			if err != nil {
				return err
			}
			defer client.Close()
			ctx, cancel := context.WithTimeout(cmd.Context(), exportTimeout)
			defer cancel()
			receipts, incomplete := 0, 0
			err = client.EachReceipt(ctx, time.Now().Add(-time.Duration(since)), func(r revoke.Receipt, whole bool) error {
				receipts++
				if !whole {
					incomplete++
					fmt.Fprintf(a.io.err, "warning: the receipt of %s on %s is not complete: pages are missing, and its sessions are left out\n", r.Revocation, r.Node)
				}
				return w.write(r)
			})
			if err := errors.Join(err, w.end()); err != nil {
				return err
			}
			fmt.Fprintf(a.io.err, "%s exported\n", count(receipts, "receipt", "receipts"))
			if incomplete > 0 {
				return exitSilently(exitUnverified)
			}
			return nil
		},
	}
	connect.register(cmd)
	cmd.Flags().Var(&since, "since", "how far back, for example 90d or 72h; receipts are kept for 13 months")
	cmd.Flags().StringVar(&format, "format", format, "csv, ocsf or json")
	must(cmd.RegisterFlagCompletionFunc("format", cobra.FixedCompletions([]string{"csv", "ocsf", "json"}, cobra.ShellCompDirectiveNoFileComp)))
	return cmd
}

type jsonWriter struct{ a *app }

func (w jsonWriter) write(r revoke.Receipt) error { return w.a.printJSON(r) }
func (w jsonWriter) end() error                   { return nil }

// csvColumns are the columns before and behind those of the session, in the order of the file.
var csvColumns = []string{
	"revocation", "seq", "epoch", "superseded_by", "verb", "scope", "reason", "actor", "source", "published_at",
	"node", "boot", "version", "received_via", "received_at", "stage", "final", "matched", "unverified", "cut_us", "closed_us", "verified_us",
	"session", "principal", "role", "database", "client", "application", "since", "state", "cut", "backend_pid", "backend_start", "backend",
	"verified", "why", "xact", "more_possible", "bytes_after_cut", "sqlstate",
	"prepared_xacts", "replication_slots", "direct_sessions", "role_can_login", "stopped_for", "swept", "residue_why",
}

type csvWriter struct{ w *csv.Writer }

func newCSVWriter(out io.Writer) *csvWriter {
	w := &csvWriter{csv.NewWriter(out)}
	_ = w.w.Write(csvColumns) // an error is kept by the writer, and found at the next row or the end
	return w
}

func (w *csvWriter) write(r revoke.Receipt) error {
	number := func(n int64) string { return strconv.FormatInt(n, 10) }
	head := []string{
		r.Revocation, strconv.FormatUint(r.Seq, 10), strconv.FormatUint(r.Epoch, 10), strconv.FormatUint(r.SupersededBy, 10), r.Verb, r.Scope,
		r.Reason, r.Actor, r.Source, instant(r.PublishedAt), r.Node, r.Boot, r.Version, r.ReceivedVia, instant(r.ReceivedAt), string(r.Stage),
		strconv.FormatBool(r.Final()), strconv.Itoa(r.Matched), strconv.Itoa(r.Unverified), number(r.CutUS), number(r.ClosedUS), number(r.VerifiedUS),
	}
	tail := residueCells(r.Residue)
	if len(r.Sessions) == 0 {
		return w.row(head, make([]string, len(csvColumns)-len(head)-len(tail)), tail)
	}
	for _, s := range r.Sessions {
		err := w.row(head, []string{
			s.ID, s.Principal, s.Role, s.Database, s.Client, s.Application, instant(s.Since), s.State, s.Cut, strconv.FormatUint(uint64(s.BackendPID), 10),
			s.BackendStart, s.Backend, strconv.FormatBool(s.Verified), s.Why, s.Xact, strconv.FormatBool(s.MorePossible), number(s.BytesAfter), s.SQLState,
		}, tail)
		if err != nil {
			return err
		}
	}
	return nil
}

// residueCells are empty for what was not looked at. What is a list or an object stays JSON.
func residueCells(d *revoke.Residue) []string {
	if d == nil {
		d = &revoke.Residue{}
	}
	stopped, swept := "", ""
	if len(d.StoppedFor) > 0 {
		stopped = compact(d.StoppedFor)
	}
	if d.Swept != nil {
		swept = compact(d.Swept)
	}
	return []string{known(d.PreparedXacts), known(d.ReplicationSlots), known(d.DirectSessions), known(d.RoleCanLogin), stopped, swept, d.Why}
}

func compact(v any) string {
	b, err := json.Marshal(v)
	if err != nil {
		return "cannot be written: " + err.Error()
	}
	return string(b)
}

func (w *csvWriter) row(parts ...[]string) error {
	var row []string
	for _, p := range parts {
		for _, cell := range p {
			row = append(row, inert(cell))
		}
	}
	if err := w.w.Write(row); err != nil {
		return fmt.Errorf("cannot write: %w", err)
	}
	return nil
}

func (w *csvWriter) end() error {
	w.w.Flush()
	if err := w.w.Error(); err != nil {
		return fmt.Errorf("cannot write: %w", err)
	}
	return nil
}

// inert keeps a spreadsheet from taking a text for a formula: application names and reasons are chosen by others.
func inert(cell string) string {
	if cell == "" || !strings.ContainsRune("=+-@\t\r", rune(cell[0])) {
		return cell
	}
	return "'" + cell
}

// instant is a time with all its digits, as JSON has it.
func instant(t time.Time) string {
	if t.IsZero() {
		return ""
	}
	return t.UTC().Format(time.RFC3339Nano)
}

// known is a number or truth as text, empty where it is not known.
func known[T any](v *T) string {
	if v == nil {
		return ""
	}
	return fmt.Sprint(*v)
}
