package main

import (
	"context"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"
)

// busyShare is how much of the machine's CPU time others may use for a result to be quoted.
const busyShare = 0.1

// settle waits until the machine does nothing else, within reason: the scenario before this one leaves the kernel a lot
// to close. The load average would remember that one for minutes.
func (r *run) settle(ctx context.Context) error {
	patience := time.Duration(r.pick(2, 30)) * time.Second
	for began := time.Now(); ; {
		before, err := readCPUTicks()
		if err != nil {
			return err
		}
		if err := r.sleep(ctx, time.Duration(r.pick(500, 1000))*time.Millisecond); err != nil {
			return err
		}
		after, err := readCPUTicks()
		if err != nil {
			return err
		}
		r.report.BusyBefore = after.busySince(before)
		if r.report.BusyBefore <= busyShare/2 || time.Since(began) > patience {
			return nil
		}
	}
}

// cpuTicks is time of all processors, in ticks.
type cpuTicks struct{ busy, all int64 }

func (t cpuTicks) busySince(before cpuTicks) float64 {
	if t.all <= before.all {
		return 0
	}
	return float64(t.busy-before.busy) / float64(t.all-before.all)
}

func readCPUTicks() (cpuTicks, error) {
	data, err := os.ReadFile("/proc/stat")
	if err != nil {
		return cpuTicks{}, err
	}
	return parseCPUTicks(string(data))
}

// parseCPUTicks reads the first line of /proc/stat (proc_stat(5)): user, nice, system, idle, iowait, irq, softirq, steal.
// What guests take is in user and nice already. A processor that a hypervisor has lent to somebody else is busy too.
func parseCPUTicks(stat string) (t cpuTicks, err error) {
	line, _, _ := strings.Cut(stat, "\n")
	fields := strings.Fields(line)
	if len(fields) < 9 || fields[0] != "cpu" {
		return t, fmt.Errorf("/proc/stat begins with %q", line)
	}
	const idle, iowait = 4, 5
	for i, field := range fields[1:9] {
		n, err := strconv.ParseInt(field, 10, 64)
		if err != nil {
			return t, fmt.Errorf("/proc/stat: %w", err)
		}
		t.all += n
		if i+1 != idle && i+1 != iowait {
			t.busy += n
		}
	}
	return t, nil
}
