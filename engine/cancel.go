package engine

import (
	"context"
	"crypto/rand"
	"errors"
	"hash/fnv"
	"sync"
	"time"

	"pgedge/codec"
)

// cancelTable gives out cancel keys of pgedge's own and finds the session behind one. The process id carries a tag
// of the node in its upper half, so that another node can tell whose key it is; it stays positive, since drivers
// take it for a signed number.
type cancelTable struct {
	tag uint32

	mu       sync.Mutex
	sessions map[uint32]*session
	next     uint16
}

// secretLength32 is what Postgres 18 gives out in protocol 3.2.
const secretLength32 = 32

var errNoCancelKey = errors.New("no cancel key is left")

func newCancelTable(node string) *cancelTable {
	h := fnv.New32a()
	h.Write([]byte(node))
	tag := h.Sum32() & 0x7fff
	return &cancelTable{tag: max(tag, 1) << 16, sessions: make(map[uint32]*session)}
}

// issue gives s a key, of the length that minor, the protocol version spoken with the client, allows.
func (t *cancelTable) issue(s *session, minor uint16) error {
	n := codec.SecretLength30
	if minor >= 2 {
		n = secretLength32
	}
	key := codec.CancelKey{Secret: make([]byte, n)}
	rand.Read(key.Secret) // never fails
	t.mu.Lock()
	defer t.mu.Unlock()
	for range 1 << 16 {
		t.next++
		pid := t.tag | uint32(t.next)
		if _, taken := t.sessions[pid]; !taken {
			key.PID = pid
			s.virtual = key // under the lock that find reads it under
			t.sessions[pid] = s
			return nil
		}
	}
	return errNoCancelKey
}

func (t *cancelTable) revoke(s *session) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.sessions[s.virtual.PID] == s {
		delete(t.sessions, s.virtual.PID)
	}
}

// find returns the session whose key this is, nil for a guess.
func (t *cancelTable) find(key codec.CancelKey) *session {
	t.mu.Lock()
	defer t.mu.Unlock()
	if s := t.sessions[key.PID]; s != nil && s.virtual.Equal(key) {
		return s
	}
	return nil
}

// cancelTimeout bounds the connection that carries a cancel request to the server.
const cancelTimeout = 5 * time.Second

// relayCancel passes a client's cancel request on and returns when the server has taken note of it; the client's
// own connection is closed only then, as libpq expects. There is never an answer.
func (e *Engine) relayCancel(key codec.CancelKey) {
	s := e.cancels.find(key)
	if s == nil {
		e.metrics.cancelsUnknown.Inc()
		return
	}
	select {
	case e.cancelling <- struct{}{}:
		defer func() { <-e.cancelling }()
	default:
		e.metrics.cancelsDropped.Inc() // a storm of them; the client asks again
		return
	}
	if s.cutNow() {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), cancelTimeout)
	defer cancel()
	e.metrics.cancels.Inc()
	if err := s.entry.upstream.sendCancel(ctx, s.link, s.key); err != nil {
		e.log.Warn("cannot relay a cancel request", "session", s.id, "error", err)
	}
}
