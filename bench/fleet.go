package main

import (
	"context"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"strings"
	"time"

	"pgedge/bench/load"
)

func fleetFlags(fs *flag.FlagSet) func(context.Context, *run) error {
	nodes := fs.Int("nodes", 6, "node processes")
	servers := fs.Int("nats", 3, "NATS server processes")
	each := fs.Int("sessions", 0, "sessions on each node (default 8000, with -quick 500)")
	count := fs.Int("count", 0, "people who are revoked (default 50, with -quick 10)")
	workers := fs.Int("workers", 4, "processes that hold the clients' sockets")
	return func(ctx context.Context, r *run) error {
		if *each <= 0 {
			*each = r.pick(500, 8000)
		}
		if *count <= 0 {
			*count = r.pick(10, 50)
		}
		return runFleet(ctx, r, *nodes, *servers, *each, *count, *workers)
	}
}

// runFleet measures revocations over a fleet as large as the machine can hold: people with one session on each node.
func runFleet(ctx context.Context, r *run, nodes, servers, each, count, workers int) error {
	if count > each {
		return fmt.Errorf("%d people cannot be revoked, there are %d", count, each)
	}
	c, err := r.crowd(ctx, nodes, servers)
	if err != nil {
		return err
	}
	defer c.stop()
	people := make([]load.User, each)
	for i := range people {
		people[i] = load.User{Name: fmt.Sprintf("person%05d", i), Sessions: nodes}
	}
	began := time.Now()
	held, err := c.open(ctx, people, workers)
	if err != nil {
		return err
	}
	defer held.Close()
	opening := time.Since(began)
	r.say("%d sessions in %s", held.Len(), opening.Round(100*time.Millisecond))
	for _, n := range c.fleet.Nodes {
		kib, err := residentKiB(n.PID())
		if err != nil {
			return err
		}
		r.sample("node processes", fmt.Sprintf("%d sessions each", each), subject, "memory per session", "KiB", kib/float64(each))
	}
	if err := r.sleep(ctx, 2*time.Second); err != nil {
		return err
	}
	var seen stages
	revoked := make(map[string]time.Time)
	for i := range count {
		if i%10 == 0 {
			r.say("%d of %d", i, count)
		}
		if err := r.sleep(ctx, cutPause+rand.N(cutPause)); err != nil {
			return err
		}
		name := people[i*each/count].Name
		v, err := c.witness.revoke(ctx, name, nodes)
		if err != nil {
			return err
		}
		seen.add(v)
		revoked[name] = v.began
	}
	told, err := c.told(ctx, held, revoked, nodes)
	if err != nil {
		return err
	}
	if err := c.check(); err != nil {
		return err
	}
	kase := fmt.Sprintf("%d of %d", nodes, held.Len())
	seen.report(r, kase)
	r.distribution(kase, "published to end of a client's socket", told)
	r.goal("P8", "published to gates closed, each node, p99", 5, "<=", quantile(seen.cut, 0.99), "ms")
	r.goal("P8", "published to all receipts here, p99", 50, "<=", quantile(seen.complete, 0.99), "ms")
	c.remark(r, held.Len(), "90,000 sessions in 6 processes")
	r.note("the sessions were opened in %.0f s", opening.Seconds())
	return nil
}

// residentKiB is how much memory a process occupies.
func residentKiB(pid int) (float64, error) {
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(status)) {
		if f := strings.Fields(line); len(f) > 1 && f[0] == "VmRSS:" {
			return strconv.ParseFloat(f[1], 64)
		}
	}
	return 0, fmt.Errorf("process %d does not say how much memory it occupies", pid)
}
