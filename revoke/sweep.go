package revoke

import (
	"cmp"
	"slices"
	"strings"
	"time"
)

// UpstreamPresence is what a boot announces about one server.
type UpstreamPresence struct {
	// Addresses are where the server sees the boot's connections come from; LocalAddress for unix sockets.
	Addresses []string `json:"addresses"`
	// Sweep says that the boot is configured to sweep there.
	Sweep bool `json:"sweep,omitempty"`
}

// LocalAddress stands for the address of a connection through a unix socket.
const LocalAddress = "local"

const (
	defaultHeartbeat = time.Second
	maxHeartbeat     = time.Minute
	// silentBeats is after how many missed heartbeats a boot is silent.
	silentBeats = 3
)

// ServerKey names a server while its postmaster runs: two nodes that announce the same key reach the same backends.
// A standby shares the system's identifier with its primary, but not the start of the postmaster.
func ServerKey(systemID, postmasterStart string) string { return systemID + "-" + postmasterStart }

// sameSystem says whether two keys can be of one server, restarted in between.
func sameSystem(a, b string) bool {
	a, _, _ = strings.Cut(a, "-")
	b, _, _ = strings.Cut(b, "-")
	return a != "" && a == b
}

// heartbeat is HeartbeatMS as a duration, within sane bounds.
func (p Presence) heartbeat() time.Duration {
	if p.HeartbeatMS <= 0 {
		return defaultHeartbeat
	}
	return min(time.Duration(p.HeartbeatMS)*time.Millisecond, maxHeartbeat)
}

// SilentBoot is a boot that cannot stop its own backends now, or may not be able to.
type SilentBoot struct {
	Node string
	Boot string
	// Addresses are where its backends come from, as one server sees it.
	Addresses []string
	// Before is when it was certainly gone: younger backends are not its own. Zero while it may still make new ones.
	Before time.Time
	// Until is how long after a fact it may let its clients begin something new.
	Until time.Duration
}

// Fleet is who is there, as one boot sees it at a moment.
type Fleet struct {
	self    Presence
	live    []Presence
	silent  []Presence
	crashed []Presence
}

// NewFleet sorts the members. Silence is measured against the own heartbeat: while none comes back, nobody has become
// silent, since it is the journal that is. Without an own heartbeat everybody counts as live.
func NewFleet(members []Presence, node, boot string) Fleet {
	var f Fleet
	for _, p := range members {
		if p.Node == node && p.Boot == boot {
			f.self = p
		}
	}
	for _, p := range members {
		switch {
		case p.State == StateLeft && p.Crashed:
			f.crashed = append(f.crashed, p)
		case p.State == StateLeft:
		case f.self.Boot != "" && f.self.Heard.Sub(p.Heard) > silentBeats*p.heartbeat():
			f.silent = append(f.silent, p)
		default:
			f.live = append(f.live, p)
		}
	}
	return f
}

// Responsible says whether this boot is the one that acts at a server for all: the lowest live node id among those
// that reach it, and of the boots of that node the youngest. With sweep only those count that are configured to.
func (f Fleet) Responsible(server string, sweep bool) bool {
	able := slices.DeleteFunc(slices.Clone(f.live), func(p Presence) bool {
		u, reaches := p.Upstreams[server]
		return !reaches || sweep && !u.Sweep || p.State != StateServing && p.State != StateDraining
	})
	if len(able) == 0 || f.self.Boot == "" {
		return false
	}
	first := slices.MinFunc(able, func(a, b Presence) int {
		return cmp.Or(cmp.Compare(a.Node, b.Node), cmp.Compare(b.Boot, a.Boot))
	})
	return first.Node == f.self.Node && first.Boot == f.self.Boot
}

// Current says that this boot reads the journal at present: its own heartbeat has come back lately.
func (f Fleet) Current(now time.Time) bool {
	return f.self.Boot != "" && now.Sub(f.self.Heard) <= silentBeats*f.self.heartbeat()
}

// Others are the live boots beside this one, which know themselves what they hold.
func (f Fleet) Others() []Presence {
	return slices.DeleteFunc(slices.Clone(f.live), func(p Presence) bool { return p.Boot == f.self.Boot && p.Node == f.self.Node })
}

// Silent lists the boots whose backends at a server somebody else has to stop, those that crashed included.
func (f Fleet) Silent(server string) []SilentBoot {
	var out []SilentBoot
	add := func(p Presence, before time.Time, until time.Duration) {
		if a := p.AddressesAt(server); len(a) > 0 {
			out = append(out, SilentBoot{Node: p.Node, Boot: p.Boot, Addresses: a, Before: before, Until: until})
		}
	}
	for _, p := range f.silent {
		until := fencedAfter(p.Lease())
		if !p.Fences() {
			until = goneLeases * p.Lease() // it may serve for ever; somewhere there has to be an end
		}
		add(p, time.Time{}, until)
	}
	for _, p := range f.crashed {
		add(p, p.Heard, 0)
	}
	return out
}

// AddressesAt are the boot's addresses at a server, whichever postmaster it had heard of there.
func (p Presence) AddressesAt(server string) []string {
	var out []string
	for key, u := range p.Upstreams {
		if key == server || sameSystem(key, server) {
			out = append(out, u.Addresses...)
		}
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// fencedAfter is how long after a fact was stored a boot of that lease is certainly stale.
func fencedAfter(lease time.Duration) time.Duration { return lease + lease/100 }

// Watch is for how long after a fact boots may turn out to be silent that had not applied it.
func (f Fleet) Watch() time.Duration {
	longest := time.Duration(0)
	for _, p := range slices.Concat(f.live, f.silent) {
		longest = max(longest, p.Lease())
	}
	return fencedAfter(longest)
}

// Follow is one revocation on its way through the databases: which boots still have to be acted for, and where.
type Follow struct {
	// Received is when the fact was received here, which is not before it was published.
	Received time.Time
	// last are the boots, by server, that have been acted for once after they were fenced.
	last map[string]bool
}

// Due are the boots to act for now, of those that are silent. A boot is due until it is fenced, and in one more pass after that.
func (f *Follow) Due(server string, silent []SilentBoot) []SilentBoot {
	return slices.DeleteFunc(slices.Clone(silent), func(b SilentBoot) bool { return f.last[followKey(server, b)] })
}

// Done says that these boots were acted for at a server, in a pass that began at a time.
func (f *Follow) Done(server string, boots []SilentBoot, began time.Time) {
	for _, b := range boots {
		if began.Sub(f.Received) > b.Until {
			if f.last == nil {
				f.last = make(map[string]bool)
			}
			f.last[followKey(server, b)] = true
		}
	}
}

func followKey(server string, b SilentBoot) string { return server + " " + b.Node + " " + b.Boot }
