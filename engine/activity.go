package engine

import "pgedge/codec"

// A session's activity is one word that its loop writes and anybody reads: the transaction status byte of the last
// ReadyForQuery, how many requests have not been answered by one yet, and whether messages of the extended protocol
// have been sent behind the last Sync, which Postgres may be carrying out without ever sending a ReadyForQuery.
//
// The count is right for simple queries, extended batches and pipelines. It can stay too high where Postgres
// swallows requests (a Query sent while it skips to Sync after an error, a Sync sent into COPY): then the session
// counts as active, and an idle timeout spares it. It never counts as idle while a request is open.
const (
	activityStatusShift = 24
	activityUnsynced    = 1 << 23
	activityCountMask   = activityUnsynced - 1
)

// packActivity makes a word without unsynced messages.
func packActivity(status byte, requests uint32) uint32 {
	return uint32(status)<<activityStatusShift | requests&activityCountMask
}

// unpackActivity counts unsynced messages as one open request.
func unpackActivity(v uint32) (status byte, open uint32) {
	open = v & activityCountMask
	if v&activityUnsynced != 0 {
		open++
	}
	return byte(v >> activityStatusShift), open
}

// noteSent is called by the loop when the client has begun messages.
func (s *session) noteSent(seen *codec.Seen) {
	was := s.activity.Load()
	count := min(was&activityCountMask+seen.Requests, activityCountMask)
	now := was&^activityCountMask | count
	switch seen.Batch {
	case codec.BatchOpen:
		now |= activityUnsynced
	case codec.BatchSynced:
		now &^= activityUnsynced
	case codec.BatchUnchanged:
	}
	if now != was {
		s.activity.Store(now)
	}
	s.touch()
}

// noteReady is called by the loop when the backend has answered n requests.
func (s *session) noteReady(n uint32, status byte) {
	was := s.activity.Load()
	count := was & activityCountMask
	s.activity.Store(packActivity(status, count-min(count, n)) | was&activityUnsynced)
	s.touch()
}

// touch notes the time for timeouts and session lists. The loop has looked at the clock when it was last woken up: what
// it does before it waits again takes far less than any timeout.
func (s *session) touch() { s.lastActive.Store(s.loop.woken) }

// stateName says what receipts and session lists show.
func (s *session) stateName() string {
	status, open := unpackActivity(s.activity.Load())
	switch {
	case status == 0:
		return "login"
	case open > 0:
		return "active"
	case status == 'I':
		return "idle"
	default:
		return "idle_in_transaction"
	}
}
