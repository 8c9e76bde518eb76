package revoke

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"slices"
	"strings"
	"time"
)

const (
	// The limits of facts that wait for the journal. Beyond them a fact still cuts what exists, but is not held;
	// the many that are held on the same subject, or 64 MiB of others, are then the smaller problem.
	maxPending           = 64 << 10
	maxPendingPerSubject = 256
	maxPendingBytes      = 64 << 20
	// Attempt ids that nodes make. A fact stored by a node keeps no ULID, and so gets no id from it.
	storeAttempt = "node-store-"
	healAttempt  = "node-heal-"
	// maxKeyBytes bounds the message ids that are remembered as they are.
	maxKeyBytes = 256
)

// pendingState is how far a provisional fact has come. Settled ones are removed.
type pendingState uint8

const (
	pendingWaiting pendingState = iota // for the journal; at its due time the node stores it
	pendingFlying                      // a StoreCommand is not answered; due is when it counts as failed
	pendingStored                      // acknowledged; the journal is to deliver it, else it is stored again
	pendingBeaten                      // refused for a newer message, which the journal is to deliver
)

// pending is a fact that came by the fast path and has no seq yet.
type pending struct {
	timer
	key        string
	subject    string
	msgID      string // "" for a bare message
	bare       string // what a bare message is recognised by
	fact       Fact
	payload    []byte
	receivedAt time.Time
	state      pendingState
	expect     uint64 // last sequence expected by the newest store
	acked      uint64 // seq of the last acknowledgement that had one
	known      uint64 // last seq of the subject when it came
	cover      cover
}

// cover is a newer message of the same subject that may stand for a pending fact.
type cover struct {
	seq uint64 // 0: none
	// proof is why the pending fact is believed to be older in the journal than seq.
	proof coverProof
	// same is set when the message may be the pending fact itself.
	same *Fact
}

type coverProof uint8

const (
	coverGuess   coverProof = iota // the answer to a store says so, or the contents are the same
	coverHidden                    // messages were replaced before delivery about when the fact came, it may be one of them
	coverCertain                   // a store was acknowledged with the seq of a message that was replaced before delivery
)

// pendingSet finds pending facts by key, by subject in order of arrival, and bare ones by content.
type pendingSet struct {
	byKey     map[string]*pending
	bySubject map[string][]*pending
	covered   []*pending
	bytes     int
	bareCount uint64
}

func newPendingSet() pendingSet {
	return pendingSet{byKey: make(map[string]*pending), bySubject: make(map[string][]*pending)}
}

func (ps *pendingSet) full(subject string) bool {
	return len(ps.byKey) >= maxPending || ps.bytes >= maxPendingBytes || len(ps.bySubject[subject]) >= maxPendingPerSubject
}

func (ps *pendingSet) add(p *pending) {
	ps.byKey[p.key] = p
	ps.bySubject[p.subject] = append(ps.bySubject[p.subject], p)
	ps.bytes += len(p.payload)
}

func (ps *pendingSet) remove(p *pending) {
	delete(ps.byKey, p.key)
	ps.bytes -= len(p.payload)
	left := slices.DeleteFunc(ps.bySubject[p.subject], func(q *pending) bool { return q == p })
	if len(left) == 0 {
		delete(ps.bySubject, p.subject)
		return
	}
	ps.bySubject[p.subject] = left
}

// oldestUncovered is the pending fact of a subject that came first, of those for which no newer message may stand.
func (ps *pendingSet) oldestUncovered(subject string) *pending {
	for _, p := range ps.bySubject[subject] {
		if p.cover.seq == 0 {
			return p
		}
	}
	return nil
}

// oldestBare is the pending bare message with this content that came first.
func (ps *pendingSet) oldestBare(subject, bare string) *pending {
	for _, p := range ps.bySubject[subject] {
		if p.bare == bare {
			return p
		}
	}
	return nil
}

// messageKey names an identified message. The subject belongs to it, so that one ticket id on two subjects makes
// two facts.
func messageKey(subject, msgID string) string {
	if len(msgID) > maxKeyBytes {
		sum := sha256.Sum256([]byte(msgID))
		msgID = hex.EncodeToString(sum[:])
	}
	return subject + "|" + msgID
}

// bareContent is what two deliveries of a bare message have in common. The subject is added by the caller.
func bareContent(f Fact, payload []byte) string {
	sum := sha256.Sum256(storedPayload(f, payload))
	return string(sum[:])
}

// bareKey is under which the bare messages that were given up are remembered, since other nodes may still try to
// store them.
func bareKey(subject, bare string) string { return subject + "|" + bare }

// storedPayload is what a node stores for a fact: the payload as it came or, when that is too long, what was
// kept of it.
func storedPayload(f Fact, payload []byte) []byte {
	if len(payload) > MaxPayloadBytes {
		return f.Payload()
	}
	return payload
}

// nodeMade says that a message is a node's copy of a bare one.
func nodeMade(subject, msgID string) bool {
	attempt, ok := strings.CutPrefix(msgID, subject+"|")
	return ok && strings.HasPrefix(attempt, storeAttempt)
}

// storeMsgID is the Nats-Msg-Id under which every node stores the same bare message at the same place, so that the
// store takes only one of them, and their copies on the fast path are recognised.
func storeMsgID(subject, bare string, expect uint64) string {
	return fmt.Sprintf("%s|%s%x-%d", subject, storeAttempt, bare[:8], expect)
}

// fast takes a message of the fast path. What is refused there is left to its copy in the journal, so that it is
// counted and answered once; reinstate is applied from the journal only.
func (n *Node) fast(now time.Time, m FastMessage) {
	f, err := DecodeFact(m.Subject, m.MsgID, m.Payload)
	if err != nil || f.Verb == VerbReinstate {
		return
	}
	f.Epoch = n.epoch
	p := &pending{subject: strings.Clone(m.Subject), fact: f, receivedAt: now, known: n.table.LastSeq(m.Subject)}
	if m.MsgID != "" {
		p.msgID, p.key = strings.Clone(m.MsgID), messageKey(m.Subject, m.MsgID)
		if _, seen := n.seen.get(now, p.key); seen || n.pending.byKey[p.key] != nil {
			return
		}
		if nodeMade(m.Subject, m.MsgID) {
			bare := bareContent(f, m.Payload)
			if _, seen := n.seen.get(now, bareKey(m.Subject, bare)); seen || n.pending.oldestBare(m.Subject, bare) != nil {
				return
			}
		}
	} else {
		p.bare = bareContent(f, m.Payload)
		if n.takeCredit(now, m.Subject, p.bare) {
			return
		}
		n.pending.bareCount++
		p.key = fmt.Sprintf("%s|bare-%d", m.Subject, n.pending.bareCount)
	}
	n.stats.Facts[FactCount{f.Verb, ViaFast}]++
	if f.Raw {
		n.stats.Raw++
	}
	if n.pending.full(p.subject) {
		n.stats.Overflow++
		n.emitProvisional(p)
		return
	}
	p.payload = slices.Clone(storedPayload(f, m.Payload))
	n.pending.add(p)
	n.table.AddProvisional(p.key, f, n.holdUntil(now, f))
	n.timers.set(&p.timer, p, now.Add(n.cfg.StoreAfter))
	n.emitProvisional(p)
}

// holdUntil is until when a provisional fact refuses logins; zero means until it is settled.
func (n *Node) holdUntil(now time.Time, f Fact) time.Time {
	hold := now.Add(n.cfg.KillHold)
	switch f.Verb {
	case VerbKill:
		return hold
	case VerbSuspend:
		if f.Until.After(hold) {
			return f.Until
		}
		return hold
	case VerbRevoke, VerbReinstate, VerbInvalid:
	}
	return time.Time{}
}

// emitProvisional cuts what exists. Before the node is ready nothing does; becomeReady makes up for it, for the
// sake of the receipt.
func (n *Node) emitProvisional(p *pending) {
	if n.ready {
		n.emit(CutCommand{Order{Key: p.key, Fact: p.fact, Fast: true, ReceivedAt: p.receivedAt}})
	}
}

// takeCredit says that the journal was faster with this bare message.
func (n *Node) takeCredit(now time.Time, subject, bare string) bool {
	key := bareKey(subject, bare)
	owed, ok := n.credits.get(now, key)
	if !ok {
		return false
	}
	owed = slices.DeleteFunc(owed, func(expiry time.Time) bool { return !now.Before(expiry) })
	if len(owed) <= 1 {
		n.credits.remove(key)
	} else {
		n.credits.put(now, key, owed[1:])
	}
	return len(owed) > 0
}

func (n *Node) giveCredit(now time.Time, subject, bare string) {
	key := bareKey(subject, bare)
	owed, _ := n.credits.get(now, key)
	if len(owed) >= creditsPerMessage {
		owed = owed[1:]
	}
	n.credits.put(now, key, append(slices.Clip(owed), now.Add(n.cfg.CreditFor)))
}

// settle ends a pending fact with the one the journal delivered.
func (n *Node) settle(p *pending, f Fact) {
	n.drop(p)
	n.emitSettled(Order{Key: p.key, Fact: f, Fast: true, ReceivedAt: p.receivedAt})
}

// supersede ends a pending fact for which a newer one of its subject stands.
func (n *Node) supersede(now time.Time, p *pending, by uint64) {
	n.drop(p)
	n.stats.Superseded++
	// Copies of it that are still on their way by the fast path are no news.
	if p.msgID != "" {
		n.seen.put(now, p.key, by)
	} else {
		n.seen.put(now, bareKey(p.subject, p.bare), by)
	}
	n.emitSettled(Order{Key: p.key, Fact: p.fact, Fast: true, ReceivedAt: p.receivedAt, SupersededBy: by})
}

func (n *Node) drop(p *pending) {
	if p.state == pendingFlying {
		n.flying--
	}
	n.timers.stop(&p.timer)
	n.pending.remove(p)
	n.table.DropProvisional(p.key)
}

func (n *Node) emitSettled(o Order) {
	if n.ready {
		n.emit(CutCommand{o})
	} else {
		n.load.held = append(n.load.held, o)
	}
}
