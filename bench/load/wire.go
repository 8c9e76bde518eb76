package load

import (
	"bytes"
	"encoding/binary"
	"fmt"
)

const (
	protocol30 = 3 << 16
	// maxMessage is the largest that Postgres sends: 1 GiB.
	maxMessage = 1 << 30
	// maxKept bounds what is kept of one message; errors and authentication are far smaller.
	maxKept = 8 << 10
)

// Codes of an Authentication message.
const (
	authOK           = 0
	authCleartext    = 3
	authSASL         = 10
	authSASLContinue = 11
	authSASLFinal    = 12
)

var terminate = []byte{'X', 0, 0, 0, 4}

func startupPacket(user, database string) []byte {
	b := []byte{0, 0, 0, 0, 0, 0, 0, 0}
	binary.BigEndian.PutUint32(b[4:], protocol30)
	for _, s := range []string{"user", user, "database", database, ""} {
		b = append(append(b, s...), 0)
	}
	binary.BigEndian.PutUint32(b, uint32(len(b)))
	return b
}

// message is a frame of a type and a body.
func message(kind byte, body ...[]byte) []byte {
	b := []byte{kind, 0, 0, 0, 0}
	for _, part := range body {
		b = append(b, part...)
	}
	binary.BigEndian.PutUint32(b[1:], uint32(len(b)-1))
	return b
}

func query(sql string) []byte { return message('Q', []byte(sql), []byte{0}) }

// serverError is an ErrorResponse in short.
type serverError struct {
	severity, code, text string
}

func (e *serverError) Error() string {
	return fmt.Sprintf("%s: %s (SQLSTATE %s)", e.severity, e.text, e.code)
}

func parseError(body []byte) *serverError {
	e := new(serverError)
	for len(body) > 1 {
		kind := body[0]
		value, rest, ok := bytes.Cut(body[1:], []byte{0})
		if !ok {
			break
		}
		switch kind {
		case 'S':
			e.severity = string(value)
		case 'C':
			e.code = string(value)
		case 'M':
			e.text = string(value)
		}
		body = rest
	}
	return e
}

// inbox takes a stream apart into messages at any split. It keeps the bodies that somebody looks at and skips the rest.
type inbox struct {
	hdr  [5]byte
	have uint8 // bytes of hdr
	body []byte
	left uint32 // bytes of the body that are still to come
}

func kept(kind byte) bool {
	switch kind {
	case 'R', 'E', 'D', 'Z':
		return true
	}
	return false
}

// next takes one message from the front of b. ok is false when b ends before the message does; body is valid until the
// next call and empty for a message that is not kept.
func (in *inbox) next(b []byte) (kind byte, body, rest []byte, ok bool, err error) {
	if in.have < 5 {
		n := copy(in.hdr[in.have:], b)
		in.have += uint8(n)
		b = b[n:]
		if in.have < 5 {
			return 0, nil, nil, false, nil
		}
		size := binary.BigEndian.Uint32(in.hdr[1:])
		if size < 4 || size > maxMessage {
			return 0, nil, nil, false, fmt.Errorf("a message %q of %d bytes", in.hdr[0], size)
		}
		in.left = size - 4
	}
	n := min(in.left, uint32(len(b)))
	part := b[:n]
	in.left -= n
	whole := in.left == 0 && len(in.body) == 0
	if kept(in.hdr[0]) && !whole {
		in.body = append(in.body, part[:min(len(part), maxKept-len(in.body))]...)
	}
	if in.left > 0 {
		return 0, nil, nil, false, nil
	}
	body = in.body
	if whole && kept(in.hdr[0]) {
		body = part
	}
	in.have, in.body = 0, nil
	return in.hdr[0], body, b[n:], true, nil
}
