package codec

import (
	"encoding/binary"
	"errors"
	"fmt"
)

// Codes that begin the body of an Authentication message.
const (
	AuthOK                uint32 = 0
	AuthKerberosV5        uint32 = 2
	AuthCleartextPassword uint32 = 3
	AuthMD5Password       uint32 = 5
	AuthGSS               uint32 = 7
	AuthGSSContinue       uint32 = 8
	AuthSSPI              uint32 = 9
	AuthSASL              uint32 = 10
	AuthSASLContinue      uint32 = 11
	AuthSASLFinal         uint32 = 12
)

// Limits on lists that a peer sends during login. Postgres stays far below them.
const (
	MaxSASLMechanisms  = 32
	MaxProtocolOptions = MaxStartupPacketLength / (len(protocolOptionPrefix) + 2)
)

var errTruncated = errors.New("message ends too early")

// AppendMessage appends a whole message. A body that does not fit a length word leaves dst as it was; nothing that
// was read within the limits of this package is so long.
func AppendMessage(dst []byte, typ byte, body []byte) []byte {
	if uint64(len(body)) > MaxBackendMessageLength-lengthWord {
		return dst
	}
	dst = append(dst, typ)
	dst = binary.BigEndian.AppendUint32(dst, uint32(lengthWord+len(body)))
	return append(dst, body...)
}

// finishMessage writes the length word of the message that begins at dst[start] and ends with dst.
func finishMessage(dst []byte, start int) []byte {
	binary.BigEndian.PutUint32(dst[start+1:], uint32(len(dst)-start-1))
	return dst
}

// ParseAuthentication splits the body of an Authentication message. rest is a part of body and lives as long.
func ParseAuthentication(body []byte) (code uint32, rest []byte, err error) {
	if len(body) < 4 {
		return 0, nil, fmt.Errorf("cannot read Authentication: %w", errTruncated)
	}
	return binary.BigEndian.Uint32(body), body[4:], nil
}

// ParseSASLMechanisms reads the list that follows AuthSASL: names in the server's order of preference, closed by an
// empty one. The list itself may be empty.
func ParseSASLMechanisms(rest []byte) ([]string, error) {
	var mechs []string
	for {
		mech, next, ok := cutCString(rest)
		switch {
		case !ok:
			return nil, fmt.Errorf("cannot read SASL mechanisms: %w", errTruncated)
		case mech == "" && len(next) > 0:
			return nil, fmt.Errorf("cannot read SASL mechanisms: %d bytes after the end of the list", len(next))
		case mech == "":
			return mechs, nil
		case len(mechs) == MaxSASLMechanisms:
			return nil, fmt.Errorf("cannot read SASL mechanisms: more than %d", MaxSASLMechanisms)
		}
		mechs = append(mechs, mech)
		rest = next
	}
}

// AppendSASLMechanisms appends a whole AuthenticationSASL message. Names end at a NUL; empty ones, which would end the
// list, are left out.
func AppendSASLMechanisms(dst []byte, mechs []string) []byte {
	start := len(dst)
	dst = append(dst, 'R', 0, 0, 0, 0)
	dst = binary.BigEndian.AppendUint32(dst, AuthSASL)
	for _, mech := range mechs {
		if cString(mech) != "" {
			dst = appendCString(dst, mech)
		}
	}
	return finishMessage(append(dst, 0), start)
}

// ParseBackendKeyData reads the body of a BackendKeyData and does not keep it.
func ParseBackendKeyData(body []byte) (CancelKey, error) {
	if len(body) < 4+MinSecretLength || len(body) > 4+MaxSecretLength {
		return CancelKey{}, fmt.Errorf("cannot read BackendKeyData: a body of %d bytes, not %d to %d",
			len(body), 4+MinSecretLength, 4+MaxSecretLength)
	}
	return newCancelKey(body[:4], body[4:]), nil
}

// AppendBackendKeyData appends a whole BackendKeyData. A client of protocol 3.0 reads exactly SecretLength30 bytes of
// secret; a longer one is for 3.2.
func AppendBackendKeyData(dst []byte, k CancelKey) []byte {
	start := len(dst)
	dst = append(dst, 'K', 0, 0, 0, 0)
	dst = binary.BigEndian.AppendUint32(dst, k.PID)
	return finishMessage(append(dst, k.Secret...), start)
}

// ParseNegotiateProtocolVersion reads the body of a NegotiateProtocolVersion: the newest minor version of major 3 that
// the server speaks, and the protocol options it does not know. The documentation calls the first field a
// minor version and Postgres sends the whole version in it: both are understood.
func ParseNegotiateProtocolVersion(body []byte) (newestMinor uint32, unknown []string, err error) {
	const what = "cannot read NegotiateProtocolVersion"
	if len(body) < 8 {
		return 0, nil, fmt.Errorf("%s: %w", what, errTruncated)
	}
	version, count := binary.BigEndian.Uint32(body), binary.BigEndian.Uint32(body[4:])
	if major := version >> 16; major != 0 && major != ProtocolMajor {
		return 0, nil, fmt.Errorf("%s: major version %d", what, major)
	}
	if count > uint32(MaxProtocolOptions) {
		return 0, nil, fmt.Errorf("%s: %d options, more than %d", what, count, MaxProtocolOptions)
	}
	rest := body[8:]
	for range count {
		option, next, ok := cutCString(rest)
		if !ok {
			return 0, nil, fmt.Errorf("%s: %w", what, errTruncated)
		}
		unknown = append(unknown, option)
		rest = next
	}
	if len(rest) > 0 {
		return 0, nil, fmt.Errorf("%s: %d bytes after the end", what, len(rest))
	}
	return version & 0xffff, unknown, nil
}

// AppendNegotiateProtocolVersion appends a whole NegotiateProtocolVersion, with the whole version in its first field
// because that is what Postgres sends and libpq expects. Options end at a NUL.
func AppendNegotiateProtocolVersion(dst []byte, newestMinor uint32, unknown []string) []byte {
	start := len(dst)
	dst = append(dst, 'v', 0, 0, 0, 0)
	dst = binary.BigEndian.AppendUint32(dst, ProtocolMajor<<16|newestMinor&0xffff)
	dst = binary.BigEndian.AppendUint32(dst, uint32(len(unknown)))
	for _, option := range unknown {
		dst = appendCString(dst, option)
	}
	return finishMessage(dst, start)
}

// AppendReadyForQuery appends a whole ReadyForQuery with status 'I', 'T' or 'E'.
func AppendReadyForQuery(dst []byte, status byte) []byte {
	return append(dst, 'Z', 0, 0, 0, lengthWord+1, status)
}
