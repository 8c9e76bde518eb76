package codec

import (
	"bytes"
	"encoding/binary"
	"errors"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"
)

// oracle is the plainest way to read a whole stream: no state, no cuts. It returns what is seen up to the first
// header that is wrong, where that header begins (or -1), and where the last message that is whole ends.
func oracle(dir Direction, data []byte) (seen Seen, bad, whole int) {
	for at := 0; ; {
		if at == len(data) {
			return seen, -1, at
		}
		least, most, known := limitsOf(dir, data[at])
		if !known {
			return seen, at, at
		}
		if len(data)-at < 5 {
			return seen, -1, at
		}
		length := binary.BigEndian.Uint32(data[at+1:])
		if length < least || length > most {
			return seen, at, at
		}
		seen.Messages++
		seen.LastType = data[at]
		end := uint64(at) + 1 + uint64(length)
		switch {
		case dir == FromFrontend && bytes.IndexByte([]byte("QFS"), data[at]) >= 0:
			seen.Requests++
			seen.Batch = BatchSynced
		case dir == FromFrontend && bytes.IndexByte([]byte("PBDECH"), data[at]) >= 0:
			seen.Batch = BatchOpen
		case dir == FromFrontend && data[at] == 'X':
			seen.Terminate = true
		case dir == FromFrontend:
		case data[at] == 'C':
			seen.Completed++
		case data[at] == 'E':
			seen.Errors++
		case data[at] == 'G' || data[at] == 'W':
			seen.CopyIn++
		case data[at] == 'Z' && end <= uint64(len(data)):
			seen.Ready++
			seen.Status = data[at+5]
		}
		if end > uint64(len(data)) {
			return seen, -1, at
		}
		at = int(end)
	}
}

// play feeds data in the given piece sizes, then the rest, until the first error.
func play(t failer, dir Direction, data []byte, sizes []int, from, to uint32) (*player, error) {
	p := &player{t: t, scanner: NewScanner(dir)}
	p.scanner.SetPIDRewrite(from, to)
	for _, size := range append(sizes, len(data)) {
		size = min(size, len(data))
		if err := p.feed(data[:size]); err != nil {
			return p, err
		}
		data = data[size:]
	}
	return p, nil
}

// checkAgainstOracle plays a stream and compares with the oracle.
func checkAgainstOracle(t failer, dir Direction, data []byte, sizes []int) {
	want, bad, whole := oracle(dir, data)
	p, err := play(t, dir, data, sizes, 0, 0)
	if diff := cmp.Diff(want, p.total()); diff != "" {
		t.Fatalf("seen (-oracle +scanner):\n%s", diff)
	}
	if (err != nil) != (bad >= 0) {
		t.Fatalf("error %v, but the oracle's offending header is at %d", err, bad)
	}
	if !bytes.HasPrefix(data, p.out) {
		t.Fatal("what was let through is not the stream")
	}
	if err == nil {
		if len(p.out) != len(data) || p.scanner.AtBoundary() != (whole == len(data)) {
			t.Fatalf("let through %d of %d bytes, boundary %v", len(p.out), len(data), p.scanner.AtBoundary())
		}
		return
	}
	// A part of the header may have gone through in an earlier piece, never all of it.
	if len(p.out) < bad || len(p.out) >= bad+headerLength {
		t.Fatalf("let through %d bytes, the offending header is at %d", len(p.out), bad)
	}
}

// drawStream draws messages that are mostly legal, some at the limits, some of them notifications of pid 7.
func drawStream(t *rapid.T, dir Direction) []byte {
	types := []byte("QFSXPBDECHdcf")
	if dir == FromBackend {
		types = []byte("ZCEGWADTdcSN1\x00\xff")
	}
	var data []byte
	for range rapid.IntRange(0, 12).Draw(t, "messages") {
		typ := rapid.SampledFrom(types).Draw(t, "type")
		body := rapid.SliceOfN(rapid.Byte(), 0, 40).Draw(t, "body")
		if typ == 'Z' && dir == FromBackend {
			body = []byte{rapid.SampledFrom([]byte("ITE")).Draw(t, "status")}
		}
		if typ == 'A' && rapid.Bool().Draw(t, "ours") {
			body = append([]byte{0, 0, 0, 7}, body...)
		}
		data = AppendMessage(data, typ, body)
		if rapid.IntRange(0, 19).Draw(t, "spoil") == 0 {
			data = append(data, rapid.SliceOfN(rapid.Byte(), 1, 8).Draw(t, "garbage")...)
		}
	}
	return data[:len(data)-min(len(data), rapid.IntRange(0, 6).Draw(t, "cut off"))]
}

func drawSizes(t *rapid.T) []int {
	return rapid.SliceOfN(rapid.IntRange(0, 17), 0, 60).Draw(t, "sizes")
}

func TestScannerAgreesWithThePlainReaderOnRandomStreams(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		dir := rapid.SampledFrom([]Direction{FromFrontend, FromBackend}).Draw(t, "direction")
		checkAgainstOracle(t, dir, drawStream(t, dir), drawSizes(t))
	})
}

func TestScannerSurvivesGarbage(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		dir := rapid.SampledFrom([]Direction{FromFrontend, FromBackend}).Draw(t, "direction")
		checkAgainstOracle(t, dir, rapid.SliceOf(rapid.Byte()).Draw(t, "garbage"), drawSizes(t))
	})
}

func TestRewritingGivesTheSameStreamForAllCuts(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		data := drawStream(t, FromBackend)
		checkRewrite(t, data, drawSizes(t))
	})
}

// checkRewrite compares a cut stream with the same stream in one piece.
func checkRewrite(t failer, data []byte, sizes []int) {
	whole, wholeErr := play(t, FromBackend, bytes.Clone(data), nil, 7, 0x01020304)
	pieces, piecesErr := play(t, FromBackend, bytes.Clone(data), sizes, 7, 0x01020304)
	if (wholeErr == nil) != (piecesErr == nil) {
		t.Fatalf("whole: %v, in pieces: %v", wholeErr, piecesErr)
	}
	out := pieces.out
	if wholeErr != nil {
		out = out[:min(len(out), len(whole.out))] // less the part of the wrong header that went through
	}
	if !bytes.Equal(whole.out, out) || whole.total() != pieces.total() {
		t.Fatalf("whole %q %+v, in pieces %q %+v", whole.out, whole.total(), pieces.out, pieces.total())
	}
	if wholeErr == nil && !bytes.Equal(whole.unread, pieces.unread) {
		t.Fatalf("whole leaves %q, pieces leave %q", whole.unread, pieces.unread)
	}
	if len(whole.out)+len(whole.unread) != len(data) && wholeErr == nil {
		t.Fatal("bytes were lost")
	}
}

func TestStartupPacketsSurviveARoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		text := rapid.StringOfN(rapid.RuneFrom([]rune{'a', 'b', 'é', '"', ' ', '=', '\''}), 0, 80, 200)
		p := StartupPacket{Major: 3, Minor: uint16(rapid.IntRange(0, 3).Draw(t, "minor"))}
		for range rapid.IntRange(0, 8).Draw(t, "parameters") {
			name := rapid.SampledFrom([]string{"user", "database", "options", "_pq_.x", "a"}).Draw(t, "name")
			p.Params = append(p.Params, Param{name, text.Draw(t, "value")})
		}
		packet := p.Encode(nil)
		body, err := StartupLength([4]byte(packet))
		if err != nil || body != len(packet)-4 {
			t.Fatalf("length %d, %v", body, err)
		}
		got, err := ParseStartup(packet[4:])
		var refused *StartupError
		if p.User() == "" {
			if !errors.As(err, &refused) || refused.Code != "28000" {
				t.Fatalf("no user: %v", err)
			}
			return
		}
		if diff := cmp.Diff(p, got); err != nil || diff != "" {
			t.Fatalf("%v\n%s", err, diff)
		}
		if len(got.User()) > NameLimit || len(got.Database()) > NameLimit {
			t.Fatal("a name is longer than Postgres keeps it")
		}
		name := rapid.SampledFrom([]string{"user", "a", "new"}).Draw(t, "changed")
		got.Set(name, "v")
		count := 0
		for _, param := range got.Params {
			if param.Name == name {
				count++
			}
		}
		if v, ok := got.Get(name); count != 1 || !ok || v != "v" {
			t.Fatalf("after Set: %+v", got.Params)
		}
		got.Delete(name)
		if _, ok := got.Get(name); ok {
			t.Fatalf("after Delete: %+v", got.Params)
		}
	})
}

func TestErrorResponsesSurviveARoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		text := rapid.StringMatching(`[a-zé ]{0,40}`)
		f := ErrorFields{
			Severity: rapid.SampledFrom([]Severity{SeverityError, SeverityFatal}).Draw(t, "severity"),
			Code:     rapid.StringMatching(`[0-9A-Z]{5}`).Draw(t, "code"),
			Message:  rapid.StringMatching(`[a-zé ]{1,40}`).Draw(t, "message"),
			Detail:   text.Draw(t, "detail"), Hint: text.Draw(t, "hint"),
		}
		message := AppendErrorResponse([]byte("before"), f)[len("before"):]
		if got := ParseErrorResponse(message[5:]); got != f {
			t.Fatalf("%+v became %+v", f, got)
		}
	})
}
