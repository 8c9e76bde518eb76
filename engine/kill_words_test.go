package engine

import (
	"fmt"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"pgedge/internal/pgtest"
	"pgedge/revoke"
)

// Each verb with each scope: whom it ends, what they are told, who may come back.
func TestKillByEveryVerbAndScope(t *testing.T) {
	t.Parallel()
	n := startNode(t, nil)
	until := time.Now().Add(time.Hour).Truncate(time.Second)
	for _, verb := range []revoke.Verb{revoke.VerbKill, revoke.VerbRevoke, revoke.VerbSuspend} {
		for _, kind := range []revoke.ScopeKind{revoke.ScopePrincipal, revoke.ScopeRole, revoke.ScopeDatabase, revoke.ScopeSession, revoke.ScopeAll} {
			victim, other := newRole(t, ""), newRole(t, "")
			a, b := n.login(victim), n.login(other)
			elsewhere := n.loginTo(victim, "postgres")
			scope := revoke.Scope{Kind: kind}
			matched, bystanders := 2, []*pgx.Conn{b}
			switch kind {
			case revoke.ScopePrincipal, revoke.ScopeRole:
				scope.Name = victim
			case revoke.ScopeDatabase:
				scope.Name, matched, bystanders = "postgres", 1, []*pgx.Conn{a, b}
			case revoke.ScopeSession:
				list := n.Sessions(func(i revoke.SessionInfo) bool { return i.Principal == victim && i.Database == "postgres" })
				if len(list) != 1 {
					t.Fatalf("sessions: %+v", list)
				}
				scope.Name, matched, bystanders = list[0].ID, 1, []*pgx.Conn{a, b}
			case revoke.ScopeAll:
				matched, bystanders = 3, nil
			case revoke.ScopeInvalid:
			}
			name := verb.String() + " " + scope.Token()
			id := n.carry(revoke.Fact{Verb: verb, Scope: scope, Until: until, Reason: "left"})
			r := n.verified(id, matched)
			code, message := "28000", fmt.Sprintf("access for %q was revoked", victim)
			switch verb {
			case revoke.VerbKill:
				code, message = "57P01", fmt.Sprintf("session of %q was ended by an administrator", victim)
			case revoke.VerbSuspend:
				message = fmt.Sprintf("access for %q is suspended", victim)
			case revoke.VerbRevoke, revoke.VerbReinstate, revoke.VerbInvalid:
			}
			if r.Verb != verb.String() || r.Scope != scope.Token() || r.Reason != "left" || r.Sessions[0].SQLState != code {
				t.Errorf("%s: receipt: %+v", name, r)
			}
			_, err := elsewhere.Exec(bounded(t), "SELECT 1")
			pg := wantCode(t, err, code)
			if pg.Severity != "FATAL" || pg.Message != message || pg.Hint != "Contact it@corp.com." ||
				!strings.HasPrefix(pg.Detail, "Revocation "+id+" of 20") {
				t.Errorf("%s: the client was told %+v", name, pg)
			}
			if verb == revoke.VerbSuspend && !strings.HasSuffix(pg.Detail, "Suspended until "+until.UTC().Format(time.RFC3339)+".") {
				t.Errorf("%s: the client was told %+v", name, pg)
			}
			for _, c := range bystanders {
				mustExec(t, c, "SELECT 1")
			}
			_, err = n.connectTo(victim, "postgres")
			if back := verb == revoke.VerbKill || kind == revoke.ScopeSession; (err == nil) != back {
				t.Errorf("%s: the next login: %v", name, err)
			} else if !back {
				if pg := wantCode(t, err, "28000"); pg.Message != message || pg.Hint == "" || pg.Detail != "" {
					t.Errorf("%s: the next login was told %+v", name, pg)
				}
			}
			// The next case begins with nobody there and everybody allowed.
			n.apply(revoke.VerbReinstate, kind, scope.Name)
			n.receipt(n.apply(revoke.VerbKill, revoke.ScopeAll, ""))
			pgtest.Wait(t, "the index to be empty", func() bool { return n.index.len() == 0 })
		}
	}
	if v := n.metrics.bytesAfterCut.Get() + n.metrics.bugs.Get(); v != 0 {
		t.Errorf("%d bytes after a cut, or bugs", v)
	}
}

func (n *node) connectTo(user, db string) (*pgx.Conn, error) {
	return pgx.Connect(bounded(n.t), strings.Replace(n.url(user), "/"+pgtest.Database+"?", "/"+db+"?", 1))
}

func (n *node) loginTo(user, db string) *pgx.Conn {
	n.t.Helper()
	c, err := n.connectTo(user, db)
	if err != nil {
		n.t.Fatalf("%s cannot log in to %s: %v", user, db, err)
	}
	return c
}

func TestKillIsShownByPsql(t *testing.T) {
	t.Parallel()
	n := startNode(t, nil)
	role := newRole(t, "")
	cmd := exec.CommandContext(bounded(t), filepath.Join(server.BinDir, "psql"), "-X", "-w", n.url(role), "-c", "SELECT pg_sleep(60)")
	cmd.Env = []string{"LC_ALL=C", "PATH=/usr/bin:/bin"}
	var out strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	server.WaitInt(t, 1, asleepSQL, role)
	r := n.killed(n.revoke(role), role, 1)
	if got := r.Sessions[0]; got.State != "active" || got.Application != "psql" || got.Client == "" {
		t.Errorf("session: %+v", got)
	}
	if err := cmd.Wait(); err == nil {
		t.Error("psql ended as if nothing had happened")
	}
	for _, line := range []string{
		fmt.Sprintf("FATAL:  access for %q was revoked", role), "DETAIL:  Revocation " + r.Revocation + " of ", "HINT:  Contact it@corp.com.",
	} {
		if !strings.Contains(out.String(), line) {
			t.Errorf("psql does not show %q, but:\n%s", line, out.String())
		}
	}
}
