package engine

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"pgedge/internal/pgtest"
)

// psqlCommand is the real psql, without the settings of whoever runs the test.
func psqlCommand(t *testing.T, addr, user, password, db string, args ...string) *exec.Cmd {
	t.Helper()
	path := filepath.Join(server.BinDir, "psql")
	if _, err := os.Stat(path); err != nil {
		if path, err = exec.LookPath("psql"); err != nil {
			t.Fatal("psql is not installed; it comes with the package that brings the server, or postgresql-client")
		}
	}
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	t.Cleanup(cancel)
	cmd := exec.CommandContext(ctx, path, append([]string{"-X", "-w", "-h", host, "-p", port, "-U", user, "-d", db}, args...)...)
	cmd.Env = []string{"PGPASSWORD=" + password, "PGSSLMODE=disable", "PGGSSENCMODE=disable", "LC_ALL=C", "PGCONNECT_TIMEOUT=30", "HOME=" + t.TempDir()}
	return cmd
}

// psql runs a script and returns both streams and the exit code.
func psql(t *testing.T, addr, user, password, db, script string, args ...string) (out string, code int) {
	t.Helper()
	cmd := psqlCommand(t, addr, user, password, db, append([]string{"-v", "VERBOSITY=verbose"}, args...)...)
	cmd.Stdin = strings.NewReader(script)
	b, err := cmd.CombinedOutput()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	return strings.ReplaceAll(string(b), addr[strings.LastIndexByte(addr, ':')+1:], "PORT"), cmd.ProcessState.ExitCode()
}

// samePsql runs a script directly and through the node, and returns what both printed.
func samePsql(t *testing.T, n *node, user, password, db, script string, args ...string) string {
	t.Helper()
	want, wantCode := psql(t, server.Addr(), user, password, db, script, args...)
	got, code := psql(t, n.addr, user, password, db, script, args...)
	if got != want || code != wantCode {
		t.Errorf("psql prints something else through the node (exit %d, directly %d)\ndirect:\n%s\nthrough:\n%s", code, wantCode, want, got)
	}
	return got
}

func TestWirePsqlSeesWhatItSeesDirectly(t *testing.T) {
	n := startNode(t, nil)
	const script = `
SELECT current_user, current_database(), 1 AS "one", NULL, 'ümläut';
SELECT 1/0;
SELEC 1;
SELECT * FROM nosuch;
DO $$BEGIN RAISE NOTICE 'note %', 1; RAISE WARNING 'warning'; END$$;
BEGIN; SELECT 1/0; SELECT 2; COMMIT;
SET application_name = 'renamed'; SHOW application_name;
SET client_encoding = 'LATIN1'; SHOW client_encoding;
SET client_encoding = 'UTF8';
CREATE TEMP TABLE t (n int, s text);
\copy t FROM STDIN
1	a
2	\N
\.
COPY t FROM STDIN;
3	c
oops
\.
PREPARE p AS SELECT count(*) FROM t; EXECUTE p; EXECUTE nosuch;
\copy (SELECT * FROM t ORDER BY n) TO STDOUT
COPY (SELECT n/(n-2) FROM t) TO STDOUT;
SELECT repeat('x', 100) FROM generate_series(1,200);
\set FETCH_COUNT 7
SELECT * FROM generate_series(1,20);
\gdesc
\d t
\conninfo
RAISE;
`
	for _, user := range []string{"alice", "md5user", "clearuser", "trustuser"} {
		t.Run(user, func(t *testing.T) {
			out := samePsql(t, n, user, pgtest.Password(user), pgtest.Database, script)
			for _, want := range []string{"22012: division by zero", "42601: syntax error", "42P01: relation \"nosuch\"", "note 1", "renamed", "ümläut"} {
				if !strings.Contains(out, want) {
					t.Errorf("%q is missing in:\n%s", want, out)
				}
			}
		})
	}
}

func TestWirePsqlIsRefusedInPostgresOwnWords(t *testing.T) {
	n := startNode(t, nil)
	for name, c := range map[string]struct{ user, password, db, want string }{
		"a wrong password":        {"alice", "wrong", pgtest.Database, `password authentication failed for user "alice"`},
		"a wrong MD5 password":    {"md5user", "wrong", pgtest.Database, `password authentication failed for user "md5user"`},
		"a wrong clear password":  {"clearuser", "wrong", pgtest.Database, `password authentication failed for user "clearuser"`},
		"an unknown role":         {"nobody", "secret", pgtest.Database, `password authentication failed for user "nobody"`},
		"an unknown database":     {"alice", pgtest.Password("alice"), "nosuch", `database "nosuch" does not exist`},
		"no password":             {"alice", "", pgtest.Database, "no password supplied"},
		"a role with odd letters": {`o'"d d`, "x", pgtest.Database, "password authentication failed"},
	} {
		t.Run(name, func(t *testing.T) {
			if out := samePsql(t, n, c.user, c.password, c.db, "SELECT 1"); !strings.Contains(out, c.want) {
				t.Errorf("%q is missing in:\n%s", c.want, out)
			}
		})
	}
}

func TestWireInterruptOfPsqlCancelsItsQuery(t *testing.T) {
	n := startNode(t, nil)
	const sql = "SELECT pg_sleep(300) /* psql interrupt */"
	cmd := psqlCommand(t, n.addr, "alice", pgtest.Password("alice"), pgtest.Database, "-v", "VERBOSITY=verbose", "-c", sql, "-c", "SELECT 'went on'")
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	server.WaitInt(t, 1, "SELECT count(*) FROM pg_stat_activity WHERE state = 'active' AND query = $1", sql)
	if err := cmd.Process.Signal(syscall.SIGINT); err != nil {
		t.Fatal(err)
	}
	cmd.Wait() // the exit code tells of the cancelled statement
	if !strings.Contains(out.String(), "57014: canceling statement due to user request") {
		t.Errorf("psql printed:\n%s", out.String())
	}
	server.WaitInt(t, 0, "SELECT count(*) FROM pg_stat_activity WHERE query = $1", sql)
}

func TestWirePsqlHearsItsOwnNotification(t *testing.T) {
	n := startNode(t, nil)
	cmd := psqlCommand(t, n.addr, "alice", pgtest.Password("alice"), pgtest.Database)
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stderr = cmd.Stdout
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	io.WriteString(in, "LISTEN psql_ch;\nNOTIFY psql_ch, 'hello';\nSELECT 1;\n")
	in.Close()
	lines, heard := bufio.NewScanner(stdout), false
	for lines.Scan() {
		heard = heard || strings.Contains(lines.Text(), `Asynchronous notification "psql_ch" with payload "hello"`)
	}
	if err := cmd.Wait(); err != nil || !heard {
		t.Errorf("psql did not hear it: %v", err)
	}
}
