package engine

import (
	"context"
	"hash/maphash"
	"net"
	"time"

	"golang.org/x/sys/unix"

	"pgedge/codec"
)

const (
	// cancelTimeout bounds what becomes of one cancel request, forwarding included.
	cancelTimeout = 5 * time.Second

	// guessRate and guessBurst bound, per client address, the cancel requests whose key nobody has given out. At this
	// rate a secret of protocol 3.0, 32 bits, takes an address the better part of a year; a client that gives up many
	// statements at once, with sessions that end meanwhile, stays below.
	guessRate, guessBurst = 200, 1000
	// guessBuckets is how many addresses are told apart; others share a bucket.
	guessBuckets = 256

	// forwardRate and forwardBurst bound what this node asks of others, whoever the clients are: a flood of cancel
	// requests does not become one of messages. It is more than what one address may get wrong, so that no address alone
	// keeps others from being heard. Beyond it requests wait for up to forwardWait.
	forwardRate, forwardBurst = 1000, 1000
	forwardWait               = time.Second
)

// relayCancel passes a client's cancel request on and returns when the server has taken note of it; the client's
// own connection is closed only then, as libpq expects. There is never an answer.
func (e *Engine) relayCancel(client net.Addr, key codec.CancelKey) {
	guesses := e.guesses.of(client)
	if guesses.empty() {
		// Not even looked up: a limit that let the right guess through would be none.
		e.metrics.cancelsDropped.Inc()
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), cancelTimeout)
	defer cancel()
	if s := e.cancels.find(key); s != nil {
		e.cancelSession(ctx, s)
		return
	}
	owner := e.cancels.ownerOf(key)
	if owner == nil || e.cfg.ForwardCancel == nil {
		e.metrics.cancelsUnknown.Inc()
		guesses.allow()
		return
	}
	if !e.forwards.wait(ctx, forwardWait) {
		e.metrics.cancelsDropped.Inc()
		return
	}
	known, err := e.cfg.ForwardCancel(ctx, owner, codec.AppendCancelRequest(nil, key))
	switch {
	case known:
		e.metrics.cancelsForwarded.Inc()
	case err != nil:
		e.metrics.cancelsUnreachable.Inc()
		e.log.Warn("cannot forward a cancel request to the node that gave out its key", "error", err)
	default:
		e.metrics.cancelsUnknown.Inc()
		guesses.allow()
	}
}

// CarryOutCancel carries out a cancel request that another node has forwarded, in the form in which it came from the
// client, and returns when the server has taken note of it. It reports whether the key is one of this node's: what is
// not is never passed on again. It may be called from any goroutine.
func (e *Engine) CarryOutCancel(request []byte) (known bool) {
	key, err := codec.ParseCancelPacket(request)
	if err != nil {
		return false
	}
	s := e.cancels.find(key)
	if s == nil {
		return false
	}
	ctx, cancel := context.WithTimeout(context.Background(), cancelTimeout)
	defer cancel()
	e.cancelSession(ctx, s)
	return true
}

// cancelSession asks the server to cancel what the session's backend runs. The client never learns the backend's own
// key, and neither does another node.
func (e *Engine) cancelSession(ctx context.Context, s *session) {
	select {
	case e.cancelling <- struct{}{}:
		defer func() { <-e.cancelling }()
	default:
		e.metrics.cancelsDropped.Inc() // a storm of them; the client asks again
		return
	}
	if s.cutNow() {
		return // its backend is being ended, which is more
	}
	if !e.fresh() {
		return // nothing passes, and a statement that holds locks is ended in time
	}
	if s.ignoresCancel(ctx) {
		e.metrics.cancelsIdle.Inc()
		return
	}
	e.metrics.cancels.Inc()
	if err := s.entry.upstream.sendCancel(ctx, s.link, s.key); err != nil {
		e.log.Warn("cannot relay a cancel request", "session", s.id, "error", err)
	}
}

// ignoresCancel tells that there is nothing to cancel, so that the server need not be bothered: a cancel request for an
// idle session has no effect. Only the session's loop can tell. While a session is on its way to a loop the answer is
// no, and the server decides.
func (s *session) ignoresCancel(ctx context.Context) bool {
	s.mu.Lock()
	live := s.state == stLive
	s.mu.Unlock()
	if !live {
		return false
	}
	idle := make(chan bool, 1)
	s.loop.post(func() { idle <- s.atRest() })
	select {
	case yes := <-idle:
		return yes
	case <-ctx.Done():
	case <-s.eng.stopping:
	}
	return false
}

// atRest is called on the loop. A query that the client has sent and that has not been read here yet, because the loop
// is busy or the client is paused, may be what it wants cancelled.
func (s *session) atRest() bool {
	if s.busy() || !s.front.scan.AtBoundary() || s.front.heldLen > 0 || len(s.front.ahead) > 0 {
		return false
	}
	if !s.front.open() {
		return true
	}
	unread, err := unix.IoctlGetInt(s.front.conn.Fd(), unix.TIOCINQ)
	return err == nil && unread == 0 && s.front.conn.InboundBuffered() == 0
}

// guessLimits hold back addresses that try keys out. The seed keeps clients from choosing whom they share with.
type guessLimits struct {
	seed    maphash.Seed
	buckets [guessBuckets]*limiter
}

func newGuessLimits() *guessLimits {
	g := &guessLimits{seed: maphash.MakeSeed()}
	for i := range g.buckets {
		g.buckets[i] = newLimiter(guessRate, guessBurst)
	}
	return g
}

// of returns what client's host may still get wrong. All local clients count as one.
func (g *guessLimits) of(client net.Addr) *limiter {
	var host []byte
	if tcp, ok := client.(*net.TCPAddr); ok {
		host = tcp.IP.To16()
		if tcp.IP.To4() == nil && len(host) > 8 {
			host = host[:8] // whoever has one IPv6 address has all of its network
		}
	}
	return g.buckets[maphash.Bytes(g.seed, host)%guessBuckets]
}
