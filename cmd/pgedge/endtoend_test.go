package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgconn"

	"pgedge/internal/pgserver"
	"pgedge/internal/pgtest"
)

// natsURL is where a node says that its NATS can be reached.
func natsURL(t *testing.T, stateDir string) *url.URL {
	t.Helper()
	line, err := os.ReadFile(filepath.Join(stateDir, "nats-url"))
	if err != nil {
		t.Fatal(err)
	}
	u, err := url.Parse(strings.TrimSpace(string(line)))
	if err != nil {
		t.Fatal(err)
	}
	return u
}

// natsPublish speaks just enough of the NATS protocol to publish bare messages, as a tool would that knows nothing of
// pgedge but the subject.
func natsPublish(t *testing.T, stateDir, subject, payload string) {
	t.Helper()
	u := natsURL(t, stateDir)
	c, err := net.DialTimeout("tcp", u.Host, pgtest.Patience)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(pgtest.Patience))
	fmt.Fprintf(c, "CONNECT {\"verbose\":false,\"auth_token\":%q}\r\nPUB %s %d\r\n%s\r\nPING\r\n", u.User.Username(), subject, len(payload), payload)
	for lines := bufio.NewScanner(c); lines.Scan(); {
		switch text := lines.Text(); {
		case strings.HasPrefix(text, "PONG"):
			return
		case strings.HasPrefix(text, "-ERR"):
			t.Fatal(text)
		}
	}
	t.Fatal("the server closed the connection")
}

func refusedWith(t *testing.T, addr, user, code string) {
	t.Helper()
	c, err := login(addr, user)
	if err == nil {
		c.Close(context.Background())
	}
	var pgErr *pgconn.PgError
	if !errors.As(err, &pgErr) || pgErr.Code != code {
		t.Errorf("%s was not refused with %s: %v", user, code, err)
	}
}

// Everything a person does with one node, on real parts: a statement is stopped by a message of any NATS client, and
// nothing of it is forgotten by a process that was killed.
func TestABarePublishStopsAStatementAndHoldsAfterKillNine(t *testing.T) {
	pg := pgtest.Start(t, pgtest.Options{})
	pg.Exec(t,
		"CREATE TABLE account (id int PRIMARY KEY, balance int)", "INSERT INTO account VALUES (1, 1000)",
		"CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM pg_sleep(3); RETURN NEW; END $$",
		"CREATE TRIGGER slow BEFORE UPDATE ON account FOR EACH ROW EXECUTE FUNCTION slow()")
	state := filepath.Join(t.TempDir(), "state")
	args := []string{"--node", "edge-a", "--listen", "127.0.0.1:0", "--admin", "off", "--state-dir", state, "--upstream",
		pg.URL("pgedge_control", pgserver.Password("pgedge_control"), pgserver.Database)}
	node := startServe(t, args...)
	addr := node.await(logAccepting)["address"].(string)
	node.await(logReady)

	alice, err := login(addr, "alice")
	if err != nil {
		t.Fatal(err)
	}
	defer alice.Close(context.Background())
	ended := make(chan error, 1)
	go func() {
		ctx, cancel := context.WithTimeout(context.Background(), pgtest.Patience)
		defer cancel()
		_, err := alice.Exec(ctx, "UPDATE account SET balance = 0")
		ended <- err
	}()
	pg.WaitInt(t, 1, "SELECT count(*) FROM pg_stat_activity WHERE usename = 'alice' AND wait_event = 'PgSleep'")
	began := pg.QueryString(t, "SELECT query_start::text FROM pg_stat_activity WHERE usename = 'alice' AND state = 'active'")
	natsPublish(t, state, "pgedge.revoke.principal.alice", "")
	var pgErr *pgconn.PgError
	if err := <-ended; !errors.As(err, &pgErr) || pgErr.Code != "28000" {
		t.Errorf("the statement ended with %v", err)
	}
	pg.WaitBackends(t, "alice", 0)
	natsPublish(t, state, "pgedge.revoke.principal.bob", "\x00{garbage")
	natsPublish(t, state, "pgedge.reinstate.principal.alice", "{garbage")
	pgtest.Wait(t, "both revocations to be listed", func() bool {
		out := pgedge(t, 0, "revocations", "-o", "json", "--state-dir", state)
		return strings.Contains(out, "alice") && strings.Contains(out, "bob")
	})
	refusedWith(t, addr, "alice", "28000")
	refusedWith(t, addr, "bob", "28000")
	var receipt struct {
		Revocation string
		Sessions   []struct{ Backend, Xact string }
	}
	var id string
	for line := range strings.Lines(pgedge(t, 0, "revocations", "-o", "json", "--state-dir", state)) {
		var r struct{ Scope, Revocation string }
		if err := json.Unmarshal([]byte(line), &r); err == nil && strings.Contains(r.Scope, "alice") {
			id = r.Revocation
		}
	}
	pgtest.Wait(t, "the receipt", func() bool {
		out := pgedge(t, 0, "receipts", "show", id, "-o", "json", "--state-dir", state)
		return json.Unmarshal([]byte(out), &receipt) == nil && len(receipt.Sessions) == 1
	})
	if s := receipt.Sessions[0]; s.Backend != "gone" || s.Xact != "aborted" {
		t.Errorf("receipt: %+v", receipt)
	}

	node.cmd.Process.Signal(syscall.SIGKILL)
	node.cmd.Wait()
	again := startServe(t, args...)
	addr = again.await(logAccepting)["address"].(string)
	refusedWith(t, addr, "alice", "28000")
	refusedWith(t, addr, "bob", "28000")
	carol, err := login(addr, "carol")
	if err != nil {
		t.Errorf("a bystander is refused after the restart: %v", err)
	} else {
		carol.Close(context.Background())
	}
	// Two seconds after the statement would have ended its row is what it was.
	pg.WaitInt(t, 1, "SELECT (clock_timestamp() > $1::timestamptz + interval '5 s')::int", began)
	if got := pg.QueryInt(t, "SELECT balance FROM account"); got != 1000 {
		t.Errorf("the balance is %d", got)
	}
	pgedge(t, 0, "reinstate", "alice", "--state-dir", state)
	pgtest.Wait(t, "alice to be let in again", func() bool {
		c, err := login(addr, "alice")
		if err != nil {
			return false
		}
		c.Close(context.Background())
		return true
	})
}
