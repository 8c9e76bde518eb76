package revoke

import (
	"encoding/json"
	"strings"
	"time"
)

// LoginMark is what a sweep leaves in the comment of a role that it has set NOLOGIN, so that any node, also after a
// restart, knows that the role could log in before and which fact has taken that away. It stands at the end of the
// comment and leaves the rest of it alone.
type LoginMark struct {
	Verb       string    `json:"verb"` // revoke|suspend
	Scope      string    `json:"scope"`
	Revocation string    `json:"id,omitempty"`
	Seq        uint64    `json:"seq"`
	Until      time.Time `json:"until,omitzero"` // of a suspend
}

// NewLoginMark is the mark of a settled fact; nil for one that blocks nobody.
func NewLoginMark(f Fact) *LoginMark {
	if f.Seq == 0 || f.Verb != VerbRevoke && f.Verb != VerbSuspend {
		return nil
	}
	return &LoginMark{Verb: f.Verb.String(), Scope: f.Scope.Token(), Revocation: f.ID, Seq: f.Seq, Until: f.Until}
}

const (
	// LoginMarkBegin begins every mark, for a search in the server.
	LoginMarkBegin = "[pgedge set NOLOGIN: "
	loginMarkEnd   = "]"
)

// AppendTo puts the mark behind a comment that has none.
func (m LoginMark) AppendTo(comment string) string {
	b, err := json.Marshal(m)
	if err != nil {
		return comment // a struct of strings and a valid time always encodes
	}
	if comment != "" {
		comment += " "
	}
	return comment + LoginMarkBegin + string(b) + loginMarkEnd
}

// SplitLoginMark finds the mark in a comment and returns the comment as it was before.
func SplitLoginMark(comment string) (rest string, m LoginMark, ok bool) {
	i := strings.LastIndex(comment, LoginMarkBegin)
	if i < 0 {
		return comment, m, false
	}
	body := comment[i+len(LoginMarkBegin):]
	dec := json.NewDecoder(strings.NewReader(body))
	if dec.Decode(&m) != nil || !strings.HasPrefix(body[dec.InputOffset():], loginMarkEnd) {
		return comment, LoginMark{}, false
	}
	after := body[int(dec.InputOffset())+len(loginMarkEnd):]
	return strings.TrimSuffix(comment[:i], " ") + after, m, true
}

// MayLoginAgain says whether a role with this mark gets LOGIN back: nothing blocks it any more, and that is because a
// reinstate has undone the mark's fact or because its suspend has ended. A table that merely knows of no block is not
// enough: a journal that was lost or restored knows of none either.
func (t *Table) MayLoginAgain(role string, m LoginMark, now time.Time) bool {
	id := NewIdentity(role, role, "", "")
	scopes := [...]Scope{{ScopePrincipal, id.Principal}, {ScopeRole, id.Role}}
	undone := m.Verb == VerbSuspend.String() && !m.Until.IsZero() && !now.Before(m.Until)
	for _, s := range scopes {
		if t.Blocked(s, now) {
			return false
		}
		if f, ok := t.fact(VerbReinstate, s); ok && s.Token() == m.Scope && f.Upto >= m.Seq {
			undone = true
		}
	}
	return undone
}

// Blocked says whether a revoke or suspend of this very scope is in force, provisional or not.
func (t *Table) Blocked(s Scope, now time.Time) bool {
	t.mu.RLock()
	defer t.mu.RUnlock()
	if r := t.state.rows[s]; r != nil && r.block(now) != nil {
		return true
	}
	for _, f := range t.carried[s] {
		if f.Verb != VerbSuspend || now.Before(f.Until) {
			return true
		}
	}
	for _, h := range t.provisional[s] {
		if h.fact.Verb != VerbKill && (h.until.IsZero() || now.Before(h.until)) {
			return true
		}
	}
	return false
}
