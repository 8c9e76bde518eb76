package cluster

import (
	"encoding/json"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/oklog/ulid/v2"

	"pgedge/revoke"
)

// sweepFleet is a hub that carries NATS and reaches no server, and nodes that reach the same one.
type sweepFleet struct {
	t      *testing.T
	hub    *Node
	client *Client
}

// visited is one pass at the server, by one node.
type visited struct {
	pass revoke.SweepPass
	at   time.Time
}

const fakeServer = "7-1"

func startSweepFleet(t *testing.T) *sweepFleet {
	t.Helper()
	cfg := testConfig(t, "hub")
	cfg.Heartbeat, cfg.Lease = 100*time.Millisecond, 2*time.Second
	hub := startNode(t, cfg, newFakeEngine())
	return &sweepFleet{t: t, hub: hub, client: dial(t, DialOptions{URL: hub.URL()})}
}

// join starts a node whose passes come through the channel. Its engine answers every order with a receipt at once, and
// every pass with nothing found.
func (f *sweepFleet) join(id string, answer func(revoke.SweepPass) ([]revoke.SweepOutcome, error)) (*Node, chan visited) {
	f.t.Helper()
	passes := make(chan visited, 1000)
	eng := newFakeEngine()
	eng.upstreams = map[string]revoke.UpstreamPresence{fakeServer: {Addresses: []string{"10.0.0." + id}}}
	eng.claims = []revoke.Claim{{Server: fakeServer, PID: uint32(len(id))}}
	eng.onSweep = func(p revoke.SweepPass) ([]revoke.SweepOutcome, error) {
		passes <- visited{p, time.Now()}
		if answer != nil {
			return answer(p)
		}
		return nothingFound(p)
	}
	var node *Node
	started := make(chan struct{})
	eng.onCut = func(o revoke.Order) {
		if o.Fact.Seq == 0 {
			return
		}
		go func() {
			<-started
			node.PublishReceipt(revoke.Receipt{Schema: revoke.ReceiptSchema, Revocation: o.Fact.ID, Seq: o.Fact.Seq, Stage: revoke.StageVerified,
				Verb: o.Fact.Verb.String(), Scope: o.Fact.Scope.Token(), Node: id, Boot: node.Boot(), Sessions: []revoke.SessionReceipt{}})
		}()
	}
	cfg := testConfig(f.t, id)
	cfg.NATS, cfg.Heartbeat, cfg.Lease = f.hub.URL(), 100*time.Millisecond, 2*time.Second
	node = startNode(f.t, cfg, eng)
	close(started)
	return node, passes
}

func nothingFound(p revoke.SweepPass) ([]revoke.SweepOutcome, error) {
	out := make([]revoke.SweepOutcome, len(p.Tasks))
	for i, t := range p.Tasks {
		if t.Count {
			zero, can := 0, true
			out[i].Residue = revoke.Residue{PreparedXacts: &zero, ReplicationSlots: &zero, RoleCanLogin: &can}
			if out[i].Doubtful = len(p.Doubtful) > 0; !out[i].Doubtful {
				out[i].Residue.DirectSessions = &zero
			}
		}
	}
	return out, nil
}

func (f *sweepFleet) publish(v revoke.Verb, name string) *Publication {
	f.t.Helper()
	opts := PublishOptions{}
	if v == revoke.VerbReinstate {
		opts.Upto = f.hub.Table().Newest(scopeOf(name))
	}
	pub, err := f.client.Publish(testContext(f.t), v, scopeOf(name), opts)
	if err != nil {
		f.t.Fatal(err)
	}
	return pub
}

// known waits until a node has heard of n others that reach the server.
func (f *sweepFleet) known(n *Node, others int) {
	f.t.Helper()
	f.eventually("the nodes to know each other", func() bool {
		fleet, reach := revoke.NewFleet(n.membersNow(time.Now()), n.cfg.Node, n.cfg.Boot), 0
		for _, p := range fleet.Others() {
			if len(p.AddressesAt(fakeServer)) > 0 && p.State == revoke.StateServing {
				reach++
			}
		}
		return reach == others
	})
}

func (f *sweepFleet) eventually(what string, holds func() bool) {
	f.t.Helper()
	deadline := time.After(patience)
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for !holds() {
		select {
		case <-tick.C:
		case <-deadline:
			f.t.Fatalf("waited in vain for %s", what)
		}
	}
}

// next returns the next pass that satisfies ok.
func next(t *testing.T, passes chan visited, what string, ok func(revoke.SweepTask) bool) visited {
	t.Helper()
	deadline := time.After(patience)
	for {
		select {
		case v := <-passes:
			if len(v.pass.Tasks) > 0 && ok(v.pass.Tasks[0]) {
				return v
			}
		case <-deadline:
			t.Fatalf("no pass came: %s", what)
		}
	}
}

func counts(t revoke.SweepTask) bool { return t.Count }
func acts(t revoke.SweepTask) bool   { return len(t.Silent) > 0 }

// residueOf waits for a node's receipt to have a residue that says what is asked for.
func (f *sweepFleet) residueOf(pub *Publication, node string, says func(*revoke.Residue) bool) (found *revoke.Residue) {
	f.t.Helper()
	f.eventually("the residue in the receipt of "+node, func() bool {
		receipts, err := f.client.Receipts(testContext(f.t), pub.ID)
		if err != nil {
			f.t.Fatal(err)
		}
		for _, r := range receipts {
			if r.Node == node && r.Residue != nil {
				found = r.Residue
				return says(found)
			}
		}
		return false
	})
	return found
}

func TestOneNodeCountsTheResidueAndTheOthersSayWhatTheyHold(t *testing.T) {
	t.Parallel()
	f := startSweepFleet(t)
	a, passes := f.join("1", nil)
	_, others := f.join("22", nil)
	f.known(a, 1)
	pub := f.publish(revoke.VerbRevoke, "alice")
	v := next(t, passes, "the residue is counted", counts)
	task := v.pass.Tasks[0]
	if task.Role != "alice" || len(task.Silent) != 0 || !task.Before.IsZero() || task.Mark != nil || len(v.pass.Doubtful) != 0 {
		t.Errorf("pass: %+v", v.pass)
	}
	if c := v.pass.Claims; len(c) != 1 || c[0].PID != 2 {
		t.Errorf("claims: %+v", c)
	}
	f.residueOf(pub, "1", func(r *revoke.Residue) bool { return r.DirectSessions != nil && r.Why == "" })

	kill := f.publish(revoke.VerbKill, "bob")
	if v := next(t, passes, "the residue is counted", counts); v.pass.Tasks[0].Before.IsZero() || v.pass.Tasks[0].Before.After(v.at) {
		t.Errorf("pass of a kill: %+v", v.pass)
	}
	f.residueOf(kill, "1", func(r *revoke.Residue) bool { return r.DirectSessions != nil })
	select {
	case v := <-others:
		t.Errorf("a node that is not responsible made a pass: %+v", v.pass)
	default:
	}
}

func TestTheNextNodeActsForTheOneThatDiedUntilThatIsFencedAndOnceAfter(t *testing.T) {
	t.Parallel()
	f := startSweepFleet(t)
	a, _ := f.join("1", nil)
	b, passes := f.join("2", nil)
	f.known(b, 1)
	crash(a)
	pub := f.publish(revoke.VerbRevoke, "alice")
	first := next(t, passes, "the silent node is acted for", acts)
	if s := first.pass.Tasks[0].Silent[0]; s.Node != "1" || s.Boot != a.Boot() || s.Addresses[0] != "10.0.0.1" {
		t.Errorf("silent: %+v", s)
	}
	f.residueOf(pub, "2", func(r *revoke.Residue) bool { return r.PreparedXacts != nil })
	fenced := 2*time.Second + 20*time.Millisecond
	last := first
	f.eventually("the last pass", func() bool {
		for {
			select {
			case v := <-passes:
				if acts(v.pass.Tasks[0]) {
					last = v
				}
				continue
			default:
			}
			break
		}
		return last.at.Sub(pub.SeenAt) > fenced
	})
	// Nothing is due any more: what is left is a wait for nodes that may yet fall silent.
	b.sweeper.mu.Lock()
	defer b.sweeper.mu.Unlock()
	silent := revoke.NewFleet(b.membersNow(time.Now()), "2", b.Boot()).Silent(fakeServer)
	for _, w := range b.sweeper.follows {
		if due := w.plan.Due(fakeServer, silent); len(due) != 0 || len(silent) != 1 {
			t.Errorf("still due: %+v of %+v", due, silent)
		}
	}
}

func TestAReinstateEndsWhatIsDoneForASilentNode(t *testing.T) {
	t.Parallel()
	f := startSweepFleet(t)
	a, _ := f.join("1", nil)
	b, passes := f.join("2", nil)
	f.known(b, 1)
	crash(a)
	f.publish(revoke.VerbRevoke, "alice")
	next(t, passes, "the silent node is acted for", acts)
	f.publish(revoke.VerbReinstate, "alice")
	f.eventually("the reinstate", func() bool { return !b.Table().Blocked(scopeOf("alice"), time.Now()) })
	began := time.Now()
	f.publish(revoke.VerbKill, "bob")
	next(t, passes, "a pass for bob", func(s revoke.SweepTask) bool { return s.Role == "bob" && acts(s) })
	var v visited
	for v.at.Sub(began) <= claimsTimeout { // a pass that was under way may still name alice
		v = next(t, passes, "another one", acts)
	}
	for _, task := range v.pass.Tasks {
		if task.Role == "alice" && acts(task) {
			t.Error("alice was reinstated")
		}
	}
}

// A node that is live but does not answer may hold what looks like nobody's.
func TestWhatANodeThatDoesNotAnswerMayHoldIsNotCounted(t *testing.T) {
	t.Parallel()
	f := startSweepFleet(t)
	a, passes := f.join("1", nil)
	nc := rawConn(t, f.hub.URL())
	boot := ulid.Make().String()
	ghost := revoke.Presence{V: 1, Node: "ghost", Boot: boot, State: revoke.StateServing, LeaseMS: 2000, OnStale: "freeze",
		Upstreams: map[string]revoke.UpstreamPresence{fakeServer: {Addresses: []string{"10.9.9.9"}}}}
	stop, stopped := make(chan struct{}), make(chan struct{})
	defer func() { close(stop); <-stopped }()
	go func() {
		defer close(stopped)
		tick := time.NewTicker(200 * time.Millisecond)
		defer tick.Stop()
		for {
			ghost.N++
			b, err := json.Marshal(ghost)
			if err != nil || nc.Publish(revoke.NodeSubject("ghost", boot), b) != nil {
				return
			}
			select {
			case <-tick.C:
			case <-stop:
				return
			}
		}
	}()
	f.known(a, 1)
	pub := f.publish(revoke.VerbRevoke, "alice")
	if v := next(t, passes, "the residue is counted", counts); len(v.pass.Doubtful) != 1 || v.pass.Doubtful[0] != "10.9.9.9" {
		t.Errorf("pass: %+v", v.pass)
	}
	r := f.residueOf(pub, "1", func(r *revoke.Residue) bool { return r.Why != "" })
	if r.DirectSessions != nil || r.PreparedXacts == nil || !strings.Contains(r.Why, "did not say") {
		t.Errorf("residue: %+v", r)
	}
}

func TestAServerThatCannotBeAskedLeavesAResidueThatSaysSo(t *testing.T) {
	t.Parallel()
	f := startSweepFleet(t)
	f.join("1", func(revoke.SweepPass) ([]revoke.SweepOutcome, error) { return nil, errors.New("out of order") })
	pub := f.publish(revoke.VerbRevoke, "alice")
	r := f.residueOf(pub, "1", func(r *revoke.Residue) bool { return r.Why != "" })
	if r.DirectSessions != nil || r.RoleCanLogin != nil || !strings.Contains(r.Why, "out of order") {
		t.Errorf("residue: %+v", r)
	}
}
