package sim

// Breakage is something that is done wrong on purpose. A run that does not notice checks nothing.
type Breakage string

// What can be broken outside the state machine: the engine, the carrier of its events and commands, the publisher.
const (
	Sound                 Breakage = ""
	CheckBeforeRegister   Breakage = "check before register"
	CutBeforeTheLoops     Breakage = "cut reported before the loops have run"
	LeaseNotAsked         Breakage = "lease not asked before a write"
	NothingEverPending    Breakage = "lease renewed without nothing pending"
	LeaseByWallClockAlone Breakage = "lease by the wall clock alone"
	LeaseByBootClockAlone Breakage = "lease by the boot-time clock alone"
	NegativeLookUpDrops   Breakage = "negative look-up drops a provisional fact"
	SuspendStoredAsRevoke Breakage = "suspend stored as a revoke"
	ServeBeforeReplay     Breakage = "served before the journal is replayed"
	StoredWhenSent        Breakage = "reported as stored when sent"
	FenceWithoutLease     Breakage = "fenced without waiting for the lease"
	SilentIsDone          Breakage = "an incomplete verdict taken for done"
)

// Breakages are all of them.
var Breakages = []Breakage{
	CheckBeforeRegister, CutBeforeTheLoops, LeaseNotAsked, NothingEverPending, LeaseByWallClockAlone, LeaseByBootClockAlone,
	NegativeLookUpDrops, SuspendStoredAsRevoke, ServeBeforeReplay, StoredWhenSent, FenceWithoutLease, SilentIsDone,
}
