package engine

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"slices"
	"time"

	"pgedge/revoke"
)

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
	commands := j.node.Handle(before, revoke.Instant{}, ev)
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
	d, denied := j.node.Table().Check(revoke.NewIdentity(who.user, who.user, who.db, "none"), j.node.Table().Position(), time.Now())
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
