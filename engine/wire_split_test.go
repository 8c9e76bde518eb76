package engine

import (
	"bytes"
	"context"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/jackc/pgx/v5"

	"pgedge/internal/pgtest"
)

var conversations atomic.Int64

// conversation goes once through what a session can be asked for.
func conversation(t *testing.T, c *pgx.Conn) {
	t.Helper()
	ctx := bounded(t)
	// Conversations run side by side in one database: each has a channel of its own.
	channel := fmt.Sprintf("split_%d", conversations.Add(1))
	for _, sql := range []string{"LISTEN " + channel, "NOTIFY " + channel + ", 'payload'", "SET application_name = 'split'"} {
		if _, err := c.Exec(ctx, sql); err != nil {
			t.Fatal(err)
		}
	}
	if got, err := c.WaitForNotification(ctx); err != nil || got.PID != c.PgConn().PID() || got.Payload != "payload" {
		t.Fatalf("notification %+v, %v", got, err)
	}
	var sum int
	if err := c.QueryRow(ctx, "SELECT $1::int + $2::int", 40, 2).Scan(&sum); err != nil || sum != 42 {
		t.Fatalf("%d, %v", sum, err)
	}
	_, err := c.Exec(ctx, "SELECT 1/0")
	expectCode(t, err, "22012")
	pipelineWithError(t, ctx, c)
	if _, err := c.Exec(ctx, "CREATE TEMP TABLE split (n int)"); err != nil {
		t.Fatal(err)
	}
	if tag, err := c.PgConn().CopyFrom(ctx, strings.NewReader("1\n2\n3\n"), "COPY split FROM STDIN"); err != nil || tag.RowsAffected() != 3 {
		t.Fatalf("%v, %v", tag, err)
	}
	var out bytes.Buffer
	if _, err := c.PgConn().CopyTo(ctx, &out, "COPY (SELECT n FROM split ORDER BY n) TO STDOUT"); err != nil || out.String() != "1\n2\n3\n" {
		t.Fatalf("%q, %v", out.String(), err)
	}
	if c.PgConn().ParameterStatus("application_name") != "split" {
		t.Error("the change of a setting did not arrive")
	}
}

// loginAt logs in at any address of the node's.
func loginAt(t *testing.T, addr, user string) *pgx.Conn {
	t.Helper()
	c, err := pgx.Connect(bounded(t), fmt.Sprintf("postgres://%s:%s@%s/%s?sslmode=disable", user, pgtest.Password(user), addr, pgtest.Database))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close(context.Background()) })
	return c
}

func TestWireStreamsCutAtEveryByteArriveWhole(t *testing.T) {
	for _, sslmode := range []string{"disable", "require"} {
		t.Run("sslmode "+sslmode, func(t *testing.T) {
			back := pgtest.NewRelay(t, server.Addr())
			n := startNode(t, func(c *Config) {
				u := controlUpstream(t, "pgedge_control", back.Addr(), "?sslmode="+sslmode)
				u.Control = nil
				c.Databases = map[string]Database{"*": {Upstream: u}}
			})
			front := pgtest.NewRelay(t, n.addr)
			back.Chunk(1)
			for _, user := range []string{"alice", "md5user"} {
				conversation(t, loginAt(t, n.addr, user))
			}
			front.Chunk(1)
			conversation(t, loginAt(t, front.Addr(), "alice"))
			back.Chunk(0)
			conversation(t, loginAt(t, front.Addr(), "clearuser"))
		})
	}
}

func TestWireManySmallMessagesInOneWrite(t *testing.T) {
	n := startNode(t, nil)
	c := loginPlain(t, n.addr)
	const count = 20_000
	go c.send(join(repeat(count, syncMsg), query("SELECT 'last'")))
	for range count {
		if f, err := c.next(); err != nil || f.typ != 'Z' {
			t.Fatalf("got %q, %v", f.typ, err)
		}
	}
	if got := spell(c.until('Z')); !strings.Contains(got, "last") {
		t.Errorf("got %s", got)
	}
}

func TestWireBytesSentOneByOne(t *testing.T) {
	n := startNode(t, nil)
	c := dialPlain(t, "tcp", n.addr)
	everything := join(startup("user", "trustuser", "database", pgtest.Database),
		query("SELECT 1"), m('P', "", "SELECT 2", int16(0)), m('B', "", "", int16(0), int16(0), int16(0)), m('E', "", int32(0)), syncMsg,
		query("COPY (SELECT 3) TO STDOUT"), goodbye)
	for i := range everything {
		c.send(everything[i : i+1])
	}
	frames := c.rest()
	ready := 0
	for _, f := range frames {
		if f.typ == 'Z' {
			ready++
		}
	}
	if got := spell(frames); ready != 4 || strings.Contains(got, "E(") || !strings.Contains(got, `d("3\n")`) {
		t.Errorf("got %s", got)
	}
}
