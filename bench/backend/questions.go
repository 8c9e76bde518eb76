package backend

import (
	"fmt"
	"strconv"
	"strings"
	"time"
)

// question is one statement of pgedge's control connection, recognised by what it contains. Its answer is as true of
// this server as Postgres's is of itself.
type question struct {
	marks   []string // all of them occur in the statement, white space aside
	columns []string // all text
	params  int
	answer  func(c *conn, params []string) ([][]string, error)
}

// controlApplication is how the control connection calls itself; it is no session of anybody.
const controlApplication = "pgedge control"

// questions are asked in this order: the first whose marks occur is the one.
var questions = []question{
	{ // what the control role may do
		marks:   []string{"pg_has_role('pg_signal_backend', 'USAGE')", "pg_postmaster_start_time()::text", "rolcreaterole"},
		columns: []string{"rolsuper", "signal", "stats", "started", "host", "started_us", "rolcreaterole"},
		answer: func(c *conn, _ []string) ([][]string, error) {
			return [][]string{{"f", "t", "t", timestamp(c.srv.started), c.addr, strconv.FormatInt(c.srv.started.UnixMicro(), 10), "f"}}, nil
		},
	},
	{ // which server this is
		marks:   []string{"SELECT system_identifier FROM pg_control_system()"},
		columns: []string{"system_identifier"},
		answer: func(c *conn, _ []string) ([][]string, error) {
			return [][]string{{strconv.FormatInt(c.srv.started.UnixNano(), 10)}}, nil
		},
	},
	{ // to be told when clients vanish: the server reads all the time anyway, and notices
		marks:   []string{"SELECT set_config('client_connection_check_interval'"},
		columns: []string{"set_config"},
		answer:  func(*conn, []string) ([][]string, error) { return [][]string{{"1000"}}, nil },
	},
	{ // sample and end a batch of backends
		marks:   []string{"ELSE pg_terminate_backend(a.pid) END FROM unnest($1::int4[], $2::int4[], $3::text[]) AS t(pid, port, start)"},
		columns: []string{"pid", "state", "backend_xid", "backend_start", "rolsuper", "xmax", "pg_terminate_backend"},
		params:  4,
		answer:  terminateBatch,
	},
	{ // end backends that a sweep has found
		marks:   []string{"SELECT a.pid, pg_terminate_backend(a.pid) FROM unnest($1::int4[], $2::text[]) AS t(pid, start)"},
		columns: []string{"pid", "pg_terminate_backend"},
		params:  2,
		answer:  terminateSwept,
	},
	{ // which backends are still there
		marks:   []string{"SELECT pid, coalesce(backend_start::text, '') FROM pg_stat_activity WHERE pid = ANY($1::int4[])"},
		columns: []string{"pid", "backend_start"},
		params:  1,
		answer: func(c *conn, params []string) ([][]string, error) {
			return each(params, func(_ int, b *conn) []string { return []string{b.pidText(), timestamp(b.began)} }, c)
		},
	},
	{ // when young backends began
		marks:   []string{"SELECT pid, backend_start::text, usename FROM pg_stat_activity", "clock_timestamp() - backend_start < interval '20 s'"},
		columns: []string{"pid", "backend_start", "usename"},
		params:  1,
		answer: func(c *conn, params []string) ([][]string, error) {
			return each(params, func(_ int, b *conn) []string {
				if time.Since(b.began) >= 20*time.Second {
					return nil
				}
				return []string{b.pidText(), timestamp(b.began), b.role}
			}, c)
		},
	},
	{ // all backends of some roles
		marks:   []string{"FROM pg_roles r JOIN pg_stat_activity a ON a.usesysid = r.oid WHERE r.rolname = ANY($1::text[])"},
		columns: []string{"rolname", "pid", "host", "client_port", "backend_start", "age", "rolsuper"},
		params:  2,
		answer:  backendsOfRoles,
	},
	{ // what is left of a role: the server prepares no transactions, has no slots, and lets everybody log in
		marks:   []string{"SELECT n, (SELECT count(*) FROM pg_prepared_xacts p WHERE p.owner = n)", "FROM unnest($1::text[]) AS n"},
		columns: []string{"n", "prepared", "slots", "rolcanlogin"},
		params:  1,
		answer: func(_ *conn, params []string) (out [][]string, err error) {
			roles, err := array(params[0])
			for _, role := range roles {
				out = append(out, []string{role, "0", "0", "t"})
			}
			return out, err
		},
	},
	{ // roles that a sweep has set NOLOGIN: there are none
		marks:   []string{"SELECT r.rolname, d.description FROM pg_shdescription d JOIN pg_roles r"},
		columns: []string{"rolname", "description"},
		params:  1,
		answer:  func(*conn, []string) ([][]string, error) { return nil, nil },
	},
}

// findQuestion is the question that a statement is, nil if it is none.
func findQuestion(sql string) *question {
	if len(sql) < 40 {
		return nil // shorter than any
	}
	sql = oneLine(sql)
next:
	for i := range questions {
		for _, mark := range questions[i].marks {
			if !strings.Contains(sql, mark) {
				continue next
			}
		}
		return &questions[i]
	}
	return nil
}

func (q *question) describe() []column {
	out := make([]column, len(q.columns))
	for i, name := range q.columns {
		out[i] = column{name, oidText}
	}
	return out
}

// terminateBatch ends the backends that pid and client port, or pid and start, name. Nobody here is a superuser, and
// nobody has a transaction id, since nothing is ever written.
func terminateBatch(c *conn, params []string) ([][]string, error) {
	ports, err := array(params[1])
	if err != nil {
		return nil, err
	}
	starts, err := array(params[2])
	if err != nil {
		return nil, err
	}
	return each(params, func(i int, b *conn) []string {
		start := timestamp(b.began)
		byPort := i < len(ports) && ports[i] != "0" && ports[i] == strconv.Itoa(b.port)
		byStart := i < len(starts) && starts[i] == start
		if !byPort && !byStart {
			return nil
		}
		b.mu.Lock()
		state := b.state
		b.mu.Unlock()
		b.terminate()
		return []string{b.pidText(), state, "", start, "f", "1000", "t"}
	}, c)
}

func terminateSwept(c *conn, params []string) ([][]string, error) {
	starts, err := array(params[1])
	if err != nil {
		return nil, err
	}
	return each(params, func(i int, b *conn) []string {
		if i >= len(starts) || starts[i] != timestamp(b.began) {
			return nil
		}
		b.terminate()
		return []string{b.pidText(), "t"}
	}, c)
}

func backendsOfRoles(c *conn, params []string) ([][]string, error) {
	roles, err := array(params[0])
	if err != nil {
		return nil, err
	}
	var out [][]string
	for _, role := range roles {
		for _, b := range c.srv.ofRole(role) {
			if role == params[1] && b.application == controlApplication {
				continue
			}
			out = append(out, []string{role, b.pidText(), b.addr, strconv.Itoa(b.port), timestamp(b.began),
				strconv.FormatInt(time.Since(b.began).Microseconds(), 10), "f"})
		}
	}
	return out, nil
}

// each calls f with the backends that the first parameter, an array of process ids, names, and collects the rows.
func each(params []string, f func(i int, b *conn) []string, c *conn) ([][]string, error) {
	pids, err := array(params[0])
	if err != nil {
		return nil, err
	}
	var out [][]string
	for i, text := range pids {
		pid, err := strconv.ParseUint(text, 10, 32)
		if err != nil {
			return nil, fmt.Errorf("process id %q is no number", text)
		}
		if b := c.srv.find(uint32(pid)); b != nil {
			if row := f(i, b); row != nil {
				out = append(out, row)
			}
		}
	}
	return out, nil
}

func (c *conn) pidText() string { return strconv.FormatUint(uint64(c.pid), 10) }

// array reads a Postgres array literal of one dimension, elements quoted or not.
func array(text string) ([]string, error) {
	inner, ok1 := strings.CutPrefix(text, "{")
	inner, ok2 := strings.CutSuffix(inner, "}")
	if !ok1 || !ok2 {
		return nil, fmt.Errorf("malformed array literal: %q", text)
	}
	if inner == "" {
		return nil, nil
	}
	var out []string
	var item strings.Builder
	quoted, escaped := false, false
	for i := range len(inner) {
		switch ch := inner[i]; {
		case escaped:
			item.WriteByte(ch)
			escaped = false
		case ch == '\\':
			escaped = true
		case ch == '"':
			quoted = !quoted
		case ch == ',' && !quoted:
			out = append(out, item.String())
			item.Reset()
		default:
			item.WriteByte(ch)
		}
	}
	if quoted || escaped {
		return nil, fmt.Errorf("malformed array literal: %q", text)
	}
	return append(out, item.String()), nil
}
