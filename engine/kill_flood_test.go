package engine

import (
	"bytes"
	"fmt"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgproto3"

	"pgedge/internal/pgtest"
)

// extended is one INSERT in the extended protocol that takes a few milliseconds.
func extended(t *testing.T, table string, sync bool) []byte {
	msgs := []pgproto3.FrontendMessage{
		&pgproto3.Parse{Query: "INSERT INTO " + table + " SELECT 1 FROM pg_sleep(0.003)"},
		&pgproto3.Bind{}, &pgproto3.Execute{},
	}
	if sync {
		msgs = append(msgs, &pgproto3.Sync{})
	}
	return pgtest.Encode(t, msgs...)
}

func simple(t *testing.T, sql string) []byte { return pgtest.Encode(t, &pgproto3.Query{String: sql}) }

// However the client has put the work: once the receipt says verified, the number of rows never grows.
func TestKillStopsEverythingThatIsUnderWay(t *testing.T) {
	t.Parallel()
	const someCommitted = "SELECT (count(*) >= 10)::int FROM %s"
	for _, c := range []struct {
		name   string
		send   func(t *testing.T, table string) []byte
		begun  string // returns 1 for (role, table) once the work is under way
		rows   int64  // that there may be at the end: -1 any number
		xact   string // "" any but none
		longer time.Duration
	}{
		{"1000 inserts with a sync each", func(t *testing.T, table string) []byte {
			return bytes.Repeat(extended(t, table, true), 1000)
		}, someCommitted, -1, "", 0},
		{"1000 simple inserts", func(t *testing.T, table string) []byte {
			return bytes.Repeat(simple(t, "INSERT INTO "+table+" SELECT 1 FROM pg_sleep(0.003)"), 1000)
		}, someCommitted, -1, "", 0},
		{"1000 inserts with one sync", func(t *testing.T, table string) []byte {
			return append(bytes.Repeat(extended(t, table, false), 1000), pgtest.Encode(t, &pgproto3.Sync{})...)
		}, writingSQL, 0, "aborted", 0},
		{"1000 inserts without a sync", func(t *testing.T, table string) []byte {
			return bytes.Repeat(extended(t, table, false), 1000)
		}, writingSQL, 0, "aborted", 0},
		{"a loop that commits", func(t *testing.T, table string) []byte {
			return simple(t, "DO $$ BEGIN FOR i IN 1..10000000 LOOP INSERT INTO "+table+" VALUES (i); COMMIT; END LOOP; END $$")
		}, someCommitted, -1, "", 0},
		{"a loop that traps query_canceled", func(t *testing.T, table string) []byte {
			return simple(t, "DO $$ BEGIN FOR i IN 1..10000000 LOOP BEGIN INSERT INTO "+table+" VALUES (i); PERFORM pg_sleep(0.001); "+
				"EXCEPTION WHEN query_canceled THEN NULL; END; COMMIT; END LOOP; END $$")
		}, someCommitted, -1, "", 0},
		{"one big insert", func(t *testing.T, table string) []byte {
			return simple(t, "INSERT INTO "+table+" SELECT g FROM generate_series(1, 3000000) g")
		}, writingSQL, 0, "aborted", 0},
		{"inserts behind a sleep", func(t *testing.T, table string) []byte {
			return append(simple(t, "SELECT pg_sleep(1)"), bytes.Repeat(simple(t, "INSERT INTO "+table+" VALUES (1)"), 100)...)
		}, asleepSQL, 0, "aborted", 1500 * time.Millisecond},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			n := startNode(t, nil)
			role, table := newRole(t, ""), newTable(t, "v int")
			r := n.raw(role)
			work := c.send(t, table)
			story := follow(r)
			go func() { _ = r.TrySendBytes(work) }() // Broken by the kill.
			if c.begun == someCommitted {
				server.WaitInt(t, 1, fmt.Sprintf(c.begun, table))
			} else {
				server.WaitInt(t, 1, c.begun, role)
			}
			late := dbClock(t, c.longer)
			rec := n.killed(n.revoke(role), role, 1)
			awaitClock(t, late)
			rows := settledRows(t, table)
			got := rec.Sessions[0]
			if got.Xact == "none" || c.xact != "" && got.Xact != c.xact {
				t.Errorf("session: %+v", got)
			}
			if c.rows >= 0 && rows != c.rows {
				t.Errorf("%d rows, want %d", rows, c.rows)
			}
			h := <-story
			told(t, h, "28000")
			if c.rows < 0 && int64(h.completed) > rows {
				t.Errorf("%d inserts were acknowledged, %d are there", h.completed, rows)
			}
			t.Logf("%s, more possible: %v; %d rows, %d acknowledged, told: %v", got.Xact, got.MorePossible, rows, h.completed, h.whole)
		})
	}
}
