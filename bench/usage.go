package main

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

// usage is what a process has used so far.
type usage struct {
	at  time.Time
	cpu time.Duration
	// switches are voluntary and involuntary context switches by thread: those of a thread that has ended are lost.
	switches map[string]int64
}

// usage reads what a process has used, all threads together.
func (p *process) usage() (usage, error) {
	u := usage{at: time.Now()}
	if p == nil { // a direct connection has no process between
		return u, nil
	}
	var err error
	if u.cpu, err = cpuTime(p.pid()); err == nil {
		u.switches, err = contextSwitches(p.pid())
	}
	return u, err
}

// cpuTime is user and system time of a process, to the nanosecond and with the threads that have ended: its CPU clock is
// what the scheduler accounts with. /proc/PID/stat has the same sum in ticks of 10 ms, and /proc/PID/task/*/schedstat
// loses the threads that end.
func cpuTime(pid int) (time.Duration, error) {
	// The id of another process's clock (clock_getcpuclockid): the complement of its pid, and 2 for the scheduler's clock.
	const scheduler = 2
	var ts unix.Timespec
	if err := unix.ClockGettime(int32(^pid<<3|scheduler), &ts); err != nil {
		return 0, fmt.Errorf("cannot read the CPU clock of process %d: %w", pid, err)
	}
	return time.Duration(ts.Nano()), nil
}

func contextSwitches(pid int) (map[string]int64, error) {
	files, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/status", pid))
	if err != nil {
		return nil, err
	}
	switches := make(map[string]int64)
	for _, file := range files {
		data, err := os.ReadFile(file)
		if errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ESRCH) {
			continue
		}
		if err != nil {
			return nil, err
		}
		a, err1 := statusField(data, "voluntary_ctxt_switches")
		b, err2 := statusField(data, "nonvoluntary_ctxt_switches")
		if err := errors.Join(err1, err2); err != nil {
			return nil, err
		}
		switches[filepath.Base(filepath.Dir(file))] = a + b
	}
	return switches, nil
}

// switchesSince is the number of context switches between two readings; false when a thread has ended in between.
func (u usage) switchesSince(before usage) (int64, bool) {
	var n int64
	for thread, count := range u.switches {
		n += count - before.switches[thread]
	}
	for thread := range before.switches {
		if _, ok := u.switches[thread]; !ok {
			return 0, false
		}
	}
	return n, true
}

// memory is resident memory in bytes: now, and at most since the last forgetPeak.
func (p *process) memory() (now, peak int64, err error) {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.pid()))
	if err != nil {
		return 0, 0, err
	}
	now, err1 := statusField(data, "VmRSS")
	peak, err2 := statusField(data, "VmHWM")
	return now << 10, peak << 10, errors.Join(err1, err2)
}

// forgetPeak sets the peak of resident memory to what is resident now.
func (p *process) forgetPeak() error {
	return os.WriteFile(fmt.Sprintf("/proc/%d/clear_refs", p.pid()), []byte("5"), 0)
}

// statusField is a number of /proc/PID/status, in the unit it has there.
func statusField(status []byte, name string) (int64, error) {
	for line := range bytes.Lines(status) {
		key, value, _ := bytes.Cut(line, []byte(":"))
		if fields := bytes.Fields(value); string(key) == name && len(fields) > 0 {
			return strconv.ParseInt(string(fields[0]), 10, 64)
		}
	}
	return 0, fmt.Errorf("no %s in /proc/PID/status", name)
}
