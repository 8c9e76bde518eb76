package engine

import (
	"errors"
	"testing"

	"github.com/jackc/pgx/v5/pgconn"
)

func TestEveryLoginMethodPassesThrough(t *testing.T) {
	n := startNode(t, nil)
	for _, user := range []string{"alice", "md5user", "clearuser", "trustuser"} {
		t.Run(user, func(t *testing.T) {
			c := n.login(user)
			var who string
			if err := c.QueryRow(bounded(t), "SELECT current_user || $1", "!").Scan(&who); err != nil || who != user+"!" {
				t.Fatalf("got %q, %v", who, err)
			}
		})
	}
}

func TestRevokeEndsAnIdleSessionAndItsBackend(t *testing.T) {
	n := startNode(t, nil)
	c := n.login("alice")
	r := n.verified(n.revoke("alice"), 1)
	t.Logf("receipt: %+v", r)
	if got := r.Sessions[0]; got.Backend != "gone" || got.Xact != "none" || got.State != "idle" {
		t.Fatalf("session: %+v", got)
	}
	_, err := c.Exec(bounded(t), "SELECT 1")
	var pg *pgconn.PgError
	if !errors.As(err, &pg) || pg.Code != "28000" || pg.Detail == "" || pg.Hint == "" {
		t.Fatalf("the client was told %v", err)
	}
	if _, err := n.connect("alice"); !errors.As(err, &pg) || pg.Code != "28000" || pg.Detail != "" {
		t.Fatalf("the next login was told %v", err)
	}
	n.login("bob")
}
