package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"text/tabwriter"
	"time"

	"github.com/jackc/pgx/v5/pgconn"

	"pgedge/internal/fleet"
	"pgedge/internal/pgserver"
)

type revokeReport struct {
	Date     time.Time `json:"date"`
	Commit   string    `json:"commit"`
	Go       string    `json:"go"`
	Cores    int       `json:"cores"`
	Load     string    `json:"load_average"`
	Nodes    int       `json:"nodes"`
	NATS     int       `json:"nats_servers"`
	Count    int       `json:"revocations"`
	Sessions int       `json:"sessions_each"`
	stages
	// Bystanders is how long a query of somebody else took meanwhile, in ms; empty where none was asked.
	Bystanders *bystanders `json:"bystanders,omitempty"`
}

// runRevoke measures one revocation at a time: a person with a running statement on each node.
func runRevoke(ctx context.Context, args []string) (err error) {
	fs := flag.NewFlagSet("revoke", flag.ExitOnError)
	nodes := fs.Int("nodes", 6, "node processes")
	servers := fs.Int("nats", 3, "NATS server processes")
	count := fs.Int("count", 200, "revocations")
	out := fs.String("out", "bench/results/revoke.json", "where the result is written; empty: nowhere")
	fs.Parse(args)

	f, pg, err := startFleet(ctx, *nodes, *servers, 200)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Stop(), pg.Stop()) }()
	names, err := fleet.People(ctx, pg, *count)
	if err != nil {
		return err
	}
	w, err := newWitness(f)
	if err != nil {
		return err
	}
	defer w.nc.Close()
	report := newRevokeReport(f)
	report.Count, report.Sessions = *count, *nodes
	for i, name := range names {
		if i%20 == 0 {
			fmt.Fprintf(os.Stderr, "\rrevoke: %d of %d", i, *count)
		}
		conns, err := logIn(ctx, f, name, *nodes, true)
		if err != nil {
			return err
		}
		if err := w.revoke(ctx, "revoke", name, fmt.Sprintf("bench-%d-%d", os.Getpid(), i), &report.stages, *nodes); err != nil {
			return err
		}
		for _, c := range conns {
			c.Close(ctx) // pgedge has closed it
		}
	}
	fmt.Fprintln(os.Stderr)
	report.print("one person with a running statement on each node")
	return report.write(*out)
}

// startFleet runs a Postgres and a fleet in front of it.
func startFleet(ctx context.Context, nodes, servers, connections int) (*fleet.Fleet, *pgserver.Server, error) {
	fmt.Fprintln(os.Stderr, "building and starting the fleet ...")
	pg, err := pgserver.New(ctx, pgserver.Options{MaxConnections: connections})
	if err != nil {
		return nil, nil, err
	}
	f, err := fleet.Start(ctx, fleet.Options{Nodes: nodes, NATS: servers, Postgres: pg})
	if err != nil {
		return nil, nil, errors.Join(err, pg.Stop())
	}
	return f, pg, nil
}

func newRevokeReport(f *fleet.Fleet) *revokeReport {
	return &revokeReport{Date: time.Now().UTC(), Commit: firstLine("git", "describe", "--always", "--dirty"), Go: runtime.Version(),
		Cores: runtime.NumCPU(), Load: loadAverage(), Nodes: len(f.Nodes), NATS: len(f.NATS.Servers)}
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

func (r *revokeReport) print(what string) {
	fmt.Printf("\n%d nodes, %d NATS servers, %d cores, load %s, %s: %s\n\n", r.Nodes, r.NATS, r.Cores, r.Load, r.Commit, what)
	w := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprint(w, "published to ... (ms)\tsamples\tp50\tp99\tmax\t\n")
	fmt.Fprint(w, stageLine("cut, each node", r.Cut), stageLine("closed, each node", r.Closed),
		stageLine("verified, each node", r.Verified), stageLine("all receipts here", r.Complete))
	w.Flush()
}

func (r *revokeReport) write(path string) error {
	if path == "" {
		return nil
	}
	data, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	return os.WriteFile(path, append(data, '\n'), 0o644)
}
