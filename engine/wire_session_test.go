package engine

import (
	"strings"
	"testing"
)

// sessionScripts talk to a session that is logged in.
func sessionScripts() []script {
	const two = "(n int)"
	insert := query("INSERT INTO " + tab + " VALUES (1)")
	parse := func(name, sql string) []byte { return m('P', name, sql, int16(0)) }
	bind := func(portal, stmt string) []byte { return m('B', portal, stmt, int16(0), int16(0), int16(0)) }
	execute := func(portal string, rows int32) []byte { return m('E', portal, rows) }
	run := func(sql string) []byte {
		return join(parse("", sql), bind("", ""), m('D', byte('P'), ""), execute("", 0))
	}
	bad := run("SELECT 1/0")
	copyIn := query("COPY " + tab + " FROM STDIN")
	data := m('d', []byte("1\n2\n"))
	z := func(b ...[]byte) step { return step{send: join(b...), await: 'Z'} }
	more := step{await: 'Z'}
	count := "SELECT coalesce(string_agg(n::text, ',' ORDER BY n), 'nothing') FROM " + tab
	return []script{
		// Framing.
		{name: "an unknown type", steps: []step{{send: lying('z', 4, ""), gone: true}}},
		{name: "type 0", steps: []step{{send: lying(0, 4, ""), gone: true}}},
		{name: "type 255", steps: []step{{send: lying(255, 4, ""), gone: true}}},
		{name: "a password in a session", steps: []step{{send: m('p', "secret"), gone: true}}},
		{name: "a second startup packet in a session", steps: []step{{send: startup("user", "alice"), gone: true}}},
		{name: "an unknown type, its length missing", steps: []step{{send: []byte{'z'}, gone: true}}},
		{name: "length 0", steps: []step{{send: lying('Q', 0, ""), gone: true}}},
		{name: "length 3", steps: []step{{send: lying('S', 3, ""), gone: true}}},
		{name: "an oversize Sync", steps: []step{{send: lying('S', 10001, "x"), gone: true}}},
		{name: "an oversize Terminate", steps: []step{{send: lying('X', 10001, "x"), gone: true}}},
		{name: "a query beyond 1 GB", steps: []step{{send: lying('Q', 1<<30, "x"), gone: true}}},
		{name: "a negative length", steps: []step{{send: lying('Q', 1<<31, "x"), gone: true}}},
		{name: "a length of all ones", steps: []step{{send: lying('P', 1<<32-1, "x"), gone: true}}},
		{name: "an unknown type behind a query", steps: []step{z(query("SELECT 1")), {send: lying('z', 4, ""), gone: true}}},
		{name: "an unknown type right behind a query", lossy: broken, table: two, check: count, steps: []step{{send: join(insert, lying('z', 4, "")), gone: true}}},
		{name: "a bad length right behind a slow query", lossy: broken, table: two, check: count,
			steps: []step{{send: join(query("SELECT pg_sleep(0.2); INSERT INTO "+tab+" VALUES (1)"), lying('S', 10001, "x")), gone: true}}},
		{name: "half a header, then the end", steps: []step{{send: []byte{'Q', 0, 0}, finish: true}}},
		{name: "half a query, then the end", table: two, check: count, steps: []step{{send: insert[:len(insert)-3], finish: true}}},
		{name: "a Sync with a body", steps: []step{z(lying('S', 8, "body"))}},
		{name: "a query without terminator", steps: []step{{send: m('Q', []byte("SELECT 1")), await: 'Z'}}},
		// Simple queries.
		{name: "an empty query", steps: []step{z(query("")), z(query(";")), z(query("-- nothing"))}},
		{name: "several statements", table: two, check: count, steps: []step{z(query("INSERT INTO " + tab + " VALUES (1); SELECT 1/0; INSERT INTO " + tab + " VALUES (2)"))}},
		{name: "transactions inside of one query", table: two, check: count,
			steps: []step{z(query("INSERT INTO " + tab + " VALUES (1); COMMIT; BEGIN; INSERT INTO " + tab + " VALUES (2)")), z(query("SELECT 1/0")), z(query("SELECT 2")), z(query("ROLLBACK"))}},
		{name: "pipelined queries", table: two, check: count, steps: []step{z(insert, insert, query("SELECT 1/0"), insert), more, more, more}},
		{name: "a failed transaction", table: two, check: count, steps: []step{z(query("BEGIN")), z(insert), z(query("oops")), z(query("SELECT 1")), z(query("COMMIT"))}},
		{name: "a notice and a warning", steps: []step{z(query("DO $$BEGIN RAISE NOTICE 'a note'; RAISE WARNING USING ERRCODE='01234', MESSAGE='b'; END$$")), z(query("ROLLBACK"))}},
		{name: "a changed setting", steps: []step{z(query("SET application_name = 'other'; SET client_encoding = 'LATIN1'; RESET ALL"))}},
		{name: "DISCARD ALL", steps: []step{z(query("PREPARE p AS SELECT 1")), z(query("DISCARD ALL")), z(query("EXECUTE p"))}},
		{name: "an error of a server's own fields", steps: []step{z(query("DO $$BEGIN RAISE EXCEPTION USING ERRCODE='ABCDE', MESSAGE='m', DETAIL='d', HINT='h', TABLE='t'; END$$"))}},
		// The extended protocol.
		{name: "an error skips to Sync", table: two, check: count, steps: []step{z(bad, run("INSERT INTO "+tab+" VALUES (1)"), syncMsg), z(query("SELECT 1"))}},
		{name: "a query is skipped to Sync too", table: two, check: count, steps: []step{z(bad, insert, insert, syncMsg), z(query("SELECT 1"))}},
		{name: "two Syncs in flight, the first part fails", table: two, check: count,
			steps: []step{z(bad, run("INSERT INTO "+tab+" VALUES (1)"), syncMsg, run("INSERT INTO "+tab+" VALUES (2)"), syncMsg), more}},
		{name: "Flush without Sync", steps: []step{{send: join(run("SELECT 1"), flushMsg), await: 'C'}, {send: join(run("SELECT 2"), flushMsg), await: 'C'}, z(syncMsg)}},
		{name: "Flush without Sync, then goodbye", table: two, check: count, steps: []step{{send: join(run("INSERT INTO "+tab+" VALUES (1)"), flushMsg), await: 'C'}}},
		{name: "a suspended portal", steps: []step{z(query("BEGIN")),
			{send: join(parse("", "SELECT generate_series(1,5)"), bind("c", ""), execute("c", 2), flushMsg), await: 's'},
			{send: join(execute("c", 2), flushMsg), await: 's'}, z(execute("c", 0), m('C', byte('P'), "c"), syncMsg), z(query("COMMIT"))}},
		{name: "a portal dies at Sync", steps: []step{z(parse("", "SELECT 1"), bind("c", ""), syncMsg), z(execute("c", 0), syncMsg)}},
		{name: "an unknown statement", steps: []step{z(bind("", "nosuch"), syncMsg), z(m('D', byte('S'), "nosuch"), syncMsg)}},
		{name: "a statement that exists", steps: []step{z(parse("s", "SELECT 1"), parse("s", "SELECT 2"), syncMsg), z(bind("", "s"), execute("", 0), syncMsg)}},
		{name: "Close of what is not there", steps: []step{z(m('C', byte('S'), "nosuch"), m('C', byte('P'), "nosuch"), syncMsg)}},
		{name: "Describe of both kinds", steps: []step{z(parse("s", "SELECT $1::int"), m('D', byte('S'), "s"), syncMsg), z(parse("", "SET geqo=on"), m('D', byte('S'), ""), syncMsg)}},
		{name: "Sync alone, three times", steps: []step{z(syncMsg, syncMsg, syncMsg), more, more}},
		{name: "a Bind of nonsense", steps: []step{z(parse("", "SELECT 1"), m('B', "", "", int16(-1)), syncMsg)}},
		{name: "a function call", steps: []step{z(m('F', int32(2026), int16(0), int16(0), int16(0))), z(m('F', int32(99999999), int16(0), int16(0), int16(0)))}},
		{name: "a name of 9,000 bytes", steps: []step{z(parse(strings.Repeat("n", 9000), "SELECT 1"), bind("", strings.Repeat("n", 9000)), execute("", 0), syncMsg)}},
		{name: "a Describe beyond its limit", steps: []step{{send: m('D', byte('S'), strings.Repeat("n", 10000)), gone: true}}},
		// COPY.
		{name: "COPY in", table: two, check: count, steps: []step{{send: copyIn, await: 'G'}, z(data, m('d'), m('d', []byte("3")), m('d', []byte("\n")), m('c'))}},
		{name: "COPY in, pipelined", table: two, check: count, steps: []step{z(copyIn, data, m('c'), query("SELECT 1")), more}},
		{name: "CopyFail", table: two, check: count, steps: []step{{send: copyIn, await: 'G'}, z(data, m('f', "no more"))}},
		{name: "Sync and Flush within COPY", table: two, check: count, steps: []step{{send: copyIn, await: 'G'}, z(data, syncMsg, flushMsg, data, m('c')), z(query("SELECT 1"))}},
		{name: "late COPY data", table: two, check: count, steps: []step{{send: copyIn, await: 'G'}, z(m('d', []byte("oops\n"))), z(data, data, m('c'), query("SELECT 1"))}},
		{name: "COPY data out of the blue", steps: []step{z(data, m('c'), m('f', "x"), query("SELECT 1"))}},
		{name: "another message within COPY", table: two, check: count, steps: []step{{send: copyIn, await: 'G'}, {send: join(data, query("SELECT 1")), await: 'Z'}}},
		{name: "COPY in by the extended protocol", table: two, check: count,
			steps: []step{{send: join(run("COPY "+tab+" FROM STDIN"), flushMsg), await: 'G'}, z(data, m('c'), syncMsg)}},
		{name: "COPY in by the extended protocol with an error", table: two, check: count,
			steps: []step{{send: join(run("COPY "+tab+" FROM STDIN"), flushMsg), await: 'G'}, z(m('d', []byte("oops\n")), data, m('c'), syncMsg), z(query("SELECT 1"))}},
		{name: "the end within COPY", lossy: halfClosed, table: two, check: count, steps: []step{{send: copyIn, await: 'G'}, {send: data, finish: true}}},
		{name: "goodbye within COPY", table: two, check: count, steps: []step{{send: copyIn, await: 'G'}, {send: data}}},
		{name: "the end within COPY data", lossy: halfClosed, table: two, check: count, steps: []step{{send: copyIn, await: 'G'}, {send: join(data, lying('d', 1000, "3\n")), finish: true}}},
		{name: "COPY out", steps: []step{z(query("COPY (SELECT generate_series(1,3)) TO STDOUT"))}},
		{name: "COPY out that fails", steps: []step{z(query("COPY (SELECT 1/(3-n) FROM generate_series(1,5) n) TO STDOUT"))}},
		{name: "COPY among other statements", table: two, check: count,
			steps: []step{{send: query("SELECT 1; COPY " + tab + " FROM STDIN; SELECT 2"), await: 'G'}, z(data, m('c'))}},
		// How it ends.
		{name: "the end of an idle session", steps: []step{{finish: true}}},
		{name: "goodbye in a transaction", table: two, check: count, steps: []step{z(query("BEGIN")), z(insert)}},
		{name: "the end in a transaction", table: two, check: count, steps: []step{z(query("BEGIN")), z(insert), {finish: true}}},
		{name: "goodbye right behind queries", table: two, check: count, steps: []step{{send: join(insert, insert, insert, goodbye), gone: true}}},
		{name: "goodbye with more behind it", table: two, check: count, steps: []step{{send: join(insert, goodbye, insert), gone: true}}},
		{name: "the end right behind a query", lossy: halfClosed, table: two, check: count, steps: []step{{send: insert, finish: true}}},
		{name: "the end right behind a thousand queries", lossy: halfClosed, table: two, check: strings.Replace(count, "string_agg(n::text, ',' ORDER BY n)", "count(*)::text", 1),
			steps: []step{{send: repeat(1000, insert), finish: true}}},
		{name: "the end right behind an open batch", lossy: halfClosed, table: two, check: count, steps: []step{{send: run("INSERT INTO " + tab + " VALUES (1)"), finish: true}}},
		{name: "the end while a query runs", lossy: halfClosed, table: two, check: count, steps: []step{{send: query("SELECT pg_sleep(0.1); INSERT INTO " + tab + " VALUES (1)"), finish: true}}},
		{name: "ended by the server", steps: []step{{send: query("SELECT pg_terminate_backend(pg_backend_pid())"), gone: true}}},
		{name: "ended by a timeout of the server", steps: []step{z(query("SET idle_session_timeout = 50")), {gone: true}}},
	}
}

const (
	broken = "a client that breaks the protocol is told so at once, not behind the answers it has coming; " +
		"what it had sent before is done all the same"
	halfClosed = "a client that closes its half of the stream is taken to have left and gets no further answer; " +
		"what it had sent before is done all the same"
)

// TestWireSessionsAreAnsweredAsPostgresAnswersThem covers what a client may send in a session, framing errors, COPY and
// ends included.
func TestWireSessionsAreAnsweredAsPostgresAnswersThem(t *testing.T) {
	scripts := sessionScripts()
	for i := range scripts {
		scripts[i].login = "trustuser"
	}
	compare(t, "tcp", server.Addr(), scripts, map[string]accepted{})
}
