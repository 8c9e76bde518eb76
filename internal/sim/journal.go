package sim

import (
	"fmt"
	"strings"
	"time"

	"pgedge/revoke"
)

// message is one message of the stream.
type message struct {
	seq            uint64
	subject, msgID string
	payload        []byte
	stored         time.Time
}

// journal is the stream: the last message of each subject, and all of them in the order in which they came, for
// replicas that lag.
type journal struct {
	w         *World
	made      int // how often a stream was created
	lineage   int // how often the stream was created or set back
	last      uint64
	bySubject map[string]*message
	history   []*message
	attempts  map[string]*message // by Nats-Msg-Id: the duplicate window
	down      bool                // no leader
	backup    *backup
	consumers []*consumer
}

type backup struct {
	made    int
	last    uint64
	history []*message
}

// dedupeFor is the stream's duplicate window.
const dedupeFor = 5 * time.Second

func newJournal(w *World) *journal {
	return &journal{w: w, made: 1, bySubject: map[string]*message{}, attempts: map[string]*message{}}
}

func (j *journal) identity() string {
	return fmt.Sprintf("PGEDGE@/%s", start.Add(time.Duration(j.made)*time.Hour).Format(time.RFC3339Nano))
}

// answer is what the stream says to a publish.
type answer struct {
	outcome revoke.StoreOutcome
	seq     uint64
	last    uint64 // of the subject, when it was refused
}

// publish is a publish that reaches the servers: the fast path takes it in any case, the stream when it has a leader.
func (j *journal) publish(subject, msgID string, payload []byte, expect *uint64) answer {
	return j.publishAs(j.w.record.published(subject, msgID, payload), subject, msgID, payload, expect)
}

func (j *journal) publishAs(f *fact, subject, msgID string, payload []byte, expect *uint64) answer {
	if f != nil && f.Verb != revoke.VerbReinstate {
		for _, m := range j.w.machines {
			m.sendFast(f, subject, msgID, payload)
		}
	}
	if j.down {
		if j.w.chance(4) {
			// The new leader finds it in its log.
			j.w.after(j.w.between(time.Second, 4*time.Second), func() {
				if !j.down {
					j.store(f, subject, msgID, payload, expect)
				}
			})
		}
		return answer{outcome: revoke.StoreFailed}
	}
	return j.store(f, subject, msgID, payload, expect)
}

func (j *journal) store(f *fact, subject, msgID string, payload []byte, expect *uint64) answer {
	now := start.Add(j.w.now)
	if msgID != "" {
		if m := j.attempts[msgID]; m != nil && now.Sub(m.stored) < dedupeFor {
			return answer{outcome: revoke.StoreOK, seq: m.seq}
		}
	}
	last := uint64(0)
	if m := j.bySubject[subject]; m != nil {
		last = m.seq
	}
	if expect != nil && *expect != last {
		return answer{outcome: revoke.StoreWrongLastSequence, last: last}
	}
	j.last++
	m := &message{j.last, subject, msgID, payload, now}
	j.bySubject[subject] = m
	j.history = append(j.history, m)
	if msgID != "" {
		j.attempts[msgID] = m
	}
	if f != nil {
		j.w.note("journal: %d %s", m.seq, strings.TrimPrefix(subject, "pgedge."))
		j.w.record.stored(f, m)
	}
	for _, c := range j.consumers {
		c.wake()
	}
	return answer{outcome: revoke.StoreOK, seq: m.seq}
}

// next is the first message behind a position, as a replica knows the stream that has what was stored up to view, and
// how many wait behind it.
func (j *journal) next(pos, view uint64) (first *message, pending uint64) {
	last := j.bySubject
	if view < j.last {
		last = map[string]*message{}
		for _, m := range j.history {
			if m.seq <= view {
				last[m.subject] = m
			}
		}
	}
	for _, m := range last {
		if m.seq <= pos {
			continue
		}
		pending++
		if first == nil || m.seq < first.seq {
			first = m
		}
	}
	return first, max(pending, 1) - 1
}

// leader says whether the stream has one.
func (j *journal) leader(up bool) {
	if j.down == !up {
		return
	}
	j.down = !up
	if up {
		j.w.note("journal: a leader")
		for _, c := range j.consumers {
			c.wake()
		}
		return
	}
	j.w.note("journal: no leader")
}

// save takes a backup.
func (j *journal) save() {
	j.backup = &backup{j.made, j.last, append([]*message(nil), j.history...)}
	j.w.note("journal: backup at %d", j.last)
}

// recreate puts an empty stream in the place of the stream.
func (j *journal) recreate() {
	j.w.note("journal: recreated")
	j.made++
	j.become(0, nil)
}

// restore sets the stream back to its backup, if there is one.
func (j *journal) restore() {
	if j.backup == nil || j.backup.made != j.made {
		return
	}
	j.w.note("journal: set back from %d to %d", j.last, j.backup.last)
	j.become(j.backup.last, j.backup.history)
}

func (j *journal) become(last uint64, history []*message) {
	j.lineage++
	j.last, j.history = last, append([]*message(nil), history...)
	clear(j.bySubject)
	clear(j.attempts)
	for _, m := range j.history {
		j.bySubject[m.subject] = m
	}
	j.w.record.setBack(j.lineage, last)
	for _, c := range j.consumers {
		// A replica cannot have more than the stream; consumers that wait beyond the end go on waiting.
		c.view = min(c.view, last)
	}
}

// consumer is an ordered consumer on one connection.
type consumer struct {
	j       *journal
	deliver func(m revoke.JournalMessage)
	reset   func(stream string, empty bool)
	// number is the incarnation: what an earlier one has sent does not arrive.
	number    uint64
	begun     bool
	connected bool
	sent      uint64
	arrived   uint64
	lastDue   time.Duration
	view      uint64        // what the replica has
	lag       time.Duration // how far the replica is behind
	slow      time.Duration // what each message takes more than the one before it
	asleep    bool          // nothing is scheduled
}

func (j *journal) consume(deliver func(revoke.JournalMessage), reset func(string, bool)) *consumer {
	c := &consumer{j: j, deliver: deliver, reset: reset, connected: true, asleep: true}
	j.consumers = append(j.consumers, c)
	return c
}

func (j *journal) forget(c *consumer) {
	c.number++
	for i, other := range j.consumers {
		if other == c {
			j.consumers = append(j.consumers[:i:i], j.consumers[i+1:]...)
			return
		}
	}
}

// begin starts a consumer at the start of the stream, as soon as that can be done.
func (c *consumer) begin() {
	c.number++
	c.begun, c.sent, c.arrived, c.asleep = false, 0, 0, true
	c.view, c.lastDue = 0, 0
	c.wake()
}

// connect and disconnect: what is on its way is lost, and asked for again.
func (c *consumer) connect(up bool) {
	c.connected = up
	c.number++
	c.sent, c.view, c.lastDue, c.asleep = c.arrived, 0, 0, true
	if up {
		c.wake()
	}
}

func (c *consumer) wake() {
	if !c.asleep || !c.connected || c.j.down {
		return
	}
	c.asleep = false
	number := c.number
	c.j.w.after(c.j.w.latency()+c.lag, func() {
		if number == c.number {
			c.pump()
		}
	})
}

// pump sends what the replica has.
func (c *consumer) pump() {
	c.asleep = true
	if !c.connected || c.j.down {
		return
	}
	w, j := c.j.w, c.j
	has := j.last
	if w.chance(10) {
		has -= min(has, uint64(w.rng.IntN(4)))
	}
	if c.view = max(c.view, has); c.view < j.last {
		defer c.wake()
	}
	if !c.begun {
		c.begun = true
		stream, empty := j.identity(), j.last == 0
		c.arrive(func() { c.reset(stream, empty) })
	}
	for {
		m, pending := j.next(c.sent, c.view)
		if m == nil {
			return
		}
		c.sent = m.seq
		c.arrive(func() {
			c.arrived = m.seq
			c.deliver(revoke.JournalMessage{Subject: m.subject, MsgID: m.msgID, Payload: m.payload, Seq: m.seq, Stored: m.stored, Pending: pending})
		})
	}
}

// arrive keeps the order of what is sent.
func (c *consumer) arrive(do func()) {
	w, number := c.j.w, c.number
	c.lastDue = max(c.lastDue+c.slow, w.now+w.latency())
	w.after(c.lastDue-w.now, func() {
		if number == c.number {
			do()
		}
	})
}
