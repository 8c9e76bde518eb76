package main

import "testing"

func TestABusyMachineIsSeen(t *testing.T) {
	before, err := parseCPUTicks("cpu  100 10 50 1000 20 5 5 10 7 0\ncpu0 1 1 1 1\n")
	if err != nil {
		t.Fatal(err)
	}
	after, err := parseCPUTicks("cpu  120 10 60 1060 30 5 5 10 9 0\n")
	if err != nil {
		t.Fatal(err)
	}
	if got := after.busySince(before); got != 0.3 {
		t.Errorf("30 of 100 ticks were busy, but the share is %v", got)
	}
	if got := before.busySince(before); got != 0 {
		t.Errorf("no time has passed, but the share is %v", got)
	}
	for _, bad := range []string{"", "cpu 1 2 3", "cpu0 1 2 3 4 5 6 7 8", "cpu a b c d e f g h"} {
		if _, err := parseCPUTicks(bad); err == nil {
			t.Errorf("%q was taken", bad)
		}
	}
	if _, err := readCPUTicks(); err != nil {
		t.Error(err)
	}
}

func TestAReportOfABusyMachineSaysSo(t *testing.T) {
	for busy, want := range map[float64]int{0.02: 0, 0.4: 1} {
		r := sampled(t)
		r.report.BusyBefore = busy
		r.report.end()
		if got := len(r.report.Notes); got != want {
			t.Errorf("busy %v: %d notes, want %d: %q", busy, got, want, r.report.Notes)
		}
	}
}
