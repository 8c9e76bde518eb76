package fleet

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5/pgconn"

	"pgedge/internal/pgserver"
)

// WritesTable is where writers leave a row for every statement, so that the database itself tells what of whom was
// committed.
const WritesTable = "writes"

// People makes roles person01, person02 ... and the table that writers write to. Their passwords are those of
// pgserver.Password.
func People(ctx context.Context, pg *pgserver.Server, n int) ([]string, error) {
	sql := []string{"CREATE TABLE IF NOT EXISTS " + WritesTable + " (id bigserial PRIMARY KEY, principal text NOT NULL, writer int NOT NULL, n bigint NOT NULL)"}
	var names []string
	for i := range n {
		name := fmt.Sprintf("person%02d", i+1)
		names = append(names, name)
		sql = append(sql, fmt.Sprintf("CREATE ROLE %s LOGIN PASSWORD '%s'", name, pgserver.Password(name)))
	}
	return names, pg.Exec(ctx, sql...)
}

// Writer is one session that commits a row, waits a moment, and commits the next, until it is ended.
type Writer struct {
	ID        int
	Principal string
	Acked     atomic.Int64 // rows whose commit the client has been told of

	conn *pgconn.PgConn
	done chan struct{}
	err  error // why it ended; written before done is closed
}

// Done is closed when the session has ended; Err says why.
func (w *Writer) Done() <-chan struct{} { return w.done }

// Err is nil for a writer that was asked to stop.
func (w *Writer) Err() error {
	<-w.done
	return w.err
}

// SQLState is the code of the error that ended the session, "" when it was told none.
func (w *Writer) SQLState() string { return SQLState(w.Err()) }

// SQLState is the code in an error of a session, "" when the server has not said why.
func SQLState(err error) string {
	var pgErr *pgconn.PgError
	if errors.As(err, &pgErr) {
		return pgErr.Code
	}
	return ""
}

// Connect logs in through addr, with nothing taken from the environment.
func Connect(ctx context.Context, addr, user string) (*pgconn.PgConn, error) {
	cfg, err := pgconn.ParseConfig("sslmode=disable")
	if err != nil {
		return nil, err
	}
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		return nil, err
	}
	number, err := strconv.ParseUint(port, 10, 16)
	if err != nil {
		return nil, err
	}
	cfg.Host, cfg.Port, cfg.User, cfg.Password, cfg.Database = host, uint16(number), user, pgserver.Password(user), pgserver.Database
	cfg.TLSConfig, cfg.Fallbacks = nil, nil
	return pgconn.ConnectConfig(ctx, cfg)
}

// Writers are all sessions of a workload.
type Writers struct {
	mu   sync.Mutex
	all  []*Writer
	stop context.CancelFunc
	ctx  context.Context
	work sync.WaitGroup
}

// NewWriters prepares a workload without sessions.
func NewWriters() *Writers {
	w := &Writers{}
	w.ctx, w.stop = context.WithCancel(context.Background())
	return w
}

// Add logs in as principal through addr and begins to write, a row every pause.
func (ws *Writers) Add(ctx context.Context, addr, principal string, pause time.Duration) (*Writer, error) {
	conn, err := Connect(ctx, addr, principal)
	if err != nil {
		return nil, fmt.Errorf("cannot log %s in: %w", principal, err)
	}
	ws.mu.Lock()
	w := &Writer{ID: len(ws.all), Principal: principal, conn: conn, done: make(chan struct{})}
	ws.all = append(ws.all, w)
	ws.mu.Unlock()
	ws.work.Go(func() { w.run(ws.ctx, pause) })
	return w, nil
}

func (w *Writer) run(ctx context.Context, pause time.Duration) {
	defer close(w.done)
	tick := time.NewTicker(pause)
	defer tick.Stop()
	for n := 1; ; n++ {
		// Not ctx: a statement under way is carried out, so that its row is counted.
		_, err := w.conn.Exec(context.Background(), fmt.Sprintf(
			"INSERT INTO %s (principal, writer, n) VALUES ('%s', %d, %d)", WritesTable, w.Principal, w.ID, n)).ReadAll()
		if err != nil {
			w.err = err
			_ = w.conn.Conn().Close() // it is broken already
			return
		}
		w.Acked.Add(1)
		select {
		case <-tick.C:
		case <-ctx.Done():
			c, cancel := context.WithTimeout(context.Background(), time.Second)
			w.err = w.conn.Close(c)
			cancel()
			return
		}
	}
}

// Of are the writers of one principal.
func (ws *Writers) Of(principal string) []*Writer {
	ws.mu.Lock()
	defer ws.mu.Unlock()
	var out []*Writer
	for _, w := range ws.all {
		if w.Principal == principal {
			out = append(out, w)
		}
	}
	return out
}

// All are the writers that have been added.
func (ws *Writers) All() []*Writer {
	ws.mu.Lock()
	defer ws.mu.Unlock()
	return append([]*Writer(nil), ws.all...)
}

// Stop lets every writer finish its statement and end.
func (ws *Writers) Stop() {
	ws.stop()
	ws.work.Wait()
}

// Rows is how many rows of a principal are committed.
func Rows(ctx context.Context, pg *pgserver.Server, principal string) (n int64, err error) {
	conn, err := pg.Connect(ctx, pgserver.Database)
	if err != nil {
		return 0, err
	}
	defer conn.Close(ctx)
	err = conn.QueryRow(ctx, "SELECT count(*) FROM "+WritesTable+" WHERE principal = $1", principal).Scan(&n)
	return n, err
}
