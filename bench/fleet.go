package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"sync"
	"time"

	"pgedge/internal/fleet"
)

func fleetFlags(fs *flag.FlagSet) func(context.Context, *run) error {
	var shape fleetShape
	shape.flags(fs)
	victims := fs.Int("victims", 300, "sessions of the person who is revoked")
	others := fs.Int("bystanders", 60, "sessions of others, each asking every 20 ms")
	return func(ctx context.Context, r *run) error { return runFleet(ctx, r, shape, *victims, *others) }
}

// runFleet measures one person with many sessions next to bystanders that query all the while. Every session has a real
// backend, which bounds how many there can be.
func runFleet(ctx context.Context, r *run, shape fleetShape, victims, others int) error {
	f, pg, err := startFleet(ctx, r, shape, victims+others+40)
	if err != nil {
		return err
	}
	names, err := fleet.People(ctx, pg, r.rounds+1)
	if err != nil {
		return err
	}
	w, err := newWitness(f)
	if err != nil {
		return err
	}
	defer w.nc.Close()
	crowd, err := newCrowd(ctx, f, names[0], others)
	if err != nil {
		return err
	}
	defer crowd.stop()
	var seen stages
	for i, name := range names[1:] {
		r.say("round %d of %d", i+1, r.rounds)
		conns, err := logIn(ctx, f, name, victims, false)
		if err != nil {
			return err
		}
		crowd.take()
		if err := r.sleep(ctx, 2*time.Second); err != nil {
			return err
		}
		r.sample("bystanders", "query", "before", "latency", "ms", crowd.take()...)
		if err := w.revoke(ctx, "revoke", name, fmt.Sprintf("bench-%d-%d", os.Getpid(), i), &seen, victims); err != nil {
			return err
		}
		r.sample("bystanders", "query", "during", "latency", "ms", crowd.take()...)
		for _, c := range conns {
			c.Close(ctx)
		}
	}
	if n := crowd.errors(); n > 0 {
		return fmt.Errorf("%d bystanders saw an error: %w", n, crowd.err)
	}
	seen.report(r, fmt.Sprintf("one person with %d idle sessions, %d bystanders", victims, others))
	return nil
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
