package revoke

import (
	"cmp"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"time"
)

// tableState is what is read from one journal. It has no lock of its own.
type tableState struct {
	rows map[Scope]*row
	// odd holds the last seq of those subjects that rows does not tell: refused messages, and subjects that are
	// other spellings of a scope. It is bounded by the number of subjects in the journal.
	odd map[string]uint64
	// kept are the subjects whose last message was refused while the good one before it is still in rows: a node that
	// reads the journal now does not find it.
	kept map[string]struct{}
	sum  factSum
}

// row is the last fact per verb of one scope.
type row struct {
	facts [VerbReinstate + 1]*Fact
}

func newTableState() tableState {
	return tableState{rows: make(map[Scope]*row), odd: make(map[string]uint64), kept: make(map[string]struct{})}
}

func (st *tableState) merge(f Fact) (changed bool) {
	if f.Verb == VerbReinstate {
		// Nobody can have seen what comes after: a reinstate in advance would undo revocations still to be made.
		f.Upto = min(f.Upto, f.Seq)
	}
	r := st.rows[f.Scope]
	if r == nil {
		r = new(row)
		st.rows[f.Scope] = r
	}
	subject, old := f.Subject(), r.facts[f.Verb]
	if old != nil && f.Seq <= old.Seq {
		if was := old.Subject(); was != subject {
			st.odd[subject] = max(st.odd[subject], f.Seq)
		}
		return false
	}
	if old != nil {
		st.sum.sub(old)
		if was := old.Subject(); was != subject {
			st.odd[was] = max(st.odd[was], old.Seq)
			delete(st.kept, was)
		}
	}
	if st.odd[subject] <= f.Seq {
		delete(st.odd, subject)
		delete(st.kept, subject)
	} else {
		st.kept[subject] = struct{}{}
	}
	r.facts[f.Verb] = &f
	st.sum.add(&f)
	return true
}

// has says that the fact is the last one of its scope and verb here as well.
func (st *tableState) has(f *Fact) bool {
	r := st.rows[f.Scope]
	return r != nil && r.facts[f.Verb] != nil && r.facts[f.Verb].sameMessage(*f)
}

// keepEpochs puts the facts of a row into an epoch, but for the messages that an earlier row already has.
func (r *row) keepEpochs(was *row, foreign bool, epoch uint64) {
	for v, f := range r.facts {
		switch {
		case f == nil:
		case !foreign && was != nil && was.facts[v] != nil && was.facts[v].sameMessage(*f):
			f.Epoch = was.facts[v].Epoch
		default:
			f.Epoch = epoch
		}
	}
}

// news are the facts of a row that has taken the place of an earlier one which sessions may have missed.
func (r *row) news(was *row, recreated bool, epoch uint64, now time.Time) (news []Fact) {
	cut := r.cut()
	if !recreated || cut == nil || cut.Epoch != epoch {
		cut = nil
	}
	if f := r.revokeInForce(); f != nil && f != cut && (was == nil || was.revokeInForce() == nil) {
		news = append(news, *f)
	}
	if f := r.suspendInForce(now); f != nil && f != cut && (was == nil || was.suspendInForce(now) == nil) {
		news = append(news, *f)
	}
	if cut != nil {
		news = append(news, *cut)
	}
	return news
}

func (st *tableState) noteRefused(subject string, seq uint64) {
	if seq <= st.lastSeq(subject) {
		return
	}
	st.odd[subject] = seq
	if v, s, err := ParseSubject(subject); err == nil {
		if r := st.rows[s]; r != nil && r.facts[v] != nil && r.facts[v].Subject() == subject {
			st.kept[subject] = struct{}{}
		}
	}
}

func (st *tableState) lastSeq(subject string) uint64 {
	seq := st.odd[subject]
	v, s, err := ParseSubject(subject)
	if err != nil {
		return seq
	}
	if r := st.rows[s]; r != nil && r.facts[v] != nil && r.facts[v].Subject() == subject {
		seq = max(seq, r.facts[v].Seq)
	}
	return seq
}

func (r *row) seq(v Verb) uint64 {
	if r == nil || r.facts[v] == nil {
		return 0
	}
	return r.facts[v].Seq
}

func (r *row) upto() uint64 {
	if f := r.facts[VerbReinstate]; f != nil {
		return f.Upto
	}
	return 0
}

// cut is the newest fact that ends sessions.
func (r *row) cut() *Fact {
	var newest *Fact
	for _, v := range [...]Verb{VerbKill, VerbRevoke, VerbSuspend} {
		if f := r.facts[v]; f != nil && (newest == nil || newest.Position().Before(f.Position())) {
			newest = f
		}
	}
	return newest
}

func (r *row) revokeInForce() *Fact {
	if f := r.facts[VerbRevoke]; f != nil && f.Seq > r.upto() {
		return f
	}
	return nil
}

func (r *row) suspendInForce(now time.Time) *Fact {
	if f := r.facts[VerbSuspend]; f != nil && f.Seq > r.upto() && now.Before(f.Until) {
		return f
	}
	return nil
}

// block is the newest fact that refuses logins.
func (r *row) block(now time.Time) *Fact {
	revoke, suspend := r.revokeInForce(), r.suspendInForce(now)
	if revoke == nil || suspend != nil && suspend.Seq > revoke.Seq {
		return suspend
	}
	return revoke
}

// factSum adds up the hashes of facts lane by lane, so that it follows every merge in constant time and does not
// depend on the order. It tells honest nodes apart; it is no defence against somebody who may write facts.
type factSum [4]uint64

func (s *factSum) add(f *Fact) {
	h := hashFact(f)
	for i := range s {
		s[i] += h[i]
	}
}

func (s *factSum) sub(f *Fact) {
	h := hashFact(f)
	for i := range s {
		s[i] -= h[i]
	}
}

// String is 32 hexadecimal digits.
func (s factSum) String() string { return fmt.Sprintf("%016x%016x", s[0]^s[2], s[1]^s[3]) }

func hashFact(f *Fact) factSum {
	b := make([]byte, 0, 128)
	b = append(b, byte(f.Verb), byte(f.Scope.Kind))
	b = binary.BigEndian.AppendUint64(b, f.Seq)
	b = binary.BigEndian.AppendUint64(b, f.Upto)
	// Instants beyond the range of UnixNano come out as some number, the same on every node.
	b = binary.BigEndian.AppendUint64(b, uint64(f.Until.Unix()))
	b = binary.BigEndian.AppendUint64(b, uint64(f.Until.Nanosecond()))
	b = append(b, f.Scope.Name...)
	d := sha256.Sum256(b)
	var s factSum
	for i := range s {
		s[i] = binary.BigEndian.Uint64(d[8*i:])
	}
	return s
}

func compareBlocks(a, b Block) int {
	if a.Provisional != b.Provisional {
		if a.Provisional {
			return 1
		}
		return -1
	}
	return cmp.Or(cmp.Compare(a.Seq, b.Seq), cmp.Compare(a.Fact.Verb, b.Fact.Verb), cmp.Compare(a.Scope.Token(), b.Scope.Token()), cmp.Compare(a.Fact.ID, b.Fact.ID))
}
