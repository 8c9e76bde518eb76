package codec

import (
	"crypto/subtle"
	"encoding/binary"
)

// Sizes in bytes of a cancel key's secret.
const (
	// SecretLength30 is the only size that protocol 3.0 knows.
	SecretLength30 = 4
	// MinSecretLength and MaxSecretLength bound what a backend may give out in protocol 3.2.
	MinSecretLength = 4
	MaxSecretLength = 256
)

// CancelKey names a session in a CancelRequest: whoever knows it may cancel.
type CancelKey struct {
	PID    uint32
	Secret []byte // 4 bytes in protocol 3.0, 4 to 256 in 3.2, 1 to 256 in a request
}

// Equal compares in a time that does not depend on where the keys differ, only on whether their sizes do.
func (k CancelKey) Equal(other CancelKey) bool {
	return subtle.ConstantTimeEq(int32(k.PID), int32(other.PID))&subtle.ConstantTimeCompare(k.Secret, other.Secret) == 1
}

// AppendCancelRequest appends a whole CancelRequest packet. A key whose secret is empty or longer than
// MaxSecretLength cannot be sent and dst is returned as it was.
func AppendCancelRequest(dst []byte, key CancelKey) []byte {
	if len(key.Secret) == 0 || len(key.Secret) > MaxSecretLength {
		return dst
	}
	dst = binary.BigEndian.AppendUint32(dst, uint32(cancelHeaderLength+lengthWord+len(key.Secret)))
	dst = binary.BigEndian.AppendUint32(dst, cancelRequestCode)
	dst = binary.BigEndian.AppendUint32(dst, key.PID)
	return append(dst, key.Secret...)
}

// cancelHeaderLength is what precedes the secret in the body of a CancelRequest: the code and the pid.
const cancelHeaderLength = 8

// parseCancelRequest reads the body of a CancelRequest. A cancelling client is never answered, so its errors
// are silent.
func parseCancelRequest(body []byte) (CancelKey, error) {
	if len(body) < cancelHeaderLength {
		return CancelKey{}, &StartupError{Message: "invalid length of cancel request packet"}
	}
	secret := body[cancelHeaderLength:]
	if len(secret) == 0 || len(secret) > MaxSecretLength {
		return CancelKey{}, &StartupError{Message: "invalid length of cancel key in cancel request packet"}
	}
	return newCancelKey(body[4:cancelHeaderLength], secret), nil
}

// ParseCancelPacket reads a whole CancelRequest packet, as AppendCancelRequest makes it, and nothing else.
func ParseCancelPacket(p []byte) (CancelKey, error) {
	if len(p) < lengthWord+cancelHeaderLength || uint64(binary.BigEndian.Uint32(p)) != uint64(len(p)) ||
		binary.BigEndian.Uint32(p[lengthWord:]) != cancelRequestCode {
		return CancelKey{}, &StartupError{Message: "not a cancel request packet"}
	}
	return parseCancelRequest(p[lengthWord:])
}

// newCancelKey copies a key out of a message.
func newCancelKey(pid, secret []byte) CancelKey {
	return CancelKey{PID: binary.BigEndian.Uint32(pid), Secret: append([]byte(nil), secret...)}
}
