package revoke

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"
)

const (
	maxPresenceBytes = 64 << 10
	// defaultLease stands in for a heartbeat that names no lease.
	defaultLease = 20 * time.Second
	// MaxLease is the longest that a node may have. It bounds what a forged heartbeat can make a verdict wait for.
	MaxLease = 10 * time.Minute
	// goneLeases is after how many leases of silence a boot is gone: listed, not waited for.
	goneLeases = 10
	// forgetAfter is after how much silence a boot is no longer listed.
	forgetAfter = 24 * time.Hour
	maxMembers  = 4096
)

// States of a node, as Presence.State tells them.
const (
	StateStarting = "starting"
	StateServing  = "serving"
	StateDraining = "draining"
	StateLeft     = "left"
)

// Presence is a node's heartbeat, the payload of pgedge.node.<id>.<boot>.
type Presence struct {
	V         int       `json:"v"`
	Node      string    `json:"node"`
	Boot      string    `json:"boot"`
	N         uint64    `json:"n"` // number of this heartbeat in this boot
	Version   string    `json:"version"`
	At        time.Time `json:"at"`
	LeaseMS   int64     `json:"lease_ms"`
	OnStale   string    `json:"on_stale"` // freeze|drop|serve
	Applied   uint64    `json:"applied"`
	TableHash string    `json:"table_hash"`
	Stream    string    `json:"stream"` // stream identity: name, domain, creation time
	Sessions  int       `json:"sessions"`
	Unsettled int       `json:"unsettled"`
	State     string    `json:"state"` // serving|starting|draining|left
	Rejected  uint64    `json:"rejected"`
	// Crashed says that this is a goodbye which a later run has said in place of one that was killed. The numbers are
	// those of that run's last heartbeat.
	Crashed bool `json:"crashed,omitempty"`
	// Forgotten is who has declared, in a goodbye said in the boot's place, that its process does not run any more.
	// Nothing proves it.
	Forgotten string `json:"forgotten,omitempty"`
	// HeartbeatMS is the time between two heartbeats; three of them missed make the boot silent.
	HeartbeatMS int64 `json:"heartbeat_ms,omitempty"`
	// Upstreams are the servers that the boot reaches with a usable control role, by ServerKey.
	Upstreams map[string]UpstreamPresence `json:"upstreams,omitempty"`
	// Seq is the presence's position in the journal, where a reader has filled it in; it does not travel.
	Seq uint64 `json:"-"`
	// Heard is when this process last heard of the boot, by its own clock; it does not travel.
	Heard time.Time `json:"-"`
}

// Lease is LeaseMS as a duration, within sane bounds.
func (p Presence) Lease() time.Duration {
	if p.LeaseMS <= 0 {
		return defaultLease
	}
	if p.LeaseMS > MaxLease.Milliseconds() {
		return MaxLease
	}
	return time.Duration(p.LeaseMS) * time.Millisecond
}

// Fences says that the boot stops serving when its lease ends, so that its silence proves something in time. A boot
// that says anything else, or nothing, goes on for as long as it likes.
func (p Presence) Fences() bool { return p.OnStale == "freeze" || p.OnStale == "drop" }

// Gone says that the boot has been silent for more than ten leases.
func (p Presence) Gone(now time.Time) bool { return now.Sub(p.Heard) > goneLeases*p.Lease() }

// Live says that the boot counts: it has not left and is not gone.
func (p Presence) Live(now time.Time) bool { return p.State != StateLeft && !p.Gone(now) }

// Forget is the goodbye that somebody else says in place of a boot that was last heard with p. The numbers stay those
// of its last heartbeat, as for a run that crashed, and its number too: a process that runs after all may take this for
// an echo of that heartbeat, which it is no older than, but never for one of a heartbeat that it has sent since.
func (p Presence) Forget(by string, at time.Time) Presence {
	p.State, p.Crashed, p.Forgotten, p.At = StateLeft, true, by, at
	return p
}

// Listed says that the boot is worth a line: it has not been forgotten, by somebody or by time. Time alone does not
// forget a boot that announced that it serves on without its lease, since it may be serving still.
func (p Presence) Listed(now time.Time) bool {
	if p.Forgotten != "" {
		return false
	}
	return now.Sub(p.Heard) <= forgetAfter || p.State != StateLeft && !p.Fences()
}

// NodeSubject is where a boot of a node publishes its heartbeats.
func NodeSubject(node, boot string) string { return subjectPrefix + "node." + node + "." + boot }

// ParseNodeSubject is the inverse of NodeSubject.
func ParseNodeSubject(subject string) (node, boot string, err error) {
	rest, ok := strings.CutPrefix(subject, subjectPrefix+"node.")
	if ok {
		node, boot, ok = strings.Cut(rest, ".")
	}
	if !ok || !ValidNodeID(node) || !ValidID(boot) {
		return "", "", fmt.Errorf("cannot parse subject %.128q: no node and boot", subject)
	}
	return node, boot, nil
}

// DecodePresence reads a heartbeat. The subject is what NATS permissions vouch for, so a payload that speaks of
// another node or boot is an error. Heard is left zero.
func DecodePresence(subject string, payload []byte) (Presence, error) {
	node, boot, err := ParseNodeSubject(subject)
	if err != nil {
		return Presence{}, err
	}
	if len(payload) > maxPresenceBytes {
		return Presence{}, fmt.Errorf("cannot decode heartbeat: %d bytes is longer than %d", len(payload), maxPresenceBytes)
	}
	var p Presence
	if err := json.Unmarshal(payload, &p); err != nil {
		return Presence{}, fmt.Errorf("cannot decode heartbeat: %w", err)
	}
	if p.Node != node || p.Boot != boot {
		return Presence{}, errors.New("cannot decode heartbeat: its node and boot are not those of its subject")
	}
	return p, nil
}
