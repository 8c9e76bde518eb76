package codec

import (
	"encoding/binary"
	"fmt"
)

// Limits on a message's length word, in bytes, the word itself included and the type byte not.
const (
	// MaxSmallMessageLength holds for the frontend messages that carry no user data.
	MaxSmallMessageLength = 10000
	// MaxLargeMessageLength holds for the frontend messages that carry user data: 1 GB less 2.
	MaxLargeMessageLength = 1<<30 - 2
	// MaxAuthMessageLength holds for password and SASL messages, which are legal only during login.
	MaxAuthMessageLength = 65535
	// MaxBackendMessageLength holds for all backend messages: the length word is signed.
	MaxBackendMessageLength = 1<<31 - 1
)

// FramingErrorKind says in which way a message header is wrong.
type FramingErrorKind uint8

const (
	// UnknownType is a type byte that Postgres does not take from a client in a session.
	// Postgres answers FATAL 08P01 with the error's text and closes.
	UnknownType FramingErrorKind = iota + 1
	// InvalidLength is a length word outside what the type allows.
	// Postgres logs the error's text and closes without telling the client.
	InvalidLength
)

// FramingError is a message header after which the stream cannot be followed any further.
type FramingError struct {
	Type   byte
	Length uint32 // the length word; 0 when the type alone is wrong and Length was not looked at
	Kind   FramingErrorKind
}

// Error returns the text that Postgres gives.
func (e *FramingError) Error() string {
	if e.Kind == UnknownType {
		return fmt.Sprintf("invalid frontend message type %d", e.Type)
	}
	return "invalid message length"
}

// Silent reports whether Postgres closes without telling the client.
func (e *FramingError) Silent() bool { return e.Kind == InvalidLength }

// MessageLength reads a whole message header and returns the type and how many body bytes follow. It is for
// a login, where messages are few and read one at a time; limit is the largest length word the caller takes,
// so that it can refuse before it allocates. The error is a *FramingError; the type is not judged.
func MessageLength(header [headerLength]byte, limit uint32) (typ byte, body int, err error) {
	typ = header[0]
	length := binary.BigEndian.Uint32(header[1:])
	if length < lengthWord || length > min(limit, MaxBackendMessageLength) {
		return typ, 0, &FramingError{Type: typ, Length: length, Kind: InvalidLength}
	}
	return typ, int(length - lengthWord), nil
}

// effect says what a header means to Seen beyond being counted.
type effect uint8

const (
	effectNone         effect = iota
	effectUnknown             // the type is not legal
	effectRequest             // answered by one ReadyForQuery
	effectExtended            // part of an extended batch, answered at its Sync
	effectTerminate           // the client says goodbye
	effectReady               // one status byte follows
	effectCompleted           // CommandComplete
	effectError               // ErrorResponse
	effectCopyIn              // the client may send CopyData from here on
	effectNotification        // a backend pid follows
)

// rule is what a Scanner knows of one message type: least and span bound the length word
// (least <= length <= least+span).
type rule struct {
	least, span uint32
	effect      effect
}

// rules is indexed by Direction and type byte, so that a header costs one load and one comparison.
var rules = [2][256]rule{FromFrontend: frontendRules(), FromBackend: backendRules()}

// frontendRules lists the types that Postgres takes in its main loop. The password message 'p' is not among
// them: after login Postgres calls it an invalid type.
func frontendRules() (t [256]rule) {
	for i := range t {
		t[i] = rule{least: lengthWord, effect: effectUnknown}
	}
	small := func(typ byte, e effect) { t[typ] = rule{lengthWord, MaxSmallMessageLength - lengthWord, e} }
	large := func(typ byte, e effect) { t[typ] = rule{lengthWord, MaxLargeMessageLength - lengthWord, e} }

	large('Q', effectRequest)   // Query
	large('F', effectRequest)   // FunctionCall
	small('S', effectRequest)   // Sync
	small('X', effectTerminate) // Terminate
	large('P', effectExtended)  // Parse
	large('B', effectExtended)  // Bind
	small('D', effectExtended)  // Describe
	small('E', effectExtended)  // Execute
	small('C', effectExtended)  // Close
	small('H', effectExtended)  // Flush
	large('d', effectNone)      // CopyData
	small('c', effectNone)      // CopyDone
	small('f', effectNone)      // CopyFail
	return t
}

// backendRules lets unknown types pass: relaying bytes is safe as long as the frame can be followed, and a
// later minor version may add some. ReadyForQuery is held to its one byte because whether a session is idle
// or in a transaction is decided by it.
func backendRules() (t [256]rule) {
	for i := range t {
		t[i] = rule{lengthWord, MaxBackendMessageLength - lengthWord, effectNone}
	}
	t['C'].effect = effectCompleted    // CommandComplete
	t['E'].effect = effectError        // ErrorResponse
	t['G'].effect = effectCopyIn       // CopyInResponse
	t['W'].effect = effectCopyIn       // CopyBothResponse
	t['A'].effect = effectNotification // NotificationResponse
	t['Z'] = rule{lengthWord + 1, 0, effectReady}
	return t
}
