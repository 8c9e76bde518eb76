package engine

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgconn/ctxwatch"

	"pgedge/internal/pgtest"
)

// expectCode fails unless err is a server's error of a SQLSTATE.
func expectCode(t *testing.T, err error, code string) *pgconn.PgError {
	t.Helper()
	var pg *pgconn.PgError
	if !errors.As(err, &pg) || pg.Code != code {
		t.Fatalf("got %v, want SQLSTATE %s", err, code)
	}
	return pg
}

func TestWirePgxQueriesBatchesAndPipelines(t *testing.T) {
	n := startNode(t, nil)
	for _, user := range []string{"alice", "md5user", "clearuser", "trustuser"} {
		t.Run(user, func(t *testing.T) {
			ctx, c := bounded(t), n.login(user)
			for _, mode := range []pgx.QueryExecMode{pgx.QueryExecModeCacheStatement, pgx.QueryExecModeCacheDescribe,
				pgx.QueryExecModeDescribeExec, pgx.QueryExecModeExec, pgx.QueryExecModeSimpleProtocol} {
				var sum int
				var who string
				if err := c.QueryRow(ctx, "SELECT $1::int + 1, current_user", mode, 41).Scan(&sum, &who); err != nil || sum != 42 || who != user {
					t.Fatalf("%v: got %d, %q, %v", mode, sum, who, err)
				}
				_, err := c.Exec(ctx, "SELECT 1 / $1::int", mode, 0)
				expectCode(t, err, "22012")
			}
			batchOfMany(t, ctx, c)
			pipelineWithError(t, ctx, c)
		})
	}
}

func batchOfMany(t *testing.T, ctx context.Context, c *pgx.Conn) {
	t.Helper()
	b := &pgx.Batch{}
	const size = 500
	for i := range size {
		b.Queue("SELECT $1::int, repeat('x', $1::int)", i)
	}
	results := c.SendBatch(ctx, b)
	for i := range size {
		var got int
		var text string
		if err := results.QueryRow().Scan(&got, &text); err != nil || got != i || len(text) != i {
			t.Fatalf("result %d of the batch: %d and %d bytes, %v", i, got, len(text), err)
		}
	}
	if err := results.Close(); err != nil {
		t.Fatal(err)
	}
}

// pipelineWithError sends three parts, each with its Sync, before it reads anything; the second one fails.
func pipelineWithError(t *testing.T, ctx context.Context, c *pgx.Conn) {
	t.Helper()
	p := c.PgConn().StartPipeline(ctx)
	for _, sql := range []string{"SELECT 1", "SELECT 1/0", "SELECT 3"} {
		p.SendQueryParams(sql, nil, nil, nil, nil)
		p.SendQueryParams("SELECT 'second of its part'", nil, nil, nil, nil)
		p.SendPipelineSync()
	}
	if err := p.Flush(); err != nil {
		t.Fatal(err)
	}
	var got []string
	for len(got) < 8 {
		switch r, err := p.GetResults(); r := r.(type) {
		case *pgconn.ResultReader:
			if res := r.Read(); res.Err != nil {
				got = append(got, expectCode(t, res.Err, "22012").Code)
			} else {
				got = append(got, string(res.Rows[0][0]))
			}
		case *pgconn.PipelineSync:
			got = append(got, "sync")
		default:
			if err == nil {
				t.Fatalf("the pipeline ended after %v", got)
			}
			got = append(got, expectCode(t, err, "22012").Code)
		}
	}
	want := []string{"1", "second of its part", "sync", "22012", "sync", "3", "second of its part", "sync"}
	if !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
	if err := p.Close(); err != nil {
		t.Fatal(err)
	}
}

func TestWireServerErrorsArriveWithAllTheirFields(t *testing.T) {
	n := startNode(t, nil)
	const sql = `DO $$BEGIN RAISE EXCEPTION USING ERRCODE='ABCDE', MESSAGE='m', DETAIL='d', HINT='h', SCHEMA='s', TABLE='t', COLUMN='c', DATATYPE='y', CONSTRAINT='x'; END$$`
	var errs [2]*pgconn.PgError
	for i, addr := range []string{server.Addr(), n.addr} {
		c, err := pgx.Connect(bounded(t), fmt.Sprintf("postgres://alice:%s@%s/%s?sslmode=disable", pgtest.Password("alice"), addr, pgtest.Database))
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close(context.Background())
		_, err = c.Exec(bounded(t), sql)
		errs[i] = expectCode(t, err, "ABCDE")
	}
	if *errs[0] != *errs[1] {
		t.Errorf("directly  %+v\nthrough  %+v", *errs[0], *errs[1])
	}
}

func TestWireNoticesAndSettingsArrive(t *testing.T) {
	n := startNode(t, nil)
	cfg, err := pgx.ParseConfig(n.url("alice") + "&application_name=first")
	if err != nil {
		t.Fatal(err)
	}
	var notices []string
	cfg.OnNotice = func(_ *pgconn.PgConn, n *pgconn.Notice) { notices = append(notices, n.Code+" "+n.Message) }
	c, err := pgx.ConnectConfig(bounded(t), cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close(context.Background())
	status := c.PgConn().ParameterStatus
	if status("application_name") != "first" || status("server_version") == "" || status("client_encoding") != "UTF8" {
		t.Errorf("application_name %q, server_version %q, client_encoding %q", status("application_name"), status("server_version"), status("client_encoding"))
	}
	for _, sql := range []string{"SET application_name = 'second'", "SET TimeZone = 'Asia/Tokyo'", "DO $$BEGIN RAISE NOTICE 'a'; RAISE WARNING 'b'; END$$", "ROLLBACK"} {
		if _, err := c.Exec(bounded(t), sql); err != nil {
			t.Fatal(err)
		}
	}
	if status("application_name") != "second" || status("TimeZone") != "Asia/Tokyo" {
		t.Errorf("application_name %q, TimeZone %q", status("application_name"), status("TimeZone"))
	}
	if want := []string{"00000 a", "01000 b", "25P01 there is no transaction in progress"}; !slices.Equal(notices, want) {
		t.Errorf("notices %q, want %q", notices, want)
	}
}

func TestWireNotificationsCarryThePidTheClientWasGiven(t *testing.T) {
	n := startNode(t, nil)
	listener, other := n.login("alice"), n.login("bob")
	ctx := bounded(t)
	mustExec := func(c *pgx.Conn, sql string) {
		t.Helper()
		if _, err := c.Exec(ctx, sql); err != nil {
			t.Fatal(err)
		}
	}
	var realPID uint32
	if err := listener.QueryRow(ctx, "SELECT pg_backend_pid()").Scan(&realPID); err != nil {
		t.Fatal(err)
	}
	if pid := listener.PgConn().PID(); pid == realPID || int32(pid) <= 0 {
		t.Errorf("the client was given the pid %d; its backend's is %d", pid, realPID)
	}
	mustExec(listener, "LISTEN ch")
	mustExec(listener, "NOTIFY ch, 'self'")
	expect := func(pid uint32, payload string) {
		t.Helper()
		got, err := listener.WaitForNotification(ctx)
		if err != nil || got.PID != pid || got.Channel != "ch" || got.Payload != payload {
			t.Fatalf("got %+v, %v; want %q from pid %d", got, err, payload, pid)
		}
	}
	expect(listener.PgConn().PID(), "self")
	var otherPID uint32
	if err := other.QueryRow(ctx, "SELECT pg_backend_pid()").Scan(&otherPID); err != nil {
		t.Fatal(err)
	}
	long := strings.Repeat("y", 7999)
	for _, payload := range []string{"", "while idle", long} {
		heard := make(chan struct{})
		go func() { defer close(heard); expect(otherPID, payload) }()
		mustExec(other, "NOTIFY ch, '"+payload+"'") // comes while the listener waits without having asked anything
		<-heard
	}
	const many = 3000
	mustExec(listener, fmt.Sprintf("SELECT pg_notify('ch', 'number ' || n) FROM generate_series(1,%d) n", many))
	for i := range many {
		expect(listener.PgConn().PID(), fmt.Sprintf("number %d", i+1))
	}
}

func TestWireContextCancelCancelsTheQueryAndKeepsTheSession(t *testing.T) {
	n := startNode(t, nil)
	cfg, err := pgx.ParseConfig(n.url("alice"))
	if err != nil {
		t.Fatal(err)
	}
	cfg.BuildContextWatcherHandler = func(c *pgconn.PgConn) ctxwatch.Handler {
		return &pgconn.CancelRequestContextWatcherHandler{Conn: c, DeadlineDelay: patience}
	}
	c, err := pgx.ConnectConfig(bounded(t), cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close(context.Background())
	const sql = "SELECT pg_sleep(300) /* context cancel */"
	ctx, cancel := context.WithCancel(context.Background())
	go func() {
		server.WaitInt(t, 1, "SELECT count(*) FROM pg_stat_activity WHERE state = 'active' AND query = $1", sql)
		cancel()
	}()
	_, err = c.Exec(ctx, sql, pgx.QueryExecModeSimpleProtocol)
	expectCode(t, err, "57014")
	var one int
	if err := c.QueryRow(bounded(t), "SELECT 1").Scan(&one); err != nil || one != 1 {
		t.Fatalf("the session did not go on: %d, %v", one, err)
	}
}

func TestWireFiftyMegabytesInOneParameterAndOneResult(t *testing.T) {
	n := startNode(t, nil)
	c := n.login("alice")
	text := strings.Repeat("0123456789abcdef", 50<<20/16)
	var back, sum string
	if err := c.QueryRow(bounded(t), "SELECT $1::text, md5($1::text)", text).Scan(&back, &sum); err != nil {
		t.Fatal(err)
	}
	if back != text {
		t.Errorf("%d bytes came back, which are not those that were sent", len(back))
	}
	if want := server.QueryString(t, "SELECT md5(repeat('0123456789abcdef', $1))", 50<<20/16); sum != want {
		t.Errorf("the server got something else: %s, want %s", sum, want)
	}
}
