package engine

import (
	"math/rand/v2"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgproto3"
	"go.uber.org/goleak"

	"pgedge/internal/pgtest"
	"pgedge/revoke"
)

const (
	leakSessions     = 10000
	leakRealSessions = 400 // of these, so many are tried on Postgres
	leakWorkers      = 16
)

// leakOne is one short session; it is over in its client's eyes when this returns.
func leakOne(n *node, rng *rand.Rand, real bool) {
	user, db := "ann", "fake"
	if real {
		user, db = []string{"trustuser", "md5user"}[rng.IntN(2)], pgtest.Database
	}
	password := pgtest.Password(user)
	switch rng.IntN(12) {
	case 0: // a health check
		if c, err := net.DialTimeout("tcp", n.addr, patience); err == nil {
			c.Close()
		}
		return
	case 1: // half a startup packet, and gone
		if c, err := net.DialTimeout("tcp", n.addr, patience); err == nil {
			c.Write(loadStartup(user, db)[:9])
			c.Close()
		}
		return
	case 2: // gone before the answer
		if c, err := net.DialTimeout("tcp", n.addr, patience); err == nil {
			c.Write(loadStartup(user, db))
			c.(*net.TCPConn).SetLinger(rng.IntN(2) - 1)
			c.Close()
		}
		return
	case 3:
		user, password = "md5user", "wrong"
		if !real {
			db = "nowhere"
		}
	}
	c, err := loadDial(n.addr, user, password, db)
	if err != nil {
		return // refused: wrong password, no such database, killed while logging in
	}
	for range rng.IntN(3) {
		if c.query(";") != nil {
			c.Close()
			return
		}
	}
	switch rng.IntN(6) {
	case 0:
		c.Close()
	case 1:
		c.reset()
	case 2: // gone in the middle of a question
		c.fe.Send(&pgproto3.Query{String: "SELECT pg_sleep(60)"})
		c.fe.Flush()
		c.reset()
	case 3:
		loadCancel(n.addr, c.key)
		c.terminate()
	case 4: // a cancel request that comes too late
		c.terminate()
		loadCancel(n.addr, c.key)
	default:
		c.terminate()
	}
}

func loadCancel(addr string, key pgproto3.BackendKeyData) {
	c, err := net.DialTimeout("tcp", addr, patience)
	if err != nil {
		return
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(patience))
	msg, err := (&pgproto3.CancelRequest{ProcessID: key.ProcessID, SecretKey: key.SecretKey}).Encode(nil)
	if err != nil {
		return
	}
	c.Write(msg)
	c.Read(make([]byte, 1)) // it is closed when the server has taken note
}

func TestEverythingReturnsToWhereItWasAfterTenThousandShortSessions(t *testing.T) {
	seed := loadSeed(t)
	fake := startLoadBackend(t)
	n := startNode(t, func(c *Config) {
		quiet(c)
		c.Databases = map[string]Database{pgtest.Database: c.Databases["*"], "fake": {Upstream: fake.upstream(t)}}
	})
	baseline := n.baseline()
	var next, kills atomic.Int64
	var killing sync.Mutex // orders come from one goroutine at a time
	var wg sync.WaitGroup
	for w := range leakWorkers {
		wg.Go(func() {
			rng := loadRand(seed, uint64(w))
			for i := next.Add(1); i <= leakSessions; i = next.Add(1) {
				leakOne(n, rng, i%(leakSessions/leakRealSessions) == 0)
				if rng.IntN(100) == 0 {
					killing.Lock()
					n.apply(revoke.VerbKill, revoke.ScopePrincipal, []string{"ann", "trustuser", "md5user"}[rng.IntN(3)])
					killing.Unlock()
					kills.Add(1)
				}
			}
		})
	}
	wg.Wait()
	n.settledAt(baseline)
	loadCheckHeap(t, "after all sessions")
	pgtest.Wait(t, "the stand-in's connections to end", func() bool { return fake.len() == 0 })
	for _, role := range []string{"trustuser", "md5user"} {
		server.WaitBackends(t, role, 0)
	}
	verified := 0
	n.mu.Lock()
	for _, r := range n.receipts {
		if r.Final() {
			verified++
		}
	}
	n.mu.Unlock()
	if verified != int(kills.Load()) {
		t.Errorf("%d kills, but %d receipts came to the stage verified", kills.Load(), verified)
	}
	ends := make(map[string]int)
	for _, kind := range []string{"end", "refusal"} {
		for _, ev := range n.audited(kind) {
			ends[ev.Reason]++
		}
	}
	t.Logf("%d kills; ends: %v", kills.Load(), ends)
	for _, r := range []Reason{ReasonClientGone, ReasonLoginRefused, ReasonKilled, ReasonUnknownDatabase} {
		if ends[r.String()] == 0 {
			t.Errorf("no session ended for reason %s: the test proves less than it says", r)
		}
	}
	if n.metrics.cancels.Get() == 0 || n.metrics.cancelsUnknown.Get() == 0 {
		t.Errorf("%d cancel requests were relayed and %d unknown", n.metrics.cancels.Get(), n.metrics.cancelsUnknown.Get())
	}
	n.noBugs()
}

func TestNoGoroutineOfTheEngineOutlivesStop(t *testing.T) {
	before := goleak.IgnoreCurrent()
	t.Run("node", func(t *testing.T) {
		n := startNode(t, nil)
		for range 3 {
			n.login("trustuser").Close(bounded(t))
		}
		n.login("trustuser")
		n.verified(n.revoke("trustuser"), 1)
		loadCancel(n.addr, pgproto3.BackendKeyData{ProcessID: 1, SecretKey: []byte{1, 2, 3, 4}})
	})
	if err := goleak.Find(before, loadPoolWorkers); err != nil {
		t.Error(err)
	}
}

// loadPoolWorkers are the idle goroutines of the pool that gnet shares between engines; they go after ten seconds.
var loadPoolWorkers = goleak.IgnoreAnyFunction("github.com/panjf2000/ants/v2.(*goWorker).run.func1")
