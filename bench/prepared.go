package main

import (
	"context"
	"flag"
)

func preparedFlags(fs *flag.FlagSet) func(context.Context, *run) error {
	clients := fs.Int("clients", 64, "clients, each with a backend of its own")
	return func(ctx context.Context, r *run) error {
		r.note("P2 is about 500 clients on 20 backends in transaction mode; there are no pools yet, so this is session mode and has no goal")
		return runRelay(ctx, r, "", []workload{{name: "prepared statements", clients: *clients, mode: "prepared"}})
	}
}
