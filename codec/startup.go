package codec

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"strings"
)

const (
	// MaxStartupPacketLength is the largest body of a startup packet in bytes, its length word not included.
	MaxStartupPacketLength = 10000
	// NameLimit is how many bytes of a role or database name Postgres keeps.
	NameLimit = 63

	// ProtocolMajor and NewestMinor are the newest protocol spoken: 3.2.
	ProtocolMajor = 3
	NewestMinor   = 2
)

// Request codes stand where a startup packet has its protocol version.
const (
	cancelRequestCode = 1234<<16 | 5678
	sslRequestCode    = 1234<<16 | 5679
	gssencRequestCode = 1234<<16 | 5680
)

// protocolOptionPrefix marks startup parameters that are meant for the protocol and not for the session.
const protocolOptionPrefix = "_pq_."

// SQLSTATEs of the refusals that ParseStartup makes.
const (
	codeProtocolViolation    = "08P01"
	codeFeatureNotSupported  = "0A000"
	codeInvalidAuthorization = "28000"
)

// StartupError is a startup packet that Postgres refuses.
type StartupError struct {
	Code    string // SQLSTATE of the FATAL to answer; empty means: close without an answer
	Message string // Postgres's text
}

func (e *StartupError) Error() string { return e.Message }

// Silent reports whether the connection is to be closed without an answer.
func (e *StartupError) Silent() bool { return e.Code == "" }

// ErrStartupLength is a startup packet whose length word is out of bounds. It is a silent *StartupError.
var ErrStartupLength error = &StartupError{Message: "invalid length of startup packet"}

// UnsupportedProtocol is the refusal of a protocol version, and of an SSLRequest or GSSENCRequest that comes a
// second time: Postgres then reads the request code as the version 1234.5679 or 1234.5680.
func UnsupportedProtocol(major, minor uint16) *StartupError {
	return &StartupError{Code: codeFeatureNotSupported, Message: fmt.Sprintf(
		"unsupported frontend protocol %d.%d: server supports %d.0 to %d.%d",
		major, minor, ProtocolMajor, ProtocolMajor, NewestMinor)}
}

// StartupLength checks the length word that begins a startup packet and returns how many body bytes follow it,
// from 4 to MaxStartupPacketLength. Otherwise the error is ErrStartupLength, before anything was allocated.
func StartupLength(prefix [4]byte) (body int, err error) {
	length := binary.BigEndian.Uint32(prefix[:])
	if length < lengthWord+4 || length > lengthWord+MaxStartupPacketLength {
		return 0, ErrStartupLength
	}
	return int(length - lengthWord), nil
}

// PacketKind says what a packet before login asks for.
type PacketKind uint8

const (
	PacketStartup       PacketKind = iota // open a session
	PacketSSLRequest                      // go on in TLS
	PacketGSSENCRequest                   // go on in GSSAPI encryption
	PacketCancelRequest                   // cancel what another session is doing
)

// StartupPacket is one packet of those that may come before login. Only PacketStartup has parameters, only
// PacketCancelRequest has a key.
type StartupPacket struct {
	Kind         PacketKind
	Major, Minor uint16
	Params       []Param // in the order sent, duplicates kept
	Cancel       CancelKey
}

// Param is a startup parameter. Neither part contains a NUL when it comes from ParseStartup.
type Param struct{ Name, Value string }

// ParseStartup reads the body of a packet, the length word not included, and does not keep it. Every error is a
// *StartupError with the code and text of PostgreSQL 18. On an error of a PacketStartup the packet returned
// carries its version, which decides on the form in which the error is sent (PlainErrors).
//
// One difference is intended: Postgres takes any single byte in the place of the final terminator, in spite of its
// own error text; here it must be the terminator.
func ParseStartup(body []byte) (StartupPacket, error) {
	if len(body) < 4 || len(body) > MaxStartupPacketLength {
		return StartupPacket{}, ErrStartupLength
	}
	code := binary.BigEndian.Uint32(body)
	p := StartupPacket{Major: uint16(code >> 16), Minor: uint16(code)}
	// Postgres does not look at what follows the code of an SSLRequest or GSSENCRequest.
	switch code {
	case sslRequestCode:
		p.Kind = PacketSSLRequest
		return p, nil
	case gssencRequestCode:
		p.Kind = PacketGSSENCRequest
		return p, nil
	case cancelRequestCode:
		p.Kind = PacketCancelRequest
		key, err := parseCancelRequest(body)
		p.Cancel = key
		return p, err
	}
	if p.Major != ProtocolMajor {
		return p, UnsupportedProtocol(p.Major, p.Minor)
	}
	params, ok := parseParams(body[4:])
	if !ok {
		return p, &StartupError{codeProtocolViolation, "invalid startup packet layout: expected terminator as last byte"}
	}
	p.Params = params
	if p.User() == "" {
		return p, &StartupError{codeInvalidAuthorization, "no PostgreSQL user name specified in startup packet"}
	}
	return p, nil
}

// parseParams reads pairs of strings up to the empty name, which has to be the last byte.
func parseParams(rest []byte) (params []Param, ok bool) {
	for {
		name, after, found := bytes.Cut(rest, []byte{0})
		if !found {
			return nil, false
		}
		if len(name) == 0 {
			return params, len(after) == 0
		}
		value, next, found := bytes.Cut(after, []byte{0})
		if !found {
			return nil, false
		}
		params = append(params, Param{string(name), string(value)})
		rest = next
	}
}

// Get returns the value of a parameter. Of duplicates the last one counts, as in Postgres.
func (p *StartupPacket) Get(name string) (string, bool) {
	for i := len(p.Params) - 1; i >= 0; i-- {
		if p.Params[i].Name == name {
			return p.Params[i].Value, true
		}
	}
	return "", false
}

// User returns the role that Postgres logs in: the parameter cut by CutName.
func (p *StartupPacket) User() string {
	user, _ := p.Get("user")
	return CutName(cString(user))
}

// Database returns the database that Postgres opens: the parameter cut by CutName, or the user if it is missing
// or empty.
func (p *StartupPacket) Database() string {
	database, _ := p.Get("database")
	if database = cString(database); database == "" {
		return p.User()
	}
	return CutName(database)
}

// ProtocolOptions returns the names of the protocol options ("_pq_." and more) in the order sent. Postgres 18
// knows none of them and lists them all in NegotiateProtocolVersion.
func (p *StartupPacket) ProtocolOptions() []string {
	var names []string
	for _, param := range p.Params {
		if strings.HasPrefix(param.Name, protocolOptionPrefix) {
			names = append(names, param.Name)
		}
	}
	return names
}

// PlainErrors reports whether the client asks for protocol 1 or 2: an error is then sent to it in the form of
// AppendErrorResponseV2, as Postgres does.
func (p *StartupPacket) PlainErrors() bool {
	return p.Kind == PacketStartup && (p.Major == 1 || p.Major == 2)
}

// Set gives a parameter one value in place of all it had, or adds it at the end.
func (p *StartupPacket) Set(name, value string) {
	for i := range p.Params {
		if p.Params[i].Name == name {
			p.Params[i].Value = value
			tail := StartupPacket{Params: p.Params[i+1:]}
			tail.Delete(name)
			p.Params = p.Params[:i+1+len(tail.Params)]
			return
		}
	}
	p.Params = append(p.Params, Param{name, value})
}

// Delete removes a parameter with all its duplicates.
func (p *StartupPacket) Delete(name string) {
	kept := p.Params[:0]
	for _, param := range p.Params {
		if param.Name != name {
			kept = append(kept, param)
		}
	}
	clear(p.Params[len(kept):])
	p.Params = kept
}

// ErrStartupTooLong is a startup packet that grew beyond what a server accepts.
var ErrStartupTooLong = errors.New("startup packet exceeds 10000 bytes")

// Check reports ErrStartupTooLong if the server would refuse the encoded packet for its length, which it does
// without an answer.
func (p *StartupPacket) Check() error {
	if p.Kind == PacketStartup && len(p.Encode(nil)) > lengthWord+MaxStartupPacketLength {
		return ErrStartupTooLong
	}
	return nil
}

// Encode appends the whole packet, length word included. What would change the meaning of the packet is left out:
// names and values end at a NUL, and parameters without a name are skipped.
func (p *StartupPacket) Encode(dst []byte) []byte {
	if p.Kind == PacketCancelRequest {
		return AppendCancelRequest(dst, p.Cancel)
	}
	start := len(dst)
	dst = append(dst, 0, 0, 0, 0)
	dst = binary.BigEndian.AppendUint16(dst, p.Major)
	dst = binary.BigEndian.AppendUint16(dst, p.Minor)
	if p.Kind == PacketStartup {
		for _, param := range p.Params {
			if cString(param.Name) != "" {
				dst = appendCString(dst, param.Name)
				dst = appendCString(dst, param.Value)
			}
		}
		dst = append(dst, 0)
	}
	binary.BigEndian.PutUint32(dst[start:], uint32(len(dst)-start))
	return dst
}

// AppendSSLRequest appends a whole SSLRequest packet.
func AppendSSLRequest(dst []byte) []byte {
	dst = binary.BigEndian.AppendUint32(dst, lengthWord+4)
	return binary.BigEndian.AppendUint32(dst, sslRequestCode)
}

// CutName returns what Postgres keeps of a role or database name: the first NameLimit bytes, even if that cuts a
// character in two. Names have to be cut before they are compared with anything: otherwise a longer name
// is another principal here and the same one in Postgres.
func CutName(name string) string {
	return name[:min(len(name), NameLimit)]
}
