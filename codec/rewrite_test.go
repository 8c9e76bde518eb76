package codec

import (
	"bytes"
	"encoding/binary"
	"testing"

	"github.com/jackc/pgx/v5/pgproto3"
)

// rewritten is what a stream looks like after its notifications got another pid, by way of pgproto3.
func rewritten(t testing.TB, s stream, from, to uint32) []byte {
	t.Helper()
	var out []byte
	for _, m := range decodeAll(t, s) {
		if n, ok := m.(*pgproto3.NotificationResponse); ok && n.PID == from {
			n.PID = to
		}
		out = append(out, encode(t, m)...)
	}
	return out
}

func notifications(t testing.TB, s stream) (pids []uint32) {
	t.Helper()
	for _, m := range decodeAll(t, s) {
		if n, ok := m.(*pgproto3.NotificationResponse); ok {
			pids = append(pids, n.PID)
		}
	}
	return pids
}

func TestPIDRewriteDoesNotDependOnTheCuts(t *testing.T) {
	tried := 0
	for _, s := range allStreams(t) {
		if s.dir != FromBackend {
			continue
		}
		for _, from := range notifications(t, s) {
			tried++
			want := rewritten(t, s, from, 0xfedcba98)
			play := func(cuts ...int) {
				p := player{t: t, scanner: NewScanner(FromBackend)}
				p.scanner.SetPIDRewrite(from, 0xfedcba98)
				last := 0
				for _, cut := range append(cuts, len(s.bytes)) {
					if err := p.feed(bytes.Clone(s.bytes[last:cut])); err != nil {
						t.Fatal(err)
					}
					last = cut
				}
				if !bytes.Equal(p.out, want) || len(p.unread) > 0 {
					t.Fatalf("%s, cuts %v: the stream differs from what pgproto3 makes of it", s.name, cuts)
				}
			}
			for cut := range s.bytes {
				play(cut)
			}
			every := make([]int, len(s.bytes))
			for i := range every {
				every[i] = i
			}
			play(every...)
		}
	}
	if tried < 3 {
		t.Fatalf("only %d notifications were tried", tried)
	}
}

func TestPIDRewriteLeavesOtherBackendsAlone(t *testing.T) {
	data := encode(t, &pgproto3.NotificationResponse{PID: 8, Channel: "c", Payload: "p"},
		&pgproto3.DataRow{Values: [][]byte{binary.BigEndian.AppendUint32(nil, 7)}})
	s := NewScanner(FromBackend)
	s.SetPIDRewrite(7, 9)
	got := bytes.Clone(data)
	if n, err := s.Scan(got, &Seen{}); n != len(data) || err != nil || !bytes.Equal(got, data) {
		t.Fatalf("%d, %v: %q", n, err, got)
	}
}

func TestPIDRewriteHoldsBackTheWholeBeginningOfANotification(t *testing.T) {
	ready := AppendReadyForQuery(nil, 'I')
	notification := encode(t, &pgproto3.NotificationResponse{PID: 7, Channel: "c"})
	for have := range 9 {
		s := NewScanner(FromBackend)
		s.SetPIDRewrite(7, 9)
		data := append(bytes.Clone(ready), notification[:have]...)
		var seen Seen
		n, err := s.Scan(data, &seen)
		if n != len(ready) || err != nil || !s.AtBoundary() || seen.Messages != 1 || seen.Status != 'I' {
			t.Errorf("%d bytes of a notification: %d, %v, %+v", have, n, err, seen)
		}
	}
}

func TestANotificationTooShortForAPIDIsNotHeldBack(t *testing.T) {
	for body := range 4 {
		for _, next := range [][]byte{nil, AppendReadyForQuery(nil, 'I')} {
			data := append(AppendMessage(nil, 'A', make([]byte, body)), next...)
			want := bytes.Clone(data)
			s := NewScanner(FromBackend)
			if next != nil {
				// What stands where the pid would be, the next message included, equals the pid.
				s.SetPIDRewrite(binary.BigEndian.Uint32(data[5:]), 9)
			} else {
				s.SetPIDRewrite(0, 9)
			}
			if n, err := s.Scan(data, &Seen{}); n != len(data) || err != nil || !bytes.Equal(want, data) {
				t.Errorf("body of %d, %d bytes follow: %d, %v", body, len(next), n, err)
			}
		}
	}
}

func TestPIDRewriteBeginsWithTheNextHeader(t *testing.T) {
	data := encode(t, &pgproto3.NotificationResponse{PID: 7, Channel: "c"}, &pgproto3.NotificationResponse{PID: 7, Channel: "c"})
	want := bytes.Clone(data)
	want[len(data)/2+8] = 9
	p := player{t: t, scanner: NewScanner(FromBackend)}
	if err := p.feed(data[:1]); err != nil {
		t.Fatal(err)
	}
	p.scanner.SetPIDRewrite(7, 9)
	if err := p.feed(bytes.Clone(data[1:])); err != nil || !bytes.Equal(p.out, want) {
		t.Fatalf("%v: %q", err, p.out)
	}
}

func TestPIDRewriteDoesNotTouchAFrontendStream(t *testing.T) {
	s := NewScanner(FromFrontend)
	s.SetPIDRewrite(7, 9)
	if s.rewrite {
		t.Fatal("rewriting is on")
	}
}
