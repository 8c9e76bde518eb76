package revoke

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"
)

const (
	// maxTypedNameBytes bounds a name that a person types. Longer ones are a mistake: no name is compared beyond
	// nameCutBytes except a session id, which pgedge makes itself.
	maxTypedNameBytes = 512
	// nameCutBytes is where Postgres cuts names (NAMEDATALEN-1).
	nameCutBytes = 63
	// maxSubjectBytes bounds every subject that is looked at, well above what a NATS server accepts by default.
	maxSubjectBytes = 8 << 10
)

const subjectPrefix = "pgedge."

// Verb is what a fact does.
type Verb uint8

const (
	VerbInvalid Verb = iota
	VerbKill
	VerbRevoke
	VerbSuspend
	VerbReinstate
)

// ScopeKind is what kind of thing a fact applies to.
type ScopeKind uint8

const (
	ScopeInvalid ScopeKind = iota
	ScopeAll
	ScopePrincipal
	ScopeRole
	ScopeDatabase
	ScopeSession
)

// Scope is what a fact applies to. Name is decoded and in canonical form (CanonicalName), so that scopes compare with ==.
type Scope struct {
	Kind ScopeKind
	Name string
}

var verbNames = [...]string{VerbInvalid: "invalid", VerbKill: "kill", VerbRevoke: "revoke", VerbSuspend: "suspend", VerbReinstate: "reinstate"}

// String is the verb as it stands in subjects.
func (v Verb) String() string {
	if int(v) >= len(verbNames) {
		return verbNames[VerbInvalid]
	}
	return verbNames[v]
}

// ParseVerb is the inverse of String.
func ParseVerb(s string) (Verb, bool) {
	for v := VerbKill; v <= VerbReinstate; v++ {
		if verbNames[v] == s {
			return v, true
		}
	}
	return VerbInvalid, false
}

var scopeKindNames = [...]string{ScopeInvalid: "invalid", ScopeAll: "all", ScopePrincipal: "principal", ScopeRole: "role", ScopeDatabase: "database", ScopeSession: "session"}

// String is the kind as it stands in subjects.
func (k ScopeKind) String() string {
	if int(k) >= len(scopeKindNames) {
		return scopeKindNames[ScopeInvalid]
	}
	return scopeKindNames[k]
}

// ParseScopeKind is the inverse of String.
func ParseScopeKind(s string) (ScopeKind, bool) {
	for k := ScopeAll; k <= ScopeSession; k++ {
		if scopeKindNames[k] == s {
			return k, true
		}
	}
	return ScopeInvalid, false
}

// CanonicalName is the form in which names of a kind are compared, on the side of scopes and of sessions alike.
// Postgres cuts the names in a startup packet at 63 bytes, in the middle of a character if need be; a name that
// was not cut the same way would escape its own revocation.
func CanonicalName(kind ScopeKind, name string) string {
	switch kind {
	case ScopePrincipal, ScopeRole, ScopeDatabase:
		if len(name) > nameCutBytes {
			return name[:nameCutBytes]
		}
		return name
	case ScopeAll:
		return ""
	case ScopeInvalid, ScopeSession:
	}
	return name
}

// NewScope makes a scope from a plain name as a person types it, without any escapes. The name is empty for
// ScopeAll and only there; it is at most 512 bytes.
func NewScope(kind ScopeKind, name string) (Scope, error) {
	switch kind {
	case ScopeAll:
		if name != "" {
			return Scope{}, fmt.Errorf("cannot make scope: \"all\" takes no name, got %q", name)
		}
		return Scope{Kind: ScopeAll}, nil
	case ScopePrincipal, ScopeRole, ScopeDatabase, ScopeSession:
		if name == "" {
			return Scope{}, fmt.Errorf("cannot make scope: empty %s name", kind)
		}
		if len(name) > maxTypedNameBytes {
			return Scope{}, fmt.Errorf("cannot make scope: %s name of %d bytes is longer than %d", kind, len(name), maxTypedNameBytes)
		}
		return Scope{Kind: kind, Name: CanonicalName(kind, name)}, nil
	case ScopeInvalid:
	}
	return Scope{}, errors.New("cannot make scope: unknown kind")
}

// ParseScope decodes a scope as it stands in subjects: the kind is the first token, everything after it is the
// name. It is as lenient as it can be, because a revocation whose subject is refused is a revocation lost: a
// broken escape is taken literally, and a name of any length that Postgres would cut is cut.
func ParseScope(token string) (Scope, error) {
	kindName, encoded, named := strings.Cut(token, ".")
	kind, ok := ParseScopeKind(kindName)
	if !ok {
		return Scope{}, fmt.Errorf("cannot parse scope: unknown kind %.64q", kindName)
	}
	if len(token) > maxSubjectBytes {
		return Scope{}, fmt.Errorf("cannot parse scope: %d bytes is longer than %d", len(token), maxSubjectBytes)
	}
	if kind == ScopeAll {
		if named {
			return Scope{}, errors.New("cannot parse scope: \"all\" takes no name")
		}
		return Scope{Kind: ScopeAll}, nil
	}
	if encoded == "" {
		return Scope{}, fmt.Errorf("cannot parse scope: empty %s name", kind)
	}
	return Scope{Kind: kind, Name: CanonicalName(kind, decodeName(encoded))}, nil
}

// Token is the scope as it stands in subjects. ParseScope of it gives the same scope again.
func (s Scope) Token() string {
	if s.Kind == ScopeAll {
		return s.Kind.String()
	}
	return s.Kind.String() + "." + encodeName(s.Name)
}

// String is for people: the kind and the plain name, quoted when it could be misread.
func (s Scope) String() string {
	if s.Kind == ScopeAll || s.Kind == ScopeInvalid {
		return s.Kind.String()
	}
	if plainName(s.Name) {
		return s.Kind.String() + " " + s.Name
	}
	return s.Kind.String() + " " + strconv.Quote(s.Name)
}

func plainName(name string) bool {
	if name == "" || !utf8.ValidString(name) {
		return false
	}
	for _, r := range name {
		if !unicode.IsGraphic(r) || unicode.IsSpace(r) || r == '"' {
			return false
		}
	}
	return true
}

// Matches says whether the scope covers a session.
func (s Scope) Matches(id Identity) bool {
	switch s.Kind {
	case ScopeAll:
		return true
	case ScopePrincipal:
		return s.Name == id.Principal
	case ScopeRole:
		return s.Name == id.Role
	case ScopeDatabase:
		return s.Name == id.Database
	case ScopeSession:
		return s.Name == id.Session
	case ScopeInvalid:
	}
	return false
}

// Subject is where a fact is published.
func Subject(v Verb, s Scope) string {
	return subjectPrefix + v.String() + "." + s.Token()
}

// ParseSubject is the inverse of Subject. An error means that the subject names no fact.
func ParseSubject(subject string) (Verb, Scope, error) {
	rest, ok := strings.CutPrefix(subject, subjectPrefix)
	if !ok {
		return VerbInvalid, Scope{}, fmt.Errorf("cannot parse subject %.128q: no %q in front", subject, subjectPrefix)
	}
	verbName, token, ok := strings.Cut(rest, ".")
	v, known := ParseVerb(verbName)
	if !ok || !known {
		return VerbInvalid, Scope{}, fmt.Errorf("cannot parse subject %.128q: no verb and scope", subject)
	}
	s, err := ParseScope(token)
	if err != nil {
		return VerbInvalid, Scope{}, fmt.Errorf("cannot parse subject %.128q: %w", subject, err)
	}
	return v, s, nil
}

const upperHex = "0123456789ABCDEF"

// encodeName escapes every byte that could end a NATS token, be a wildcard or be unreadable. A dot stays only
// where it is single and inside, since NATS has no empty tokens.
func encodeName(name string) string {
	var b strings.Builder
	b.Grow(len(name))
	for i := 0; i < len(name); i++ {
		c := name[i]
		switch {
		case isNameByte(c), c == '.' && i > 0 && i < len(name)-1 && name[i-1] != '.' && name[i+1] != '.':
			b.WriteByte(c)
		default:
			b.WriteByte('%')
			b.WriteByte(upperHex[c>>4])
			b.WriteByte(upperHex[c&15])
		}
	}
	return b.String()
}

func isNameByte(c byte) bool {
	return 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' ||
		c == '_' || c == '@' || c == '+' || c == '-'
}

func decodeName(encoded string) string {
	if !strings.Contains(encoded, "%") {
		return encoded
	}
	b := make([]byte, 0, len(encoded))
	for i := 0; i < len(encoded); i++ {
		if encoded[i] == '%' && i+2 < len(encoded) {
			hi, lo := unhex(encoded[i+1]), unhex(encoded[i+2])
			if hi >= 0 && lo >= 0 {
				b = append(b, byte(hi<<4|lo))
				i += 2
				continue
			}
		}
		b = append(b, encoded[i])
	}
	return string(b)
}

func unhex(c byte) int {
	switch {
	case '0' <= c && c <= '9':
		return int(c - '0')
	case 'a' <= c && c <= 'f':
		return int(c-'a') + 10
	case 'A' <= c && c <= 'F':
		return int(c-'A') + 10
	}
	return -1
}
