package engine

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgconn"

	"pgedge/internal/pgtest"
	"pgedge/revoke"
)

const (
	raceLogins     = 10000
	raceRealLogins = 1000 // of these, at least so many are admitted by Postgres
	raceWorkers    = 24
	raceHolders    = 8 // workers that may wait for their session to be cut at a time
)

// raceIdentity is who a login of the race claims to be, and where it goes.
type raceIdentity struct{ user, db string }

var (
	raceReal = []raceIdentity{{"trustuser", pgtest.Database}, {"md5user", pgtest.Database}, {"alice", pgtest.Database}}
	raceFake = []raceIdentity{{"trustuser", "fake"}, {"md5user", "fake"}, {"ann", "fake"}, {"ben", "fake"}, {"cid", "fake"}}
)

// raceSession is what a client saw of one login that was admitted.
type raceSession struct {
	who      raceIdentity
	began    time.Time // before its first byte
	ready    time.Time // after its first ReadyForQuery
	lastGood time.Time // before its last query that was answered
	address  string
	stayed   bool // it never left by itself
}

// raceCut is one order as it was carried out: what began before the first time must not pass a query that was sent
// after the second.
type raceCut struct {
	fact         revoke.Fact
	before, done time.Time
}

// raceBlock is a time in which the table denied an identity without a break.
type raceBlock struct {
	who      raceIdentity
	from, to time.Time // to is zero while it lasts
}

// raceJournal is a journal with one message per subject, its fast path, and the real protocol of a node on top.
type raceJournal struct {
	n    *node
	node *revoke.Node
	rng  *rand.Rand

	seq     uint64
	waiting []revoke.JournalMessage // stored and not delivered
	cuts    []raceCut
	blocks  []raceBlock
	open    map[raceIdentity]int // index into blocks
	want    map[string]bool      // revocations that owe a receipt
	denied  []string             // violations seen from inside
	inForce []revoke.Scope       // revoked or suspended and not reinstated
	stats   map[string]int
}

func (j *raceJournal) handle(ev revoke.Event) {
	before := time.Now()
	commands := j.node.Handle(before, ev)
	j.closeBlocks(before)
	for _, c := range commands {
		switch c := c.(type) {
		case revoke.CutCommand:
			j.n.Cut(c.Order)
			if c.Order.SupersededBy > 0 {
				j.stats["superseded"]++
				j.want[c.Order.Fact.ID] = true
				continue
			}
			if c.Order.Fact.Seq == 0 {
				j.stats["provisional"]++
			} else {
				j.stats["settled"]++
				j.want[c.Order.Fact.ID] = true
			}
			j.cuts = append(j.cuts, raceCut{c.Order.Fact, before, time.Now()})
		case revoke.StoreCommand:
			j.stats["stored by the node"]++
			j.store(c.Subject, c.MsgID, c.Payload)
			j.handle(revoke.StoreResult{Key: c.Key, Outcome: revoke.StoreOK, Seq: j.seq})
		case revoke.RejectCommand, revoke.ReadyCommand, revoke.ReloadCommand, revoke.PresenceCommand:
		}
	}
	j.inspect()
	j.openBlocks()
}

// inspect looks for a session that lives although the table forbids it. It runs after the orders of an event.
func (j *raceJournal) inspect() {
	for _, s := range j.n.index.all() {
		s.mu.Lock()
		alive := (s.state == stLive || s.state == stEnrolling) && !s.cutNow()
		s.mu.Unlock()
		if !alive {
			continue // a login has one more look at the table before it
		}
		if d, denied := j.node.Table().Check(s.identity, s.authSeq, time.Now()); denied {
			j.denied = append(j.denied, fmt.Sprintf("session %s of %v, begun at %d, lives in spite of %s %s seq %d",
				s.id, s.identity, s.authSeq, d.Fact.Verb, d.Fact.Scope.Token(), d.Fact.Seq))
		}
	}
}

// blocked says whether the table denies who a login now, for longer than the hold of a kill.
func (j *raceJournal) blocked(who raceIdentity) bool {
	d, denied := j.node.Table().Check(revoke.NewIdentity(who.user, who.user, who.db, "none"), j.node.Table().Applied(), time.Now())
	return denied && d.Fact.Verb != revoke.VerbKill
}

func (j *raceJournal) closeBlocks(at time.Time) {
	for who, i := range j.open {
		if !j.blocked(who) {
			j.blocks[i].to = at
			delete(j.open, who)
		}
	}
}

func (j *raceJournal) openBlocks() {
	for _, who := range slices.Concat(raceReal, raceFake) {
		if _, open := j.open[who]; !open && j.blocked(who) {
			j.open[who] = len(j.blocks)
			j.blocks = append(j.blocks, raceBlock{who: who, from: time.Now()})
		}
	}
}

// store puts a message into the journal, in the place of an older one of its subject.
func (j *raceJournal) store(subject, msgID string, payload []byte) {
	j.seq++
	j.waiting = slices.DeleteFunc(j.waiting, func(m revoke.JournalMessage) bool { return m.Subject == subject })
	j.waiting = append(j.waiting, revoke.JournalMessage{Subject: subject, MsgID: msgID, Payload: payload, Seq: j.seq, Stored: time.Now()})
}

// deliver hands count messages of the journal to the node.
func (j *raceJournal) deliver(count int) {
	for range min(count, len(j.waiting)) {
		m := j.waiting[0]
		j.waiting = j.waiting[1:]
		m.Pending = uint64(len(j.waiting))
		j.handle(m)
	}
	if at := j.node.NextTick(); !at.IsZero() && !time.Now().Before(at) {
		j.handle(revoke.Tick{})
	}
}

// publish stores a fact, and half of the time shows it to the fast path before.
func (j *raceJournal) publish(v revoke.Verb, scope revoke.Scope) {
	f := revoke.Fact{Verb: v, Scope: scope}
	switch v {
	case revoke.VerbSuspend:
		f.Until = time.Now().Add(time.Hour)
	case revoke.VerbReinstate:
		f.Upto = j.node.Table().Newest(scope)
	case revoke.VerbRevoke, revoke.VerbKill, revoke.VerbInvalid:
	}
	j.stats[v.String()]++
	payload, err := json.Marshal(map[string]any{"until": f.Until, "upto": f.Upto})
	if v != revoke.VerbSuspend && v != revoke.VerbReinstate {
		payload, err = nil, nil
	}
	if err != nil {
		panic(err)
	}
	subject := revoke.Subject(v, scope)
	msgID := fmt.Sprintf("%s|R%d", subject, j.seq+1)
	if v != revoke.VerbReinstate && j.rng.IntN(2) == 0 {
		j.handle(revoke.FastMessage{Subject: subject, MsgID: msgID, Payload: payload})
	}
	j.store(subject, msgID, payload)
}

// step does one random thing. Blocks are undone about as often as they are made, so that half of the logins succeed.
func (j *raceJournal) step() {
	switch r := j.rng.IntN(20); {
	case len(j.inForce) > 0 && (r < 10 || len(j.inForce) > 4):
		i := j.rng.IntN(len(j.inForce))
		scope := j.inForce[i]
		j.inForce = slices.Delete(j.inForce, i, i+1)
		j.publish(revoke.VerbReinstate, scope)
	case r < 15:
		j.publish(revoke.VerbKill, j.scope())
	default:
		v, scope := revoke.VerbRevoke, j.scope()
		if r == 19 {
			v = revoke.VerbSuspend
		}
		j.publish(v, scope)
		if !slices.Contains(j.inForce, scope) {
			j.inForce = append(j.inForce, scope)
		}
	}
	j.deliver(1 + j.rng.IntN(3))
}

func (j *raceJournal) scope() revoke.Scope {
	who := raceReal[j.rng.IntN(len(raceReal))]
	if j.rng.IntN(2) == 0 {
		who = raceFake[j.rng.IntN(len(raceFake))]
	}
	kind, name := revoke.ScopePrincipal, who.user
	switch r := j.rng.IntN(100); {
	case r < 1:
		kind, name = revoke.ScopeAll, ""
	case r < 4:
		kind, name = revoke.ScopeDatabase, who.db
	case r < 25:
		kind, name = revoke.ScopeRole, who.user
	case r < 60:
		if s := j.narrowest(); s != nil {
			kind, name = revoke.ScopeSession, s.id
			if j.rng.IntN(2) == 0 {
				kind, name = revoke.ScopePrincipal, s.identity.Principal
			}
		}
	}
	s, err := revoke.NewScope(kind, name)
	if err != nil {
		panic(err)
	}
	return s
}

// narrowest is a session that is just being handed to its loop, else one that logs in, else any: the windows of a
// race are narrow, and chance alone rarely finds them.
func (j *raceJournal) narrowest() *session {
	var best *session
	rank := -1
	for _, s := range j.n.index.all() {
		s.mu.Lock()
		r := [...]int{stLogin: 1, stEnrolling: 2, stLive: 0, stEnding: 0, stEnded: 0}[s.state]
		s.mu.Unlock()
		if r > rank {
			best, rank = s, r
		}
	}
	if rank > 0 {
		j.stats[[...]string{1: "aimed at a login", 2: "aimed at an enrolment"}[rank]]++
	}
	return best
}

// raceClients are the logins.
type raceClients struct {
	n        *node
	tokens   chan struct{} // one per attempt that has ended
	holders  chan struct{}
	attempts atomic.Int64
	real     atomic.Int64

	mu       sync.Mutex
	sessions []raceSession
	odd      []string // ends that no client should see
}

func (c *raceClients) enough() bool {
	return c.attempts.Load() >= raceLogins && c.real.Load() >= raceRealLogins
}

func (c *raceClients) run(rng *rand.Rand) {
	for !c.enough() {
		who := raceFake[rng.IntN(len(raceFake))]
		if rng.IntN(20) < 7 && c.real.Load() < raceRealLogins || c.attempts.Load() >= raceLogins {
			who = raceReal[rng.IntN(2)]
			if rng.IntN(20) == 0 {
				who = raceReal[2] // SCRAM costs ten times as much
			}
		}
		c.attempts.Add(1)
		c.one(rng, who)
		select {
		case c.tokens <- struct{}{}:
		default:
		}
	}
}

// one logs in, asks a few questions, and leaves in one of several ways or waits until it is cut.
func (c *raceClients) one(rng *rand.Rand, who raceIdentity) {
	s := raceSession{who: who, began: time.Now()}
	conn, err := raceLogin(c.n.addr, who)
	if err != nil {
		c.expect(err, "login", "28000", "57P01", "")
		return
	}
	s.ready, s.address, s.stayed = time.Now(), conn.LocalAddr().String(), true
	if who.db == pgtest.Database {
		c.real.Add(1)
	}
	defer func() {
		c.mu.Lock()
		c.sessions = append(c.sessions, s)
		c.mu.Unlock()
	}()
	ask := func() bool {
		at := time.Now()
		if err := conn.query(";"); err != nil {
			c.expect(err, "query", "28000", "57P01", "")
			return false
		}
		s.lastGood = at
		return true
	}
	for range rng.IntN(3) {
		if !ask() {
			conn.Close()
			return
		}
	}
	switch rng.IntN(6) {
	case 0:
		s.stayed = false
		conn.Close()
	case 1:
		s.stayed = false
		conn.reset()
	case 2, 3:
		s.stayed = false
		conn.terminate()
	default:
		select {
		case c.holders <- struct{}{}:
			alive := true
			for i := 0; i < 5 && alive; i++ {
				alive = ask()
			}
			if alive {
				c.expect(conn.ready(), "wait", "28000", "57P01", "")
			}
			<-c.holders
		default:
			s.stayed = false
		}
		conn.terminate()
	}
}

// expect notes an error that has another SQLSTATE than the wanted ones; "" is a connection that was closed. A client
// that hears nothing at all is never right.
func (c *raceClients) expect(err error, at string, codes ...string) {
	if !slices.Contains(codes, loadCode(err)) || errors.Is(err, os.ErrDeadlineExceeded) {
		c.mu.Lock()
		c.odd = append(c.odd, fmt.Sprintf("%s: %v", at, err))
		c.mu.Unlock()
	}
}

func raceLogin(addr string, who raceIdentity) (*loadClient, error) {
	if who.user != "alice" {
		return loadDial(addr, who.user, pgtest.Password(who.user), who.db)
	}
	cfg, err := pgconn.ParseConfig(fmt.Sprintf("postgres://alice:%s@%s/%s?sslmode=disable", pgtest.Password("alice"), addr, who.db))
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	pc, err := pgconn.ConnectConfig(ctx, cfg)
	var pg *pgconn.PgError
	if errors.As(err, &pg) {
		return nil, &loadRefusal{pg.Code, pg.Message, pg.Detail}
	}
	if err != nil {
		return nil, err
	}
	h, err := pc.Hijack()
	if err != nil {
		return nil, err
	}
	h.Conn.SetDeadline(time.Now().Add(patience))
	return &loadClient{Conn: h.Conn, fe: h.Frontend}, nil
}

// TestNoSessionLivesThatTheTableForbids is G2: logins race facts of every verb and scope about the same principals.
func TestNoSessionLivesThatTheTableForbids(t *testing.T) {
	seed := loadSeed(t)
	rev := revoke.NewNode(revoke.NodeConfig{ID: "edge-t", Boot: "boot", StoreAfter: 100 * time.Millisecond, KillHold: 50 * time.Millisecond})
	fake := startLoadBackend(t)
	n := startNode(t, func(c *Config) {
		c.Table = rev.Table()
		c.Databases["fake"] = Database{Upstream: fake.upstream(t)}
		quiet(c)
	})
	baseline := n.baseline()
	j := &raceJournal{n: n, node: rev, rng: loadRand(seed, 0), open: make(map[raceIdentity]int), want: make(map[string]bool), stats: make(map[string]int)}
	j.handle(revoke.JournalEmpty{})

	c := &raceClients{n: n, tokens: make(chan struct{}, 256), holders: make(chan struct{}, raceHolders)}
	var workers sync.WaitGroup
	for i := range raceWorkers {
		workers.Go(func() { c.run(loadRand(seed, uint64(i+1))) })
	}
	gone := make(chan struct{})
	for !c.enough() {
		for range j.rng.IntN(12) {
			<-c.tokens
		}
		j.step()
	}
	go func() { workers.Wait(); close(gone) }()
	everybody := revoke.Scope{Kind: revoke.ScopeAll}
	for ended := false; !ended; { // some wait for their end, and some log in once more meanwhile
		j.publish(revoke.VerbKill, everybody)
		j.deliver(len(j.waiting))
		select {
		case <-gone:
			ended = true
		case <-c.tokens:
		}
	}
	pgtest.Wait(t, "the node to settle everything", func() bool {
		j.deliver(len(j.waiting))
		return rev.Stats().Unsettled == 0
	})
	t.Logf("%d logins, %d admitted, of them %d by Postgres; orders: %v", c.attempts.Load(), len(c.sessions), c.real.Load(), j.stats)

	for _, v := range j.denied {
		t.Error(v)
	}
	for _, odd := range c.odd {
		t.Error(odd)
	}
	checkRaceSessions(t, c.sessions, j.cuts, j.blocks)
	checkRaceReceipts(n, j.want, c.sessions)
	n.settledAt(baseline)
	for _, who := range raceReal {
		server.WaitBackends(t, who.user, 0)
	}
	n.noBugs()
}

// checkRaceSessions compares what clients saw with when orders were carried out.
func checkRaceSessions(t *testing.T, sessions []raceSession, cuts []raceCut, blocks []raceBlock) {
	t.Helper()
	for _, s := range sessions {
		for _, b := range blocks {
			if b.who == s.who && s.began.After(b.from) && (b.to.IsZero() || s.ready.Before(b.to)) {
				t.Errorf("%v was admitted although it was blocked from %v before its login on", s.who, s.began.Sub(b.from))
			}
		}
		for _, c := range cuts {
			if c.fact.Scope.Kind != revoke.ScopeSession && matches(c.fact.Scope, s.who) && s.ready.Before(c.before) && s.lastGood.After(c.done) {
				t.Errorf("%v was answered a query sent %v after %s of %s had been carried out", s.who, s.lastGood.Sub(c.done), c.fact.Verb, c.fact.Scope.Token())
			}
		}
	}
}

func matches(s revoke.Scope, who raceIdentity) bool {
	switch s.Kind {
	case revoke.ScopeAll:
		return true
	case revoke.ScopePrincipal, revoke.ScopeRole:
		return s.Name == who.user
	case revoke.ScopeDatabase:
		return s.Name == who.db
	case revoke.ScopeSession, revoke.ScopeInvalid:
	}
	return false
}

// checkRaceReceipts waits until every revocation has come to the stage verified, and compares receipts with the
// audit trail.
func checkRaceReceipts(n *node, want map[string]bool, sessions []raceSession) {
	t := n.t
	t.Helper()
	stages := make(map[string][]revoke.Receipt)
	pgtest.Wait(t, "all receipts", func() bool {
		clear(stages)
		verified := 0
		n.mu.Lock()
		defer n.mu.Unlock()
		for _, r := range n.receipts {
			stages[r.Revocation] = append(stages[r.Revocation], r)
			if r.Final() {
				verified++
			}
		}
		return verified >= len(want)
	})
	principals := make(map[string]string)
	for _, kind := range []string{"login", "end", "refusal"} {
		for _, ev := range n.audited(kind) {
			principals[ev.Session] = ev.Principal
		}
	}
	receipted := make(map[string]bool)
	matched, unverified := 0, 0
	for id, rs := range stages {
		if !want[id] {
			t.Errorf("a receipt came for %q, which was never ordered", id)
		}
		last := 0
		for _, r := range rs {
			if receiptRank(r) <= last {
				t.Errorf("%s: stage %s came after stage %d", id, r.Stage, last)
			}
			last = receiptRank(r)
		}
		if last != 3 {
			t.Errorf("%s came to stage %d only", id, last)
			continue
		}
		final := rs[len(rs)-1]
		matched += final.Matched
		unverified += final.Unverified
		if final.Matched != len(final.Sessions) {
			t.Errorf("%s matched %d and lists %d sessions", id, final.Matched, len(final.Sessions))
		}
		if !(final.CutUS <= final.ClosedUS && final.ClosedUS <= final.VerifiedUS) {
			t.Errorf("%s: cut %d, closed %d, verified %d us", id, final.CutUS, final.ClosedUS, final.VerifiedUS)
		}
		for _, s := range final.Sessions {
			receipted[s.ID] = true
			if !s.Verified {
				unverified--
				if s.Why == "" {
					t.Errorf("%s: session %s is unverified for no reason", id, s.ID)
				}
			}
			if p, known := principals[s.ID]; !known || p != s.Principal || s.BytesAfter != 0 {
				t.Errorf("%s: session line %+v; the audit trail knows principal %q", id, s, p)
			}
			if s.SQLState != "28000" && s.SQLState != "57P01" {
				t.Errorf("%s: session %s was told %q", id, s.ID, s.SQLState)
			}
		}
	}
	for id := range want {
		if stages[id] == nil {
			t.Errorf("no receipt came for %s", id)
		}
	}
	if unverified != 0 {
		t.Errorf("the counts of unverified sessions differ from the lines by %d", unverified)
	}
	stayed := make(map[string]bool)
	for _, s := range sessions {
		_, reused := stayed[s.address] // ports come again
		stayed[s.address] = s.stayed && !reused
	}
	for _, ev := range n.audited("end") {
		if ev.Revocation != "" && stayed[ev.Client] && !receipted[ev.Session] {
			t.Errorf("session %s ended for %s, and no receipt lists it", ev.Session, ev.Revocation)
		}
	}
	t.Logf("%d receipts with %d sessions", len(stages), matched)
}
