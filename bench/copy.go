package main

import (
	"context"
	"flag"
	"fmt"
	"math"
	"time"

	"github.com/jackc/pgx/v5"

	"pgedge/internal/pgserver"
)

// sleepingGrowthMiB is how much a client that does not read may cost. A node stops reading from the backend when 256 KiB
// wait for the client; the rest is what its buffers and the allocator round up to.
const sleepingGrowthMiB = 4

func copyFlags(fs *flag.FlagSet) func(context.Context, *run) error {
	megabytes := fs.Int("megabytes", 0, "data of one COPY in MB (default 1500, with -quick 300)")
	row := fs.Int("row", 1000, "bytes of one row")
	asleep := fs.Duration("asleep", 0, "how long the sleeping client does not read (default 10s, with -quick 3s)")
	return func(ctx context.Context, r *run) error {
		if *megabytes <= 0 {
			*megabytes = r.pick(300, 1500)
		}
		if *asleep <= 0 {
			*asleep = time.Duration(r.pick(3, 10)) * time.Second
		}
		if *row <= 0 || *row > 8000 {
			return fmt.Errorf("row: from 1 to 8000 bytes, so that one fits on a page of Postgres")
		}
		c := copyWork{width: *row, asleep: *asleep}
		c.rows = *megabytes * 1e6 / c.rowBytes()
		return c.run(ctx, r)
	}
}

// copyWork is one COPY in the binary format, which costs Postgres least, so that the proxy shows.
type copyWork struct {
	width, rows int
	asleep      time.Duration
}

const (
	copyHeaderBytes  = 11 + 4 + 4 // signature, flags, length of the extension
	copyTrailerBytes = 2
	copyIn           = "COPY copied FROM STDIN (FORMAT binary)"
)

// rowBytes is the size of a row of one column: the number of columns, the length of the value, the value.
func (c copyWork) rowBytes() int { return 2 + 4 + c.width }

func (c copyWork) bytes() int64 {
	return copyHeaderBytes + int64(c.rows)*int64(c.rowBytes()) + copyTrailerBytes
}

func (c copyWork) out() string {
	return fmt.Sprintf("COPY (SELECT repeat('x', %d)::bytea FROM generate_series(1, %d)) TO STDOUT (FORMAT binary)", c.width, c.rows)
}

func (c copyWork) run(ctx context.Context, r *run) error {
	// Without WAL and compression the server is as little of the whole as it can be.
	pg, err := r.postgres(ctx, pgserver.Options{Settings: map[string]string{"wal_level": "minimal", "max_wal_senders": "0", "autovacuum": "off"}})
	if err != nil {
		return err
	}
	targets, err := startTargets(ctx, r, pg)
	if err != nil {
		return err
	}
	err = pg.Exec(ctx, "CREATE UNLOGGED TABLE copied (x bytea)", "ALTER TABLE copied ALTER x SET STORAGE PLAIN", "GRANT ALL ON copied TO trustuser")
	if err != nil {
		return err
	}
	db, err := pg.Connect(ctx, pgserver.Database)
	if err != nil {
		return err
	}
	defer db.Close(context.Background())
	// The first ones find a cold server and would be held against the target that happens to be first.
	r.say("warming up ...")
	for _, way := range []string{"out", "in"} {
		if _, _, err := (copyWork{width: c.width, rows: c.rows / 4}).transfer(ctx, db, targets[0], way); err != nil {
			return fmt.Errorf("COPY %s: %w", way, err)
		}
	}
	for round := range r.rounds {
		for i := range targets {
			t := targets[(i+round)%len(targets)]
			for _, way := range []string{"out", "in"} {
				if err := c.once(ctx, r, db, t, way); err != nil {
					return fmt.Errorf("COPY %s, %s: %w", way, t.name, err)
				}
			}
			r.say("round %d/%d  %-10s out %.0f MB/s, in %.0f MB/s", round+1, r.rounds, t.name, last(r, t, "out"), last(r, t, "in"))
		}
	}
	for _, t := range targets {
		if t.proc == nil {
			continue
		}
		if err := c.sleeping(ctx, r, t); err != nil {
			return fmt.Errorf("sleeping client, %s: %w", t.name, err)
		}
	}
	c.goals(r)
	if r.profile == "" {
		return nil
	}
	for _, t := range targets[1:] {
		if err := c.profile(ctx, r, t); err != nil {
			return err
		}
	}
	return nil
}

// profile copies out some more times, untimed, and says where a proxy spends its time and how often it calls the kernel.
func (c copyWork) profile(ctx context.Context, r *run, t *target) error {
	out := func(rows int) error {
		conn, err := dialCopy(ctx, t)
		if err != nil {
			return err
		}
		defer conn.close()
		return conn.copyOut(copyWork{width: c.width, rows: rows}, nil)
	}
	if err := profileCPU(ctx, r, t, "COPY out", func() error { return out(c.rows) }); err != nil {
		return err
	}
	const table = "system calls per MB (of runs that are not timed)"
	return countCalls(ctx, r, t, table, "COPY out", float64(c.rowBytes())/1e6, c.rows/12, c.rows/3, out)
}

func last(r *run, t *target, way string) float64 {
	v := r.report.series("copy", "COPY "+way, t.name, "throughput").Values
	return v[len(v)-1]
}

func (c copyWork) goals(r *run) {
	for _, peer := range []struct {
		name string
		want float64
	}{{"pgbouncer", 1.5}, {"haproxy", 1}} {
		for _, way := range []string{"out", "in"} {
			r.goal("P3", fmt.Sprintf("throughput, COPY %s, pgedge/%s", way, peer.name), peer.want, ">=", r.ratio("copy", "COPY "+way, peer.name, "throughput"), "")
		}
	}
	r.goal("P3", "memory for a client that does not read", sleepingGrowthMiB, "<=", r.median("copy", "sleeping client", subject, "memory growth"), "MiB")
	r.bars("copy", "throughput")
	r.bars("copy", "cpu")
	r.note("client, proxy and server share %d cores: where CPU per GB of a proxy differs and throughput does not, the server is what is measured, most of all by COPY in", r.report.Cores)
}

// once measures a COPY of everything in one direction.
func (c copyWork) once(ctx context.Context, r *run, db *pgx.Conn, t *target, way string) error {
	before, after, err := c.transfer(ctx, db, t, way)
	if err != nil {
		return err
	}
	kase := "COPY " + way
	r.sample("copy", kase, t.name, "throughput", "MB/s", float64(c.bytes())/1e6/after.at.Sub(before.at).Seconds())
	if t.proc == nil {
		return nil
	}
	_, peak, err := t.proc.memory()
	if err != nil {
		return err
	}
	r.sample("copy", kase, t.name, "cpu", "s/GB", (after.cpu-before.cpu).Seconds()/(float64(c.bytes())/1e9))
	r.sample("copy", kase, t.name, "peak memory", "MiB", float64(peak)/(1<<20))
	return nil
}

// transfer copies everything in one direction and checks it. What it returns does not include the login.
func (c copyWork) transfer(ctx context.Context, db *pgx.Conn, t *target, way string) (before, after usage, err error) {
	conn, err := dialCopy(ctx, t)
	if err != nil {
		return before, after, err
	}
	defer conn.close()
	if t.proc != nil {
		if err := t.proc.forgetPeak(); err != nil {
			return before, after, err
		}
	}
	if before, err = t.proc.usage(); err != nil {
		return before, after, err
	}
	if way == "out" {
		err = conn.copyOut(c, nil)
	} else {
		err = conn.copyIn(c)
	}
	if err != nil {
		return before, after, err
	}
	if after, err = t.proc.usage(); err != nil || way == "out" {
		return before, after, err
	}
	var rows, bytes int64
	if err := db.QueryRow(ctx, "SELECT count(*), coalesce(sum(length(x)), 0) FROM copied").Scan(&rows, &bytes); err != nil {
		return before, after, err
	}
	if rows != int64(c.rows) || bytes != int64(c.rows)*int64(c.width) {
		return before, after, fmt.Errorf("%d rows with %d bytes have arrived of %d rows", rows, bytes, c.rows)
	}
	_, err = db.Exec(ctx, "TRUNCATE copied")
	return before, after, err
}

// sleeping is a client that stops reading in the middle of a COPY and goes on later.
func (c copyWork) sleeping(ctx context.Context, r *run, t *target) error {
	r.say("a client of %s sleeps for %v ...", t.name, c.asleep)
	conn, err := dialCopy(ctx, t)
	if err != nil {
		return err
	}
	defer conn.close()
	resident, _, err := t.proc.memory()
	if err != nil {
		return err
	}
	heap, err := heapBytes(ctx, t)
	if err != nil {
		return err
	}
	grown, heapGrown := 0.0, math.NaN()
	err = conn.copyOut(c, func() error {
		for until := time.Now().Add(c.asleep); time.Now().Before(until); {
			if err := r.sleep(ctx, 100*time.Millisecond); err != nil {
				return err
			}
			now, _, err := t.proc.memory()
			if err != nil {
				return err
			}
			grown = max(grown, float64(now-resident)/(1<<20))
		}
		now, err := heapBytes(ctx, t)
		heapGrown = (now - heap) / (1 << 20)
		return err
	})
	if err != nil {
		return err
	}
	r.sample("copy", "sleeping client", t.name, "memory growth", "MiB", grown)
	if !math.IsNaN(heapGrown) {
		r.sample("copy", "sleeping client", t.name, "heap growth", "MiB", heapGrown)
	}
	return nil
}
