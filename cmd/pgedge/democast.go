package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"pgedge/internal/pgserver"
)

// role is one session of alice: what it is for the audience, and how it ended.
type role struct {
	what string
	node *demoNode
	conn *pgx.Conn
	// act blocks until the session ends and returns why.
	act func(ctx context.Context, conn *pgx.Conn) error

	ended chan struct{}
	at    time.Time // of the end; valid once ended is closed
	err   error
}

// The row lock and the update are in different tables, so that neither waits for the other.
const (
	demoLock   = `SELECT balance FROM accounts WHERE id = 1 FOR UPDATE`
	demoUpdate = `UPDATE salaries SET amount = amount * 10 WHERE name = 'alice'`
	// In the select list the series is streamed; in FROM it would first be stored as a whole.
	demoCopy = `COPY (SELECT generate_series(1, 1000000000), repeat('x', 1000)) TO STDOUT`
)

// updating is what the session with the UPDATE is for the audience, and its application name in the receipt.
const updating = "running an UPDATE of five seconds"

// cast are alice's four sessions, over both nodes. The UPDATE goes last: its five seconds are the only clock in the
// story. copied counts the bytes that the COPY has brought.
func (d *demo) cast(copied *atomic.Int64) []*role {
	a, b := d.nodes[0], d.nodes[1]
	listen := func(ctx context.Context, conn *pgx.Conn) error {
		_, err := conn.WaitForNotification(ctx)
		return err
	}
	return []*role{
		{what: "idle", node: a, act: listen},
		{what: "idle in a transaction, holding a row lock", node: b, act: func(ctx context.Context, conn *pgx.Conn) error {
			if _, err := conn.Exec(ctx, "BEGIN"); err != nil {
				return err
			}
			if _, err := conn.Exec(ctx, demoLock); err != nil {
				return err
			}
			return listen(ctx, conn)
		}},
		{what: "streaming a COPY", node: b, act: func(ctx context.Context, conn *pgx.Conn) error {
			_, err := conn.PgConn().CopyTo(ctx, countingWriter{copied}, demoCopy)
			return err
		}},
		{what: updating, node: a, act: func(ctx context.Context, conn *pgx.Conn) error {
			_, err := conn.Exec(ctx, demoUpdate)
			if err == nil {
				return errors.New("the UPDATE has committed")
			}
			return err
		}},
	}
}

type countingWriter struct{ n *atomic.Int64 }

func (w countingWriter) Write(b []byte) (int, error) {
	w.n.Add(int64(len(b)))
	return len(b), nil
}

// connect logs in through a node.
func (d *demo) connect(ctx context.Context, n *demoNode, user, application string) (*pgx.Conn, error) {
	cfg, err := pgx.ParseConfig(pgserver.URL(n.addr, user, pgserver.Password(user), pgserver.Database))
	if err != nil {
		return nil, fmt.Errorf("cannot connect: %w", err)
	}
	cfg.RuntimeParams["application_name"] = application
	return pgx.ConnectConfig(ctx, cfg)
}

// enter logs the role in and lets it act.
func (d *demo) enter(ctx context.Context, r *role) error {
	conn, err := d.connect(ctx, r.node, "alice", r.what)
	if err != nil {
		return fmt.Errorf("alice cannot log in on %s: %w", r.node.name, err)
	}
	r.conn, r.ended = conn, make(chan struct{})
	go func() {
		defer close(r.ended)
		r.err = r.act(ctx, conn)
		r.at = time.Now()
	}()
	return nil
}

// lastWords is what the client was told: the server's error if there was one.
func (r *role) lastWords() string {
	var pgErr *pgconn.PgError
	if errors.As(r.err, &pgErr) {
		return fmt.Sprintf("%s %s: %s", pgErr.Severity, pgErr.Code, pgErr.Message)
	}
	if errors.Is(r.err, io.ErrUnexpectedEOF) {
		return "connection closed in the middle of a message, where no error text fits"
	}
	return fmt.Sprint(r.err)
}

// inPlace says which of alice's sessions Postgres does not yet show in their state; "" when all are there.
func (d *demo) inPlace(ctx context.Context, conn *pgx.Conn, copied *atomic.Int64) (missing string, err error) {
	var idle, inTransaction, sleeping bool
	err = conn.QueryRow(ctx, `SELECT
		coalesce(bool_or(state = 'idle'), false),
		coalesce(bool_or(state = 'idle in transaction' AND query = $1), false),
		coalesce(bool_or(state = 'active' AND wait_event = 'PgSleep'), false)
		FROM pg_stat_activity WHERE usename = 'alice'`, demoLock).Scan(&idle, &inTransaction, &sleeping)
	switch {
	case err != nil:
		return "", fmt.Errorf("cannot look at alice's sessions: %w", err)
	case !idle:
		return "the idle session", nil
	case !inTransaction:
		return "the transaction with the lock", nil
	case copied.Load() < 1<<20:
		return "the COPY", nil
	case !sleeping:
		return "the UPDATE", nil
	}
	return "", nil
}

// bystander is bob, who queries all the time and must not notice anything.
type bystander struct {
	stop context.CancelFunc
	done chan struct{}

	mu      sync.Mutex
	queries int
	slowest time.Duration
	err     error
}

func (d *demo) startBystander(ctx context.Context, n *demoNode) (*bystander, error) {
	conn, err := d.connect(ctx, n, "bob", "bystander")
	if err != nil {
		return nil, fmt.Errorf("bob cannot log in on %s: %w", n.name, err)
	}
	ctx, cancel := context.WithCancel(ctx)
	b := &bystander{stop: cancel, done: make(chan struct{})}
	go func() {
		defer close(b.done)
		defer conn.Close(context.WithoutCancel(ctx))
		tick := time.NewTicker(2 * time.Millisecond)
		defer tick.Stop()
		for {
			select {
			case <-tick.C:
			case <-ctx.Done():
				return
			}
			began := time.Now()
			var one int
			// Without the context: bob's last query is to end by itself, not to be cancelled.
			err := conn.QueryRow(context.WithoutCancel(ctx), "SELECT 1").Scan(&one)
			if !b.count(time.Since(began), err) {
				return
			}
		}
	}()
	return b, nil
}

func (b *bystander) count(took time.Duration, err error) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if err != nil {
		b.err = err
		return false
	}
	b.queries++
	b.slowest = max(b.slowest, took)
	return true
}

// reset starts the count of what bob sees from here on.
func (b *bystander) reset() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.queries, b.slowest = 0, 0
}

// finish stops bob and returns what he saw since reset.
func (b *bystander) finish() (queries int, slowest time.Duration, err error) {
	b.stop()
	<-b.done
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.queries, b.slowest, b.err
}
