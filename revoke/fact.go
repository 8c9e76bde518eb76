package revoke

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"
	"unicode/utf8"
)

const (
	// MaxPayloadBytes bounds the payload of a fact.
	MaxPayloadBytes = 4 << 10
	// maxRawReasonBytes bounds what is kept of a payload that could not be parsed. Escaped as JSON it still fits
	// into MaxPayloadBytes.
	maxRawReasonBytes = 512
	maxFieldBytes     = 128 // batch, actor, source
	maxIDBytes        = 64
)

// Fact is one message of the journal or of the fast path.
type Fact struct {
	Verb  Verb
	Scope Scope
	// ID is the revocation id: the payload's id, else the ULID of the Nats-Msg-Id, else "seq-<n>" once Seq is known, else "".
	ID     string
	Batch  string
	Reason string
	Actor  string
	Source string
	At     time.Time // as claimed by the publisher; zero when absent
	Until  time.Time // suspend only
	Upto   uint64    // reinstate only
	Seq    uint64    // journal position; 0 while provisional
	Epoch  uint64
	// Stored is when the journal took the message, by the server's clock. It tells messages of two streams apart that
	// are the same otherwise; order never depends on it.
	Stored time.Time
	// Raw is set when the payload could not be parsed and was kept as the reason.
	Raw bool
	// Alias is the subject the fact was published on when that is not Subject(Verb, Scope): names can be escaped
	// in more than one way, and the journal keeps one message for each.
	Alias string
}

// sameMessage says that two facts are one message of the journal, read twice or out of a copy of the stream.
func (f Fact) sameMessage(g Fact) bool {
	return f.Seq == g.Seq && f.Subject() == g.Subject() && f.Stored.Equal(g.Stored) && f.Until.Equal(g.Until) &&
		min(f.Upto, f.Seq) == min(g.Upto, g.Seq) && f.Reason == g.Reason
}

// factPayload is the payload of a fact as it travels.
type factPayload struct {
	V      int        `json:"v,omitempty"`
	ID     string     `json:"id,omitempty"`
	Batch  string     `json:"batch,omitempty"`
	Reason string     `json:"reason,omitempty"`
	Actor  string     `json:"actor,omitempty"`
	Source string     `json:"source,omitempty"`
	At     *time.Time `json:"at,omitempty"`
	Until  *time.Time `json:"until,omitempty"`
	Upto   uint64     `json:"upto,omitempty"`
}

// Subject is where the fact was or is published.
func (f Fact) Subject() string {
	if f.Alias != "" {
		return f.Alias
	}
	return Subject(f.Verb, f.Scope)
}

// DecodeFact reads one message of the journal or of the fast path; it keeps none of its arguments' memory. An
// error means that the message is refused: its subject names no fact, or it is a suspend or reinstate that does
// not say what these need to say. A revoke or kill is never refused for its payload: in the journal it has already
// replaced the message before it, so that refusing it would erase a revocation.
func DecodeFact(subject, msgID string, payload []byte) (Fact, error) {
	v, s, err := ParseSubject(subject)
	if err != nil {
		return Fact{}, err
	}
	f := Fact{Verb: v, Scope: s}
	if subject != Subject(v, s) {
		f.Alias = strings.Clone(subject)
	}
	err = f.decodePayload(payload)
	if err == nil {
		err = f.checkPayload()
	}
	if err != nil {
		if v != VerbRevoke && v != VerbKill {
			return Fact{}, fmt.Errorf("cannot decode %s of %s: %w", v, s, err)
		}
		f = Fact{Verb: v, Scope: s, Alias: f.Alias, Raw: true, Reason: cutText(rawText(payload), maxRawReasonBytes)}
	}
	if f.ID == "" {
		if a := AttemptID(msgID); ValidID(a) && !strings.HasPrefix(a, storeAttempt) {
			f.ID = a
		}
	}
	return f, nil
}

// decodePayload fills the fields that the payload carries. An empty payload carries none.
func (f *Fact) decodePayload(payload []byte) error {
	if len(payload) > MaxPayloadBytes {
		return fmt.Errorf("payload of %d bytes is longer than %d", len(payload), MaxPayloadBytes)
	}
	payload = bytes.TrimSpace(payload)
	if len(payload) == 0 {
		return nil
	}
	if payload[0] != '{' {
		return errors.New("payload is not a JSON object")
	}
	var p factPayload
	if err := json.Unmarshal(payload, &p); err != nil {
		return fmt.Errorf("payload: %w", err)
	}
	if ValidID(p.ID) {
		f.ID = p.ID
	}
	f.Batch = cutText(p.Batch, maxFieldBytes)
	f.Actor = cutText(p.Actor, maxFieldBytes)
	f.Source = cutText(p.Source, maxFieldBytes)
	f.Reason = p.Reason
	f.At = utc(p.At)
	switch f.Verb {
	case VerbSuspend:
		f.Until = utc(p.Until)
	case VerbReinstate:
		f.Upto = p.Upto
	case VerbKill, VerbRevoke, VerbInvalid:
	}
	return nil
}

func (f *Fact) checkPayload() error {
	switch f.Verb {
	case VerbSuspend:
		if f.Until.IsZero() {
			return errors.New("no until")
		}
	case VerbReinstate:
		if f.Upto == 0 {
			return errors.New("no upto")
		}
	case VerbKill, VerbRevoke, VerbInvalid:
	}
	return nil
}

// utc drops the zone, so that equal instants compare and print equally, and what JSON cannot carry.
func utc(t *time.Time) time.Time {
	if t == nil {
		return time.Time{}
	}
	u := t.UTC()
	if u.Year() < 0 || u.Year() > 9999 {
		return time.Time{}
	}
	return u
}

// Payload is the fact as JSON, at most MaxPayloadBytes; a reason that does not fit is cut. DecodeFact of it gives
// the same fact.
func (f Fact) Payload() []byte {
	p := factPayload{V: 1, ID: f.ID, Batch: f.Batch, Reason: f.Reason, Actor: f.Actor, Source: f.Source, Upto: f.Upto}
	if !f.At.IsZero() {
		p.At = &f.At
	}
	if !f.Until.IsZero() {
		p.Until = &f.Until
	}
	for {
		var b bytes.Buffer
		enc := json.NewEncoder(&b)
		enc.SetEscapeHTML(false)
		if err := enc.Encode(p); err != nil {
			// Only an instant beyond the years that JSON knows fails, and only the caller can have made one.
			if p.At == nil {
				p.Until = nil
			}
			p.At = nil
			continue
		}
		out := bytes.TrimSuffix(b.Bytes(), []byte("\n"))
		if len(out) <= MaxPayloadBytes {
			return out
		}
		switch {
		case p.Reason != "":
			p.Reason = cutText(p.Reason, len(p.Reason)/2)
		default:
			p.Batch, p.Actor, p.Source = "", "", ""
		}
	}
}

// AttemptID is the part of a Nats-Msg-Id "<subject>|<ULID of this attempt>" behind the last bar; without a bar it
// is the whole of it.
func AttemptID(msgID string) string {
	return msgID[strings.LastIndexByte(msgID, '|')+1:]
}

// ValidID says whether id can be a revocation id: one token of a subject, 1 to 64 of [A-Za-z0-9_-].
func ValidID(id string) bool {
	return isToken(id, maxIDBytes)
}

// ValidNodeID says whether id can name a node: 1 to 63 of [A-Za-z0-9_-].
func ValidNodeID(id string) bool {
	return isToken(id, 63)
}

func isToken(id string, maxBytes int) bool {
	if id == "" || len(id) > maxBytes {
		return false
	}
	for i := 0; i < len(id); i++ {
		c := id[i]
		if c == '@' || c == '+' || !isNameByte(c) {
			return false
		}
	}
	return true
}

// rawText makes valid UTF-8 of arbitrary bytes, looking only at as many as can be kept.
func rawText(b []byte) string {
	if len(b) > 2*maxRawReasonBytes {
		b = b[:2*maxRawReasonBytes]
	}
	return strings.ToValidUTF8(string(b), "\uFFFD")
}

// cutText cuts valid UTF-8 at a character's boundary, to at most maxBytes.
func cutText(s string, maxBytes int) string {
	if len(s) <= maxBytes {
		return s
	}
	for maxBytes > 0 && !utf8.RuneStart(s[maxBytes]) {
		maxBytes--
	}
	return s[:maxBytes]
}
