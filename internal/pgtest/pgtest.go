// Package pgtest is the test kit: a real PostgreSQL per test or per package (Start, StartMain), a TCP relay with
// faults (Relay) and a client that speaks the raw protocol (Raw). See pgserver for the roles and the database every
// server has.
package pgtest

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"pgedge/internal/pgserver"
)

// Database is the database every server has, beside postgres; everybody may create objects in it.
const Database = pgserver.Database

// Patience bounds every wait of this package. It turns a hang into a failure; no test asserts speed with it.
const Patience = 30 * time.Second

// logTailBytes of the server's log are shown when a test fails.
const logTailBytes = 4 << 10

// Options says how the server is set up; see pgserver.Options for the effect of each field.
type Options struct {
	MaxConnections int // default 200
	HBA            []string
	Settings       map[string]string
	TLS            bool
	Durable        bool
}

// Server is a running server with helpers that fail the test instead of returning an error.
type Server struct {
	*pgserver.Server
}

// Password returns the password of a standard role, "alice-secret" for alice.
func Password(role string) string { return pgserver.Password(role) }

// Start starts a server and stops it when the test ends. A machine without Postgres fails the test: a promise that
// was not checked must not look kept.
func Start(tb testing.TB, o Options) *Server {
	tb.Helper()
	s, err := StartMain(o)
	if err != nil {
		tb.Fatalf("cannot start a test server: %v", err)
	}
	tb.Cleanup(func() {
		if log := s.Log(); tb.Failed() {
			tb.Logf("the end of the server's log:\n%s", log[max(0, len(log)-logTailBytes):])
		}
		if err := s.Stop(); err != nil {
			tb.Errorf("cannot stop the test server: %v", err)
		}
	})
	return s
}

// StartMain starts a server for a whole package, from TestMain, which calls Stop before os.Exit.
func StartMain(o Options) (*Server, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	s, err := pgserver.New(ctx, pgserver.Options{
		MaxConnections: o.MaxConnections, HBA: o.HBA, Settings: o.Settings, TLS: o.TLS, Durable: o.Durable, Cache: true,
	})
	if err != nil {
		return nil, err
	}
	return &Server{Server: s}, nil
}

// Conn opens a superuser connection to Database over the unix socket, past any proxy. It is closed with the test.
func (s *Server) Conn(tb testing.TB) *pgx.Conn {
	tb.Helper()
	ctx, cancel := bounded()
	defer cancel()
	conn, err := s.Connect(ctx, Database)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		ctx, cancel := bounded()
		defer cancel()
		_ = conn.Close(ctx) // The server may have been stopped by the test.
	})
	return conn
}

// Exec runs statements in Database as the superuser, each in its own transaction.
func (s *Server) Exec(tb testing.TB, sql ...string) {
	tb.Helper()
	ctx, cancel := bounded()
	defer cancel()
	if err := s.Server.Exec(ctx, sql...); err != nil {
		tb.Fatal(err)
	}
}

// QueryInt runs a query that returns one integer in Database as the superuser. NULL counts as an error.
func (s *Server) QueryInt(tb testing.TB, sql string, args ...any) int64 {
	tb.Helper()
	return query[int64](tb, s, sql, args)
}

// QueryString is QueryInt for one text.
func (s *Server) QueryString(tb testing.TB, sql string, args ...any) string {
	tb.Helper()
	return query[string](tb, s, sql, args)
}

func query[T any](tb testing.TB, s *Server, sql string, args []any) (v T) {
	tb.Helper()
	s.withConn(tb, func(ctx context.Context, conn *pgx.Conn) {
		if err := conn.QueryRow(ctx, sql, args...).Scan(&v); err != nil {
			tb.Fatalf("cannot run %q: %v", sql, err)
		}
	})
	return v
}

// withConn lends f a superuser's connection for as long as a test may wait.
func (s *Server) withConn(tb testing.TB, f func(context.Context, *pgx.Conn)) {
	tb.Helper()
	ctx, cancel := bounded()
	defer cancel()
	conn, err := s.Connect(ctx, Database)
	if err != nil {
		tb.Fatal(err)
	}
	defer conn.Close(ctx)
	f(ctx, conn)
}

// WaitInt waits until a query returns want, at most Patience. This is how a test waits for a state that only the
// database knows, for example that a backend waits for a lock.
func (s *Server) WaitInt(tb testing.TB, want int64, sql string, args ...any) {
	tb.Helper()
	s.withConn(tb, func(ctx context.Context, conn *pgx.Conn) {
		var got int64
		Wait(tb, fmt.Sprintf("%q to return %d", sql, want), func() bool {
			if err := conn.QueryRow(ctx, sql, args...).Scan(&got); err != nil {
				tb.Fatalf("cannot run %q (last result %d): %v", sql, got, err)
			}
			return got == want
		})
	})
}

// Backends returns the number of client backends of a role.
func (s *Server) Backends(tb testing.TB, role string) int64 {
	tb.Helper()
	return s.QueryInt(tb, backendsOf, role)
}

// WaitBackends waits until a role has exactly n client backends.
func (s *Server) WaitBackends(tb testing.TB, role string, n int64) {
	tb.Helper()
	s.WaitInt(tb, n, backendsOf, role)
}

const backendsOf = "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend' AND usename = $1"

// Wait polls a condition until it holds and fails the test after Patience. Prefer a channel; this is for states
// that nothing announces.
func Wait(tb testing.TB, what string, holds func() bool) {
	tb.Helper()
	deadline := time.NewTimer(Patience)
	defer deadline.Stop()
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for !holds() {
		select {
		case <-tick.C:
		case <-deadline.C:
			tb.Fatalf("waited %v in vain for %s", Patience, what)
		}
	}
}

func bounded() (context.Context, context.CancelFunc) {
	return context.WithTimeout(context.Background(), Patience)
}
