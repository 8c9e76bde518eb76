package main

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// profileLoad runs a load a few times more through every proxy, for its profile and for its system calls. Both slow a
// process down, so nothing of these runs is timed.
func profileLoad(ctx context.Context, r *run, pgbench string, targets []*target, l workload) error {
	for _, t := range targets {
		if t.proc == nil {
			continue
		}
		// perf takes a while to attach, so more than its length is left out at both ends.
		interval := time.Duration(r.pick(2, 5)) * time.Second
		_, err := measure(ctx, r, pgbench, t, l, 2*time.Second, interval, func(ctx context.Context) error {
			return profileCPU(ctx, r, t, l.name, func() error { return r.sleep(ctx, interval) })
		})
		if err != nil {
			return fmt.Errorf("cannot profile %s: %w", t.name, err)
		}
		const table = "system calls per transaction (of runs that are not timed)"
		err = countCalls(ctx, r, t, table, l.name, 1, 4000, r.pick(20000, 60000), func(transactions int) error {
			each := transactions / l.clients
			out, err := pgbenchCommand(ctx, pgbench, t, append(l.args(), "-t", strconv.Itoa(each))...).CombinedOutput()
			if said := countLine.FindSubmatch(out); err == nil && (said == nil || string(said[1]) != strconv.Itoa(each*l.clients)) {
				err = errors.New("transactions are missing")
			}
			if err != nil {
				return fmt.Errorf("%w\n%s", err, out)
			}
			return nil
		})
		if err != nil {
			return fmt.Errorf("cannot count the system calls of %s: %w", t.name, err)
		}
	}
	return nil
}

// profileCPU keeps what `perf report` says of a process while work runs.
func profileCPU(ctx context.Context, r *run, t *target, kase string, work func() error) error {
	perf, err := exec.LookPath("perf")
	if err != nil {
		r.note("perf is not installed: no profile of %s", t.name)
		return work()
	}
	r.say("profile of %s, %s ...", t.name, kase)
	data := filepath.Join(r.dir, "perf.data")
	// 997 Hz is prime, so that it does not beat with timers. cpu-clock needs no performance counters.
	c := &callCounter{file: filepath.Join(r.dir, "perf.log")}
	c.p, err = startChild(exec.Command(perf, "record", "-e", "cpu-clock", "-F", "997", "-g", "-p", strconv.Itoa(t.proc.pid()), "-o", data), c.file, "")
	if err != nil {
		return err
	}
	if err := c.await(ctx, func() bool { return perfEvents(c.p.pid()) }); err != nil {
		return err
	}
	if err := c.end(work()); err != nil {
		return err
	}
	var out []byte
	for _, args := range [][]string{{"--no-children", "-g", "none"}, {"--no-children", "-g", "caller,0.5,callee,function,percent", "--percent-limit", "1"}} {
		text, err := exec.CommandContext(ctx, perf, append([]string{"report", "--stdio", "-i", data}, args...)...).Output()
		if err != nil {
			return fmt.Errorf("perf report: %w", err)
		}
		out = append(out, text...)
	}
	return os.WriteFile(filepath.Join(r.profile, fmt.Sprintf("%s-%s-%s.perf.txt", r.name, slug(kase), t.name)), out, 0o644)
}

// countCalls counts a proxy's system calls by name over two runs of different length. What the longer one has more is
// divided by how much longer it is, in units of which one thing is so many: without logins and without what happens while
// the counter attaches.
func countCalls(ctx context.Context, r *run, t *target, table, kase string, units float64, short, long int, work func(things int) error) error {
	r.say("system calls of %s, %s ...", t.name, kase)
	var calls [2]map[string]int64
	for i, n := range []int{short, long} {
		c, err := startCallCounter(ctx, r, t.proc)
		if err != nil {
			return err
		}
		if c == nil {
			r.note("neither perf (as root) nor strace can count system calls here")
			return nil
		}
		if calls[i], err = c.stop(work(n)); err != nil {
			return err
		}
	}
	more := float64(long-short) * units
	total := 0.0
	for name, n := range calls[1] {
		calls[1][name] = n - calls[0][name]
		total += float64(calls[1][name]) / more
	}
	r.sample(table, kase, t.name, "all", "", total)
	for _, name := range slices.SortedFunc(maps.Keys(calls[1]), func(a, b string) int { return cmp.Compare(calls[1][b], calls[1][a]) }) {
		if each := float64(calls[1][name]) / more; each >= total/100 { // less is timers and noise
			r.sample(table, kase, t.name, name, "", each)
		}
	}
	return nil
}

// callCounter is perf or strace at work on a process.
type callCounter struct {
	p    *process
	file string
	line *regexp.Regexp // of its table: name and calls, in this order
	name int            // the group with the name
	n    int            // the group with the number; a profile has no table
}

var (
	perfCalls   = regexp.MustCompile(`^\s+([a-z_0-9]+)\s+([0-9]+)\s+[0-9]+\s+[0-9.]+\s+[0-9.]+`)
	straceCalls = regexp.MustCompile(`^\s*[0-9.]+\s+[0-9.]+\s+[0-9]+\s+([0-9]+)\s+(?:[0-9]+\s+)?([a-z_0-9]+)$`)
)

// startCallCounter returns when the counter is attached to every thread; nil when there is none. perf comes first: it
// hardly slows a process down, and a slow proxy finds more to do per call.
func startCallCounter(ctx context.Context, r *run, of *process) (*callCounter, error) {
	pid := strconv.Itoa(of.pid())
	file := filepath.Join(r.dir, "calls")
	if perf, err := exec.LookPath("perf"); err == nil && os.Getuid() == 0 {
		c := &callCounter{file: file, line: perfCalls, name: 1, n: 2}
		c.p, err = startChild(exec.Command(perf, "trace", "-s", "-m", "4096", "-p", pid, "-o", file), filepath.Join(r.dir, "perf.log"), "")
		if err != nil {
			return nil, err
		}
		return c, c.await(ctx, func() bool { return perfEvents(c.p.pid()) })
	}
	if strace, err := exec.LookPath("strace"); err == nil {
		r.note("system calls were counted by strace, which slows a process down so much that it finds more to do in each")
		log := filepath.Join(r.dir, "strace.log")
		c := &callCounter{file: file, line: straceCalls, name: 2, n: 1}
		c.p, err = startChild(exec.Command(strace, "-f", "-c", "-p", pid, "-o", file), log, "")
		if err != nil {
			return nil, err
		}
		return c, c.await(ctx, func() bool {
			data, _ := os.ReadFile(log)
			return bytes.Contains(data, []byte("attached"))
		})
	}
	return nil, nil
}

// perfEvents reports whether a perf process has opened its events.
func perfEvents(pid int) bool {
	fds, _ := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", pid))
	return slices.ContainsFunc(fds, func(fd string) bool {
		name, err := os.Readlink(fd)
		return err == nil && strings.Contains(name, "perf_event")
	})
}

func (c *callCounter) await(ctx context.Context, attached func() bool) error {
	deadline := time.After(20 * time.Second)
	for !attached() {
		select {
		case <-time.After(20 * time.Millisecond):
			continue
		case <-c.p.done:
			log, _ := os.ReadFile(c.file)
			return fmt.Errorf("%s: %v\n%s", c.p.cmd.Path, c.p.err, log)
		case <-ctx.Done():
		case <-deadline:
		}
		c.p.stop()
		return errors.Join(ctx.Err(), fmt.Errorf("%s does not attach", c.p.cmd.Path))
	}
	return nil
}

// end ends the tracer as an interrupt would, so that it writes what it has. err is what has gone wrong meanwhile.
func (c *callCounter) end(err error) error {
	c.p.cmd.Process.Signal(syscall.SIGINT)
	select {
	case <-c.p.done:
	case <-time.After(20 * time.Second):
		err = errors.Join(err, fmt.Errorf("%s does not end", c.p.cmd.Path))
	}
	c.p.stop()
	return err
}

// stop ends the counting and returns the calls by name.
func (c *callCounter) stop(err error) (map[string]int64, error) {
	if err := c.end(err); err != nil {
		return nil, err
	}
	f, err := os.Open(c.file)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	calls := make(map[string]int64)
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		if strings.Contains(lines.Text(), "LOST") {
			return nil, errors.New("perf has lost events")
		}
		if m := c.line.FindStringSubmatch(lines.Text()); m != nil && m[c.name] != "total" {
			n, err := strconv.ParseInt(m[c.n], 10, 64)
			if err != nil {
				return nil, err
			}
			calls[m[c.name]] += n
		}
	}
	if len(calls) == 0 {
		return nil, errors.New("nothing was counted")
	}
	return calls, lines.Err()
}

// slug makes a name fit for a file: letters, digits and single dashes.
func slug(s string) string {
	return strings.Trim(regexp.MustCompile(`[^a-z0-9]+`).ReplaceAllString(strings.ToLower(s), "-"), "-")
}
