package revoke

import (
	"encoding/json"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"pgregory.net/rapid"
)

const aliceRevoke = "pgedge.revoke.principal.alice"

func TestABarePublishIsAFact(t *testing.T) {
	f, err := DecodeFact("pgedge.revoke.principal.alice@corp.com", "", nil)
	want := Fact{Verb: VerbRevoke, Scope: Scope{ScopePrincipal, "alice@corp.com"}}
	if err != nil || f != want {
		t.Fatalf("got %+v, %v", f, err)
	}
	if f, err = DecodeFact(aliceRevoke, "", []byte(" \n")); err != nil || f.Raw {
		t.Fatalf("white space: %+v, %v", f, err)
	}
}

func TestTheIDIsThePayloadsElseTheAttempts(t *testing.T) {
	msgID := aliceRevoke + "|01JABC"
	for payload, want := range map[string]string{
		``: "01JABC", `{}`: "01JABC", `{"id":"HR-1"}`: "HR-1", `{"id":"HR 1"}`: "01JABC", `garbage`: "01JABC",
		`{"id":"` + strings.Repeat("x", 65) + `"}`: "01JABC",
	} {
		if f, err := DecodeFact(aliceRevoke, msgID, []byte(payload)); err != nil || f.ID != want {
			t.Errorf("%s: id %q, %v; want %q", payload, f.ID, err, want)
		}
	}
	if f, _ := DecodeFact(aliceRevoke, "what ever", nil); f.ID != "" {
		t.Errorf("id %q from a message id that is none", f.ID)
	}
	if f, _ := DecodeFact(aliceRevoke, storeMsgID(aliceRevoke, strings.Repeat("x", 32), 7), nil); f.ID != "" {
		t.Errorf("a node's own attempt became the id %q", f.ID)
	}
}

func TestGarbageStillRevokesAndKills(t *testing.T) {
	for _, verb := range []Verb{VerbRevoke, VerbKill} {
		subject := Subject(verb, Scope{ScopePrincipal, "alice"})
		for _, payload := range []string{"garbage", "null", "[]", `{"id":1}`, `{"at":"yesterday"}`, `{"id":"x"}}`, "\xff\xfe", strings.Repeat("é", 5000), `{"reason":"` + strings.Repeat("x", 5000) + `"}`} {
			f, err := DecodeFact(subject, "", []byte(payload))
			if err != nil || !f.Raw || f.Verb != verb || f.Scope.Name != "alice" {
				t.Fatalf("%.20q: %+v, %v", payload, f, err)
			}
			if f.Reason == "" || !utf8.ValidString(f.Reason) || len(f.Reason) > maxRawReasonBytes {
				t.Errorf("%.20q: reason %q", payload, f.Reason)
			}
			if len(f.Payload()) > MaxPayloadBytes {
				t.Errorf("%.20q: payload of %d bytes", payload, len(f.Payload()))
			}
		}
	}
}

func TestGarbageOnSuspendAndReinstateIsRefused(t *testing.T) {
	for subject, payloads := range map[string][]string{
		"pgedge.suspend.principal.alice":   {"", "{}", "garbage", `{"until":"tomorrow"}`, `{"until":5}`, `{"until":"0001-01-01T00:00:00Z"}`, `{"until":"9999-12-31T23:59:59-10:00"}`, `{"until":"2030-01-01T00:00:00Z","x":"` + strings.Repeat("x", 4096) + `"}`},
		"pgedge.reinstate.principal.alice": {"", "{}", "garbage", `{"upto":0}`, `{"upto":-1}`, `{"upto":"5"}`, `{"upto":1.5}`, `{"upto":99999999999999999999}`, `null`, `[{"upto":1}]`},
		"pgedge.revoke.nobody.alice":       {"", "{}"},
		"pgedge.kill":                      {""},
	} {
		for _, payload := range payloads {
			if f, err := DecodeFact(subject, "", []byte(payload)); err == nil {
				t.Errorf("%s %.40q gave %+v", subject, payload, f)
			}
		}
	}
	if f, err := DecodeFact("pgedge.suspend.principal.alice", "", []byte(`{"until":"2030-01-01T01:00:00+01:00"}`)); err != nil || !f.Until.Equal(time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC)) {
		t.Errorf("%+v, %v", f, err)
	}
	if f, err := DecodeFact("pgedge.reinstate.principal.alice", "", []byte(`{"upto":18446744073709551615}`)); err != nil || f.Upto != 1<<64-1 {
		t.Errorf("%+v, %v", f, err)
	}
}

func TestAnotherSpellingOfAScopeIsRemembered(t *testing.T) {
	f, err := DecodeFact("pgedge.revoke.principal.%61lice", "", nil)
	if err != nil || f.Scope.Name != "alice" || f.Subject() != "pgedge.revoke.principal.%61lice" {
		t.Fatalf("%+v, %v", f, err)
	}
}

func drawInstant(t *rapid.T, label string) time.Time {
	return time.Unix(rapid.Int64Range(0, 1<<33).Draw(t, label), rapid.Int64Range(0, 999999999).Draw(t, label+" ns")).UTC()
}

func TestEveryFactSurvivesItsPayload(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		text := rapid.StringN(0, 30, 100)
		f := Fact{
			Verb:  rapid.SampledFrom([]Verb{VerbKill, VerbRevoke, VerbSuspend, VerbReinstate}).Draw(t, "verb"),
			Scope: drawScope(t),
			ID:    rapid.StringMatching(`[A-Za-z0-9_-]{0,64}`).Draw(t, "id"),
			Batch: text.Draw(t, "batch"), Reason: rapid.StringN(0, 200, 400).Draw(t, "reason"), Actor: text.Draw(t, "actor"), Source: text.Draw(t, "source"),
		}
		if rapid.Bool().Draw(t, "has at") {
			f.At = drawInstant(t, "at")
		}
		switch f.Verb {
		case VerbSuspend:
			f.Until = drawInstant(t, "until")
		case VerbReinstate:
			f.Upto = rapid.Uint64Min(1).Draw(t, "upto")
		}
		got, err := DecodeFact(f.Subject(), "", f.Payload())
		if err != nil || got != f {
			t.Fatalf("%+v\nbecame %+v, %v", f, got, err)
		}
	})
}

func TestAPayloadNeverOutgrowsItsLimit(t *testing.T) {
	f := Fact{Verb: VerbSuspend, Scope: Scope{Kind: ScopeAll}, Until: time.Unix(1e9, 0), Reason: strings.Repeat("\u2028", 2000), Actor: strings.Repeat("\x01", 5000), At: time.Date(20000, 1, 1, 0, 0, 0, 0, time.UTC)}
	if p := f.Payload(); len(p) > MaxPayloadBytes || !json.Valid(p) || !strings.Contains(string(p), `"until"`) {
		t.Fatalf("%d bytes", len(p))
	}
}

func FuzzDecodeFact(f *testing.F) {
	f.Add(aliceRevoke, aliceRevoke+"|01J", []byte(`{"v":1,"id":"x","at":"2030-01-01T00:00:00Z"}`))
	f.Add("pgedge.suspend.role.a%2", "", []byte(`{"until":"2030-01-01T00:00:00Z"}`))
	f.Add("pgedge.reinstate.all", "|", []byte(`{"upto":7}`))
	f.Add("pgedge.kill.session.x", "x", []byte("\xff{"))
	f.Fuzz(func(t *testing.T, subject, msgID string, payload []byte) {
		fact, err := DecodeFact(subject, msgID, payload)
		v, s, subjectErr := ParseSubject(subject)
		if subjectErr == nil && (v == VerbRevoke || v == VerbKill) && err != nil {
			t.Fatalf("a %s was refused: %v", v, err)
		}
		if err != nil {
			return
		}
		if fact.Verb != v || fact.Scope != s || fact.Subject() != subject {
			t.Fatalf("%q became %+v", subject, fact)
		}
		if fact.ID != "" && !ValidID(fact.ID) || !utf8.ValidString(fact.Reason) || len(fact.Reason) > MaxPayloadBytes {
			t.Fatalf("%+v", fact)
		}
		p := fact.Payload()
		if len(p) > MaxPayloadBytes {
			t.Fatalf("payload of %d bytes", len(p))
		}
		if _, err := DecodeFact(subject, msgID, p); err != nil {
			t.Fatalf("stored again as %s it is refused: %v", p, err)
		}
	})
}
