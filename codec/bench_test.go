package codec

import (
	"testing"

	"github.com/jackc/pgx/v5/pgproto3"
)

// The benchmarks print what following the frames costs per byte and per message; a relay adds this to what the
// kernel costs it.

func benchmarkScan(b *testing.B, dir Direction, data []byte, size int) {
	s := NewScanner(dir)
	var seen Seen
	b.SetBytes(int64(len(data)))
	b.ReportAllocs()
	for b.Loop() {
		for rest := data; len(rest) > 0; {
			n, err := s.Scan(rest[:min(size, len(rest))], &seen)
			if err != nil || n == 0 {
				b.Fatal(n, err)
			}
			rest = rest[n:]
		}
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(seen.Messages), "ns/message")
}

func repeat(b *testing.B, times int, messages ...encodable) []byte {
	one := encode(b, messages...)
	data := make([]byte, 0, times*len(one))
	for range times {
		data = append(data, one...)
	}
	return data
}

func BenchmarkBigDataRows(b *testing.B) {
	row := &pgproto3.DataRow{Values: [][]byte{make([]byte, 8000)}}
	benchmarkScan(b, FromBackend, repeat(b, 512, row), 64<<10)
}

func BenchmarkSmallDataRows(b *testing.B) {
	row := &pgproto3.DataRow{Values: [][]byte{make([]byte, 40)}}
	benchmarkScan(b, FromBackend, repeat(b, 10000, row), 64<<10)
}

func BenchmarkTinyBackendMessages(b *testing.B) {
	benchmarkScan(b, FromBackend, repeat(b, 1000, &pgproto3.ParseComplete{}, &pgproto3.BindComplete{},
		&pgproto3.NoData{}, &pgproto3.CommandComplete{CommandTag: []byte("BEGIN")}, &pgproto3.ReadyForQuery{TxStatus: 'T'}), 64<<10)
}

func BenchmarkTinyFrontendMessages(b *testing.B) {
	benchmarkScan(b, FromFrontend, repeat(b, 1000, &pgproto3.Bind{}, &pgproto3.Execute{}, &pgproto3.Sync{}), 64<<10)
}

func BenchmarkOneTransaction(b *testing.B) {
	data := encode(b, &pgproto3.DataRow{Values: [][]byte{[]byte("1")}}, &pgproto3.CommandComplete{CommandTag: []byte("SELECT 1")},
		&pgproto3.ReadyForQuery{TxStatus: 'I'})
	benchmarkScan(b, FromBackend, data, len(data))
}

// BenchmarkOneQuery is the smallest thing that a client sends.
func BenchmarkOneQuery(b *testing.B) {
	data := encode(b, &pgproto3.Query{String: "SELECT 1"})
	benchmarkScan(b, FromFrontend, data, len(data))
}

// BenchmarkPipelinedBatch is what a driver sends in one go: 20 prepared statements, then one Sync.
func BenchmarkPipelinedBatch(b *testing.B) {
	data := repeat(b, 20, &pgproto3.Bind{PreparedStatement: "s1", Parameters: [][]byte{[]byte("12345678"), nil}},
		&pgproto3.Describe{ObjectType: 'P'}, &pgproto3.Execute{})
	data = append(data, encode(b, &pgproto3.Sync{})...)
	benchmarkScan(b, FromFrontend, data, len(data))
}

// BenchmarkCopyIn is a COPY FROM STDIN of psql's: a message per line.
func BenchmarkCopyIn(b *testing.B) {
	benchmarkScan(b, FromFrontend, repeat(b, 10000, &pgproto3.CopyData{Data: make([]byte, 100)}), 64<<10)
}

// BenchmarkBigCopyData is a COPY of a driver that fills its messages.
func BenchmarkBigCopyData(b *testing.B) {
	benchmarkScan(b, FromFrontend, repeat(b, 64, &pgproto3.CopyData{Data: make([]byte, 64<<10)}), 64<<10)
}

// BenchmarkSplitHeaders reads pieces whose length has no factor in common with that of the messages: most end inside a
// header or a body, at another place each time.
func BenchmarkSplitHeaders(b *testing.B) {
	row := &pgproto3.DataRow{Values: [][]byte{make([]byte, 40)}}
	benchmarkScan(b, FromBackend, repeat(b, 1000, row), 17)
}

// BenchmarkPIDRewrite is a listener with many notifications, whose pids are replaced. The replaced pid is put back each time.
func BenchmarkPIDRewrite(b *testing.B) {
	const backend, virtual = 4711, 0x12340001
	data := repeat(b, 1000, &pgproto3.NotificationResponse{PID: backend, Channel: "news", Payload: "something has changed"})
	forth, back := NewScanner(FromBackend), NewScanner(FromBackend)
	forth.SetPIDRewrite(backend, virtual)
	back.SetPIDRewrite(virtual, backend)
	var seen Seen
	b.SetBytes(2 * int64(len(data)))
	b.ReportAllocs()
	for b.Loop() {
		for _, s := range []*Scanner{&forth, &back} {
			if n, err := s.Scan(data, &seen); err != nil || n != len(data) {
				b.Fatal(n, err)
			}
		}
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(seen.Messages), "ns/message")
}

func BenchmarkOneByteReads(b *testing.B) {
	row := &pgproto3.DataRow{Values: [][]byte{make([]byte, 40)}}
	benchmarkScan(b, FromBackend, repeat(b, 1000, row), 1)
}
