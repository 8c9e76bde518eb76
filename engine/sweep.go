package engine

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
	"unicode/utf8"

	"github.com/jackc/pgx/v5/pgconn"

	"pgedge/revoke"
)

const (
	// sweepGone bounds how long a pass waits for the backends it has terminated.
	sweepGone = time.Second
	// sweepConfirm is after how long a direct session is looked at once more: one that a client has just closed is on
	// its way out, and no residue.
	sweepConfirm = 100 * time.Millisecond
	// sweepIdle is how long the second connection of the control role is kept for the next pass.
	sweepIdle = 30 * time.Second
)

// backendsSQL lists the backends of some roles. Its age makes a backend comparable with a moment of this process's
// clock. The control role's own connections are no sessions of anybody.
const backendsSQL = `
SELECT r.rolname, a.pid, coalesce(host(a.client_addr), '` + revoke.LocalAddress + `'), greatest(coalesce(a.client_port, 0), 0),
       a.backend_start::text, (extract(epoch FROM clock_timestamp() - a.backend_start) * 1e6)::bigint, r.rolsuper
FROM pg_roles r JOIN pg_stat_activity a ON a.usesysid = r.oid
WHERE r.rolname = ANY($1::text[]) AND a.backend_type IN ('client backend', 'walsender')
  AND NOT (r.rolname = $2 AND a.application_name = '` + controlApplication + `')`

const endBackendsSQL = `
SELECT a.pid, pg_terminate_backend(a.pid)
FROM unnest($1::int4[], $2::text[]) AS t(pid, start)
JOIN pg_stat_activity a ON a.pid = t.pid AND a.backend_start::text = t.start`

// residueSQL counts what the end of all backends leaves. Prepared transactions and slots are the whole server's.
const residueSQL = `
SELECT n, (SELECT count(*) FROM pg_prepared_xacts p WHERE p.owner = n),
       (SELECT count(*) FROM pg_replication_slots s JOIN pg_stat_activity a ON a.pid = s.active_pid WHERE a.usename = n),
       coalesce((SELECT r.rolcanlogin FROM pg_roles r WHERE r.rolname = n), false)
FROM unnest($1::text[]) AS n`

// sweepLine is the second connection of the control role to a server. Passes are slower than kills and come in the
// same moment: on the first one kills would wait for them.
type sweepLine struct {
	mu   sync.Mutex // held during a pass
	conn *pgconn.PgConn
	idle *time.Timer
}

// Upstreams says which servers this node reaches with a usable control role, for its presence.
func (e *Engine) Upstreams() map[string]revoke.UpstreamPresence {
	out := make(map[string]revoke.UpstreamPresence)
	for _, c := range e.controls.list() {
		p := c.proof.Load()
		if p == nil || !p.usable || p.key == "" {
			continue
		}
		u := out[p.key]
		u.Sweep = u.Sweep || c.sweep.Load()
		if !slices.Contains(u.Addresses, p.seenAs) {
			u.Addresses = append(u.Addresses, p.seenAs)
		}
		out[p.key] = u
	}
	return out
}

// Claims lists the backends that this node holds for some roles, those of logins in progress included.
func (e *Engine) Claims(roles []string) []revoke.Claim {
	var out []revoke.Claim
	for _, role := range roles {
		for _, s := range e.index.match(revoke.Scope{Kind: revoke.ScopeRole, Name: revoke.CanonicalName(revoke.ScopeRole, role)}) {
			if c, ok := s.claim(); ok {
				out = append(out, c)
			}
		}
	}
	return out
}

// claim is the session's backend, as far as it is known.
func (s *session) claim() (c revoke.Claim, ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	c.Port = int(s.backendPort)
	if s.state != stLogin {
		c.PID = s.key.PID
		if s.control != nil {
			if p := s.control.proof.Load(); p != nil {
				c.Server = p.key
			}
		}
	}
	return c, c.PID != 0 || c.Port != 0
}

// noteBackendPort makes the backend of a login known before it has told its pid.
func (s *session) noteBackendPort(port int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.backendPort = uint16(port)
}

// serving finds the controller of a server that this node has announced.
func (r *controlRegistry) serving(server string) *controller {
	for _, c := range r.list() {
		if p := c.proof.Load(); p != nil && p.usable && p.key == server {
			return c
		}
	}
	return nil
}

func (r *controlRegistry) list() []*controller {
	r.mu.Lock()
	defer r.mu.Unlock()
	out := make([]*controller, 0, len(r.byKey))
	for _, c := range r.byKey {
		out = append(out, c)
	}
	return out
}

// Sweep visits a server on behalf of the fleet and returns an outcome per task. It blocks for I/O, a few seconds at
// most, and one pass at a time visits a server.
func (e *Engine) Sweep(ctx context.Context, server string, pass revoke.SweepPass) ([]revoke.SweepOutcome, error) {
	var out []revoke.SweepOutcome
	err := e.onSweepLine(ctx, server, func(ctx context.Context, v *visit) (err error) {
		v.pass = &pass
		out, err = v.run(ctx)
		return err
	})
	return out, err
}

// onSweepLine runs one visit on the second connection to a server, and opens that first if need be.
func (e *Engine) onSweepLine(ctx context.Context, server string, do func(context.Context, *visit) error) error {
	c := e.controls.serving(server)
	if c == nil {
		return errors.New("the control role cannot be used there at present")
	}
	l := &c.line
	l.mu.Lock()
	defer l.mu.Unlock()
	ctx, cancel := context.WithTimeout(ctx, 2*controlStatementTimeout)
	defer cancel()
	stop := context.AfterFunc(e.controls.ctx, cancel)
	defer stop()
	if l.idle != nil {
		l.idle.Stop()
	}
	if l.conn == nil || l.conn.IsClosed() {
		conn, err := c.dial(ctx, nil)
		if err != nil {
			return err
		}
		l.conn = conn
	}
	p := c.proof.Load()
	err := do(ctx, &visit{eng: e, conn: l.conn, control: c.upstream.Control.User, superuser: p.superuser, server: server})
	if err != nil && !l.conn.IsClosed() {
		// Whatever state it is in: the next pass begins afresh.
		l.conn.Close(ctx)
	}
	l.idle = time.AfterFunc(sweepIdle, l.hangUp)
	return err
}

// hangUp closes the connection when no pass uses it.
func (l *sweepLine) hangUp() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.idle != nil {
		l.idle.Stop()
	}
	if l.conn != nil {
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		l.conn.Close(ctx)
		l.conn = nil
	}
}

// visit is one pass under way.
type visit struct {
	eng       *Engine
	conn      *pgconn.PgConn
	control   string
	superuser bool
	server    string
	pass      *revoke.SweepPass
	out       []revoke.SweepOutcome
	found     []found
	doomed    map[backendID]bool // to be ended; true once seen gone
}

type backendID struct {
	pid   uint32
	start string
}

// found is one backend in the light of one task.
type found struct {
	task int
	kind revoke.BackendKind
	boot int
	b    revoke.Backend
}

func (f found) id() backendID { return backendID{f.b.PID, f.b.Start} }

// run does NOLOGIN first: what begins after the list of backends was read must not be able to begin.
func (v *visit) run(ctx context.Context) ([]revoke.SweepOutcome, error) {
	v.out = make([]revoke.SweepOutcome, len(v.pass.Tasks))
	for i, t := range v.pass.Tasks {
		if t.Mark != nil {
			v.out[i].Residue.Swept = &revoke.Swept{}
			set, err := v.noLogin(ctx, t.Role, *t.Mark)
			v.out[i].Residue.Swept.NoLogin = set
			if err != nil {
				v.say(i, "cannot set the role NOLOGIN: "+err.Error())
			}
		}
	}
	if err := v.look(ctx); err != nil {
		return nil, err
	}
	if err := v.end(ctx); err != nil {
		return nil, err
	}
	if err := v.report(ctx); err != nil {
		return nil, err
	}
	return v.out, nil
}

// say adds to what the receipt says was not possible.
func (v *visit) say(task int, why string) { v.out[task].Residue.Add(revoke.Residue{Why: why}) }

// roles are the names of the tasks that can be names in a database at all; want picks the tasks.
func (v *visit) roles(want func(*revoke.SweepTask) bool) []string {
	var out []string
	for i := range v.pass.Tasks {
		t := &v.pass.Tasks[i]
		if want(t) && isText(t.Role) && !slices.Contains(out, t.Role) {
			out = append(out, t.Role)
		}
	}
	return out
}

// look lists the backends of all roles and says what each is in the light of each task. The own claims are read
// before and after, so that a session that comes or goes meanwhile is known all the same.
func (v *visit) look(ctx context.Context) error {
	roles := v.roles(func(*revoke.SweepTask) bool { return true })
	claims := slices.Concat(v.pass.Claims, v.eng.Claims(roles))
	backends, err := v.backends(ctx, roles)
	if err != nil {
		return err
	}
	claims = append(claims, v.eng.Claims(roles)...)
	v.found, v.doomed = nil, make(map[backendID]bool)
	for i := range v.pass.Tasks {
		t := &v.pass.Tasks[i]
		for _, b := range backends {
			if b.Role != t.Role {
				continue
			}
			f := found{task: i, b: b}
			f.kind, f.boot = t.Classify(b, v.server, claims, v.pass.Doubtful)
			v.found = append(v.found, f)
			if f.kind == revoke.BackendDoubtful {
				v.out[i].Doubtful = true
			}
			if v.ends(f) && !b.Protected {
				v.doomed[f.id()] = false
			}
		}
	}
	return nil
}

// ends says whether a pass ends such a backend.
func (v *visit) ends(f found) bool {
	return f.kind == revoke.BackendLeftOver || f.kind == revoke.BackendDirect && v.pass.Tasks[f.task].Mark != nil
}

func (v *visit) backends(ctx context.Context, roles []string) ([]revoke.Backend, error) {
	list, err := rows(ctx, v.conn, backendsSQL, textArray(roles), v.control)
	if err != nil {
		return nil, fmt.Errorf("cannot list the backends of a role: %w", err)
	}
	now := time.Now()
	out := make([]revoke.Backend, 0, len(list))
	for _, row := range list {
		pid, err1 := strconv.ParseUint(row[1], 10, 32)
		port, err2 := strconv.Atoi(row[3])
		age, err3 := strconv.ParseInt(row[5], 10, 64)
		if err := errors.Join(err1, err2, err3); err != nil {
			return nil, fmt.Errorf("cannot read pg_stat_activity: %w", err)
		}
		out = append(out, revoke.Backend{Role: row[0], PID: uint32(pid), Address: row[2], Port: port, Start: row[4],
			Began: now.Add(-time.Duration(age) * time.Microsecond), Protected: row[6] == "t" && !v.superuser})
	}
	return out, nil
}

// end terminates what is to go and waits until it is seen gone.
func (v *visit) end(ctx context.Context) error {
	if len(v.doomed) == 0 {
		return nil
	}
	var ids []backendID
	for id := range v.doomed {
		ids = append(ids, id)
	}
	pid := func(id backendID) string { return strconv.FormatUint(uint64(id.pid), 10) }
	for batch := range slices.Chunk(ids, controlBatch) {
		if _, err := rows(ctx, v.conn, endBackendsSQL, array(batch, pid), array(batch, func(id backendID) string { return id.start })); err != nil {
			return fmt.Errorf("cannot terminate backends: %w", err)
		}
	}
	pause, deadline := lookMin, time.Now().Add(sweepGone)
	for {
		present, err := v.present(ctx, ids)
		if err != nil {
			return err
		}
		left := 0
		for _, id := range ids {
			if v.doomed[id] = !present[id]; present[id] {
				left++
			}
		}
		if left == 0 || time.Now().After(deadline) {
			return nil
		}
		if !waitContext(ctx, pause) {
			return context.Cause(ctx)
		}
		pause = min(2*pause, lookMax)
	}
}

func (v *visit) present(ctx context.Context, ids []backendID) (map[backendID]bool, error) {
	list, err := rows(ctx, v.conn, presentSQL, array(ids, func(id backendID) string { return strconv.FormatUint(uint64(id.pid), 10) }))
	if err != nil {
		return nil, fmt.Errorf("cannot see whether backends are gone: %w", err)
	}
	present := make(map[backendID]bool, len(list))
	for _, row := range list {
		pid, err := strconv.ParseUint(row[0], 10, 32)
		if err != nil {
			return nil, fmt.Errorf("cannot read pg_stat_activity: %w", err)
		}
		present[backendID{uint32(pid), row[1]}] = true
	}
	return present, nil
}

func waitContext(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// report turns what was found and done into the outcomes.
func (v *visit) report(ctx context.Context) error {
	direct := make(map[int][]backendID) // not ended, by task
	for _, f := range v.found {
		r, gone := &v.out[f.task].Residue, v.doomed[f.id()]
		if v.ends(f) && f.b.Protected {
			v.say(f.task, "a backend of the role was left alone: it is a superuser's and the control role is not one")
		}
		switch {
		case f.kind == revoke.BackendLeftOver:
			s := v.pass.Tasks[f.task].Silent[f.boot]
			stopped := revoke.StoppedFor{Node: s.Node, Boot: s.Boot}
			if gone {
				stopped.Backends = 1
				v.eng.metrics.sweptLeftOver.Inc()
			} else {
				stopped.NotGone = 1
			}
			r.Add(revoke.Residue{StoppedFor: []revoke.StoppedFor{stopped}})
		case f.kind == revoke.BackendDirect && gone && v.pass.Tasks[f.task].Mark == nil: // ended for another task
		case f.kind == revoke.BackendDirect && gone:
			r.Swept.DirectSessions++
			v.eng.metrics.sweptDirect.Inc()
		case f.kind == revoke.BackendDirect:
			direct[f.task] = append(direct[f.task], f.id())
		}
	}
	return v.count(ctx, direct)
}

// count fills the numbers that were asked for.
func (v *visit) count(ctx context.Context, direct map[int][]backendID) error {
	roles := v.roles(func(t *revoke.SweepTask) bool { return t.Count })
	if len(roles) == 0 {
		return nil
	}
	list, err := rows(ctx, v.conn, residueSQL, textArray(roles))
	if err != nil {
		return fmt.Errorf("cannot read what is left of a role: %w", err)
	}
	present := map[backendID]bool{}
	if len(direct) > 0 {
		if !waitContext(ctx, sweepConfirm) {
			return context.Cause(ctx)
		}
		if present, err = v.present(ctx, slices.Concat(values(direct)...)); err != nil {
			return err
		}
	}
	for i := range v.pass.Tasks {
		t, r := &v.pass.Tasks[i], &v.out[i].Residue
		at := slices.IndexFunc(list, func(row []string) bool { return row[0] == t.Role })
		if !t.Count {
			continue
		}
		if at < 0 {
			v.say(i, "the name of the role is not valid text")
			continue
		}
		prepared, err1 := strconv.Atoi(list[at][1])
		slots, err2 := strconv.Atoi(list[at][2])
		if err := errors.Join(err1, err2); err != nil {
			return fmt.Errorf("cannot read what is left of a role: %w", err)
		}
		can := list[at][3] == "t"
		r.PreparedXacts, r.ReplicationSlots, r.RoleCanLogin = &prepared, &slots, &can
		if v.out[i].Doubtful {
			continue // the caller asks again, or says why it does not know
		}
		left := 0
		for _, id := range direct[i] {
			if present[id] {
				left++
			}
		}
		r.DirectSessions = &left
	}
	return nil
}

func values[K comparable, V any](m map[K]V) []V {
	out := make([]V, 0, len(m))
	for _, v := range m {
		out = append(out, v)
	}
	return out
}

// isText says whether a name can be sent as a parameter. Names from outside were cut at 63 bytes, in the middle of a
// character if need be.
func isText(name string) bool { return utf8.ValidString(name) && !strings.ContainsRune(name, 0) }

var arrayEscapes = strings.NewReplacer(`\`, `\\`, `"`, `\"`)

// textArray writes a Postgres array literal of any text.
func textArray(items []string) string { return array(items, arrayEscapes.Replace) }
