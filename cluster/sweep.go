package cluster

import (
	"context"
	"slices"
	"sync"
	"time"

	"pgedge/revoke"
)

const (
	// sweepEvery is the pause between two passes for boots that are silent: their clients may come back until they are
	// fenced.
	sweepEvery = 200 * time.Millisecond
	// sweepIdle is how often a node with nothing to follow looks for roles that may log in again.
	sweepIdle = 5 * time.Second
	// sweepPatience is how long the residue waits for nodes that do not answer, and for a server, before the receipt
	// says what is not known.
	sweepPatience = 5 * time.Second
	// sweepAtLeast is for how long a revocation is followed whatever the leases are: its own receipt may take as long.
	sweepAtLeast = 15 * time.Second
	// residueEvery bounds how often a receipt is stored again while the passes go on.
	residueEvery = time.Second
	// maxFollows bounds the revocations that are followed at a time; the oldest are let go first.
	maxFollows = 4096
	// maxPassTasks bounds one pass at one server; the rest follows in the next.
	maxPassTasks = 256
)

// sweeper follows revocations of principals and roles through the databases: it stops backends of boots that cannot do
// it, sweeps where that is configured, and adds what was found to this node's receipt. Every node follows; what is done
// at a server only the responsible one does, so that the next takes over when that one dies.
type sweeper struct {
	n    *Node
	wake chan struct{}

	mu      sync.Mutex
	follows map[string]*follow // by the key of the order
	byID    map[string]*follow // by revocation id, once that is certain
	restore bool               // look for roles that may log in again

	// Owned by run.
	restored time.Time
}

// follow is one revocation that is followed.
type follow struct {
	// Guarded by the sweeper's mu.
	key     string
	fact    revoke.Fact
	final   *revoke.Receipt // this node's own, once it has said its last word
	finalAt time.Time

	// Owned by the sweeper's goroutine, but for servers, which is guarded by mu.
	plan    revoke.Follow
	servers map[string]*followed
	visited time.Time // last pass
	told    time.Time // when the receipt was last stored with residue
	dirty   bool      // there is news that the receipt does not tell
}

// followed is what was found and done at one server.
type followed struct {
	residue revoke.Residue
	counted bool
	swept   bool
}

func newSweeper(n *Node) *sweeper {
	return &sweeper{n: n, wake: make(chan struct{}, 1), follows: make(map[string]*follow), byID: make(map[string]*follow)}
}

// order takes every order before the engine does, and never blocks for long. A provisional one is enough to act for
// silent boots.
func (s *sweeper) order(o revoke.Order) {
	if k := o.Fact.Scope.Kind; k != revoke.ScopePrincipal && k != revoke.ScopeRole {
		return // other scopes do not name a role
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	f := s.follows[o.Key]
	if o.SupersededBy > 0 {
		// The newer fact is followed in its place.
		if f != nil {
			s.dropLocked(f)
		}
		return
	}
	if f == nil {
		if len(s.follows) >= maxFollows {
			s.dropOldestLocked()
		}
		f = &follow{key: o.Key, servers: make(map[string]*followed), plan: revoke.Follow{Received: o.ReceivedAt}}
		s.follows[o.Key] = f
	}
	f.fact = o.Fact
	if o.Fact.Seq > 0 {
		s.byID[o.Fact.ID] = f
	}
	s.poke()
}

func (s *sweeper) dropLocked(f *follow) {
	delete(s.follows, f.key)
	if s.byID[f.fact.ID] == f {
		delete(s.byID, f.fact.ID)
	}
}

func (s *sweeper) dropOldestLocked() {
	var oldest *follow
	for _, f := range s.follows {
		if oldest == nil || f.plan.Received.Before(oldest.plan.Received) {
			oldest = f
		}
	}
	s.dropLocked(oldest)
}

// amend takes every receipt of this node on its way out. The last word on a revocation gets what is known by then of
// the residue; what is found later makes it be stored once more.
func (s *sweeper) amend(r revoke.Receipt) revoke.Receipt {
	if !r.Final() {
		return r
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	f := s.byID[r.Revocation]
	if f == nil {
		return r
	}
	r.Residue = f.residueLocked()
	f.final, f.finalAt = &r, time.Now()
	s.poke()
	return r
}

// residueLocked adds up the servers; nil when nothing is known.
func (f *follow) residueLocked() *revoke.Residue {
	var sum revoke.Residue
	for _, at := range f.servers {
		sum.Add(at.residue)
	}
	if sum.Empty() {
		return nil
	}
	return &sum
}

// lookForRestores says that a reinstate has come.
func (s *sweeper) lookForRestores() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.restore = true
	s.poke()
}

func (s *sweeper) poke() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

func (s *sweeper) run(ctx context.Context) {
	timer := time.NewTimer(sweepIdle)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-s.wake:
		case <-timer.C:
		}
		timer.Reset(s.round(ctx))
	}
}

// round makes one pass at every server where this node has something to do, and returns how long to wait.
func (s *sweeper) round(ctx context.Context) time.Duration {
	if !s.n.isReady.Load() || !s.n.Fresh() {
		// A node that may have missed a reinstate has no right to act.
		return sweepEvery
	}
	began := time.Now()
	fleet := revoke.NewFleet(s.n.membersNow(began), s.n.cfg.Node, s.n.cfg.Boot)
	follows := s.list()
	next := sweepIdle
	if len(follows) > 0 {
		next = s.n.cfg.Heartbeat // the fleet may look different then
	}
	upstreams := s.n.eng.Upstreams()
	var passes sync.WaitGroup
	acting := false
	for server, u := range upstreams {
		v := s.plan(fleet, server, u, follows, began)
		if len(v.tasks) == 0 {
			continue
		}
		acting = true
		passes.Go(func() { s.visit(ctx, fleet, server, v, began) })
	}
	passes.Wait()
	if acting {
		next = sweepEvery
	}
	s.tell(follows, residueEvery)
	s.letGo(fleet, follows)
	s.restoreLogins(ctx, fleet, upstreams)
	return next
}

// list is what is followed, the least recently visited first.
func (s *sweeper) list() []*follow {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := make([]*follow, 0, len(s.follows))
	for _, f := range s.follows {
		out = append(out, f)
	}
	slices.SortFunc(out, func(a, b *follow) int { return a.visited.Compare(b.visited) })
	return out
}

// planned is one pass at one server: tasks and follows go together.
type planned struct {
	tasks   []revoke.SweepTask
	follows []*follow
}

// plan says what this node has to do at a server now.
func (s *sweeper) plan(fleet revoke.Fleet, server string, u revoke.UpstreamPresence, follows []*follow, now time.Time) planned {
	var v planned
	responsible, sweeps := fleet.Responsible(server, false), u.Sweep && fleet.Responsible(server, true)
	if !responsible && !sweeps {
		return v
	}
	silent := fleet.Silent(server)
	table := s.n.Table()
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, f := range follows {
		if len(v.tasks) >= maxPassTasks {
			break
		}
		at := f.servers[server]
		if at == nil {
			at = &followed{}
			f.servers[server] = at
		}
		t := revoke.SweepTask{Role: f.fact.Scope.Name, Count: f.final != nil && !at.counted}
		applies := true
		if f.fact.Verb == revoke.VerbKill {
			t.Before = f.plan.Received
		} else {
			applies = table.Blocked(f.fact.Scope, now)
		}
		if applies && responsible {
			t.Silent = f.plan.Due(server, silent)
		}
		if applies && sweeps && (!at.swept || t.Count) {
			t.Mark = revoke.NewLoginMark(f.fact)
		}
		t.Count = t.Count && (responsible || t.Mark != nil)
		if len(t.Silent) > 0 || t.Count || t.Mark != nil {
			v.tasks = append(v.tasks, t)
			v.follows = append(v.follows, f)
		}
	}
	return v
}

// visit makes the pass. Boots that answer what they hold are live, whatever their heartbeats look like.
func (s *sweeper) visit(ctx context.Context, fleet revoke.Fleet, server string, v planned, began time.Time) {
	var roles []string
	for _, t := range v.tasks {
		roles = append(roles, t.Role)
	}
	claims := s.n.askClaims(ctx, roles, fleet.Others())
	pass := revoke.SweepPass{Tasks: slices.Clone(v.tasks), Claims: claims.list}
	for _, p := range claims.missing {
		pass.Doubtful = append(pass.Doubtful, p.AddressesAt(server)...)
	}
	for i := range pass.Tasks {
		pass.Tasks[i].Silent = slices.DeleteFunc(slices.Clone(pass.Tasks[i].Silent), func(b revoke.SilentBoot) bool { return claims.answered[b.Boot] })
	}
	outcomes, err := s.n.eng.Sweep(ctx, server, pass)
	if ctx.Err() != nil {
		return
	}
	if err != nil && s.n.repeats.allow("sweep "+err.Error(), began, repeatEvery) {
		s.n.log.Warn("cannot look after the backends of a role in the database", "error", err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for i, f := range v.follows {
		f.visited = began
		at := f.servers[server]
		if err != nil {
			if v.tasks[i].Count && began.Sub(f.finalAt) > sweepPatience {
				at.counted, f.dirty = true, true
				at.residue.Update(revoke.Residue{Why: "the server could not be asked: " + err.Error()})
			}
			continue
		}
		s.takeLocked(f, at, server, pass.Tasks[i], outcomes[i], began)
	}
}

// takeLocked files the outcome of one task.
func (s *sweeper) takeLocked(f *follow, at *followed, server string, t revoke.SweepTask, o revoke.SweepOutcome, began time.Time) {
	f.plan.Done(server, t.Silent, began)
	at.swept = at.swept || t.Mark != nil
	news := t.Mark != nil
	if t.Count {
		switch {
		case !o.Doubtful:
			at.counted = true
		case began.Sub(f.finalAt) > sweepPatience:
			at.counted = true
			o.Residue.Add(revoke.Residue{Why: "direct sessions are not known: a live node did not say which backends it holds"})
		}
		news = news || at.counted
	}
	for _, st := range o.Residue.StoppedFor {
		if st.Backends > 0 {
			news = true
			s.n.log.Info("stopped backends in the database for a node that cannot do it itself", "revocation", f.fact.ID,
				"node", st.Node, "boot", st.Boot, "backends", st.Backends)
		}
	}
	if o.Residue.Swept != nil && o.Residue.Why != "" {
		s.n.log.Error("a sweep is not complete", "revocation", f.fact.ID, "why", o.Residue.Why)
	}
	at.residue.Update(o.Residue)
	f.dirty = f.dirty || news
}

// tell stores the receipts again whose residue has changed, those that were told lately later.
func (s *sweeper) tell(follows []*follow, every time.Duration) {
	now := time.Now()
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, f := range follows {
		if !f.dirty || f.final == nil || now.Sub(f.told) < every {
			continue
		}
		f.dirty, f.told = false, now
		r := *f.final
		r.Residue = f.residueLocked()
		s.n.receipts.putAgain(r)
	}
}

// flush stores what has not been told yet, for a node that stops.
func (s *sweeper) flush() { s.tell(s.list(), 0) }

// letGo drops what needs no following any more.
func (s *sweeper) letGo(fleet revoke.Fleet, follows []*follow) {
	window := max(fleet.Watch(), sweepAtLeast) + time.Second
	now := time.Now()
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, f := range follows {
		untold := f.dirty && f.final != nil
		if now.Sub(f.plan.Received) > window && !untold && now.Sub(f.visited) > sweepPatience {
			s.dropLocked(f)
		}
	}
}

// restoreLogins gives LOGIN back to roles whose revocation is undone, where this node sweeps. It asks a table that is
// up to date only.
func (s *sweeper) restoreLogins(ctx context.Context, fleet revoke.Fleet, upstreams map[string]revoke.UpstreamPresence) {
	now := time.Now()
	s.mu.Lock()
	due := s.restore || now.Sub(s.restored) >= sweepIdle
	s.mu.Unlock()
	if !due || !fleet.Current(now) || !s.n.Fresh() {
		return
	}
	s.mu.Lock()
	s.restore = false
	s.mu.Unlock()
	s.restored = now
	for server, u := range upstreams {
		if !u.Sweep || !fleet.Responsible(server, true) {
			continue
		}
		roles, err := s.n.eng.RestoreLogins(ctx, server, func(role string, m revoke.LoginMark) bool {
			return s.n.Table().MayLoginAgain(role, m, time.Now())
		})
		if len(roles) > 0 {
			s.n.log.Info("roles that a sweep had set NOLOGIN may log in again", "roles", roles)
		}
		if err != nil && ctx.Err() == nil && s.n.repeats.allow("restore "+err.Error(), now, repeatEvery) {
			s.n.log.Error("cannot restore what a sweep has changed", "error", err)
		}
	}
}

func (n *Node) membersNow(now time.Time) []revoke.Presence {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.proto.Members(now)
}
