package revoke

import (
	"cmp"
	"slices"
	"time"
)

// members is who has published heartbeats. A boot is as old as its last heartbeat: for one that was delivered live
// this is local time, for one that was replayed it is the distance between the server's stamps of it and of the
// last message replayed, so that no two clocks are compared.
type members struct {
	byKey map[string]*member
}

type member struct {
	presence Presence
	// stored is the server's stamp while Heard waits for the end of a replay; zero otherwise.
	stored time.Time
}

func newMembers() members { return members{byKey: make(map[string]*member)} }

func (ms *members) live(now time.Time, p Presence) {
	p.Heard = now
	ms.put(now, &member{presence: p})
}

// replayed takes a heartbeat out of a replay. What has been heard live of the same boot is newer.
func (ms *members) replayed(now time.Time, p Presence, stored time.Time) {
	if m := ms.byKey[p.Node+"."+p.Boot]; m != nil && m.stored.IsZero() &&
		(m.presence.N > p.N || m.presence.N == p.N && p.Forgotten == "") {
		return
	}
	p.Heard = now
	ms.put(now, &member{presence: p, stored: stored})
}

// settle gives the heartbeats of a finished replay their age.
func (ms *members) settle(now, lastStored time.Time) {
	for _, m := range ms.byKey {
		if m.stored.IsZero() {
			continue
		}
		m.presence.Heard = now.Add(-max(0, lastStored.Sub(m.stored)))
		m.stored = time.Time{}
	}
}

func (ms *members) put(now time.Time, m *member) {
	key := m.presence.Node + "." + m.presence.Boot
	if _, known := ms.byKey[key]; !known && len(ms.byKey) >= maxMembers {
		ms.evict(now)
	}
	ms.byKey[key] = m
}

// evict makes room by giving up the boot that was heard of least recently, one that does not count if possible.
func (ms *members) evict(now time.Time) {
	victim, live := "", true
	for key, m := range ms.byKey {
		l := m.presence.Live(now)
		if victim == "" || live && !l || live == l && m.presence.Heard.Before(ms.byKey[victim].presence.Heard) {
			victim, live = key, l
		}
	}
	delete(ms.byKey, victim)
}

func (ms *members) list(now time.Time) []Presence {
	out := make([]Presence, 0, len(ms.byKey))
	for key, m := range ms.byKey {
		if now.Sub(m.presence.Heard) > forgetAfter {
			delete(ms.byKey, key)
			continue
		}
		out = append(out, m.presence)
	}
	slices.SortFunc(out, func(a, b Presence) int {
		return cmp.Or(cmp.Compare(a.Node, b.Node), cmp.Compare(a.Boot, b.Boot))
	})
	return out
}
