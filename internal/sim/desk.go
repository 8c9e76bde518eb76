package sim

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"pgedge/revoke"
)

// desk is where people publish and wait: a process that is never cut off, with a consumer of its own and the
// coordinator of the commands.
type desk struct {
	w       *World
	journal *consumer
	stream  string
	members map[string]revoke.Presence
	newest  map[revoke.Scope]uint64 // newest revoke or suspend seen
	waits   []*wait
	asked   []*fact
	ids     int
}

// wait is one command.
type wait struct {
	f           *fact
	msgID       string
	coordinator *revoke.Coordinator
	storedAt    time.Time
	over        bool
}

const verifyTimeout = 2 * time.Second

func newDesk(w *World) *desk {
	d := &desk{w: w, members: map[string]revoke.Presence{}, newest: map[revoke.Scope]uint64{}}
	d.journal = w.journal.consume(d.onJournal, func(stream string, _ bool) {
		d.stream = stream
		clear(d.members)
		clear(d.newest)
	})
	d.journal.begin()
	return d
}

func (d *desk) now() time.Time { return start.Add(d.w.now) }

// publish is a command that waits: it repeats itself under one id until the journal delivers it. A bare one is sent
// once, by a tool that does not wait.
func (d *desk) publish(verb revoke.Verb, principal string, bare bool, until time.Duration) {
	s := revoke.Scope{Kind: revoke.ScopePrincipal, Name: principal}
	subject := revoke.Subject(verb, s)
	f := revoke.Fact{Verb: verb, Scope: s}
	switch verb {
	case revoke.VerbSuspend:
		f.Until = start.Add(d.w.now + until)
	case revoke.VerbReinstate:
		if f.Upto = d.newest[s]; f.Upto == 0 {
			return // its author sees nothing to undo
		}
		bare = false
	case revoke.VerbKill, revoke.VerbRevoke, revoke.VerbInvalid:
	}
	d.ids++
	msgID := ""
	if !bare {
		msgID = fmt.Sprintf("%s|T%d", subject, d.ids)
	}
	d.w.note("desk: %s %s%s", verb, principal, map[bool]string{true: ", bare"}[bare])
	payload := []byte{}
	if verb == revoke.VerbSuspend || verb == revoke.VerbReinstate {
		payload = f.Payload()
	}
	n := d.w.record.published(subject, msgID, payload)
	n.byDesk = true
	d.asked = append(d.asked, n)
	if bare {
		d.w.after(d.w.latency(), func() { d.w.journal.publishAs(n, subject, "", payload, nil) })
		return
	}
	wt := &wait{f: n, msgID: msgID}
	d.waits = append(d.waits, wt)
	tries := 0
	var try func()
	try = func() {
		if tries++; wt.storedAt.IsZero() && tries <= 40 {
			d.w.journal.publishAs(n, subject, msgID, payload, nil)
			if d.w.cfg.Broken == StoredWhenSent {
				n.seenAt = d.w.now
				return
			}
			d.w.after(250*time.Millisecond, try)
		}
	}
	d.w.after(d.w.latency(), try)
}

func (d *desk) onJournal(m revoke.JournalMessage) {
	if strings.HasPrefix(m.Subject, "pgedge.node.") {
		if p, err := revoke.DecodePresence(m.Subject, m.Payload); err == nil {
			p.Seq, p.Heard = m.Seq, d.now()
			d.members[m.Subject] = p
			for _, wt := range d.waits {
				if wt.coordinator != nil {
					wt.coordinator.Presence(d.now(), p)
				}
			}
		}
	}
	if f, err := revoke.DecodeFact(m.Subject, m.MsgID, m.Payload); err == nil {
		if f.Verb == revoke.VerbRevoke || f.Verb == revoke.VerbSuspend {
			d.newest[f.Scope] = max(d.newest[f.Scope], m.Seq)
		}
		for _, wt := range d.waits {
			if wt.msgID == m.MsgID && wt.storedAt.IsZero() {
				if f := d.w.record.at(m.Seq, m.Subject); f != nil {
					wt.f = f
				}
				wt.storedAt = d.now()
				wt.f.seenAt = d.w.now
				d.w.note("desk: %s is stored at %d", wt.f.name, m.Seq)
			}
		}
	}
	if m.Pending > 0 {
		return
	}
	for _, wt := range d.waits {
		if !wt.storedAt.IsZero() && wt.coordinator == nil && wt.f.Verb != revoke.VerbReinstate && !wt.f.lost {
			d.begin(wt)
		}
	}
}

// begin waits for the receipts. The list of members is complete at the end of the journal.
func (d *desk) begin(wt *wait) {
	members := make([]revoke.Presence, 0, len(d.members))
	for _, p := range d.members {
		members = append(members, p)
	}
	slices.SortFunc(members, func(a, b revoke.Presence) int { return strings.Compare(a.Boot, b.Boot) })
	storedAt := wt.storedAt
	if d.w.cfg.Broken == FenceWithoutLease {
		storedAt = storedAt.Add(-d.w.cfg.Lease)
	}
	id := revoke.AttemptID(wt.msgID)
	wt.coordinator = revoke.NewCoordinator(id, wt.f.seq, storedAt, d.stream, members, verifyTimeout)
	wt.coordinator.Covers(wt.f.Verb, wt.f.Scope)
	d.watch(wt)
}

// watch looks for a verdict, and holds the fleet to what it says.
func (d *desk) watch(wt *wait) {
	if wt.over {
		return
	}
	for _, line := range wt.coordinator.Fences(d.now()) {
		d.w.note("desk: %s: %s is fenced", wt.f.name, line.Node)
	}
	v, certain := wt.coordinator.Verdict(d.now(), false)
	if !certain {
		d.w.after(100*time.Millisecond, func() { d.watch(wt) })
		return
	}
	wt.over = true
	d.w.note("desk: %s: %s", wt.f.name, v.Verdict)
	switch v.Verdict {
	case revoke.Complete, revoke.CompleteFenced, revoke.CompleteUnverified:
		wt.f.claimedAt, wt.f.claim = d.w.now, v.Verdict
	case revoke.Incomplete:
		if d.w.cfg.Broken == SilentIsDone {
			wt.f.claimedAt, wt.f.claim = d.w.now, v.Verdict
		}
	}
}

func (d *desk) receipt(r revoke.Receipt) {
	for _, wt := range d.waits {
		if wt.coordinator != nil {
			wt.coordinator.Receipt(d.now(), r)
		}
	}
}
