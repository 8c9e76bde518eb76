package main

import (
	"bufio"
	"bytes"
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
	"syscall"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"

	"pgedge/internal/pgserver"
)

// workload is what pgbench is asked to do.
type workload struct {
	name    string // of the case in tables
	clients int
	mode    string // pgbench -M: simple, extended, prepared
	// rate is transactions per second in total, 0 for as many as possible. With a rate, latency counts from the moment a
	// transaction was due, so that a stall is seen by all that it made wait.
	rate int
}

func (l workload) args() []string {
	args := []string{"-S", "-n", "-M", l.mode, "-c", strconv.Itoa(l.clients), "-j", "2"}
	if l.rate > 0 {
		args = append(args, "-R", strconv.Itoa(l.rate))
	}
	return args
}

// measurement is what happened in an interval in which all clients were connected and busy.
type measurement struct {
	transactions int64
	seconds      float64
	before       usage
	after        usage
	latency      *hdrhistogram.Histogram // microseconds, as pgbench has logged them
	// corrected is for coordinated omission: a client that waits asks nothing meanwhile, so the questions that it would
	// have asked at its usual pace count as late as well. With a rate pgbench itself counts from when one was due.
	corrected *hdrhistogram.Histogram
	// slowest is the share of the client that got the fewest transactions, 1 when all got the same.
	slowest float64
}

func newLatency() *hdrhistogram.Histogram { return hdrhistogram.New(1, time.Minute.Microseconds(), 3) }

var (
	countLine  = regexp.MustCompile(`number of transactions actually processed: ([0-9]+)`)
	failedLine = regexp.MustCompile(`number of failed transactions: ([0-9]+)`)
)

// measure runs pgbench against a target and looks at an interval in the middle. pgbench connects all clients before the
// first begins and logs every transaction with the time it ended, so the interval holds no login, and its transactions
// are counted, not estimated. warm is what is left out at the beginning; at the end at least as much is left out.
//
// pgbench counts its own time from before it connects. Where that takes so long that the interval is not over when pgbench
// is, it is tried again with more time.
func measure(ctx context.Context, r *run, pgbench string, t *target, l workload, warm, interval time.Duration, during func(context.Context) error) (*measurement, error) {
	const attempts = 4
	for attempt := 0; ; attempt++ {
		length := interval + 2*warm + time.Duration(attempt*attempt)*time.Second
		m, err := measureOnce(ctx, r, pgbench, t, l, warm, interval, length, during)
		if !errors.Is(err, errTooShort) || attempt+1 == attempts {
			return m, err
		}
	}
}

var errTooShort = errors.New("pgbench was done before the interval was: the machine is too busy")

func measureOnce(ctx context.Context, r *run, pgbench string, t *target, l workload, warm, interval, length time.Duration, during func(context.Context) error) (*measurement, error) {
	dir, err := os.MkdirTemp(r.dir, "pgbench-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	seconds := int((length + time.Second - 1) / time.Second)
	var out bytes.Buffer
	cmd := pgbenchCommand(ctx, pgbench, t, append(l.args(), "-T", strconv.Itoa(seconds), "-l", "--log-prefix", filepath.Join(dir, "log"))...)
	cmd.Stdout, cmd.Stderr = &out, &out
	p, err := startChild(cmd, "", "")
	if err != nil {
		return nil, err
	}
	defer p.stop()
	if err := waitForLog(ctx, p, dir, &out); err != nil {
		return nil, err
	}
	m := &measurement{latency: newLatency(), corrected: newLatency()}
	if err := r.sleep(ctx, warm); err != nil {
		return nil, err
	}
	if m.before, err = t.proc.usage(); err != nil {
		return nil, err
	}
	if during != nil {
		err = during(ctx)
	} else {
		err = r.sleep(ctx, interval)
	}
	if err != nil {
		return nil, err
	}
	if m.after, err = t.proc.usage(); err != nil {
		return nil, err
	}
	select {
	case <-p.done:
	case <-ctx.Done():
		return nil, ctx.Err()
	case <-time.After(time.Minute):
		return nil, fmt.Errorf("pgbench does not end\n%s", out.Bytes())
	}
	if p.err != nil {
		return nil, fmt.Errorf("pgbench failed: %w\n%s", p.err, out.Bytes())
	}
	return m, m.count(l, dir, out.Bytes(), during == nil)
}

// waitForLog returns when the first transactions are logged: all clients are connected by then.
func waitForLog(ctx context.Context, p *process, dir string, out *bytes.Buffer) error {
	deadline := time.After(time.Minute)
	for {
		files, _ := filepath.Glob(filepath.Join(dir, "log*"))
		for _, file := range files {
			if info, err := os.Stat(file); err == nil && info.Size() > 0 {
				return nil
			}
		}
		select {
		case <-p.done:
			return fmt.Errorf("pgbench ended: %v\n%s", p.err, out.Bytes())
		case <-ctx.Done():
			return ctx.Err()
		case <-deadline:
			return fmt.Errorf("pgbench has done nothing in a minute")
		case <-time.After(5 * time.Millisecond):
		}
	}
}

// count reads pgbench's log and compares it with what pgbench says at the end. whole asks that the interval was over before.
func (m *measurement) count(l workload, dir string, out []byte, whole bool) error {
	files, err := filepath.Glob(filepath.Join(dir, "log*"))
	if err != nil {
		return err
	}
	from, to := m.before.at.UnixMicro(), m.after.at.UnixMicro()
	m.seconds = m.after.at.Sub(m.before.at).Seconds()
	var logged, late int64
	var took []int64
	clients := make(map[string]int)
	for _, file := range files {
		f, err := os.Open(file)
		if err != nil {
			return err
		}
		lines := bufio.NewScanner(f)
		for lines.Scan() {
			tx, err := parseLogLine(lines.Bytes())
			if err != nil {
				f.Close()
				return err
			}
			logged++
			switch {
			case tx.endedMicros >= to:
				late++
			case tx.endedMicros >= from:
				took = append(took, tx.tookMicros)
				clients[tx.client]++
			}
		}
		f.Close()
		if err := lines.Err(); err != nil {
			return err
		}
	}
	if failed := failedLine.FindSubmatch(out); failed != nil && string(failed[1]) != "0" {
		return fmt.Errorf("%s transactions failed", failed[1])
	}
	said := countLine.FindSubmatch(out)
	if said == nil || string(said[1]) != strconv.FormatInt(logged, 10) {
		return fmt.Errorf("pgbench has logged %d transactions and says something else:\n%s", logged, out)
	}
	if whole && (late == 0 || len(took) == 0) {
		return errTooShort
	}
	m.transactions = int64(len(took))
	if len(clients) == l.clients {
		m.slowest = float64(slices.Min(slices.Collect(maps.Values(clients)))) * float64(l.clients) / float64(len(took))
	}
	return m.record(l, took)
}

func (m *measurement) record(l workload, took []int64) error {
	pace := int64(0) // no correction
	if l.rate == 0 && len(took) > 0 {
		pace = int64(m.seconds * 1e6 * float64(l.clients) / float64(len(took)))
	}
	for _, micros := range took {
		if err := errors.Join(m.latency.RecordValue(micros), m.corrected.RecordCorrectedValue(micros, pace)); err != nil {
			return fmt.Errorf("cannot record a latency of %d us: %w", micros, err)
		}
	}
	return nil
}

// transaction is a line of pgbench's log.
type transaction struct {
	client                  string
	tookMicros, endedMicros int64
}

// parseLogLine reads one transaction: client, number, how long it took in us, script, when it ended in s and us, and with a
// rate how late it began. A failed one has a word in place of the number.
func parseLogLine(line []byte) (transaction, error) {
	fields := bytes.Fields(line)
	if len(fields) < 6 {
		return transaction{}, fmt.Errorf("cannot read pgbench's log: %q", line)
	}
	var n [3]int64
	for i, field := range [][]byte{fields[2], fields[4], fields[5]} {
		var err error
		if n[i], err = strconv.ParseInt(string(field), 10, 64); err != nil {
			return transaction{}, fmt.Errorf("pgbench has logged a transaction that failed: %q", line)
		}
	}
	return transaction{client: string(fields[0]), tookMicros: n[0], endedMicros: n[1]*1e6 + n[2]}, nil
}

func pgbenchCommand(ctx context.Context, pgbench string, t *target, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, pgbench, append([]string{"-h", t.host, "-p", strconv.Itoa(t.port), "-U", "trustuser"}, append(args, pgserver.Database)...)...)
	cmd.Env = append(os.Environ(), "PGSSLMODE=disable")
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	return cmd
}
