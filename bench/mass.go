package main

import (
	"context"
	"flag"
	"fmt"
	"slices"
	"time"

	"pgedge/bench/load"
)

const (
	// massAskers ask a question every massInterval each, whether or not the last was answered.
	massAskers   = 100
	massInterval = 20 * time.Millisecond
	// massBefore is how long the bystanders are watched before a revocation.
	massBefore = 2 * time.Second
	// massAfter is for how long after the last receipt they still count as disturbed by it.
	massAfter = 50 * time.Millisecond
)

func massFlags(fs *flag.FlagSet) func(context.Context, *run) error {
	victims := fs.Int("victims", 0, "sessions of the person who is revoked, in the largest case (default 5000, with -quick 1200)")
	others := fs.Int("others", 0, fmt.Sprintf("sessions of others, of which %d ask (default 3000, with -quick 800)", massAskers))
	return func(ctx context.Context, r *run) error {
		if *victims <= 0 {
			*victims = r.pick(1200, 5000)
		}
		if *others <= 0 {
			*others = r.pick(800, 3000)
		}
		if *others <= massAskers {
			return fmt.Errorf("there must be more than %d others", massAskers)
		}
		return runMass(ctx, r, *victims, *others)
	}
}

// runMass measures the revocation of one person with many sessions, and what others in the same process notice of it.
func runMass(ctx context.Context, r *run, victims, others int) error {
	c, err := r.crowd(ctx, 1, 1)
	if err != nil {
		return err
	}
	defer c.stop()
	var idle []load.User
	for i := range others - massAskers {
		idle = append(idle, load.User{Name: fmt.Sprintf("idle%05d", i), Sessions: 1})
	}
	bystanders, err := c.open(ctx, idle, 0)
	if err != nil {
		return err
	}
	defer bystanders.Close()
	askers, err := c.open(ctx, []load.User{{Name: "asker", Sessions: massAskers}}, 1)
	if err != nil {
		return err
	}
	defer askers.Close()
	if err := askers.Ask(massAskers / massInterval.Seconds()); err != nil {
		return err
	}
	var matched []float64
	curves := map[string][]float64{}
	for _, n := range []int{10, 100, 1000, victims} {
		if n > victims {
			continue
		}
		for round := range r.rounds {
			r.say("%d sessions of one person, round %d of %d", n, round+1, r.rounds)
			if err := massRound(ctx, r, c, askers, fmt.Sprintf("mass-%d-%d", n, round), n); err != nil {
				return err
			}
		}
		matched = append(matched, float64(n))
		for _, metric := range massCurves {
			curves[metric] = append(curves[metric], r.median(massTable, massCase(n), subject, metric))
		}
	}
	if n := bystanders.Ended() + askers.Ended(); n > 0 {
		return fmt.Errorf("%d bystanders were cut", n)
	}
	if err := c.check(); err != nil {
		return err
	}
	for _, metric := range massCurves {
		r.curve("matched", metric, matched, curves[metric], "sessions of the person who is revoked", "ms")
	}
	largest := func(metric string) float64 { return r.median(massTable, massCase(victims), subject, metric) }
	r.goal("P7", "all gates closed, published to, median of rounds", 5, "<=", largest(massGates), "ms")
	r.goal("P7", "all sockets closed, by receipt", 300, "<=", largest(massClosed), "ms")
	r.goal("P7", "all sockets closed, as the clients see it", 300, "<=", largest(massTold), "ms")
	r.goal("P7", "bystanders' p99 moves by", 5, "<=", largest(massMoved), "ms")
	c.remark(r, victims+others, "10,000 sessions of one person among 15,000")
	r.note("the goals are judged by the medians of %d rounds; the curve keeps the %d others and varies the sessions of the person", r.rounds, others)
	r.note("the bystanders of a round are judged from the publish to %s after its last receipt; before that they are watched for %s", massAfter, massBefore)
	return nil
}

const (
	massTable    = "one person with many sessions"
	massHeard    = "published to received"
	massGates    = "published to all gates closed"
	massCut      = "received to all gates closed"
	massClosed   = "published to all closed, by receipt"
	massTold     = "published to end of the last client's socket"
	massVerified = "published to all backends seen gone"
	massComplete = "published to all receipts here"
	massMoved    = "bystanders' p99, during less before"
)

var massCurves = []string{massGates, massTold, massVerified}

func massCase(n int) string { return fmt.Sprintf("%d sessions", n) }

// massRound logs a person in with n sessions, and revokes them.
func massRound(ctx context.Context, r *run, c *crowd, askers *load.Sessions, name string, n int) error {
	held, err := c.open(ctx, []load.User{{Name: name, Sessions: n}}, 1)
	if err != nil {
		return err
	}
	defer held.Close()
	if err := r.sleep(ctx, time.Second); err != nil { // the logins' garbage is not the revocation's
		return err
	}
	if _, err := askers.Take(); err != nil {
		return err
	}
	if err := r.sleep(ctx, massBefore); err != nil {
		return err
	}
	before, err := askers.Take()
	if err != nil {
		return err
	}
	v, err := c.witness.revoke(ctx, name, n)
	if err != nil {
		return err
	}
	if err := r.sleep(ctx, massAfter); err != nil {
		return err
	}
	during, err := askers.Take()
	if err != nil {
		return err
	}
	if before.Errors+during.Errors > 0 {
		return fmt.Errorf("bystanders were not answered: %s%s", before.First, during.First)
	}
	told, err := c.told(ctx, held, map[string]time.Time{name: v.began}, n)
	if err != nil {
		return err
	}
	var seen stages
	seen.add(v)
	ms := func(w load.Window, q float64) float64 { return float64(w.Latency.ValueAtQuantile(q)) / load.UnitsPerMS }
	for _, m := range []struct {
		metric string
		value  float64
	}{
		{massHeard, seen.heard[0]}, {massCut, seen.gates[0]}, {massGates, seen.cut[0]}, {massClosed, seen.closed[0]}, {massTold, slices.Max(told)},
		{massVerified, seen.verified[0]}, {massComplete, seen.complete[0]},
		{"bystanders' p50, before", ms(before, 50)}, {"bystanders' p50, during", ms(during, 50)},
		{"bystanders' p99, before", ms(before, 99)}, {"bystanders' p99, during", ms(during, 99)},
		{massMoved, ms(during, 99) - ms(before, 99)},
		{"bystanders' questions, during", float64(during.Latency.TotalCount())},
	} {
		unit := "ms"
		if m.metric == "bystanders' questions, during" {
			unit = ""
		}
		r.sample(massTable, massCase(n), subject, m.metric, unit, m.value)
	}
	return nil
}
