package main

import (
	"context"
	"flag"
	"fmt"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"

	"pgedge/bench/load"
	"pgedge/internal/pgserver"
)

const (
	// loginClients come and go, one login after the other, as those of pgbench -C with -c 8 do.
	loginClients = 8
	// loginServers is how many connections to Postgres the peers may have, as they would be set up in front of one that
	// is to have room for others. pgedge bounds logins that talk to Postgres (limits.max_logins, 500).
	loginServers = 200
	// loginDirect is how many of a storm's clients are there at a time where nobody lines them up before Postgres.
	loginDirect = 400
	// loginRoom is Postgres's max_connections: server processes of clients that have left take a while to be gone.
	loginRoom = 1500
	// loginAskers are sessions that exist before a storm and ask loginAskRate questions per second, all of them together.
	loginAskers  = 50
	loginAskRate = 1000
	// loginSettle is for how long after a storm questions still count as asked during it.
	loginSettle = 100 * time.Millisecond
)

func loginsFlags(fs *flag.FlagSet) func(context.Context, *run) error {
	storm := fs.Int("storm", 0, "clients that come all at once (default 5000, with -quick 500)")
	return func(ctx context.Context, r *run) error {
		if *storm <= 0 {
			*storm = r.pick(500, 5000)
		}
		return runLogins(ctx, r, *storm)
	}
}

// loginCase is one server with one way to log in.
type loginCase struct {
	name string
	user load.User
}

// runLogins measures what a login costs, and what those notice who are there already.
func runLogins(ctx context.Context, r *run, storm int) error {
	pg, err := r.postgres(ctx, pgserver.Options{MaxConnections: loginRoom})
	if err != nil {
		return err
	}
	verifier, err := verifierOf(ctx, pg, "alice")
	if err != nil {
		return err
	}
	targets, err := front{addr: pg.Addr(), clients: storm + loginAskers + loginClients, servers: loginServers,
		secrets: map[string]string{"alice": verifier, "trustuser": ""},
		hba:     "host all trustuser 0.0.0.0/0 trust\nhost all all 0.0.0.0/0 scram-sha-256\n"}.startAll(ctx, r)
	if err != nil {
		return err
	}
	trust := load.User{Name: "trustuser"}
	scram := load.User{Name: "alice", Password: pgserver.Password("alice")}
	for _, c := range []loginCase{{"Postgres, trust", trust}, {"Postgres, SCRAM", scram}} {
		if err := measureLogins(ctx, r, c, targets, storm); err != nil {
			return err
		}
	}
	played, err := r.playBackend(ctx, "backend")
	if err != nil {
		return err
	}
	targets, err = front{name: "played-", addr: played.addr, clients: storm + loginAskers + loginClients, servers: loginServers}.startAll(ctx, r)
	if err != nil {
		return err
	}
	if err := measureLogins(ctx, r, loginCase{"played server, trust", trust}, targets, storm); err != nil {
		return err
	}
	if err := played.check(); err != nil {
		return err
	}
	ofScram := "Postgres, SCRAM"
	r.goal("P4", "logins per second, SCRAM, pgedge/pgbouncer", 1, ">=", r.ratio(loginsTable, ofScram, "pgbouncer", loginsRate), "")
	r.goal("P4", fmt.Sprintf("the same in a storm of %d", storm), 1, ">=", r.ratio(stormTable, ofScram, "pgbouncer", loginsRate), "")
	r.goal("P4", "p99 of established sessions moves by, in that storm", 5, "<=", r.median(stormTable, ofScram, subject, stormMoved), "ms")
	r.goal("P4", "the same in front of the played server", 5, "<=", r.median(stormTable, "played server, trust", subject, stormMoved), "ms")
	r.bars(loginsTable, loginsCPU)
	r.bars(stormTable, loginsRate)
	r.note("each client logs in, asks SELECT 1 and leaves; it has no TLS, since this version of pgedge ends none at its listeners")
	r.note("pgedge and HAProxy open a connection to the server for each login, and Postgres starts a process for it on the same cores; PgBouncer checks the credential itself and reuses %d "+
		"connections, which DISCARD ALL cleans in between. P4 needs pools; in front of the played server a new connection costs little", loginServers)
	r.note("a storm's clients all come at once and wait for each other; directly before Postgres there are at most %d at a time, because it would refuse the others. HAProxy lines up what goes beyond %d", loginDirect, loginServers)
	r.note("a storm before Postgres can last longer than pgedge's default limits.login_timeout of 15 s: a login may take %v here, in PgBouncer too", loginTime)
	r.note("the load generator remembers salted passwords, which a real client computes anew for each SCRAM login")
	return nil
}

const (
	loginsTable = "logins, 8 clients"
	stormTable  = "storm"
	loginsRate  = "logins"
	loginsCPU   = "cpu"
	stormMoved  = "p99 of established sessions, during less before"
)

// verifierOf is what Postgres has stored of a role's password. PgBouncer can check with it, and log in with what it
// learns from the client.
func verifierOf(ctx context.Context, pg *pgserver.Server, role string) (string, error) {
	conn, err := pg.Connect(ctx, "postgres")
	if err != nil {
		return "", err
	}
	defer conn.Close(ctx)
	var verifier string
	err = conn.QueryRow(ctx, "SELECT rolpassword FROM pg_authid WHERE rolname = $1", role).Scan(&verifier)
	return verifier, err
}

func measureLogins(ctx context.Context, r *run, c loginCase, targets []*target, storm int) error {
	for round := range r.rounds {
		for i := range targets {
			t := targets[(i+round)%len(targets)]
			s, err := logins(ctx, t, load.StormSpec{Users: []load.User{c.user}, Duration: time.Duration(r.seconds) * time.Second, InFlight: loginClients})
			if err != nil {
				return fmt.Errorf("%s, %s: %w", c.name, t.name, err)
			}
			s.sample(r, loginsTable, c.name, t)
			r.say("round %d/%d  %s  %-10s %6.0f logins/s  %4.0f us cpu", round+1, r.rounds, c.name, t.name, s.rate, s.cpuMicros)
		}
	}
	seen := make(map[*target]*stormSeen)
	for round := range r.rounds {
		for i := range targets {
			t := targets[(i+round)%len(targets)]
			if seen[t] == nil {
				seen[t] = &stormSeen{}
			}
			if err := measureStorm(ctx, r, c, t, storm, seen[t]); err != nil {
				return fmt.Errorf("%s, storm, %s: %w", c.name, t.name, err)
			}
		}
	}
	for _, t := range targets {
		r.latency(c.name+", storm: to the answer", t.name, seen[t].answer, load.UnitsPerMS)
		r.latency(c.name+", others before", t.name, seen[t].before, load.UnitsPerMS)
		r.latency(c.name+", others during", t.name, seen[t].during, load.UnitsPerMS)
	}
	return nil
}

// loginSample is what one run of logins through one target came to.
type loginSample struct {
	load.StormResult
	rate, cpuMicros float64
}

func (s loginSample) sample(r *run, table, kase string, t *target) {
	r.sample(table, kase, t.name, loginsRate, "1/s", s.rate)
	if t.proc != nil {
		r.sample(table, kase, t.name, loginsCPU, "us/login", s.cpuMicros)
	}
}

// logins lets clients come and go. All must have been served.
func logins(ctx context.Context, t *target, spec load.StormSpec) (loginSample, error) {
	spec.Addrs, spec.Database, spec.Ask = []string{t.addr()}, pgserver.Database, true
	before, err := t.proc.usage()
	if err != nil {
		return loginSample{}, err
	}
	s := loginSample{}
	if s.StormResult, err = load.Storm(ctx, spec); err != nil {
		return s, err
	}
	after, err := t.proc.usage()
	if err != nil {
		return s, err
	}
	if s.Failed > 0 || s.Done == 0 || s.Answer.TotalCount() != int64(s.Done) {
		return s, fmt.Errorf("%d clients were served and %d failed: %w", s.Done, s.Failed, s.First)
	}
	s.rate = float64(s.Done) / s.Took.Seconds()
	s.cpuMicros = float64((after.cpu - before.cpu).Nanoseconds()) / 1000 / float64(s.Done)
	return s, nil
}

// stormSeen are the latencies of all rounds of one target.
type stormSeen struct {
	answer, before, during *hdrhistogram.Histogram
}

func merged(into, h *hdrhistogram.Histogram) *hdrhistogram.Histogram {
	if into == nil {
		return h
	}
	into.Merge(h)
	return into
}

// measureStorm sends all clients at once, and watches what those notice who are there already.
func measureStorm(ctx context.Context, r *run, c loginCase, t *target, clients int, seen *stormSeen) error {
	others, err := load.Open(ctx, load.Spec{Addrs: []string{t.addr()}, Database: pgserver.Database,
		Users: []load.User{{Name: "trustuser", Sessions: loginAskers}}, Processes: 1})
	if err != nil {
		return err
	}
	defer others.Close()
	if err := others.Ask(loginAskRate); err != nil {
		return err
	}
	if err := r.sleep(ctx, time.Second); err != nil { // the first answers are slower
		return err
	}
	if _, err := others.Take(); err != nil {
		return err
	}
	if err := r.sleep(ctx, time.Duration(r.seconds)*time.Second); err != nil {
		return err
	}
	before, err := others.Take()
	if err != nil {
		return err
	}
	inFlight := clients
	if t.proc == nil {
		inFlight = min(clients, loginDirect)
	}
	s, err := logins(ctx, t, load.StormSpec{Users: []load.User{c.user}, Logins: clients, InFlight: inFlight, Timeout: loginTime})
	if err != nil {
		return err
	}
	if err := r.sleep(ctx, loginSettle); err != nil {
		return err
	}
	during, err := others.Take()
	if err != nil {
		return err
	}
	for _, w := range []load.Window{before, during} {
		if w.Errors > 0 || w.Latency.TotalCount() == 0 {
			return fmt.Errorf("others had %d answers and %d errors: %s", w.Latency.TotalCount(), w.Errors, w.First)
		}
	}
	p99 := func(h *hdrhistogram.Histogram) float64 { return float64(h.ValueAtQuantile(99)) / load.UnitsPerMS }
	s.sample(r, stormTable, c.name, t)
	r.sample(stormTable, c.name, t.name, "login p50", "ms", float64(s.Login.ValueAtQuantile(50))/load.UnitsPerMS)
	r.sample(stormTable, c.name, t.name, "login p99", "ms", p99(s.Login))
	r.sample(stormTable, c.name, t.name, "p99 of established sessions, before", "ms", p99(before.Latency))
	r.sample(stormTable, c.name, t.name, "p99 of established sessions, during", "ms", p99(during.Latency))
	r.sample(stormTable, c.name, t.name, stormMoved, "ms", p99(during.Latency)-p99(before.Latency))
	seen.answer, seen.before, seen.during = merged(seen.answer, s.Answer), merged(seen.before, before.Latency), merged(seen.during, during.Latency)
	r.say("storm of %d  %s  %-10s %6.0f logins/s  %4.0f us cpu  others' p99 %.2f -> %.2f ms", clients, c.name, t.name, s.rate, s.cpuMicros, p99(before.Latency), p99(during.Latency))
	return nil
}
