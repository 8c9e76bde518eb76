package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"sync"
	"time"

	"pgedge/internal/fleet"
)

// bystanders is what sessions of other people saw: how long a query took, in ms.
type bystanders struct {
	BeforeP50 float64 `json:"before_p50_ms"`
	BeforeP99 float64 `json:"before_p99_ms"`
	DuringP50 float64 `json:"during_p50_ms"`
	DuringP99 float64 `json:"during_p99_ms"`
	DuringMax float64 `json:"during_max_ms"`
	Errors    int     `json:"errors"`
}

// runFleet measures one person with many sessions next to bystanders that query all the while. Every session has a real
// backend, which bounds how many there can be.
func runFleet(ctx context.Context, args []string) (err error) {
	fs := flag.NewFlagSet("fleet", flag.ExitOnError)
	nodes := fs.Int("nodes", 6, "node processes")
	servers := fs.Int("nats", 3, "NATS server processes")
	victims := fs.Int("victims", 300, "sessions of the person who is revoked")
	others := fs.Int("bystanders", 60, "sessions of others, each asking every 20 ms")
	rounds := fs.Int("rounds", 5, "revocations, each of another person")
	out := fs.String("out", "bench/results/fleet.json", "where the result is written; empty: nowhere")
	fs.Parse(args)

	f, pg, err := startFleet(ctx, *nodes, *servers, *victims+*others+40)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Stop(), pg.Stop()) }()
	names, err := fleet.People(ctx, pg, *rounds+1)
	if err != nil {
		return err
	}
	w, err := newWitness(f)
	if err != nil {
		return err
	}
	defer w.nc.Close()
	crowd, err := newCrowd(ctx, f, names[0], *others)
	if err != nil {
		return err
	}
	defer crowd.stop()
	report := newRevokeReport(f)
	report.Count, report.Sessions = *rounds, *victims
	var before, during []float64
	for i, name := range names[1:] {
		fmt.Fprintf(os.Stderr, "\rfleet: round %d of %d", i+1, *rounds)
		conns, err := logIn(ctx, f, name, *victims, false)
		if err != nil {
			return err
		}
		crowd.take()
		select {
		case <-time.After(2 * time.Second):
		case <-ctx.Done():
			return ctx.Err()
		}
		before = append(before, crowd.take()...)
		if err := w.revoke(ctx, "revoke", name, fmt.Sprintf("bench-%d-%d", os.Getpid(), i), &report.stages, *victims); err != nil {
			return err
		}
		during = append(during, crowd.take()...)
		for _, c := range conns {
			c.Close(ctx)
		}
	}
	fmt.Fprintln(os.Stderr)
	report.Bystanders = &bystanders{BeforeP50: quantile(before, 0.5), BeforeP99: quantile(before, 0.99), DuringP50: quantile(during, 0.5),
		DuringP99: quantile(during, 0.99), DuringMax: quantile(during, 1), Errors: crowd.errors()}
	if report.Bystanders.Errors > 0 {
		return fmt.Errorf("%d bystanders saw an error: %w", report.Bystanders.Errors, crowd.err)
	}
	report.print(fmt.Sprintf("one person with %d idle sessions, %d bystanders", *victims, *others))
	b := report.Bystanders
	fmt.Printf("\nbystanders' queries (ms): before p50 %.2f p99 %.2f; until the last receipt p50 %.2f p99 %.2f max %.2f\n", b.BeforeP50, b.BeforeP99, b.DuringP50, b.DuringP99, b.DuringMax)
	return report.write(*out)
}

// crowd are sessions that ask a small question all the time.
type crowd struct {
	mu      sync.Mutex
	samples []float64
	failed  int
	err     error

	cancel context.CancelFunc
	work   sync.WaitGroup
}

func newCrowd(ctx context.Context, f *fleet.Fleet, name string, n int) (*crowd, error) {
	ctx, cancel := context.WithCancel(ctx)
	c := &crowd{cancel: cancel}
	conns, err := logIn(ctx, f, name, n, false)
	if err != nil {
		cancel()
		return nil, err
	}
	for _, conn := range conns {
		c.work.Go(func() {
			defer conn.Close(context.Background())
			tick := time.NewTicker(20 * time.Millisecond)
			defer tick.Stop()
			for {
				select {
				case <-ctx.Done():
					return
				case <-tick.C:
				}
				began := time.Now()
				_, err := conn.Exec(context.Background(), "SELECT 1").ReadAll()
				c.mu.Lock()
				if err != nil {
					c.failed++
					c.err = err
					c.mu.Unlock()
					return
				}
				c.samples = append(c.samples, float64(time.Since(began).Microseconds())/1000)
				c.mu.Unlock()
			}
		})
	}
	return c, nil
}

// take returns what has been measured since the last call.
func (c *crowd) take() []float64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	s := c.samples
	c.samples = nil
	return s
}

func (c *crowd) errors() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.failed
}

func (c *crowd) stop() {
	c.cancel()
	c.work.Wait()
}
