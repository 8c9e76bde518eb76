package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"time"

	"github.com/jackc/pgx/v5/pgconn"

	"pgedge/cluster"
	"pgedge/cmd/pgedge/config"
	"pgedge/revoke"
)

const (
	// maxDrill is after how long a drill that nobody ends is given up, its sessions closed.
	maxDrill = 2 * time.Minute
	// seenTimeout is how long the end of a canary's session is waited for.
	seenTimeout = 5 * time.Second
	// canaryLoginTimeout leaves a drill's step time to answer when a login hangs.
	canaryLoginTimeout = 10 * time.Second
	appliedPoll        = 5 * time.Millisecond
)

var errNoDrill = errors.New("this drill is not under way here")

// canary logs in to its own node as any client would, through the node's listeners, so that a drill proves the whole
// way: accept, login, index, fact, gate, kill, error text.
type canary struct {
	// Immutable.
	cfg     config.Drill
	listens func() []net.Addr // empty while the node does not serve yet
	applied func() uint64     // position of the journal

	mu  sync.Mutex
	now *canaryDrill // nil between drills
}

// canaryDrill is one drill under way.
type canaryDrill struct {
	id       string
	began    time.Time
	sessions []*canarySession
	expire   *time.Timer
}

// canarySession is one session of the canary. Its goroutine alone writes login until ended is closed.
type canarySession struct {
	conn  *pgconn.PgConn
	login cluster.CanaryLogin
	ended chan struct{}
}

var _ cluster.Canary = (*canary)(nil)

// Drill implements cluster.Canary.
func (c *canary) Drill(ctx context.Context, req cluster.DrillRequest) cluster.DrillAnswer {
	a := cluster.DrillAnswer{Canary: revoke.CanonicalName(revoke.ScopePrincipal, c.cfg.User)}
	var err error
	switch req.Step {
	case cluster.DrillAsk:
	case cluster.DrillBegin:
		a.Logins, err = c.begin(ctx, req)
	case cluster.DrillSeen:
		a.Logins, err = c.seen(ctx, req.ID)
	case cluster.DrillAgain:
		a.Logins, err = c.again(ctx, req)
	case cluster.DrillEnd:
		c.end(req.ID)
	default:
		err = fmt.Errorf("this version knows no step %q of a drill", req.Step)
	}
	if err != nil {
		a.Error = err.Error()
	}
	return a
}

func (c *canary) begin(ctx context.Context, req cluster.DrillRequest) ([]cluster.CanaryLogin, error) {
	addrs := c.listens()
	if len(addrs) == 0 {
		return nil, errors.New("the node has no open listener yet")
	}
	d := &canaryDrill{id: req.ID, began: time.Now()}
	c.mu.Lock()
	if other := c.now; other != nil {
		c.mu.Unlock()
		return nil, fmt.Errorf("another drill began %s ago and is not over", age(time.Since(other.began)))
	}
	c.now = d
	c.mu.Unlock()
	d.expire = time.AfterFunc(maxDrill, func() { c.end(d.id) })
	if err := c.awaitApplied(ctx, req.Applied); err != nil {
		c.end(d.id)
		return nil, err
	}
	logins := make([]cluster.CanaryLogin, len(addrs))
	sessions := make([]*canarySession, len(addrs))
	c.onEach(addrs, func(i int, addr net.Addr) {
		conn, login := c.logIn(ctx, addr)
		logins[i] = login
		if conn != nil {
			sessions[i] = watchCanary(conn, login)
		}
	})
	for _, s := range sessions {
		if s != nil {
			d.sessions = append(d.sessions, s)
		}
	}
	return logins, nil
}

func (c *canary) onEach(addrs []net.Addr, do func(int, net.Addr)) {
	var all sync.WaitGroup
	for i, addr := range addrs {
		all.Go(func() { do(i, addr) })
	}
	all.Wait()
}

// watchCanary reads until the session ends, and notes what its client saw.
func watchCanary(conn *pgconn.PgConn, login cluster.CanaryLogin) *canarySession {
	s := &canarySession{conn: conn, login: login, ended: make(chan struct{})}
	go func() {
		defer close(s.ended)
		err := conn.WaitForNotification(context.Background())
		for err == nil { // a canary listens to nothing, but a notification is no end
			err = conn.WaitForNotification(context.Background())
		}
		at := time.Now()
		s.login.Ended = &at
		s.login.SQLState, s.login.Message = whatCanarySaw(err)
	}()
	return s
}

func whatCanarySaw(err error) (code, message string) {
	var pgErr *pgconn.PgError
	if errors.As(err, &pgErr) {
		return pgErr.Code, pgErr.Message
	}
	return "", err.Error()
}

// seen waits until the sessions of the drill have ended.
func (c *canary) seen(ctx context.Context, id string) ([]cluster.CanaryLogin, error) {
	d := c.current(id)
	if d == nil {
		return nil, errNoDrill
	}
	ctx, cancel := context.WithTimeout(ctx, seenTimeout)
	defer cancel()
	var logins []cluster.CanaryLogin
	for _, s := range d.sessions {
		select {
		case <-s.ended:
			logins = append(logins, s.login)
		case <-ctx.Done():
			logins = append(logins, cluster.CanaryLogin{Listener: s.login.Listener, In: true, Message: "the session lives on"})
		}
	}
	return logins, nil
}

// again tries to log in through every listener and hangs up at once.
func (c *canary) again(ctx context.Context, req cluster.DrillRequest) ([]cluster.CanaryLogin, error) {
	if c.current(req.ID) == nil {
		return nil, errNoDrill
	}
	if err := c.awaitApplied(ctx, req.Applied); err != nil {
		return nil, err
	}
	addrs := c.listens()
	logins := make([]cluster.CanaryLogin, len(addrs))
	c.onEach(addrs, func(i int, addr net.Addr) {
		var conn *pgconn.PgConn
		if conn, logins[i] = c.logIn(ctx, addr); conn != nil {
			hangUp(conn)
		}
	})
	return logins, nil
}

// end closes what is left of a drill; of another one it touches nothing.
func (c *canary) end(id string) {
	c.mu.Lock()
	d := c.now
	if d == nil || d.id != id {
		c.mu.Unlock()
		return
	}
	c.now = nil
	c.mu.Unlock()
	d.expire.Stop()
	for _, s := range d.sessions {
		// Its goroutine is in the middle of a read: closing the socket is what ends that.
		s.conn.Conn().Close()
		<-s.ended
	}
}

func (c *canary) current(id string) *canaryDrill {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.now == nil || c.now.id != id {
		return nil
	}
	return c.now
}

func (c *canary) awaitApplied(ctx context.Context, seq uint64) error {
	tick := time.NewTicker(appliedPoll)
	defer tick.Stop()
	for c.applied() < seq {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return fmt.Errorf("the node has applied the journal up to %d, not %d", c.applied(), seq)
		}
	}
	return nil
}

// logIn connects to one of the node's own listeners. conn is nil when the login did not succeed.
func (c *canary) logIn(ctx context.Context, addr net.Addr) (*pgconn.PgConn, cluster.CanaryLogin) {
	login := cluster.CanaryLogin{Listener: addr.String()}
	ctx, cancel := context.WithTimeout(ctx, canaryLoginTimeout)
	defer cancel()
	began := time.Now()
	conn, err := c.connect(ctx, addr)
	login.TookMS = float64(time.Since(began).Microseconds()) / 1000
	if err != nil {
		login.SQLState, login.Message = whatCanarySaw(err)
		return nil, login
	}
	login.In = true
	return conn, login
}

func (c *canary) connect(ctx context.Context, addr net.Addr) (*pgconn.PgConn, error) {
	// pgconn insists on parsing; everything it could take from the environment is given or overwritten.
	cfg, err := pgconn.ParseConfig("host=127.0.0.1 port=5432 user=x password=x dbname=x sslmode=disable target_session_attrs=any")
	if err != nil {
		return nil, fmt.Errorf("cannot prepare the login: %w", err)
	}
	cfg.User, cfg.Password, cfg.Database = c.cfg.User, c.cfg.Password.Reveal(), c.cfg.Database
	cfg.TLSConfig, cfg.Fallbacks, cfg.ValidateConnect, cfg.AfterConnect = nil, nil, nil, nil
	cfg.KerberosSrvName, cfg.KerberosSpn = "", ""
	cfg.RuntimeParams = map[string]string{"application_name": "pgedge drill"}
	cfg.LookupFunc = func(context.Context, string) ([]string, error) { return []string{"127.0.0.1"}, nil }
	network, address := reachable(addr)
	cfg.DialFunc = func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, network, address)
	}
	conn, err := pgconn.ConnectConfig(ctx, cfg)
	if err != nil {
		return nil, err
	}
	// A session counts once a statement has come through it.
	if _, err := conn.Exec(ctx, "SELECT 1").ReadAll(); err != nil {
		hangUp(conn)
		return nil, fmt.Errorf("cannot run a statement: %w", err)
	}
	return conn, nil
}

func hangUp(conn *pgconn.PgConn) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	conn.Close(ctx) // what it says of a session that is given up is of no interest
}

// reachable is where a listener can be connected to from this machine.
func reachable(addr net.Addr) (network, address string) {
	if a, ok := addr.(*net.TCPAddr); ok && a.IP.IsUnspecified() {
		ip := "127.0.0.1"
		if a.IP.To4() == nil {
			ip = "::1"
		}
		return "tcp", net.JoinHostPort(ip, fmt.Sprint(a.Port))
	}
	return addr.Network(), addr.String()
}
