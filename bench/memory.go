package main

import (
	"context"
	"flag"
	"fmt"
	"io"
	"net/http"
	"os"
	"strconv"
	"strings"
	"time"

	"pgedge/bench/load"
	"pgedge/internal/pgserver"
)

const (
	// memoryStep is how many sessions one batch of logins has; their users are told apart.
	memoryStep = 500
	// memorySettle is for how long memory must not have grown before it is read, memoryPatience the longest wait for that.
	memorySettle   = time.Second
	memoryPatience = 15 * time.Second
	// memoryGrain is what counts as growth: a runtime is never quite still.
	memoryGrain = 64 << 10
)

func memoryFlags(fs *flag.FlagSet) func(context.Context, *run) error {
	most := fs.Int("sessions", 0, "sessions in the largest case; the others have a half, a quarter and an eighth (default 8000, with -quick 4000)")
	return func(ctx context.Context, r *run) error {
		if *most <= 0 {
			*most = r.pick(4000, 8000)
		}
		if *most < 8*memoryStep || *most > 9000 {
			return fmt.Errorf("-sessions must be from %d to 9000: a proxy needs two descriptors for each, and has 20,000", 8*memoryStep)
		}
		return runMemory(ctx, r, *most)
	}
}

// runMemory measures what one more idle session costs in resident memory.
func runMemory(ctx context.Context, r *run, most int) error {
	played, err := r.playBackend(ctx, "backend")
	if err != nil {
		return err
	}
	steps := []int{0, most / 8, most / 4, most / 2, most}
	for round := range r.rounds {
		// New processes in each round: memory that was once used stays with them.
		targets, err := front{name: fmt.Sprintf("%d-", round), addr: played.addr, clients: most}.startAll(ctx, r)
		if err != nil {
			return err
		}
		for i := range targets {
			t := targets[(i+round)%len(targets)]
			if t.proc == nil {
				continue
			}
			r.say("round %d/%d  %s", round+1, r.rounds, t.name)
			if err := measureMemory(ctx, r, t, steps); err != nil {
				return fmt.Errorf("%s: %w", t.name, err)
			}
			if err := t.proc.stop(); err != nil {
				return err
			}
		}
		if err := played.check(); err != nil {
			return err
		}
	}
	for _, target := range []string{subject, "pgbouncer", "haproxy"} {
		if !r.measured(memoryTable, target) {
			continue
		}
		var x, y []float64
		for _, n := range steps {
			x, y = append(x, float64(n)), append(y, r.median(memoryTable, memoryCase(n), target, memoryRSS))
		}
		r.curve("memory", target, x, y, "idle sessions", "MiB resident")
	}
	r.goal("P5", "resident memory per idle session (the goal is for transaction mode, this is session mode)", 1.5, "<=",
		r.median(slopeTable, slopeCase, subject, memoryRSS), "KiB")
	r.note("resident memory is Rss of /proc/PID/smaps_rollup. The kernel's memory for sockets is not in it: two sockets per session at pgedge and HAProxy, and at PgBouncer once a session has a server")
	r.note("pgedge and HAProxy hold a client and a server connection for each session. So does PgBouncer in session mode here, because each session has asked a question before it is idle")
	r.note("P5 is about transaction mode with 18,000 sessions in one process and nothing behind an idle one. There are no pools yet, and a pair takes two of 20,000 descriptors")
	r.note("P5's 12 KiB with TLS are not measured: this version of pgedge ends no TLS at its listeners")
	r.note("a Go process keeps up to as much free memory as it uses, to collect garbage less often: it had about half of \"next collection at\" in live objects")
	return nil
}

const (
	memoryTable = "memory"
	slopeTable  = "memory of one more session"
	slopeCase   = "least squares"
	memoryRSS   = "resident"
)

func memoryCase(n int) string { return fmt.Sprintf("%d sessions", n) }

// measureMemory reads a proxy's memory with more and more idle sessions.
func measureMemory(ctx context.Context, r *run, t *target, steps []int) error {
	var open []*load.Sessions
	defer func() {
		for _, s := range open {
			s.Close()
		}
	}()
	have := 0
	var counts []float64
	var metrics []string
	read := make(map[string][]float64) // by metric, MiB
	for _, n := range steps {
		for have < n {
			s, err := load.Open(ctx, load.Spec{Addrs: []string{t.addr()}, Database: pgserver.Database,
				Users: []load.User{{Name: "trustuser", Sessions: min(memoryStep, n-have)}}})
			if err != nil {
				return err
			}
			open = append(open, s)
			have += s.Len()
			// A session that has never asked is not one yet: PgBouncer gives it no server.
			if err := askOnce(ctx, s); err != nil {
				return err
			}
		}
		m, err := memoryOf(ctx, t)
		if err != nil {
			return err
		}
		for _, s := range open {
			if s.Ended() > 0 {
				return fmt.Errorf("%d of %d sessions have ended", s.Ended(), s.Len())
			}
		}
		counts = append(counts, float64(n))
		metrics = metrics[:0]
		for _, p := range m {
			metrics = append(metrics, p.name)
			read[p.name] = append(read[p.name], p.bytes/(1<<20))
			r.sample(memoryTable, memoryCase(n), t.name, p.name, "MiB", p.bytes/(1<<20))
		}
		r.say("%s: %d sessions, %.1f MiB", t.name, n, m[0].bytes/(1<<20))
	}
	for _, name := range metrics {
		r.sample(slopeTable, slopeCase, t.name, name, "KiB", slope(counts, read[name])*1024)
	}
	return nil
}

// askOnce lets every session ask one question.
func askOnce(ctx context.Context, s *load.Sessions) error {
	if err := s.Run("SELECT 1"); err != nil {
		return err
	}
	return s.WaitIdle(ctx)
}

// memoryPart is one measure of a process's memory.
type memoryPart struct {
	name  string
	bytes float64
}

// memoryOf reads a process's memory once it has stopped growing: resident first, and for pgedge what the Go runtime says.
func memoryOf(ctx context.Context, t *target) ([]memoryPart, error) {
	until, still, last := time.Now().Add(memoryPatience), time.Now(), 0.0
	for {
		now, err := resident(t.proc.pid())
		if err != nil {
			return nil, err
		}
		if now > last+memoryGrain || now < last-memoryGrain {
			still, last = time.Now(), now
		}
		if time.Since(still) > memorySettle || time.Now().After(until) {
			break
		}
		select {
		case <-time.After(50 * time.Millisecond):
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	parts := []memoryPart{{memoryRSS, 0}}
	if t.admin != "" {
		m, err := goMetrics(ctx, t.admin)
		if err != nil {
			return nil, err
		}
		runtime := 0.0
		for _, part := range []string{"mspan_sys", "mcache_sys", "buck_hash_sys", "gc_sys", "other_sys"} {
			runtime += m["go_memstats_"+part+"_bytes"]
		}
		parts = append(parts, memoryPart{"heap in use", m["go_memstats_heap_inuse_bytes"]}, memoryPart{"next collection at", m["go_memstats_next_gc_bytes"]},
			memoryPart{"stacks", m["go_memstats_stack_sys_bytes"]}, memoryPart{"runtime", runtime})
	}
	var err error
	parts[0].bytes, err = resident(t.proc.pid())
	return parts, err
}

// resident is Rss of a process, in bytes.
func resident(pid int) (float64, error) {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", pid))
	if err != nil {
		return 0, err
	}
	kib, err := statusField(data, "Rss")
	return float64(kib << 10), err
}

// goMetrics reads the metrics without labels from pgedge's admin address.
func goMetrics(ctx context.Context, addr string) (map[string]float64, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+addr+"/metrics", nil)
	if err != nil {
		return nil, err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return nil, fmt.Errorf("cannot read pgedge's metrics: %w", err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(io.LimitReader(resp.Body, 4<<20))
	if err != nil {
		return nil, fmt.Errorf("cannot read pgedge's metrics: %w", err)
	}
	m := make(map[string]float64)
	for line := range strings.Lines(string(text)) {
		name, value, _ := strings.Cut(strings.TrimSpace(line), " ")
		if v, err := strconv.ParseFloat(value, 64); err == nil {
			m[name] = v
		}
	}
	if m["go_memstats_heap_inuse_bytes"] == 0 {
		return nil, fmt.Errorf("pgedge's metrics do not name its heap")
	}
	return m, nil
}

// slope is that of the straight line through the points that has the least squares of errors.
func slope(x, y []float64) float64 {
	var mx, my, xy, xx float64
	for i := range x {
		mx += x[i] / float64(len(x))
		my += y[i] / float64(len(x))
	}
	for i := range x {
		xy += (x[i] - mx) * (y[i] - my)
		xx += (x[i] - mx) * (x[i] - mx)
	}
	return xy / xx
}
