package pgserver

import (
	"context"
	"io"
	"net"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgproto3"
)

// slowWriter returns late from each write, like a goroutine that has lost its processor there: later than pgconn waits,
// and than the server needs for its answer.
type slowWriter struct{ net.Conn }

func (c slowWriter) Write(p []byte) (int, error) {
	n, err := c.Conn.Write(p)
	<-time.After(200 * time.Millisecond)
	return n, err
}

// Regression: the answer to the first query went to pgconn's reader in the background, and a test waited for it in vain.
func TestAConnectionThatIsTakenOverLosesNothingToItsDriver(t *testing.T) {
	s := start(t, Options{})
	cfg, err := pgconn.ParseConfig(s.URL("alice", Password("alice"), Database) + "?sslmode=disable")
	if err != nil {
		t.Fatal(err)
	}
	cfg.DialFunc = func(ctx context.Context, network, addr string) (net.Conn, error) {
		conn, err := new(net.Dialer).DialContext(ctx, network, addr)
		return slowWriter{conn}, err
	}
	pc, err := pgconn.ConnectConfig(bound(t), cfg)
	if err != nil {
		t.Fatal(err)
	}
	h, err := TakeOver(pc)
	if err != nil {
		t.Fatal(err)
	}
	defer h.Conn.Close()
	query, err := (&pgproto3.Query{}).Encode(nil)
	if err != nil {
		t.Fatal(err)
	}
	h.Conn.SetDeadline(time.Now().Add(30 * time.Second))
	if _, err := h.Conn.Write(query); err != nil {
		t.Fatal(err)
	}
	answer := make([]byte, len("I....Z....I"))
	if _, err := io.ReadFull(h.Conn, answer); err != nil || answer[0] != 'I' || answer[5] != 'Z' {
		t.Fatalf("the answer to an empty query: %q, %v", answer, err)
	}
}
