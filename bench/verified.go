package main

import (
	"context"
	"flag"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"pgedge/internal/fleet"
	"pgedge/internal/pgserver"
)

func verifiedFlags(fs *flag.FlagSet) func(context.Context, *run) error {
	count := fs.Int("count", 0, "revocations per case (default 200, with -quick 20)")
	nodes := fs.Int("nodes", 6, "node processes of the fleet")
	servers := fs.Int("nats", 3, "NATS server processes of the fleet")
	return func(ctx context.Context, r *run) error {
		if *count <= 0 {
			*count = r.pick(20, 200)
		}
		return runVerified(ctx, r, *count, *nodes, *servers)
	}
}

// runVerified measures kills in front of a real Postgres: a person with one running statement on each node is revoked,
// and Postgres itself is asked whether the statement is gone.
func runVerified(ctx context.Context, r *run, count, nodes, servers int) error {
	pg, err := r.postgres(ctx, pgserver.Options{MaxConnections: 100})
	if err != nil {
		return err
	}
	names, err := fleet.People(ctx, pg, 2*count)
	if err != nil {
		return err
	}
	one, err := verifiedCase(ctx, r, pg, names[:count], 1, 1)
	if err != nil {
		return err
	}
	one.report(r, "one node")
	many, err := verifiedCase(ctx, r, pg, names[count:], nodes, servers)
	if err != nil {
		return err
	}
	many.report(r, fmt.Sprintf("%d nodes", nodes))
	r.goal("P9", "one running statement: published to backend seen gone, p99", 20, "<=", quantile(one.verified, 0.99), "ms")
	r.note("the goal is judged by the case of one node; with %d nodes the statements of one person end on all of them at the same time, on %s", nodes, "the same cores")
	return nil
}

func verifiedCase(ctx context.Context, r *run, pg *pgserver.Server, names []string, nodes, servers int) (_ *stages, err error) {
	f, err := r.fleet(ctx, fleet.Options{Nodes: nodes, NATS: servers, Postgres: pg})
	if err != nil {
		return nil, err
	}
	defer f.Stop()
	nc, err := f.NATS.Connect()
	if err != nil {
		return nil, err
	}
	defer nc.Close()
	w, err := newWitness(nc, nodes)
	if err != nil {
		return nil, err
	}
	super, err := pg.Connect(ctx, pgserver.Database)
	if err != nil {
		return nil, err
	}
	defer super.Close(context.Background())
	var seen stages
	for i, name := range names {
		if i%20 == 0 {
			r.say("%d nodes: %d of %d", nodes, i, len(names))
		}
		conns, err := logIn(ctx, f, name, nodes)
		if err != nil {
			return nil, err
		}
		if err := awaitRunning(ctx, super, name, nodes); err != nil {
			return nil, err
		}
		v, err := w.revoke(ctx, name, nodes)
		if err != nil {
			return nil, err
		}
		seen.add(v)
		// The receipts say that all of them were seen gone; Postgres must say the same.
		switch left, err := count(ctx, super, "SELECT count(*) FROM pg_stat_activity WHERE usename = $1", name); {
		case err != nil:
			return nil, err
		case left != 0:
			return nil, fmt.Errorf("the receipts of %s are complete, and %d of its backends are there", v.scope, left)
		}
		for _, c := range conns {
			c.Close(ctx) // pgedge has closed it
		}
	}
	return &seen, nil
}

// fleet starts a fleet of what the bench measures. Its caller stops it.
func (r *run) fleet(ctx context.Context, o fleet.Options) (*fleet.Fleet, error) {
	var err error
	if o.Binaries, err = r.binaries(ctx); err != nil {
		return nil, err
	}
	r.say("starting %d nodes and %d NATS servers ...", o.Nodes, o.NATS)
	return fleet.Start(ctx, o)
}

// logIn opens a session on each node, and sends each a statement that takes a minute.
func logIn(ctx context.Context, f *fleet.Fleet, name string, sessions int) ([]*pgconn.PgConn, error) {
	var conns []*pgconn.PgConn
	for i := range sessions {
		c, err := fleet.Connect(ctx, f.Nodes[i%len(f.Nodes)].Addr, name)
		if err != nil {
			return nil, fmt.Errorf("cannot log %s in: %w", name, err)
		}
		conns = append(conns, c)
		if _, err := c.Conn().Write(sleepQuery); err != nil {
			return nil, err
		}
	}
	return conns, nil
}

// sleepQuery is a simple query on the wire: type, length of the rest (4 + 19 + 1), text, terminator.
var sleepQuery = []byte("Q\x00\x00\x00\x18SELECT pg_sleep(60)\x00")

// awaitRunning returns when Postgres says that so many statements of a role run.
func awaitRunning(ctx context.Context, super *pgx.Conn, role string, want int) error {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	for {
		n, err := count(ctx, super, "SELECT count(*) FROM pg_stat_activity WHERE usename = $1 AND state = 'active'", role)
		if err != nil || n == want {
			return err
		}
		select {
		case <-time.After(time.Millisecond):
		case <-ctx.Done():
			return fmt.Errorf("%d of %d statements of %s run: %w", n, want, role, ctx.Err())
		}
	}
}

func count(ctx context.Context, super *pgx.Conn, sql, arg string) (n int, err error) {
	err = super.QueryRow(ctx, sql, arg).Scan(&n)
	return n, err
}
