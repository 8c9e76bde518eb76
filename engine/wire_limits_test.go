package engine

import (
	"encoding/binary"
	"fmt"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"pgedge/internal/pgtest"
)

// openDatabase logs in as the role that needs no password, to any database.
func (n *node) openDatabase(db string) (*pgx.Conn, error) {
	c, err := pgx.Connect(bounded(n.t), fmt.Sprintf("postgres://trustuser@%s/%s?sslmode=disable", n.addr, db))
	if err == nil {
		n.t.Cleanup(func() { c.Close(bounded(n.t)) })
	}
	return c, err
}

func databaseOf(t *testing.T, c *pgx.Conn) string {
	t.Helper()
	var db string
	if err := c.QueryRow(bounded(t), "SELECT current_database()").Scan(&db); err != nil {
		t.Fatal(err)
	}
	return db
}

func TestWireDatabaseNamesLeadWhereTheConfigurationSays(t *testing.T) {
	n := startNode(t, func(c *Config) {
		u := controlUpstream(t, "pgedge_control", server.Addr(), "?sslmode=disable")
		named, same := u, u
		named.Database, same.Database = "postgres", ""
		c.Databases = map[string]Database{"shop": {Upstream: named}, pgtest.Database: {Upstream: same}}
	})
	for asked, want := range map[string]string{"shop": "postgres", pgtest.Database: pgtest.Database} {
		c, err := n.openDatabase(asked)
		if err != nil {
			t.Fatalf("%s: %v", asked, err)
		}
		if got := databaseOf(t, c); got != want {
			t.Errorf("%s leads to %s, want %s", asked, got, want)
		}
	}
	_, err := n.openDatabase("postgres") // it exists on the server, and no entry leads there
	if pg := expectCode(t, err, "3D000"); pg.Message != `database "postgres" does not exist` || pg.Severity != "FATAL" {
		t.Errorf("got %+v", pg)
	}
}

func TestWireFallbackPassesTheNameOn(t *testing.T) {
	n := startNode(t, func(c *Config) {
		u := controlUpstream(t, "pgedge_control", server.Addr(), "?sslmode=disable")
		u.Database = "postgres"
		c.Databases = map[string]Database{"shop": {Upstream: u}, "*": {Upstream: u}}
	})
	for asked, want := range map[string]string{"shop": "postgres", pgtest.Database: pgtest.Database, "postgres": "postgres"} {
		c, err := n.openDatabase(asked)
		if err != nil {
			t.Fatalf("%s: %v", asked, err)
		}
		if got := databaseOf(t, c); got != want {
			t.Errorf("%s leads to %s, want %s", asked, got, want)
		}
	}
	_, err := n.openDatabase("nosuch")
	if pg := expectCode(t, err, "3D000"); pg.File == "" {
		t.Errorf("the node refused it and not the server: %+v", pg)
	}
}

// expectFull fails unless the next login is told 53300, and the one after a session's end is welcome.
func expectFull(t *testing.T, n *node, last *pgx.Conn, connect func() (*pgx.Conn, error), text string) {
	t.Helper()
	for range 3 {
		_, err := connect()
		if pg := expectCode(t, err, "53300"); pg.Message != text || pg.Severity != "FATAL" {
			t.Errorf("got %s %q, want %q", pg.Severity, pg.Message, text)
		}
	}
	if err := last.Close(bounded(t)); err != nil {
		t.Fatal(err)
	}
	// The place is free when the session's backend has ended, which nothing tells the client.
	pgtest.Wait(t, "the place to be free", func() bool {
		_, err := connect()
		if pg, ok := err.(*pgconn.ConnectError); ok && !strings.Contains(pg.Error(), "53300") {
			t.Fatal(err)
		}
		return err == nil
	})
}

func TestWireMaxSessions(t *testing.T) {
	n := startNode(t, func(c *Config) { c.Limits.MaxSessions = 2 })
	n.login("alice")
	expectFull(t, n, n.login("bob"), func() (*pgx.Conn, error) { return n.openDatabase(pgtest.Database) }, "sorry, too many clients already")
}

func TestWirePerPrincipal(t *testing.T) {
	n := startNode(t, func(c *Config) { c.Limits.PerPrincipal = 2 })
	n.login("alice")
	n.login("alice")
	n.login("trustuser")
	expectFull(t, n, n.login("trustuser"), func() (*pgx.Conn, error) { return n.openDatabase(pgtest.Database) }, `too many connections for "trustuser"`)
	n.login("bob")
}

func TestWireMaxBackendsOfOneDatabase(t *testing.T) {
	n := startNode(t, func(c *Config) {
		u := controlUpstream(t, "pgedge_control", server.Addr(), "?sslmode=disable")
		c.Databases = map[string]Database{pgtest.Database: {Upstream: u, MaxBackends: 1}, "*": {Upstream: u}}
	})
	expectFull(t, n, n.login("alice"), func() (*pgx.Conn, error) { return n.openDatabase(pgtest.Database) }, "too many connections for this database")
	if _, err := n.openDatabase("postgres"); err != nil {
		t.Errorf("the other database is full too: %v", err)
	}
}

// TestWireRevokeOfACutNameHoldsForTheLongName: Postgres cuts names at 63 bytes, so whoever logs in with more is the
// same role.
func TestWireRevokeOfACutNameHoldsForTheLongName(t *testing.T) {
	role := strings.Repeat("a", 63)
	server.Exec(t, `DROP ROLE IF EXISTS "`+role+`"`, `CREATE ROLE "`+role+`" LOGIN PASSWORD 'long'`)
	n := startNode(t, nil)
	connect := func(user string) (*pgx.Conn, error) {
		return pgx.Connect(bounded(t), fmt.Sprintf("postgres://%s:long@%s/%s?sslmode=disable", user, n.addr, pgtest.Database))
	}
	c, err := connect(role + "a")
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close(bounded(t))
	n.verified(n.revoke(role), 1)
	_, err = c.Exec(bounded(t), "SELECT 1")
	expectCode(t, err, "28000")
	for _, user := range []string{role, role + "a", role + strings.Repeat("b", 200)} {
		_, err := connect(user)
		expectCode(t, err, "28000")
	}
	if _, err := connect(role[:62]); err == nil {
		t.Error("a shorter name logged in")
	} else {
		expectCode(t, err, "28P01") // another name, of whom nothing is known
	}
}

func TestWireReplicationConnectionsPass(t *testing.T) {
	s := pgtest.Start(t, pgtest.Options{HBA: []string{"host replication trustuser all trust"}})
	s.Exec(t, "ALTER ROLE trustuser REPLICATION")
	n := through(t, s.Addr(), nil)
	for _, mode := range []string{"true", "database"} {
		t.Run(mode, func(t *testing.T) {
			c := dialPlain(t, "tcp", n.addr)
			c.send(startup("user", "trustuser", "database", pgtest.Database, "replication", mode))
			c.until('Z')
			c.send(query("IDENTIFY_SYSTEM"))
			frames := c.until('Z')
			if got := spell(frames); frames[1].typ != 'D' || mode == "database" != strings.Contains(got, `\x03app`) {
				t.Fatalf("IDENTIFY_SYSTEM: %s", got)
			}
			c.send(query("START_REPLICATION PHYSICAL 0/1000000 TIMELINE 1"))
			c.until('W') // from here on both sides send at once
			c.until('d')
			status := binary.BigEndian.AppendUint64([]byte{'r'}, 0x1000000)
			status = append(status, make([]byte, 24)...)
			c.send(join(m('d', status, byte(1)), m('d', status, byte(1)))) // asks for an answer
			for keepalives := 0; keepalives < 1; {
				if f := c.until('d'); f[len(f)-1].body[0] == 'k' {
					keepalives++
				}
			}
			c.send(m('c'))
			c.until('Z')
			c.send(query("SHOW wal_level"))
			if got := spell(c.until('Z')); !strings.Contains(got, "replica") {
				t.Errorf("after the stream: %s", got)
			}
			c.send(goodbye)
			c.rest()
		})
	}
}
