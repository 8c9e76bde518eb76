package engine

import (
	"context"
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
	raceRealLogins = 1000 // of these, at least so many reach Postgres and are authenticated by it
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

// raceClients are the logins.
type raceClients struct {
	n        *node
	tokens   chan struct{} // one per attempt that has ended
	holders  chan struct{}
	attempts atomic.Int64
	real     atomic.Int64 // sessions that Postgres has counted

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
	counter := server.Conn(t)
	baseline := n.baseline()
	j := &raceJournal{n: n, node: rev, rng: loadRand(seed, 0), open: make(map[raceIdentity]int), want: make(map[string]bool), stats: make(map[string]int)}
	j.handle(revoke.JournalEmpty{})

	c := &raceClients{n: n, tokens: make(chan struct{}, 256), holders: make(chan struct{}, raceHolders)}
	var workers sync.WaitGroup
	for i := range raceWorkers {
		workers.Go(func() { c.run(loadRand(seed, uint64(i+1))) })
	}
	gone := make(chan struct{})
	go func() { workers.Wait(); close(gone) }()
	count := func() (sessions int64) {
		t.Helper()
		if err := counter.QueryRow(bounded(t), "SELECT sessions FROM pg_stat_database WHERE datname = $1", pgtest.Database).Scan(&sessions); err != nil {
			t.Fatal(err)
		}
		return sessions
	}
	before := count()
	for steps := 0; !c.enough(); steps++ {
		if steps%50 == 0 {
			c.real.Store(count() - before)
		}
		for range j.rng.IntN(12) {
			select {
			case <-c.tokens:
			case <-gone:
			}
		}
		j.step()
	}
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
	t.Logf("%d logins, %d of them reached Postgres; %d were admitted; orders: %v", c.attempts.Load(), c.real.Load(), len(c.sessions), j.stats)

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
