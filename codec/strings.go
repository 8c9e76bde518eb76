package codec

import (
	"bytes"
	"strings"
)

// cString returns s as a C program reads it: up to the first NUL.
func cString(s string) string {
	s, _, _ = strings.Cut(s, "\x00")
	return s
}

// appendCString appends s and its terminator, so that s cannot bring in further fields.
func appendCString(dst []byte, s string) []byte {
	return append(append(dst, cString(s)...), 0)
}

// cutCString takes a terminated string off the front of b. Without a terminator ok is false.
func cutCString(b []byte) (s string, rest []byte, ok bool) {
	head, rest, ok := bytes.Cut(b, []byte{0})
	if !ok {
		return "", nil, false
	}
	return string(head), rest, true
}
