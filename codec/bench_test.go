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

func BenchmarkOneByteReads(b *testing.B) {
	row := &pgproto3.DataRow{Values: [][]byte{make([]byte, 40)}}
	benchmarkScan(b, FromBackend, repeat(b, 1000, row), 1)
}
