package revoke

import (
	"slices"
	"time"
)

// Claim is one backend that a node holds.
type Claim struct {
	Server string `json:"server,omitempty"` // ServerKey; "" when the node does not know it
	PID    uint32 `json:"pid,omitempty"`    // 0 while the backend has not told it
	Port   int    `json:"port,omitempty"`   // of the node's end of the connection; 0 on a unix socket
}

// Backend is one backend of a role as its server shows it.
type Backend struct {
	Role    string
	PID     uint32
	Address string // of the client's end; LocalAddress on a unix socket
	Port    int    // of the client's end; 0 on a unix socket
	Start   string // backend_start as text; with PID it names the backend for all time
	// Began is not before the backend began: no backend is taken for an older one.
	Began time.Time
	// Protected says that the control role may not end it.
	Protected bool
}

// BackendKind is what a backend is, seen by a node that acts for others.
type BackendKind uint8

const (
	BackendClaimed  BackendKind = iota // a live node holds it, and ends it itself where that has to be
	BackendYounger                     // begun after the fact, which does not concern it
	BackendLeftOver                    // of a boot that cannot end it
	BackendDoubtful                    // a live node that has not answered may hold it
	BackendDirect                      // nobody's: it bypasses pgedge
)

// SweepTask is what one revocation wants done at one server in one pass.
type SweepTask struct {
	Role string
	// Before spares backends that are not certainly older; zero spares none.
	Before time.Time
	Silent []SilentBoot // whose backends are stopped
	Count  bool         // count the residue
	// Mark, when set, sets the role NOLOGIN with this mark and ends its direct sessions.
	Mark *LoginMark
}

// SweepPass is one visit to one server.
type SweepPass struct {
	Tasks []SweepTask
	// Claims are those of other live nodes. The engine adds its own.
	Claims []Claim
	// Doubtful are the addresses of live nodes that did not say what they hold.
	Doubtful []string
}

// SweepOutcome is what a pass has found and done for one task. Counts that were not asked for are nil.
type SweepOutcome struct {
	Residue Residue
	// Doubtful is set when backends were seen that an unanswering node may hold: direct sessions are not known.
	Doubtful bool
}

// Classify tells what a backend of the task's role is; boot is the index into t.Silent of a left-over's boot. Several
// silent boots can share an address; then it is the first of them.
//
// A silent boot is known by its address alone, so that a session of the role which somebody opened past pgedge from
// that very host is taken for its backend too.
func (t *SweepTask) Classify(b Backend, server string, claims []Claim, doubtful []string) (kind BackendKind, boot int) {
	for _, c := range claims {
		if c.Server != "" && c.Server != server {
			continue
		}
		if c.PID != 0 && c.PID == b.PID || c.PID == 0 && c.Port != 0 && c.Port == b.Port {
			return BackendClaimed, 0
		}
	}
	if !t.Before.IsZero() && !b.Began.Before(t.Before) {
		return BackendYounger, 0
	}
	if slices.Contains(doubtful, b.Address) {
		return BackendDoubtful, 0
	}
	for i, s := range t.Silent {
		if slices.Contains(s.Addresses, b.Address) && (s.Before.IsZero() || b.Began.Before(s.Before)) {
			return BackendLeftOver, i
		}
	}
	return BackendDirect, 0
}

// Add takes another pass's findings into the residue of a receipt. Counts of several servers add up; of the same one
// the later stands, so that the caller adds one Residue per server that it keeps up to date.
func (r *Residue) Add(o Residue) {
	sum := func(a **int, b *int) {
		switch {
		case b == nil:
		case *a == nil:
			v := *b
			*a = &v
		default:
			v := **a + *b
			*a = &v
		}
	}
	sum(&r.PreparedXacts, o.PreparedXacts)
	sum(&r.ReplicationSlots, o.ReplicationSlots)
	sum(&r.DirectSessions, o.DirectSessions)
	if o.RoleCanLogin != nil {
		v := *o.RoleCanLogin || r.RoleCanLogin != nil && *r.RoleCanLogin
		r.RoleCanLogin = &v
	}
	r.addStopped(o.StoppedFor)
	if o.Swept != nil {
		s := Swept{}
		if r.Swept != nil {
			s = *r.Swept
		}
		s.DirectSessions += o.Swept.DirectSessions
		s.NoLogin = s.NoLogin || o.Swept.NoLogin
		r.Swept = &s
	}
	if o.Why != "" && o.Why != r.Why {
		if r.Why != "" {
			r.Why += "; "
		}
		r.Why += o.Why
	}
}

func (r *Residue) addStopped(list []StoppedFor) {
	r.StoppedFor = slices.Clone(r.StoppedFor)
	for _, s := range list {
		i := slices.IndexFunc(r.StoppedFor, func(o StoppedFor) bool { return o.Node == s.Node && o.Boot == s.Boot })
		if i < 0 {
			r.StoppedFor = append(r.StoppedFor, s)
			continue
		}
		r.StoppedFor[i].Backends += s.Backends
		r.StoppedFor[i].NotGone += s.NotGone
	}
}

// Update takes the findings of a later pass at the same server: counts are as of the newest pass that made them,
// what was done adds up.
func (r *Residue) Update(o Residue) {
	if o.PreparedXacts != nil {
		r.PreparedXacts = o.PreparedXacts
	}
	if o.ReplicationSlots != nil {
		r.ReplicationSlots = o.ReplicationSlots
	}
	if o.DirectSessions != nil {
		r.DirectSessions = o.DirectSessions
	}
	if o.RoleCanLogin != nil {
		r.RoleCanLogin = o.RoleCanLogin
	}
	r.Why = ""
	for i := range r.StoppedFor {
		// What was not gone has been met again by this pass if it is still there.
		r.StoppedFor[i].NotGone = 0
	}
	r.Add(Residue{StoppedFor: o.StoppedFor, Swept: o.Swept, Why: o.Why})
}

// Empty says that nothing is known yet.
func (r *Residue) Empty() bool {
	return r.PreparedXacts == nil && r.ReplicationSlots == nil && r.DirectSessions == nil && r.RoleCanLogin == nil &&
		len(r.StoppedFor) == 0 && r.Swept == nil && r.Why == ""
}
