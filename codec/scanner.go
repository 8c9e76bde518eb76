package codec

import "encoding/binary"

// Scanner follows the message boundaries of one direction of a session without keeping or copying bodies.
// It takes the stream in pieces that may be cut anywhere, allocates only when it returns an error, and is
// small enough to be embedded by value. It is not safe for concurrent use, and its zero value is not usable.
type Scanner struct {
	remaining uint32 // body bytes of the current message still to come
	length    uint32 // length word of the last header, as far as it has been read
	from, to  uint32 // pid of the backend, and the one the client knows it by
	have      uint8  // header bytes read so far, 0 to 4; 0 means that no header is open
	typ       byte   // type of the message whose header or body is open
	dir       Direction
	rewrite   bool // from is replaced by to
}

// NewScanner returns a Scanner for a stream that begins with a message header: for a frontend the first
// message after login, for a backend any message.
func NewScanner(dir Direction) Scanner {
	return Scanner{dir: dir}
}

// Seen is what Scan saw. Counts are added to, so that a caller may accumulate over several Scans; Status is
// overwritten by each.
type Seen struct {
	Messages  uint32 // headers completed
	Requests  uint32 // from a frontend: Query, FunctionCall and Sync, each answered by one ReadyForQuery
	Ready     uint32 // from a backend: ReadyForQuery completed
	Completed uint32 // from a backend: CommandComplete headers
	Errors    uint32 // from a backend: ErrorResponse headers
	CopyIn    uint32 // from a backend: CopyInResponse and CopyBothResponse headers
	Status    byte   // from a backend: byte of the last ReadyForQuery completed ('I', 'T', 'E'), 0 if none in this Scan
	LastType  byte   // type of the last header completed
	Terminate bool   // from a frontend: Terminate seen
	// Batch says, from a frontend, where its last extended or request message leaves Postgres; CopyData and the like
	// leave it as it was.
	Batch BatchState
}

// BatchState tells whether extended messages wait for their Sync.
type BatchState uint8

const (
	BatchUnchanged BatchState = iota // none of these messages was seen
	BatchOpen                        // Parse, Bind, Describe, Execute, Close or Flush without a Sync behind it
	BatchSynced                      // Query, FunctionCall or Sync was the last of them
)

// SetPIDRewrite makes Scan replace the backend pid in each NotificationResponse whose pid is from, so that a
// client that was given a virtual pid recognises its own notifications. It applies to messages whose header
// begins in a later Scan, and has no effect on a frontend's stream.
func (s *Scanner) SetPIDRewrite(from, to uint32) {
	s.from, s.to = from, to
	s.rewrite = s.dir == FromBackend && from != to
}

// AtBoundary reports whether every message seen so far is whole.
func (s *Scanner) AtBoundary() bool { return s.remaining == 0 && s.have == 0 }

// Remaining returns how many body bytes of the current message are still to come. It is 0 while a header is
// incomplete: AtBoundary tells that apart from the end of a message.
func (s *Scanner) Remaining() uint32 { return s.remaining }

// LastBody returns how many body bytes the last message has. It means something at a boundary, behind a message.
func (s *Scanner) LastBody() uint32 { return s.length - lengthWord }

// Scan reads p and returns how many of its bytes may be forwarded.
//
// Without an error n is len(p), except when SetPIDRewrite is on and p ends inside the first 9 bytes of a
// NotificationResponse: then n is where that message begins, at most 8 bytes before the end, and the caller
// presents p[n:] again followed by more. Scan writes to p only to replace such a pid.
//
// The error is a *FramingError; n is then the offset in p of the first byte of the offending header, or 0 if
// that header began in an earlier p. In every case the Scanner stands as if it had read exactly p[:n].
func (s *Scanner) Scan(p []byte, seen *Seen) (n int, err error) {
	seen.Status = 0
	i := 0
	if s.have > 0 {
		if i, err = s.resumeHeader(p, seen); err != nil {
			return 0, err
		}
	}
	if s.remaining > 0 {
		i += s.skipBody(p[i:], seen)
	}

	table := &rules[s.dir&1]
	for len(p)-i >= headerLength {
		typ, length := p[i], binary.BigEndian.Uint32(p[i+1:])
		r := &table[typ]
		if length-r.least > r.span || r.effect == effectUnknown {
			return i, framingError(r, typ, length)
		}
		if r.effect == effectNotification && s.rewrite && length >= lengthWord+4 {
			if len(p)-i < headerLength+4 {
				return i, nil
			}
			s.rewritePID(p[i+headerLength:])
		}
		i += headerLength
		s.begin(r, typ, length, seen)
		if i += s.skipBody(p[i:], seen); s.remaining > 0 {
			return i, nil
		}
	}
	if i == len(p) {
		return i, nil
	}

	// Fewer bytes than a header are left. A wrong type is refused at once, as Postgres does.
	typ := p[i]
	if r := &table[typ]; r.effect == effectUnknown {
		return i, framingError(r, typ, 0)
	} else if r.effect == effectNotification && s.rewrite {
		return i, nil
	}
	s.typ, s.have, s.length = typ, 1, 0
	for _, b := range p[i+1:] {
		s.length = s.length<<8 | uint32(b)
		s.have++
	}
	return len(p), nil
}

// resumeHeader goes on with a header that began in an earlier Scan and returns how much of p belongs to it.
// On an error nothing has changed.
func (s *Scanner) resumeHeader(p []byte, seen *Seen) (n int, err error) {
	have, length := s.have, s.length
	for n < len(p) && have < headerLength {
		length = length<<8 | uint32(p[n])
		n++
		have++
	}
	if have < headerLength {
		s.have, s.length = have, length
		return n, nil
	}
	r := &rules[s.dir&1][s.typ]
	if length-r.least > r.span {
		return 0, framingError(r, s.typ, length)
	}
	s.have = 0
	s.begin(r, s.typ, length, seen)
	return n, nil
}

// begin notes a complete and legal header.
func (s *Scanner) begin(r *rule, typ byte, length uint32, seen *Seen) {
	s.typ, s.length = typ, length
	s.remaining = length - lengthWord
	seen.Messages++
	seen.LastType = typ
	switch r.effect {
	case effectNone, effectUnknown, effectReady, effectNotification:
	case effectRequest:
		seen.Requests++
		seen.Batch = BatchSynced
	case effectExtended:
		seen.Batch = BatchOpen
	case effectTerminate:
		seen.Terminate = true
	case effectCompleted:
		seen.Completed++
	case effectError:
		seen.Errors++
	case effectCopyIn:
		seen.CopyIn++
	}
}

// skipBody passes over what p holds of the current body and returns how much that is.
func (s *Scanner) skipBody(p []byte, seen *Seen) int {
	n := min(uint64(len(p)), uint64(s.remaining))
	if n > 0 && s.typ == 'Z' {
		// Only a backend may send ReadyForQuery, and its rule allows exactly one body byte: this one.
		seen.Ready++
		seen.Status = p[0]
	}
	s.remaining -= uint32(n)
	return int(n)
}

// rewritePID replaces the pid that a NotificationResponse's body begins with.
func (s *Scanner) rewritePID(body []byte) {
	if binary.BigEndian.Uint32(body) == s.from {
		binary.BigEndian.PutUint32(body, s.to)
	}
}

func framingError(r *rule, typ byte, length uint32) error {
	if r.effect == effectUnknown {
		return &FramingError{Type: typ, Kind: UnknownType}
	}
	return &FramingError{Type: typ, Length: length, Kind: InvalidLength}
}
