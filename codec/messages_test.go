package codec

import (
	"bytes"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5/pgproto3"
)

func TestMessagesAreWrittenAsPgproto3WritesThem(t *testing.T) {
	mechs := []string{"SCRAM-SHA-256-PLUS", "SCRAM-SHA-256"}
	key := CancelKey{42, bytes.Repeat([]byte{7}, 32)}
	for name, c := range map[string]struct {
		got  []byte
		want encodable
	}{
		"AuthenticationSASL": {AppendSASLMechanisms(nil, mechs), &pgproto3.AuthenticationSASL{AuthMechanisms: mechs}},
		"BackendKeyData":     {AppendBackendKeyData(nil, key), &pgproto3.BackendKeyData{ProcessID: 42, SecretKey: key.Secret}},
		"ReadyForQuery":      {AppendReadyForQuery(nil, 'T'), &pgproto3.ReadyForQuery{TxStatus: 'T'}},
		"Query":              {AppendMessage(nil, 'Q', []byte("select 1\x00")), &pgproto3.Query{String: "select 1"}},
		"Sync":               {AppendMessage(nil, 'S', nil), &pgproto3.Sync{}},
		"NegotiateProtocolVersion": {AppendNegotiateProtocolVersion(nil, 2, []string{"_pq_.a"}),
			&pgproto3.NegotiateProtocolVersion{NewestMinorProtocol: 3<<16 | 2, UnrecognizedOptions: []string{"_pq_.a"}}},
	} {
		if want := encode(t, c.want); !bytes.Equal(c.got, want) {
			t.Errorf("%s is %q, pgproto3: %q", name, c.got, want)
		}
	}
}

func TestAppendingKeepsWhatIsThere(t *testing.T) {
	for _, got := range [][]byte{
		AppendMessage([]byte("x"), 'S', nil), AppendSASLMechanisms([]byte("x"), nil), AppendBackendKeyData([]byte("x"), CancelKey{}),
		AppendNegotiateProtocolVersion([]byte("x"), 0, nil), AppendReadyForQuery([]byte("x"), 'I'), AppendErrorResponse([]byte("x"), ErrorFields{}),
	} {
		p := player{t: t, scanner: NewScanner(FromBackend)}
		if err := p.feed(got[1:]); got[0] != 'x' || err != nil || p.seen.Messages != 1 || !p.scanner.AtBoundary() {
			t.Errorf("%q is not one message after what was there: %v", got, err)
		}
	}
}

func TestSASLMechanismListsAreReadStrictly(t *testing.T) {
	for rest, want := range map[string][]string{
		"A\x00B\x00\x00": {"A", "B"},
		"\x00":           nil,
		strings.Repeat("A\x00", MaxSASLMechanisms) + "\x00": strings.Split(strings.Repeat("A", MaxSASLMechanisms), ""),
	} {
		got, err := ParseSASLMechanisms([]byte(rest))
		if diff := cmp.Diff(want, got); err != nil || diff != "" {
			t.Errorf("%q: %v\n%s", rest, err, diff)
		}
	}
	for _, rest := range []string{"", "A", "A\x00", "A\x00\x00B", "\x00\x00", strings.Repeat("A\x00", MaxSASLMechanisms+1) + "\x00"} {
		if got, err := ParseSASLMechanisms([]byte(rest)); err == nil {
			t.Errorf("%q was read as %q", rest, got)
		}
	}
	if got := AppendSASLMechanisms(nil, []string{"", "A\x00B", "\x00C"}); string(got[9:]) != "A\x00\x00" {
		t.Errorf("%q", got)
	}
}

func TestNegotiateProtocolVersionIsUnderstoodInBothForms(t *testing.T) {
	// The first three are what PostgreSQL 15 sends for 3.2, for 3.9999 with two options, and what the documentation describes.
	for body, want := range map[string]struct {
		minor   uint32
		unknown []string
	}{
		"\x00\x03\x00\x00\x00\x00\x00\x00":                     {0, nil},
		"\x00\x03\x00\x00\x00\x00\x00\x02_pq_.a\x00_pq_.c\x00": {0, []string{"_pq_.a", "_pq_.c"}},
		"\x00\x00\x00\x02\x00\x00\x00\x00":                     {2, nil},
		"\x00\x03\x00\x02\x00\x00\x00\x01\x00":                 {2, []string{""}},
	} {
		minor, unknown, err := ParseNegotiateProtocolVersion([]byte(body))
		if diff := cmp.Diff(want.unknown, unknown); err != nil || minor != want.minor || diff != "" {
			t.Errorf("%q: %d, %v\n%s", body, minor, err, diff)
		}
	}
	for _, body := range []string{
		"", "\x00\x03\x00\x00\x00\x00\x00", "\x00\x04\x00\x00\x00\x00\x00\x00", "\x00\x03\x00\x00\x00\x00\x00\x01",
		"\x00\x03\x00\x00\x00\x00\x00\x01a", "\x00\x03\x00\x00\x00\x00\x00\x00a\x00", "\x00\x03\x00\x00\xff\xff\xff\xff",
		string(AppendNegotiateProtocolVersion(nil, 0, make([]string, MaxProtocolOptions+1))[5:]),
	} {
		if minor, unknown, err := ParseNegotiateProtocolVersion([]byte(body)); err == nil {
			t.Errorf("%q was read as %d %q", body, minor, unknown)
		}
	}
}

func TestBackendKeyDataIsReadInItsBoundsAndNotKept(t *testing.T) {
	for size := range 300 {
		body := bytes.Repeat([]byte{1}, size)
		key, err := ParseBackendKeyData(body)
		if ok := size >= 8 && size <= 260; (err == nil) != ok {
			t.Errorf("%d bytes: %v", size, err)
		} else if clear(body); ok && (key.PID != 0x01010101 || len(key.Secret) != size-4 || key.Secret[0] != 1) {
			t.Errorf("%d bytes: %+v", size, key)
		}
	}
}

func TestAuthenticationIsSplitIntoCodeAndRest(t *testing.T) {
	code, rest, err := ParseAuthentication(AppendSASLMechanisms(nil, []string{"A"})[5:])
	if code != AuthSASL || string(rest) != "A\x00\x00" || err != nil {
		t.Errorf("%d %q %v", code, rest, err)
	}
	if _, _, err := ParseAuthentication([]byte{0, 0, 0}); err == nil {
		t.Error("three bytes were read")
	}
}
