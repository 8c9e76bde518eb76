package engine

import (
	"cmp"
	"context"
	"slices"
	"strconv"
	"strings"
	"time"

	"pgedge/revoke"
)

const (
	// maxImpactLooks bounds the backends that the database is asked about for one question. More are listed without.
	maxImpactLooks = 2000
	// maxImpactWaiters bounds the waiting backends whose blockers are asked for: each asks the lock manager.
	maxImpactWaiters = 200
)

// impactSQL reads pg_locks once, and finds backends as the terminating statement does.
const impactSQL = `
WITH locks AS MATERIALIZED (SELECT pid, granted, locktype FROM pg_locks),
 held AS (SELECT pid, count(*) AS n FROM locks WHERE granted AND locktype <> 'virtualxid' GROUP BY pid),
 waiting AS (SELECT DISTINCT pid FROM locks WHERE NOT granted LIMIT $4::int4),
 blocking AS (SELECT b.pid, count(DISTINCT w.pid) AS n FROM waiting w, unnest(pg_blocking_pids(w.pid)) AS b(pid) GROUP BY b.pid)
SELECT a.pid, coalesce(extract(epoch FROM clock_timestamp() - a.xact_start), 0)::float8,
       CASE WHEN a.state = 'active' THEN coalesce(extract(epoch FROM clock_timestamp() - a.query_start), 0) ELSE 0 END::float8,
       a.backend_xid IS NOT NULL, coalesce(held.n, 0), coalesce(blocking.n, 0)
FROM unnest($1::int4[], $2::int4[], $3::text[]) AS t(pid, port, start)
JOIN pg_stat_activity a ON a.pid = t.pid
 AND (t.port > 0 AND a.client_port = t.port OR t.start <> '' AND a.backend_start::text = t.start)
LEFT JOIN held ON held.pid = a.pid
LEFT JOIN blocking ON blocking.pid = a.pid`

// Impact says what a revocation of these scopes would stop now. It changes nothing. The database is asked over a
// connection of the control role made for the purpose, so that no kill waits behind the question; ctx bounds it.
func (e *Engine) Impact(ctx context.Context, scopes []revoke.Scope) []revoke.SessionImpact {
	seen := make(map[*session]int)
	out := []revoke.SessionImpact{}
	byControl := make(map[*controller][]*session)
	for _, scope := range scopes {
		for _, s := range e.index.match(scope) {
			if _, known := seen[s]; known {
				continue
			}
			seen[s] = len(out)
			info, live := s.info()
			status, _ := unpackActivity(s.activity.Load())
			i := revoke.SessionImpact{SessionInfo: info, InTransaction: status == 'T' || status == 'E'}
			switch {
			case !live:
				i.Why = "it has no backend at present"
			case s.control == nil:
				i.Why = "no control role"
			default:
				byControl[s.control] = append(byControl[s.control], s)
			}
			out = append(out, i)
		}
	}
	looks := maxImpactLooks
	for c, sessions := range byControl {
		asked := sessions[:min(looks, len(sessions))]
		looks -= len(asked)
		found, why := c.impact(ctx, asked)
		for n, s := range sessions {
			i := &out[seen[s]]
			row, there := found[s.key.PID]
			switch {
			case n >= len(asked):
				i.Why = "not looked at: more than " + strconv.Itoa(maxImpactLooks) + " sessions match on this node"
			case why != "":
				i.Why = why
			case !there:
				i.Why = "no backend with its pid and port was found on the server"
			default:
				row.SessionInfo, row.InTransaction, row.Looked = i.SessionInfo, i.InTransaction, true
				*i = row
			}
		}
	}
	slices.SortFunc(out, func(a, b revoke.SessionImpact) int { return cmp.Compare(a.ID, b.ID) })
	return out
}

// impact asks the server about backends and returns what it found by pid, or why it could not ask.
func (c *controller) impact(ctx context.Context, sessions []*session) (found map[uint32]revoke.SessionImpact, why string) {
	p := c.proof.Load()
	if p == nil || !p.usable {
		why = "the control role cannot be used"
		if p != nil && p.missing != "" {
			why += ": " + p.missing
		}
		return nil, why
	}
	if len(sessions) == 0 {
		return nil, ""
	}
	conn, err := c.dial(ctx, nil)
	if err != nil {
		return nil, "cannot ask the database: " + firstLine(err)
	}
	defer func() {
		bye, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		conn.Close(bye)
	}()
	out, err := rows(ctx, conn, impactSQL,
		array(sessions, func(s *session) string { return strconv.FormatUint(uint64(s.key.PID), 10) }),
		array(sessions, func(s *session) string {
			if p.byPort {
				return strconv.Itoa(s.link.port)
			}
			return "0"
		}),
		array(sessions, func(s *session) string { return s.start }),
		strconv.Itoa(maxImpactWaiters))
	if err != nil {
		return nil, "cannot ask the database: " + firstLine(err)
	}
	found = make(map[uint32]revoke.SessionImpact, len(out))
	for _, row := range out {
		pid, err := strconv.ParseUint(row[0], 10, 32)
		if err != nil {
			continue
		}
		i := revoke.SessionImpact{Written: row[3] == "t"}
		i.TransactionSeconds, _ = strconv.ParseFloat(row[1], 64) // Postgres printed them itself
		i.StatementSeconds, _ = strconv.ParseFloat(row[2], 64)
		i.Locks, _ = strconv.Atoi(row[4])
		i.Blocks, _ = strconv.Atoi(row[5])
		found[uint32(pid)] = i
	}
	return found, ""
}

// firstLine keeps an answer to the fleet short: connection errors list every attempt.
func firstLine(err error) string {
	line, _, _ := strings.Cut(err.Error(), "\n")
	return line
}
