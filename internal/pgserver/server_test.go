package pgserver

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// bound is generous: it turns a hang into a failure and asserts no speed.
func bound(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), 90*time.Second)
	t.Cleanup(cancel)
	return ctx
}

func start(t *testing.T, o Options) *Server {
	t.Helper()
	o.Cache = true
	s, err := New(bound(t), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Stop(); err != nil {
			t.Error(err)
		}
	})
	return s
}

func TestEveryStandardRoleLogsInByItsMethodAndNotWithAWrongPassword(t *testing.T) {
	s := start(t, Options{})
	ctx := bound(t)
	for _, r := range append([]Role{{Name: s.Superuser, Method: "scram-sha-256"}}, Roles...) {
		t.Run(r.Name, func(t *testing.T) {
			cfg, err := pgx.ParseConfig(s.URL(r.Name, Password(r.Name), Database) + "?sslmode=disable")
			if err != nil {
				t.Fatal(err)
			}
			seen := spyOnAuthentication(cfg)
			conn, err := pgx.ConnectConfig(ctx, cfg)
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close(ctx)
			var user, super string
			if err := conn.QueryRow(ctx, "SELECT current_user, current_setting('is_superuser')").Scan(&user, &super); err != nil {
				t.Fatal(err)
			}
			if wantSuper := map[bool]string{true: "on", false: "off"}[r.Name == superuser]; user != r.Name || super != wantSuper {
				t.Errorf("logged in as %s (superuser %s), want %s (superuser %s)", user, super, r.Name, wantSuper)
			}
			if want := map[string]uint32{"trust": 0, "password": 3, "md5": 5, "scram-sha-256": 10}[r.Method]; seen() != want {
				t.Errorf("the server asked for authentication type %d, want %d for %s", seen(), want, r.Method)
			}

			_, err = pgx.Connect(ctx, s.URL(r.Name, "wrong", Database)+"?sslmode=disable")
			var pgErr *pgconn.PgError
			switch refused := errors.As(err, &pgErr) && pgErr.Code == "28P01"; {
			case r.Method == "trust" && err != nil:
				t.Errorf("trust refused a login: %v", err)
			case r.Method != "trust" && !refused:
				t.Errorf("a wrong password gave %v, want 28P01", err)
			}
		})
	}
}

// spyOnAuthentication returns a function that tells the type of the first authentication request.
func spyOnAuthentication(cfg *pgx.ConnConfig) func() uint32 {
	var first []byte
	dial := cfg.DialFunc
	cfg.DialFunc = func(ctx context.Context, network, addr string) (net.Conn, error) {
		c, err := dial(ctx, network, addr)
		if err != nil {
			return nil, err
		}
		return &spyConn{Conn: c, first: &first}, nil
	}
	return func() uint32 {
		if len(first) < 9 || first[0] != 'R' {
			return ^uint32(0)
		}
		return uint32(first[8])
	}
}

type spyConn struct {
	net.Conn
	first *[]byte
}

func (c *spyConn) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	if len(*c.first) < 9 {
		*c.first = append(*c.first, b[:n]...)
	}
	return n, err
}

func TestTheControlRoleMaySignalAndSeeAndTheWeakOneMayOnlySignal(t *testing.T) {
	s := start(t, Options{})
	ctx := bound(t)
	alice, err := pgx.Connect(ctx, s.URL("alice", Password("alice"), Database))
	if err != nil {
		t.Fatal(err)
	}
	defer alice.Close(ctx)
	for role, sees := range map[string]bool{"pgedge_control": true, "pgedge_weak": false} {
		conn, err := pgx.Connect(ctx, s.URL(role, Password(role), Database))
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close(ctx)
		var got, signals bool
		const q = "SELECT backend_start IS NOT NULL, pg_has_role('pg_signal_backend', 'member') FROM pg_stat_activity WHERE pid = $1"
		if err := conn.QueryRow(ctx, q, int32(alice.PgConn().PID())).Scan(&got, &signals); err != nil {
			t.Fatal(err)
		}
		if got != sees || !signals {
			t.Errorf("%s sees start times: %v, signals: %v; want %v, true", role, got, signals, sees)
		}
	}
}

func TestVerifyFullWorksAgainstTheServersOwnAuthority(t *testing.T) {
	s := start(t, Options{TLS: true})
	ctx := bound(t)
	conn, err := pgx.Connect(ctx, s.URL("alice", Password("alice"), Database)+"?sslmode=verify-full&sslrootcert="+s.CAFile)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(ctx)
	if _, ok := conn.PgConn().Conn().(*tls.Conn); !ok {
		t.Errorf("the connection is a %T, want TLS", conn.PgConn().Conn())
	}
	stranger := start(t, Options{TLS: true})
	if _, err := pgx.Connect(ctx, s.URL("alice", Password("alice"), Database)+"?sslmode=verify-full&sslrootcert="+stranger.CAFile); err == nil {
		t.Error("another server's authority was accepted")
	}
}

func TestOptionsReachTheServer(t *testing.T) {
	s := start(t, Options{
		MaxConnections: 37,
		HBA:            []string{"host all bob all reject"},
		Settings:       map[string]string{"application_name": "it's mine"},
	})
	ctx := bound(t)
	conn, err := s.Connect(ctx, Database)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(ctx)
	var max, name string
	if err := conn.QueryRow(ctx, "SELECT current_setting('max_connections'), reset_val FROM pg_settings WHERE name = 'log_line_prefix'").Scan(&max, &name); err != nil {
		t.Fatal(err)
	}
	if max != "37" {
		t.Errorf("max_connections is %s, want 37", max)
	}
	var file string
	if err := conn.QueryRow(ctx, "SELECT setting FROM pg_file_settings WHERE name = 'application_name'").Scan(&file); err != nil || file != "it's mine" {
		t.Errorf("the quoted setting is %q (%v), want %q", file, err, "it's mine")
	}
	if _, err := pgx.Connect(ctx, s.URL("bob", Password("bob"), Database)); err == nil {
		t.Error("bob logged in although an earlier pg_hba line rejects him")
	}
}

func TestStopEndsTheServerUnderLoadAndRemovesItsDirectory(t *testing.T) {
	s := start(t, Options{})
	ctx := bound(t)
	conn, err := pgx.Connect(ctx, s.URL("alice", Password("alice"), Database))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(ctx)
	busy := make(chan error, 1)
	go func() {
		_, err := conn.Exec(ctx, "SELECT pg_sleep(600)")
		busy <- err
	}()
	if err := s.Stop(); err != nil {
		t.Fatal(err)
	}
	if err := <-busy; err == nil {
		t.Error("the running statement ended without an error")
	}
	if _, err := os.Stat(s.DataDir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the data directory is still there: %v", err)
	}
	if _, err := net.DialTimeout("tcp", s.Addr(), time.Second); err == nil {
		t.Error("the port still answers")
	}
}

func TestABadSettingFailsTheStartWithTheServersOwnWords(t *testing.T) {
	_, err := New(bound(t), Options{Cache: true, Settings: map[string]string{"no_such_setting": "1"}})
	if err == nil || !strings.Contains(err.Error(), "no_such_setting") {
		t.Fatalf("got %v, want the server's complaint about no_such_setting", err)
	}
}

func TestFindNamesTheOverrideThatHoldsNoServer(t *testing.T) {
	t.Setenv(BinDirEnv, t.TempDir())
	if _, err := Find(); !errors.Is(err, ErrNotFound) || !strings.Contains(err.Error(), BinDirEnv) {
		t.Fatalf("got %v, want ErrNotFound naming %s", err, BinDirEnv)
	}
}

// The server must not outlive a process that is killed, and what it leaves on disk is swept by the next start.
func TestAKilledProcessTakesItsServerAlong(t *testing.T) {
	if os.Getenv("PGSERVER_CHILD") == "1" {
		s, err := New(context.Background(), Options{Cache: true})
		if err != nil {
			t.Fatal(err)
		}
		os.Stdout.WriteString("\nport " + s.Addr() + " dir " + filepath.Dir(s.DataDir) + "\n")
		select {}
	}
	cmd := exec.Command(os.Args[0], "-test.run=^"+t.Name()+"$", "-test.v")
	cmd.Env = append(os.Environ(), "PGSERVER_CHILD=1")
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	addr, dir := readChild(t, out)
	// A session that stays open sees the server go: its read ends when its backend does.
	conn, err := pgx.Connect(bound(t), URL(addr, "alice", Password("alice"), Database))
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait() // It was killed, so this is an error.
	if _, err := conn.Exec(bound(t), "SELECT pg_sleep(60)"); err == nil {
		t.Error("the server survived the process that started it")
	}
	old := time.Now().Add(-time.Hour)
	if err := os.Chtimes(dir, old, old); err != nil {
		t.Fatal(err)
	}
	sweep(filepath.Dir(dir))
	if _, err := os.Stat(dir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the killed process's directory was not swept: %v", err)
	}
}

func TestSweepLeavesALivingServersDirectoryAlone(t *testing.T) {
	s := start(t, Options{})
	dir := filepath.Dir(s.DataDir)
	old := time.Now().Add(-time.Hour)
	if err := os.Chtimes(dir, old, old); err != nil {
		t.Fatal(err)
	}
	sweep(filepath.Dir(dir))
	if err := s.ping(bound(t)); err != nil {
		t.Errorf("the server does not answer after a sweep: %v", err)
	}
}

func readChild(t *testing.T, out interface{ Read([]byte) (int, error) }) (addr, dir string) {
	t.Helper()
	var text strings.Builder
	buf := make([]byte, 512)
	for {
		n, err := out.Read(buf)
		text.Write(buf[:n])
		if _, rest, ok := strings.Cut(text.String(), "\nport "); ok && strings.Contains(rest, "\n") {
			fields := strings.Fields(rest)
			return fields[0], fields[2]
		}
		if err != nil {
			t.Fatalf("the child did not start a server: %v\n%s", err, text.String())
		}
	}
}
