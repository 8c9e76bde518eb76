package engine

import (
	"crypto/rand"
	"errors"
	"hash/fnv"
	"sync"

	"pgedge/codec"
)

// cancelTable gives out cancel keys of pgedge's own and finds the session behind one. A key says which node gave it
// out, since a load balancer sends the cancel request to any of them. The process id carries a tag of the node in its
// upper half; it stays positive, since drivers take it for a signed number. Two nodes may share a tag: then both are
// asked, and the secret decides. The longer secrets of protocol 3.2 name the node behind their random bytes.
type cancelTable struct {
	node string
	tag  uint32 // already in its place

	mu       sync.Mutex
	sessions map[uint32]*session
	next     uint16
}

// randomLength32 is how many random bytes begin a secret of protocol 3.2, as many as Postgres 18 gives out. With the
// longest node id behind them more than half of MaxSecretLength is left for others to add to.
const randomLength32 = 32

// tagShift is where the tag begins in a process id: 15 bits of tag, 16 bits of number.
const tagShift = 16

var errNoCancelKey = errors.New("no cancel key is left")

func newCancelTable(node string) *cancelTable {
	return &cancelTable{node: node, tag: nodeTag(node) << tagShift, sessions: make(map[uint32]*session)}
}

// nodeTag spreads node ids over 1 to 0x7fff. It is the same in every version: nodes of a fleet are upgraded one by one.
func nodeTag(node string) uint32 {
	h := fnv.New32a()
	h.Write([]byte(node))
	return max(h.Sum32()&0x7fff, 1)
}

// ownerOf tells which other nodes may have given out a key that this one has not.
func (t *cancelTable) ownerOf(key codec.CancelKey) func(node string) bool {
	var owner string
	switch n := len(key.Secret); {
	case n > randomLength32:
		owner = string(key.Secret[randomLength32:])
	case n != codec.SecretLength30:
		return nil
	}
	if owner == t.node {
		return nil
	}
	tag := key.PID >> tagShift
	return func(node string) bool {
		return node != t.node && nodeTag(node) == tag && (owner == "" || owner == node)
	}
}

// issue gives s a key, of the length that minor, the protocol version spoken with the client, allows.
func (t *cancelTable) issue(s *session, minor uint16) error {
	n := codec.SecretLength30
	if minor >= 2 {
		n = randomLength32
	}
	key := codec.CancelKey{Secret: make([]byte, n, n+len(t.node))}
	rand.Read(key.Secret) // never fails
	if minor >= 2 {
		key.Secret = append(key.Secret, t.node...)
	}
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
