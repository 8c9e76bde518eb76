package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/oklog/ulid/v2"
	"github.com/spf13/cobra"

	"pgedge/cluster"
	"pgedge/engine"
	"pgedge/revoke"
)

const (
	drillSource = "drill"
	// drillUndoTimeout bounds the reinstating of the canary, which an interrupt does not cut short.
	drillUndoTimeout = 30 * time.Second
	// drillBackTimeout bounds the wait for logins to work again after the reinstate.
	drillBackTimeout = 5 * time.Second
	drillBackPoll    = 100 * time.Millisecond
	// drillQuietTimeout bounds the wait for the canary's last sessions to be gone.
	drillQuietTimeout = 5 * time.Second
	drillQuietPoll    = 20 * time.Millisecond
)

func (a *app) drillCommand() *cobra.Command {
	var connect connectFlags
	cmd := &cobra.Command{
		Use:   "drill",
		Short: "Revoke a canary on every node and print the latencies: proof that the path works today",
		Long: `Prove the whole way on the running fleet, with a user that exists for nothing else. Every node logs its canary in
through each of its own listeners; the canary is revoked, as anybody else would be; each session has to end with the
right error, each backend has to be seen gone, and a new login has to be refused; then the canary is reinstated, and a
new login has to work again.

The canary is in the configuration of every node:

  drill: {user: pgedge_canary, password_file: /etc/pgedge/canary-password, database: app}

Nothing but the canary is touched. The drill refuses to begin when the canary has sessions of somebody else's, or is
revoked by anything but an earlier drill. The canary is reinstated however the drill ends, on Ctrl-C too.

  0  every step held on every node
  1  a step failed, or there is no canary
  3  all held, but the verdict was complete_fenced or complete_unverified
  4  not proven: a node did not answer or has no canary, or the verdict was incomplete`,
		Example: "  pgedge drill\n  pgedge drill -o json | jq 'select(.cut_ms) | {node, cut_ms, verified_ms}'",
		GroupID: groupLook,
		Args:    noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			client, err := connect.dial(cmd.Context())
			if err != nil {
				return err
			}
			defer client.Close()
			d := &drill{app: a, client: client, id: ulid.Make().String()}
			return d.run(cmd.Context())
		},
	}
	connect.register(cmd)
	return cmd
}

// drill is one drill under way.
type drill struct {
	app    *app
	client *cluster.Client
	id     string

	scope revoke.Scope
	// among are the nodes that have said that they have the canary.
	among []cluster.NodeDrill
	// lines has one entry per node and listener, in the order they are printed in.
	lines []*drillLine
	// unproven are nodes that took no part, with the reason.
	unproven []string
	verdict  revoke.Verdict
}

// drillLine is what one listener of one node has shown.
type drillLine struct {
	Node     string  `json:"node"`
	Boot     string  `json:"boot"`
	Listener string  `json:"listener"`
	LoginMS  float64 `json:"login_ms"`
	// Cut, closed and verified are those of the node's receipt, from the moment the node received the revocation.
	CutMS      *float64 `json:"cut_ms,omitempty"`
	ClosedMS   *float64 `json:"closed_ms,omitempty"`
	VerifiedMS *float64 `json:"verified_ms,omitempty"`
	// ClientMS is when the session's client had read its error, from the same moment.
	ClientMS *float64 `json:"client_ms,omitempty"`
	SawState string   `json:"saw_sqlstate,omitempty"`
	Refused  string   `json:"refused_sqlstate,omitempty"`
	// BackMS is how long the login after the reinstate took.
	BackMS float64  `json:"back_ms"`
	Failed []string `json:"failed,omitempty"`
}

func (l *drillLine) fail(format string, args ...any) {
	l.Failed = append(l.Failed, fmt.Sprintf(format, args...))
}

func (d *drill) run(ctx context.Context) error {
	applied, err := d.prepare(ctx)
	if err != nil {
		return err
	}
	defer d.end(ctx)
	if err := d.begin(ctx, applied); err != nil {
		return err
	}
	if err := d.onlyOurs(ctx, len(d.loggedIn())); err != nil {
		return err
	}
	if len(d.loggedIn()) > 0 {
		if err := d.revokeAndUndo(ctx); err != nil {
			return err
		}
	}
	return d.report()
}

// end leaves everything as it was, whatever has happened: no drill under way, no session of the canary. Nodes that are
// not told end the drill by themselves.
func (d *drill) end(ctx context.Context) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), drillUndoTimeout)
	defer cancel()
	_, _, _ = d.client.Drill(ctx, cluster.DrillRequest{ID: d.id, Step: cluster.DrillEnd}, d.among)
	// What has hung up is listed until its node has noticed, and the next drill would take it for somebody else's.
	ctx, cancel = context.WithTimeout(ctx, drillQuietTimeout)
	defer cancel()
	for {
		sessions, _, err := d.client.Sessions(ctx, cluster.SessionFilter{Principal: d.scope.Name})
		if err != nil || len(sessions) == 0 {
			return
		}
		select {
		case <-time.After(drillQuietPoll):
		case <-ctx.Done():
			return
		}
	}
}

// prepare finds the canary and refuses to touch anybody else. It returns the position that the nodes must have applied
// before the canary can log in.
func (d *drill) prepare(ctx context.Context) (applied uint64, err error) {
	answers, missing, err := d.client.Drill(ctx, cluster.DrillRequest{ID: d.id, Step: cluster.DrillAsk}, nil)
	if err != nil {
		return 0, err
	}
	names := map[string]string{} // canary to a node that has it
	for _, a := range answers {
		switch {
		case a.Canary == "":
			d.unproven = append(d.unproven, a.Node+" has no canary: its configuration has no drill section")
		default:
			names[a.Canary] = a.Node
			d.among = append(d.among, a)
		}
	}
	for _, node := range missing {
		d.unproven = append(d.unproven, node+" did not answer")
	}
	switch {
	case len(answers) == 0:
		return 0, &codeError{code: exitUnproven, err: errors.New("no node answered")}
	case len(names) == 0:
		return 0, errors.New("no node has a canary: put drill: {user: ..., password_file: ..., database: ...} into the configuration of every node")
	case len(names) > 1:
		var all []string
		for name, node := range names {
			all = append(all, fmt.Sprintf("%s on %s", name, node))
		}
		slices.Sort(all)
		return 0, fmt.Errorf("the nodes have different canaries, and one drill revokes one: %s", strings.Join(all, ", "))
	}
	for name := range names {
		if d.scope, err = revoke.NewScope(revoke.ScopePrincipal, name); err != nil {
			return 0, err
		}
	}
	if applied, err = d.undoEarlier(ctx); err != nil {
		return 0, err
	}
	return applied, d.onlyOurs(ctx, 0)
}

// undoEarlier reinstates a canary that an earlier drill has left revoked, and refuses one that somebody else has.
func (d *drill) undoEarlier(ctx context.Context) (uint64, error) {
	table, _, _, err := d.client.State(ctx)
	if err != nil {
		return 0, err
	}
	newest := uint64(0)
	for _, b := range table.Blocks(time.Now()) {
		if b.Scope != d.scope {
			continue
		}
		if b.Fact.Source != drillSource {
			return 0, fmt.Errorf("the canary is blocked, and not by a drill: %s; pgedge reinstate %s allows it again", describe(b), d.scope.Name)
		}
		newest = max(newest, b.Seq)
	}
	if newest == 0 {
		return 0, nil
	}
	fmt.Fprintf(d.app.io.err, "warning: an earlier drill was interrupted and left %s revoked: it is reinstated first\n", d.scope)
	return d.reinstate(ctx, newest)
}

func (d *drill) reinstate(ctx context.Context, upto uint64) (uint64, error) {
	pub, err := d.client.Publish(ctx, revoke.VerbReinstate, d.scope, cluster.PublishOptions{Reason: "drill " + d.id, Actor: actor(), Source: drillSource, Upto: upto})
	if err != nil {
		return 0, err
	}
	d.client.Release(pub)
	return pub.Seq, nil
}

// onlyOurs refuses a canary that somebody else uses: its sessions would be cut as well.
func (d *drill) onlyOurs(ctx context.Context, ours int) error {
	ctx, cancel := context.WithTimeout(ctx, queryTimeout)
	defer cancel()
	sessions, _, err := d.client.Sessions(ctx, cluster.SessionFilter{Principal: d.scope.Name})
	if err != nil {
		return err
	}
	if len(sessions) > ours {
		sortSessions(sessions)
		s := sessions[0]
		return fmt.Errorf("the canary %s has %s that no drill made, the oldest is %s from %s: nothing was revoked; use a user for drills that nobody else uses",
			d.scope.Name, count(len(sessions)-ours, "session", "sessions"), s.ID, s.Client)
	}
	return nil
}

func (d *drill) begin(ctx context.Context, applied uint64) error {
	answers, missing, err := d.client.Drill(ctx, cluster.DrillRequest{ID: d.id, Step: cluster.DrillBegin, Applied: applied}, d.among)
	if err != nil {
		return err
	}
	for _, a := range answers {
		if a.Canary == "" {
			continue
		}
		if a.Error != "" {
			l := &drillLine{Node: a.Node, Boot: a.Boot}
			l.fail("%s", a.Error)
			d.lines = append(d.lines, l)
		}
		for _, login := range a.Logins {
			l := &drillLine{Node: a.Node, Boot: a.Boot, Listener: login.Listener, LoginMS: login.TookMS}
			if !login.In {
				l.fail("cannot log in: %s", told(login))
			}
			d.lines = append(d.lines, l)
		}
	}
	d.addMissing(missing)
	return nil
}

// say tells a person how far the drill is.
func (d *drill) say(format string, args ...any) {
	if !d.app.json() {
		fmt.Fprintf(d.app.io.out, format, args...)
	}
}

func (d *drill) addMissing(missing []string) {
	for _, node := range missing {
		if text := node + " did not answer"; !slices.Contains(d.unproven, text) {
			d.unproven = append(d.unproven, text)
		}
	}
}

// told is what a client was told, or why there was nobody to tell it.
func told(l cluster.CanaryLogin) string {
	if l.SQLState == "" {
		return l.Message
	}
	return l.SQLState + " " + l.Message
}

func (d *drill) loggedIn() (lines []*drillLine) {
	for _, l := range d.lines {
		if l.Listener != "" && len(l.Failed) == 0 {
			lines = append(lines, l)
		}
	}
	return lines
}

// revokeAndUndo revokes the canary, looks, and reinstates it whatever was seen.
func (d *drill) revokeAndUndo(ctx context.Context) error {
	lines := d.loggedIn()
	began := time.Now()
	limit, cancel := context.WithTimeout(ctx, d.client.WaitLimit())
	defer cancel()
	pub, err := d.client.Publish(limit, revoke.VerbRevoke, d.scope, cluster.PublishOptions{Reason: "drill " + d.id, Actor: actor(), Source: drillSource})
	if err != nil {
		return errors.Join(err, fmt.Errorf("if it is stored after all, pgedge revocations lists it, and the next drill undoes it"))
	}
	d.say("revoked %s, stored after %s, seq %d\n", d.scope, milliseconds(float64(time.Since(began).Microseconds())/1000), pub.Seq)
	verdict, receipts, err := d.client.Await(limit, pub, nil)
	if err == nil {
		d.verdict = verdict.Verdict
		d.noteReceipts(lines, receipts)
		err = d.look(ctx, lines, pub.Seq, receipts)
	}

	undo, cancelUndo := context.WithTimeout(context.WithoutCancel(ctx), drillUndoTimeout)
	defer cancelUndo()
	seq, undoErr := d.reinstate(undo, pub.Seq)
	if undoErr != nil {
		return errors.Join(err, fmt.Errorf("the canary is still revoked: %w; pgedge reinstate %s", undoErr, d.scope.Name))
	}
	if err != nil {
		return err
	}
	if ctx.Err() != nil {
		return ctx.Err()
	}
	return d.lookAgain(ctx, lines, seq)
}

func (d *drill) noteReceipts(lines []*drillLine, receipts []revoke.Receipt) {
	for _, l := range lines {
		i := slices.IndexFunc(receipts, func(r revoke.Receipt) bool { return r.Boot == l.Boot })
		if i < 0 {
			l.fail("no receipt")
			continue
		}
		r := receipts[i]
		ms := func(us int64) *float64 { v := float64(us) / 1000; return &v }
		l.CutMS = ms(r.CutUS)
		if r.Stage != revoke.StageCut {
			l.ClosedMS = ms(r.ClosedUS)
		}
		if r.Stage == revoke.StageVerified {
			l.VerifiedMS = ms(r.VerifiedUS)
		}
	}
}

// look asks what the canary's clients saw, and whether a new login is refused.
func (d *drill) look(ctx context.Context, lines []*drillLine, seq uint64, receipts []revoke.Receipt) error {
	want := engine.ReasonRevoked.SQLState()
	err := d.step(ctx, cluster.DrillRequest{ID: d.id, Step: cluster.DrillSeen}, lines, func(l *drillLine, login cluster.CanaryLogin) {
		if login.Ended == nil {
			l.fail("its client saw no end of the session within %s", seenTimeout)
			return
		}
		l.SawState = login.SQLState
		for _, r := range receipts {
			if r.Boot == l.Boot {
				ms := float64(login.Ended.Sub(r.ReceivedAt).Microseconds()) / 1000
				l.ClientMS = &ms
			}
		}
		if login.SQLState != want {
			l.fail("its client saw %q instead of %s", told(login), want)
		}
	})
	if err != nil {
		return err
	}
	return d.step(ctx, cluster.DrillRequest{ID: d.id, Step: cluster.DrillAgain, Applied: seq}, lines, func(l *drillLine, login cluster.CanaryLogin) {
		l.Refused = login.SQLState
		switch {
		case login.In:
			l.fail("a new login was let in while the canary was revoked")
		case login.SQLState != want:
			l.fail("a new login was refused with %q instead of %s", told(login), want)
		}
	})
}

// lookAgain asks whether the canary can log in after it has been reinstated. Where sweep: true had taken LOGIN from the
// role, one node gives it back a moment after the reinstate.
func (d *drill) lookAgain(ctx context.Context, lines []*drillLine, seq uint64) error {
	patience, cancel := context.WithTimeout(ctx, drillBackTimeout)
	defer cancel()
	for {
		out := map[*drillLine]string{}
		err := d.step(ctx, cluster.DrillRequest{ID: d.id, Step: cluster.DrillAgain, Applied: seq}, lines, func(l *drillLine, login cluster.CanaryLogin) {
			l.BackMS = login.TookMS
			if !login.In {
				out[l] = told(login)
			}
		})
		if err != nil || len(out) == 0 {
			return err
		}
		select {
		case <-time.After(drillBackPoll):
		case <-patience.Done():
			for l, why := range out {
				l.fail("cannot log in after the reinstate: %s", why)
			}
			return nil
		}
	}
}

// step asks all nodes for one step and gives every line its answer.
func (d *drill) step(ctx context.Context, req cluster.DrillRequest, lines []*drillLine, note func(*drillLine, cluster.CanaryLogin)) error {
	answers, missing, err := d.client.Drill(ctx, req, d.among)
	if err != nil {
		return err
	}
	d.addMissing(missing)
	for _, l := range lines {
		i := slices.IndexFunc(answers, func(a cluster.NodeDrill) bool { return a.Boot == l.Boot })
		if i < 0 {
			l.fail("no answer to %q", req.Step)
			continue
		}
		if answers[i].Error != "" {
			l.fail("%s", answers[i].Error)
			continue
		}
		j := slices.IndexFunc(answers[i].Logins, func(c cluster.CanaryLogin) bool { return c.Listener == l.Listener })
		if j < 0 {
			l.fail("the listener is gone")
			continue
		}
		note(l, answers[i].Logins[j])
	}
	return nil
}
