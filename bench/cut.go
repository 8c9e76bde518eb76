package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"pgedge/bench/load"
	"pgedge/internal/fleet"
	"pgedge/internal/pgserver"
)

// cutPause is the longest pause between two revocations. It is drawn anew each time, so that they fall into step with
// nothing that happens at intervals.
const cutPause = 20 * time.Millisecond

func cutFlags(fs *flag.FlagSet) func(context.Context, *run) error {
	sessions := fs.Int("sessions", 0, "sessions, each of another person (default 8000, with -quick 2000)")
	count := fs.Int("count", 0, "people who are revoked (default 200, with -quick 40)")
	return func(ctx context.Context, r *run) error {
		if *sessions <= 0 {
			*sessions = r.pick(2000, 8000)
		}
		if *count <= 0 {
			*count = r.pick(40, 200)
		}
		return runCut(ctx, r, *sessions, *count)
	}
}

// runCut measures how long a fact takes from its publisher to the gate of the one session that it ends, among many.
func runCut(ctx context.Context, r *run, sessions, count int) error {
	if count > sessions {
		return fmt.Errorf("%d people cannot be revoked, there are %d", count, sessions)
	}
	crowd, err := r.crowd(ctx, 1, 1)
	if err != nil {
		return err
	}
	defer crowd.stop()
	people := make([]load.User, sessions)
	for i := range people {
		people[i] = load.User{Name: fmt.Sprintf("person%05d", i), Sessions: 1}
	}
	held, err := crowd.open(ctx, people, 0)
	if err != nil {
		return err
	}
	defer held.Close()
	r.say("measuring NATS alone")
	bare, err := crowd.floor(ctx, count, false)
	if err != nil {
		return err
	}
	stored, err := crowd.floor(ctx, count, true)
	if err != nil {
		return err
	}
	var seen stages
	began := make(map[string]time.Time)
	for i := range count {
		if i%50 == 0 {
			r.say("%d of %d", i, count)
		}
		if err := r.sleep(ctx, rand.N(cutPause)); err != nil {
			return err
		}
		name := people[i*sessions/count].Name
		v, err := crowd.witness.revoke(ctx, name, 1)
		if err != nil {
			return err
		}
		seen.add(v)
		began[name] = v.began
	}
	told, err := crowd.told(ctx, held, began, 1)
	if err != nil {
		return err
	}
	kase := fmt.Sprintf("one of %d", sessions)
	seen.report(r, kase)
	r.distribution(kase, "published to end of the client's socket", told)
	r.distribution("NATS alone", "published to received", bare)
	r.distribution("NATS alone, stored", "published to received", stored)
	if err := crowd.check(); err != nil {
		return err
	}
	r.goal("P6", "one session: published to gate closed, p50", 0.3, "<=", quantile(seen.cut, 0.5), "ms")
	r.goal("P6", "one session: published to gate closed, p99", 1, "<=", quantile(seen.cut, 0.99), "ms")
	r.note("NATS alone: messages of the same publisher through the same server to a subscriber that does nothing; stored: of a subject that a stream " +
		"keeps, as it keeps facts. So much of every revocation is not pgedge's")
	crowd.remark(r, sessions, "15,000 sessions in one process")
	return nil
}

// crowd are nodes in front of played servers, for more sessions than a machine can hold server processes.
type crowd struct {
	r        *run
	fleet    *fleet.Fleet
	backends []*playedBackend
	witness  *witness
}

// crowd starts so many nodes, each with a played server of its own. The caller stops it.
func (r *run) crowd(ctx context.Context, nodes, servers int) (_ *crowd, err error) {
	c := &crowd{r: r}
	var upstreams []string
	for i := range nodes {
		b, err := r.playBackend(ctx, fmt.Sprintf("backend-%d", i+1))
		if err != nil {
			return nil, err
		}
		c.backends, upstreams = append(c.backends, b), append(upstreams, b.addr)
	}
	if c.fleet, err = r.fleet(ctx, fleet.Options{Nodes: nodes, NATS: servers, Upstreams: upstreams}); err != nil {
		return nil, err
	}
	nc, err := c.fleet.NATS.Connect()
	if err == nil {
		c.witness, err = newWitness(nc, nodes)
	}
	if err != nil {
		c.stop()
		return nil, err
	}
	return c, nil
}

func (c *crowd) stop() {
	if c.witness != nil {
		c.witness.nc.Close()
	}
	if err := c.fleet.Stop(); err != nil {
		c.r.say("%v", err)
	}
}

// floor measures how long messages take that nobody but a second connection of this process listens to, in ms: what NATS,
// the kernel and the scheduler need in any case. They are paced like revocations. stored says that a stream keeps them, as
// the journal keeps facts.
func (c *crowd) floor(ctx context.Context, count int, stored bool) ([]float64, error) {
	subject := "bench.floor"
	nc, err := c.fleet.NATS.Connect()
	if err != nil {
		return nil, err
	}
	defer nc.Close()
	if stored {
		subject = "bench.stored"
		js, err := jetstream.New(nc)
		if err != nil {
			return nil, err
		}
		if _, err := js.CreateStream(ctx, jetstream.StreamConfig{Name: "BENCH", Subjects: []string{subject}, MaxMsgsPerSubject: 1}); err != nil {
			return nil, err
		}
		defer js.DeleteStream(context.WithoutCancel(ctx), "BENCH")
	}
	heard := make(chan time.Time, 1)
	if _, err := nc.Subscribe(subject, func(*nats.Msg) { heard <- time.Now() }); err != nil {
		return nil, err
	}
	if err := nc.FlushTimeout(5 * time.Second); err != nil {
		return nil, err
	}
	var took []float64
	for range count {
		if err := c.r.sleep(ctx, rand.N(cutPause)); err != nil {
			return nil, err
		}
		began := time.Now()
		if err := c.witness.nc.Publish(subject, nil); err != nil {
			return nil, err
		}
		select {
		case at := <-heard:
			took = append(took, float64(at.Sub(began).Nanoseconds())/1e6)
		case <-time.After(10 * time.Second):
			return nil, errors.New("a NATS message was lost")
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	return took, nil
}

// open logs people in, round robin over the nodes.
func (c *crowd) open(ctx context.Context, people []load.User, processes int) (*load.Sessions, error) {
	var addrs []string
	for _, n := range c.fleet.Nodes {
		addrs = append(addrs, n.Addr)
	}
	spoke := time.Now()
	return load.Open(ctx, load.Spec{Addrs: addrs, Database: pgserver.Database, Users: people, Processes: processes, Progress: func(open, total int) {
		if time.Since(spoke) > 2*time.Second || open == total && total > 1000 {
			spoke = time.Now()
			c.r.say("%d of %d sessions are open", open, total)
		}
	}})
}

// told waits until the clients of those who were revoked have seen the end of their sockets, and returns how long after
// the publish each did, in ms. It is an error when a client saw another end than that of a revocation, when somebody
// lost a session who was not revoked, and when not exactly each sessions of a person have ended.
func (c *crowd) told(ctx context.Context, held *load.Sessions, began map[string]time.Time, each int) ([]float64, error) {
	ctx, cancel := context.WithTimeout(ctx, receiptsTime)
	defer cancel()
	if err := held.WaitEnded(ctx, each*len(began)); err != nil {
		return nil, err
	}
	ends, err := held.Ends()
	if err != nil {
		return nil, err
	}
	var told []float64
	for _, e := range ends {
		at, revoked := began[e.User]
		if !revoked || e.Code != revokedCode {
			return nil, fmt.Errorf("a session of %s, revoked: %t, ended with %q %s %s", e.User, revoked, e.Code, e.Text, e.How)
		}
		told = append(told, float64(e.At.Sub(at).Nanoseconds())/1e6)
	}
	if len(told) != each*len(began) {
		return nil, fmt.Errorf("%d sessions have ended, %d should have", len(told), each*len(began))
	}
	return told, nil
}

// check is an error when a played server was asked what it does not know, or has ended.
func (c *crowd) check() error {
	for _, b := range c.backends {
		if err := b.check(); err != nil {
			return err
		}
	}
	return nil
}

// remark says what the numbers do not mean.
func (c *crowd) remark(r *run, held int, wanted string) {
	r.note("held were %d sessions in %d node processes, each with a backend of its own; the goal speaks of %s, which needs pooled backends", held, len(c.fleet.Nodes), wanted)
	r.note("the backends are %d processes that play Postgres (bench/backend): what ends a session there is much cheaper than the end of a server process", len(c.backends))
	r.note("nodes, backends, NATS servers and clients share %d cores, and one wall clock", r.report.Cores)
}
