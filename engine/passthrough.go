package engine

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"

	"pgedge/codec"
)

// maxGreetingBytes bounds what a backend may send between AuthenticationOk and ReadyForQuery; it is held until the
// session is admitted. Real servers send about 500 bytes, and notices.
const maxGreetingBytes = 256 << 10

// passthrough relays the login exchange: Postgres itself checks the client, pgedge holds no secret. One message is
// in memory at a time, at most 64 KiB.
type passthrough struct {
	s       *session
	pkt     *codec.StartupPacket
	client  *bufio.Reader
	front   *wire
	backend *bufio.Reader
	ctx     context.Context
	slot    *loginSlot
	buf     []byte

	asked      uint16 // minor protocol version the client asked for
	minor      uint16 // that both sides speak
	negotiated bool   // the server sent its own NegotiateProtocolVersion
	greeting   []byte
}

// run returns what the client gets once it is admitted: AuthenticationOk to ReadyForQuery, with a cancel key of
// pgedge's own.
func (p *passthrough) run() ([]byte, *loginError) {
	if lerr := p.sendStartup(); lerr != nil {
		return nil, lerr
	}
	for {
		typ, body, err := p.readBackend()
		if err != nil {
			var fe *codec.FramingError
			if errors.As(err, &fe) {
				return nil, fail(ReasonUpstreamProtocol, err)
			}
			return nil, p.s.ioError(err, ReasonUpstreamLost)
		}
		done, lerr := p.fromBackend(typ, body)
		if lerr != nil || done {
			return p.greeting, lerr
		}
		if len(p.greeting) > maxGreetingBytes {
			return nil, fail(ReasonUpstreamProtocol, errors.New("the server's greeting is too long"))
		}
	}
}

// sendStartup passes the client's packet on, the database translated. A minor version beyond ours is lowered to
// ours, since what it would allow could not be followed.
func (p *passthrough) sendStartup() *loginError {
	p.asked = p.pkt.Minor
	p.minor = min(p.pkt.Minor, codec.NewestMinor)
	out := *p.pkt
	out.Params = slices.Clone(p.pkt.Params)
	out.Minor = p.minor
	if db := p.s.entry.upstream.Database; db != "" {
		out.Set("database", db)
	}
	// If this process dies, Postgres notices within a second and stops what it runs for us, instead of finishing it.
	if _, set := out.Get("client_connection_check_interval"); !set && p.s.control.checksClients() {
		out.Set("client_connection_check_interval", "1000")
	}
	if err := out.Check(); err != nil {
		return fail(ReasonProtocol, err)
	}
	if _, err := p.s.link.conn().Write(out.Encode(nil)); err != nil {
		return p.s.ioError(err, ReasonUpstreamLost)
	}
	return nil
}

func (p *passthrough) fromBackend(typ byte, body []byte) (done bool, _ *loginError) {
	if !p.s.authenticated && typ == 'R' && p.asked > codec.NewestMinor && !p.negotiated {
		p.negotiated = true
		if lerr := p.toClient(codec.AppendNegotiateProtocolVersion(nil, codec.NewestMinor, nil)); lerr != nil {
			return false, lerr
		}
	}
	switch typ {
	case 'R':
		return false, p.authentication(body)
	case 'E':
		// Postgres's own refusal, unchanged, behind whatever it had said before: AuthenticationOk for one that knows
		// the database only afterwards.
		f := codec.ParseErrorResponse(body)
		lerr := p.toClient(codec.AppendMessage(p.greeting, typ, body))
		if lerr == nil {
			lerr = &loginError{reason: ReasonLoginRefused, err: fmt.Errorf("%s %s", f.Code, f.Message), fields: &codec.ErrorFields{}}
		}
		return false, lerr
	case 'N':
		if !p.s.authenticated {
			return false, p.toClient(codec.AppendMessage(nil, typ, body))
		}
		p.greeting = codec.AppendMessage(p.greeting, typ, body)
	case 'v':
		newest, _, err := codec.ParseNegotiateProtocolVersion(body)
		if err != nil || p.negotiated {
			return false, fail(ReasonUpstreamProtocol, errors.Join(err, errors.New("unexpected NegotiateProtocolVersion")))
		}
		p.negotiated = true
		p.minor = min(p.minor, uint16(newest))
		return false, p.toClient(codec.AppendMessage(nil, typ, body))
	case 'S':
		p.greeting = codec.AppendMessage(p.greeting, typ, body)
	case 'K':
		key, err := codec.ParseBackendKeyData(body)
		if err == nil && p.s.key.PID != 0 {
			err = errors.New("a second BackendKeyData")
		}
		if err != nil {
			return false, fail(ReasonUpstreamProtocol, err)
		}
		p.s.key = key
		if err := p.s.eng.cancels.issue(p.s, p.minor); err != nil {
			return false, fail(ReasonTooManySessions, err)
		}
		p.greeting = codec.AppendBackendKeyData(p.greeting, p.s.virtual)
	case 'Z':
		if !p.s.authenticated || len(body) != 1 {
			return false, fail(ReasonUpstreamProtocol, errors.New("unexpected ReadyForQuery"))
		}
		p.greeting = codec.AppendReadyForQuery(p.greeting, body[0])
		p.s.activity.Store(packActivity(body[0], 0))
		return true, nil
	default:
		return false, fail(ReasonUpstreamProtocol, fmt.Errorf("unexpected message type %d during login", typ))
	}
	return false, nil
}

// authentication relays one request and, where it wants one, the client's answer.
func (p *passthrough) authentication(body []byte) *loginError {
	code, rest, err := codec.ParseAuthentication(body)
	if err != nil {
		return fail(ReasonUpstreamProtocol, err)
	}
	if p.s.authenticated {
		return fail(ReasonUpstreamProtocol, errors.New("authentication request after AuthenticationOk"))
	}
	msg := codec.AppendMessage(nil, 'R', body)
	expected := "password"
	switch code {
	case codec.AuthOK:
		p.s.authenticated = true
		p.greeting = append(p.greeting, msg...)
		return nil
	case codec.AuthSASLFinal:
		return p.toClient(msg)
	case codec.AuthCleartextPassword, codec.AuthMD5Password:
	case codec.AuthSASL:
		// Channel binding binds to the TLS of one leg; a relayed exchange cannot satisfy it on the other.
		mechs, err := codec.ParseSASLMechanisms(rest)
		if err != nil {
			return fail(ReasonUpstreamProtocol, err)
		}
		msg = codec.AppendSASLMechanisms(nil, slices.DeleteFunc(mechs, func(m string) bool { return m == "SCRAM-SHA-256-PLUS" }))
		expected = "SASL"
	case codec.AuthSASLContinue:
		expected = "SASL"
	default:
		return fail(ReasonUpstreamAuth, fmt.Errorf("authentication request %d", code))
	}
	if lerr := p.toClient(msg); lerr != nil {
		return lerr
	}
	return p.answer(expected)
}

// answer relays one password or SASL message; anything else, a second startup packet included, ends the login.
func (p *passthrough) answer(expected string) *loginError {
	var header [5]byte
	p.slot.give()
	_, err := io.ReadFull(p.client, header[:])
	if err == nil {
		err = p.slot.take(p.ctx)
	}
	if err != nil {
		return p.s.ioError(err, ReasonClientGone)
	}
	typ, n, err := codec.MessageLength(header, codec.MaxAuthMessageLength)
	if typ == 'X' {
		return fail(ReasonClientGone, nil)
	}
	if typ != 'p' {
		return failText(ReasonProtocol, fmt.Sprintf("expected %s response, got message type %d", expected, typ))
	}
	if err != nil {
		return fail(ReasonProtocol, err)
	}
	msg := append(p.buf[:0], header[:]...)
	msg = append(msg, make([]byte, n)...)
	p.buf = msg
	if _, err := io.ReadFull(p.client, msg[5:]); err != nil {
		return p.s.ioError(err, ReasonClientGone)
	}
	_, err = p.s.link.conn().Write(msg)
	clear(msg) // it may hold a password
	if err != nil {
		return p.s.ioError(err, ReasonUpstreamLost)
	}
	return nil
}

func (p *passthrough) toClient(msg []byte) *loginError {
	if _, err := p.front.Write(msg); err != nil {
		return p.s.ioError(err, ReasonClientGone)
	}
	return nil
}

// readBackend returns one message of the server; body is valid until the next call.
func (p *passthrough) readBackend() (typ byte, body []byte, err error) {
	var header [5]byte
	if _, err := io.ReadFull(p.backend, header[:]); err != nil {
		return 0, nil, err
	}
	typ, n, err := codec.MessageLength(header, maxGreetingBytes)
	if err != nil {
		return 0, nil, fmt.Errorf("cannot read the server's message: %w", err)
	}
	if cap(p.buf) < n {
		p.buf = make([]byte, n)
	}
	body = p.buf[:n]
	_, err = io.ReadFull(p.backend, body)
	return typ, body, err
}
