package engine

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"pgedge/codec"
	"pgedge/internal/pgtest"
	"pgedge/revoke"
)

// switchboard joins engines as the cluster does, without NATS.
type switchboard struct {
	mu    sync.Mutex
	nodes map[string]*node
	asked atomic.Int64
}

func (b *switchboard) start(t testing.TB, name string, change func(*Config)) *node {
	n := startNode(t, func(c *Config) {
		c.Node = name
		c.ForwardCancel = b.forward
		if change != nil {
			change(c)
		}
	})
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.nodes == nil {
		b.nodes = make(map[string]*node)
	}
	b.nodes[name] = n
	return n
}

func (b *switchboard) forward(_ context.Context, owner func(string) bool, request []byte) (known bool, err error) {
	b.mu.Lock()
	var owners []*node
	for name, n := range b.nodes {
		if owner(name) {
			owners = append(owners, n)
		}
	}
	b.mu.Unlock()
	for _, n := range owners {
		b.asked.Add(1)
		known = n.CarryOutCancel(request) || known
	}
	return known, nil
}

// sleeperOf is startSleeper in a given version of the protocol.
func sleeperOf(t *testing.T, addr string, version uint32, mark string) *sleeper {
	t.Helper()
	c := dialPlain(t, "tcp", addr)
	c.send(startupVersion(version, "user", "u", "database", "d"))
	s := &sleeper{plainConn: c, sql: mark}
	for _, f := range c.until('Z') {
		if f.typ == 'K' {
			s.key, _ = codec.ParseBackendKeyData(f.body)
		}
	}
	return s
}

func TestACancelRequestAtAnotherNodeReachesTheOneThatGaveOutTheKey(t *testing.T) {
	var b switchboard
	owner, other := b.start(t, "edge-a", nil), b.start(t, "edge-b", nil)
	s := startSleeper(t, owner.addr, "owned elsewhere")
	cancelAt(t, other.addr, s.key)
	s.isCancelled()
	if got := other.metrics.cancelsForwarded.Get(); got != 1 {
		t.Errorf("%d requests were counted as forwarded", got)
	}
	if got := owner.metrics.cancels.Get(); got != 1 {
		t.Errorf("%d requests were counted as relayed", got)
	}
}

// The requester's connection is closed only when the server has taken note.
func TestAForwardedCancelRequestIsOverWhenTheServerHasTakenNote(t *testing.T) {
	taken := make(chan struct{})
	own := codec.CancelKey{PID: 77, Secret: []byte("own!")}
	arrived := make(chan struct{})
	f := newFake(t, func(c *fakeConn) {
		if string(c.startup[:4]) == string(codec.AppendCancelRequest(nil, own)[4:8]) {
			close(arrived)
			<-taken
			return
		}
		c.write(m('R', int32(0)), codec.AppendBackendKeyData(nil, own), m('Z', byte('I')))
		c.hold()
	})
	u := controlUpstream(t, "pgedge_control", f.addr, "?sslmode=disable")
	u.Control = nil
	upstream := func(c *Config) { c.Databases = map[string]Database{"*": {Upstream: u}} }
	var b switchboard
	owner, other := b.start(t, "edge-a", upstream), b.start(t, "edge-b", upstream)
	s := sleeperOf(t, owner.addr, version30, "")
	s.send(query("SELECT 1"))
	s.waitBusy(owner)
	c := dialPlain(t, "tcp", other.addr)
	c.send(codec.AppendCancelRequest(nil, s.key))
	<-arrived
	c.SetReadDeadline(time.Now().Add(200 * time.Millisecond))
	if _, err := c.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("before the server had taken note: %v", err)
	}
	close(taken)
	c.SetReadDeadline(time.Now().Add(patience))
	if got := c.rest(); len(got) > 0 {
		t.Errorf("a cancel request was answered: %s", spell(got))
	}
}

// waitBusy returns when the node has passed a request of the session on.
func (s *sleeper) waitBusy(n *node) {
	s.t.Helper()
	pgtest.Wait(s.t, "the session to be busy", func() bool {
		found := n.cancels.find(s.key)
		return found != nil && found.busy()
	})
}

func TestTheLongKeyNamesItsNodeAndIsForwardedToThatOneOnly(t *testing.T) {
	own := codec.CancelKey{PID: 77, Secret: []byte(strings.Repeat("own secret ", 6))}
	requests := make(chan []byte, 4)
	f := newFake(t, func(c *fakeConn) {
		if string(c.startup[:4]) == string(codec.AppendCancelRequest(nil, own)[4:8]) {
			requests <- c.startup
			return
		}
		c.write(m('R', int32(0)), codec.AppendBackendKeyData(nil, own), m('Z', byte('I')))
		c.hold()
	})
	u := controlUpstream(t, "pgedge_control", f.addr, "?sslmode=disable")
	u.Control = nil
	upstream := func(c *Config) { c.Databases = map[string]Database{"*": {Upstream: u}} }
	first, second := sharedTag(t)
	var b switchboard
	owner, other := b.start(t, first, upstream), b.start(t, "edge-b", upstream)
	b.start(t, second, upstream)
	s := sleeperOf(t, owner.addr, version30+2, "")
	if !strings.HasSuffix(string(s.key.Secret), first) || len(s.key.Secret) > codec.MaxSecretLength/2 {
		t.Fatalf("the key is %q", s.key.Secret)
	}
	s.send(query("SELECT 1"))
	s.waitBusy(owner)
	cancelAt(t, other.addr, s.key)
	if got := <-requests; string(got) != string(codec.AppendCancelRequest(nil, own)[4:]) {
		t.Errorf("the server was sent %q", got)
	}
	if got := b.asked.Load(); got != 1 {
		t.Errorf("%d nodes were asked", got)
	}
	for what, change := range map[string]func(*codec.CancelKey){
		"the name of a node that is not there": func(k *codec.CancelKey) { k.Secret = append(k.Secret, 'x') },
		"a wildcard for a name":                func(k *codec.CancelKey) { k.Secret = append(k.Secret[:randomLength32:randomLength32], '>') },
		"no name":                              func(k *codec.CancelKey) { k.Secret = k.Secret[:randomLength32] },
	} {
		key := codec.CancelKey{PID: s.key.PID, Secret: append([]byte(nil), s.key.Secret...)}
		change(&key)
		cancelAt(t, other.addr, key)
		if got := b.asked.Load(); got != 1 {
			t.Errorf("%s: somebody was asked", what)
		}
	}
}

// sharedTag finds two node ids with the same tag.
func sharedTag(t *testing.T) (a, b string) {
	t.Helper()
	byTag := make(map[uint32]string)
	for i := range 1 << 16 {
		name := fmt.Sprintf("edge-%d", i)
		tag := nodeTag(name)
		if other, taken := byTag[tag]; taken {
			return other, name
		}
		byTag[tag] = name
	}
	t.Fatal("no two names share a tag")
	return "", ""
}

func TestNodesThatShareATagCancelForEachOther(t *testing.T) {
	first, second := sharedTag(t)
	var b switchboard
	one, two, third := b.start(t, first, nil), b.start(t, second, nil), b.start(t, "edge-b", nil)
	s, bystander := startSleeper(t, one.addr, "first of a tag"), startSleeper(t, two.addr, "second of a tag")
	if s.key.PID != bystander.key.PID {
		t.Fatalf("the pids %x and %x differ", s.key.PID, bystander.key.PID)
	}
	cancelAt(t, two.addr, s.key)
	s.isCancelled()
	bystander.waitActive(1)
	cancelAt(t, third.addr, bystander.key)
	bystander.isCancelled()
}

func TestACutSessionAndAWrongSecretAreNotCancelledFromAnotherNode(t *testing.T) {
	var b switchboard
	owner, other := b.start(t, "edge-a", nil), b.start(t, "edge-b", nil)
	s := startSleeper(t, owner.addr, "wrong secret")
	wrong := append([]byte(nil), s.key.Secret...)
	wrong[0] ^= 0x80
	cancelAt(t, other.addr, codec.CancelKey{PID: s.key.PID, Secret: wrong})
	if got := other.metrics.cancelsUnknown.Get(); got != 1 {
		t.Errorf("%d requests were counted as unknown", got)
	}
	s.waitActive(1)
	found := owner.cancels.find(s.key)
	found.mu.Lock()
	found.closeGateLocked(ReasonRevoked, &revoke.Fact{})
	found.mu.Unlock()
	cancelAt(t, other.addr, s.key)
	if got := owner.metrics.cancels.Get(); got != 0 {
		t.Errorf("%d requests were relayed for a session that was cut", got)
	}
	s.waitActive(1)
}

func TestTheServerIsNotBotheredForAnIdleSession(t *testing.T) {
	back := pgtest.NewRelay(t, server.Addr())
	n := through(t, back.Addr(), nil)
	c := dialPlain(t, "tcp", n.addr)
	s := &sleeper{plainConn: c}
	c.send(startup("user", "trustuser", "database", pgtest.Database))
	for _, f := range c.until('Z') {
		if f.typ == 'K' {
			s.key, _ = codec.ParseBackendKeyData(f.body)
		}
	}
	before := back.Conns()
	for _, sql := range []string{"SELECT 1", "BEGIN", "SELECT nothing", "ROLLBACK"} {
		s.send(query(sql))
		s.until('Z')
		cancelAt(t, n.addr, s.key)
	}
	if got := n.metrics.cancelsIdle.Get(); got != 4 || n.metrics.cancels.Get() != 0 {
		t.Errorf("%d requests were counted as idle, %d relayed", got, n.metrics.cancels.Get())
	}
	if got := back.Conns(); got != before {
		t.Errorf("%d connections to the server, want %d", got, before)
	}
	// A statement behind which no Sync follows is at work, whatever the last ReadyForQuery said.
	s.send(join(m('P', "", "SELECT pg_sleep(300) /* no sync */", int16(0)), m('B', "", "", int16(0), int16(0), int16(0)), m('E', "", int32(0)), flushMsg))
	server.WaitInt(t, 1, "SELECT count(*) FROM pg_stat_activity WHERE state = 'active' AND query = $1", "SELECT pg_sleep(300) /* no sync */")
	cancelAt(t, n.addr, s.key)
	if got := spell(s.until('E')); !strings.Contains(got, "57014") {
		t.Errorf("got %s", got)
	}
}

// A query that stands in the socket while the loop is held up is what its client wants cancelled.
func TestASessionWithAQueryThatIsNotReadYetIsNotIdle(t *testing.T) {
	n := startNode(t, func(c *Config) { c.Loops = 1 })
	c := loginPlain(t, n.addr)
	c.send(query("SELECT 1")) // the session is on its loop when this is answered
	c.until('Z')
	hold, held := make(chan struct{}), make(chan struct{})
	n.loops[0].post(func() { close(held); <-hold })
	<-held
	c.send(query("SELECT 1"))
	var s *session
	for _, x := range n.index.all() {
		s = x
	}
	idle := make(chan bool, 1)
	n.loops[0].post(func() { idle <- s.atRest() })
	close(hold)
	if <-idle {
		t.Error("the session counts as idle")
	}
	c.until('Z')
}

func TestADrainingNodeStillCancels(t *testing.T) {
	var b switchboard
	owner, other := b.start(t, "edge-a", nil), b.start(t, "edge-b", nil)
	here, there := startSleeper(t, owner.addr, "draining, asked itself"), startSleeper(t, owner.addr, "draining, asked elsewhere")
	ctx, stop := context.WithCancel(context.Background())
	drained := make(chan struct{})
	go func() { defer close(drained); owner.Drain(ctx) }()
	defer func() { stop(); <-drained }()
	pgtest.Wait(t, "the drain", func() bool { return owner.draining.Load() })
	for s, addr := range map[*sleeper]string{here: owner.addr, there: other.addr} {
		cancelAt(t, addr, s.key)
		if got := spell(s.rest()); !strings.Contains(got, "E(ERROR 57014") || !strings.Contains(got, "57P01") {
			t.Errorf("got %s", got)
		}
	}
}

func TestAddressesThatGuessKeysAreHeldBackAndAskNobody(t *testing.T) {
	var b switchboard
	owner, other := b.start(t, "edge-a", nil), b.start(t, "edge-b", nil)
	s := startSleeper(t, owner.addr, "guessed at")
	wrong := codec.CancelKey{PID: s.key.PID, Secret: []byte{s.key.Secret[0] ^ 1, 0, 0, 0}}
	client := &net.TCPAddr{IP: net.ParseIP("192.0.2.1")}
	const flood = 20 * guessBurst
	for range flood {
		other.relayCancel(client, wrong)
	}
	if asked := b.asked.Load(); asked < guessBurst || asked > flood/2 {
		t.Errorf("%d of %d guesses were passed on, want about %d", asked, flood, guessBurst)
	}
	if got := other.metrics.cancelsDropped.Get(); got < flood/2 {
		t.Errorf("%d guesses were dropped", got)
	}
	other.relayCancel(client, s.key) // the right one at last: it is not looked at
	s.waitActive(1)
	cancelAt(t, other.addr, s.key) // another address
	s.isCancelled()
}

// Many addresses, each with one guess.
func TestAFloodOfCancelRequestsFromManyAddressesIsNoFloodForOtherNodes(t *testing.T) {
	var asked atomic.Int64
	n := startNode(t, func(c *Config) {
		c.ForwardCancel = func(context.Context, func(string) bool, []byte) (bool, error) {
			asked.Add(1)
			return false, errors.New("nobody is there")
		}
	})
	const flood = 8 * forwardBurst
	var wg sync.WaitGroup
	began := time.Now()
	for i := range flood {
		wg.Go(func() {
			n.relayCancel(&net.TCPAddr{IP: net.IPv4(192, 0, byte(i>>8), byte(i))}, codec.CancelKey{PID: 1 << tagShift, Secret: []byte("1234")})
		})
	}
	wg.Wait()
	if most := forwardBurst + forwardRate*(time.Since(began).Seconds()+1); float64(asked.Load()) > most {
		t.Errorf("%d of %d requests were passed on, want at most %.0f", asked.Load(), flood, most)
	}
	if n.metrics.cancelsDropped.Get() != flood-uint64(asked.Load()) || n.metrics.cancelsUnreachable.Get() != uint64(asked.Load()) {
		t.Errorf("%d requests were dropped, %d unreachable", n.metrics.cancelsDropped.Get(), n.metrics.cancelsUnreachable.Get())
	}
}

func TestWhatIsNotACancelRequestIsUnknown(t *testing.T) {
	n := startNode(t, nil)
	good := codec.AppendCancelRequest(nil, codec.CancelKey{PID: 1, Secret: []byte("1234")})
	for _, p := range [][]byte{nil, {0}, good[:8], good[:12], append(good, 0), startup("user", "u"), make([]byte, 400)} {
		if n.CarryOutCancel(p) {
			t.Errorf("%q is known", p)
		}
	}
}
