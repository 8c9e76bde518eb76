package main

import (
	"bufio"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/spf13/cobra"

	"pgedge/revoke"
)

const (
	// maxVerifyReceipts bounds the receipts of one file, maxFindings those that are told.
	maxVerifyReceipts = 1_000_000
	maxFindings       = 1000
	// storedAfter is by how much the clocks of a node and of the store may differ when the store is searched.
	storedAfter = 24 * time.Hour
)

// discrepancy is one thing that is wrong with a file of receipts.
type discrepancy struct {
	Receipt    int    `json:"receipt"` // its number in the file, from 1
	Revocation string `json:"revocation,omitempty"`
	Node       string `json:"node,omitempty"`
	Problem    string `json:"problem"`
}

type verifyJSON struct {
	Receipts   int  `json:"receipts"`
	NotFinal   int  `json:"not_final"` // receipts whose node had not said its last word
	Findings   int  `json:"findings"`
	Consistent bool `json:"consistent"`
	Signed     bool `json:"signed"` // always false in this version
}

// claimed is a receipt of the file, without its sessions but with a sum over all of it.
type claimed struct {
	number  int
	summary revoke.Receipt
	sum     [sha256.Size]byte
	stored  bool
}

// verification compares a file with what the cluster has stored.
type verification struct {
	claims   map[string]*claimed // by revocation, node and boot
	order    []*claimed
	earliest time.Time
	receipts int
	notFinal int
	count    int // of findings
	told     []discrepancy
}

func (a *app) receiptsVerifyCommand() *cobra.Command {
	var connect connectFlags
	cmd := &cobra.Command{
		Use:   "verify FILE",
		Short: "Compare saved receipts with the stored journal and receipts",
		Long: `Check a file that receipts export --format json or receipts show -o json has written (- is standard input): that each
receipt is consistent in itself, with its sessions complete, its counts adding up and its times possible; that the journal holds its
fact, or a newer one of the same verb and scope; and that the stored receipt is the same to the last byte.

Prints what is wrong, one line per finding, and exits with 1 then. Receipts are not signed in this version: a
file that agrees with the store proves that the file was not changed, not that the store was not.`,
		Example: "  pgedge receipts verify receipts.json\n  pgedge receipts show HR-1234 -o json | pgedge receipts verify -",
		Args:    oneArg("FILE"),
		RunE: func(cmd *cobra.Command, args []string) error {
			in := a.io.in
			if args[0] != "-" {
				f, err := os.Open(args[0])
				if err != nil {
					return fmt.Errorf("cannot read the receipts: %w", err)
				}
				defer f.Close()
				in = f
			}
			v := &verification{claims: make(map[string]*claimed)}
			if err := v.read(in, time.Now()); err != nil {
				return fmt.Errorf("cannot read the receipts in %s: %w", args[0], err)
			}
			client, err := connect.dial(cmd.Context())
			if err != nil {
				return err
			}
			defer client.Close()
			ctx, cancel := context.WithTimeout(cmd.Context(), exportTimeout)
			defer cancel()
			newest, last, err := client.FactPositions(ctx)
			if err != nil {
				return err
			}
			v.checkJournal(newest, last)
			since := time.Time{}
			if !v.earliest.IsZero() {
				since = v.earliest.Add(-storedAfter)
			}
			if err := client.EachReceipt(ctx, since, v.compare); err != nil {
				return err
			}
			v.checkMissing()
			return a.printVerification(v)
		},
	}
	connect.register(cmd)
	return cmd
}

func claimKey(r revoke.Receipt) string { return r.Revocation + "." + r.Node + "." + r.Boot }

// contentSum is over everything a receipt says. Readers spell an empty list in two ways.
func contentSum(r revoke.Receipt) ([sha256.Size]byte, error) {
	if len(r.Sessions) == 0 {
		r.Sessions = nil
	}
	b, err := json.Marshal(r)
	if err != nil {
		return [sha256.Size]byte{}, fmt.Errorf("cannot encode a receipt: %w", err)
	}
	return sha256.Sum256(b), nil
}

// read takes the file's receipts and checks each by itself.
func (v *verification) read(in io.Reader, now time.Time) error {
	d := json.NewDecoder(bufio.NewReaderSize(in, 1<<20))
	d.DisallowUnknownFields()
	for {
		var r revoke.Receipt
		err := d.Decode(&r)
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return fmt.Errorf("receipt %d is none in the form of receipts export --format json or receipts show -o json: %w", v.receipts+1, err)
		}
		v.receipts++
		if v.receipts > maxVerifyReceipts {
			return fmt.Errorf("there are more than %d receipts: verify them in parts", maxVerifyReceipts)
		}
		if err := v.claim(r, now); err != nil {
			return err
		}
	}
	if v.receipts == 0 {
		return errors.New("there is none")
	}
	return nil
}

func (v *verification) claim(r revoke.Receipt, now time.Time) error {
	sum, err := contentSum(r)
	if err != nil {
		return err
	}
	c := &claimed{number: v.receipts, sum: sum, summary: r}
	c.summary.Sessions = nil
	for _, p := range r.Problems(now) {
		v.find(c, p)
	}
	if !r.Final() {
		v.notFinal++
	}
	if twin := v.claims[claimKey(r)]; twin != nil {
		v.find(c, fmt.Sprintf("it is about the same revocation and boot as receipt %d", twin.number))
		return nil
	}
	v.claims[claimKey(r)] = c
	v.order = append(v.order, c)
	if !r.ReceivedAt.IsZero() && (v.earliest.IsZero() || r.ReceivedAt.Before(v.earliest)) {
		v.earliest = r.ReceivedAt
	}
	return nil
}

func (v *verification) find(c *claimed, problem string) {
	v.count++
	if len(v.told) < maxFindings {
		v.told = append(v.told, discrepancy{c.number, c.summary.Revocation, c.summary.Node, problem})
	}
}

// checkJournal holds each receipt to the journal: it keeps the newest fact of a verb and scope for ever.
func (v *verification) checkJournal(newest map[string]uint64, last uint64) {
	for _, c := range v.order {
		r := c.summary
		claims := max(r.Seq, r.SupersededBy)
		at, there := newest[r.Verb+" "+r.Scope]
		switch {
		case claims > last:
			v.find(c, fmt.Sprintf("it names seq %d, and the journal ends at %d: it is another journal, or was restored", claims, last))
		case !there:
			v.find(c, fmt.Sprintf("the journal holds no %s of %s", r.Verb, r.Scope))
		case at < claims:
			v.find(c, fmt.Sprintf("it names seq %d, and the newest %s of %s in the journal is seq %d", claims, r.Verb, r.Scope, at))
		}
	}
}

// compare takes a stored receipt.
func (v *verification) compare(r revoke.Receipt, whole bool) error {
	c := v.claims[claimKey(r)]
	if c == nil {
		return nil
	}
	c.stored = true
	sum, err := contentSum(r)
	if err != nil {
		return err
	}
	switch {
	case !whole:
		v.find(c, "the stored receipt is not complete: pages are missing")
	case sum == c.sum:
	case r.Stage != c.summary.Stage || r.Final() != c.summary.Final():
		v.find(c, fmt.Sprintf("the stored receipt has come to stage %s, this one is of stage %s", r.Stage, c.summary.Stage))
	default:
		v.find(c, "it differs from the stored receipt"+differs(c.summary, r))
	}
	return nil
}

// differs names the field in which two summaries differ, if it is one of those that matter most.
func differs(a, b revoke.Receipt) string {
	for _, f := range []struct {
		name string
		same bool
	}{
		{"seq", a.Seq == b.Seq}, {"verb", a.Verb == b.Verb}, {"scope", a.Scope == b.Scope}, {"matched", a.Matched == b.Matched}, {"unverified", a.Unverified == b.Unverified},
		{"reason", a.Reason == b.Reason}, {"actor", a.Actor == b.Actor}, {"received_at", a.ReceivedAt.Equal(b.ReceivedAt)}, {"pages", a.Pages == b.Pages},
	} {
		if !f.same {
			return " in " + f.name
		}
	}
	return ""
}

func (v *verification) checkMissing() {
	for _, c := range v.order {
		if !c.stored {
			v.find(c, "no such receipt is stored (they are kept for 13 months)")
		}
	}
}

func (a *app) printVerification(v *verification) error {
	result := verifyJSON{Receipts: v.receipts, NotFinal: v.notFinal, Findings: v.count, Consistent: v.count == 0}
	if a.json() {
		for _, f := range v.told {
			if err := a.printJSON(f); err != nil {
				return err
			}
		}
		if err := a.printJSON(result); err != nil {
			return err
		}
	} else {
		for _, f := range v.told {
			fmt.Fprintf(a.io.out, "receipt %d, %s on %s: %s\n", f.Receipt, printable(f.Revocation), printable(f.Node), printable(f.Problem))
		}
		if v.count > len(v.told) {
			fmt.Fprintf(a.io.out, "and %d more\n", v.count-len(v.told))
		}
		verdict := "consistent with the stored journal and receipts"
		if v.count > 0 {
			verdict = count(v.count, "finding", "findings")
		}
		fmt.Fprintf(a.io.out, "%s checked, %d not final: %s\nnot checked: signatures, which this version does not make\n", count(v.receipts, "receipt", "receipts"), v.notFinal, verdict)
	}
	if v.count > 0 {
		return exitSilently(exitFailed)
	}
	return nil
}
