package codec

import (
	"bytes"
	"encoding/binary"
	"errors"
	"slices"
	"testing"

	"github.com/jackc/pgx/v5/pgproto3"
)

// cutsOf turns fuzzed bytes into piece sizes, so that the fuzzer chooses the cuts too.
func cutsOf(cuts []byte) []int {
	sizes := make([]int, min(len(cuts), 256))
	for i := range sizes {
		sizes[i] = int(cuts[i])
	}
	return sizes
}

func seedStreams(f *testing.F, dir Direction) {
	for _, s := range allStreams(f) {
		if s.dir == dir {
			f.Add(s.bytes, []byte{1, 2, 3, 5, 8, 13, 0, 200})
		}
	}
	f.Add([]byte("Q\x00\x00\x00\x03"), []byte{1})
	f.Add([]byte("Z\x00\x00\x00\x05I\xff\xff\xff\xff\xff"), []byte{5})
}

func FuzzScannerFromFrontend(f *testing.F) {
	seedStreams(f, FromFrontend)
	f.Fuzz(func(t *testing.T, data, cuts []byte) {
		checkAgainstOracle(t, FromFrontend, data, cutsOf(cuts))
	})
}

func FuzzScannerFromBackend(f *testing.F) {
	seedStreams(f, FromBackend)
	f.Fuzz(func(t *testing.T, data, cuts []byte) {
		checkAgainstOracle(t, FromBackend, data, cutsOf(cuts))
		checkRewrite(t, data, cutsOf(cuts))
	})
}

func FuzzParseStartup(f *testing.F) {
	for _, p := range recordedStartups(f) {
		f.Add(p[4:])
	}
	for _, c := range refusals {
		f.Add([]byte(c.body))
	}
	f.Add(AppendCancelRequest(nil, CancelKey{1, []byte("1234")})[4:])
	f.Add(AppendSSLRequest(nil)[4:])
	f.Fuzz(func(t *testing.T, body []byte) {
		p, err := ParseStartup(body)
		var refused *StartupError
		if err != nil {
			if !errors.As(err, &refused) {
				t.Fatalf("%T is not a *StartupError", err)
			}
			return
		}
		if p.Kind != PacketStartup && p.Kind != PacketCancelRequest {
			return
		}
		packet := p.Encode(nil)
		if !bytes.Equal(packet[4:], body) {
			t.Fatalf("%q was encoded as %q", body, packet[4:])
		}
		if p.Kind == PacketStartup && (p.User() == "" || p.Database() == "" || len(p.User()) > NameLimit || len(p.Database()) > NameLimit) {
			t.Fatalf("user %q, database %q", p.User(), p.Database())
		}
		compareStartup(t, p, body)
	})
}

// compareStartup asks pgproto3 for the same packet, where it reads it at all.
func compareStartup(t *testing.T, p StartupPacket, body []byte) {
	t.Helper()
	if p.Kind == PacketCancelRequest {
		var m pgproto3.CancelRequest
		if err := m.Decode(body); err == nil && !p.Cancel.Equal(CancelKey{m.ProcessID, m.SecretKey}) {
			t.Fatalf("%+v, pgproto3: %+v", p.Cancel, m)
		}
		return
	}
	var m pgproto3.StartupMessage
	if p.Minor != 0 && p.Minor != 2 {
		return
	}
	if err := m.Decode(body); err != nil {
		t.Fatalf("pgproto3 refuses %q: %v", body, err)
	}
	for name, value := range m.Parameters {
		if got, ok := p.Get(name); !ok || got != value {
			t.Fatalf("%q is %q, pgproto3: %q", name, got, value)
		}
	}
}

func FuzzParseErrorResponse(f *testing.F) {
	f.Add(AppendErrorResponse(nil, ErrorFields{Message: "m", Detail: "d", Hint: "h"})[5:])
	f.Add([]byte("SFATAL\x00C57P01\x00Mterminating"))
	f.Add([]byte("M"))
	f.Fuzz(func(t *testing.T, body []byte) {
		got := ParseErrorResponse(body)
		for _, s := range []string{string(got.Severity), got.Code, got.Message, got.Detail, got.Hint} {
			if len(s) > MaxErrorFieldLength || bytes.IndexByte([]byte(s), 0) >= 0 {
				t.Fatalf("field of %d bytes", len(s))
			}
		}
		message := AppendErrorResponse(nil, got)
		if len(message) > 30000 || int(binary.BigEndian.Uint32(message[1:])) != len(message)-1 {
			t.Fatalf("message of %d bytes", len(message))
		}
		var m pgproto3.ErrorResponse
		if err := m.Decode(message[5:]); err != nil || m.Severity == "" || m.SeverityUnlocalized == "" || len(m.Code) != 5 || m.Message == "" {
			t.Fatalf("pgproto3 reads %+v, %v", m, err)
		}
	})
}

func FuzzParseAuthentication(f *testing.F) {
	f.Add([]byte{0, 0, 0, 10, 'x', 0, 0})
	f.Add([]byte{0, 0, 0})
	f.Fuzz(func(t *testing.T, body []byte) {
		code, rest, err := ParseAuthentication(body)
		if (err != nil) != (len(body) < 4) {
			t.Fatal(err)
		}
		if err == nil && !bytes.Equal(append(binary.BigEndian.AppendUint32(nil, code), rest...), body) {
			t.Fatal("the parts are not the body")
		}
	})
}

func FuzzParseSASLMechanisms(f *testing.F) {
	f.Add([]byte("SCRAM-SHA-256-PLUS\x00SCRAM-SHA-256\x00\x00"))
	f.Add([]byte("\x00"))
	f.Add([]byte("SCRAM-SHA-256\x00"))
	f.Fuzz(func(t *testing.T, rest []byte) {
		mechs, err := ParseSASLMechanisms(rest)
		if err == nil && (len(mechs) > MaxSASLMechanisms || !bytes.Equal(AppendSASLMechanisms(nil, mechs)[9:], rest)) {
			t.Fatalf("%q was read as %q", rest, mechs)
		}
	})
}

func FuzzParseNegotiateProtocolVersion(f *testing.F) {
	f.Add(AppendNegotiateProtocolVersion(nil, 2, []string{"_pq_.a", "_pq_.b"})[5:])
	f.Add([]byte{0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff})
	f.Fuzz(func(t *testing.T, body []byte) {
		minor, unknown, err := ParseNegotiateProtocolVersion(body)
		if err != nil {
			return
		}
		var m pgproto3.NegotiateProtocolVersion
		if err := m.Decode(body); err != nil || m.NewestMinorProtocol&0xffff != minor || !slices.Equal(m.UnrecognizedOptions, unknown) {
			t.Fatalf("%d %q, pgproto3: %+v, %v", minor, unknown, m, err)
		}
		if again := AppendNegotiateProtocolVersion(nil, minor, unknown)[9:]; !bytes.Equal(again, body[4:]) {
			t.Fatalf("%q was encoded as %q", body, again)
		}
	})
}

func FuzzParseBackendKeyData(f *testing.F) {
	f.Add(AppendBackendKeyData(nil, CancelKey{1, []byte("1234")})[5:])
	f.Add(make([]byte, 4+MaxSecretLength))
	f.Add(make([]byte, 7))
	f.Fuzz(func(t *testing.T, body []byte) {
		key, err := ParseBackendKeyData(body)
		if (err != nil) != (len(body) < 8 || len(body) > 260) {
			t.Fatal(err)
		}
		if err == nil && !bytes.Equal(AppendBackendKeyData(nil, key)[5:], body) {
			t.Fatal("the key is not the body")
		}
	})
}
