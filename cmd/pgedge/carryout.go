package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"pgedge/cluster"
	"pgedge/revoke"
)

// maxWaiting bounds the revocations whose receipts are collected at a time.
const maxWaiting = 32

// storedJSON says that a fact is stored.
type storedJSON struct {
	Revocation   string     `json:"revocation"`
	Seq          uint64     `json:"seq"`
	Verb         string     `json:"verb"`
	Scope        string     `json:"scope"`
	Status       string     `json:"status"` // stored
	SupersededBy uint64     `json:"superseded_by,omitempty"`
	Until        *time.Time `json:"until,omitempty"`
	Upto         uint64     `json:"upto,omitempty"`
}

type nodeLineJSON struct {
	Revocation string `json:"revocation"`
	revoke.NodeStatus
}

type verdictJSON struct {
	Revocation string              `json:"revocation"`
	Seq        uint64              `json:"seq"`
	Verb       string              `json:"verb"`
	Scope      string              `json:"scope"`
	Verdict    revoke.Verdict      `json:"verdict"`
	Matched    int                 `json:"matched"`
	Unverified int                 `json:"unverified"`
	Nodes      []revoke.NodeStatus `json:"nodes"`
}

// carryOut publishes one fact per scope and waits for each verdict. The exit code is that of the worst.
//
// All facts are published before the first is waited for: the second user's sessions must not live on while the
// first one's proof is collected.
func (a *app) carryOut(ctx context.Context, client *cluster.Client, verb revoke.Verb, scopes []revoke.Scope, opts cluster.PublishOptions, wait time.Duration, noWait bool) error {
	pubs := make([]*cluster.Publication, 0, len(scopes))
	var failed []error
	for _, scope := range scopes {
		pub, err := client.Publish(ctx, verb, scope, opts)
		if err != nil {
			failed = append(failed, err)
			continue
		}
		pubs = append(pubs, pub)
		if err := a.printStored(pub, opts); err != nil {
			return err
		}
	}
	code := exitDone
	if noWait {
		for _, pub := range pubs {
			client.Release(pub)
		}
		if len(pubs) > 0 && !a.json() {
			fmt.Fprintln(a.io.out, "not waiting: stored, not proven")
		}
	} else {
		limit := wait
		if limit == 0 {
			limit = client.WaitLimit()
		}
		worst, err := a.awaitAll(ctx, client, pubs, limit)
		if err != nil {
			return err
		}
		code = worst
	}
	if len(failed) > 0 {
		return notStored(failed, len(scopes))
	}
	return exitSilently(code)
}

// notStored is exit code 4 when a fact was sent and not proven stored, since it may have cut sessions; 1 otherwise.
func notStored(failed []error, total int) error {
	code := exitFailed
	for _, err := range failed {
		if errors.Is(err, cluster.ErrNotStored) {
			code = exitUnproven
		}
	}
	err := errors.Join(failed...)
	if total > 1 {
		err = fmt.Errorf("%d of %d failed: %w", len(failed), total, err)
	}
	return &codeError{code: code, err: err}
}

func (a *app) printStored(pub *cluster.Publication, opts cluster.PublishOptions) error {
	if a.json() {
		j := storedJSON{Revocation: pub.ID, Seq: pub.Seq, Verb: pub.Verb.String(), Scope: pub.Scope.Token(), Status: "stored", SupersededBy: pub.SupersededBy, Upto: opts.Upto}
		if !opts.Until.IsZero() {
			until := opts.Until.UTC()
			j.Until = &until
		}
		return a.printJSON(j)
	}
	fmt.Fprintf(a.io.out, "stored  %s  seq %d  %s %s", pub.ID, pub.Seq, pub.Verb, pub.Scope)
	if !opts.Until.IsZero() {
		fmt.Fprintf(a.io.out, " until %s", stamp(opts.Until))
	}
	if pub.SupersededBy > 0 {
		fmt.Fprintf(a.io.out, " (a newer %s of the same scope, seq %d, has taken its place)", pub.Verb, pub.SupersededBy)
	}
	fmt.Fprintln(a.io.out)
	return nil
}

// outcome is what waiting for one publication gave.
type outcome struct {
	verdict  revoke.FleetVerdict
	receipts []revoke.Receipt
	err      error
}

// awaitAll waits for all publications at the same time and prints them one after the other.
func (a *app) awaitAll(ctx context.Context, client *cluster.Client, pubs []*cluster.Publication, limit time.Duration) (worst int, err error) {
	waitCtx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	lines := make([]chan revoke.NodeStatus, len(pubs))
	outcomes := make([]chan outcome, len(pubs))
	slots := make(chan struct{}, maxWaiting)
	for i := range pubs {
		lines[i] = make(chan revoke.NodeStatus, 1024)
		outcomes[i] = make(chan outcome, 1)
	}
	go func() {
		for i, pub := range pubs {
			slots <- struct{}{}
			go func() {
				defer func() { <-slots }()
				v, receipts, err := client.Await(waitCtx, pub, func(s revoke.NodeStatus) {
					select {
					case lines[i] <- s:
					default: // the verdict lists every node again
					}
				})
				close(lines[i])
				outcomes[i] <- outcome{v, receipts, err}
			}()
		}
	}()
	var printErr error
	for i, pub := range pubs {
		if len(pubs) > 1 && !a.json() {
			fmt.Fprintf(a.io.out, "%s %s\n", pub.Verb, pub.Scope)
		}
		for s := range lines[i] {
			printErr = errors.Join(printErr, a.printNodeLine(pub, s))
		}
		o := <-outcomes[i]
		if o.err != nil {
			return worst, o.err
		}
		printErr = errors.Join(printErr, a.printVerdict(pub, o))
		worst = max(worst, o.verdict.Verdict.ExitCode())
	}
	if ctx.Err() != nil && worst == exitUnproven {
		fmt.Fprintln(a.io.err, "pgedge: interrupted while waiting; what is stored goes on being carried out")
	}
	return worst, printErr
}

func (a *app) printNodeLine(pub *cluster.Publication, s revoke.NodeStatus) error {
	if a.json() {
		return a.printJSON(nodeLineJSON{pub.ID, s})
	}
	_, err := fmt.Fprintf(a.io.out, "  %-20s  %-9s  after %s\n", s.Node, s.Status, milliseconds(s.AfterMS))
	return err
}

func (a *app) printVerdict(pub *cluster.Publication, o outcome) error {
	matched, unverified := totals(o.receipts)
	if a.json() {
		nodes := o.verdict.Nodes
		if nodes == nil {
			nodes = []revoke.NodeStatus{}
		}
		return a.printJSON(verdictJSON{pub.ID, pub.Seq, pub.Verb.String(), pub.Scope.Token(), o.verdict.Verdict, matched, unverified, nodes})
	}
	w := a.io.out
	slowest := 0.0
	for _, n := range o.verdict.Nodes {
		slowest = max(slowest, n.AfterMS)
	}
	fmt.Fprintf(w, "%s: %s, %s on %s", o.verdict.Verdict, explain(o.verdict.Verdict), count(matched, "session", "sessions"), count(len(o.verdict.Nodes), "node", "nodes"))
	if unverified > 0 {
		fmt.Fprintf(w, ", %d not seen gone", unverified)
	}
	fmt.Fprintf(w, ", %s\n", milliseconds(slowest))
	for _, r := range o.receipts {
		fmt.Fprintf(w, "  %-20s  %s, %s\n", r.Node, count(r.Matched, "session", "sessions"), pace(r))
	}
	for _, why := range whys(o.receipts) {
		fmt.Fprintf(w, "  not verified: %s\n", printable(why))
	}
	if r := residue(o.receipts); r != "" {
		fmt.Fprintf(w, "  left behind: %s\n", r)
	}
	if matched == 0 && o.verdict.Verdict != revoke.Incomplete {
		fmt.Fprintf(a.io.err, "warning: %s matched no session; check the spelling (pgedge sessions lists what is known)\n", pub.Scope)
	}
	_, err := fmt.Fprintf(w, "receipt: pgedge receipts show %s\n", pub.ID)
	return err
}

func explain(v revoke.Verdict) string {
	switch v {
	case revoke.Complete:
		return "every backend was seen gone"
	case revoke.CompleteFenced:
		return "some node is proven shut by its lease only"
	case revoke.CompleteUnverified:
		return "cut and closed everywhere, not every backend was seen gone"
	case revoke.Incomplete:
		return "stored, but not proven in time"
	}
	return string(v)
}

func totals(receipts []revoke.Receipt) (matched, unverified int) {
	for _, r := range receipts {
		matched += r.Matched
		unverified += r.Unverified
	}
	return matched, unverified
}
