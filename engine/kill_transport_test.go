package engine

import (
	"fmt"
	"io"
	"strconv"
	"testing"

	"pgedge/internal/pgtest"
)

// Whatever lies between the engine and Postgres: idle, busy and flooding sessions are ended and seen gone.
func TestKillOverUnixSocketsAndTLS(t *testing.T) {
	t.Parallel()
	tls := func(options string) func(t *testing.T) Upstream {
		return func(t *testing.T) Upstream { return controlUpstream(t, "pgedge_control", server.Addr(), options) }
	}
	for name, upstream := range map[string]func(t *testing.T) Upstream{
		"unix": func(t *testing.T) Upstream {
			u, err := ParseUpstream(fmt.Sprintf("postgres://pgedge_control:%s@/%s?host=%s&port=%s",
				pgtest.Password("pgedge_control"), pgtest.Database, server.SocketDir, strconv.Itoa(server.Port)))
			if err != nil {
				t.Fatal(err)
			}
			return u
		},
		"require":     tls("?sslmode=require"),
		"verify-full": tls("?sslmode=verify-full&sslrootcert=" + server.CAFile),
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			n := startNode(t, behind(upstream(t)))
			for address, missing := range n.Controls() {
				if missing != "" {
					t.Fatalf("control of %s: %s", address, missing)
				}
			}
			role, other, table := newRole(t, ""), newRole(t, ""), newTable(t, "v int")
			bystander := n.login(other)
			if name != "unix" {
				if got := server.QueryInt(t, "SELECT count(*) FROM pg_stat_ssl JOIN pg_stat_activity USING (pid) WHERE usename = $1 AND ssl", other); got != 1 {
					t.Fatalf("%d sessions over TLS", got)
				}
			}
			stalled := n.raw(role)
			stalled.Query(bigCopy)
			s := n.only(role)
			waitOnLoop(t, s, func() bool { return s.back.paused != 0 })
			full := n.raw(role)
			full.Query(bigCopy)
			story := follow(full)
			idle, inserting := n.login(role), n.login(role)
			result := start(inserting, "INSERT INTO "+table+" SELECT 1 FROM pg_sleep(60)")
			server.WaitInt(t, 1, asleepSQL, role)

			r := n.killed(n.revoke(role), role, 4)
			count := make(map[string]int)
			for _, s := range r.Sessions {
				count[s.State]++
				if s.State == "idle" && s.Xact != "none" || s.State == "active" && (s.Xact == "none" || s.Xact == "committed") {
					t.Errorf("session: %+v", s)
				}
			}
			if count["active"] != 3 || count["idle"] != 1 {
				t.Errorf("states: %v", count)
			}
			wantCode(t, <-result, "28000")
			_, err := idle.Exec(bounded(t), "SELECT 1")
			wantCode(t, err, "28000")
			told(t, <-story, "28000")
			if h := <-follow(stalled); h.bad != nil || len(h.errs) > 0 {
				t.Errorf("the client that does not read: %+v", h)
			}
			mustExec(t, bystander, "SELECT 1")
			if rows := settledRows(t, table); rows != 0 {
				t.Errorf("%d rows", rows)
			}
		})
	}
}

// The engine decrypts what the backend says while it dies; a broken record, or one that is cut by the end, ends nothing
// but that.
func TestKillOverTLSSendsNothingThatWasBuffered(t *testing.T) {
	t.Parallel()
	n := startNode(t, behind(controlUpstream(t, "pgedge_control", server.Addr(), "?sslmode=require")))
	role := newRole(t, "")
	r := n.raw(role)
	r.Query(bigCopy)
	s := n.only(role)
	waitOnLoop(t, s, func() bool { return s.back.paused != 0 })
	release := n.holdLoops()
	handedOver := s.bytesOut - int64(s.front.buffered())
	if _, err := io.CopyN(io.Discard, r.Conn(), handedOver); err != nil {
		t.Fatal(err)
	}
	id := n.revoke(role)
	release()
	n.killed(id, role, 1)
	if rest, _ := r.ReadRest(64 << 20); len(rest) > 0 {
		t.Errorf("the client got %d bytes after the cut", len(rest))
	}
}
