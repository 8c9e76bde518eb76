package pgtest

import (
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"testing"
)

// Direction is one of the two streams a relayed connection has. Both may be combined with |.
type Direction uint8

const (
	ToServer Direction = 1 << iota
	ToClient
	BothWays = ToServer | ToClient
)

const (
	relayBufferBytes = 32 << 10
	maxRelayed       = 4096 // connections at once; more are reset
)

// Relay is a plain TCP relay with faults. It dials anew for each client, so the server sees the relay's port
// instead of the client's, as behind a load balancer or NAT. Its methods may be used by any goroutine.
type Relay struct {
	addr   string
	target string
	wg     sync.WaitGroup

	mu       sync.Mutex
	changed  sync.Cond
	listener net.Listener // nil while cut or closed
	closed   bool
	paused   Direction
	chunk    int // greatest number of bytes per write; 0: no limit
	bytes    [BothWays + 1]int64
	pairs    map[*pair]struct{}
}

type pair struct {
	client, server *net.TCPConn
	dead           bool // under Relay.mu
}

// NewRelay listens on a free port of 127.0.0.1 and relays to target (host:port) until the test ends.
func NewRelay(tb testing.TB, target string) *Relay {
	tb.Helper()
	r := &Relay{target: target, pairs: map[*pair]struct{}{}}
	r.changed.L = &r.mu
	if err := r.listen("127.0.0.1:0"); err != nil {
		tb.Fatal(err)
	}
	r.addr = r.listener.Addr().String()
	tb.Cleanup(r.Close)
	return r
}

// Addr is what clients connect to.
func (r *Relay) Addr() string { return r.addr }

// Conns returns the number of connections being relayed.
func (r *Relay) Conns() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.pairs)
}

// Bytes returns how many bytes have been written in one direction over all connections so far.
func (r *Relay) Bytes(d Direction) int64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.bytes[d]
}

// Pause stops moving bytes, in present and future connections, and keeps all sockets open: what a network
// partition looks like. Each paused stream may hold up to 32 KiB it had already read.
func (r *Relay) Pause(d Direction) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.paused |= d
}

// Resume undoes Pause. Nothing was lost.
func (r *Relay) Resume(d Direction) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.paused &^= d
	r.changed.Broadcast()
}

// Chunk makes every write at most n bytes long; 0 removes the limit.
func (r *Relay) Chunk(n int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.chunk = n
}

// Reset ends all present connections with an RST to both sides. New ones are welcome.
func (r *Relay) Reset() {
	r.mu.Lock()
	defer r.mu.Unlock()
	for p := range r.pairs {
		r.endLocked(p, true)
	}
}

// Cut is Reset, and refuses new connections until Mend.
func (r *Relay) Cut() {
	r.mu.Lock()
	if r.listener != nil {
		_ = r.listener.Close() // Only "already closed" is possible.
		r.listener = nil
	}
	r.mu.Unlock()
	r.Reset()
}

// Mend accepts connections on the same port again.
func (r *Relay) Mend(tb testing.TB) {
	tb.Helper()
	if err := r.listen(r.addr); err != nil {
		tb.Fatal(err)
	}
}

// Close ends everything with a reset and waits for the relay's goroutines. It runs when the test ends.
func (r *Relay) Close() {
	r.mu.Lock()
	r.closed = true
	r.changed.Broadcast()
	r.mu.Unlock()
	r.Cut()
	r.wg.Wait()
}

func (r *Relay) listen(addr string) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed || r.listener != nil {
		return errors.New("cannot mend the relay: it is closed or was never cut")
	}
	l, err := net.Listen("tcp", addr)
	if err != nil {
		return fmt.Errorf("cannot listen for the relay: %w", err)
	}
	r.listener = l
	r.wg.Add(1)
	go r.accept(l)
	return nil
}

func (r *Relay) accept(l net.Listener) {
	defer r.wg.Done()
	for {
		c, err := l.Accept()
		if err != nil {
			return // Cut or Close.
		}
		r.wg.Add(1)
		go r.serve(c.(*net.TCPConn))
	}
}

func (r *Relay) serve(client *net.TCPConn) {
	defer r.wg.Done()
	c, err := net.DialTimeout("tcp", r.target, Patience)
	if err != nil {
		reset(client)
		return
	}
	p := &pair{client: client, server: c.(*net.TCPConn)}
	r.mu.Lock()
	if r.closed || r.listener == nil || len(r.pairs) == maxRelayed {
		r.mu.Unlock()
		reset(p.client)
		reset(p.server)
		return
	}
	r.pairs[p] = struct{}{}
	r.mu.Unlock()

	done := make(chan bool, 2)
	go func() { done <- r.pump(p, ToServer, p.server, p.client) }()
	go func() { done <- r.pump(p, ToClient, p.client, p.server) }()
	// A clean end travels as FIN and leaves the other direction alone; an error ends both at once.
	for range 2 {
		if clean := <-done; !clean {
			r.end(p, true)
		}
	}
	r.end(p, false)
}

// pump moves one direction and reports whether it ended with the sender's FIN, which it passes on.
func (r *Relay) pump(p *pair, d Direction, dst, src *net.TCPConn) bool {
	buf := make([]byte, relayBufferBytes)
	for {
		n, err := src.Read(buf)
		for rest := buf[:n]; len(rest) > 0; {
			chunk, ok := r.admit(p, d, len(rest))
			if !ok {
				return false
			}
			if _, err := dst.Write(rest[:chunk]); err != nil {
				return false
			}
			rest = rest[chunk:]
		}
		switch {
		case err == nil:
		case errors.Is(err, io.EOF):
			if _, ok := r.admit(p, d, 0); !ok {
				return false
			}
			return dst.CloseWrite() == nil
		default:
			return false
		}
	}
}

// admit waits while d is paused and returns how many of want bytes may be written now; false when the pair is dead.
func (r *Relay) admit(p *pair, d Direction, want int) (int, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for r.paused&d != 0 && !p.dead && !r.closed {
		r.changed.Wait()
	}
	if p.dead || r.closed {
		return 0, false
	}
	if r.chunk > 0 {
		want = min(want, r.chunk)
	}
	r.bytes[d] += int64(want)
	return want, true
}

func (r *Relay) end(p *pair, rst bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.endLocked(p, rst)
}

func (r *Relay) endLocked(p *pair, rst bool) {
	if p.dead {
		return
	}
	p.dead = true
	delete(r.pairs, p)
	r.changed.Broadcast()
	for _, c := range []*net.TCPConn{p.client, p.server} {
		if rst {
			reset(c)
		} else {
			_ = c.Close() // Both directions have ended; nothing can be lost.
		}
	}
}

// reset closes with an RST.
func reset(c *net.TCPConn) {
	_ = c.SetLinger(0) // The connection may be gone already, which is what is wanted.
	_ = c.Close()
}
