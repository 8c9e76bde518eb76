package fleet

import (
	"context"
	"flag"
	"fmt"
	"os"
	"testing"
	"time"

	"pgedge/internal/pgserver"
	"pgedge/internal/pgtest"
)

var times = flag.Int("times", 2, "how often tests of elections repeat")

// binaries are built once for all tests.
var binaries Binaries

func TestMain(m *testing.M) {
	flag.Parse()
	os.Exit(run(m))
}

func run(m *testing.M) int {
	dir, err := os.MkdirTemp("", "pgedge-bin-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Minute)
	defer cancel()
	if binaries, err = Build(ctx, dir); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return m.Run()
}

// start runs a fleet for one test, on a Postgres of its own. Whoever fails sees the logs of every process.
func start(t *testing.T, o Options) *Fleet {
	t.Helper()
	pg := pgtest.Start(t, pgtest.Options{MaxConnections: 500, Settings: map[string]string{"listen_addresses": "*"}})
	o.Postgres, o.Binaries = pg.Server, binaries
	if o.NATS == 0 {
		o.NATS = 3
	}
	f, err := Start(within(t, 2*time.Minute), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			t.Log(f.Logs())
		}
		if err := f.Stop(); err != nil {
			t.Error(err)
		}
	})
	return f
}

// needNamespaces fails on a build server that cannot make network namespaces, and skips loudly elsewhere.
func needNamespaces(t *testing.T) {
	t.Helper()
	name := fmt.Sprintf("pgeprobe%d", os.Getpid())
	err := ip("netns", "add", name)
	if err == nil {
		err = ip("netns", "del", name)
	}
	missing(t, err, "a node cut off from NATS: it takes root and iproute2")
}

// needBalancer does the same for HAProxy.
func needBalancer(t *testing.T) {
	t.Helper()
	_, err := program("haproxy")
	missing(t, err, "a fleet behind a balancer")
}

func missing(t *testing.T, err error, what string) {
	t.Helper()
	switch {
	case err == nil:
	case os.Getenv("CI") != "":
		t.Fatal(err)
	default:
		t.Skipf("NOT TESTED: %s: %v", what, err)
	}
}

func within(t *testing.T, d time.Duration) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), d)
	t.Cleanup(cancel)
	return ctx
}

func people(t *testing.T, f *Fleet, n int) []string {
	t.Helper()
	names, err := People(within(t, time.Minute), f.Postgres, n)
	if err != nil {
		t.Fatal(err)
	}
	return names
}

func rows(t *testing.T, pg *pgserver.Server, principal string) int64 {
	t.Helper()
	n, err := Rows(within(t, time.Minute), pg, principal)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// verdict runs a command that waits for receipts and returns what it has proven.
func verdict(t *testing.T, f *Fleet, args ...string) (Verdict, Result) {
	t.Helper()
	r := f.CLI(within(t, 2*time.Minute), append(args, "-o", "json")...)
	v, err := r.Verdict()
	if err != nil {
		t.Fatal(err)
	}
	return v, r
}

func await(t *testing.T, what string, c <-chan struct{}, d time.Duration) {
	t.Helper()
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-c:
	case <-timer.C:
		t.Fatalf("waited %s in vain for %s", d, what)
	}
}
