package engine

import (
	"bytes"
	"crypto/md5"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"hash"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"

	"pgedge/internal/pgtest"
)

// copyRows of copyRowBytes each are more than 100 MB.
const (
	copyRows     = 105_000
	copyRowBytes = 1000
	copySQL      = "SELECT n, md5(n::text) || repeat('x', 968) AS s FROM generate_series(1, 105000) n"
)

// rowsReader makes the text that COPY makes of copySQL.
type rowsReader struct {
	n    int
	rest []byte
}

func (r *rowsReader) Read(p []byte) (int, error) {
	if len(r.rest) == 0 {
		if r.n == copyRows {
			return 0, io.EOF
		}
		r.n++
		digits := strconv.Itoa(r.n)
		sum := md5.Sum([]byte(digits))
		r.rest = append(append(append(append(append(r.rest[:0], digits...), '\t'), hex.EncodeToString(sum[:])...), copyFill...), '\n')
	}
	n := copy(p, r.rest)
	r.rest = r.rest[n:]
	return n, nil
}

var copyFill = strings.Repeat("x", copyRowBytes-md5.Size*2)

// copyBothWays moves more than 100 MB out and in again and compares every byte.
func copyBothWays(t *testing.T, c *pgx.Conn, table string) {
	t.Helper()
	sum := func(fill func(hash.Hash)) string {
		h := sha256.New()
		fill(h)
		return hex.EncodeToString(h.Sum(nil))
	}
	want := sum(func(h hash.Hash) { io.Copy(h, &rowsReader{}) })
	got := sum(func(h hash.Hash) {
		tag, err := c.PgConn().CopyTo(bounded(t), h, "COPY ("+copySQL+") TO STDOUT")
		if err != nil || tag.RowsAffected() != copyRows {
			t.Fatalf("COPY out: %v, %v", tag, err)
		}
	})
	if got != want {
		t.Error("COPY out: the bytes differ from those of the server")
	}
	server.Exec(t, "DROP TABLE IF EXISTS "+table, "CREATE UNLOGGED TABLE "+table+" (n int, s text)")
	defer server.Exec(t, "DROP TABLE "+table)
	tag, err := c.PgConn().CopyFrom(bounded(t), &rowsReader{}, "COPY "+table+" FROM STDIN")
	if err != nil || tag.RowsAffected() != copyRows {
		t.Fatalf("COPY in: %v, %v", tag, err)
	}
	const differ = "SELECT count(DISTINCT n) FILTER (WHERE s = md5(n::text) || repeat('x', 968)) FROM %s"
	if n := server.QueryInt(t, fmt.Sprintf(differ, table)); n != copyRows {
		t.Errorf("COPY in: %d of %d rows are right", n, copyRows)
	}
}

func TestWireCopyMovesAHundredMegabytesBothWaysUnchanged(t *testing.T) {
	n := startNode(t, nil)
	copyBothWays(t, n.login("alice"), "wire_copy")
}

func TestWirePgxCopiesBinaryRowsInAndReadsThemBack(t *testing.T) {
	n := startNode(t, nil)
	c := n.login("md5user")
	server.Exec(t, "DROP TABLE IF EXISTS wire_binary", "CREATE TABLE wire_binary (n int, b bytea)")
	const count = 2000
	tag, err := c.CopyFrom(bounded(t), pgx.Identifier{"wire_binary"}, []string{"n", "b"}, pgx.CopyFromSlice(count, func(i int) ([]any, error) {
		return []any{i, bytes.Repeat([]byte{byte(i), 0, 'Z'}, i%300)}, nil
	}))
	if err != nil || tag != count {
		t.Fatalf("%d rows, %v", tag, err)
	}
	rows, err := c.Query(bounded(t), "SELECT n, b FROM wire_binary ORDER BY n")
	if err != nil {
		t.Fatal(err)
	}
	defer rows.Close()
	seen := 0
	for rows.Next() {
		var n int
		var b []byte
		if err := rows.Scan(&n, &b); err != nil {
			t.Fatal(err)
		}
		if n != seen || !bytes.Equal(b, bytes.Repeat([]byte{byte(n), 0, 'Z'}, n%300)) {
			t.Fatalf("row %d came back as %d with %d bytes", seen, n, len(b))
		}
		seen++
	}
	if rows.Err() != nil || seen != count {
		t.Errorf("%d rows came back, %v", seen, rows.Err())
	}
}

func TestWirePsqlCopiesAFileInAndOut(t *testing.T) {
	n := startNode(t, nil)
	dir := t.TempDir()
	in, out := filepath.Join(dir, "in"), filepath.Join(dir, "out")
	var text bytes.Buffer
	for i := range 100_000 {
		fmt.Fprintf(&text, "%d\trow %d\n", i, i)
	}
	if err := os.WriteFile(in, text.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
	server.Exec(t, "DROP TABLE IF EXISTS wire_file", "CREATE TABLE wire_file (n int, s text)")
	script := fmt.Sprintf("\\copy wire_file FROM '%s'\n\\copy (SELECT * FROM wire_file ORDER BY n) TO '%s'\n", in, out)
	printed, code := psql(t, n.addr, "alice", pgtest.Password("alice"), pgtest.Database, script)
	back, err := os.ReadFile(out)
	if err != nil || code != 0 || !bytes.Equal(back, text.Bytes()) {
		t.Errorf("%d of %d bytes came back, exit %d, %v\n%s", len(back), text.Len(), code, err, printed)
	}
}
