package codec

import (
	"encoding/binary"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5/pgproto3"
)

func TestErrorResponseHasTheMandatoryFieldsInOrder(t *testing.T) {
	got := string(AppendErrorResponse(nil, ErrorFields{Severity: SeverityFatal, Code: "28000", Message: "m"}))
	want := "E\x00\x00\x00\x20SFATAL\x00VFATAL\x00C28000\x00Mm\x00\x00"
	if diff := cmp.Diff(want[5:], got[5:]); diff != "" || int(binary.BigEndian.Uint32([]byte(got[1:5]))) != len(got)-1 {
		t.Errorf("%q\n%s", got, diff)
	}
	got = string(AppendErrorResponse(nil, ErrorFields{}))
	if got[5:] != "SFATAL\x00VFATAL\x00CXX000\x00Munknown error\x00\x00" {
		t.Errorf("without anything: %q", got)
	}
}

func TestErrorResponseIsReadAlikeByPgproto3(t *testing.T) {
	f := ErrorFields{SeverityError, "57014", "canceling", "detail", "hint"}
	var m pgproto3.ErrorResponse
	if err := m.Decode(AppendErrorResponse(nil, f)[5:]); err != nil {
		t.Fatal(err)
	}
	got := ErrorFields{Severity(m.SeverityUnlocalized), m.Code, m.Message, m.Detail, m.Hint}
	if got != f || m.Severity != "ERROR" {
		t.Errorf("%+v", m)
	}
	m = pgproto3.ErrorResponse{
		Severity: "FEHLER", SeverityUnlocalized: "ERROR", Code: "57014", Message: "canceling", Detail: "detail", Hint: "hint",
		File: "postgres.c", Line: 12, Routine: "r", UnknownFields: map[byte]string{'y': "?"},
	}
	if got := ParseErrorResponse(encode(t, &m)[5:]); got != f {
		t.Errorf("%+v", got)
	}
}

func TestErrorTextsCannotBringInFieldsAndAreCapped(t *testing.T) {
	long := strings.Repeat("é", MaxErrorFieldLength)
	message := AppendErrorResponse(nil, ErrorFields{Severity: "ERROR\x00V", Code: "1234567", Message: "m\x00Hx", Detail: long, Hint: "x" + long})
	got := ParseErrorResponse(message[5:])
	if got.Severity != "ERROR" || got.Code != "XX000" || got.Message != "m" {
		t.Errorf("%+v", got)
	}
	for _, s := range []string{got.Detail, got.Hint} {
		if len(s) > MaxErrorFieldLength || len(s) < MaxErrorFieldLength-1 || !utf8.ValidString(s) {
			t.Errorf("a text of %d bytes", len(s))
		}
	}
	worst := strings.Repeat("\x80", 3*MaxErrorFieldLength)
	if n := len(AppendErrorResponse(nil, ErrorFields{Message: worst, Detail: worst, Hint: worst})); n > 30000 {
		t.Errorf("libpq refuses an error of %d bytes during login", n)
	}
}

func TestParseErrorResponseTakesWhatItCan(t *testing.T) {
	for body, want := range map[string]ErrorFields{
		"":                               {},
		"\x00":                           {},
		"S":                              {},
		"Mtext":                          {Message: "text"},
		"Mtext\x00":                      {Message: "text"},
		"SFEHLER\x00Mm\x00\x00":          {Severity: "FEHLER", Message: "m"},
		"VERROR\x00SFEHLER\x00\x00":      {Severity: "ERROR"},
		"?x\x00C57P01\x00\x00Mhidden":    {Code: "57P01"},
		"D\x00Hh\x00":                    {Hint: "h"},
		"\x00Mafter the end of the list": {},
	} {
		if got := ParseErrorResponse([]byte(body)); got != want {
			t.Errorf("%q: %+v", body, got)
		}
	}
}

func TestErrorInTheFormOfProtocol2(t *testing.T) {
	refused := UnsupportedProtocol(2, 0)
	got := string(AppendErrorResponseV2(nil, ErrorFields{Severity: SeverityFatal, Code: refused.Code, Message: refused.Message}))
	if got != "EFATAL:  unsupported frontend protocol 2.0: server supports 3.0 to 3.2\n\x00" {
		t.Errorf("%q", got)
	}
}
