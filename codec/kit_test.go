package codec

import (
	"bytes"
	"errors"
	"io"
	"os"
	"path/filepath"
	"testing"

	"github.com/jackc/pgx/v5/pgproto3"
)

// frame is one message as a reader of the stream sees it.
type frame struct {
	typ    byte
	length uint32
}

// encodable is any pgproto3 message.
type encodable interface {
	Encode(dst []byte) ([]byte, error)
}

// encode joins messages into one stream.
func encode(t testing.TB, messages ...encodable) []byte {
	t.Helper()
	var stream []byte
	for _, m := range messages {
		var err error
		if stream, err = m.Encode(stream); err != nil {
			t.Fatalf("cannot encode %T: %v", m, err)
		}
	}
	return stream
}

// stream is a named piece of traffic.
type stream struct {
	name  string
	dir   Direction
	bytes []byte
}

// realStreams are recordings of psql and pgbench against PostgreSQL 15, from the first byte after the startup
// packet: COPY both ways, LISTEN and NOTIFY, errors in and out of transactions, prepared statements, pipelines.
func realStreams(t testing.TB) []stream {
	t.Helper()
	var streams []stream
	for _, client := range []string{"psql", "pgbench"} {
		for dir, side := range []string{"frontend", "backend"} {
			name := client + "." + side
			data, err := os.ReadFile(filepath.Join("testdata", name+".bin"))
			if err != nil {
				t.Fatal(err)
			}
			streams = append(streams, stream{name, Direction(dir), data})
		}
	}
	return streams
}

// builtStreams are what the recordings lack.
func builtStreams(t testing.TB) []stream {
	t.Helper()
	long := bytes.Repeat([]byte("0123456789abcdef"), 40)
	pipeline := encode(t,
		&pgproto3.Parse{Name: "s1", Query: "insert into t values ($1)", ParameterOIDs: []uint32{25}},
		&pgproto3.Bind{PreparedStatement: "s1", Parameters: [][]byte{long, nil}},
		&pgproto3.Describe{ObjectType: 'P'}, &pgproto3.Execute{MaxRows: 10}, &pgproto3.Sync{},
		&pgproto3.Bind{PreparedStatement: "s1", Parameters: [][]byte{{}}},
		&pgproto3.Execute{}, &pgproto3.Flush{}, &pgproto3.Close{ObjectType: 'S', Name: "s1"}, &pgproto3.Sync{},
		&pgproto3.Query{String: ""}, &pgproto3.FunctionCall{Function: 1, Arguments: [][]byte{long, nil}},
		&pgproto3.Terminate{})
	copyIn := encode(t, &pgproto3.Query{String: "copy t from stdin"},
		&pgproto3.CopyData{Data: long}, &pgproto3.CopyData{}, &pgproto3.CopyDone{},
		&pgproto3.Query{String: "copy t from stdin"}, &pgproto3.CopyData{Data: []byte("Z\x00\x00\x00\x05I")},
		&pgproto3.CopyFail{Message: "no more"}, &pgproto3.Sync{})
	answers := encode(t,
		&pgproto3.ParseComplete{}, &pgproto3.BindComplete{},
		&pgproto3.RowDescription{Fields: []pgproto3.FieldDescription{{Name: []byte("c"), DataTypeOID: 25}}},
		&pgproto3.DataRow{Values: [][]byte{long, nil, {}}}, &pgproto3.DataRow{},
		&pgproto3.PortalSuspended{}, &pgproto3.CommandComplete{CommandTag: []byte("SELECT 2")},
		&pgproto3.ReadyForQuery{TxStatus: 'T'},
		&pgproto3.ErrorResponse{Severity: "ERROR", Code: "22012", Message: "division by zero"},
		&pgproto3.ReadyForQuery{TxStatus: 'E'},
		&pgproto3.NoData{}, &pgproto3.EmptyQueryResponse{}, &pgproto3.CloseComplete{},
		&pgproto3.NotificationResponse{PID: 1, Channel: "c", Payload: "p"},
		&pgproto3.NotificationResponse{PID: 7, Channel: "", Payload: ""},
		&pgproto3.NotificationResponse{PID: 7, Channel: "c", Payload: string(long)},
		&pgproto3.ParameterStatus{Name: "application_name", Value: "x"},
		&pgproto3.ReadyForQuery{TxStatus: 'I'})
	copies := encode(t,
		&pgproto3.CopyInResponse{}, &pgproto3.NoticeResponse{Severity: "NOTICE", Code: "00000", Message: "hi"},
		&pgproto3.CommandComplete{CommandTag: []byte("COPY 1")}, &pgproto3.ReadyForQuery{TxStatus: 'I'},
		&pgproto3.CopyOutResponse{}, &pgproto3.CopyData{Data: long}, &pgproto3.CopyData{}, &pgproto3.CopyDone{},
		&pgproto3.CopyBothResponse{}, &pgproto3.CopyData{Data: []byte("Z\x00\x00\x00\x05T")},
		&pgproto3.CommandComplete{CommandTag: []byte("COPY 2")}, &pgproto3.ReadyForQuery{TxStatus: 'T'})
	return []stream{
		{"pipeline", FromFrontend, pipeline},
		{"copy in", FromFrontend, copyIn},
		{"answers", FromBackend, answers},
		{"copies", FromBackend, copies},
	}
}

func allStreams(t testing.TB) []stream { return append(realStreams(t), builtStreams(t)...) }

// secondOpinion reads a stream with pgproto3 and derives what Scanner ought to report from the decoded messages.
func secondOpinion(t testing.TB, s stream) (frames []frame, want Seen) {
	t.Helper()
	for _, m := range decodeAll(t, s) {
		raw := encode(t, m)
		frames = append(frames, frame{raw[0], uint32(len(raw) - 1)})
		want.Messages++
		want.LastType = raw[0]
		switch m := m.(type) {
		case *pgproto3.Query, *pgproto3.FunctionCall, *pgproto3.Sync:
			want.Requests++
			want.Batch = BatchSynced
		case *pgproto3.Parse, *pgproto3.Bind, *pgproto3.Describe, *pgproto3.Execute, *pgproto3.Close, *pgproto3.Flush:
			if s.dir == FromFrontend {
				want.Batch = BatchOpen
			}
		case *pgproto3.Terminate:
			want.Terminate = true
		case *pgproto3.ReadyForQuery:
			want.Ready++
			want.Status = m.TxStatus
		case *pgproto3.CommandComplete:
			want.Completed++
		case *pgproto3.ErrorResponse:
			want.Errors++
		case *pgproto3.CopyInResponse, *pgproto3.CopyBothResponse:
			want.CopyIn++
		}
	}
	return frames, want
}

// decodeAll reads a whole stream with pgproto3. The messages share memory with its reader only until the next
// one is read, so each is decoded from a reader of its own.
func decodeAll(t testing.TB, s stream) []encodable {
	t.Helper()
	var messages []encodable
	for rest := s.bytes; len(rest) > 0; {
		var m encodable
		var err error
		if s.dir == FromFrontend {
			m, err = pgproto3.NewBackend(bytes.NewReader(rest), io.Discard).Receive()
		} else {
			m, err = pgproto3.NewFrontend(bytes.NewReader(rest), io.Discard).Receive()
		}
		if err != nil {
			t.Fatalf("%s: pgproto3 cannot read the stream: %v", s.name, err)
		}
		messages = append(messages, m)
		rest = rest[len(encode(t, m)):]
	}
	return messages
}

// failer is what testing and rapid have in common.
type failer interface {
	Helper()
	Fatal(...any)
	Fatalf(string, ...any)
}

// player feeds a Scanner as an engine does: what Scan leaves unread is presented again with what follows.
type player struct {
	t       failer
	scanner Scanner
	out     []byte // what was let through
	seen    Seen
	status  byte // of the last ReadyForQuery so far
	unread  []byte
}

// feed presents one piece and checks what holds after every Scan. It returns the error of the Scan.
func (p *player) feed(piece []byte) error {
	p.t.Helper()
	data := append(p.unread, piece...)
	original := bytes.Clone(data)
	before := p.scanner
	seenBefore := p.seen
	n, err := p.scanner.Scan(data, &p.seen)

	if n < 0 || n > len(data) {
		p.t.Fatalf("Scan of %d bytes returned %d", len(data), n)
	}
	held := len(data) - n
	if err == nil && held > 0 && (!before.rewrite || held > 8 || data[n] != 'A' || !p.scanner.AtBoundary()) {
		p.t.Fatalf("Scan left %d bytes unread: %q", held, data[n:])
	}
	var framing *FramingError
	if err != nil && !errors.As(err, &framing) {
		p.t.Fatalf("Scan returned %T, not a *FramingError", err)
	}
	if err != nil && n > 0 && !p.scanner.AtBoundary() {
		p.t.Fatalf("the offending header begins at %d, which is not a boundary", n)
	}
	// The Scanner stands as if it had been given what it took and no more.
	twin, twinSeen := before, seenBefore
	if m, err := twin.Scan(original[:n], &twinSeen); m != n || err != nil || twin != p.scanner || twinSeen != p.seen {
		p.t.Fatalf("state after taking %d of %d bytes differs from that after exactly these: %+v %+v, %+v %+v (%d, %v)",
			n, len(data), p.scanner, p.seen, twin, twinSeen, m, err)
	}
	if !before.rewrite && !bytes.Equal(data, original) {
		p.t.Fatal("Scan wrote to its input")
	}
	if p.seen.Ready > seenBefore.Ready {
		p.status = p.seen.Status
	} else if p.seen.Status != 0 {
		p.t.Fatal("a status without a ReadyForQuery")
	}
	p.out = append(p.out, data[:n]...)
	p.unread = bytes.Clone(data[n:])
	return err
}

// total is the accumulated Seen with the status of the last ReadyForQuery.
func (p *player) total() Seen {
	total := p.seen
	total.Status = p.status
	return total
}
