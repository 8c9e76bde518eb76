package revoke

import "time"

// Event is what happens to a node; see Node.Handle.
type Event interface{ isEvent() }

// FastMessage is a message of the plain subscription on revoke, kill and suspend.
type FastMessage struct {
	Subject string
	MsgID   string // the Nats-Msg-Id header, "" when absent
	Payload []byte // not kept after Handle returns
}

// JournalMessage is a message of the journal's consumer: facts, heartbeats and anything else in the stream.
type JournalMessage struct {
	Subject string
	MsgID   string // the Nats-Msg-Id header, "" when absent
	Payload []byte // not kept after Handle returns
	Seq     uint64
	Stored  time.Time // by the server's clock
	Pending uint64    // messages that were waiting behind this one
}

// JournalReset says that a new consumer begins at the start of the stream. The state is loaded beside the present
// one, which goes on refusing logins, and takes its place once a message with nothing pending, or JournalEmpty,
// has come. Stream is the identity of the stream, "" when unknown; another one than before is another journal.
type JournalReset struct{ Stream string }

// JournalEmpty says that a consumer is attached and the stream holds nothing.
type JournalEmpty struct{}

// StoreOutcome is how a StoreCommand ended.
type StoreOutcome uint8

const (
	StoreInvalid           StoreOutcome = iota
	StoreOK                             // acknowledged
	StoreWrongLastSequence              // refused: the subject has another last sequence than expected
	StoreFailed                         // anything else: no answer, no leader, no permission
)

// StoreResult answers a StoreCommand. Every StoreCommand gets exactly one.
type StoreResult struct {
	Key     string
	Outcome StoreOutcome
	Seq     uint64 // of the acknowledgement, 0 when unknown
}

// HeartbeatDue says that a heartbeat is to be published now. It is answered by one HeartbeatCommand. The moment it is
// handled at is the moment that the heartbeat proves the node fresh as of.
type HeartbeatDue struct{}

// HeartbeatResult answers a HeartbeatCommand, if anything does.
type HeartbeatResult struct {
	N       uint64
	Outcome StoreOutcome
	Seq     uint64 // of the acknowledgement
	// Last is the last seq of the subject that a refusal names, 0 when the subject is empty.
	Last      uint64
	LastKnown bool // whether the refusal names one
}

// Tick says that the time given by NextTick has come. Ticks at other times do no harm.
type Tick struct{}

func (FastMessage) isEvent()     {}
func (JournalMessage) isEvent()  {}
func (JournalReset) isEvent()    {}
func (JournalEmpty) isEvent()    {}
func (StoreResult) isEvent()     {}
func (HeartbeatDue) isEvent()    {}
func (HeartbeatResult) isEvent() {}
func (Tick) isEvent()            {}

// Command is what the node wants done. Commands are carried out in the order in which they are returned.
type Command interface{ isCommand() }

// CutCommand cuts the sessions of a fact. The table already refuses new ones.
type CutCommand struct{ Order Order }

// StoreCommand publishes a fact into the journal, with Nats-Msg-Id MsgID when that is not empty and with
// Expected-Last-Subject-Sequence ExpectLastSubjectSeq (0: the subject is empty). It is answered by a StoreResult.
type StoreCommand struct {
	Key                  string
	Subject              string
	MsgID                string
	Payload              []byte
	ExpectLastSubjectSeq uint64
}

// RejectCommand publishes a refused message to pgedge.rejected and logs it.
type RejectCommand struct {
	Subject string
	Payload []byte // a copy, cut to MaxPayloadBytes
	Why     string
}

// ReadyCommand is given once: the journal has been replayed for the first time, so that cuts can be carried out.
// Logins may be admitted from the first RenewCommand on, and only while the lease holds.
type ReadyCommand struct{}

// HeartbeatCommand is a heartbeat to publish on NodeSubject with Expected-Last-Subject-Sequence
// ExpectLastSubjectSeq. It must not be retried or kept for later.
type HeartbeatCommand struct {
	N                    uint64
	ExpectLastSubjectSeq uint64
	Applied              uint64
	TableHash            string // "" while the table is not what the journal holds at Applied
	Stream               string
}

// RenewCommand makes the lease end at Until, or never. Cuts that were returned before it are carried out before it:
// the lease may have ended, and the sessions they are about must not pass a byte in between.
type RenewCommand struct {
	Until Instant
	Never bool
}

// RevokeLeaseCommand ends the lease at once.
type RevokeLeaseCommand struct{ Why string }

// FreezeCommand: the lease has ended. No byte of any session passes from here on; logins are refused. Given once, then
// comes ThawCommand or DropCommand.
type FreezeCommand struct{}

// ThawCommand: the lease is back, and everything the journal holds has been applied. Sessions that are frozen go on, if
// there are any, and logins may be admitted. Given once after each FreezeCommand, maybe with a DropCommand in between.
type ThawCommand struct{}

// DropCommand: the lease has not come back in time, or the node does not wait for it. The frozen sessions end.
type DropCommand struct{}

// ReloadCommand asks for a new consumer from the start of the stream, and so for a JournalReset: what was
// delivered cannot come from the stream that was read before.
type ReloadCommand struct{ Why string }

// PresenceCommand is the heartbeat of a node, decoded; the node's own included.
type PresenceCommand struct{ Presence Presence }

func (CutCommand) isCommand()         {}
func (StoreCommand) isCommand()       {}
func (RejectCommand) isCommand()      {}
func (ReadyCommand) isCommand()       {}
func (ReloadCommand) isCommand()      {}
func (PresenceCommand) isCommand()    {}
func (HeartbeatCommand) isCommand()   {}
func (RenewCommand) isCommand()       {}
func (RevokeLeaseCommand) isCommand() {}
func (FreezeCommand) isCommand()      {}
func (ThawCommand) isCommand()        {}
func (DropCommand) isCommand()        {}
