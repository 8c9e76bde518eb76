package revoke

import (
	"strings"
	"testing"

	"pgregory.net/rapid"
)

func TestSubjectsReadAsTheyAreDocumented(t *testing.T) {
	for _, tc := range []struct {
		verb    Verb
		kind    ScopeKind
		name    string
		subject string
	}{
		{VerbRevoke, ScopePrincipal, "alice@corp.com", "pgedge.revoke.principal.alice@corp.com"},
		{VerbKill, ScopeAll, "", "pgedge.kill.all"},
		{VerbSuspend, ScopeRole, "a b", "pgedge.suspend.role.a%20b"},
		{VerbRevoke, ScopeDatabase, ".x..y.", "pgedge.revoke.database.%2Ex%2E%2Ey%2E"},
		{VerbKill, ScopeSession, "edge-a-1z", "pgedge.kill.session.edge-a-1z"},
		{VerbRevoke, ScopePrincipal, "100%", "pgedge.revoke.principal.100%25"},
		{VerbRevoke, ScopePrincipal, "é*>", "pgedge.revoke.principal.%C3%A9%2A%3E"},
		{VerbRevoke, ScopePrincipal, ".", "pgedge.revoke.principal.%2E"},
	} {
		s, err := NewScope(tc.kind, tc.name)
		if err != nil {
			t.Fatal(err)
		}
		if got := Subject(tc.verb, s); got != tc.subject {
			t.Errorf("subject of %s %s is %q, want %q", tc.verb, s, got, tc.subject)
		}
		v, back, err := ParseSubject(tc.subject)
		if err != nil || v != tc.verb || back != s {
			t.Errorf("%q parsed to %s %q, %v", tc.subject, v, back.Name, err)
		}
	}
}

func TestABrokenEscapeIsTakenLiterally(t *testing.T) {
	for token, name := range map[string]string{
		"principal.100%":      "100%",
		"principal.%zz":       "%zz",
		"principal.%4":        "%4",
		"principal.a%2":       "a%2",
		"principal.%41%":      "A%",
		"principal.%%41":      "%A",
		"principal.a.b.c":     "a.b.c",
		"principal.all":       "all",
		"principal.\xff":      "\xff",
		"principal.%00":       "\x00",
		"principal.x..y":      "x..y",
		"principal.role.name": "role.name",
	} {
		s, err := ParseScope(token)
		if err != nil || s.Name != name || s.Kind != ScopePrincipal {
			t.Errorf("%q parsed to %q, %v; want %q", token, s.Name, err, name)
		}
	}
}

func TestScopesThatNameNothingAreRefused(t *testing.T) {
	for _, token := range []string{"", "principal", "principal.", "all.x", "all.", "user.alice", "Principal.x", "invalid.x", strings.Repeat("x", 9000), "session." + strings.Repeat("x", 9000)} {
		if s, err := ParseScope(token); err == nil {
			t.Errorf("%.40q parsed to %s", token, s)
		}
	}
	for _, tc := range []struct {
		kind ScopeKind
		name string
	}{{ScopePrincipal, ""}, {ScopeAll, "x"}, {ScopeInvalid, "x"}, {ScopeKind(77), "x"}, {ScopeRole, strings.Repeat("x", 513)}} {
		if s, err := NewScope(tc.kind, tc.name); err == nil {
			t.Errorf("%v %.20q made %s", tc.kind, tc.name, s)
		}
	}
	for _, subject := range []string{"", "pgedge.", "pgedge.revoke", "pgedge.revoke.", "pgedge.node.a.b", "revoke.all", "pgedge.grant.all"} {
		if v, s, err := ParseSubject(subject); err == nil {
			t.Errorf("%q parsed to %s %s", subject, v, s)
		}
	}
}

// Postgres cuts names at 63 bytes; a longer spelling on either side is the same name.
func TestNamesAreComparedAfterPostgresCut(t *testing.T) {
	long := strings.Repeat("é", 40)
	for _, kind := range []ScopeKind{ScopePrincipal, ScopeRole, ScopeDatabase} {
		s, err := NewScope(kind, long)
		if err != nil {
			t.Fatal(err)
		}
		id := NewIdentity(long+"x", long+"y", long+"z", "s")
		if !s.Matches(id) || len(s.Name) != 63 {
			t.Errorf("%s of %d bytes does not match", kind, len(s.Name))
		}
	}
	if _, err := ParseScope("role." + strings.Repeat("x", 4000)); err != nil {
		t.Errorf("a revocation is lost because its name is long: %v", err)
	}
	a, _ := NewScope(ScopeSession, strings.Repeat("s", 70)+"1")
	if a.Matches(NewIdentity("", "", "", strings.Repeat("s", 70)+"2")) {
		t.Error("session ids are cut")
	}
}

func TestMatchesComparesTheRightName(t *testing.T) {
	id := NewIdentity("alice", "app", "db", "n-1")
	want := map[Scope]bool{
		{ScopeAll, ""}: true, {ScopePrincipal, "alice"}: true, {ScopeRole, "app"}: true, {ScopeDatabase, "db"}: true, {ScopeSession, "n-1"}: true,
		{ScopePrincipal, "app"}: false, {ScopeRole, "db"}: false, {ScopeDatabase, "alice"}: false, {ScopeSession, "n-2"}: false, {}: false, {ScopePrincipal, "Alice"}: false,
	}
	for s, matches := range want {
		if s.Matches(id) != matches {
			t.Errorf("%s matches: %v", s, !matches)
		}
	}
}

func TestScopesReadWellAndCannotMislead(t *testing.T) {
	for s, want := range map[Scope]string{
		{ScopeAll, ""}: "all", {ScopePrincipal, "alice@corp.com"}: "principal alice@corp.com",
		{ScopeRole, "a b"}: `role "a b"`, {ScopeRole, "a\x1b[2J"}: `role "a\x1b[2J"`, {ScopeRole, "\xff"}: `role "\xff"`, {ScopeRole, `"`}: `role "\""`,
	} {
		if got := s.String(); got != want {
			t.Errorf("%q reads %s, want %s", s.Name, got, want)
		}
	}
}

func drawScope(t *rapid.T) Scope {
	kind := rapid.SampledFrom([]ScopeKind{ScopeAll, ScopePrincipal, ScopeRole, ScopeDatabase, ScopeSession}).Draw(t, "kind")
	if kind == ScopeAll {
		return Scope{Kind: kind}
	}
	name := rapid.OneOf(
		rapid.StringMatching(`[a-z.%@]{1,12}`),
		rapid.Map(rapid.SliceOfN(rapid.Byte(), 1, 80), func(b []byte) string { return string(b) }),
	).Draw(t, "name")
	s, err := NewScope(kind, name)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestEveryScopeSurvivesItsSubject(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s := drawScope(t)
		v := rapid.SampledFrom([]Verb{VerbKill, VerbRevoke, VerbSuspend, VerbReinstate}).Draw(t, "verb")
		subject := Subject(v, s)
		if strings.Contains(subject, "..") || strings.HasSuffix(subject, ".") || strings.ContainsAny(subject, " \t\r\n*>\x00") {
			t.Fatalf("NATS refuses the subject %q", subject)
		}
		gotV, got, err := ParseSubject(subject)
		if err != nil || gotV != v || got != s {
			t.Fatalf("%q became %s %q, %v", subject, gotV, got.Name, err)
		}
	})
}
