package main

import (
	"context"
	"flag"
	"fmt"
	"os"

	"github.com/jackc/pgx/v5/pgconn"

	"pgedge/internal/fleet"
	"pgedge/internal/pgserver"
)

// fleetShape is the size of a fleet; the scenarios that run one share its flags.
type fleetShape struct{ nodes, servers int }

func (f *fleetShape) flags(fs *flag.FlagSet) {
	fs.IntVar(&f.nodes, "nodes", 6, "node processes")
	fs.IntVar(&f.servers, "nats", 3, "NATS server processes")
}

func revokeFlags(fs *flag.FlagSet) func(context.Context, *run) error {
	var shape fleetShape
	shape.flags(fs)
	count := fs.Int("count", 0, "revocations (default 200, with -quick 20)")
	return func(ctx context.Context, r *run) error {
		if *count <= 0 {
			*count = r.pick(20, 200)
		}
		return runRevoke(ctx, r, shape, *count)
	}
}

// runRevoke measures one revocation at a time: a person with a running statement on each node.
func runRevoke(ctx context.Context, r *run, shape fleetShape, count int) error {
	f, pg, err := startFleet(ctx, r, shape, 200)
	if err != nil {
		return err
	}
	names, err := fleet.People(ctx, pg, count)
	if err != nil {
		return err
	}
	w, err := newWitness(f)
	if err != nil {
		return err
	}
	defer w.nc.Close()
	var seen stages
	for i, name := range names {
		if i%20 == 0 {
			r.say("%d of %d", i, count)
		}
		conns, err := logIn(ctx, f, name, shape.nodes, true)
		if err != nil {
			return err
		}
		if err := w.revoke(ctx, "revoke", name, fmt.Sprintf("bench-%d-%d", os.Getpid(), i), &seen, shape.nodes); err != nil {
			return err
		}
		for _, c := range conns {
			c.Close(ctx) // pgedge has closed it
		}
	}
	seen.report(r, "a running statement on each node")
	r.goal("P9", "verified, p99 over the nodes", 20, "<=", quantile(seen.Verified, 0.99), "ms")
	return nil
}

// startFleet runs a Postgres and a fleet in front of it until the run ends.
func startFleet(ctx context.Context, r *run, shape fleetShape, connections int) (*fleet.Fleet, *pgserver.Server, error) {
	pg, err := r.postgres(ctx, pgserver.Options{MaxConnections: connections})
	if err != nil {
		return nil, nil, err
	}
	binaries, err := r.binaries(ctx)
	if err != nil {
		return nil, nil, err
	}
	r.say("starting the fleet ...")
	f, err := fleet.Start(ctx, fleet.Options{Nodes: shape.nodes, NATS: shape.servers, Postgres: pg, Binaries: binaries})
	if err != nil {
		return nil, nil, err
	}
	r.cleanup(f.Stop)
	return f, pg, nil
}

// logIn opens sessions round robin over the nodes; busy ones run a statement that takes a minute.
func logIn(ctx context.Context, f *fleet.Fleet, name string, sessions int, busy bool) ([]*pgconn.PgConn, error) {
	var conns []*pgconn.PgConn
	for i := range sessions {
		c, err := fleet.Connect(ctx, f.Nodes[i%len(f.Nodes)].Addr, name)
		if err != nil {
			return nil, fmt.Errorf("cannot log %s in: %w", name, err)
		}
		if busy {
			if _, err := c.Conn().Write(sleepQuery); err != nil {
				return nil, err
			}
		}
		conns = append(conns, c)
	}
	return conns, nil
}

// sleepQuery is a simple query on the wire: type, length of the rest (4 + 19 + 1), text, terminator.
var sleepQuery = []byte("Q\x00\x00\x00\x18SELECT pg_sleep(60)\x00")
