package codec

import (
	"bytes"
	"encoding/binary"
	"errors"
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5/pgproto3"
)

// recordedStartups are the startup packets of psql and pgbench.
func recordedStartups(t testing.TB) [][]byte {
	t.Helper()
	var packets [][]byte
	for _, client := range []string{"psql", "pgbench"} {
		data, err := os.ReadFile(filepath.Join("testdata", client+".startup.bin"))
		if err != nil {
			t.Fatal(err)
		}
		packets = append(packets, data)
	}
	return packets
}

const (
	v30        = "\x00\x03\x00\x00"
	cancelCode = "\x04\xd2\x16\x2e"
	badLayout  = "invalid startup packet layout: expected terminator as last byte"
	noUser     = "no PostgreSQL user name specified in startup packet"
)

// refusals are packets with the answer of PostgreSQL, which is 18's where 15 and 18 differ.
var refusals = []struct{ name, body, code, message string }{
	{"version only", v30, "08P01", badLayout},
	{"no terminator", v30 + "user\x00bob\x00", "08P01", badLayout},
	{"two terminators", v30 + "user\x00bob\x00\x00\x00", "08P01", badLayout},
	{"key without value", v30 + "user\x00bob\x00k\x00", "08P01", badLayout},
	{"key without value, terminated", v30 + "user\x00bob\x00k\x00\x00", "08P01", badLayout},
	{"value without terminator", v30 + "user\x00bob\x00k\x00v", "08P01", badLayout},
	{"empty key ends the list", v30 + "\x00user\x00bob\x00\x00", "08P01", badLayout},
	{"last byte is no terminator", v30 + "user\x00bob\x00x", "08P01", badLayout},
	{"no parameters", v30 + "\x00", "28000", noUser},
	{"no user", v30 + "database\x00d\x00\x00", "28000", noUser},
	{"empty user", v30 + "user\x00\x00\x00", "28000", noUser},
	{"last user is empty", v30 + "user\x00bob\x00user\x00\x00\x00", "28000", noUser},
	{"layout before user", v30 + "\x00\x00", "08P01", badLayout},
	{"protocol 2", "\x00\x02\x00\x00user\x00bob\x00\x00", "0A000", "unsupported frontend protocol 2.0: server supports 3.0 to 3.2"},
	{"protocol 4", "\x00\x04\x00\x01", "0A000", "unsupported frontend protocol 4.1: server supports 3.0 to 3.2"},
	{"protocol 0", "\x00\x00\x00\x00", "0A000", "unsupported frontend protocol 0.0: server supports 3.0 to 3.2"},
	{"unknown request", "\x04\xd2\x16\x31", "0A000", "unsupported frontend protocol 1234.5681: server supports 3.0 to 3.2"},
	{"cancel without pid", cancelCode, "", "invalid length of cancel request packet"},
	{"cancel with half a pid", cancelCode + "\x00\x00", "", "invalid length of cancel request packet"},
	{"cancel without secret", cancelCode + "\x00\x00\x00\x01", "", "invalid length of cancel key in cancel request packet"},
	{"cancel with a long secret", cancelCode + "\x00\x00\x00\x01" + strings.Repeat("x", 257), "", "invalid length of cancel key in cancel request packet"},
	{"nothing", "", "", "invalid length of startup packet"},
	{"three bytes", "\x00\x03\x00", "", "invalid length of startup packet"},
	{"oversize", v30 + strings.Repeat("x", MaxStartupPacketLength-3), "", "invalid length of startup packet"},
}

func TestBadStartupPacketsGetTheAnswerOfPostgres(t *testing.T) {
	for _, c := range refusals {
		_, err := ParseStartup([]byte(c.body))
		var refused *StartupError
		if !errors.As(err, &refused) {
			t.Errorf("%s: %v", c.name, err)
			continue
		}
		if refused.Code != c.code || refused.Message != c.message || refused.Silent() != (c.code == "") {
			t.Errorf("%s: %q %q", c.name, refused.Code, refused.Message)
		}
	}
}

func TestStartupLengthIsCheckedAtItsBounds(t *testing.T) {
	for length, body := range map[uint32]int{
		0: 0, 3: 0, 4: 0, 7: 0, 8: 4, 9: 5, 10004: 10000, 10005: 0, 1 << 31: 0, math.MaxUint32: 0,
		0x16030100: 0, // a TLS ClientHello
	} {
		got, err := StartupLength([4]byte(binary.BigEndian.AppendUint32(nil, length)))
		if got != body || (err == nil) != (body > 0) || err != nil && !errors.Is(err, ErrStartupLength) {
			t.Errorf("%d: %d, %v", length, got, err)
		}
	}
	var refused *StartupError
	if !errors.As(ErrStartupLength, &refused) || !refused.Silent() {
		t.Error("ErrStartupLength is not silent")
	}
}

func TestAFullSizeStartupPacketIsRead(t *testing.T) {
	p := StartupPacket{Major: 3, Params: []Param{{"user", "bob"}, {"options", ""}}}
	p.Set("options", strings.Repeat("x", MaxStartupPacketLength-len(p.Encode(nil))+4))
	packet := p.Encode(nil)
	if err := p.Check(); err != nil || len(packet) != MaxStartupPacketLength+4 {
		t.Fatalf("%d bytes, %v", len(packet), err)
	}
	if _, err := ParseStartup(packet[4:]); err != nil {
		t.Fatal(err)
	}
	p.Set("user", "bobo")
	if err := p.Check(); !errors.Is(err, ErrStartupTooLong) {
		t.Fatal(err)
	}
}

func TestRecordedStartupPacketsAreReadAndWrittenUnchanged(t *testing.T) {
	for _, packet := range recordedStartups(t) {
		p, err := ParseStartup(packet[4:])
		if err != nil {
			t.Fatal(err)
		}
		if got := p.Encode(nil); !bytes.Equal(got, packet) {
			t.Errorf("%q became %q", packet, got)
		}
		compareStartup(t, p, packet[4:])
	}
}

func TestEncryptionRequestsAreRecognisedWhateverFollowsTheCode(t *testing.T) {
	for _, extra := range []string{"", "\x00\x00\x00\x07"} {
		p, err := ParseStartup([]byte("\x04\xd2\x16\x2f" + extra))
		if p.Kind != PacketSSLRequest || err != nil {
			t.Errorf("SSLRequest: %+v, %v", p, err)
		}
		p, err = ParseStartup([]byte("\x04\xd2\x16\x30" + extra))
		if p.Kind != PacketGSSENCRequest || err != nil {
			t.Errorf("GSSENCRequest: %+v, %v", p, err)
		}
	}
	if got, want := AppendSSLRequest(nil), encode(t, &pgproto3.SSLRequest{}); !bytes.Equal(got, want) {
		t.Errorf("SSLRequest is %q, pgproto3: %q", got, want)
	}
	if got := (&StartupPacket{Kind: PacketGSSENCRequest, Major: 1234, Minor: 5680}).Encode(nil); !bytes.Equal(got, encode(t, &pgproto3.GSSEncRequest{})) {
		t.Errorf("GSSENCRequest is %q", got)
	}
}

func TestASecondSSLRequestIsAnUnsupportedProtocol(t *testing.T) {
	p, err := ParseStartup(AppendSSLRequest(nil)[4:])
	if err != nil {
		t.Fatal(err)
	}
	refused := UnsupportedProtocol(p.Major, p.Minor)
	if refused.Code != "0A000" || refused.Message != "unsupported frontend protocol 1234.5679: server supports 3.0 to 3.2" {
		t.Error(refused.Code, refused.Message)
	}
}

func TestNamesAreCutAsPostgresCutsThem(t *testing.T) {
	a63 := strings.Repeat("a", 63)
	for _, c := range []struct{ name, want string }{
		{"bob", "bob"}, {"", ""}, {a63, a63}, {a63 + "b", a63}, {strings.Repeat("a", 62) + "é", strings.Repeat("a", 62) + "\xc3"},
		{strings.Repeat("x", 9000), strings.Repeat("x", 63)},
	} {
		if got := CutName(c.name); got != c.want {
			t.Errorf("%q was cut to %q", c.name, got)
		}
		p := StartupPacket{Params: []Param{{"user", c.name}, {"database", c.name}}}
		if p.User() != c.want || p.Database() != c.want {
			t.Errorf("%q: user %q, database %q", c.name, p.User(), p.Database())
		}
	}
}

func TestDatabaseDefaultsToTheUser(t *testing.T) {
	long := strings.Repeat("u", 70)
	for _, params := range [][]Param{
		{{"user", long}},
		{{"user", long}, {"database", ""}},
		{{"database", "d"}, {"user", "x"}, {"database", ""}, {"user", long}},
	} {
		p := StartupPacket{Params: params}
		if p.User() != long[:63] || p.Database() != long[:63] {
			t.Errorf("%v: user %q, database %q", params, p.User(), p.Database())
		}
	}
}

func TestOfDuplicateParametersTheLastCounts(t *testing.T) {
	p, err := ParseStartup([]byte(v30 + "user\x00alice\x00database\x00d\x00user\x00bob\x00\x00"))
	if err != nil || p.User() != "bob" {
		t.Fatalf("%q, %v", p.User(), err)
	}
	p.Set("user", "carol")
	want := []Param{{"user", "carol"}, {"database", "d"}}
	if diff := cmp.Diff(want, p.Params); diff != "" {
		t.Errorf("after Set: %s", diff)
	}
	p.Delete("user")
	if _, ok := p.Get("user"); ok || len(p.Params) != 1 {
		t.Errorf("after Delete: %v", p.Params)
	}
	p.Delete("user")
	p.Set("options", "")
	if v, ok := p.Get("options"); v != "" || !ok {
		t.Error("a parameter may be empty")
	}
}

func TestAParameterCannotBringInAnother(t *testing.T) {
	p := StartupPacket{Major: 3, Params: []Param{
		{"user", "bob\x00user\x00alice"}, {"", "x"}, {"\x00k", "x"}, {"a\x00b", "c"},
	}}
	got, err := ParseStartup(p.Encode(nil)[4:])
	want := []Param{{"user", "bob"}, {"a", "c"}}
	if diff := cmp.Diff(want, got.Params); err != nil || diff != "" {
		t.Errorf("%v\n%s", err, diff)
	}
	if p.User() != "bob" {
		t.Errorf("the user is %q, but %q is sent", p.User(), got.User())
	}
}

func TestProtocolOptionsAreListedInOrder(t *testing.T) {
	p, err := ParseStartup([]byte("\x00\x03\x27\x0f_pq_.b\x001\x00user\x00u\x00_pq_.a\x002\x00\x00"))
	if err != nil || p.Major != 3 || p.Minor != 9999 {
		t.Fatalf("%+v, %v", p, err)
	}
	if diff := cmp.Diff([]string{"_pq_.b", "_pq_.a"}, p.ProtocolOptions()); diff != "" {
		t.Error(diff)
	}
}

func TestOnlyProtocols1And2GetPlainErrors(t *testing.T) {
	for _, major := range []uint16{0, 1, 2, 3, 4, 1234} {
		p, _ := ParseStartup(binary.BigEndian.AppendUint32(nil, uint32(major)<<16))
		if p.PlainErrors() != (major == 1 || major == 2) {
			t.Errorf("major version %d", major)
		}
	}
}

func TestParseStartupDoesNotKeepItsInput(t *testing.T) {
	for _, packet := range [][]byte{
		recordedStartups(t)[0], AppendCancelRequest(nil, CancelKey{7, []byte("secret")}),
	} {
		body := bytes.Clone(packet[4:])
		p, err := ParseStartup(body)
		clear(body)
		if err != nil || !bytes.Equal(p.Encode(nil), packet) {
			t.Errorf("%+v, %v", p, err)
		}
	}
}
