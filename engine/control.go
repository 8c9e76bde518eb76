package engine

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
)

// controlBatch is how many backends one statement ends.
const controlBatch = 100

const (
	controlApplication      = "pgedge control"
	controlStatementTimeout = 3 * time.Second
	controlConnectTimeout   = 3 * time.Second
	controlKeepalive        = 15 * time.Second
	lookMin                 = 500 * time.Microsecond
	lookMax                 = 20 * time.Millisecond
)

// controller owns the warm connection of the control role to one server address. One goroutine runs it.
type controller struct {
	eng      *Engine
	upstream *Upstream
	host     HostPort
	network  string
	address  string
	sweep    atomic.Bool // a database entry that leads here is to be swept
	line     sweepLine

	proof atomic.Pointer[proof]
	tried chan struct{} // closed after the first attempt to connect

	mu       sync.Mutex
	closed   bool
	incoming []*target
	asks     []*ask
	wake     chan struct{}
	looking  atomic.Bool

	// Owned by run.
	conn      *pgconn.PgConn
	verifying []*target
	lookEvery time.Duration
	lookAt    time.Time
	failures  int
	retryAt   time.Time
}

// proof is what the controller has shown it can do, by doing it.
type proof struct {
	usable        bool
	missing       string // why not
	superuser     bool
	server        string // start time of the postmaster
	byPort        bool   // (pid, our port) finds a backend; else (pid, backend_start), learned at login
	checksClients bool   // the server takes client_connection_check_interval
	key           string // names the server in the fleet, see revoke.ServerKey
	seenAs        string // where the server sees this node's connections come from
	mayNoLogin    bool   // may alter roles, as far as an attribute says it
}

// ask is a login that wants its backend_start.
type ask struct {
	s    *session
	done chan answer // room for one
}

type answer struct {
	start string
	err   error
}

// controlRegistry holds a controller per server address and control role.
type controlRegistry struct {
	eng    *Engine
	ctx    context.Context
	cancel context.CancelFunc
	wg     sync.WaitGroup
	mu     sync.Mutex
	byKey  map[string]*controller
}

func newControlRegistry(e *Engine) *controlRegistry {
	ctx, cancel := context.WithCancel(context.Background())
	return &controlRegistry{eng: e, ctx: ctx, cancel: cancel, byKey: make(map[string]*controller)}
}

// at returns the controller for the very address that l is connected to, nil without a control role.
func (r *controlRegistry) at(d *database, l *link) *controller {
	if d.upstream.Control == nil {
		return nil
	}
	return r.get(d, l.host, l.remote.Network(), l.remote.String())
}

func (r *controlRegistry) get(d *database, host HostPort, network, address string) *controller {
	u := &d.upstream
	key := fmt.Sprintf("%q", []string{address, u.Control.User, u.Control.Password, u.Control.Database, u.SSLMode, u.SSLRootCert, host.Host})
	r.mu.Lock()
	defer r.mu.Unlock()
	c := r.byKey[key]
	if c == nil {
		c = &controller{eng: r.eng, upstream: u, host: host, network: network, address: address,
			wake: make(chan struct{}, 1), tried: make(chan struct{})}
		r.byKey[key] = c
		c.sweep.Store(d.sweep)
		r.wg.Go(func() { c.run(r.ctx) })
	}
	if d.sweep {
		c.sweep.Store(true)
	}
	return c
}

// warmTimeout bounds how long Start waits for the control roles to be tried; they go on trying behind it.
const warmTimeout = 3 * time.Second

// warm connects the control roles of all configured hosts and says in the log what each can do.
func (r *controlRegistry) warm(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, warmTimeout)
	defer cancel()
	var wait []*controller
	for name, d := range r.eng.databases {
		if d.upstream.Control == nil {
			r.eng.log.Warn("no control role: kills close connections and cancel statements, but cannot be verified", "database", name)
			continue
		}
		for _, host := range d.upstream.Hosts {
			// A name can have several addresses; sessions go to the one that answers, so that is asked for here too.
			network, address := host.dialArgs()
			conn, err := (&net.Dialer{}).DialContext(ctx, network, address)
			if err != nil {
				r.eng.log.Error("an upstream cannot be reached: kills there cannot be verified before it can", "database", name, "host", host.String(), "error", err)
				continue
			}
			at := conn.RemoteAddr()
			conn.Close()
			wait = append(wait, r.get(d, host, at.Network(), at.String()))
		}
	}
	for _, c := range wait {
		select {
		case <-c.tried:
		case <-ctx.Done():
		}
	}
}

// Controls says what the control roles can do, for logs and doctor: address to problem, "" for none.
func (e *Engine) Controls() map[string]string {
	r := e.controls
	r.mu.Lock()
	defer r.mu.Unlock()
	out := make(map[string]string)
	for _, c := range r.byKey {
		switch p := c.proof.Load(); {
		case p == nil:
			out[c.address] = "not connected yet"
		default:
			out[c.address] = p.missing
		}
	}
	return out
}

func (r *controlRegistry) close() {
	r.cancel()
	r.wg.Wait()
	for _, c := range r.list() {
		c.line.hangUp()
	}
}

// checksClients tells whether sessions may ask the server to watch for the death of this process.
func (c *controller) checksClients() bool {
	if c == nil {
		return false
	}
	p := c.proof.Load()
	return p != nil && p.checksClients
}

// learn finds out when the session's backend began, where our port does not identify it.
func (c *controller) learn(ctx context.Context, s *session) error {
	if c == nil || s.key.PID == 0 {
		return nil
	}
	if p := c.proof.Load(); p == nil || !p.usable || p.byPort && s.link.port > 0 {
		return nil
	}
	a := &ask{s: s, done: make(chan answer, 1)}
	c.mu.Lock()
	c.asks = append(c.asks, a)
	c.mu.Unlock()
	c.poke()
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	select {
	case got := <-a.done:
		s.start = got.start
		return got.err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// submit hands backends over to be ended. It never blocks for I/O.
func (c *controller) submit(ts []*target) {
	c.mu.Lock()
	closed := c.closed
	if !closed {
		c.incoming = append(c.incoming, ts...)
	}
	c.mu.Unlock()
	c.poke()
	if closed {
		c.settleLeft(ts)
	}
}

// look says that a backend's socket has ended: a good moment to see whether it is gone.
func (c *controller) look() {
	c.looking.Store(true)
	c.poke()
}

func (c *controller) poke() {
	select {
	case c.wake <- struct{}{}:
	default:
	}
}

// run serves until ctx ends; what is still open then is given up.
func (c *controller) run(ctx context.Context) {
	timer := time.NewTimer(0)
	defer timer.Stop()
	c.connect(ctx)
	close(c.tried)
	for {
		if c.conn == nil || c.conn.IsClosed() {
			c.connect(ctx)
		}
		c.answerAsks(ctx)
		c.terminateIncoming(ctx)
		wait := c.verify(ctx)
		timer.Reset(wait)
		select {
		case <-c.wake:
		case <-timer.C:
		case <-ctx.Done():
			c.abandon()
			return
		}
	}
}

func (c *controller) abandon() {
	if c.conn != nil {
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		c.conn.Close(ctx)
	}
	c.mu.Lock()
	left := append(c.verifying, c.incoming...)
	c.verifying, c.incoming, c.closed = nil, nil, true
	c.mu.Unlock()
	c.settleLeft(left)
}

func (c *controller) settleLeft(left []*target) {
	for _, t := range left {
		t.settle("closed", false, "the node stopped before the backend was seen gone")
	}
}

// connect tries once, not more often than the backoff allows, and proves what the connection can do.
func (c *controller) connect(ctx context.Context) {
	c.mu.Lock()
	urgent := len(c.incoming) > 0
	c.mu.Unlock()
	if time.Now().Before(c.retryAt) && !urgent {
		return
	}
	conn, err := c.dial(ctx, nil)
	if err == nil {
		var p *proof
		if p, err = c.prove(ctx, conn); err == nil {
			c.conn, c.failures = conn, 0
			old := c.proof.Swap(p)
			if old == nil || *old != *p {
				c.report(p)
			}
			return
		}
		conn.Close(ctx)
	}
	if ctx.Err() != nil {
		return
	}
	c.failures++
	c.retryAt = time.Now().Add(min(time.Duration(c.failures)*time.Second, 15*time.Second))
	p := &proof{missing: err.Error()}
	if old := c.proof.Load(); old != nil {
		p.byPort, p.checksClients = old.byPort, old.checksClients
	}
	c.proof.Store(p)
	c.eng.log.Error("the control role cannot be used: kills cannot be verified", "address", c.address, "error", err)
}

func (c *controller) report(p *proof) {
	if !p.usable {
		c.eng.log.Error("the control role cannot be used: kills cannot be verified", "address", c.address,
			"role", c.upstream.Control.User, "missing", p.missing)
		return
	}
	match := "port"
	if !p.byPort {
		match = "backend_start"
	}
	c.eng.log.Info("the control role works: kills are verified", "address", c.address, "role", c.upstream.Control.User, "match", match)
}

// dial opens a connection of the control role to the controller's address. local, if not nil, receives our own port.
func (c *controller) dial(ctx context.Context, local *int) (*pgconn.PgConn, error) {
	tlsConfig := c.upstream.tlsConfig(c.host)
	// pgconn insists on parsing; everything it could take from the environment is given or overwritten.
	cfg, err := pgconn.ParseConfig("host=127.0.0.1 port=5432 user=x password=x dbname=x sslmode=disable target_session_attrs=any")
	if err != nil {
		return nil, fmt.Errorf("cannot prepare the control connection: %w", err)
	}
	cfg.Host, cfg.Port = c.host.Host, uint16(c.host.Port)
	cfg.User, cfg.Password = c.upstream.Control.User, c.upstream.Control.Password
	cfg.Database = orString(c.upstream.Control.Database, "postgres")
	cfg.ConnectTimeout = controlConnectTimeout
	cfg.ValidateConnect, cfg.AfterConnect = nil, nil
	cfg.KerberosSrvName, cfg.KerberosSpn = "", ""
	cfg.RuntimeParams = map[string]string{"application_name": controlApplication, "timezone": "UTC", "datestyle": "ISO",
		"client_encoding": "UTF8", "standard_conforming_strings": "on",
		"statement_timeout": strconv.Itoa(int(controlStatementTimeout.Milliseconds()))}
	cfg.TLSConfig = tlsConfig
	cfg.Fallbacks = nil
	fallback := pgconn.FallbackConfig{Host: cfg.Host, Port: cfg.Port}
	if tlsConfig != nil && c.upstream.sslMode() == "prefer" {
		cfg.Fallbacks = []*pgconn.FallbackConfig{&fallback}
	}
	cfg.LookupFunc = func(context.Context, string) ([]string, error) { return []string{"127.0.0.1"}, nil }
	cfg.DialFunc = func(ctx context.Context, _, _ string) (net.Conn, error) {
		conn, err := (&net.Dialer{}).DialContext(ctx, c.network, c.address)
		if a, ok := localPort(conn); ok && local != nil {
			*local = a
		}
		return conn, err
	}
	ctx, cancel := context.WithTimeout(ctx, controlConnectTimeout)
	defer cancel()
	return pgconn.ConnectConfig(ctx, cfg)
}

func localPort(c net.Conn) (int, bool) {
	if c == nil {
		return 0, false
	}
	a, ok := c.LocalAddr().(*net.TCPAddr)
	if !ok {
		return 0, false
	}
	return a.Port, true
}

// rows runs one statement with text parameters and returns its rows as text; NULL is "".
func rows(ctx context.Context, conn *pgconn.PgConn, sql string, args ...string) ([][]string, error) {
	if conn == nil {
		return nil, errors.New("the control connection is down")
	}
	ctx, cancel := context.WithTimeout(ctx, controlStatementTimeout)
	defer cancel()
	params := make([][]byte, len(args))
	for i := range args {
		params[i] = []byte(args[i])
	}
	res := conn.ExecParams(ctx, sql, params, nil, nil, nil).Read()
	if res.Err != nil {
		return nil, res.Err
	}
	out := make([][]string, len(res.Rows))
	for i, row := range res.Rows {
		out[i] = make([]string, len(row))
		for j := range row {
			out[i][j] = string(row[j])
		}
	}
	return out, nil
}

// array writes a Postgres array literal of values that need no quoting but what it adds.
func array[T any](items []T, text func(T) string) string {
	var b strings.Builder
	b.WriteByte('{')
	for i, item := range items {
		if i > 0 {
			b.WriteByte(',')
		}
		b.WriteByte('"')
		b.WriteString(text(item))
		b.WriteByte('"')
	}
	b.WriteByte('}')
	return b.String()
}
