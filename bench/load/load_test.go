package load

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"pgedge/internal/pgserver"
)

var server *pgserver.Server

func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == ChildArg {
		if err := Child(os.Stdin, os.Stdout); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	var err error
	server, err = pgserver.New(context.Background(), pgserver.Options{MaxConnections: 120, Cache: true})
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	code := m.Run()
	if err := server.Stop(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		code = 1
	}
	os.Exit(code)
}

func testContext(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	t.Cleanup(cancel)
	return ctx
}

func open(t *testing.T, spec Spec) *Sessions {
	t.Helper()
	spec.Addrs, spec.Database = []string{server.Addr()}, pgserver.Database
	s, err := Open(testContext(t), spec)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

func alice(n int) User   { return User{Name: "alice", Password: pgserver.Password("alice"), Sessions: n} }
func trusted(n int) User { return User{Name: "trustuser", Sessions: n} }

// number asks the server for one.
func number(t *testing.T, sql string) int {
	t.Helper()
	ctx := testContext(t)
	conn, err := server.Connect(ctx, pgserver.Database)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(ctx)
	var n int
	if err := conn.QueryRow(ctx, sql).Scan(&n); err != nil {
		t.Fatal(err)
	}
	return n
}

func TestVictimsKnowWhenAndHowTheyEnded(t *testing.T) {
	for _, processes := range []int{0, 2} {
		t.Run(fmt.Sprintf("%d processes", processes), func(t *testing.T) {
			var seen []int
			s := open(t, Spec{Users: []User{trusted(5), alice(7)}, Processes: processes, Logins: 4, Progress: func(open, _ int) { seen = append(seen, open) }})
			if !slices.IsSorted(seen) || len(seen) == 0 || seen[len(seen)-1] != 12 {
				t.Errorf("progress was %v, want up to 12", seen)
			}
			before := monotonic()
			if n := number(t, "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE usename = 'alice'"); n != 7 {
				t.Fatalf("terminated %d sessions of alice, want 7", n)
			}
			if err := s.WaitEnded(testContext(t), 7); err != nil {
				t.Fatal(err)
			}
			ends, err := s.Ends()
			if err != nil {
				t.Fatal(err)
			}
			if len(ends) != 7 || s.Ended() != 7 {
				t.Fatalf("%d sessions have ended, want 7", len(ends))
			}
			for _, e := range ends {
				if e.User != "alice" || e.Session < 5 || e.How != "eof" || e.Code != "57P01" || !strings.Contains(e.Text, "administrator") {
					t.Errorf("an end is %+v", e)
				}
				if e.Mono < before || e.ErrorMono < before || e.Mono < e.ErrorMono || time.Since(e.At).Abs() > time.Minute {
					t.Errorf("the times of %+v are out of order", e)
				}
			}
		})
	}
}

func TestBystandersAreAskedAtTheRate(t *testing.T) {
	for _, processes := range []int{0, 1} {
		t.Run(fmt.Sprintf("%d processes", processes), func(t *testing.T) {
			s := open(t, Spec{Users: []User{trusted(8)}, Processes: processes})
			if err := s.Ask(500); err != nil {
				t.Fatal(err)
			}
			answered, ctx := int64(0), testContext(t)
			for answered < 100 {
				select {
				case <-time.After(20 * time.Millisecond):
				case <-ctx.Done():
					t.Fatalf("%d questions were answered", answered)
				}
				w, err := s.Take()
				if err != nil {
					t.Fatal(err)
				}
				if w.Errors > 0 {
					t.Fatalf("%d errors: %s", w.Errors, w.First)
				}
				answered += w.Latency.TotalCount()
			}
			// A session that is gone is an error for whoever asks it.
			number(t, "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE usename = 'trustuser'")
			if err := s.WaitEnded(ctx, 8); err != nil {
				t.Fatal(err)
			}
			for {
				w, err := s.Take()
				if err != nil {
					t.Fatal(err)
				}
				if w.Errors > 0 && w.First != "" {
					break
				}
				select {
				case <-time.After(5 * time.Millisecond):
				case <-ctx.Done():
					t.Fatal("nobody noticed that the sessions are gone")
				}
			}
		})
	}
}

// Coordinated omission: with one session and a statement that blocks it, all questions that were due meanwhile count from
// when they were due.
func TestQuestionsCountFromWhenTheyWereDue(t *testing.T) {
	l := &loop{slots: make([]session, 1)}
	l.slots[0] = session{fd: -1, state: stateIdle}
	l.now = 1_000_000_000
	l.ask(100) // one each 10 ms
	l.slots[0].state = stateAsking
	l.slots[0].asked, l.asks.next, l.slots[0].began = 1, 1, l.now
	l.now += 45_000_000
	l.askDue()
	if owed := l.slots[0].owed; owed != 4 {
		t.Fatalf("%d questions are owed after 45 ms, want 4", owed)
	}
	if w := l.take(); w.Waiting != 5 || w.Oldest != 45*time.Millisecond {
		t.Errorf("%d wait, the oldest for %v; want 5 and 45ms", w.Waiting, w.Oldest)
	}
	if due := l.asks.dueAt(int(l.slots[0].asked)); due != 1_010_000_000 {
		t.Errorf("the next question is due at %d", due)
	}
}

func TestAStormComesAndGoes(t *testing.T) {
	for _, c := range []StormSpec{
		{Users: []User{trusted(0)}, Logins: 100, InFlight: 8},
		{Users: []User{alice(0)}, Logins: 50, InFlight: 8, Ask: true},
		{Users: []User{trusted(0), alice(0)}, Logins: 40, Rate: 1000, InFlight: 40, Ask: true},
		{Users: []User{trusted(0)}, Duration: 100 * time.Millisecond, InFlight: 4},
	} {
		c.Addrs, c.Database = []string{server.Addr()}, pgserver.Database
		r, err := Storm(testContext(t), c)
		if err != nil {
			t.Fatal(err)
		}
		if r.Failed > 0 || r.Done == 0 || c.Logins > 0 && r.Done != c.Logins || r.Login.TotalCount() != int64(r.Done) || r.Took <= 0 {
			t.Errorf("%d of %d were done in %v, %d failed: %v", r.Done, c.Logins, r.Took, r.Failed, r.First)
		}
		if c.Ask && r.Answer.TotalCount() != int64(r.Done) {
			t.Errorf("%d answers for %d clients", r.Answer.TotalCount(), r.Done)
		}
	}
}

func TestAStormCountsLoginsThatFail(t *testing.T) {
	r, err := Storm(testContext(t), StormSpec{Addrs: []string{server.Addr()}, Database: pgserver.Database, Logins: 10, InFlight: 3,
		Users: []User{{Name: "alice", Password: "wrong"}, trusted(0)}})
	if err != nil || r.Done != 5 || r.Failed != 5 {
		t.Fatalf("%d done and %d failed (%v), want 5 and 5: %v", r.Done, r.Failed, r.First, err)
	}
}

func TestSleepersDoNotRead(t *testing.T) {
	s := open(t, Spec{Users: []User{trusted(2)}})
	// Far more than the buffers of both sockets hold.
	if err := s.Sleep("SELECT repeat('x', 1000000) FROM generate_series(1, 40)"); err != nil {
		t.Fatal(err)
	}
	waiting := "SELECT count(*) FROM pg_stat_activity WHERE usename = 'trustuser' AND wait_event = 'ClientWrite'"
	for ctx := testContext(t); number(t, waiting) != 2; {
		if ctx.Err() != nil {
			t.Fatal("the server never waited for its clients")
		}
	}
	if err := s.WakeUp(); err != nil {
		t.Fatal(err)
	}
	if err := s.WaitIdle(testContext(t)); err != nil {
		t.Fatal(err)
	}
	if n := number(t, "SELECT count(*) FROM pg_stat_activity WHERE usename = 'trustuser' AND state = 'idle'"); n != 2 {
		t.Errorf("%d sessions are idle, want 2", n)
	}
}

func TestAStatementThatFailsIsAnError(t *testing.T) {
	for _, processes := range []int{0, 1} {
		s := open(t, Spec{Users: []User{trusted(2)}, Processes: processes})
		if err := errors.Join(s.Run("SELECT 1"), s.WaitIdle(testContext(t))); err != nil {
			t.Fatal(err)
		}
		if err := s.Run("SELECT 1/0"); err != nil {
			t.Fatal(err)
		}
		if err := s.WaitIdle(testContext(t)); err == nil || !strings.Contains(err.Error(), "22012") {
			t.Errorf("the error is %v, want one with 22012", err)
		}
	}
}

func TestOpenSaysWhyALoginFailed(t *testing.T) {
	spec := Spec{Addrs: []string{server.Addr()}, Database: pgserver.Database}
	for _, processes := range []int{0, 1} {
		spec.Processes = processes
		spec.Users = []User{trusted(3), {Name: "alice", Password: "wrong", Sessions: 2}}
		s, err := Open(testContext(t), spec)
		if err == nil || !strings.Contains(err.Error(), "28P01") {
			t.Errorf("the error is %v, want one with 28P01", err)
		}
		if s != nil {
			t.Error("sessions in spite of the error")
		}
	}
	ctx, cancel := context.WithCancelCause(t.Context())
	stop := errors.New("stop")
	cancel(stop)
	spec.Users = []User{trusted(20)}
	spec.Processes = 0
	if _, err := Open(ctx, spec); !errors.Is(err, stop) {
		t.Errorf("the error is %v, want %v", err, stop)
	}
}

func TestMessagesAreFoundAtAnySplit(t *testing.T) {
	stream := slices.Concat(message('S', []byte("a\x00b\x00")), message('E', []byte("SFATAL\x00C57P01\x00Mbye\x00\x00")), message('1'),
		message('D', answer), message('Z', []byte("I")))
	for split := range len(stream) + 1 {
		var in inbox
		var kinds []byte
		var e *serverError
		for _, b := range [][]byte{stream[:split], stream[split:]} {
			for {
				kind, body, rest, ok, err := in.next(b)
				if err != nil {
					t.Fatal(err)
				}
				if !ok {
					break
				}
				kinds = append(kinds, kind)
				if kind == 'E' {
					e = parseError(body)
				}
				b = rest
			}
		}
		if string(kinds) != "SE1DZ" || e == nil || *e != (serverError{"FATAL", "57P01", "bye"}) {
			t.Fatalf("split at %d: %q, %+v", split, kinds, e)
		}
	}
}
