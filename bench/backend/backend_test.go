package backend_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgconn"

	"pgedge/bench/backend"
	"pgedge/internal/fleet"
)

// played is a server under test, and what it did not know.
type played struct {
	*backend.Server
	addr string

	mu      sync.Mutex
	unknown []string
}

func play(t *testing.T) *played {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p := &played{addr: l.Addr().String()}
	p.Server = backend.New(func(sql string) {
		p.mu.Lock()
		defer p.mu.Unlock()
		p.unknown = append(p.unknown, sql)
	})
	ctx, stop := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- p.Serve(ctx, l) }()
	t.Cleanup(func() {
		stop()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	return p
}

func (p *played) refused() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return append([]string(nil), p.unknown...)
}

func logIn(t *testing.T, addr, user string) *pgconn.PgConn {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	c, err := fleet.Connect(ctx, addr, user)
	if err != nil {
		t.Fatalf("cannot log %s in: %v", user, err)
	}
	t.Cleanup(func() { c.Close(context.Background()) })
	return c
}

// ask runs a simple query and returns the one value it gives.
func ask(c *pgconn.PgConn, sql string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	r, err := c.Exec(ctx, sql).ReadAll()
	if err != nil || len(r) == 0 || len(r[0].Rows) == 0 {
		return "", err
	}
	return string(r[0].Rows[0][0]), nil
}

func TestItAnswersWhatItKnowsAndReportsWhatItDoesNot(t *testing.T) {
	p := play(t)
	c := logIn(t, p.addr, "ann")
	if got := c.ParameterStatus("server_version"); got != backend.Version {
		t.Errorf("server_version is %q", got)
	}
	for _, step := range []struct {
		sql, want string
		status    byte
	}{{"SELECT 1", "1", 'I'}, {"BEGIN", "", 'T'}, {"select 42;", "42", 'T'}, {"COMMIT", "", 'I'}, {"SELECT pg_sleep(0.001)", "", 'I'}, {"DISCARD ALL", "", 'I'}} {
		if got, err := ask(c, step.sql); err != nil || got != step.want || c.TxStatus() != step.status {
			t.Errorf("%s: %q, %v, status %c", step.sql, got, err, c.TxStatus())
		}
	}
	if r := c.ExecParams(context.Background(), "SELECT 7", nil, nil, nil, []int16{1}).Read(); r.Err != nil || string(r.Rows[0][0]) != "\x00\x00\x00\x07" {
		t.Errorf("extended protocol, binary: %v, %v", r.Rows, r.Err)
	}
	if _, err := c.Prepare(context.Background(), "one", "SELECT 1", nil); err != nil {
		t.Error(err)
	}
	if r := c.ExecPrepared(context.Background(), "one", nil, nil, nil).Read(); r.Err != nil || string(r.Rows[0][0]) != "1" {
		t.Errorf("prepared statement: %v, %v", r.Rows, r.Err)
	}
	var refused *pgconn.PgError
	if _, err := ask(c, "SELECT count(*) FROM payroll"); !errors.As(err, &refused) || refused.Code != "0A000" {
		t.Errorf("an unknown statement: %v", err)
	}
	if r := c.ExecParams(context.Background(), "SELECT secret FROM payroll", nil, nil, nil, nil).Read(); !errors.As(r.Err, &refused) {
		t.Errorf("an unknown statement of the extended protocol: %v", r.Err)
	}
	if got, err := ask(c, "SELECT 1"); err != nil || got != "1" {
		t.Errorf("after an error: %q, %v", got, err)
	}
	if got := p.refused(); len(got) != 2 {
		t.Errorf("reported as unknown: %q", got)
	}
}

func TestACancelRequestStopsASleepAndNothingElse(t *testing.T) {
	p := play(t)
	c := logIn(t, p.addr, "ann")
	slept := make(chan error, 1)
	go func() {
		_, err := ask(c, "SELECT pg_sleep(60)")
		slept <- err
	}()
	deadline := time.After(20 * time.Second)
	for {
		if err := c.CancelRequest(context.Background()); err != nil {
			t.Fatal(err)
		}
		select {
		case err := <-slept:
			var canceled *pgconn.PgError
			if !errors.As(err, &canceled) || canceled.Code != "57014" {
				t.Fatalf("the sleep ended with %v", err)
			}
			if got, err := ask(c, "SELECT 1"); err != nil || got != "1" {
				t.Fatalf("after the cancel: %q, %v", got, err)
			}
			return
		case <-deadline:
			t.Fatal("the sleep was not cancelled")
		case <-time.After(time.Millisecond): // it may not have begun yet
		}
	}
}

// This is what the benchmarks rest on: pgedge finds its backends in this server's list, ends them, and sees them gone.
func TestPgedgeRevokesInFrontOfItAndVerifies(t *testing.T) {
	if testing.Short() {
		t.Skip("runs a node and a NATS server")
	}
	const victims, others = 200, 20
	p := play(t)
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	f, err := fleet.Start(ctx, fleet.Options{Nodes: 1, NATS: 1, Upstreams: []string{p.addr}})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := f.Stop(); err != nil {
			t.Error(err)
		}
	}()
	var ended, live []*pgconn.PgConn
	for i := range victims {
		c := logIn(t, f.Nodes[0].Addr, "victim")
		if i%2 == 0 { // half of them have a statement running
			if _, err := c.Conn().Write([]byte("Q\x00\x00\x00\x18SELECT pg_sleep(60)\x00")); err != nil {
				t.Fatal(err)
			}
		}
		ended = append(ended, c)
	}
	for i := range others {
		live = append(live, logIn(t, f.Nodes[0].Addr, fmt.Sprintf("person%d", i)))
	}
	r := f.CLI(ctx, "revoke", "victim", "-o", "json")
	v, err := r.Verdict()
	if err != nil || v.Verdict != "complete" || v.Matched != victims || v.Unverified != 0 {
		t.Errorf("verdict %+v, %v\n%s", v, err, r)
	}
	for i, c := range ended {
		if _, err := ask(c, "SELECT 1"); err == nil {
			t.Fatalf("session %d of the victim lives", i)
		}
	}
	for i, c := range live {
		if got, err := ask(c, "SELECT 1"); err != nil || got != "1" {
			t.Fatalf("bystander %d: %q, %v", i, got, err)
		}
	}
	if _, err := fleet.Connect(ctx, f.Nodes[0].Addr, "victim"); fleet.SQLState(err) != "28000" {
		t.Errorf("the victim's next login: %v", err)
	}
	if got := p.refused(); len(got) > 0 {
		t.Errorf("not known: %q", got)
	}
	if n := p.Sessions(); n < others || n > others+2 { // with those of the control role
		t.Errorf("%d sessions are left", n)
	}
}
