package engine

import (
	"context"
	"fmt"
	"strconv"
	"time"

	"github.com/jackc/pgx/v5/pgconn"

	"pgedge/revoke"
)

// terminateSQL samples and ends a batch of backends in one statement. pg_stat_activity is read as a whole before the
// first pg_terminate_backend of the select list runs. Superusers are left out unless the control role is one: a
// single one would make the whole statement an error. pg_terminate_backend without a timeout does not wait.
const terminateSQL = `
SELECT a.pid, coalesce(a.state, ''), coalesce(a.backend_xid::text, ''), a.backend_start::text,
       coalesce(r.rolsuper, false), pg_snapshot_xmax(pg_current_snapshot())::text,
       CASE WHEN coalesce(r.rolsuper, false) AND NOT $4::bool THEN NULL ELSE pg_terminate_backend(a.pid) END
FROM unnest($1::int4[], $2::int4[], $3::text[]) AS t(pid, port, start)
JOIN pg_stat_activity a ON a.pid = t.pid
 AND (t.port > 0 AND a.client_port = t.port OR t.start <> '' AND a.backend_start::text = t.start)
LEFT JOIN pg_roles r ON r.oid = a.usesysid`

// presentSQL runs in a transaction of its own: statistics are cached per transaction.
const presentSQL = `SELECT pid, coalesce(backend_start::text, '') FROM pg_stat_activity WHERE pid = ANY($1::int4[])`

const outcomeSQL = `SELECT x, coalesce(pg_xact_status(x::xid8), '') FROM unnest($1::text[]) AS x`

// learnSQL finds young backends by pid. A pid alone would do on the right server; role and age make sure that
// behind a balancer no bystander on another server is taken for ours.
const learnSQL = `SELECT pid, backend_start::text, usename FROM pg_stat_activity
WHERE pid = ANY($1::int4[]) AND clock_timestamp() - backend_start < interval '20 s'`

// terminateIncoming ends what has been submitted since the last time, a batch per statement.
func (c *controller) terminateIncoming(ctx context.Context) {
	for {
		c.mu.Lock()
		batch := c.incoming[:min(controlBatch, len(c.incoming))]
		c.incoming = c.incoming[len(batch):]
		if len(c.incoming) == 0 {
			c.incoming = nil
		}
		c.mu.Unlock()
		if len(batch) == 0 {
			return
		}
		p := c.proof.Load()
		if c.conn == nil || c.conn.IsClosed() || p == nil || !p.usable {
			why := "the control role cannot be used"
			if p != nil && p.missing != "" {
				why += ": " + p.missing
			}
			for _, t := range batch {
				c.eng.giveUp(t, "", why)
			}
			continue
		}
		err := c.terminate(ctx, p, batch)
		if err != nil && c.conn.IsClosed() {
			// The warm connection had died unnoticed: one fresh attempt.
			c.retryAt = time.Time{}
			if c.connect(ctx); !c.conn.IsClosed() && c.proof.Load().usable {
				err = c.terminate(ctx, c.proof.Load(), batch)
			}
		}
		if err != nil && len(batch) > 1 && !c.conn.IsClosed() {
			// One of them made the statement fail: each gets a statement of its own.
			for _, t := range batch {
				if err := c.terminate(ctx, p, []*target{t}); err != nil {
					c.eng.giveUp(t, "", "cannot terminate the backend: "+err.Error())
				}
			}
		} else if err != nil {
			for _, t := range batch {
				c.eng.giveUp(t, "", "cannot terminate the backend: "+err.Error())
			}
		}
	}
}

// terminate either fails as a whole and changes no target, or takes all of them over.
func (c *controller) terminate(ctx context.Context, p *proof, batch []*target) error {
	out, err := rows(ctx, c.conn, terminateSQL,
		array(batch, func(t *target) string { return strconv.FormatUint(uint64(t.pid), 10) }),
		array(batch, func(t *target) string {
			if p.byPort {
				return strconv.Itoa(t.port)
			}
			return "0"
		}),
		array(batch, func(t *target) string { return t.start }),
		strconv.FormatBool(p.superuser))
	if err != nil {
		return err
	}
	byPID := make(map[string][]string, len(out))
	for _, row := range out {
		byPID[row[0]] = row
	}
	told := make(map[*loop][]*session)
	for _, t := range batch {
		row := byPID[strconv.FormatUint(uint64(t.pid), 10)]
		switch {
		case row == nil:
			why := "no backend with this pid and port was found on the server: it had ended already, or something sits in between"
			if t.pid == 0 {
				why = "the server had not said yet which backend it is"
			}
			c.eng.giveUp(t, "", why)
		case row[6] == "" && row[4] == "t":
			t.state, t.start = row[1], row[3]
			c.eng.giveUp(t, "", "the role is a superuser and the control role is not")
		default:
			t.found, t.state, t.start, t.server = true, row[1], row[3], p.server
			t.xid = fullXID(row[2], row[5])
			c.verifying = append(c.verifying, t)
			if t.s.loop != nil {
				told[t.s.loop] = append(told[t.s.loop], t.s)
			}
		}
	}
	for l, sessions := range told {
		l.post(func() { terminated(sessions) })
	}
	c.lookEvery = lookMin
	c.lookAt = time.Now().Add(c.lookEvery)
	return nil
}

// fullXID adds the epoch to a 32-bit transaction id; xmax is the next id of a snapshot taken just before.
func fullXID(xid, xmax string) uint64 {
	low, err1 := strconv.ParseUint(xid, 10, 32)
	next, err2 := strconv.ParseUint(xmax, 10, 64)
	if err1 != nil || err2 != nil {
		return 0
	}
	full := next&^0xffffffff | low
	if full > next+1<<31 && full >= 1<<32 {
		full -= 1 << 32
	}
	return full
}

// verify looks which backends are gone and returns how long to wait before the next look.
func (c *controller) verify(ctx context.Context) time.Duration {
	if len(c.verifying) == 0 {
		c.looking.Store(false)
		return c.idleWait(ctx)
	}
	now := time.Now()
	if !c.looking.Swap(false) && now.Before(c.lookAt) {
		return c.lookAt.Sub(now)
	}
	out, err := rows(ctx, c.conn, presentSQL, array(c.verifying, func(t *target) string { return strconv.FormatUint(uint64(t.pid), 10) }))
	if err != nil && (c.conn == nil || c.conn.IsClosed()) {
		c.connect(ctx)
	}
	var gone, still []*target
	if err == nil {
		present := make(map[string]string, len(out))
		for _, row := range out {
			present[row[0]] = row[1]
		}
		server := c.proof.Load().server
		for _, t := range c.verifying {
			if t.server != server {
				// An address can lead to another server after a failover; there nothing is to be seen of this backend.
				c.eng.giveUp(t, "", "the server was restarted or replaced before the backend was seen gone")
				continue
			}
			start, there := present[strconv.FormatUint(uint64(t.pid), 10)]
			if there && (start == t.start || start == "") {
				still = append(still, t)
			} else {
				gone = append(gone, t)
			}
		}
	} else {
		still = c.verifying
	}
	c.outcomes(ctx, gone)
	settleGone(gone)
	c.verifying = nil
	for _, t := range still {
		if time.Now().After(t.deadline) {
			c.eng.giveUp(t, "timeout", fmt.Sprintf("the backend was still there after %s", c.eng.cfg.VerifyTimeout))
			continue
		}
		c.verifying = append(c.verifying, t)
	}
	if len(c.verifying) == 0 {
		return 0
	}
	c.lookEvery = min(2*c.lookEvery, lookMax)
	c.lookAt = time.Now().Add(c.lookEvery)
	return c.lookEvery
}

// idleWait keeps the connection warm while there is nothing to do.
func (c *controller) idleWait(ctx context.Context) time.Duration {
	if c.conn == nil || c.conn.IsClosed() {
		return max(time.Until(c.retryAt), 10*time.Millisecond)
	}
	if time.Since(c.lookAt) > controlKeepalive {
		c.lookAt = time.Now()
		if _, err := rows(ctx, c.conn, "SELECT 1"); err != nil && ctx.Err() == nil {
			c.conn.Close(ctx)
			return 0
		}
	}
	return controlKeepalive
}

// outcomes asks what became of the transactions of backends that are gone.
func (c *controller) outcomes(ctx context.Context, gone []*target) {
	byXID := make(map[string]*target)
	var xids []string
	for _, t := range gone {
		if t.xid > 0 {
			x := strconv.FormatUint(t.xid, 10)
			byXID[x] = t
			xids = append(xids, x)
		}
	}
	if len(xids) == 0 {
		return
	}
	same := func(x string) string { return x }
	out, err := rows(ctx, c.conn, outcomeSQL, array(xids, same))
	if err != nil {
		for _, x := range xids { // one that is out of range must not hide the others
			one, err := rows(ctx, c.conn, outcomeSQL, array([]string{x}, same))
			if err == nil {
				out = append(out, one...)
			}
		}
	}
	for _, row := range out {
		if t := byXID[row[0]]; t != nil {
			t.xact = row[1]
		}
	}
}

// answerAsks tells logins when their backends began.
func (c *controller) answerAsks(ctx context.Context) {
	c.mu.Lock()
	asks := c.asks
	c.asks = nil
	c.mu.Unlock()
	if len(asks) == 0 {
		return
	}
	out, err := rows(ctx, c.conn, learnSQL, array(asks, func(a *ask) string { return strconv.FormatUint(uint64(a.s.key.PID), 10) }))
	found := make(map[string][]string, len(out))
	for _, row := range out {
		found[row[0]] = row
	}
	for _, a := range asks {
		row := found[strconv.FormatUint(uint64(a.s.key.PID), 10)]
		switch {
		case err != nil:
			a.done <- answer{err: err}
		case row == nil || row[2] != a.s.identity.Role:
			a.done <- answer{err: fmt.Errorf("no young backend of the role has pid %d", a.s.key.PID)}
		default:
			a.done <- answer{start: row[1]}
		}
	}
}

// prove finds out what the control role may do, and ends a session of its own to see that it can be found.
func (c *controller) prove(ctx context.Context, conn *pgconn.PgConn) (*proof, error) {
	p := &proof{}
	out, err := rows(ctx, conn, `SELECT r.rolsuper, pg_has_role('pg_signal_backend', 'USAGE'), pg_has_role('pg_read_all_stats', 'USAGE'),
       pg_postmaster_start_time()::text, coalesce(host(inet_client_addr()), '`+revoke.LocalAddress+`'),
       (extract(epoch FROM pg_postmaster_start_time()) * 1e6)::bigint, r.rolcreaterole
FROM pg_roles r WHERE r.rolname = current_user`)
	if err != nil {
		return nil, fmt.Errorf("cannot read the rights of the control role: %w", err)
	}
	if len(out) != 1 {
		return nil, fmt.Errorf("the control role %q is not in pg_roles", c.upstream.Control.User)
	}
	p.superuser, p.server = out[0][0] == "t", out[0][3]
	p.seenAs, p.mayNoLogin = out[0][4], p.superuser || out[0][6] == "t"
	system := ""
	if id, err := rows(ctx, conn, "SELECT system_identifier FROM pg_control_system()"); err == nil && len(id) == 1 {
		system = id[0][0]
	}
	p.key = revoke.ServerKey(system, out[0][5])
	if !p.superuser && out[0][1] != "t" {
		p.missing = "pg_signal_backend"
	}
	if !p.superuser && out[0][2] != "t" {
		if p.missing != "" {
			p.missing += " and "
		}
		p.missing += "pg_read_all_stats"
	}
	if p.missing != "" {
		p.missing = fmt.Sprintf("role %q is not a member of %s", c.upstream.Control.User, p.missing)
	}
	if _, err := rows(ctx, conn, "SELECT set_config('client_connection_check_interval', '1000', false)"); err == nil {
		p.checksClients = true
	}
	if p.missing != "" {
		return p, nil
	}
	for _, byPort := range []bool{true, false} {
		if p.missing = c.proveOn(ctx, conn, p, byPort); p.missing == "" {
			p.usable, p.byPort = true, byPort
			return p, nil
		}
	}
	return p, nil
}

// proveOn ends a second session of the control role's, found the given way, and returns what went wrong.
func (c *controller) proveOn(ctx context.Context, conn *pgconn.PgConn, p *proof, byPort bool) string {
	port := 0
	victim, err := c.dial(ctx, &port)
	if err != nil {
		return "cannot open a second session to prove a kill on: " + err.Error()
	}
	defer victim.Close(ctx)
	pid := strconv.FormatUint(uint64(victim.PID()), 10)
	start := ""
	if byPort && port == 0 {
		return "no port identifies backends on a unix socket"
	}
	if !byPort {
		port = 0
		out, err := rows(ctx, conn, learnSQL, "{"+pid+"}")
		if err != nil || len(out) != 1 {
			return "a session of its own was not found in pg_stat_activity"
		}
		start = out[0][1]
	}
	out, err := rows(ctx, conn, terminateSQL, "{"+pid+"}", "{"+strconv.Itoa(port)+"}", `{"`+start+`"}`, strconv.FormatBool(p.superuser))
	if err != nil {
		return "cannot terminate a session of its own: " + err.Error()
	}
	if len(out) != 1 {
		return "a session of its own was not found in pg_stat_activity"
	}
	deadline := time.Now().Add(controlStatementTimeout)
	for time.Now().Before(deadline) {
		left, err := rows(ctx, conn, presentSQL, "{"+pid+"}")
		if err != nil {
			return "cannot read pg_stat_activity: " + err.Error()
		}
		if len(left) == 0 || left[0][1] != out[0][3] {
			return ""
		}
		time.Sleep(time.Millisecond)
	}
	return "a session of its own was terminated but did not go away"
}
