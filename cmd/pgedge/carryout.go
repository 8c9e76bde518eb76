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
	// StoredMS is the time from the first attempt to store until the fact was seen stored. after_ms of the nodes begins there.
	StoredMS float64 `json:"stored_ms"`
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
	Unverified int                 `json:"unverified"` // backends known to be concerned and not seen gone
	Nodes      []revoke.NodeStatus `json:"nodes"`
}

// carryOut publishes one fact per scope and waits for each verdict. The exit code is that of the worst. A wait that is
// not 0 bounds everything, the publishing too.
//
// All facts are published at the same time and before the first is waited for: the second user's sessions must not
// live on while the first one's fact hangs or its proof is collected.
func (a *app) carryOut(ctx context.Context, client *cluster.Client, verb revoke.Verb, scopes []revoke.Scope, opts cluster.PublishOptions, wait time.Duration, noWait bool) error {
	whole := ctx
	if wait > 0 {
		var cancel context.CancelFunc
		whole, cancel = context.WithTimeout(ctx, wait)
		defer cancel()
	}
	pubs, failed, err := a.publishAll(scopes, func(int) cluster.PublishOptions { return opts }, func(scope revoke.Scope, opts cluster.PublishOptions) (*cluster.Publication, error) {
		return client.Publish(whole, verb, scope, opts)
	})
	if err != nil {
		return err
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
		if wait == 0 {
			var cancel context.CancelFunc
			whole, cancel = context.WithTimeout(ctx, client.WaitLimit())
			defer cancel()
		}
		worst, err := a.awaitAll(whole, client, pubs)
		if err != nil {
			return err
		}
		if ctx.Err() != nil && worst == exitUnproven {
			fmt.Fprintln(a.io.err, "pgedge: interrupted while waiting; what is stored goes on being carried out")
		}
		code = worst
	}
	if len(failed) > 0 {
		return notStored(failed, len(scopes))
	}
	return exitSilently(code)
}

// publishAll publishes a fact for every scope at the same time, and prints those that are stored in the order of the
// scopes. A fact that is not stored is an error of its own and holds up no other.
func (a *app) publishAll(scopes []revoke.Scope, opts func(i int) cluster.PublishOptions, publish func(revoke.Scope, cluster.PublishOptions) (*cluster.Publication, error)) (pubs []*cluster.Publication, failed []error, err error) {
	type result struct {
		pub *cluster.Publication
		err error
	}
	results := make([]chan result, len(scopes))
	for i, scope := range scopes {
		results[i] = make(chan result, 1)
		go func() {
			pub, err := publish(scope, opts(i))
			results[i] <- result{pub, err}
		}()
	}
	var printErr error
	for i := range scopes {
		r := <-results[i]
		if r.err != nil {
			failed = append(failed, r.err)
			continue
		}
		pubs = append(pubs, r.pub)
		printErr = errors.Join(printErr, a.printStored(r.pub, opts(i)))
	}
	return pubs, failed, printErr
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
	if code == exitUnproven {
		err = fmt.Errorf("%w\nnodes that have heard it have cut, and it may be stored yet: give the command again", err)
	}
	if total > 1 {
		err = fmt.Errorf("%d of %d failed: %w", len(failed), total, err)
	}
	return &codeError{code: code, err: err}
}

func (a *app) printStored(pub *cluster.Publication, opts cluster.PublishOptions) error {
	if a.json() {
		j := storedJSON{Revocation: pub.ID, Seq: pub.Seq, Verb: pub.Verb.String(), Scope: pub.Scope.Token(), Status: "stored", SupersededBy: pub.SupersededBy, Upto: opts.Upto, StoredMS: tookMS(pub)}
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
	fmt.Fprintf(a.io.out, ", after %s", milliseconds(tookMS(pub)))
	if pub.SupersededBy > 0 {
		fmt.Fprintf(a.io.out, " (a newer %s of the same scope, seq %d, has taken its place)", pub.Verb, pub.SupersededBy)
	}
	fmt.Fprintln(a.io.out)
	return nil
}

func tookMS(pub *cluster.Publication) float64 { return float64(pub.Took.Microseconds()) / 1000 }

// outcome is what waiting for one publication gave.
type outcome struct {
	verdict  revoke.FleetVerdict
	receipts []revoke.Receipt
	err      error
}

// awaitAll waits until ctx ends for all publications at the same time, and prints them one after the other.
func (a *app) awaitAll(ctx context.Context, client *cluster.Client, pubs []*cluster.Publication) (worst int, err error) {
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
				v, receipts, err := client.Await(ctx, pub, func(s revoke.NodeStatus) {
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
	return worst, printErr
}

func (a *app) printNodeLine(pub *cluster.Publication, s revoke.NodeStatus) error {
	if a.json() {
		return a.printJSON(nodeLineJSON{pub.ID, s})
	}
	_, err := fmt.Fprintf(a.io.out, "  %-20s  %-9s  %s\n", s.Node, s.Status, progress(s, tookMS(pub)))
	return err
}

// progress says when a node came to its status, or for a silent one what its silence will prove, and when. A person's
// clock begins with the first attempt to store, tookMS before that of the status: a node may well have verified
// what it heard on the fast path before the publisher sees the fact stored.
func progress(s revoke.NodeStatus, tookMS float64) string {
	switch {
	case s.FencedInMS > 0:
		return "fenced in " + seconds(s.FencedInMS)
	case s.Status == revoke.StatusFenced:
		return "after " + seconds(tookMS+s.AfterMS) + ": " + s.Why
	case s.AfterMS > 0:
		return "after " + milliseconds(tookMS+s.AfterMS)
	case s.Why != "":
		return s.Why
	case s.Status == revoke.StatusSilent:
		return "no answer yet"
	}
	return "after " + milliseconds(tookMS+s.AfterMS)
}

func (a *app) printVerdict(pub *cluster.Publication, o outcome) error {
	matched, unverified := totals(o)
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
	fmt.Fprintf(w, "%s: %s on %s", o.verdict.Verdict, found(o.verdict.Verdict, matched), count(len(o.verdict.Nodes), "node", "nodes"))
	if unverified > 0 {
		fmt.Fprintf(w, ", %d not seen gone", unverified)
	}
	if o.verdict.Verdict != revoke.Incomplete { // the time of those that answered would be taken for the fleet's
		fmt.Fprintf(w, ", %s", milliseconds(tookMS(pub)+slowest))
	}
	fmt.Fprintln(w)
	swept := 0
	for _, r := range o.receipts {
		swept += a.printSwept(r)
		if r.Matched == 0 && r.Stage == revoke.StageVerified {
			continue // it had nothing to do; its line above says when it said so
		}
		fmt.Fprintf(w, "  %-20s  %s, %s\n", r.Node, count(r.Matched, "session", "sessions"), pace(r))
	}
	for _, n := range o.verdict.Nodes {
		switch n.Status {
		case revoke.StatusForgotten:
			fmt.Fprintf(w, "  %-20s  %s\n", n.Node, n.Why)
		case revoke.StatusFenced, revoke.StatusSilent, revoke.StatusGone:
			fmt.Fprintf(w, "  %-20s  %s%s\n", n.Node, n.Status, reasonFor(n))
		}
	}
	for _, why := range whys(o.receipts) {
		fmt.Fprintf(w, "  not verified: %s\n", printable(why))
	}
	if matched == 0 && swept == 0 && o.verdict.Verdict != revoke.Incomplete {
		fmt.Fprintf(a.io.err, "warning: %s matched no session; check the spelling (pgedge sessions lists what is known)\n", pub.Scope)
	}
	_, err := fmt.Fprintf(w, "receipt: pgedge receipts show %s\n", pub.ID)
	return err
}

// found says what the verdict means and for how many sessions. Where none matched there was no backend to see gone.
func found(v revoke.Verdict, matched int) string {
	if v == revoke.Complete && matched == 0 {
		return "no session matched"
	}
	return explain(v) + ", " + count(matched, "session", "sessions")
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

// reasonFor says what a node's silence proves and does not prove.
func reasonFor(n revoke.NodeStatus) string {
	switch {
	case n.Why != "":
		return ": " + n.Why
	case n.FencedInMS > 0:
		return ": did not answer; its lease would prove it shut in " + seconds(n.FencedInMS)
	case n.Status == revoke.StatusGone:
		return ": silent for more than ten leases, so it serves nobody; not counted"
	}
	return ": did not answer"
}

// totals are the sessions that the receipts tell of, and the backends that were concerned and not seen gone.
func totals(o outcome) (matched, notSeenGone int) {
	for _, r := range o.receipts {
		matched += r.Matched
	}
	for _, n := range o.verdict.Nodes {
		notSeenGone += n.NotSeenGone
	}
	return matched, notSeenGone
}
