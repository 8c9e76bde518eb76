package codec

import (
	"bytes"
	"encoding/binary"
	"errors"
	"testing"
	"unsafe"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5/pgproto3"
)

func TestScannerAgreesWithPgproto3AtEverySplitPoint(t *testing.T) {
	for _, s := range allStreams(t) {
		t.Run(s.name, func(t *testing.T) {
			_, want := secondOpinion(t, s)
			for cut := range len(s.bytes) + 1 {
				p := player{t: t, scanner: NewScanner(s.dir)}
				for _, piece := range [][]byte{s.bytes[:cut], s.bytes[cut:]} {
					if err := p.feed(piece); err != nil {
						t.Fatalf("cut at %d: %v", cut, err)
					}
				}
				if diff := cmp.Diff(want, p.total()); diff != "" {
					t.Fatalf("cut at %d (-pgproto3 +scanner):\n%s", cut, diff)
				}
				if !bytes.Equal(p.out, s.bytes) || !p.scanner.AtBoundary() {
					t.Fatalf("cut at %d: the stream was not let through whole", cut)
				}
			}
		})
	}
}

func TestScannerKnowsTheBoundariesByteByByte(t *testing.T) {
	for _, s := range allStreams(t) {
		t.Run(s.name, func(t *testing.T) {
			want, wantSeen := secondOpinion(t, s)
			p := player{t: t, scanner: NewScanner(s.dir)}
			var got []frame
			var boundaries, wantBoundaries []int
			for i := range s.bytes {
				before := p.seen.Messages
				if err := p.feed(s.bytes[i : i+1]); err != nil {
					t.Fatal(err)
				}
				if p.seen.Messages > before {
					got = append(got, frame{p.seen.LastType, p.scanner.Remaining() + lengthWord})
				}
				if p.scanner.AtBoundary() {
					boundaries = append(boundaries, i+1)
				}
			}
			end := 0
			for _, f := range want {
				end += 1 + int(f.length)
				wantBoundaries = append(wantBoundaries, end)
			}
			if diff := cmp.Diff(want, got, cmp.AllowUnexported(frame{})); diff != "" {
				t.Errorf("messages (-pgproto3 +scanner):\n%s", diff)
			}
			if diff := cmp.Diff(wantBoundaries, boundaries); diff != "" {
				t.Errorf("boundaries (-pgproto3 +scanner):\n%s", diff)
			}
			if diff := cmp.Diff(wantSeen, p.total()); diff != "" {
				t.Errorf("seen (-pgproto3 +scanner):\n%s", diff)
			}
		})
	}
}

func TestScannerIsSmallAndDoesNotAllocate(t *testing.T) {
	if size := unsafe.Sizeof(Scanner{}); size > 48 {
		t.Errorf("a Scanner has %d bytes", size)
	}
	for _, s := range allStreams(t) {
		var seen Seen
		data := bytes.Clone(s.bytes)
		if n := testing.AllocsPerRun(10, func() {
			plain, rewriting := NewScanner(s.dir), NewScanner(s.dir)
			for i := range data {
				if n, err := plain.Scan(data[i:i+1], &seen); n != 1 || err != nil {
					t.Fatal(n, err)
				}
			}
			rewriting.SetPIDRewrite(1, 2)
			if n, err := rewriting.Scan(data, &seen); n != len(data) || err != nil {
				t.Fatal(n, err)
			}
		}); n != 0 {
			t.Errorf("%s: %v allocations", s.name, n)
		}
	}
}

func TestStatusIsThatOfTheLastScanOnly(t *testing.T) {
	s := NewScanner(FromBackend)
	var seen Seen
	two := append(AppendReadyForQuery(nil, 'T'), AppendReadyForQuery(nil, 'E')...)
	if _, err := s.Scan(two, &seen); err != nil || seen.Ready != 2 || seen.Status != 'E' {
		t.Fatalf("%+v, %v", seen, err)
	}
	if _, err := s.Scan(AppendReadyForQuery(nil, 'I')[:5], &seen); err != nil || seen.Ready != 2 || seen.Status != 0 || s.Remaining() != 1 {
		t.Fatalf("%+v, %v", seen, err)
	}
	if _, err := s.Scan([]byte{'I'}, &seen); err != nil || seen.Ready != 3 || seen.Status != 'I' || !s.AtBoundary() {
		t.Fatalf("%+v, %v", seen, err)
	}
}

// limits is written down here a second time, from the protocol's description and not from the table in use.
var limits = map[Direction]map[byte][2]uint32{
	FromFrontend: {
		'Q': {4, 1073741822}, 'P': {4, 1073741822}, 'B': {4, 1073741822}, 'F': {4, 1073741822}, 'd': {4, 1073741822},
		'X': {4, 10000}, 'C': {4, 10000}, 'D': {4, 10000}, 'E': {4, 10000}, 'H': {4, 10000}, 'S': {4, 10000},
		'c': {4, 10000}, 'f': {4, 10000},
	},
	FromBackend: {'Z': {5, 5}},
}

func limitsOf(dir Direction, typ byte) (least, most uint32, known bool) {
	if l, ok := limits[dir][typ]; ok {
		return l[0], l[1], true
	}
	return 4, 2147483647, dir == FromBackend
}

func TestEveryTypeHasItsLengthLimitsAndIsRefusedOnItsHeader(t *testing.T) {
	prefix := map[Direction][]byte{
		FromFrontend: encode(t, &pgproto3.Query{String: "select 1"}),
		FromBackend:  encode(t, &pgproto3.DataRow{Values: [][]byte{[]byte("1")}}),
	}
	for dir, before := range prefix {
		for typ := range 256 {
			least, most, known := limitsOf(dir, byte(typ))
			for _, length := range []uint32{0, 3, 4, 5, 6, 9999, 10000, 10001, 1<<30 - 3, 1<<30 - 2, 1<<30 - 1, 1<<31 - 1, 1 << 31, 1<<32 - 1} {
				header := binary.BigEndian.AppendUint32([]byte{byte(typ)}, length)
				data := append(bytes.Clone(before), header...)
				for cut := range len(data) + 1 {
					p := player{t: t, scanner: NewScanner(dir)}
					err := p.feed(data[:cut])
					n := len(p.out)
					if err == nil {
						err = p.feed(data[cut:])
						n = len(p.out)
					}
					if known && length >= least && length <= most {
						if err != nil || n != len(data) || p.scanner.Remaining() != length-4 {
							t.Fatalf("%d %q length %d cut %d: %d, %v", dir, byte(typ), length, cut, n, err)
						}
						continue
					}
					want := FramingError{Type: byte(typ), Length: length, Kind: InvalidLength}
					wantN := len(before)
					if !known {
						want.Length, want.Kind = 0, UnknownType
					} else if cut > len(before) && cut < len(data) {
						wantN = cut // a part of the header went through before it was known to be wrong
					}
					var got *FramingError
					if !errors.As(err, &got) || *got != want || n != wantN || p.seen.Messages != 1 {
						t.Fatalf("%d %q length %d cut %d: %v after %d bytes, want %v after %d", dir, byte(typ), length, cut, err, n, &want, wantN)
					}
				}
			}
		}
	}
}

func TestFramingErrorsCarryThePostgresText(t *testing.T) {
	for _, c := range []struct {
		input  string
		text   string
		silent bool
	}{
		{"z", "invalid frontend message type 122", false},
		{"p\x00\x00\x00\x05x", "invalid frontend message type 112", false},
		{"\x00", "invalid frontend message type 0", false},
		{"Q\x00\x00\x00\x03", "invalid message length", true},
		{"S\x00\x00\x27\x11", "invalid message length", true},
	} {
		s := NewScanner(FromFrontend)
		n, err := s.Scan([]byte(c.input), &Seen{})
		var framing *FramingError
		if n != 0 || !errors.As(err, &framing) || framing.Error() != c.text || framing.Silent() != c.silent {
			t.Errorf("%q: %d, %v", c.input, n, err)
		}
	}
}

func TestAfterAnErrorTheScannerStandsBeforeTheOffendingHeader(t *testing.T) {
	s := NewScanner(FromFrontend)
	var seen Seen
	bad := []byte("S\x00\x00\x00\x04Q\x00\x00\x00\x01")
	n, err := s.Scan(bad, &seen)
	if n != 5 || err == nil || !s.AtBoundary() || seen.Messages != 1 {
		t.Fatalf("%d, %v", n, err)
	}
	if n, err = s.Scan(bad[5:], &seen); n != 0 || err == nil {
		t.Fatalf("presented again: %d, %v", n, err)
	}
}

func TestMessageLengthRefusesBeforeAnythingIsRead(t *testing.T) {
	for _, c := range []struct {
		length, limit uint32
		body          int
		ok            bool
	}{
		{3, 100, 0, false}, {0, 100, 0, false}, {4, 100, 0, true}, {100, 100, 96, true}, {101, 100, 0, false},
		{MaxAuthMessageLength, MaxAuthMessageLength, MaxAuthMessageLength - 4, true},
		{1 << 31, 1<<32 - 1, 0, false}, {1<<32 - 1, 1<<32 - 1, 0, false},
	} {
		var header [5]byte
		header[0] = 'p'
		binary.BigEndian.PutUint32(header[1:], c.length)
		typ, body, err := MessageLength(header, c.limit)
		if typ != 'p' || body != c.body || (err == nil) != c.ok {
			t.Errorf("%d of %d: %d, %v", c.length, c.limit, body, err)
		}
	}
}
