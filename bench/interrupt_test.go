package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// TestMain makes this program its own pgedge: the real one takes long to build, and what is tested is the harness.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == "serve" {
		if err := standIn(os.Args[2:]); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	os.Exit(m.Run())
}

// standIn relays bytes from --listen to --upstream and knows nothing of their meaning.
func standIn(args []string) error {
	value := func(flag string) string {
		if at := slices.Index(args, flag); at >= 0 && at+1 < len(args) {
			return args[at+1]
		}
		return ""
	}
	upstream, err := url.Parse(value("--upstream"))
	if err != nil {
		return err
	}
	l, err := net.Listen("tcp", value("--listen"))
	if err != nil {
		return err
	}
	for {
		front, err := l.Accept()
		if err != nil {
			return err
		}
		go func() {
			defer front.Close()
			back, err := net.Dial("tcp", upstream.Host)
			if err != nil {
				return
			}
			defer back.Close()
			go io.Copy(back, front)
			io.Copy(front, back)
		}()
	}
}

func TestAnInterruptLeavesNothingBehind(t *testing.T) {
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	// Orphans of the bench's children become ours, so that they can be seen.
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		t.Fatal(err)
	}
	for _, moment := range []string{"starting Postgres", "round 1/"} {
		t.Run(moment, func(t *testing.T) {
			out := filepath.Join(t.TempDir(), "results")
			// Postgres has to be able to walk here, and a socket's path has to fit.
			tmp, err := os.MkdirTemp("/tmp", "bench-test-")
			if err != nil {
				t.Fatal(err)
			}
			defer os.RemoveAll(tmp)
			if err := os.Chmod(tmp, 0o755); err != nil {
				t.Fatal(err)
			}
			t.Setenv("TMPDIR", tmp)
			before := childPIDs(t)
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			b := &bench{told: func(line string) {
				if strings.Contains(line, moment) {
					cancel()
				}
			}}
			_, err = b.run(ctx, "relay", []string{"-quick", "-seconds", "1", "-clients", "2", "-rate", "0", "-out", out, "-pgedge", self})
			b.close()
			if !errors.Is(err, context.Canceled) {
				t.Errorf("the run says %v, want that it was interrupted", err)
			}
			for _, pid := range childPIDs(t) {
				if !slices.Contains(before, pid) {
					comm, _ := os.ReadFile("/proc/" + pid + "/comm")
					t.Errorf("process %s (%s) is still there", pid, strings.TrimSpace(string(comm)))
				}
			}
			left, err := filepath.Glob(filepath.Join(tmp, "*"))
			if err != nil || len(left) > 0 {
				t.Errorf("files are still there: %v %v", left, err)
			}
			if _, err := os.Stat(out); !errors.Is(err, os.ErrNotExist) {
				t.Errorf("an interrupted run has results: %v", err)
			}
		})
	}
}

// childPIDs are the pids of this process's children.
func childPIDs(t *testing.T) []string {
	t.Helper()
	files, err := filepath.Glob("/proc/self/task/*/children")
	if err != nil {
		t.Fatal(err)
	}
	var pids []string
	for _, file := range files {
		data, err := os.ReadFile(file)
		if err == nil {
			pids = append(pids, strings.Fields(string(data))...)
		} else if !errors.Is(err, os.ErrNotExist) {
			t.Fatal(err)
		}
	}
	return pids
}
