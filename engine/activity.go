package engine

// A session's activity is one word that its loop writes and anybody reads: the transaction status byte of the
// last ReadyForQuery and how many requests have not been answered by one yet.
//
// The count is right for simple queries, extended batches and pipelines. It can stay too high where Postgres
// swallows requests (a Query sent while it skips to Sync after an error, a Sync sent into COPY): then the session
// counts as active, and an idle timeout spares it. It never counts as idle while a request is open.
const (
	activityStatusShift = 24
	activityCountMask   = 1<<activityStatusShift - 1
)

func packActivity(status byte, requests uint32) uint32 {
	return uint32(status)<<activityStatusShift | requests&activityCountMask
}

func unpackActivity(v uint32) (status byte, requests uint32) {
	return byte(v >> activityStatusShift), v & activityCountMask
}

// noteRequests is called by the loop when the client has sent n requests.
func (s *session) noteRequests(n uint32) {
	status, open := unpackActivity(s.activity.Load())
	s.activity.Store(packActivity(status, min(open+n, activityCountMask)))
	s.touch()
}

// noteReady is called by the loop when the backend has answered n requests.
func (s *session) noteReady(n uint32, status byte) {
	_, open := unpackActivity(s.activity.Load())
	s.activity.Store(packActivity(status, open-min(open, n)))
	s.touch()
}

// touch notes the time only where a timeout or a person looks at it; 40 ns otherwise saved per message.
func (s *session) touch() {
	if s.eng.timed.Load() {
		s.lastActive.Store(s.now())
	}
}

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
